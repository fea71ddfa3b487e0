"""Answers of several networks or views: means of probabilities."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.models.averaging import AveragedViews, mean_answer

IMAGES = torch.randn(5, 2, 6, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(84, 3))


def test_the_mean_of_answers_is_that_of_their_probabilities():
    logits = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(mean_answer(logits).exp(), logits.softmax(2).mean(0))


def test_one_view_is_the_network_itself(network):
    assert torch.equal(AveragedViews(network, 1)(IMAGES), network(IMAGES))


def test_two_views_are_an_image_and_its_mirror_image(network):
    expected = (network(IMAGES).softmax(1) + network(IMAGES.flip(3)).softmax(1)) / 2
    torch.testing.assert_close(AveragedViews(network, 2)(IMAGES).exp(), expected)


def test_six_views_are_both_where_they_stand_and_moved_along_the_diagonal(network):
    rows, columns = torch.arange(6), torch.arange(7)
    expected = 0
    for step, weight in {0: 1 / 2, -1: 1 / 4, 1: 1 / 4}.items():
        # Beyond its edge an image goes on backwards: pixel -1 is pixel 1.
        down, right = ((each + step).abs() for each in (rows, columns))
        down, right = torch.minimum(down, 10 - down), torch.minimum(right, 12 - right)
        moved = IMAGES[:, :, down][:, :, :, right]
        for view in (moved, moved.flip(3)):
            expected = expected + weight / 2 * network(view).softmax(1)
    found = AveragedViews(network, 6)(IMAGES)
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5))


@pytest.mark.parametrize("views", [1, 2, 6])
def test_an_image_and_its_mirror_image_have_one_answer_with_several_views(network, views):
    answer = AveragedViews(network, views)
    same = torch.allclose(answer(IMAGES), answer(IMAGES.flip(3)), atol=1e-5)
    assert same == (views == 2), F.l1_loss(answer(IMAGES), answer(IMAGES.flip(3)))
