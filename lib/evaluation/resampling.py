"""Intervals and ranks by the bootstrap over images (Efron 1979): how sure is a mean, or an order?"""

import warnings
from dataclasses import dataclass

import numpy as np

DRAWS = 2000
FEWEST = 5  # images; the interval of fewer is little more than their range
_EQUAL = 1e-6  # means that differ by less, by rounding, are equal


@dataclass(frozen=True)
class Means:
    """Means of M methods over images, with intervals.

    Attributes:
        means: (M,), NaN where a method has no value.
        low, high: ends of the 95 % intervals (M,); NaN for fewer than `FEWEST` images.
        ranks: rank of each method, from 1, (M,); equal ones share it; 0 for controls, and for a method
            without a value.
        holds: share of the draws in which its rank is the same, (M,); NaN where there is no rank
            or no interval.
        beats: lower end of the 95 % interval of the paired difference from the best control (M,), positive if
            the method is better; NaN for controls and where there is no interval.
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
    methods are those of pairs. Methods are ranked among methods; controls are not ranked.

    Args:
        values: (images, M); NaN where a method has none.
        is_control: (M,) bool.
        larger_is_better: the direction of the measure.
        draws, seed: of the bootstrap.
    """
    sign = 1.0 if larger_is_better else -1.0
    count = len(values)
    drawn = np.random.default_rng(seed).integers(0, count, (draws, count))
    # How often each image is drawn: a mean of a draw is then a product of matrices.
    times = np.stack([np.bincount(row, minlength=count) for row in drawn]).astype(float)
    means = _means(np.ones((1, count)), values)[0]
    sampled = _means(times, values)
    nothing = np.full(values.shape[1], np.nan)
    low, high = _percentiles(sampled) if count >= FEWEST else (nothing, nothing)
    ranks = _ranks(sign * means[None], is_control)[0]
    holds = (_ranks(sign * sampled, is_control) == ranks).mean(0)
    beats = nothing
    known = is_control & ~np.isnan(means)
    if known.any() and count >= FEWEST:
        best = int(np.argmax(np.where(known, sign * means, -np.inf)))
        # Of the images on which both have a value, as a difference is one of pairs.
        paired = _means(times, sign * (values - values[:, best : best + 1]))
        beats = np.where(is_control, np.nan, _percentiles(paired)[0])
    holds = np.where((ranks > 0) & (count >= FEWEST), holds, np.nan)
    return Means(means, low, high, ranks, holds, beats)


def _means(times: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the mean of each column of values (I, M), each image counted so many `times` (D, I): (D, M)."""
    is_known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return (times @ np.where(is_known, values, 0.0)) / (times @ is_known)


def _percentiles(sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a column without a value, they are NaN
        low, high = np.nanpercentile(sampled, [2.5, 97.5], axis=0)
    return low, high


def _ranks(goodness: np.ndarray, is_control: np.ndarray) -> np.ndarray:
    """Return the rank of each method in each row (D, M), from 1; 0 for what is not ranked.

    A method's rank is one more than the number of better ones, so that equal methods share theirs.
    """
    counted = ~is_control & ~np.isnan(goodness)
    known = np.where(counted, goodness, -np.inf)
    better = known[:, None, :] > known[:, :, None] + _EQUAL
    return np.where(counted, better.sum(2) + 1, 0)
