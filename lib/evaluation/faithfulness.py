"""Measures of faithfulness: does the score change as a map says, if parts of the image are taken away?

Maps are (H, W); scores come from a game of removal (`lib.evaluation.removal`), or from a sample of it that
maps share. Each measure is a plain number, computed in float64. NaN means: not defined for this image.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lib.evaluation.removal import Game

# Below this share of the score of the whole image, a difference of scores is taken for rounding.
_NOTHING = 1e-6
_NOTHING_BFLOAT16 = 2**-8


class Curves(NamedTuple):
    """Areas under the normalised curves of deletion (small is good) and insertion (large is good)."""

    deletion: float
    insertion: float


def order(values: Tensor, seed: int = 0) -> Tensor:
    """Return the pixels (H · W,) from the largest value to the smallest; equal ones in random order.

    Random, because a map of a ReLU has large areas of zeros, which would make a block of the image in their
    order of rows and columns.
    """
    shuffled = torch.randperm(values.numel(), generator=torch.Generator().manual_seed(seed))
    return shuffled[values.double().flatten()[shuffled].argsort(descending=True, stable=True)]


def deletion_insertion(
    game: Game, values: Tensor, full: float, empty: float, steps: int = 10, seed: int = 0
) -> Curves:
    """Return the areas under the curves of deletion and insertion (Petsiuk et al. 2018, arXiv:1806.07421).

    Deletion removes the pixels of the largest values first, insertion shows them first, on the baseline, an
    equal share of all pixels at each step. Scores s are normalised, (s − empty) / (full − empty), and areas
    are those of the trapezoidal rule.

    Weakness: images with holes are none that the network was trained on; a map may score well because its
    holes fool the network.

    Args:
        game: see `lib.evaluation.removal`.
        values: the map (H, W).
        full, empty: scores of the image and of the baseline.
        steps: number of steps, at least 2.
        seed: of the order of equal values.

    Returns:
        NaN for both if the image does not score higher than the baseline: there is nothing to delete.
    """
    span = full - empty
    if not span > _NOTHING * abs(full):
        return Curves(float("nan"), float("nan"))
    ranks = torch.empty(values.numel(), dtype=torch.long)
    ranks[order(values, seed)] = torch.arange(values.numel())
    counts = torch.tensor([round(step * values.numel() / steps) for step in range(1, steps)])
    first = ranks.view(values.shape) < counts[:, None, None]
    scores = (game(torch.cat([~first, first])) - empty) / span
    # The ends are 0 and 1 in both curves; the trapezoidal rule counts half of them.
    return Curves(*(float(0.5 + each.sum()) / steps for each in scores.split(len(counts))))


def or_nothing(changes: Tensor, score: float, *, bfloat16: bool = False) -> Tensor:
    """Return changes of a score; zeros if all of them are no more than its rounding."""
    rounding = _NOTHING_BFLOAT16 if bfloat16 else _NOTHING
    return changes if changes.abs().max() > rounding * abs(score) else torch.zeros_like(changes)


def pearson(a: Tensor, b: Tensor) -> float:
    """Return Pearson's correlation of two vectors; 0 if the first is constant, NaN if the second is."""
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    if not b.abs().max() > 0:
        return float("nan")
    scale = float(a.norm() * b.norm())
    return float(a @ b) / scale if a.norm() > 1e-12 * max(1.0, float(a.abs().max())) and scale > 0 else 0.0


def ranks(values: Tensor) -> Tensor:
    """Return the rank of each of some values (n,), from 0; equal values share the mean of their ranks."""
    _, group, counts = values.double().unique(return_inverse=True, return_counts=True)
    ends = counts.cumsum(0).double()
    return (ends - (counts + 1) / 2)[group]


def spearman(a: Tensor, b: Tensor) -> float:
    """Return Spearman's rank correlation of two vectors; 0 if the first is constant, NaN if the second is."""
    return pearson(ranks(a), ranks(b))


def sensitivity_n(sums: Tensor, drops: Tensor) -> float:
    """Return sensitivity-n, the mean over n of corr(Σ_S φ, v(N) − v(N \\ S)) (Ancona et al. 2018, § 4).

    Weakness: says nothing of the scale of a map, and large sets leave the distribution.

    Args:
        sums: the map summed over random sets of n cells, (number of n, samples).
        drops: how much the score falls without them, (number of n, samples).
    """
    each = [pearson(*pair) for pair in zip(sums, drops, strict=True)]
    defined = [value for value in each if value == value]
    return sum(defined) / len(defined) if defined else float("nan")


