"""Networks that segment: their sizes, their up-sampling, their loss and their metrics."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn
from torch.nn import functional as F

from lib import models
from lib.evaluation.segmentation import Scores, commonest_labels, confusion_of, mean_of, resized, table
from lib.models.fcn import ENCODERS, FCN, UpSampling, placed
from lib.runtime.errors import UserError
from lib.training.segmentation import answer, segmentation, soft_iou_loss


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_up_sampling_begins_as_bilinear_interpolation(factor):
    maps = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)
    layer = UpSampling(3, factor)
    assert torch.allclose(layer(maps), wanted, atol=1e-5)
    assert layer.weight.requires_grad


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("finest", [8, 16, 32])
def test_logits_of_a_fully_convolutional_network_have_the_size_of_the_image(encoder, finest):
    model = models.build(f"fcn{finest}", classes=3, encoder=encoder).eval()
    for size in ((97, 131), (64, 96)):
        with torch.no_grad():
            assert model(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


@pytest.mark.parametrize("size", [(16, 16), (17, 19), (33, 64), (45, 31)])
def test_logits_of_the_small_network_have_the_size_of_the_image(size):
    model = models.build("small", classes=5, width=4).eval()
    with torch.no_grad():
        assert model(torch.zeros(2, 3, *size)).shape == (2, 5, *size)


def test_the_small_network_refuses_images_that_are_too_small():
    with pytest.raises(UserError, match="16 px or more"):
        models.build("small", classes=2, width=4)(torch.zeros(1, 3, 15, 40))


def test_an_encoder_takes_the_weights_of_torchvisions_network():
    from torchvision import models as theirs

    for name in ("alexnet", "resnet18"):
        network = theirs.get_model(name, weights=None).eval()
        model = FCN(3, encoder=name).eval()
        weights = network.state_dict()
        assert model.load_encoder(weights) == []
        images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        features = network.features if name == "alexnet" else nn.Sequential(*list(network.children())[:-2])
        with torch.no_grad():
            assert torch.allclose(model.encoder(images), features(images), atol=1e-5)
        missing = next(iter(model.encoder.state_dict()))
        del weights[missing if name == "resnet18" else f"features.{missing}"]
        assert model.load_encoder(weights) == [missing]


@pytest.mark.parametrize("start", [-3, 0, 2])
def test_maps_are_placed_where_they_belong(start):
    maps = torch.arange(20.0).view(1, 1, 4, 5)
    found = placed(maps, start, torch.Size((6, 3)))[0, 0]
    rows, columns = ((torch.arange(n) - start).clamp(0, most) for n, most in ((6, 3), (3, 4)))
    assert torch.equal(found, maps[0, 0][rows][:, columns])


def test_confusions_are_those_of_scikit_learn_and_ignored_pixels_do_not_count():
    generator = torch.Generator().manual_seed(0)
    true, found = torch.randint(0, 4, (2, 3, 9, 9), generator=generator)
    true[0, :4] = 11
    counted = confusion_of(found, true, 4, 11)
    known = true != 11
    assert np.array_equal(counted, confusion_matrix(true[known], found[known], labels=range(4)))
    assert int(counted.sum()) == int(known.sum())


def test_metrics_follow_from_the_confusions_and_absent_classes_are_left_out():
    scores = Scores(torch.tensor([[8, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [0, 6, 0, 0]]))
    assert scores.accuracy == 11 / 20
    assert scores.ious[:2].tolist() == pytest.approx([8 / 11, 3 / 12])
    assert math.isnan(scores.ious[2])
    assert scores.ious[3] == 0
    assert scores.absent == 1
    named = scores.as_dict()
    assert named["miou"] == pytest.approx((8 / 11 + 3 / 12 + 0) / 3)
    assert named["class_accuracy"] == pytest.approx((0.8 + 0.75 + 0) / 3)
    lines = table(scores, "abcd")
    assert lines[3].split() == ["c", "0.0000", "-", "-"]
    assert lines[-1].split() == ["mean", "0.5167", "0.3258"]
    assert mean_of(torch.full((3,), torch.nan)) == 0


def test_the_commonest_label_of_a_place_is_that_of_most_masks():
    one, two = torch.zeros(4, 6, dtype=torch.uint8), torch.ones(4, 6, dtype=torch.uint8)
    one[0] = 9  # ignored: the other two decide
    two[:, 0] = 9
    answer_of_all = commonest_labels([one, one, two], 3, 9, (4, 6))
    assert answer_of_all[0].tolist() == [0, 1, 1, 1, 1, 1]
    assert not answer_of_all[1:].any()
    assert resized(torch.tensor([[0, 1], [2, 3]]), (4, 2))[:, 0].tolist() == [0, 0, 2, 2]


class Fixed(nn.Module):
    """A network with the same logits for every image."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1, -1, -1) + 0 * images.mean()


def test_the_loss_is_the_weighted_mean_over_pixels_that_count():
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    masks = torch.tensor([[[0, 1], [2, 7]]]).repeat(2, 1, 1)
    weights = torch.tensor([1.0, 2.0, 4.0])
    objective = segmentation(7, lambda found, _true: found.flatten().bincount(minlength=3), weights)
    model = Fixed(logits)
    sums = objective(model.train(), (torch.zeros(2, 3, 2, 2), masks))
    log_p = logits.log_softmax(1)[0]
    expected = -(log_p[0, 0, 0] + 2 * log_p[1, 0, 1] + 4 * log_p[2, 1, 0]) / 3
    assert float(sums["loss"] / sums["count"]) == pytest.approx(float(expected), rel=1e-5)
    validated = objective(model.eval(), (torch.zeros(2, 3, 2, 2), masks))
    plain = -(log_p[0, 0, 0] + log_p[1, 0, 1] + log_p[2, 1, 0]) / 3
    assert float(validated["loss"] / validated["count"]) == pytest.approx(float(plain), rel=1e-5)
    assert int(validated["confusion"].sum()) == 8


def test_a_batch_without_a_pixel_that_counts_has_no_loss():
    objective = segmentation(7, lambda *_: torch.zeros(1), iou_weight=1.0)
    masks = torch.full((1, 2, 2), 7)
    sums = objective(Fixed(torch.randn(1, 3, 2, 2)).train(), (torch.zeros(1, 3, 2, 2), masks))
    assert float(sums["loss"]) == 1  # of the IoU, which is 0
    sums["loss"].backward()


def test_the_loss_of_the_iou_is_that_of_certain_answers():
    masks = torch.tensor([[[0, 0, 1, 1, 2, 9]]])
    found = torch.tensor([[[0, 1, 1, 1, 0, 0]]])
    logits = 100.0 * F.one_hot(found, 3).permute(0, 3, 1, 2)
    # Intersections 1, 2, 0 and unions 3, 3, 1; both have one more pixel, so that nothing is divided by zero.
    expected = 1 - (2 / 4 + 3 / 4 + 1 / 2) / 3
    assert float(soft_iou_loss(logits, masks, 9)) == pytest.approx(expected)


def test_two_views_are_the_mean_with_the_mirror_image():
    model = nn.Conv2d(3, 4, 3, padding=1)
    images = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    found = answer(model, images, 2).exp()
    mirrored = model(images.flip(3)).flip(3)
    assert torch.allclose(found, (model(images).softmax(1) + mirrored.softmax(1)) / 2)
    assert torch.equal(answer(model, images), model(images))
