"""The networks for small images: the arithmetic of the shifted convolution, names, shapes, parameters."""

import copy
import itertools

import pytest
import torch
from torch import nn

from lib import models
from lib.data import images
from lib.models.shifted_convolution import ShiftedConv2d
from lib.runtime.errors import UserError

# The shifted convolution is a convolution


def pair(dtype: torch.dtype) -> tuple[ShiftedConv2d, nn.Conv2d]:
    """A shifted convolution and the library's, with the same weights."""
    torch.manual_seed(0)
    library = nn.Conv2d(1, 1, kernel_size=2).to(dtype)
    ours = ShiftedConv2d().to(dtype)
    ours.load_state_dict(library.state_dict())
    return ours, library


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (3, 1, 5, 4), (16, 1, 28, 28)])
def test_a_shifted_convolution_and_its_gradients_are_the_librarys(dtype, tolerance, shape):
    torch.manual_seed(1)
    ours, library = pair(dtype)
    inputs = torch.randn(shape, dtype=dtype)
    results = []
    for layer in (ours, library):
        x = inputs.clone().requires_grad_()
        out = layer(x)
        out.backward(torch.sin(torch.arange(out.numel(), dtype=dtype)).view_as(out))
        results.append((out, x.grad, layer.weight.grad, layer.bias.grad))
    for mine, its in zip(*results, strict=True):
        assert mine.shape == its.shape
        assert mine.dtype == dtype
        # Sums over all pixels of the batch: relative to how large they are.
        assert (mine - its).abs().max() <= tolerance * max(1.0, its.abs().max().item())


def test_the_gradients_of_a_shifted_convolution_are_those_of_finite_differences():
    ours, _ = pair(torch.float64)
    x = torch.randn(2, 1, 4, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, ours.weight, ours.bias)
    assert torch.autograd.gradcheck(
        lambda x, w, b: torch.func.functional_call(ours, {"weight": w, "bias": b}, x), inputs
    )


@pytest.mark.parametrize(
    "layout", [lambda x: x.transpose(2, 3), lambda x: x[::2, :, 1:, ::3], lambda x: x.expand(6, -1, -1, -1)]
)
def test_a_shifted_convolution_takes_views_of_any_layout(layout):
    ours, library = pair(torch.float64)
    base = torch.randn(
        1 if layout(torch.zeros(1, 1, 9, 9)).shape[0] == 6 else 6, 1, 9, 9, dtype=torch.float64
    )
    gradients = []
    for layer in (ours, library):
        x = base.clone().requires_grad_()
        layer(layout(x)).square().sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients, atol=1e-12)
    assert torch.allclose(ours(layout(base)), library(layout(base)), atol=1e-12)


def test_under_autocast_a_shifted_convolution_is_the_librarys():
    ours, library = pair(torch.float32)
    x = torch.randn(4, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        mine, its = ours(x), library(x)
    assert mine.dtype == its.dtype == torch.bfloat16
    assert torch.equal(mine, its)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_a_shifted_convolution_is_the_same_and_keeps_no_graph(context):
    ours, library = pair(torch.float64)
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    with context():
        out = ours(x)
    assert not out.requires_grad
    assert torch.allclose(out, library(x), atol=1e-12)


def test_a_frozen_shifted_convolution_still_passes_gradients_to_its_input():
    ours, library = pair(torch.float64)
    gradients = []
    for layer in (ours, library):
        layer.requires_grad_(False)
        x = torch.linspace(0, 1, 25, dtype=torch.float64).view(1, 1, 5, 5).requires_grad_()
        layer(x).square().sum().backward()
        assert layer.weight.grad is None
        gradients.append(x.grad)
    assert torch.allclose(*gradients, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (5, 5)])
def test_a_shifted_convolution_refuses_what_the_librarys_refuses(shape):
    ours, library = pair(torch.float32)
    with pytest.raises(RuntimeError):
        library(torch.zeros(shape))
    with pytest.raises(RuntimeError):
        ours(torch.zeros(shape))


def test_every_convolution_starts_alive_whatever_the_seed():
    """Behind each is a ReLU of one channel: if nothing passes it, nothing is ever learnt."""
    digits = images.load("digits", "nowhere").train.images[:32]
    for seed in range(30):
        torch.manual_seed(seed)
        model = models.build("mnist-classifier")
        model(digits).logsumexp(1).sum().backward()
        for i in range(4):
            assert model.layers[f"sub-layer{i}"].conv.weight.grad.abs().min() > 0, seed


# mnist-classifier

SUB_LAYER = {
    "conv.weight": (1, 1, 2, 2),
    "conv.bias": (1,),
    "bn.weight": (1,),
    "bn.bias": (1,),
    "bn.running_mean": (1,),
    "bn.running_var": (1,),
    "bn.num_batches_tracked": (),
}
NAMES_AND_SHAPES = {
    **{f"layers.sub-layer{i}.{name}": shape for i in range(4) for name, shape in SUB_LAYER.items()},
    "fc1.weight": (64, 144),
    "fc1.bias": (64,),
    "fc2.weight": (10, 64),
    "fc2.bias": (10,),
}


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_state_dict_of_mnist_classifier_is_that_of_the_files_in_the_world():
    model = models.build("mnist-classifier")
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == NAMES_AND_SHAPES
    assert parameters(model) == 9958
    assert isinstance(model.layers, nn.ModuleDict)
    assert [name for name, _ in model.layers["sub-layer2"].named_children()] == ["conv", "relu", "bn"]
    assert [name for name, _ in model.named_children()] == ["layers", "max_pool", "fc1", "tanh", "fc2"]


