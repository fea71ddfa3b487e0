"""Training curves: logged quantities over the steps or epochs of one run or of several runs."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatter, MaxNLocator

from lib.figures.style import INK, PALETTE, class_styles, literal

_FEW_POINTS = 40  # up to this many, every point has a marker
_MOST_POINTS = 4000  # a line with more points is thinned: the picture has fewer columns of pixels
_LEGEND_WIDTH = 100  # characters that fit under the axes in the legend's font
_LEGEND_LINE = 0.18  # inches
# Above these, matplotlib's arithmetic of ticks and margins overflows, or the tick labels fill the figure.
_LARGEST_X, _LARGEST_Y = 1e12, 1e100


@dataclass(frozen=True)
class Curve:
    """One quantity of one run; values that cannot be drawn leave gaps.

    Attributes:
        label: its name in the legend.
        xs, ys: (N,).
        ranks: (N,), which of several equally good points is the best one: that of the highest rank, and of
            equal ranks the latest, as in `lib.training.fit`. None if all have the same rank.
    """

    label: str
    xs: np.ndarray
    ys: np.ndarray
    ranks: np.ndarray | None = None

    def drawable(self, log_scale: bool = False) -> np.ndarray:
        """Return a mask (N,) of the drawable points: finite, not huge, and on a log scale positive."""
        in_range = (np.abs(self.xs) < _LARGEST_X) & (np.abs(self.ys) < _LARGEST_Y)
        return in_range & ((self.ys > 1 / _LARGEST_Y) | (not log_scale))


def draw_curves(
    curves: Sequence[Curve],
    quantity: str,
    *,
    x: str = "step",
    smooth: float = 0.0,
    best: str | None = None,
    log_scale: bool = False,
) -> Figure:
    """Draw `curves` on one pair of axes, with the legend below them, where it covers no point.

    Args:
        curves: one or more curves. A curve without any drawable point is left out, but its colour stays
            reserved, so that a run has the same colour in all figures.
        quantity: name of the quantity, for the title and the y axis.
        x: unit of the xs, "step" or "epoch".
        smooth: width of a running mean in percent of a curve's points, which are drawn faintly behind it.
        best: "min" or "max" to mark that point of each curve with a star; None for no mark.
        log_scale: whether the y axis is logarithmic.
    """
    figure = Figure(figsize=(7.5, 4.2))
    axes = figure.subplots()
    _label_axes(axes, quantity, x, log_scale)
    by_marker = len(curves) > len(PALETTE)
    entries, heading = [], ""
    for curve, (colour, marker) in zip(curves, class_styles(len(curves)), strict=True):
        drawable = curve.drawable(log_scale)
        if not drawable.any():
            continue
        ys = np.where(drawable, curve.ys, np.nan)
        window = _window(len(ys), smooth)
        if window > 1:
            heading = f"Faint: as logged. Strong: running mean over {smooth:g}% of the points."
        line = _draw_line(axes, curve.xs, ys, window, colour, marker if by_marker else None)
        note = f" (★ best {_mark_best(axes, curve, ys, best, colour, x)})" if best else ""
        entries.append((line, curve.label + note))
    _add_legend(figure, entries, heading)
    return figure


def _label_axes(axes: Axes, quantity: str, x: str, log_scale: bool) -> None:
    axes.set_title(quantity)
    axes.set_ylabel(quantity)
    axes.set_xlabel(x.capitalize())
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=(1, 2, 5, 10), integer=x == "step", min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    if log_scale:
        axes.set_yscale("log", nonpositive="mask")
        axes.yaxis.set_major_formatter(_PlainLogFormatter())
        axes.yaxis.set_minor_formatter(_PlainLogFormatter(minor_thresholds=(2.5, 0.6)))


class _PlainLogFormatter(LogFormatter):
    """Log-scale labels such as 0.2 instead of 2 × 10⁻¹, also between the decades.

    A loss often stays within two decades, whose labels alone would say little.
    """

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:g}" if super().__call__(x, pos) else ""


def _window(points: int, smooth: float) -> int:
    """Return the window of the running mean, about `smooth` percent of the points, as an odd number."""
    return 2 * round(points * smooth / 200) + 1


def _running_mean(xs: np.ndarray, ys: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Return up to `_MOST_POINTS` centred means over `window` points; gaps are ignored.

    Towards the ends the window shrinks symmetrically, down to an eighth of its width, so that the mean
    follows the steep beginning of a loss. Each mean is summed separately: in one cumulative sum, the rounding
    error of a single huge loss would spread to all later points.
    """
    centres = np.unique(np.linspace(0, len(ys) - 1, _MOST_POINTS).astype(int))
    reaches = np.clip(np.minimum(centres, len(ys) - 1 - centres), window // 16, window // 2)
    means = [_mean(ys[max(0, i - reach) : i + reach + 1]) for i, reach in zip(centres, reaches, strict=True)]
    return xs[centres], np.array(means)


def _mean(ys: np.ndarray) -> float:
    ys = ys[~np.isnan(ys)]
    return ys.mean() if len(ys) else np.nan


def _thinned(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return up to `_MOST_POINTS` of the points: the lowest and the highest of each interval."""
    if len(ys) <= _MOST_POINTS:
        return xs, ys
    starts = np.linspace(0, len(ys), _MOST_POINTS // 2, endpoint=False).astype(int)
    lowest = _least_of_each(starts, np.where(np.isnan(ys), np.inf, ys))
    highest = _least_of_each(starts, np.where(np.isnan(ys), np.inf, -ys))
    kept = np.union1d(lowest, highest)
    return xs[kept], ys[kept]


def _least_of_each(starts: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Return the index of the least value in each interval of `ys`; `starts` are their first indices."""
    return np.array(
        [start + part.argmin() for start, part in zip(starts, np.split(ys, starts[1:]), strict=True)]
    )


def _draw_line(
    axes: Axes, xs: np.ndarray, ys: np.ndarray, window: int, colour: str, marker: str | None
) -> Line2D:
    """Draw one curve and return its line; if `window` is above 1, draw the running mean over faint points.

    With a `marker`, the line shows a few markers, which distinguish lines of the same colour.
    """
    if window > 1:
        axes.plot(*_thinned(xs, ys), color=colour, alpha=0.3, linewidth=0.8)
        xs, ys = _running_mean(xs, ys, window)
    else:
        xs, ys = _thinned(xs, ys)
    few = np.count_nonzero(~np.isnan(ys)) <= _FEW_POINTS
    every = 1 if few else len(ys) // 8
    marker = marker or ("o" if few else None)
    return axes.plot(xs, ys, color=colour, marker=marker, markevery=every)[0]


def best_point(ys: np.ndarray, best: str, ranks: np.ndarray | None = None) -> int:
    """Return the index of the best point: of equal ones that of the highest rank, then the latest.

    Args:
        ys: the values (N,); NaN is never the best.
        best: "min" or "max".
        ranks: (N,); see `Curve`.
    """
    value = np.nanmin(ys) if best == "min" else np.nanmax(ys)
    equal = np.flatnonzero(ys == value)
    of_rank = np.zeros(len(equal)) if ranks is None else ranks[equal]
    return int(equal[of_rank == of_rank.max()][-1])


def _mark_best(axes: Axes, curve: Curve, ys: np.ndarray, best: str, colour: str, x: str) -> str:
    """Mark the best point with a star; return its value and position as text."""
    i, xs = best_point(ys, best, curve.ranks), curve.xs
    axes.plot(xs[i], ys[i], "*", color=colour, markeredgecolor=INK, markersize=13, zorder=5, clip_on=False)
    return f"{ys[i]:.4g} at {x} {xs[i]:,.{6 if x == 'step' else 3}g}"


def _add_legend(figure: Figure, entries: list[tuple[Line2D, str]], heading: str) -> None:
    """Add the legend below the axes, and increase the figure's height by that of the legend."""
    texts = [textwrap.fill(text, _LEGEND_WIDTH) for _, text in entries]
    columns = max(1, min(3, _LEGEND_WIDTH // (max(map(len, texts)) + 9)))
    lines = -(-sum(text.count("\n") + 1 for text in texts) // columns) + bool(heading)
    figure.set_figheight(figure.get_figheight() + lines * _LEGEND_LINE)
    figure.legend(
        [line for line, _ in entries],
        [literal(text) for text in texts],
        ncols=columns,
        title=heading or None,
        title_fontsize="medium",
        alignment="left",
        loc="outside lower left",
    )
