"""Words coloured by what they add to an answer: in a terminal, as HTML, and as a picture."""

import html
import textwrap
from collections.abc import Sequence

from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure

from lib.figures import style

LINE_CHARACTERS = 72
_CHARACTER = 0.085  # inches, of the monospaced font at 10 points
_LINE = 0.3  # inches


def coloured_terminal(words: Sequence[str], values: Sequence[float]) -> str:
    """Return `words` with ANSI colours behind them."""
    parts = []
    for word, colour in zip(words, _colours(values), strict=True):
        red, green, blue = (round(255 * part) for part in colour)
        ink = "97" if _is_dark(colour) else "30"
        parts.append(f"\x1b[{ink};48;2;{red};{green};{blue}m {word} \x1b[0m")
    return "".join(parts)


def coloured_html(words: Sequence[str], values: Sequence[float], heading: str) -> str:
    """Return a page of its own: `heading`, and the words with their values as colours and as tooltips."""
    spans = []
    for word, value, colour in zip(words, values, _colours(values), strict=True):
        red, green, blue = (round(255 * part) for part in colour)
        ink = "#fff" if _is_dark(colour) else style.INK
        spans.append(
            f'<span title="{value:+.4f}" style="background:rgb({red},{green},{blue});color:{ink};'
            f'padding:.15em .3em;border-radius:.2em">{html.escape(word)}</span>'
        )
    return (
        '<!doctype html>\n<meta charset="utf-8">\n'
        f"<title>{html.escape(heading)}</title>\n"
        '<body style="font:16px/2 sans-serif;max-width:45em;margin:2em auto">\n'
        f"<p>{html.escape(heading)}</p>\n<p>{' '.join(spans)}</p>\n</body>\n"
    )


def attribution_lines(words: Sequence[str], values: Sequence[float], heading: str, unit: str) -> Figure:
    """Return a picture of the words, broken into lines, each on the colour of its value.

    Args:
        words, values: (T,).
        heading: stands above them.
        unit: of the values, beside the colour bar.
    """
    lines = _lines(words)
    heading = textwrap.fill(heading, LINE_CHARACTERS)
    width = LINE_CHARACTERS * _CHARACTER + 1.6
    height = len(lines) * _LINE + 0.22 * heading.count("\n") + 1.1
    figure = Figure(figsize=(width, height))
    axes = figure.subplots()
    axes.set(xlim=(0, LINE_CHARACTERS), ylim=(len(lines), 0))
    axes.set_axis_off()
    axes.set_title(style.literal(heading), loc="left", fontsize=10)
    colours = iter(_colours(values))
    for row, line in enumerate(lines):
        for column, word in line:
            colour = next(colours)
            axes.text(
                column + 0.5,
                row + 0.5,
                style.literal(word),
                family="DejaVu Sans Mono",
                va="center",
                color="white" if _is_dark(colour) else style.INK,
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 2.5},
            )
    limit = _limit(values)
    scale = ScalarMappable(Normalize(-limit, limit), style.SIGNED)
    bar = figure.colorbar(scale, ax=axes, label=unit, fraction=0.03, aspect=12)
    bar.outline.set_visible(False)
    return figure


def _lines(words: Sequence[str]) -> list[list[tuple[int, str]]]:
    """Break words into lines of (column, word); a longer word is cut."""
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


def _limit(values: Sequence[float]) -> float:
    return max(map(abs, values), default=0) or 1.0


def _colours(values: Sequence[float]) -> list[tuple[float, float, float]]:
    limit = _limit(values)
    return [to_rgb(style.SIGNED(0.5 + 0.5 * value / limit)) for value in values]


def _is_dark(colour: tuple[float, float, float]) -> bool:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue < 0.55