class Independent(nn.Module):
    """The network as its description says, written without a look at ours."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleDict()
        for i in range(4):
            block = nn.Sequential()
            block.add_module("conv", nn.Conv2d(1, 1, kernel_size=2))
            block.add_module("relu", nn.ReLU())
            block.add_module("bn", nn.BatchNorm2d(1))
            self.layers[f"sub-layer{i}"] = block
        self.max_pool = nn.MaxPool2d(kernel_size=2)
        self.fc1 = nn.Linear(144, 64)
        self.tanh = nn.Tanh()
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x):
        for i in range(4):
            x = self.layers[f"sub-layer{i}"](x)
        x = self.max_pool(x)
        x = x.reshape(x.size(0), -1)
        return self.fc2(self.tanh(self.fc1(x)))


@pytest.mark.parametrize("training", [False, True])
def test_weights_of_an_independent_network_of_this_description_give_the_same_logits(training):
    torch.manual_seed(3)
    theirs = Independent().double()
    x = torch.rand(32, 1, 28, 28, dtype=torch.float64)
    theirs.train()(x)  # statistics other than 0 and 1
    ours = models.build("mnist-classifier").double()
    ours.load_state_dict(theirs.state_dict())
    theirs.train(training)
    ours.train(training)
    assert torch.allclose(ours(x), theirs(x), atol=1e-12)
    gradients = []
    for model in (ours, theirs):
        model.zero_grad()
        model(x).logsumexp(1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for mine, its in zip(*gradients, strict=True):
        assert torch.allclose(mine, its, atol=1e-9)


@pytest.mark.parametrize("size", [8, 28, 32, 33])
def test_mnist_classifier_takes_images_of_other_sizes(size):
    assert models.build("mnist-classifier", classes=7, size=size)(torch.rand(2, 1, size, size)).shape == (
        2,
        7,
    )


# The others


@pytest.mark.parametrize(("size", "channels", "classes"), list(itertools.product((28, 32), (1, 3), (10, 47))))
def test_lenet5_has_the_feature_maps_of_the_paper(size, channels, classes):
    model = models.build("lenet5", size=size, channels=channels, classes=classes)
    shapes = {}
    x = torch.rand(2, channels, size, size)
    for name, layer in model.named_children():
        x = layer(x)
        shapes[name] = tuple(x.shape[1:])
    wanted = {"c1": (6, 28, 28), "s2": (6, 14, 14), "c3": (16, 10, 10), "s4": (16, 5, 5), "c5": (120, 1, 1)}
    assert {name: shapes[name] for name in wanted} == wanted
    assert shapes["f6"] == (84,)
    assert shapes["output"] == (classes,)


def test_lenet5_has_61706_parameters():
    assert parameters(models.build("lenet5", size=32)) == 61_706
    assert parameters(models.build("lenet5", size=28)) == 61_706
    assert parameters(models.build("lenet5", size=32, channels=3)) == 61_706 + 2 * 6 * 25


COUNTED = (nn.Conv2d, nn.ReLU, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.Linear)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (20, 1)])
def test_deep_cnn_is_as_deep_and_as_large_as_it_was_asked_to_be(size, channels):
    model = models.build("deep-cnn", size=size, channels=channels)
    layers = [module for module in model.modules() if isinstance(module, COUNTED)]
    assert 12 <= len(layers) <= 35
    present = {type(layer) for layer in layers}
    assert {nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.Linear, nn.BatchNorm2d} <= present
    if size == 28:
        assert 70_000 <= parameters(model) <= 250_000
    assert model(torch.rand(2, channels, size, size)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "config", "said"),
    [
        ("lenet", {}, "there is no network 'lenet'; the nearest names are lenet5"),
        ("mnist-classifier", {"channels": 3}, "takes images of 1 channel, not of 3"),
        ("lenet5", {"size": 64}, "takes images of 28 or 32 px, not of 64"),
        ("deep-cnn", {"size": 12}, "not of 12"),
        ("lenet5", {"depth": 3}, "lenet5 cannot be made from {'depth': 3}"),
        ("lenet5", {"classes": "ten"}, "lenet5 cannot be made from {'classes': 'ten'}"),
        ("lenet5", {"classes": -1}, "lenet5 cannot be made from {'classes': -1}"),
    ],
)
def test_a_network_that_cannot_be_made_is_refused_in_one_line(name, config, said):
    with pytest.raises(UserError) as refused:
        models.build(name, **config)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["mnist-classifier", "lenet5", "deep-cnn"])
def test_the_stages_of_a_network_are_layers_that_it_has_a_convolution_and_the_last_among_them(name):
    model = models.build(name)
    named = dict(model.named_modules())
    assert set(model.stages) <= set(named)
    assert len(model.stages) >= 3
    assert list(named)[-1] == model.stages[-1]
    assert copy.deepcopy(model)(torch.rand(2, 1, 28, 28)).shape == (2, 10)
