"""Sheets of images for autoencoders: originals over reconstructions, grids, and rows of changed images."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lib.figures import style

CELL_INCHES = 0.62
GAP = 0.06  # between images, as a share of their side
NAME_CHARACTERS = 24


def sheet(
    images: np.ndarray,
    *,
    row_names: Sequence[str] = (),
    column_names: Sequence[str] = (),
    title: str = "",
    x_label: str = "",
    cell: float = CELL_INCHES,
) -> Figure:
    """Return a figure with rows and columns of images.

    Args:
        images: (R, C, H, W, 3), floats in [0, 1]; an image of NaN is left blank.
        row_names, column_names: names beside the rows and above the columns; none if empty.
        title: title of the sheet.
        x_label: what the columns are.
        cell: width of an image in inches.
    """
    rows, columns = images.shape[:2]
    names = [_short(name) for name in row_names]
    margin = 0.075 * max((len(line) for name in names for line in name.split("\n")), default=0)
    lines = title.count("\n") + 1 if title else 0
    height = cell * rows + 0.22 * (lines + bool(column_names) + bool(x_label)) + 0.1
    longest = max((len(line) for line in title.split("\n")), default=0)
    figure = Figure(figsize=(max(cell * columns + margin + 0.2, 0.072 * longest), height))
    axes = figure.subplots()
    canvas, side = _tiled(images)
    axes.imshow(canvas, vmin=0, vmax=1, interpolation="nearest")
    _bare(axes)
    if column_names:
        centres = [side * (column + 0.5) - 0.5 for column in range(columns)]
        axes.set_xticks(centres, [style.literal(name) for name in column_names], fontsize=7)
        axes.xaxis.tick_top()
    if names:
        axes.set_yticks([side * (row + 0.5) - 0.5 for row in range(rows)], names, fontsize=8)
    if title:
        axes.set_title(style.literal(title), fontsize=9, pad=6)
    if x_label:
        axes.set_xlabel(style.literal(x_label), fontsize=8)
    return figure


def _tiled(images: np.ndarray) -> tuple[np.ndarray, float]:
    """Return images (R, C, H, W, 3) side by side on white, and the side of one with its gap."""
    rows, columns, height, width, _ = images.shape
    gap = max(1, round(GAP * width))
    canvas = np.ones((rows * (height + gap), columns * (width + gap), 3))
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + gap) + gap // 2, column * (width + gap) + gap // 2
            image = images[row, column]
            canvas[top : top + height, left : left + width] = np.where(np.isnan(image), 1, image.clip(0, 1))
    return canvas, width + gap


def _bare(axes: Axes) -> None:
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0, pad=2)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _short(name: str) -> str:
    lines = name.split("\n")
    return style.literal(
        "\n".join(
            line if len(line) <= NAME_CHARACTERS else f"{line[: NAME_CHARACTERS - 1]}…" for line in lines
        )
    )


def reconstructions(
    originals: np.ndarray, decoded: np.ndarray, errors: Sequence[float], title: str
) -> Figure:
    """Return originals over their reconstructions, in blocks of rows, each pair over its squared error.

    Args:
        originals, decoded: (N, H, W, 3), floats in [0, 1].
        errors: mean squared error of a pixel of each, (N,).
        title: title of the figure.
    """
    columns = min(10, len(originals))
    blocks = math.ceil(len(originals) / columns)
    cell = 0.8
    figure = Figure(figsize=(cell * columns + 0.3, (2 * cell + 0.3) * blocks + 0.4))
    figure.suptitle(style.literal(title), fontsize=9)
    panels = figure.subplots(blocks, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for axes, original, image, error in zip(panels.flat, originals, decoded, errors, strict=False):
        pair, _ = _tiled(np.stack([original, image])[:, None])
        axes.imshow(pair, vmin=0, vmax=1, interpolation="nearest")
        axes.text(0.5, -0.02, f"{error:.4f}", ha="center", va="top", fontsize=7, transform=axes.transAxes)
    return figure


def manifold(images: np.ndarray, reach: float) -> Figure:
    """Return a 2-D latent space: images (S, S, H, W, 3) decoded on a grid over [−reach, reach]²."""
    steps = len(images)
    figure = Figure(figsize=(6.2, 6.4))
    axes = figure.subplots()
    canvas, _ = _tiled(images[::-1])  # the first row of an image is drawn at the top, the smallest z below
    half = reach * steps / (steps - 1)  # the outermost points are the middles of their images
    axes.imshow(canvas, extent=(-half, half, -half, half), interpolation="antialiased")
    axes.grid(False)
    axes.set(xlabel="z₀", ylabel="z₁")
    axes.set_title("decoded points of the latent plane", fontsize=10)
    return figure


def latent_statistics(variances: np.ndarray, kl: np.ndarray, threshold: float) -> Figure:
    """Return the variance of the means and the KL of each latent unit, in order of falling KL.

    Args:
        variances: variance of μ over the images, (L,).
        kl: mean KL in nats, (L,).
        threshold: variance above which a unit counts as active.
    """
    order = np.argsort(-kl, kind="stable")
    units = np.arange(len(order))
    figure = Figure(figsize=(max(4.0, min(10.0, 0.16 * len(order) + 2)), 4))
    above, below = figure.subplots(2, 1, sharex=True)
    above.bar(units, kl[order], color=style.PALETTE[0])
    above.set(ylabel="KL, nats")
    below.bar(units, np.maximum(variances[order], 1e-6), color=style.PALETTE[1])
    below.axhline(threshold, color=style.INK, linewidth=0.8, linestyle="--")
    below.set(ylabel="variance of μ", yscale="log", xlabel="latent units, in order of falling KL")
    if len(order) <= 32:
        below.set_xticks(units, [str(unit) for unit in order], fontsize=7)
    active = int((variances > threshold).sum())
    above.set_title(f"{active} of {len(order)} latent units are active: above the dashed line", fontsize=9)
    return figure
