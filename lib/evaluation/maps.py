"""Measures of maps that take nothing away: robustness, the sanity check by random weights, localisation."""

import torch
from torch import Tensor

from lib.evaluation.faithfulness import order, spearman


def max_sensitivity(values: Tensor, disturbed: Tensor) -> float:
    """Return max ‖φ(x + ε) − φ(x)‖ / ‖φ(x)‖ over disturbed images (Yeh et al. 2019, arXiv:1901.09392, § 3).

    Weakness: the map of a method that ignores the network never changes, and is best.

    Args:
        values: the map φ(x), (H, W).
        disturbed: the maps of some disturbed images, (n, H, W).
    """
    norm = float(values.double().norm())
    if not norm > 0:
        return float("nan")
    return float((disturbed.double() - values.double()).flatten(1).norm(dim=1).max()) / norm


def similarity(values: Tensor, other: Tensor) -> float:
    """Return the rank correlation of the magnitudes of two maps (Adebayo et al. 2018, arXiv:1810.03292).

    Weakness: for a pass or fail, not for a ranking: correlations of noisy maps are small whatever the method.
    """
    # If the other map is the same everywhere, e.g. zero, nothing is left of the first: 0, and not undefined.
    return spearman(other.abs().flatten(), values.abs().flatten())


def pointing(values: Tensor, inside: Tensor) -> float:
    """Return 1 if the strongest pixel of a map lies in `inside` (H, W), else 0 (Zhang et al. 2016).

    Weakness: one pixel decides; a network may rightly look beside the object.
    """
    return float(inside.flatten()[order(values)[0]])


def relevance_mass(values: Tensor, inside: Tensor) -> float:
    """Return the share of a map's positive values that lies in `inside` (Arras et al. 2022, CLEVR-XAI).

    Of a box, it is the energy-based pointing game (Wang et al. 2020, Score-CAM, § 4.3).

    Weakness: large boxes are easy; a network may rightly look beside the object.
    """
    positive = values.double().clamp(min=0)
    total = float(positive.sum())
    return float(positive[inside].sum()) / total if total > 0 else float("nan")


def relevance_rank(values: Tensor, inside: Tensor) -> float:
    """Return which share of the K strongest pixels lies in `inside`, of K pixels (Arras et al. 2022)."""
    count = int(inside.sum())
    if not count:
        return float("nan")
    return float(inside.flatten()[order(values)[:count]].double().mean())


def box_mask(box: tuple[float, float, float, float], size: tuple[int, int]) -> Tensor:
    """Return the mask (H, W) of the pixels whose middle lies in a box (top, left, bottom, right)."""
    top, left, bottom, right = box
    rows, columns = (torch.arange(side) + 0.5 for side in size)
    return ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))
