"""The command line: what was typed stays apart from defaults; a mistake is one line and exit 2."""

import os
import signal
import sys

import pytest
from conftest import ROOT, SCRIPT, module_of

from lib import cli
from lib.runtime.errors import Interrupted, RunFailed, UserError

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))


@pytest.fixture
def parser() -> cli.Parser:
    parser = cli.Parser(prog="x.py")
    parser.add_argument("--size", type=cli.integer(1), default=28)
    parser.add_argument("--rate", type=cli.number(0, above=True))
    parser.add_argument("--names", type=cli.subset_of("a", "b"), default=())
    parser.add_argument("--amp", action="store_true")
    return parser


# Flags


def test_what_was_typed_is_told_from_the_defaults(parser):
    line = parser.parse(["--rate", "0.5", "--amp"])
    assert line.typed == {"rate": 0.5, "amp": True}
    assert line.defaults == {"size": 28, "rate": None, "names": (), "amp": False}


def test_a_flag_typed_with_the_value_of_its_default_counts_as_typed(parser):
    assert parser.parse(["--size", "28", "--names", "none"]).typed == {"size": 28, "names": ()}


def test_nothing_typed_is_nothing_typed(parser):
    assert parser.parse([]).typed == {}


def parsed_or_refusal(kind, text: str):
    import argparse

    try:
        return kind(text)
    except argparse.ArgumentTypeError:
        return "refused"


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        (cli.integer(1), "3", 3),
        (cli.integer(1), "0", "refused"),
        (cli.integer(1), "-3", "refused"),
        (cli.integer(1), "3.5", "refused"),
        (cli.integer(1), "1e3", "refused"),
        (cli.integer(1), "", "refused"),
        (cli.integer(1), "three", "refused"),
        (cli.integer(1), "inf", "refused"),
        (cli.integer(1), "1" + "0" * 400, "refused"),
        (cli.integer(1), "1" + "0" * 5000, "refused"),
        (cli.integer(0, 9), "9", 9),
        (cli.integer(0, 9), "10", "refused"),
        (cli.number(0), "0", 0.0),
        (cli.number(0), "1e-3", 0.001),
        (cli.number(0), "-1e-3", "refused"),
        (cli.number(0), "nan", "refused"),
        (cli.number(0), "inf", "refused"),
        (cli.number(0), "1e999", "refused"),
        (cli.number(0, above=True), "0", "refused"),
        (cli.number(0, above=True), "1e-9", 1e-9),
        (cli.number(0, 1), "1", 1.0),
        (cli.number(0, 1), "1.0001", "refused"),
        (cli.subset_of("a", "b"), "a,b", ("a", "b")),
        (cli.subset_of("a", "b"), "none", ()),
        (cli.subset_of("a", "b"), "", ()),
        (cli.subset_of("a", "b"), "a,c", "refused"),
        (cli.subset_of("a", "b"), "a b", "refused"),
    ],
)
def test_the_types_of_flags_take_what_is_in_their_bounds_only(kind, text, expected):
    assert parsed_or_refusal(kind, text) == expected


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--size", "0"], "'0' is not an integer of at least 1"),
        (["--rate", "0"], "'0' is not a number above 0"),
        (["--names", "a,c"], "'c' is none of a, b"),
        (["--siz", "3"], "--siz"),
        (["--unknown"], "--unknown"),
        (["stray"], "stray"),
        (["--size"], "expected one argument"),
        (["--amp", "true"], "true"),
    ],
)
def test_a_wrong_flag_is_a_users_mistake_that_names_it_and_points_to_help(parser, argv, said):
    with pytest.raises(UserError) as refused:
        parser.parse(argv)
    assert said in str(refused.value)
    assert str(refused.value).endswith("(see --help)")


def test_help_shows_the_defaults_that_there_are(parser):
    for action in parser._actions:
        action.help = action.help or f"what {action.dest} says"
    text = parser.format_help()
    assert "what size says (default: 28)" in text
    assert "what rate says\n" in text
    assert "what amp says\n" in text


@pytest.mark.parametrize("old", [("--speed", "2"), ("--speed=2",)])
def test_the_old_name_of_a_flag_still_works_and_says_so_once(parser, capsys, old):
    parser.rename("--speed", "--rate")
    assert parser.parse([*old, *old]).typed == {"rate": 2.0}
    assert capsys.readouterr().err == "warning: --speed is now called --rate; the old name still works\n"
    assert "--speed" not in parser.format_help()


@pytest.mark.parametrize(("script", "old", "new"), [("run-sst2-classification.py", "--pool", "--pooling")])
def test_a_flag_of_two_meanings_has_two_names_and_keeps_its_old_one(script, old, new, capsys):
    value = {"--pool": "max"}[old]
    assert module_of(script).make_parser().parse([old, value]).typed == {new.strip("-"): value}
    assert f"{old} is now called {new}" in capsys.readouterr().err


# Endings


def ended(capsys, monkeypatch, error) -> tuple[int, str]:
    def main(_argv):
        if error is not None:
            raise error

    monkeypatch.setattr(sys, "argv", ["x.py"])
    try:
        cli.run(main)
        status = 0
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (None, 0, ""),
        (UserError("no such\nthing"), 2, "error: no such thing\n"),
        (RunFailed("disk full"), 1, "error: disk full\n"),
        (Interrupted("saved", signal.SIGINT), 130, "saved\n"),
        (Interrupted("saved", signal.SIGTERM), 143, "saved\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_every_ending_has_its_status_and_at_most_one_line(capsys, monkeypatch, error, status, line):
    assert ended(capsys, monkeypatch, error) == (status, line)


def test_of_several_ranks_only_the_first_says_what_is_wrong(capsys, monkeypatch):
    def leave_at_once(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave_at_once)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert ended(capsys, monkeypatch, UserError("no")) == (2, "")
    monkeypatch.setenv("RANK", "0")
    assert ended(capsys, monkeypatch, UserError("no")) == (2, "error: no\n")


def test_a_mistake_of_ours_is_not_passed_off_as_the_users(capsys, monkeypatch):
    with pytest.raises(ZeroDivisionError):
        ended(capsys, monkeypatch, ZeroDivisionError())


# The scripts

HELP = """
import runpy, sys
from pathlib import Path
for script in sys.argv[1:]:
    sys.argv = [script, "--help"]
    sys.path.insert(0, str(Path(script).parent))
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        assert not end.code, script
    heavy = sorted({"torch", "torchvision", "matplotlib", "sklearn", "numpy", "PIL"} & set(sys.modules))
    assert not heavy, f"{script} --help imports {heavy}"
"""


def test_help_of_every_script_answers_without_importing_what_is_slow_to_import(tmp_path):
    import subprocess

    scripts = [str(ROOT / script) for script in SCRIPTS]
    assert str(ROOT / SCRIPT) in scripts
    done = subprocess.run(
        [sys.executable, "-c", HELP, *scripts], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert all(f"usage: {script}" in done.stdout for script in SCRIPTS)


def test_a_wrong_flag_of_the_script_is_one_line_and_exit_2(classify):
    done = classify("--learning-rate", "fast")
    assert (done.status, done.stdout) == (2, "")
    assert done.is_one_line_error()
    assert "-lr/--learning-rate: 'fast' is not a number above 0" in done.stderr
