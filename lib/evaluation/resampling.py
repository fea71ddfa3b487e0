"""Intervals and ranks by the bootstrap over images (Efron 1979): how sure is a mean, or an order?"""

import warnings
from dataclasses import dataclass

import numpy as np

DRAWS = 2000


@dataclass(frozen=True)
class Means:
    """Means of M methods over images, with intervals.

    Attributes:
        means: (M,), NaN where a method has no value.
        low, high: ends of the 95 % intervals (M,); NaN for fewer than two images.
        ranks: rank of each method, from 1, (M,); 0 for one without a value.
        holds: share of the draws in which its rank is the same, (M,).
        beats: lower end of the 95 % interval of the paired difference from the best control (M,), positive if
            the method is better; NaN for controls and where there is none.
    """

    means: np.ndarray
    low: np.ndarray
    high: np.ndarray
    ranks: np.ndarray
    holds: np.ndarray
    beats: np.ndarray


def summarise(
    values: np.ndarray, is_control: np.ndarray, *, larger_is_better: bool, draws: int = DRAWS, seed: int = 0
) -> Means:
    """Return means over images with their intervals, and ranks with the share of draws in which they hold.

    In each draw, images are drawn with replacement, the same for all methods, so that differences between
    methods are those of pairs. Methods are ranked among methods, controls are not ranked.

    Args:
        values: (images, M); NaN where a method has none.
        is_control: (M,) bool.
        larger_is_better: the direction of the measure.
        draws, seed: of the bootstrap.
    """
    sign = 1.0 if larger_is_better else -1.0
    means = _mean(values)
    drawn = np.random.default_rng(seed).integers(0, len(values), (draws, len(values)))
    sampled = np.stack([_mean(values[rows]) for rows in drawn])
    spread = len(values) > 1
    nothing = np.full(values.shape[1], np.nan)
    low, high = _percentiles(sampled) if spread else (nothing, nothing)
    ranks = _ranks(sign * means, is_control)
    each = np.stack([_ranks(sign * row, is_control) for row in sampled])
    holds = np.where(ranks > 0, (each == ranks).mean(0), np.nan)
    beats = nothing.copy()
    known = is_control & ~np.isnan(means)
    if known.any() and spread:
        best = int(np.argmax(np.where(known, sign * means, -np.inf)))
        # Images on which both have a value: a difference is one of pairs.
        paired = np.stack([_mean(sign * (values[rows] - values[rows, best : best + 1])) for rows in drawn])
        beats = np.where(is_control, np.nan, _percentiles(paired)[0])
    return Means(means, low, high, ranks, holds, beats)


def _mean(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a column without a value, the mean is NaN
        return np.nanmean(values, axis=0)


def _percentiles(sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, high = np.nanpercentile(sampled, [2.5, 97.5], axis=0)
    return low, high


def _ranks(goodness: np.ndarray, is_control: np.ndarray) -> np.ndarray:
    counted = ~is_control & ~np.isnan(goodness)
    found = np.zeros(len(goodness), dtype=int)
    found[np.flatnonzero(counted)[np.argsort(-goodness[counted], kind="stable")]] = (
        np.arange(counted.sum()) + 1
    )
    return found