def infidelity(sums: Tensor, drops: Tensor, *, rescaled: bool = False) -> float:
    """Return the infidelity E[(Σ_S φ − (v(N) − v(N \\ S)))²] (Yeh et al. 2019, arXiv:1901.09392, eq. 1).

    Args:
        sums: the map summed over each of some sets of pixels, (samples,).
        drops: how much the score falls without them, (samples,).
        rescaled: multiply the map by the factor at which the result is smallest.
    """
    sums, drops = sums.double(), drops.double()
    if rescaled:
        power = float(sums @ sums)
        sums = sums * (float(sums @ drops) / power if power else 0.0)
    return float((sums - drops).square().mean())


def unexplained(sums: Tensor, drops: Tensor) -> float:
    """Return the infidelity of the best positive multiple of a map, as a share of that of a map of zeros.

    1: the map is of no use to predict the drops; 0: it predicts them exactly. Arguments as for `infidelity`.

    Weakness: depends on how squares are drawn, an eighth to a half of the side; large ones count most.
    """
    nothing = infidelity(torch.zeros_like(drops), drops)
    if not nothing > 0:
        return float("nan")
    # A map that points the wrong way must not gain by a negative factor.
    return infidelity(sums, drops, rescaled=True) / nothing if float(sums @ drops) > 0 else 1.0


def single_deletion(sums: Tensor, drops: Tensor) -> float:
    """Return the rank correlation of cells' sums (n,) with the drops when each alone is removed, (n,).

    Of a network that was trained with masked patches it is the in-distribution single deletion score (IDSDS,
    Hesse et al. 2024, arXiv:2407.11910, § 3).

    Weakness: of two cells that say the same, neither is missed alone; without that training, a removed patch
    leaves the distribution.
    """
    return spearman(sums, drops)


def f_fidelity(
    game: Game, sums: Tensor, cells: Tensor, full: float, empty: float, *, samples: int = 4, seed: int = 0
) -> float:
    """Return FFid⁺ − FFid⁻ as a share of full − empty (Zheng et al. 2024, arXiv:2410.02970, § 4).

    The explanation is the quarter of the cells with the largest sums. FFid⁺ is the mean drop when a random
    half of it is removed, FFid⁻ that when a random half of the other cells is, but never more than a tenth of
    all cells, such that removals stay close to what the network knows.

    Weakness: the paper first trains the network further on masked images. Here that is up to who trains it,
    with `--augment erase`; for other networks removals are less strange than in deletion, and not normal. And
    a quarter is a choice.

    Args:
        game: see `lib.evaluation.removal`.
        sums: the map summed over cells, (n,).
        cells: the cell of each pixel (H, W).
        full, empty: scores of the image and of the baseline.
        samples: number of random removals of each kind.
        seed: of these.
    """
    if not full - empty > _NOTHING * abs(full):
        return float("nan")
    n = len(sums)
    ranked = order(sums, seed)
    size = max(1, round(_EXPLANATION * n))
    most = max(1, round(_MOST_REMOVED * n))
    generator = torch.Generator().manual_seed(seed + 1)
    masks = []
    for part in (ranked[:size], ranked[size:]):
        count = max(1, min(round(_REMOVED_OF_PART * len(part)), most))
        for _ in range(samples):
            taken = part[torch.randperm(len(part), generator=generator)[:count]]
            masks.append(~torch.isin(cells, taken))
    drops = full - game(torch.stack(masks))
    important, others = drops.split(samples)
    return float(important.mean() - others.mean()) / (full - empty)


_EXPLANATION, _REMOVED_OF_PART, _MOST_REMOVED = 0.25, 0.5, 0.1


def shapley_agreement(sums: Tensor, truth: Tensor) -> float:
    """Return the rank correlation of a map's sums over patches (n,) with the patches' Shapley values (n,).

    Weakness: Shapley values depend on the baseline, and say what patches do in the network's game, not what
    is in the image.
    """
    return spearman(sums, truth)


def top_share(sums: Tensor, truth: Tensor, k: int) -> float:
    """Return the share of the positive Shapley values' total that the k patches of the largest sums hold.

    May be negative: patches that speak against the class count as what they are.
    """
    total = float(truth.clamp(min=0).sum())
    return float(truth[order(sums)[:k]].sum()) / total if total > 0 else float("nan")
