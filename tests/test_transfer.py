"""Transfer: frozen trunks stand still, features stand for images, and trunks come from other tasks."""

import copy

import pytest
import torch
from torch import nn

from lib import models
from lib.models import layers, transfer
from lib.runtime.errors import UserError
from lib.training.objectives import classification
from lib.training.optimisation import Settings, WeightAverage, make_optimizer, unit_lr_multiplier

# A small network of each kind of head there is.
NETWORKS = {
    "resnet18": 64,
    "alexnet": 64,
    "mobilenet_v3_small": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
    "fast-cnn": 32,
    "row-gru": 16,
}


def network(name: str, classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return models.build(name, classes=classes, channels=3, size=NETWORKS[name])


def images(name: str, count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, NETWORKS[name], NETWORKS[name], generator=torch.Generator().manual_seed(1))


def states(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(model: nn.Module, inputs: torch.Tensor, updates: int = 3) -> None:
    settings = Settings(seed=0, max_epoch=1, learning_rate=0.1, optimizer="sgd")
    optimizer = make_optimizer(model, settings, unit_lr_multiplier)
    labels = torch.arange(len(inputs)) % 3
    model.train()
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    for _ in range(updates):
        classification()(model, (inputs, labels))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", NETWORKS)
def test_training_a_frozen_network_moves_its_head_alone_and_no_statistics(name):
    model, inputs = network(name), images(name)
    head, _ = transfer.head_of(model)
    transfer.freeze(model)
    before = states(model)
    train(model, inputs)
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])]
    assert moved
    assert all(key.startswith(f"{head}.") for key in moved)


def test_training_a_network_that_is_not_frozen_moves_its_statistics():
    model = network("resnet18")
    before = states(model)
    train(model, images("resnet18"), updates=1)
    assert not torch.equal(model.bn1.running_mean, before["bn1.running_mean"])


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "squeezenet1_1"])
def test_cached_features_give_the_same_logits_and_gradients(name):
    model, inputs = network(name), images(name)
    transfer.freeze(model)
    labels = torch.arange(4) % 3
    found, kept = transfer.features(model, [(inputs[:3], labels[:3]), (inputs[3:], labels[3:])])
    assert torch.equal(kept, labels)
    assert found.shape == (4, transfer.head_of(model)[1].in_features)
    head = transfer.head_of(model)[1]
    outcomes = []
    for given in (inputs, found):
        model.train()
        logits = model(given)
        model.zero_grad()
        logits.logsumexp(1).sum().backward()
        outcomes.append((logits.detach(), head.weight.grad.clone()))
    torch.testing.assert_close(*outcomes, rtol=1e-4, atol=1e-5)


def test_a_head_that_is_no_linear_layer_has_no_features():
    assert not transfer.has_features(network("squeezenet1_1"))
    assert transfer.has_features(network("resnet18"))


def test_a_frozen_network_stays_so_in_every_mode_and_in_copies():
    model = network("resnet18")
    model.eval()
    transfer.freeze(model)
    assert not model.training
    for each in (model, copy.deepcopy(model), WeightAverage(model, 0.9).model):
        each.train()
        in_training = [name for name, module in each.named_modules() if module.training]
        assert in_training == ["", "fc"]
        with layers.evaluating(each):
            assert not any(module.training for module in each.modules())
        assert each.training
    assert type(model).__name__ == "ResNet"


def test_features_leave_modes_and_hooks_as_they_were_also_after_an_error():
    model = network("resnet18").train()
    with pytest.raises(RuntimeError):
        transfer.features(model, [(torch.zeros(1, 1, 8, 8), torch.zeros(1))])
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("name", ["resnet18", "fast-cnn"])
def test_a_trunk_comes_from_a_network_of_other_classes_and_the_head_is_new(name):
    theirs, mine = network(name, classes=8), network(name, classes=3)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    head, _ = transfer.head_of(mine)
    fresh = states(mine)
    transfer.load_trunk(mine, theirs.state_dict(), "file.pt")
    for key, value in mine.state_dict().items():
        expected = fresh[key] if key.startswith(f"{head}.") else theirs.state_dict()[key]
        assert torch.equal(value, expected), key


def test_the_trunk_of_another_network_is_refused():
    with pytest.raises(UserError, match=r"file\.pt does not fit ResNet"):
        transfer.load_trunk(network("resnet18"), network("fast-cnn").state_dict(), "file.pt")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_network_of_torchvisions_has_its_own_names_and_something_to_look_at(name):
    import torchvision

    model = network(name)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=3)
    assert list(model.state_dict()) == list(theirs.state_dict())
    assert len(layers.resolve(model, model.stages)) >= 3


def test_a_network_of_torchvisions_takes_colours_alone():
    with pytest.raises(UserError, match="resnet18 takes images of 3 channels, not of 1"):
        models.build("resnet18", classes=2, channels=1, size=64)


@pytest.mark.parametrize(("wrong", "near"), [("resnet81", "resnet18"), ("fast_cnn", "fast-cnn")])
def test_an_unknown_network_is_answered_with_the_nearest_of_either_kind(wrong, near):
    with pytest.raises(UserError, match=f"there is no network '{wrong}'; the nearest names are .*{near}"):
        models.build(wrong)
