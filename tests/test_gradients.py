"""Class activation maps and saliency: closed forms, replicas in float64, invariances, nothing left behind."""

import pytest
import torch
import torch.nn.functional as F
from explained import Small, small, small_images
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from lib.explain.gradients import (
    grad_cam,
    guided_backprop,
    guided_grad_cam,
    input_gradients,
    randomised,
    smooth,
    upsample,
)
from lib.explain.methods import METHODS
from lib.explain.targets import class_scores
from lib.runtime.errors import UserError

FORMULAS = {name: each.formula for name, each in METHODS.items() if each.formula}


@pytest.fixture
def images():
    return small_images()


def undisturbed(model):
    """What no explanation may change, in a form that can be compared."""
    return (
        [(weight.requires_grad, weight.grad, weight.tolist()) for weight in model.parameters()],
        [buffer.tolist() for buffer in model.buffers()],
        [
            (each.training, len(each._forward_hooks), len(each._backward_hooks), len(each._forward_pre_hooks))
            for each in model.modules()
        ],
    )


EXPLANATIONS = {
    "grad_cam": lambda model, images, scores: grad_cam(model, ["second", "first"], images, scores).maps[
        "first"
    ],
    "input_gradients": lambda model, images, scores: input_gradients(model, images, scores).values,
    "guided_backprop": lambda model, images, scores: guided_backprop(model, images, scores).values,
}


@pytest.fixture(params=EXPLANATIONS.values(), ids=EXPLANATIONS.keys())
def explain(request):
    return request.param


# Closed forms


@pytest.mark.parametrize("method", ["grad-cam", "hires-cam"])
def test_before_average_pooling_and_a_linear_layer_the_map_is_weight_times_activation(method):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 7, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4)
    )
    images = torch.randn(2, 3, 9, 8)
    found = grad_cam(model, ["1"], images, class_scores(range(4)), method=method).maps["1"]
    activations, weights = model[1](model[0](images)), model[4].weight
    expected = torch.einsum("tk,bkhw->tbhw", weights, activations).relu() / activations[0, 0].numel()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-6)
    assert (found > 0).any()


@pytest.fixture
def by_hand(images):
    """Features (B, C, h, w) of `second` and gradients (T, B, C, h, w), without the code under test."""
    model = small().eval()
    features = model.second(model.pool(model.first(images).relu())).detach().requires_grad_()
    output = model.head(model.norm(features).relu().mean((2, 3)))
    gradients = [torch.autograd.grad(output[:, c].sum(), features, retain_graph=True)[0] for c in (3, 1)]
    return features.detach(), torch.stack(gradients)


def plus_plus(features, gradients):
    """Chattopadhyay et al. 2018, equations 5 and 19, a number at a time."""
    maps = torch.zeros(*gradients.shape[:2], *gradients.shape[3:], dtype=gradients.dtype)
    for t, b, k in torch.cartesian_prod(*map(torch.arange, gradients.shape[:3])).tolist():
        weight, total = 0.0, float(features[b, k].clamp(min=0).sum())
        for g in gradients[t, b, k].flatten().tolist():
            weight += g**2 / (2 * g**2 + g**3 * total) * max(g, 0) if g else 0.0
        maps[t, b] += weight * features[b, k]
    return maps.relu()


REPLICAS = {
    "grad-cam": lambda a, g: (g.mean((3, 4), keepdim=True) * a).sum(2).relu(),
    "hires-cam": lambda a, g: (g * a).sum(2).relu(),
    "layer-cam": lambda a, g: (g.clamp(min=0) * a).sum(2).relu(),
    "grad-cam++": plus_plus,
    "xgrad-cam": lambda a, g: (
        ((g * a).sum((3, 4), keepdim=True) / a.sum((2, 3), keepdim=True) * a).sum(2).relu()
    ),
}


@pytest.mark.parametrize("method", FORMULAS)
def test_each_method_is_its_equation(method, images, by_hand):
    found = grad_cam(small(), ["second"], images, class_scores([3, 1]), method=method)
    torch.testing.assert_close(found.maps["second"], REPLICAS[method](*by_hand))
    assert torch.equal(found.output, small().eval()(images))
    assert found.maps["second"].any()


def test_the_weights_of_plus_plus_are_no_larger_than_half_the_gradients_whatever_the_features(
    by_hand,
):
    features, gradients = by_hand
    assert (features < 0).any()
    for factor in torch.logspace(-3, 5, 30, dtype=torch.float64):
        found = FORMULAS["grad-cam++"](features, factor * gradients[0])
        bound = (factor * gradients[0].relu()).sum((2, 3), keepdim=True) / 2 * features.abs()
        assert (found.abs() <= bound.sum(1) + 1e-9).all()


def test_the_counterfactual_is_what_speaks_against_the_class(images, by_hand):
    features, gradients = by_hand
    found = grad_cam(small(), ["second"], images, lambda output: -class_scores([3, 1])(output))
    torch.testing.assert_close(found.maps["second"], REPLICAS["grad-cam"](features, -gradients))


