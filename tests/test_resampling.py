"""Bootstrap intervals, ranks and controls."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from lib.evaluation import controls
from lib.evaluation.resampling import summarise

RANDOM = np.random.default_rng(0)
CONTROLS = np.array([False, False, True])


def test_an_interval_is_about_the_mean_plus_or_minus_two_standard_errors():
    values = RANDOM.normal([0.7, 0.5, 0.1], 0.1, (100, 3))
    found = summarise(values, CONTROLS, larger_is_better=True)
    assert found.means == pytest.approx(values.mean(0))
    errors = values.std(0) / 10
    assert found.low == pytest.approx(values.mean(0) - 1.96 * errors, abs=0.004)
    assert found.high == pytest.approx(values.mean(0) + 1.96 * errors, abs=0.004)
    assert found.ranks.tolist() == [1, 2, 0]
    assert found.holds[:2].tolist() == [1, 1]
    assert found.beats[0] > 0.5


def test_where_small_is_good_ranks_turn_round_and_noise_does_not_beat_noise():
    values = np.concatenate([RANDOM.normal(0.2, 0.1, (30, 1)), RANDOM.normal(0.5, 0.1, (30, 2))], axis=1)
    found = summarise(values, CONTROLS, larger_is_better=False)
    assert found.ranks.tolist() == [1, 2, 0]
    assert found.beats[0] > 0.2
    assert found.beats[1] < 0.02
    assert np.isnan(found.beats[2])


def test_pairs_decide_where_images_differ_more_than_methods():
    hard = RANDOM.normal(0, 5, (40, 1))
    values = hard + np.array([0.2, 0.1, 0.0]) + RANDOM.normal(0, 0.01, (40, 3))
    found = summarise(values, CONTROLS, larger_is_better=True)
    assert found.high[1] > found.low[0]  # the intervals overlap
    assert (found.beats[:2] > 0).all()


def test_a_method_without_values_has_no_rank_and_one_image_no_interval():
    found = summarise(np.array([[np.nan, 0.4, 0.1]]), CONTROLS, larger_is_better=True)
    assert found.ranks.tolist() == [0, 1, 0]
    assert np.isnan(found.low).all()
    assert np.isnan(found.beats).all()


def test_methods_that_are_one_share_a_rank_in_every_draw():
    values = RANDOM.normal([0.3, 0.3, 0.8, 0.1, 0.9], 0.01, (20, 5))
    values[:, 1] = values[:, 0] + 1e-9
    found = summarise(values, np.arange(5) == 4, larger_is_better=True)
    assert found.ranks.tolist() == [2, 2, 1, 4, 0]
    assert found.holds[:4].tolist() == [1, 1, 1, 1]


def test_edges_are_those_of_sobel_and_the_centre_is_in_the_middle():
    pixels = torch.rand(3, 9, 12, generator=torch.Generator().manual_seed(0))
    grey = pixels.mean(0).numpy()
    expected = np.hypot(ndimage.sobel(grey, 0, mode="nearest"), ndimage.sobel(grey, 1, mode="nearest"))
    assert controls.edges(pixels).numpy() == pytest.approx(expected, abs=1e-5)
    middle = controls.centre((9, 11))
    assert divmod(int(middle.argmax()), 11) == (4, 5)
    assert torch.allclose(middle, middle.flip(0, 1))
    assert torch.equal(controls.noise(pixels, 3), controls.noise(pixels, 3))
    assert controls.noise(pixels, 3).shape == (9, 12)
