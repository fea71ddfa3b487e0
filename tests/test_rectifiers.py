"""Guided backprop and deconvnet: whatever a ReLU is called, the rule replaces its gradient and no other."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from explained import small, small_images
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lib.explain.gradients import guided_backprop, input_gradients
from lib.explain.rectifiers import RULES, RectifierRule
from lib.explain.targets import class_scores


@pytest.fixture
def images():
    return small_images()


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_of_two_layers_is_its_closed_form(rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    images = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    found = guided_backprop(model, images, class_scores([2]), rule=rule).values[0]
    passed = model[3].weight[2].clamp(min=0).expand(4, 20)
    if rule == "guided":
        passed = passed * (model[1](images.flatten(1)) > 0)
    torch.testing.assert_close(found, (passed @ model[1].weight).view_as(images).detach())


def discarding(x):
    x.relu_()
    return x


SPELLINGS = {
    "nn.ReLU": nn.ReLU(),
    "nn.ReLU in place": nn.ReLU(inplace=True),
    "F.relu": F.relu,
    "F.relu in place": lambda x: F.relu(x, inplace=True),
    "F.relu in place, by position": lambda x: F.relu(x, True),
    "F.relu of a keyword": lambda x: F.relu(input=x),
    "F.relu_": F.relu_,
    "torch.relu": torch.relu,
    "torch.relu_": torch.relu_,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_, its result discarded": discarding,
    "hardtanh without a ceiling": lambda x: F.hardtanh(x, 0, math.inf),
    "a chain of calls": lambda x: x.mul(1).relu_(),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_relu_comes_to_the_same(rule, spelling, images):
    found = guided_backprop(small(SPELLINGS[spelling]), images, class_scores([0, 2]), rule=rule)
    expected = guided_backprop(small(), images, class_scores([0, 2]), rule=rule)
    assert torch.equal(found.values, expected.values)
    assert not torch.allclose(found.values, input_gradients(small(), images, class_scores([0, 2])).values)


SIX = {
    "F.relu6": F.relu6,
    "F.relu6 in place": lambda x: F.relu6(x, inplace=True),
    "nn.ReLU6": nn.ReLU6(),
    "nn.ReLU6 in place": nn.ReLU6(inplace=True),
    "F.hardtanh": lambda x: F.hardtanh(x, min_val=0.0, max_val=6.0),
    "F.hardtanh_": lambda x: F.hardtanh_(x, 0.0, 6.0),
}


@pytest.mark.parametrize("spelling", SIX)
def test_a_relu6_passes_nothing_back_above_its_ceiling(spelling):
    class Clipped(nn.Module):
        def forward(self, x):
            return SIX[spelling](x).sum((1, 2, 3))[:, None]

    images = torch.tensor([[[[-1.0, 1.0], [5.0, 7.0]]]])
    found = guided_backprop(Clipped(), images, class_scores([1]))
    torch.testing.assert_close(found.values[0], torch.tensor([[[[0.0, 1.0], [1.0, 0.0]]]]))
    assert float(found.output) == 12
    assert torch.equal(images, torch.tensor([[[[-1.0, 1.0], [5.0, 7.0]]]]))


def test_a_part_of_a_tensor_may_be_rectified_in_place(images):
    class Half(nn.Module):
        def forward(self, x):
            x = x * 1
            x[:, :1].relu_()
            return x.mean((2, 3))

    found = guided_backprop(Half(), images, class_scores([0, 1])).values
    each = torch.tensor(1 / 96, dtype=torch.float64)
    torch.testing.assert_close(found[0, :, 0], (images[:, 0] > 0) * each)
    torch.testing.assert_close(found[1, :, 1], each.expand(3, 8, 12))


class RectifierCalls(TorchDispatchMode):
    """Counts what reaches the kernels, below every spelling."""

    calls = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.removesuffix("_")
        self.calls += name == "relu" or (name == "hardtanh" and args[1] == 0)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    "name",
    ["resnet18", "googlenet", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5"],
)
def test_as_many_relus_are_intercepted_as_a_network_calls(name):
    more = {"init_weights": False} if name == "googlenet" else {}
    model = torchvision.models.get_model(name, weights=None, **more).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad(), RectifierCalls() as counted:
        model(images)
    with torch.no_grad(), RectifierRule("guided") as rule:
        model(images)
    assert rule.intercepted == counted.calls > 8
    # Its other activations are 19 hard swishes, to which the rule does not apply.
    assert rule.others["hardswish"] == (19 if name == "mobilenet_v3_small" else 0)


def test_a_rule_does_not_outlast_its_call(images):
    model, scores = small(), class_scores([0])
    before = input_gradients(model, images, scores).values
    guided_backprop(model, images, scores)
    assert torch.equal(input_gradients(model, images, scores).values, before)
