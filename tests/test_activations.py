"""Which layers have spatial maps, where graphs start, and that nothing stays behind in a network."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from lib import models
from lib.explain.activations import capture_activations, default_layer, explaining, spatial_layers
from lib.models.spatial_maps import spatial_map
from lib.runtime.errors import UserError


class InPlace(nn.Module):
    """A convolution whose output is rewritten behind it, twice over, before a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x = F.relu_(self.first(x))
        x = self.second(x).relu_().mul_(2)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return InPlace()


@pytest.fixture
def images():
    return torch.randn(2, 2, 6, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def transformer():
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=12, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3
    )


def test_the_layers_with_maps_are_listed_as_they_finish(network, images):
    assert spatial_layers(network, images) == [
        ("first", "Conv2d", (3, 6, 8)),
        ("second", "Conv2d", (4, 6, 8)),
    ]


def test_a_map_of_one_cell_is_none_nor_is_one_with_its_channels_last(network, images):
    cell, channels_last = torch.zeros(2, 9, 1, 1), torch.zeros(2, 3, 4, 96)
    assert spatial_map(network, cell, images) is None
    assert spatial_map(network, channels_last, images) is None
    assert spatial_map(network, torch.zeros(2, 9, 3, 4), images).shape == (2, 9, 3, 4)


def test_tokens_become_their_grid_without_the_class_token(transformer, network):
    images, grid = torch.zeros(2, 3, 12, 20), torch.arange(15.0).view(3, 5)
    tokens = torch.cat([torch.tensor([-1.0]), grid.flatten()]).view(1, 16, 1).expand(2, 16, 4)
    assert torch.equal(spatial_map(transformer, tokens, images), grid.expand(2, 4, 3, 5))
    assert torch.equal(spatial_map(transformer, tokens[:, 1:], images), grid.expand(2, 4, 3, 5))
    assert spatial_map(transformer, tokens[:, 3:], images) is None  # nor 13 nor 12 make a grid so wide
    assert spatial_map(network, tokens, images) is None  # a network that does not attend has no tokens


def test_the_states_of_a_row_network_are_no_grid_though_their_number_be_a_square():
    with pytest.raises(UserError, match="no layer of RowClassifier has a spatial map"):
        default_layer(models.build("row-lstm", size=16, hidden=4), torch.randn(1, 1, 16, 16))


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "layer4"),
        ("alexnet", "features"),  # and not the adaptive pooling behind it
        ("squeezenet1_1", "classifier.2"),
        ("densenet121", "features"),
        ("mobilenet_v2", "features"),
    ],
)
def test_the_default_is_the_last_map(name, layer):
    model = torchvision.models.get_model(name, weights=None)
    assert default_layer(model, torch.zeros(1, 3, 96, 96)) == layer


def test_the_default_of_a_transformer_is_before_the_attention_that_ends_in_the_class_token(transformer):
    # Its head's weights start at zero, where gradients say nothing.
    assert not transformer.heads.head.weight.any()
    layer = default_layer(transformer, torch.randn(1, 3, 12, 12))
    assert layer == "encoder.layers.encoder_layer_1.ln_1"


def test_a_network_without_a_map_is_said_to_have_none(images):
    flat = nn.Sequential(nn.Flatten(), nn.Linear(96, 3))
    with pytest.raises(UserError, match="no layer of Sequential has a spatial map"):
        default_layer(flat, images)


def test_what_is_kept_is_what_the_layer_put_out_whatever_happens_to_it_afterwards(network, images):
    expected = network.second(network.first(images).relu())
    with explaining(network), capture_activations(network, ["second"]) as tapped:
        network(images)
    torch.testing.assert_close(tapped["second"].detach(), expected.detach())
    assert (expected < 0).any()


def test_the_graph_starts_at_the_first_layer_and_the_second_is_on_it(network, images):
    with explaining(network), capture_activations(network, ["second", "first"]) as tapped:
        output = network(images)
        assert list(tapped) == ["first", "second"]
        assert tapped["first"].is_leaf
        (through,) = torch.autograd.grad(tapped["second"].sum(), tapped["first"], retain_graph=True)
        assert through.any()
        saved = [node for node in _graph(output.grad_fn) if "AccumulateGrad" in type(node).__name__]
        assert [node.variable is tapped["first"] for node in saved] == [True]


def _graph(node, seen=None):
    seen = [] if seen is None else seen
    if node is not None and node not in seen:
        seen.append(node)
        for following, _ in node.next_functions:
            _graph(following, seen)
    return seen


def test_of_a_layer_that_is_called_twice_the_last_output_is_kept():
    torch.manual_seed(0)
    convolution = nn.Conv2d(2, 2, 1)
    twice = nn.Sequential(convolution, convolution)
    images = torch.randn(1, 2, 3, 3)
    with explaining(twice), capture_activations(twice, ["0"]) as tapped:
        twice(images)
    torch.testing.assert_close(tapped["0"], twice(images))


@pytest.mark.parametrize("raising", [False, True])
def test_modes_gradients_and_hooks_are_afterwards_as_they_were(network, images, raising):
    network.train()
    network.second.eval()
    network.first.weight.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    wanted = [weight.requires_grad for weight in network.parameters()]
    hooks = len(network.second._forward_hooks)
    try:
        with explaining(network), capture_activations(network, ["second"]):
            assert not any(weight.requires_grad for weight in network.parameters())
            assert not network.training
            network(images[:, :1] if raising else images)
    except RuntimeError:
        assert raising
    assert [module.training for module in network.modules()] == modes
    assert [weight.requires_grad for weight in network.parameters()] == wanted
    assert len(network.second._forward_hooks) == hooks == 0


def test_a_layer_that_is_not_there_is_said_and_leaves_no_hook(network):
    with (
        pytest.raises(UserError, match="no layer 'third'; choose from"),
        capture_activations(network, ["first", "third"]),
    ):
        pass
    assert not network.first._forward_hooks
