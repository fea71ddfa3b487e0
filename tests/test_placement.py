"""Where a layer's cells look, and maps drawn there: closed forms, gradients of cells, planted evidence."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from lib import models
from lib.explain.placement import Axis, Place, drawn, grid, places


def even(network: nn.Module) -> nn.Module:
    """Give every filter equal positive weights, so that what a cell looks at has its middle in its middle."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.weight.data.fill_(1 / module.weight[0].numel())
            if module.bias is not None:
                module.bias.data.zero_()
    return network.eval()


def looks(network: nn.Module, layer: nn.Module, size: tuple[int, int], images: int = 1) -> tuple:
    """Return the cell in the middle of a layer's map, and the centre of its input gradient, in pixels.

    The gradient's squares are averaged over images of noise, and over random signs of the channels.
    """
    kept = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    seen = torch.zeros(size, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(images):
        image = torch.randn(1, 3, *size, generator=generator).requires_grad_()
        network(image)
        cell = [length // 2 for length in kept[-1].shape[2:]]
        features = kept[-1][0, :, cell[0], cell[1]]
        signs = torch.randn(len(features), generator=generator)
        (gradient,) = torch.autograd.grad((features * signs).sum(), image)
        seen += gradient[0].square().sum(0)
    handle.remove()
    centre = [
        float((seen.sum(1 - axis) * torch.arange(length, dtype=torch.float64)).sum() / seen.sum())
        for axis, length in enumerate(size)
    ]
    return cell, centre


def middle(place: Place, cell: list[int]) -> list[float]:
    return [axis.offset + axis.stride * i for axis, i in zip(place, cell, strict=True)]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 5), st.integers(1, 2), st.integers(0, 2), st.integers(1, 2)),
        min_size=1,
        max_size=3,
    )
)
def test_convolutions_alone_are_placed_exactly(settings_of):
    layers = [nn.Conv2d(3, 3, k, s, p, d) for k, s, p, d in settings_of]
    network = even(nn.Sequential(*layers)).double()
    size = (96, 120)
    place = places(network, {"last": layers[-1]}, torch.zeros(1, 3, *size).double())["last"]
    image = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    output = network(image)
    cell = [length // 2 for length in output.shape[2:]]
    (gradient,) = torch.autograd.grad(output[0, :, cell[0], cell[1]].sum(), image)
    seen = gradient[0].sum(0)
    centre = [
        float((seen.sum(1 - axis) * torch.arange(length)).sum() / seen.sum())
        for axis, length in enumerate(size)
    ]
    assert middle(place, cell) == pytest.approx(centre, abs=1e-9)


# (layer, how many pixels right of and below its place plain up-sampling draws a cell, at 224 px)
FAMILIES = {
    "resnet18": ("layer4", 15.5),
    "mobilenet_v2": ("features.18", 15.5),
    "squeezenet1_1": ("features.12", 0.12),
    "vgg11": ("features.19", 0.0),
    "googlenet": ("inception5b", -6.5),
    "densenet121": ("features", 1.5),
    "efficientnet_b0": ("features.8", 15.5),
    "regnet_y_400mf": ("trunk_output", 15.5),
    "mnasnet0_5": ("layers.16", 15.5),
    "convnext_tiny": ("features", 0.0),
    "inception_v3": ("Mixed_7c", 10.5),
    "alexnet": ("features.11", 0.5),
}
QUICK = ("squeezenet1_1", "mobilenet_v2")
LARGE = ("vgg11", "convnext_tiny", "densenet121", "inception_v3")
SMALL = tuple(name for name in FAMILIES if name not in (*QUICK, *LARGE))
SIZES = ((224, 224), (256, 320))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, size) for name in QUICK for size in SIZES),
        *(pytest.param(name, SIZES[1], marks=pytest.mark.slow) for name in SMALL),
        *(pytest.param(name, SIZES[0], marks=pytest.mark.long) for name in SMALL),
        *(pytest.param(name, size, marks=pytest.mark.long) for name in LARGE for size in SIZES),
    ],
)
def test_torchvisions_networks_look_where_their_layers_say(name, size):
    from torchvision.models import get_model

    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    network = get_model(name, weights=None, **options).eval()
    layer, moved = FAMILIES[name]
    module = network.get_submodule(layer)
    place = places(network, {layer: module}, torch.zeros(1, 3, *size))[layer]
    cell, centre = looks(network, module, size, images=16)
    assert middle(place, cell) == pytest.approx(centre, abs=3)
    if size == (224, 224):
        cells = {"vgg11": 14, "squeezenet1_1": 13, "alexnet": 13, "inception_v3": 5}.get(name, 7)
        plain = middle(grid((cells, cells), size), cell)
        assert plain[0] - middle(place, cell)[0] == pytest.approx(moved, abs=0.6)


def test_the_random_weights_of_a_shufflenet_look_there_on_average():
    """Its depthwise filters are so unequal that one network's cells look up to 4 px beside their middle."""
    from torchvision.models import get_model

    offsets = []
    for seed in range(8):
        torch.manual_seed(seed)
        network = get_model("shufflenet_v2_x0_5", weights=None).eval()
        place = places(network, {"conv5": network.conv5}, torch.zeros(1, 3, 224, 224))["conv5"]
        cell, centre = looks(network, network.conv5, (224, 224), images=2)
        offsets += [a - b for a, b in zip(middle(place, cell), centre, strict=True)]
    assert sum(offsets) / len(offsets) == pytest.approx(0, abs=3)


