"""Pictures of convolutions, and of images at their points: read back from what was drawn."""

import numpy as np
import pytest
import torch
from torch import nn

from lib.evaluation.activation_statistics import activation_statistics, activation_table
from lib.figures import features, filters


def test_filters_share_one_scale_with_zero_in_its_middle():
    weights = np.zeros((2, 3, 2, 2))
    weights[0, 0, 0, 0], weights[1, 1, 1, 1] = 0.5, -0.25
    axes = filters.filters(weights, "conv1").axes[0]
    image = np.asarray(axes.images[0].get_array())
    assert image.shape == (2, 5, 3)
    np.testing.assert_allclose(image[0, 0], [1, 0.5, 0.5])
    np.testing.assert_allclose(image[1, 4], [0.5, 0.25, 0.5])
    np.testing.assert_allclose(image[:, 2], 1)  # the gap between them is white
    assert axes.get_title().startswith("conv1: 2 filters of 2×2")


def test_filters_of_one_channel_are_signed():
    weights = np.array([[[[1.0, -2.0]]], [[[0.5, 0.0]]]])
    image = filters.filters(weights, "c1").axes[0].images[0]
    assert image.get_clim() == (-2, 2)
    np.testing.assert_allclose(np.asarray(image.get_array())[0, :2], [1, -2])


def test_of_very_many_filters_the_first_are_drawn():
    title = filters.filters(np.ones((300, 3, 2, 2)), "stem").axes[0].get_title()
    assert "the first 256 of 300 filters" in title


def test_images_are_drawn_at_their_points_and_never_over_each_other():
    points = np.array([[0.0, 0.0], [10.0, 10.0], [0.01, 0.0], [5.0, 5.0]])
    thumbnails = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    axes = features.thumbnail_sheet(points, thumbnails, np.array([0, 1, 1, 0]), ["a", "b"], "pool").axes[0]
    drawn = {tuple(np.asarray(image.get_array()).flatten()): image.get_extent() for image in axes.images}
    assert len(drawn) == 3  # the first or the third, not both
    for number in (1, 3):
        left, right, bottom, top = drawn[tuple(thumbnails[number].flatten())]
        assert ((left + right) / 2, (bottom + top) / 2) == pytest.approx(tuple(points[number] / 10))
    marks = sum(len(line.get_xdata()) for line in axes.lines)
    assert marks == 1
    assert axes.get_title() == "t-SNE of pool: 3 of 4 images"


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True), nn.Conv2d(2, 3, 3), nn.Flatten()
    ).train()


def test_statistics_of_activations_are_those_of_all_outputs_at_once():
    model, images = small_network(), torch.randn(30, 1, 8, 8) + 1
    rows = activation_statistics(model, images.split(7))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()
    with torch.no_grad():
        first = model[0](images)
        rectified = model[1](first).relu()
        second = model[3](rectified)
    for row, output in zip(rows, (first, second), strict=True):
        assert row.mean == pytest.approx(output.mean().item(), abs=1e-5)
        assert row.variance == pytest.approx(output.var(correction=0).item(), rel=1e-4)
        assert row.counts.sum() == output.numel()
    assert [row.layer for row in rows] == ["0", "3"]
    assert rows[0].sparsity == pytest.approx((rectified == 0).float().mean().item())
    assert rows[1].sparsity is None
    table = activation_table(rows)
    assert table[0].split() == ["convolution", "mean", "variance", "sparsity"]
    assert table[2].split()[-1] == "-"


@pytest.mark.parametrize("bias", [0.0, 0.1, -3.3, 1000.1, 1e7])
def test_outputs_that_are_all_the_same_have_no_variance(bias):
    convolution = nn.Conv2d(1, 2, 3)
    nn.init.zeros_(convolution.weight)
    nn.init.constant_(convolution.bias, bias)
    (row,) = activation_statistics(nn.Sequential(convolution), [torch.randn(5, 1, 9, 9)] * 3)
    assert row.mean == pytest.approx(bias, rel=1e-6)
    assert 0 <= row.variance <= (1e-6 * bias) ** 2


def test_a_small_variance_beside_a_large_mean_is_that_of_float64():
    convolution = nn.Conv2d(1, 1, 1)
    nn.init.ones_(convolution.weight)
    nn.init.constant_(convolution.bias, 1000.0)
    images = torch.randn(30, 1, 8, 8) * 0.1
    (row,) = activation_statistics(nn.Sequential(convolution), images.split(7))
    expected = (images + 1000).double().var(correction=0).item()
    assert row.variance == pytest.approx(expected, rel=1e-3)


def test_a_histogram_keeps_what_is_beyond_its_limits_in_its_outermost_bins():
    convolution = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(convolution.weight)
    batches = [torch.linspace(-1, 1, 64).view(1, 1, 8, 8), torch.full((1, 1, 8, 8), 9.0)]
    (row,) = activation_statistics(nn.Sequential(convolution), batches, bins=4)
    assert row.limits == (-1, 1)
    assert row.counts.tolist() == [16, 16, 16, 80]
    titles = [axes.get_title() for axes in filters.activations([row]).axes]
    assert titles[0].startswith("0\n4.5 ± 4.5")


@pytest.mark.parametrize("count", [1, 3, 64])
@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_few_small_filters_fill_their_figure_and_show_their_numbers(count, side):
    weights = np.linspace(-1, 1, count * side * side).reshape(count, 1, side, side)
    figure = filters.filters(weights, "conv")
    figure.draw_without_rendering()
    axes = figure.axes[0]
    whole = figure.get_window_extent()
    drawn = axes.get_window_extent()
    assert max(drawn.height / whole.height, drawn.width / whole.width) > 0.4
    assert min(drawn.height, drawn.width) > 0.5 * figure.dpi
    written = [text.get_text() for text in axes.texts]
    assert len(written) == (weights.size if count < 12 and weights.size <= 100 else 0)


def test_nothing_is_said_of_zeros_where_there_are_none():
    convolution = nn.Conv2d(1, 1, 1)
    nn.init.ones_(convolution.weight)
    nn.init.ones_(convolution.bias)
    model = nn.Sequential(convolution, nn.ReLU())
    (some,) = activation_statistics(model, [torch.ones(2, 1, 4, 4)])
    nn.init.constant_(convolution.bias, -2)
    (none,) = activation_statistics(model, [torch.ones(2, 1, 4, 4)])
    titles = [filters.activations([each]).axes[0].get_title() for each in (some, none)]
    assert "zero" not in titles[0]
    assert "100% set to zero" in titles[1]
