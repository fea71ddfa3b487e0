"""Texts from outside, as they are printed."""

import random
import sys
import unicodedata

import pytest

from lib.figures import style
from lib.runtime.errors import say
from lib.runtime.spelling import cell, printable, readable

HARMFUL = [
    *map(chr, range(32)),
    "\x7f",
    "\x85",
    "\x9b",
    "\u202e",
    "\u2066",
    "\u2028",
    "\u2029",
    "\ud800",
    "\ufeff",
]


@pytest.mark.parametrize("character", HARMFUL, ids=ascii)
def test_a_character_that_controls_a_terminal_is_escaped(character):
    shown = printable(f"a{character}b")
    assert shown[:2] + shown[-1] == "a\\b"
    assert shown.isprintable()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cat",
        "猫 と 犬",
        "Кошка",
        "قط",
        "naïve café",
        "a\xa0b",
        "\u3000",
        "👩\u200d🔬",
        "क्\u200dष",
        "100 % \\n $x$",
    ],
)
def test_letters_of_all_scripts_stay(text):
    assert printable(text) == text


def test_what_is_printed_has_no_control_characters_whatever_it_was():
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(chr(rng.choice((rng.randrange(0x300), rng.randrange(0x110000)))) for _ in range(30))
        shown = printable(text)
        assert not any(unicodedata.category(each) in ("Cc", "Cs", "Zl", "Zp") for each in shown)
        assert printable(shown) == shown
        assert cell(text).split("\t") == f"{cell(text)}\n".splitlines()
        shown.encode()


def test_a_message_is_one_line(capsys):
    say("no file \x1b[31mred\x1b[0m\n\u202ename\r\udce9")
    assert capsys.readouterr().err == "no file \\x1b[31mred\\x1b[0m \\u202ename \\udce9\n"


def test_the_title_of_a_figure_keeps_its_line_breaks_alone():
    assert style.literal("a\nb\tc $5\x1b") == "a\nb\\tc \\$5\\x1b"


def test_letters_that_no_font_has_are_warned_of_once(tmp_path, capsys, monkeypatch):
    from matplotlib.figure import Figure

    monkeypatch.setitem(sys.modules["matplotlib"].rcParams, "font.family", ["DejaVu Sans"])
    style._say_missing.cache_clear()
    for number in range(2):
        figure = Figure()
        figure.suptitle("猫")
        style.save(figure, tmp_path / f"{number}.png")
    assert capsys.readouterr().err.count("warning: the pictures lack letters that no font") == 1


@pytest.mark.parametrize(
    ("value", "how", "text"),
    [
        (-0.684, ".2f", "−0.68"),
        (-0.001, ".2f", "0.00"),
        (-0.0, "g", "0"),
        (-1e-5, ".2g", "−1e−05"),
        (float("nan"), ".2f", "nan"),
    ],
)
def test_a_number_has_a_true_minus_sign_and_zero_none(value, how, text):
    assert readable(value, how) == text
