"""Which layers have spatial maps, where graphs start, and that nothing stays behind in a network."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

from lib import models
from lib.explain.activations import capture_activations, default_layer, explaining, spatial_layers
from lib.explain.gradients import grad_cam
from lib.explain.targets import class_scores
from lib.models.spatial_maps import CHANNELS_FIRST, follow
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


class Given(nn.Module):
    """Puts out what it is told to, computed from the images by a function."""

    def __init__(self, compute):
        super().__init__()
        self.last, self.compute = nn.Identity(), compute

    def forward(self, x):
        return self.last(self.compute(x))


def map_of(compute, images, model=None):
    """The spatial map of what `compute` makes of images, in a network of its own or inside of `model`."""
    network = Given(compute)
    with follow(network, images) as layouts, torch.no_grad():
        output = network(images)
        if model is not None:
            model(images)
    return layouts.spatial_map("last", output, images)


def test_a_map_of_one_cell_is_none_nor_is_one_of_another_aspect_ratio(images):
    assert map_of(lambda x: F.avg_pool2d(x, (6, 8)), images) is None
    assert map_of(lambda x: F.avg_pool2d(x, (6, 1)), images) is None
    assert map_of(lambda x: F.avg_pool2d(x, 2), images).shape == (2, 2, 3, 4)


def test_a_map_with_its_channels_last_is_turned(images):
    expected = F.conv2d(images, torch.ones(5, 2, 1, 1))
    found = map_of(lambda x: F.linear(x.permute(0, 2, 3, 1), torch.ones(5, 2)), images)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: torch.permute(x, (0, -2, -1, 1)),
        lambda x: x.transpose(1, 2).transpose(-2, -1),
        lambda x: x.movedim(1, -1),
        lambda x: torch.movedim(x, (2, 3), (1, 2)),
        lambda x: x.swapaxes(1, 3).swapdims(1, 2),
    ],
)
def test_where_all_lengths_are_equal_what_made_a_tensor_tells_its_channels(turn):
    images = torch.randn(2, 4, 4, 4)
    norm, linear, convolution = nn.LayerNorm(4), nn.Linear(4, 4), nn.Conv2d(4, 4, 1)
    last = linear(turn(images))
    torch.testing.assert_close(map_of(lambda x: linear(turn(x)), images), last.permute(0, 3, 1, 2))
    torch.testing.assert_close(
        map_of(lambda x: F.gelu(norm(linear(turn(x)))).mul_(2), images),
        (F.gelu(norm(last)) * 2).permute(0, 3, 1, 2),
    )
    torch.testing.assert_close(map_of(convolution, images), convolution(images))
    back = convolution(last.permute(0, 3, 1, 2))
    torch.testing.assert_close(
        map_of(lambda x: convolution(linear(turn(x)).permute(0, 3, 1, 2)), images), back
    )


def test_reshaping_leaves_what_begins_or_ends_both_shapes_and_hides_the_rest():
    images = torch.randn(2, 4, 4, 4)

    def shuffle(x):
        return x.view(2, 2, 2, 4, 4).transpose(1, 2).contiguous().view(2, 4, 4, 4)

    torch.testing.assert_close(map_of(shuffle, images), shuffle(images))
    assert map_of(lambda x: x.reshape(2, 2, 8, 4).reshape(2, 4, 4, 4), images) is None


def test_a_pooling_that_follows_tells_what_reshaping_hides():
    images = torch.randn(2, 4, 4, 4)
    hidden = nn.Sequential(Given(lambda x: x.flatten(1).view(2, 4, 4, 4)), nn.MaxPool2d(2))
    with follow(hidden, images) as layouts:
        hidden(images)
    assert layouts.of["0"].layout == CHANNELS_FIRST


def test_a_layer_of_which_nothing_tells_the_channels_is_refused_in_one_line():
    images = torch.randn(1, 4, 4, 4)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), Given(lambda x: x.flatten(1).view(1, 4, 4, 4)), nn.Flatten())
    assert [row.name for row in spatial_layers(model, images)] == ["0"]
    with pytest.raises(UserError, match=r"layer '1' puts out 4×4×4, and nothing says which .* such as '0'"):
        grad_cam(model, ["1"], images, class_scores([0]))


def test_tokens_become_their_grid_without_the_class_token():
    images, grid = torch.zeros(2, 3, 12, 20), torch.arange(15.0).view(3, 5)
    tokens = torch.cat([torch.tensor([-1.0]), grid.flatten()]).view(1, 16, 1).expand(2, 16, 4)
    attention = nn.MultiheadAttention(4, 2)

    def found(tokens, attend=True):
        def compute(x):
            if attend:
                attention(tokens, tokens, tokens + x.sum())
            return F.linear(tokens + x.sum(), torch.eye(4))

        return map_of(compute, images)

    assert torch.equal(found(tokens), grid.expand(2, 4, 3, 5))
    assert torch.equal(found(tokens[:, 1:]), grid.expand(2, 4, 3, 5))
    assert found(tokens[:, 3:]) is None  # nor 13 nor 12 make a grid so wide
    assert found(tokens, attend=False) is None  # a network that does not attend has no tokens


def test_the_layers_of_swin_and_convnext_are_maps_wherever_their_channels_are():
    """At a side of 64 px, the first maps of this Swin have 16 rows, 16 columns and 16 channels."""
    torch.manual_seed(0)
    swin = SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=3).eval()
    blocks = [CNBlockConfig(8, 12, 1), CNBlockConfig(12, None, 1)]
    convnext = ConvNeXt(blocks, num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    found = {row.name: row.shape for row in spatial_layers(swin, images)}
    assert found["features.0.0"] == found["features.1"] == found["features.1.0.norm1"] == (16, 16, 16)
    assert found["features.1.0.mlp.0"] == (64, 16, 16)
    assert found["features.2.reduction"] == found["permute"] == (32, 8, 8)
    assert default_layer(swin, images) == "permute"
    found = {row.name: row.shape for row in spatial_layers(convnext, images)}
    assert found["features.1.0.block.0"] == found["features.1.0.block.2"] == (8, 16, 16)
    assert found["features.1.0.block.3"] == (32, 16, 16)
    assert default_layer(convnext, images) == "features"


def test_a_class_activation_map_is_the_same_from_the_layer_that_turns_its_channels_and_from_that_before():
    torch.manual_seed(0)
    swin = SwinTransformer([4, 4], 16, [1, 1], [2, 4], [4, 4], num_classes=3).eval()
    images = torch.randn(1, 3, 64, 64)
    found = grad_cam(swin, ["features.0.0", "features.0.1", "norm", "permute"], images, class_scores([0]))
    torch.testing.assert_close(found.maps["features.0.0"], found.maps["features.0.1"])
    torch.testing.assert_close(found.maps["norm"], found.maps["permute"])


def test_tables_of_positions_are_no_maps_because_they_do_not_depend_on_the_image():
    swin = SwinTransformer([4, 4], 16, [2], [2], [4, 4], num_classes=3, block=SwinTransformerBlockV2)
    names = [row.name for row in spatial_layers(swin, torch.randn(1, 3, 32, 32))]
    assert "features.1.0.mlp" in names
    assert not [name for name in names if "cpb_mlp" in name]


def test_nothing_of_a_followed_pass_stays_behind(network, images):
    with pytest.raises(RuntimeError), follow(network, images):
        network(images[:, :1])
    assert not any(module._forward_hooks for module in network.modules())


class Turn(nn.Module):
    """Moves the channels to the end, of shapes that look the same before and after."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)


def test_what_was_found_of_a_network_is_forgotten_when_one_of_its_modules_is_replaced():
    images = torch.rand(2, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Identity())
    for turn in (nn.Identity, Turn, nn.Identity):
        network[1] = turn()
        for _ in range(2):  # followed, and kept
            with follow(network, images) as layouts, torch.no_grad():
                output = network(images)
            expected = output.permute(0, 3, 1, 2) if turn is Turn else output
            assert torch.equal(layouts.spatial_map("1", output, images), expected)


def test_the_states_of_a_row_network_are_no_grid_though_their_number_be_a_square():
    with pytest.raises(UserError, match="no layer of the network has a spatial map"):
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
    with pytest.raises(UserError, match="no layer of the network has a spatial map"):
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