POOLS_AND_SIZES = {
    "average pooling": (nn.AvgPool2d(3, 2, 1), Axis(2, 0)),
    "average pooling of its kernel's stride": (nn.AvgPool2d(2), Axis(2, 0.5)),
    "largest of three": (nn.MaxPool2d(3, 2), Axis(2, 1)),
    "adaptive pooling": (nn.AdaptiveAvgPool2d(12), Axis(4, 1.5)),
    "zeros around": (nn.ZeroPad2d((3, 0, 3, 0)), Axis(1, -3)),
    "mirrored around": (nn.ReflectionPad2d(2), Axis(1, -2)),
    "twice as large": (nn.Upsample(scale_factor=2, mode="bilinear"), Axis(0.5, -0.25)),
    "twice as large, nearest": (nn.Upsample(scale_factor=2), Axis(0.5, -0.25)),
    "corners aligned": (nn.Upsample(size=95, mode="bilinear", align_corners=True), Axis(0.5, 0)),
    "transposed": (nn.ConvTranspose2d(3, 3, 2, 2), Axis(0.5, -0.25)),
    "transposed, padded": (nn.ConvTranspose2d(3, 3, 4, 2, 1), Axis(0.5, -0.25)),
    "transposed, one to one": (nn.ConvTranspose2d(3, 3, 3, 1, 1), Axis(1, 0)),
    "nothing": (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Dropout()), Axis(1, 0)),
}


@pytest.mark.parametrize(("layer", "expected"), POOLS_AND_SIZES.values(), ids=POOLS_AND_SIZES)
def test_the_places_of_poolings_paddings_and_resizings_in_closed_form(layer, expected):
    network = nn.Sequential(layer).eval()
    assert places(network, {"it": layer}, torch.zeros(1, 3, 48, 48))["it"] == Place(expected, expected)


def test_a_path_that_is_lost_in_windows_of_attention_is_taken_up_again():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3, 2, 1)
            self.next = nn.Conv2d(4, 4, 3, 2, 1)

        def forward(self, image):
            x = self.stem(image)
            batch, channels, height, width = x.shape
            tokens = x.flatten(2).transpose(1, 2).softmax(1)
            return self.next(tokens.transpose(1, 2).reshape(batch, channels, height, width))

    network = Windows().eval()
    found = places(network, {"next": network.next}, torch.zeros(1, 3, 32, 32))
    assert found["next"] == Place(Axis(4, 0), Axis(4, 0))


def test_a_network_that_looks_at_numbers_is_followed_with_numbers():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(1, 1, 3, 2, 1)

        def forward(self, image):
            return self.first(image if image.sum() < 1 else -image)

    network = Looks().eval()
    found = places(network, {"first": network.first}, torch.zeros(1, 1, 16, 16))
    assert found["first"] == Place(Axis(2, 0), Axis(2, 0))


def test_a_layer_without_a_map_has_no_place():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 4)).eval()
    assert places(network, {"1": network[1]}, torch.zeros(1, 3, 4, 4)) == {}


def test_nothing_stays_behind_in_the_network():
    network = models.build("lenet5", classes=10, channels=1, size=28).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = places(network, {"s2": network.s2}, torch.zeros(1, 1, 28, 28))
    assert found["s2"] == Place(Axis(2, 0.5), Axis(2, 0.5))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(not module._forward_hooks for module in network.modules())
    assert {value.device.type for value in network.parameters()} == {"cpu"}


# Drawing


@pytest.mark.parametrize(
    ("cells", "size"), [((7, 7), (224, 224)), ((3, 5), (20, 33)), ((1, 1), (4, 6)), ((8, 8), (5, 5))]
)
def test_on_the_grid_a_map_is_drawn_as_by_bilinear_interpolation(cells, size):
    values = torch.randn(2, 3, *cells, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(values, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(drawn(values, grid(cells, size), size), expected)


def test_each_cell_keeps_its_value_where_it_looks_and_the_outer_ones_beyond():
    values = torch.tensor([[1.0, 3.0], [5.0, 11.0]])
    found = drawn(values, Place(Axis(4, 2), Axis(3, 1)), (10, 8))
    assert found[2, 1] == 1
    assert found[2, 4] == 3
    assert found[6, 1] == 5
    assert found[6, 4] == 11
    assert found[4, 1] == 3  # half way
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[:, 7], found[:, 4])


def test_the_heat_of_a_planted_patch_lies_on_it_with_its_place_and_beside_it_on_the_grid():
    """The network's score is the brightness of a patch; strides of 2 with padding, as in a ResNet."""
    network = even(nn.Sequential(*(nn.Conv2d(1, 1, 3, 2, 1) for _ in range(4))))
    size = (128, 128)
    image = torch.zeros(1, 1, *size)
    image[..., 60:69, 44:53] = 1  # its middle: 64, 48
    output = network(image)[0, 0].detach()
    place = places(network, {"last": network[-1]}, image)["last"]

    def centre(heat: torch.Tensor) -> list[float]:
        return [float((heat.sum(1 - a) * torch.arange(128)).sum() / heat.sum()) for a in range(2)]

    assert centre(drawn(output, place, size)) == pytest.approx([64, 48], abs=0.5)
    assert centre(drawn(output, grid(output.shape, size), size)) == pytest.approx([71.5, 55.5], abs=0.5)
