"""Figures of a classifier's predictions: the confusion matrix and the most confident mistakes."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.figures import style

# With more classes the counts would be too small to read, and only colours are shown.
MOST_CLASSES_WITH_COUNTS = 32
# With more classes the names would be too small to read, and the axes show numbers.
MOST_CLASSES_WITH_NAMES = 200
NAME_CHARACTERS = 24
MOST_CONFUSIONS = 30
MOST_COLUMNS = 6  # of mistakes


def confusion_matrix(counts: np.ndarray, class_names: Sequence[str], *, unit: str = "examples") -> Figure:
    """Return a heat map of a confusion matrix (C, C): rows are true classes, columns predicted classes.

    Colours show shares of the row, i.e. of the true class; a class without examples has a row of zeros.

    Args:
        counts: the matrix.
        class_names: names of the classes.
        unit: what is counted. Examples are written as counts; anything else, of which there are millions, in
            percent of the true class.
    """
    classes = len(counts)
    cell = float(np.interp(classes, [2, 10, 32, 120], [0.8, 0.48, 0.28, 0.095]))  # inches
    cell = min(cell, 0.095 * MOST_CLASSES_WITH_NAMES / classes)
    figure = Figure(figsize=(cell * classes + 2.2, cell * classes + 1.2))
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    # Colours by the square root of the share; on a linear scale a good classifier's few mistakes look white.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    if classes <= MOST_CLASSES_WITH_COUNTS:
        written = counts if unit == "examples" else (100 * shares).round().astype(int)
        _write_counts(axes, written, shares, fontsize=min(10.0, cell * 20))
    axes.grid(False)
    axes.set(xlabel="predicted class", ylabel="true class")
    if classes <= MOST_CLASSES_WITH_NAMES:
        _name_classes(axes, class_names, fontsize=min(9.0, cell * 50), cell=cell)
    accuracy = np.trace(counts) / max(counts.sum(), 1)
    axes.set_title(f"accuracy {accuracy:.4f}, {counts.sum():,} {unit}", fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, ticks=[0, 0.01, 0.1, 0.25, 0.5, 1])
    percent = "" if unit == "examples" else " (numbers: %)"
    bar.set_label(f"share of the true class{percent}")
    bar.outline.set_visible(False)
    return figure


def largest_confusions(counts: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Return bars of the largest confusions, for classes too many for a matrix.

    Args:
        counts: the confusion matrix (C, C): rows are true classes, columns predicted classes.
        class_names: names of the classes.
    """
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    pairs = [(row, column) for row, column in np.transpose(np.unravel_index(order, wrong.shape))]
    pairs = [(row, column) for row, column in pairs if wrong[row, column]]
    figure = Figure(figsize=(7.5, 0.24 * max(4, len(pairs)) + 1.1))
    axes = figure.subplots()
    values = [int(wrong[pair]) for pair in pairs]
    axes.barh(range(len(pairs)), values, color=style.PALETTE[0], height=0.7)
    names = [
        f"{_short(class_names[a], NAME_CHARACTERS)} → {_short(class_names[b], NAME_CHARACTERS)}"
        for a, b in pairs
    ]
    axes.set_yticks(range(len(pairs)), names, fontsize=8)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(length=0)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for place, (row, column) in enumerate(pairs):
        share = wrong[row, column] / counts[row].sum()
        text = f" {wrong[row, column]:,} ({share:.0%} of {counts[row].sum():,})"
        axes.text(wrong[row, column], place, text, va="center", fontsize=8)
    if not pairs:
        axes.text(0.5, 0.5, "no mistakes", ha="center", va="center", transform=axes.transAxes)
    axes.set_xlim(0, 1.25 * max(values, default=1))
    axes.set_xlabel("examples")
    accuracy, errors = np.trace(counts) / max(counts.sum(), 1), int(wrong.sum())
    shown = f"the {len(pairs)} largest confusions" if len(pairs) > 1 else "the confusions"
    axes.set_title(
        f"{shown} (true class → prediction): {sum(values):,} of {errors:,} mistakes; accuracy {accuracy:.4f}",
        fontsize=9,
        loc="right",
    )
    return figure


def _name_classes(axes: Axes, class_names: Sequence[str], fontsize: float, cell: float) -> None:
    names = [_short(name, NAME_CHARACTERS) for name in class_names]
    # A letter is about 0.6 of the font size wide; there are 72 points to the inch.
    upright = max(map(len, names)) * 0.6 * fontsize > 72 * cell
    axes.set_xticks(range(len(names)), names, fontsize=fontsize, rotation=90 if upright else 0)
    axes.set_yticks(range(len(names)), names, fontsize=fontsize)
    axes.tick_params(length=0)


def _short(name: str, most: int) -> str:
    return style.literal(name if len(name) <= most else f"{name[: most - 1]}…")


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray, fontsize: float) -> None:
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.3 else style.INK
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=fontsize)


def mistakes(
    images: np.ndarray,
    true_names: Sequence[str],
    predicted_names: Sequence[str],
    probabilities: Sequence[float],
) -> Figure:
    """Return a grid of wrongly classified images, each under "true → prediction, its probability".

    Args:
        images: (K, H, W) or (K, H, W, 3), floats in [0, 1] or uint8; K may be 0.
        true_names, predicted_names: class names, one per image.
        probabilities: predicted probability of the predicted class, one per image.
    """
    columns = max(1, min(MOST_COLUMNS, len(images)))
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(max(3.0, 1.5 * columns), 1.85 * rows + 0.25))
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    if len(images) == 0:
        panels[0, 0].text(0.5, 0.5, "no mistakes", ha="center", va="center")
    facts = zip(images, true_names, predicted_names, probabilities, strict=True)
    for axes, (image, true, predicted, probability) in zip(panels.flat, facts, strict=False):
        axes.imshow(image, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
        axes.set_title(_caption(true, predicted, probability), fontsize=8, pad=4)
    if len(images):
        figure.suptitle("true class → prediction, and its probability", fontsize=8)
    return figure


def _caption(true: str, predicted: str, probability: float) -> str:
    between = " → " if len(true) + len(predicted) <= 13 else "\n→ "
    return f"{_short(true, 18)}{between}{_short(predicted, 16)}\n{probability:.3f}"
