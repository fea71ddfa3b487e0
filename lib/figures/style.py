"""The common style of all figures, and `save`, which writes them.

Figures are made by `matplotlib.figure.Figure(...)` and not by pyplot, which would need a display and keep
every figure in a global list.
"""

import functools
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.rcsetup import cycler

from lib.runtime.errors import UserError, warn
from lib.runtime.files import write_atomically
from lib.runtime.spelling import printable

# Okabe & Ito, "Color Universal Design", 2008. Strong colours first; yellow, a faint line on white, last.
PALETTE = (
    "#0072B2",  # blue
    "#D55E00",  # vermilion
    "#009E73",  # bluish green
    "#CC79A7",  # reddish purple
    "#E69F00",  # orange
    "#56B4E9",  # sky blue
    "#000000",  # black
    "#F0E442",  # yellow
)

# Additional colours for up to twelve classes, which differ from the others in hue or lightness.
MORE_COLOURS = (
    "#7F7F7F",  # grey
    "#332288",  # indigo
    "#882255",  # wine
    "#999933",  # olive
)

# Positive values (evidence for a class) are red, negative ones blue, zero is white: ColorBrewer's RdBu, which
# colour-blind readers can distinguish.
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#053061", "#2166AC", "#92C5DE", "#FFFFFF", "#F4A582", "#B2182B", "#67001F"]
)

# The number of markers (13) is coprime to that of the colours (8 or 12), so cycling through both at once
# visits every pair before it repeats.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")

INK = "#262626"
GRID = "#E3E3E3"

# Fonts of the common systems for letters that DejaVu Sans lacks; those that are installed are used.
_OF_OTHER_SCRIPTS = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "SimHei"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Emoji"),
)


def _fonts() -> list[str]:
    # DejaVu Sans ships with matplotlib, so that most pictures are the same on every machine.
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *(name for name in _OF_OTHER_SCRIPTS if name in installed)]


# Set at import and not in a context: matplotlib reads the parameters both when a figure is made and when it
# is drawn, so every caller would have to keep the context open until it has saved its figure.
matplotlib.rcParams.update(
    {
        "figure.dpi": 150,
        "savefig.dpi": 150,
        "figure.constrained_layout.use": True,
        "savefig.bbox": "tight",  # do not cut off a long title or a legend beside the axes
        "savefig.pad_inches": 0.1,
        "font.family": _fonts(),
        "font.size": 10,
        "axes.titlesize": 12,
        "axes.titlepad": 10,
        "axes.labelsize": 10,
        "legend.fontsize": 9,
        "legend.frameon": False,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.titlecolor": INK,
        "axes.edgecolor": "#8C8C8C",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": GRID,
        "grid.linewidth": 0.8,
        "xtick.color": "#8C8C8C",
        "ytick.color": "#8C8C8C",
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "axes.prop_cycle": cycler(color=PALETTE),
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "image.cmap": "viridis",
        "pdf.fonttype": 42,
        "svg.hashsalt": "figure",  # otherwise the ids inside an SVG are random
    }
)

_MISSING = re.compile(r"Glyph \d+ .* missing from (?:current )?font")

# Metadata to leave out, because dates would make two files of the same figure differ.
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def class_styles(n: int) -> list[tuple[str, str]]:
    """Return a pair (colour, marker) for each of `n` classes.

    Up to eight classes differ by colour alone; with more, the markers vary too. Up to twelve classes all
    have different colours, and up to 104 different pairs; beyond that the pairs repeat.
    """
    if n <= len(PALETTE):
        return [(colour, MARKERS[0]) for colour in PALETTE[:n]]
    colours = PALETTE + MORE_COLOURS if n <= len(PALETTE + MORE_COLOURS) else PALETTE
    return [(colours[i % len(colours)], MARKERS[i % len(MARKERS)]) for i in range(n)]


def grey(pixels: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) uint8 in grey, in [0, 1], as a background for colours drawn over it."""
    luminance = pixels @ np.array([0.299, 0.587, 0.114]) / 255
    return np.repeat(luminance[..., None], 3, axis=2)


def fill_bar(bar: Colorbar, colours: np.ndarray) -> None:
    """Draw colours (n, m, 3) over a colour bar: n values from its lower end up, each over m backgrounds.

    A map that is blended with its image has no single colour for a value; the bar shows the range.
    """
    low, high = bar.ax.get_ylim()
    edges = np.linspace(0, 1, colours.shape[1] + 1), np.linspace(low, high, len(colours) + 1)
    bar.ax.pcolormesh(*edges, colours)
    bar.ax.set(xlim=(0, 1), ylim=(low, high))
    bar.ax.grid(visible=False)


def literal(text: str) -> str:
    """Escape `text` so that matplotlib draws it literally: an unescaped `$` starts a formula.

    Bytes of a file name that are not UTF-8 and control characters, which no font has, are escaped, too; a
    line break breaks the line.
    """
    return "\n".join(printable(line) for line in text.split("\n")).replace("$", r"\$")


def save(figure: Figure, path: str | Path, *, show: bool = False, colours: int | None = None) -> Path:
    """Write `figure` to `path` atomically, in the format of its suffix, and return the path.

    The same figure gives the same bytes.

    Args:
        figure: the figure; it is cleared afterwards.
        path: file to write.
        show: also open a window, and wait until it is closed.
        colours: reduce a PNG to this many colours (at most 256). With 64, a drawing has a third of the size
            and looks the same. None, for photographs and heat maps, keeps all colours.

    Raises:
        UserError: the suffix is not that of a picture format.
        RunFailed: the file cannot be written (full disk, no permission).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix.removeprefix(".") not in figure.canvas.get_supported_filetypes():
        raise UserError(f"cannot write {path}: a picture's name ends in .png, .svg or .pdf")
    picture = io.BytesIO()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(picture, format=suffix[1:], metadata=_UNDATED.get(suffix))
    _pass_on(caught)
    if colours and suffix == ".png":
        picture = _with_fewer_colours(picture, colours)
    write_atomically(path, picture.getbuffer())
    if show:
        _show(figure)
    figure.clear()
    return path


def _pass_on(caught: Sequence[warnings.WarningMessage]) -> None:
    """Show the warnings of drawing a figure; those about missing letters as one line, once in a run."""
    missing = [found for each in caught if (found := _MISSING.match(str(each.message)))]
    if missing:
        _say_missing()
    for each in caught:
        if not _MISSING.match(str(each.message)):
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


@functools.cache
def _say_missing() -> None:
    warn(
        "the pictures lack letters that no font of this machine has, and show boxes instead: install a font "
        "that has them, e.g. Noto Sans CJK"
    )


def _with_fewer_colours(picture: io.BytesIO, colours: int) -> io.BytesIO:
    from PIL import Image

    smaller = io.BytesIO()
    with Image.open(picture) as image:
        paletted = image.convert("RGB").quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        paletted.save(smaller, "PNG", optimize=True)
    return smaller


def _show(figure: Figure) -> None:
    """Show `figure` in a window and wait until it is closed; warn if there is no display."""
    from matplotlib import pyplot

    try:
        # pyplot calls this "class" to make a new figure: it gets the existing one, and adds a window to it.
        pyplot.figure(FigureClass=cast(type[Figure], lambda **_: figure))
    except ImportError:  # MPLBACKEND names a window toolkit, but there is no display
        interactive = False
    else:
        interactive = pyplot.get_backend().lower() != "agg"
    if interactive:
        pyplot.show()
    else:
        _say_no_display()
    pyplot.close(figure)


@functools.cache
def _say_no_display() -> None:
    warn("--show found no display; the pictures are in their files")
