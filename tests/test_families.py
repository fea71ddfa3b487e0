"""Grad-CAM of every family of torchvision's classifiers: what lies in one corner is drawn in that corner.

A square of noise is planted in one corner of a grey image, and the features of the layer are replaced by how
far they are from those of the grey image alone. So all that a map can show comes from that square.
"""

from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from lib.explain.activations import default_layer
from lib.explain.explanation import Request
from lib.explain.methods import METHODS
from lib.explain.targets import class_target
from lib.models.network import Network, load_pretrained

# The smallest network of each family, and whether it takes images that are not square.
FAMILIES = {
    "alexnet": True,
    "convnext_tiny": True,
    "densenet121": True,
    "efficientnet_b0": True,
    "googlenet": True,
    "inception_v3": True,
    "maxvit_t": False,
    "mobilenet_v3_small": True,
    "regnet_y_400mf": True,
    "resnet18": True,
    "shufflenet_v2_x0_5": True,
    "squeezenet1_1": True,
    "swin_t": True,
    "vgg11": True,
    "vit_b_16": False,
}
OBLONG = (160, 224)
SIDE = 64  # pixels of the planted square
# How much one class sees of the square is up to its random weights: the heat of several is added up.
CLASSES = 8


def planted(size: tuple[int, int], top: int, left: int) -> tuple[Tensor, Tensor]:
    """Return a grey image, and the same with a square of noise, (1, 3, H, W) in [0, 1]."""
    grey = torch.full((1, 3, *size), 0.5)
    image = grey.clone()
    noise = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    image[..., top : top + SIDE, left : left + SIDE] = noise
    return grey, image


@contextmanager
def only_what_differs(network: Network, layer: str, from_pixels: Tensor):
    """Within the context, a layer puts out how far its features are from those of other pixels."""
    kept: list[Tensor] = []
    module = network.module.get_submodule(layer)

    def hook(_module, _inputs, output: Tensor) -> Tensor:
        if not kept:
            kept.append(output)
        return (output - kept[0]).abs()

    handle = module.register_forward_hook(hook)
    try:
        with torch.no_grad():
            network.logits(from_pixels)
        yield
    finally:
        handle.remove()


def heat_of(network: Network, size: tuple[int, int], top: int, left: int) -> Tensor:
    """Return what speaks for and against some classes, (H, W), drawn as the scripts draw it."""
    grey, image = planted(size, top, left)
    layer = default_layer(network.module, network.example_of(size))
    targets = [class_target(index) for index in range(CLASSES)]
    with only_what_differs(network, layer, grey):
        found = METHODS["grad-cam"].explain(
            Request(network, image, [*targets, *(-each for each in targets)], [layer])
        )
    return found.maps(size)[layer].sum((0, 1))


def centre_of(heat: Tensor) -> list[float]:
    heat = heat.double().square()  # SE blocks and attention carry a little of the square everywhere
    return [float((heat.sum(1 - a) * torch.arange(n)).sum() / heat.sum()) for a, n in enumerate(heat.shape)]


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_planted_in_one_corner_is_drawn_there(name):
    network = load_pretrained(name, "random")
    if name == "vit_b_16":  # a new one's head is zero, and so are all gradients
        torch.nn.init.normal_(network.module.heads.head.weight, generator=torch.Generator().manual_seed(0))
    sizes = [(network.size, network.size), *([OBLONG] if FAMILIES[name] else [])]
    for size in sizes:
        # Upper right: no flip or transposition maps it onto itself.
        top, left = size[0] // 8, size[1] - SIDE - size[1] // 8
        heat = heat_of(network, size, top, left)
        assert heat.shape == size
        for middle, start, length in zip(centre_of(heat), (top, left), size, strict=True):
            place = start + (SIDE - 1) / 2
            mirrored = length - 1 - place
            assert abs(middle - place) < abs(middle - mirrored) / 1.5, f"{size}: {middle} is not at {place}"
