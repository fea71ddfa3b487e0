"""Words coloured by their attributions: in a terminal, as HTML, and as a figure."""

import html
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from lib.figures import style

LINE_CHARACTERS = 72
_CHARACTER = 0.085  # inches, width of a character of the monospaced font at 10 points
_LINE = 0.3  # inches, height of a line


class Word(NamedTuple):
    """A word, its attribution, and whether it is in the network's vocabulary."""

    text: str
    value: float
    is_known: bool = True


def coloured_terminal(words: Sequence[Word]) -> str:
    """Return `words` on ANSI background colours, with unknown words underlined."""
    parts = []
    for word, colour in zip(words, _colours(words), strict=True):
        red, green, blue = (round(255 * part) for part in colour)
        ink = "97" if _is_dark(colour) else "30"
        underlined = "" if word.is_known else "4;"
        parts.append(f"\x1b[{underlined}{ink};48;2;{red};{green};{blue}m {word.text} \x1b[0m")
    return "".join(parts)


def coloured_html(words: Sequence[Word], heading: str) -> str:
    """Return an HTML page with `heading` and the words, whose values are background colours and tooltips.

    Words outside the vocabulary have a dashed border.
    """
    spans = []
    for word, colour in zip(words, _colours(words), strict=True):
        red, green, blue = (round(255 * part) for part in colour)
        ink = "#fff" if _is_dark(colour) else style.INK
        border, note = ("", "") if word.is_known else (f";outline:1px dashed {style.INK}", ", unknown word")
        spans.append(
            f'<span title="{word.value:+.4f}{note}" style="background:rgb({red},{green},{blue});color:{ink};'
            f'padding:.15em .3em;border-radius:.2em{border}">{html.escape(word.text)}</span>'
        )
    return (
        '<!doctype html>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(heading)}</title>\n"
        '<body style="font:16px/2 sans-serif;max-width:45em;margin:2em auto">\n'
        f"<p>{html.escape(heading)}</p>\n<p>{' '.join(spans)}</p>\n</body>\n"
    )


def attribution_lines(words: Sequence[Word], heading: str, unit: str) -> Figure:
    """Return a figure of the words in lines, each word on the colour of its value.

    Words outside the vocabulary have a dashed border.

    Args:
        words: the words and their values.
        heading: title of the figure.
        unit: unit of the values, for the colour bar.
    """
    lines = _lines([word.text for word in words])
    heading = textwrap.fill(heading, LINE_CHARACTERS)
    width = LINE_CHARACTERS * _CHARACTER + 1.6
    height = len(lines) * _LINE + 0.22 * heading.count("\n") + 1.1
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.set(xlim=(0, LINE_CHARACTERS), ylim=(len(lines), 0))
    axes.set_axis_off()
    axes.set_title(style.literal(heading), loc="left", fontsize=10)
    looks = zip(_colours(words), words, strict=True)
    for row, line in enumerate(lines):
        for column, word in line:
            colour, (_, _, is_known) = next(looks)
            axes.text(
                column + 0.5,
                row + 0.5,
                style.literal(word),
                family="DejaVu Sans Mono",
                va="center",
                color="white" if _is_dark(colour) else style.INK,
                bbox={
                    "facecolor": colour,
                    "edgecolor": "none" if is_known else style.INK,
                    "linestyle": "dashed",
                    "pad": 2.5,
                },
            )
    limit = _limit(words)
    scale = ScalarMappable(Normalize(-limit, limit), style.SIGNED)
    bar = figure.colorbar(scale, ax=axes, label=unit, fraction=0.03, aspect=12)
    bar.outline.set_visible(False)
    return figure


def _lines(words: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Break words into lines of (column, word); a word longer than a line is truncated."""
    lines: list[list[tuple[int, str]]] = [[]]
    column = 0
    for word in words:
        word = word if len(word) <= LINE_CHARACTERS - 2 else word[: LINE_CHARACTERS - 3] + "…"
        if column + len(word) > LINE_CHARACTERS - 1:
            lines.append([])
            column = 0
        lines[-1].append((column, word))
        column += len(word) + 1
    return lines


def _limit(words: Sequence[Word]) -> float:
    """Return the value at the ends of the colour scale: the largest magnitude, or 1 if all are zero."""
    return max((abs(word.value) for word in words), default=0) or 1.0


def _colours(words: Sequence[Word]) -> list[tuple[float, float, float]]:
    limit = _limit(words)
    return [to_rgb(style.SIGNED(0.5 + 0.5 * word.value / limit)) for word in words]


def _is_dark(colour: tuple[float, float, float]) -> bool:
    red, green, blue = colour
    # Luminance (ITU-R BT.601).
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
