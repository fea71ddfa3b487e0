"""Equal to Captum and to pytorch-grad-cam, on torchvision's networks with random weights.

Five images and three targets, of 64 px to be quick; `PEER_IMAGE_SIZE=224` makes them as large as in use.
"""

import copy
import os
import warnings

import numpy as np
import pytest
import torch
import torchvision
from captum.attr import (
    Deconvolution,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    LayerAttribution,
    LayerGradCam,
    Occlusion,
)
from explained import request
from pytorch_grad_cam import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, ScoreCAM, XGradCAM

from lib.explain.gradients import grad_cam, guided_backprop, upsample
from lib.explain.integrated_gradients import integrated_gradients
from lib.explain.methods import METHODS
from lib.explain.targets import class_scores

SIZE = int(os.environ.get("PEER_IMAGE_SIZE", 64))
NETWORKS = {"resnet18": "layer4", "vgg16": "features.29", "alexnet": "features.11"}
TARGETS = (3, 281, 999)

# pytorch-grad-cam adds 1e-7 to what it divides by, and 1e-6 within Grad-CAM++: next to maps and gradients as
# small as those of random weights, that shows. Of larger scores, it does not.
ENLARGED = 1e5


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A network, its layer, and images. Frozen, which spares the peers gradients that no one asks for."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(request.param, weights=None).eval().requires_grad_(False)
    return model, NETWORKS[request.param], torch.randn(5, 3, SIZE, SIZE)


def assert_close_in_terms_of_the_largest(found, expected, share):
    largest = float(expected.abs().max())
    assert largest > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=share * largest)


def for_each_target(attribute):
    """Captum's attributions (T, B, …), its warning of hooks kept quiet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.stack([attribute(target).detach() for target in TARGETS])


def test_grad_cam_is_captums(network):
    model, layer, images = network
    peer = LayerGradCam(model, model.get_submodule(layer))
    followed = images.clone().requires_grad_()
    coarse = for_each_target(lambda target: peer.attribute(followed, target, relu_attributions=True))
    expected = LayerAttribution.interpolate(coarse.flatten(0, 1), (SIZE, SIZE), "bilinear")
    found = upsample(grad_cam(model, [layer], images, class_scores(TARGETS)).maps[layer], SIZE)
    assert_close_in_terms_of_the_largest(found.flatten(0, 1), expected[:, 0], 1e-4)


def stretched(maps):
    """Each map from 0 to 1, as pytorch-grad-cam returns it."""
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return ((maps - low) / (high - low)).nan_to_num(0)


def assert_maps_are_pytorch_grad_cams(network, method, peer):
    model, layer, images = network
    followed = images.clone().requires_grad_()
    with peer(model, [model.get_submodule(layer)]) as cam:
        expected = np.stack([cam(followed, [lambda output, c=c: ENLARGED * output[c]] * 5) for c in TARGETS])
    scores = class_scores(TARGETS)
    found = grad_cam(model, [layer], images, lambda output: ENLARGED * scores(output), method=method)
    maps = stretched(upsample(found.maps[layer], SIZE))
    assert_close_in_terms_of_the_largest(maps, torch.from_numpy(expected), 1e-4)


def test_grad_cam_is_pytorch_grad_cams(network):
    assert_maps_are_pytorch_grad_cams(network, "grad-cam", GradCAM)


@pytest.mark.parametrize("network", ["resnet18"], indirect=True)
@pytest.mark.parametrize(
    ("method", "peer"), [("hires-cam", HiResCAM), ("layer-cam", LayerCAM), ("grad-cam++", GradCAMPlusPlus)]
)
def test_the_other_methods_are_pytorch_grad_cams(network, method, peer):
    assert_maps_are_pytorch_grad_cams(network, method, peer)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["resnet18"], indirect=True)
@pytest.mark.parametrize(
    ("method", "peer", "factor"),
    [("xgrad-cam", XGradCAM, ENLARGED), ("score-cam", ScoreCAM, 1.0)],  # large scores make a softmax one-hot
)
def test_xgrad_cam_and_score_cam_are_pytorch_grad_cams_in_every_digit_that_counts(
    network, method, peer, factor
):
    model, layer, images = network
    images = images[:1]
    followed = images.clone().requires_grad_()
    with peer(model, [model.get_submodule(layer)]) as cam:
        expected = np.stack([cam(followed, [lambda output, c=c: factor * output[c]]) for c in TARGETS])
    targets = [lambda output, c=c: factor * output[:, c] for c in TARGETS]
    asked = request(model, images, targets, [layer])
    maps = stretched(upsample(METHODS[method].explain(asked).values[layer], SIZE))
    assert_close_in_terms_of_the_largest(maps, torch.from_numpy(expected), 1e-5)


@pytest.mark.parametrize("network", ["resnet18"], indirect=True)
@pytest.mark.parametrize(
    ("side", "stride"),
    [
        pytest.param(SIZE // 4, SIZE // 8, marks=pytest.mark.long),
        pytest.param(SIZE // 3, SIZE // 3, marks=pytest.mark.slow),
        pytest.param(SIZE // 2, 7, marks=pytest.mark.long),
    ],
)
def test_occlusion_is_captums(network, side, stride):
    model, _, images = network
    # Differences of scores, whose rounding is that of the scores themselves: in float64 there is none to see.
    model = copy.deepcopy(model).double()
    images, baseline = images[:2].double(), torch.full_like(images[:2], 0.1).double()
    peer = Occlusion(model)
    expected = for_each_target(
        lambda target: peer.attribute(images, (3, side, side), (3, stride, stride), baseline, target)
    )
    settings = {"occlusion-side": side, "occlusion-stride": stride}
    asked = request(model, images, TARGETS, baseline=baseline, settings=settings)
    found = METHODS["occlusion"].explain(asked)
    assert_close_in_terms_of_the_largest(found.values[""].float(), expected[:, :, 0].float(), 1e-5)


def test_input_times_gradient_is_captums(network):
    model, _, images = network
    peer, followed = InputXGradient(model), images.clone().requires_grad_()
    expected = for_each_target(lambda target: peer.attribute(followed, target))
    found = METHODS["input-x-gradient"].explain(request(model, images, TARGETS))
    assert_close_in_terms_of_the_largest(found.values[""], expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "peer"), [("guided", GuidedBackprop), ("deconvnet", Deconvolution)])
def test_the_rules_for_relus_are_captums(network, rule, peer):
    model, _, images = network
    expected = for_each_target(lambda target: peer(model).attribute(images.clone(), target))
    found = guided_backprop(model, images, class_scores(TARGETS), rule=rule)
    assert_close_in_terms_of_the_largest(found.values, expected, 1e-5)


@pytest.mark.slow
def test_integrated_gradients_are_captums(network):
    # Black for a baseline and quarters for α, and both take the gradient at the same points, to the bit. Were
    # these rounded differently, a few of VGG's millions of ReLUs and maxima would fall to the other side,
    # each of which shows in some pixels.
    model, _, images = network
    peer, scores = IntegratedGradients(model), class_scores(TARGETS)
    for image in images:
        expected = for_each_target(
            lambda target, x=image[None]: peer.attribute(x, 0, target, n_steps=2, method="riemann_middle")
        )
        black = torch.zeros_like(image)
        found = integrated_gradients(lambda points: scores(model(points)), image, black, steps=2)
        assert_close_in_terms_of_the_largest(found.values, expected[:, 0], 1e-5)