def test_a_layer_is_given_by_name_or_as_a_module_and_a_class_by_its_number(images):
    model = small()
    expected = grad_cam(model, ["second"], images, class_scores([3])).maps["second"]
    for layers in ("second", model.second, ["second"], [model.second]):
        for classes in (3, [3], torch.tensor(3), torch.full((1, len(images)), 3)):
            found = grad_cam(model, layers, images, classes).maps
            assert list(found) == ["second"]
            assert torch.equal(found["second"], expected)
    both = grad_cam(model, ["first", model.second], images, [3, 1]).maps
    assert torch.equal(both["second"][:1], expected)
    assert list(both) == ["first", "second"]
    for explain in (input_gradients, guided_backprop):
        assert torch.equal(explain(model, images, 3).values, explain(model, images, class_scores([3])).values)


def test_all_layers_and_targets_share_one_forward_pass(images):
    model, calls = small(), []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    found = grad_cam(model, ["first", "second", "pool"], images, class_scores(range(5)))
    handle.remove()
    assert len(calls) == 1
    assert list(found.maps) == ["first", "second", "pool"]
    for layer, maps in found.maps.items():
        alone = torch.cat(
            [grad_cam(small(), [layer], images, class_scores([c])).maps[layer] for c in range(5)]
        )
        torch.testing.assert_close(maps, alone)


def test_of_a_transformer_the_patches_make_the_map():
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=12, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=3
    ).double()
    nn.init.normal_(model.heads.head.weight)
    images, layer = torch.randn(2, 3, 12, 12, dtype=torch.float64), "encoder.layers.encoder_layer_1.ln_1"
    found = grad_cam(model, [layer], images, class_scores([1, 2])).maps[layer]
    kept = {}
    model.eval().get_submodule(layer).register_forward_hook(lambda _m, _i, out: kept.update(tokens=out))
    output = model(images)
    for index, target in enumerate([1, 2]):
        (gradient,) = torch.autograd.grad(output[:, target].sum(), kept["tokens"], retain_graph=True)
        patches = (gradient[:, 1:].mean(1, keepdim=True) * kept["tokens"][:, 1:]).sum(2)
        torch.testing.assert_close(found[index], patches.relu().view(2, 3, 3).detach())
    assert found.any()


def test_upsampling_keeps_a_constant_and_zero_and_is_bilinear():
    maps = torch.tensor([[[0.0, 1.0]], [[2.0, 2.0]]]).view(2, 1, 1, 2)
    large = upsample(maps, (1, 4))
    torch.testing.assert_close(large[:, 0, 0], torch.tensor([[0, 0.25, 0.75, 1], [2, 2, 2, 2]]))
    assert upsample(maps.expand(2, 3, 5, 2), 7).shape == (2, 3, 7, 7)


def test_guided_grad_cam_is_the_product_of_the_two(images):
    model, scores = small(), class_scores([0, 4])
    maps = grad_cam(model, ["second"], images, scores).maps["second"]
    values = guided_backprop(model, images, scores).values
    found = guided_grad_cam(upsample(maps, (8, 12)), values)
    assert found.shape == (2, 3, 2, 8, 12)
    torch.testing.assert_close(found[1, 2, 0], upsample(maps, (8, 12))[1, 2] * values[1, 2, 0])


# Batches, calls, dtypes, states


def test_a_batch_is_its_images_one_at_a_time(explain, images):
    together = explain(small(), images, class_scores([1, 4]))
    alone = [explain(small(), image[None], class_scores([1, 4])) for image in images]
    torch.testing.assert_close(together, torch.cat(alone, dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trainable", [True, False])
def test_two_calls_are_equal_in_the_images_dtype_and_leave_the_network_as_it_was(
    explain, images, dtype, trainable
):
    model = small(dtype=dtype).train().requires_grad_(trainable)
    model.norm.eval()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    images = images.to(dtype).requires_grad_()
    before = undisturbed(model)
    with torch.no_grad():
        found = explain(model, images, class_scores([1]))
        assert torch.equal(explain(model, images, class_scores([1])), found)
    assert found.dtype == dtype
    assert not found.requires_grad
    assert images.grad is None
    assert undisturbed(model) == before


def test_an_error_leaves_the_network_as_it_was(explain, images):
    model = small().train()
    before = undisturbed(model)
    with pytest.raises(UserError, match="no class 9"):
        explain(model, images, class_scores([9]))
    with pytest.raises(RuntimeError):
        explain(model, images[:, :1], class_scores([0]))
    assert undisturbed(model) == before


def test_a_networks_own_hooks_stay_and_are_called_once(images):
    model, seen = small(), []
    model.second.register_forward_hook(lambda *_: seen.append(1))
    grad_cam(model, ["second"], images, class_scores([0]))
    assert len(seen) == 1
    assert len(model.second._forward_hooks) == 1


# SmoothGrad and the sanity check


def test_the_mean_over_noise_of_a_linear_map_tends_to_the_map(images):
    found = smooth(lambda noisy: 3 * noisy, images, samples=400, noise=0.1, seed=0)
    spread = 3 * 0.1 * float(images.max() - images.min()) / 400**0.5
    assert 0.3 * spread < float((found - 3 * images).square().mean().sqrt()) < 1.5 * spread


def test_noise_is_a_share_of_each_images_own_range_and_the_seed_is_all_of_it():
    images = torch.stack([torch.zeros(1, 64, 64), torch.linspace(0, 2, 4096).view(1, 64, 64)])
    kept = []
    for seed in (0, 0, 1):
        smooth(lambda noisy: kept.append(noisy) or noisy, images, samples=1, noise=0.2, seed=seed)
    assert torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0], kept[2])
    assert torch.equal(kept[0][0], images[0])
    assert float((kept[0][1] - images[1]).std()) == pytest.approx(0.4, rel=0.05)


