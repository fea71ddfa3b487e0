"""How every picture looks, and the one way a picture reaches the disk.

Figures are made as `matplotlib.figure.Figure(...)`, never through pyplot: no display is needed, and no
figure stays behind in a global list.
"""

import functools
import io
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from lib.runtime.errors import UserError, warn
from lib.runtime.files import write_atomically

# Okabe & Ito, "Color Universal Design", 2008. The strong colours lead; yellow, faint as a line on white,
# comes last.
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

# More, for up to twelve classes; in turn with the others they are told apart by hue and by lightness.
MORE_COLOURS = (
    "#7F7F7F",  # grey
    "#332288",  # indigo
    "#882255",  # wine
    "#999933",  # olive
)

# What speaks for an answer is red, what speaks against it blue, nothing white: ColorBrewer's RdBu, which
# colour-blind readers tell apart.
SIGNED = LinearSegmentedColormap.from_list(
    "signed", ["#053061", "#2166AC", "#92C5DE", "#FFFFFF", "#F4A582", "#B2182B", "#67001F"]
)

# Their number is prime to the number of colours, so cycling through both meets every pair once.
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "*", "h", "d")

INK = "#262626"
GRID = "#E3E3E3"

# Set at import and not in a context: matplotlib reads them when a figure is made and again when it is
# drawn, so a context would have to be held open by every caller from its first line to its last.
matplotlib.rcParams.update(
    {
        "figure.dpi": 150,
        "savefig.dpi": 150,
        "figure.constrained_layout.use": True,
        "savefig.bbox": "tight",  # a long title or a legend beside the axes widens the picture, uncut
        "savefig.pad_inches": 0.1,
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same picture on every machine
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
        "axes.prop_cycle": matplotlib.cycler(color=PALETTE),
        "lines.linewidth": 1.6,
        "lines.markersize": 5,
        "image.cmap": "viridis",
        "pdf.fonttype": 42,
        "svg.hashsalt": "figure",  # otherwise the ids inside an SVG are random
    }
)

# The metadata that would make two pictures of the same values differ.
_UNDATED = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def class_styles(n: int) -> list[tuple[str, str]]:
    """Return a (colour, marker) for each of `n` classes.

    Colours alone tell up to eight classes apart; beyond eight the markers vary too, and up to twelve no
    colour comes twice. All pairs differ up to 104 classes, then they come round again.
    """
    if n <= len(PALETTE):
        return [(colour, MARKERS[0]) for colour in PALETTE[:n]]
    colours = PALETTE + MORE_COLOURS if n <= len(PALETTE + MORE_COLOURS) else PALETTE
    return [(colours[i % len(colours)], MARKERS[i % len(MARKERS)]) for i in range(n)]


def grey(pixels: np.ndarray) -> np.ndarray:
    """Return an image (H, W, 3) uint8 as [0, 1] without its colours: those are for what is drawn over it."""
    luminance = pixels @ np.array([0.299, 0.587, 0.114]) / 255
    return np.repeat(luminance[..., None], 3, axis=2)


def literal(text: str) -> str:
    """Return `text` such that matplotlib draws it as it stands: `$` would start a formula."""
    return text.replace("$", r"\$")


def save(figure: Figure, path: str | Path, *, show: bool = False, colours: int | None = None) -> Path:
    """Write `figure` to `path` in the format of its suffix, whole or not at all, and return the path.

    The same figure gives the same bytes. With `show` a window opens as well, until it is closed.

    Args:
        colours: keep so many colours (at most 256) in a PNG; a drawing is a third as large with 64 as
            with all, and looks the same. None for photographs and heat maps.

    Raises:
        UserError: no picture format has that suffix.
        RunFailed: the file cannot be written (full disk, no permission).
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix.removeprefix(".") not in figure.canvas.get_supported_filetypes():
        raise UserError(f"cannot write {path}: a picture's name ends in .png, .svg or .pdf")
    picture = io.BytesIO()
    with warnings.catch_warnings():
        # A letter that the font lacks shows as a box: seen there, not in a stack of warnings.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(picture, format=suffix[1:], metadata=_UNDATED.get(suffix))
    if colours and suffix == ".png":
        picture = _with_fewer_colours(picture, colours)
    write_atomically(path, picture.getbuffer())
    if show:
        _show(figure)
    figure.clear()
    return path


def _with_fewer_colours(picture: io.BytesIO, colours: int) -> io.BytesIO:
    from PIL import Image

    smaller = io.BytesIO()
    with Image.open(picture) as image:
        paletted = image.convert("RGB").quantize(colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        paletted.save(smaller, "PNG", optimize=True)
    return smaller


def _show(figure: Figure) -> None:
    """Open a window on `figure` and wait until it is closed; without a display, say so on stderr."""
    from matplotlib import pyplot

    try:
        # pyplot asks this "class" for a new figure: it gets the one there is, now with a window.
        pyplot.figure(FigureClass=lambda **_: figure)
    except ImportError:  # a window toolkit was asked for (MPLBACKEND) that has no display to open on
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
