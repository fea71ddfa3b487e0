"""The networks for small photographs, and those that read rows."""

import copy
import itertools

import pytest
import torch
from torch import nn

from lib import models
from lib.models import small
from lib.runtime.errors import UserError

ROWS = ("row-rnn", "row-lstm", "row-gru")
PHOTOGRAPHS = ("simple-cnn", "fast-cnn")


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "size", "channels"), list(itertools.product(PHOTOGRAPHS, (16, 33, 64), (1, 3)))
)
def test_networks_take_images_of_many_sizes(name, size, channels):
    model = models.build(name, classes=7, channels=channels, size=size).eval()
    assert model(torch.randn(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_images_that_are_too_small_are_refused(name):
    with pytest.raises(UserError, match=f"{name} takes images of 16 px or more, not of 15"):
        models.build(name, size=15)


def test_simple_cnn_has_four_convolutions_and_is_robust_when_asked():
    def kinds(**config):
        return [type(module) for module in models.build("simple-cnn", **config).modules()]

    plain, robust = kinds(), kinds(bn=True, dropout=0.3)
    assert plain.count(nn.Conv2d) == robust.count(nn.Conv2d) == 4
    assert plain.count(nn.BatchNorm2d) == plain.count(nn.Dropout) == 0
    assert robust.count(nn.BatchNorm2d) == 4
    assert robust.count(nn.Dropout) == 3


def test_fast_cnn_is_as_wide_as_it_is_told():
    assert parameters(models.build("fast-cnn", width=8)) < parameters(models.build("fast-cnn")) / 20
    assert models.build("fast-cnn", width=8).output.in_features == 32


def test_fast_cnn_begins_near_a_copy_of_what_its_layers_take():
    model = models.build("fast-cnn", width=24)  # as many as its first layer puts out
    images = torch.randn(2, 24, 8, 8)
    assert torch.allclose(model.conv1(images), images, atol=1e-6)
    assert torch.allclose(model.conv3(images)[:, :24], images, atol=1e-6)
    assert model.conv3.weight[24:].std() > 0.01


@pytest.mark.parametrize("channels", [1, 3])
def test_whitened_filters_answer_with_equal_deviations_and_without_correlation(channels):
    torch.manual_seed(0)
    # Neighbouring pixels and channels alike, as in photographs.
    images = torch.nn.functional.avg_pool2d(torch.randn(64, channels, 24, 24), 3, 1)
    images = images + 0.5 * images.mean(1, keepdim=True)
    model = models.build("fast-cnn", channels=channels)
    model.whiten(images)
    answers = model.conv0(images).transpose(0, 1).flatten(1)
    half = len(answers) // 2
    assert torch.equal(answers[half:], -answers[:half])
    covariance = answers[:half] @ answers[:half].T / answers.shape[1]
    assert torch.allclose(covariance, torch.eye(half), atol=0.1)
    assert not model.conv0.weight.requires_grad


def test_whitening_a_few_images_at_a_time_makes_the_same_filters(monkeypatch):
    images = torch.rand(10, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    filters = []
    for pixels in (2**20, 3 * 24**2):
        monkeypatch.setattr(small, "_WHITENED_AT_ONCE", pixels)
        model = models.build("fast-cnn")
        model.whiten(images)
        filters.append(model.conv0.weight)
    torch.testing.assert_close(*filters)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_row_network_is_the_librarys_over_rows_from_top_to_bottom(cell, depth):
    torch.manual_seed(0)
    model = models.build(f"row-{cell}", classes=4, channels=3, size=10, hidden=6, depth=depth).double()
    library = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[cell](30, 6, depth, batch_first=True).double()
    own = dict(model.recurrent.named_parameters())
    with torch.no_grad():
        for name, parameter in own.items():
            layer, _, stack = name.split(".")
            getattr(library, stack.replace("_l0", f"_l{layer}")).copy_(parameter)
    images = torch.randn(5, 3, 10, 10, dtype=torch.float64)
    rows = torch.stack([images[:, :, row].flatten(1) for row in range(10)], dim=1)
    expected = model.output(library(rows)[0][:, -1])
    torch.testing.assert_close(model(images), expected)


@pytest.mark.parametrize("name", ROWS)
def test_matrices_between_states_begin_orthogonal(name):
    model = models.build(name, hidden=8)
    (stack,) = [p for key, p in model.named_parameters() if "weight_hh" in key]
    for part in stack.detach().split(8):
        torch.testing.assert_close(part @ part.T, torch.eye(8), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*PHOTOGRAPHS, *ROWS])
def test_a_network_is_rebuilt_from_plain_values(name):
    config = {"classes": 5, "channels": 3, "size": 32}
    model, again = models.build(name, **config).eval(), models.build(name, **config).eval()
    again.load_state_dict(copy.deepcopy(model.state_dict()))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(images), again(images))
    assert set(model.stages) <= set(dict(model.named_modules()))
