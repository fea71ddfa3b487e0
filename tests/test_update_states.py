"""States of optimizers in checkpoints: which are resumed, and which are refused, in one line."""

import pytest
import torch
from conftest import assert_same
from points_gan import alternate, distance, fit_gan, make_gan, make_update
from torch import nn
from training import fit, make_net, make_settings

from lib.runtime import checkpoint
from lib.runtime.errors import UserError
from lib.training.update import Minimiser, OneObjective, SeveralOptimizers


def one_optimizer(model):
    return OneObjective(model, distance, make_settings())


def other_names(model):
    generator, discriminator = make_update(model).minimisers.values()
    return SeveralOptimizers(alternate, {"a": generator, "b": discriminator})


def other_parts(model):
    settings = make_settings()
    return SeveralOptimizers(
        alternate,
        {
            "generator": Minimiser(model, settings, parts=("generator", "discriminator.0")),
            "discriminator": Minimiser(model, settings, parts=("discriminator.3",)),
        },
    )


def other_kind(model):
    return make_update(model, optimizer="sgd")


REFUSED = {
    one_optimizer: "was saved with the optimizers generator, discriminator; this run has one optimizer",
    other_names: "was saved with the optimizers generator, discriminator; this run has the optimizers a, b",
    other_parts: "was saved with another optimizer",
    other_kind: "was saved with another optimizer: give the same --optimizer",
}


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_a_resume_with_another_set_of_optimizers_is_refused(tmp_path, make):
    fit_gan(tmp_path)
    model = make_gan()
    with pytest.raises(UserError, match=REFUSED[make]) as refused:
        fit_gan(tmp_path, model=model, update=make(model), resume=True, max_epoch=4)
    assert "\n" not in str(refused.value)
    assert str(tmp_path / checkpoint.LAST) in str(refused.value)


def test_several_optimizers_refuse_a_run_of_one(tmp_path):
    model = make_gan(plain=True)
    fit_gan(tmp_path, model=model, update=one_optimizer(model))
    with pytest.raises(UserError, match="with one optimizer; this run has the optimizers generator, discrim"):
        fit_gan(tmp_path, model=model, resume=True, max_epoch=4)


def without(state: dict, name: str) -> dict:
    return {key: value for key, value in state.items() if key != name}


def of_weight(change):
    """Change the state of one parameter."""

    def damage(state):
        weights = state["state"]
        return state | {"state": weights | {"conv.weight": change(weights["conv.weight"])}}

    return damage


DAMAGES = {
    "not a dictionary": lambda _: [1, 2],
    "empty": lambda _: {},
    "no kind": lambda state: without(state, "kind"),
    "kind is a number": lambda state: state | {"kind": 3},
    "state is a list": lambda state: state | {"state": []},
    "no groups": lambda state: without(state, "param_groups"),
    "groups of text": lambda state: state | {"param_groups": ["a"]},
    "a parameter's state is text": of_weight(lambda _: "x"),
    "a moment of another shape": of_weight(lambda kept: kept | {"exp_avg": torch.zeros(2, 2)}),
    "a moment that is a number": of_weight(lambda kept: kept | {"exp_avg_sq": 1.0}),
    "a step that is a vector": of_weight(lambda kept: kept | {"step": torch.zeros(3)}),
    "a moment too many": of_weight(lambda kept: kept | {"third": torch.zeros(())}),
    "a moment too few": of_weight(lambda kept: without(kept, "exp_avg")),
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("several", [False, True])
def test_a_damaged_state_is_one_line(tmp_path, change, several):
    fit(tmp_path)
    last = checkpoint.load(tmp_path / checkpoint.LAST)
    state = change(last["training"]["optimizer"])
    update, model = None, make_net()
    if several:
        state = {"optimizers": {"all": state}}
        minimiser = Minimiser(model, make_settings())
        update = SeveralOptimizers(lambda *_: pytest.fail("a step was taken"), {"all": minimiser})
    last["training"]["optimizer"] = state
    checkpoint.save(tmp_path / checkpoint.LAST, last)
    with pytest.raises(UserError, match=r"cannot be resumed: .*optimizer.* is damaged") as refused:
        fit(tmp_path, model=model, update=update, resume=True, max_epoch=4)
    assert str(refused.value).startswith(str(tmp_path / checkpoint.LAST))


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("batches_an_epoch", "5"),
        ("weights", [1]),
        ("weights", {"conv.weight": 3}),
        ("progress", {}),
        ("progress", {"update": "1", "best_score": None, "best_update": 0, "validations_since_best": 0}),
        ("progress", {"update": 1, "best_score": "high", "best_update": 0, "validations_since_best": 0}),
    ],
)
def test_any_other_entry_of_a_wrong_type_is_one_line_too(tmp_path, entry, value):
    fit(tmp_path)
    last = checkpoint.load(tmp_path / checkpoint.LAST)
    last["training"][entry] = value
    checkpoint.save(tmp_path / checkpoint.LAST, last)
    with pytest.raises(UserError, match=f"cannot be resumed: its {entry} is damaged"):
        fit(tmp_path, resume=True, max_epoch=4)


def test_a_run_with_a_parameter_that_no_loss_uses_is_resumed(tmp_path):
    def with_spare():
        model = make_net()
        model.spare = nn.Linear(2, 2)
        return model

    fit(tmp_path / "stopped", model=with_spare(), schedule="constant")
    resumed = fit(tmp_path / "stopped", model=with_spare(), resume=True, max_epoch=4, schedule="constant")
    whole = fit(tmp_path / "whole", model=with_spare(), max_epoch=4, schedule="constant")
    assert_same(resumed.last, whole.last)


def test_the_state_of_one_optimizer_is_stored_as_ever(tmp_path):
    """By the names of its parameters and without a name of its own; older files have no other."""
    state = fit(tmp_path).last["training"]["optimizer"]
    assert list(state) == ["state", "param_groups", "kind"]
    assert list(state["state"]) == [name for name, _ in make_net().named_parameters()]