def test_more_redrawn_layers_add_to_fewer_and_all_come_back():
    model = small()
    before, states = undisturbed(model), []
    for count in (0, 1, 2, 4):
        with randomised(model, count, seed=3) as names:
            states.append({name: weight.clone() for name, weight in model.named_parameters()})
            assert names == ["head", "norm", "second", "first"][:count]
        assert undisturbed(model) == before
    changed = [{name for name in each if not torch.equal(each[name], states[0][name])} for each in states]
    assert changed[1] == {"head.weight", "head.bias"}
    assert changed[2] == {"head.weight", "head.bias", "norm.weight"}  # its bias was zero, and has no scale
    assert torch.equal(states[1]["head.weight"], states[3]["head.weight"])
    with randomised(model, 1, seed=4):
        assert not torch.equal(model.head.weight, states[1]["head.weight"])


def test_redrawn_weights_keep_their_scale():
    model = nn.Linear(300, 300)
    scale = model.weight.square().mean().sqrt()
    with randomised(model, 1, seed=0):
        torch.testing.assert_close(model.weight.square().mean().sqrt(), scale, rtol=0.02, atol=0)
        assert model.weight.mean().abs() < 0.02 * scale


def test_weights_come_back_after_an_error_and_gradcam_changes_with_them(images):
    model = small()
    before = undisturbed(model)
    maps = grad_cam(model, ["second"], images, class_scores([0])).maps["second"]
    with randomised(model, 2, seed=0):
        other = grad_cam(model, ["second"], images, class_scores([0])).maps["second"]
    assert not torch.allclose(maps, other)
    with pytest.raises(UserError, match="no class 9"), randomised(model, 2, seed=0):
        grad_cam(model, ["second"], images, class_scores([9]))
    assert undisturbed(model) == before


# What cannot be


def test_what_cannot_be_is_said(images):
    model, scores = small(), class_scores([0])
    wrong = {
        "no method 'cam'; choose from grad-cam": lambda: grad_cam(
            model, ["first"], images, scores, method="cam"
        ),
        "no layer 'frist'; choose from first": lambda: grad_cam(model, ["frist"], images, scores),
        "'head' has no spatial map, it puts out 5; 'norm' has one": lambda: grad_cam(
            model, ["head"], images, scores
        ),
        "do not depend on layer 'second'": lambda: grad_cam(
            model, ["second"], images, lambda output: torch.ones_like(output.T)
        ),
        "do not depend on the images": lambda: input_gradients(
            model, images, lambda output: torch.ones_like(output.T)
        ),
        "this Conv2d is not a layer of the Small": lambda: grad_cam(model, nn.Conv2d(1, 1, 1), images, 0),
        "this Small is not a layer of the Small": lambda: grad_cam(model, model, images, 0),
        "there is no class 9: the network tells 5 apart": lambda: grad_cam(model, "first", images, 9),
        "no rule 'gradient'; choose from guided": lambda: guided_backprop(
            model, images, scores, rule="gradient"
        ),
        "does not apply to the gelu of Small": lambda: guided_backprop(small(F.gelu), images, scores),
        "does not apply to the leaky_relu": lambda: guided_backprop(small(nn.LeakyReLU()), images, scores),
        "Small calls none": lambda: guided_backprop(small(torch.tanh), images, scores),
        "cannot average 0 samples": lambda: smooth(abs, images, samples=0, noise=0.1, seed=0),
        "the network has 4": lambda: randomised(model, 5, 0).__enter__(),
    }
    for message, call in wrong.items():
        with pytest.raises(UserError, match=message):
            call()


def test_a_layer_that_is_never_called_is_said(images):
    model = small()
    model.auxiliary = nn.Conv2d(2, 2, 1)
    with pytest.raises(
        UserError, match="'auxiliary' has no spatial map, it puts out no tensor; 'norm' has one"
    ):
        grad_cam(model, ["auxiliary"], images, class_scores([0]))


def test_a_layer_off_the_scores_way_is_said(images):
    class Besides(Small):
        def forward(self, x):
            self.aside(x)
            return super().forward(x)

    torch.manual_seed(0)
    model = Besides().double()
    model.aside = nn.Conv2d(2, 3, 1).double()
    with pytest.raises(UserError, match="do not depend on layer 'aside'"):
        grad_cam(model, ["aside"], images, class_scores([0]))
    with pytest.raises(UserError, match="do not depend on layer 'aside'"):
        grad_cam(model, ["aside", "second"], images, class_scores([0]))
