"""The training loop: what is learnt, what is logged and saved, and when it stops."""

import copy
import math

import pytest
import torch
from conftest import assert_same
from torch import nn
from torch.nn import functional as F
from training import UPDATES, fit, make_batches, make_net, make_settings

from lib.data.batches import InOrder, TensorBatches
from lib.runtime import checkpoint
from lib.runtime.errors import RunFailed
from lib.training.objectives import classification
from lib.training.optimisation import learning_rate_factor
from lib.training.validation import by_accuracy, evaluate


def test_each_update_learns_at_the_rate_of_the_schedule(tmp_path):
    run = fit(tmp_path, log_interval=1, learning_rate=0.02).run
    steps, rates = run.series("TRAIN", "Learning_rate")
    assert steps == list(range(1, UPDATES + 1))
    expected = [0.02 * learning_rate_factor(make_settings(), step - 1, UPDATES) for step in steps]
    assert rates == pytest.approx(expected, rel=1e-5)


# One update


def plain_sgd(**changes) -> dict:
    return {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "learning_rate": 0.5} | changes


class Line(nn.Module):
    """y = w·x + b, so that gradients can be written down."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.eval_calls = 0

    def forward(self, x):
        return self.linear(x)


def line_batches(rows: int, batch_size: int) -> tuple[TensorBatches, InOrder]:
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(1))
    return TensorBatches(x, batch_size=batch_size, seed=0), InOrder(x)


def sum_of_outputs(model, batch):
    """d loss / d w = Σ x, d loss / d b = the number of examples."""
    (x,) = batch
    return {"loss": model(x).sum(), "count": len(x), "accuracy": torch.zeros(())}


def test_an_update_descends_the_mean_gradient_over_the_examples_of_its_batch(tmp_path):
    batches = line_batches(7, 4)  # batches of 4 and 3
    model = Line()
    weight, bias = model.linear.weight.detach().clone(), model.linear.bias.detach().clone()
    fit(tmp_path, model=model, batches=batches, objective=sum_of_outputs, max_epoch=1, **plain_sgd())
    for (x,) in batches[0].epoch(0):
        weight -= 0.5 * x.mean(0)
        bias -= 0.5
    assert torch.allclose(model.linear.weight, weight, atol=1e-6)
    assert torch.allclose(model.linear.bias, bias, atol=1e-6)


def test_the_mean_is_over_what_the_objective_counts(tmp_path):
    batches = line_batches(4, 4)

    def over_pixels(model, batch):
        return sum_of_outputs(model, batch) | {"count": torch.tensor(16)}

    model = Line()
    before = model.linear.bias.item()
    fit(tmp_path, model=model, batches=batches, objective=over_pixels, max_epoch=1, **plain_sgd())
    assert model.linear.bias.item() == pytest.approx(before - 0.5 * 4 / 16)


def test_the_training_loss_logged_is_the_mean_over_all_examples_since_the_last_line(tmp_path):
    batches = line_batches(7, 4)
    losses = []

    def objective(model, batch):
        sums = sum_of_outputs(model, batch)
        if model.training:
            losses.append(sums["loss"].item())
        return sums

    run = fit(tmp_path, model=Line(), batches=batches, objective=objective, max_epoch=1, log_interval=100).run
    assert run.series("TRAIN", "Training_loss")[1] == pytest.approx([sum(losses) / 7], rel=1e-5)


def test_clipping_bounds_the_norm_of_the_gradient(tmp_path):
    batches = line_batches(4, 4)
    model = Line()
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])

    def steep(model, batch):
        sums = sum_of_outputs(model, batch)
        return sums | {"loss": sums["loss"] * 1000}

    fit(
        tmp_path,
        model=model,
        batches=batches,
        objective=steep,
        max_epoch=1,
        **plain_sgd(learning_rate=1.0, clip_norm=0.1),
    )
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.1, rel=1e-4)


def flat(model, _batch):
    """A loss without slope."""
    return {
        "loss": sum(p.sum() * 0 for p in model.parameters() if p.requires_grad) + 0.0,
        "count": 1,
        "accuracy": torch.zeros(()),
    }


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weight_decay_shrinks_weights_and_spares_biases_and_norms(tmp_path, optimizer):
    model = make_net()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    changes = plain_sgd(optimizer=optimizer, weight_decay=0.1, learning_rate=0.2)
    fit(tmp_path, model=model, objective=flat, **changes)
    for name, value in model.named_parameters():
        decays = name in ("conv.weight", "out.weight")
        shrunk = before[name] * (1 - 0.2 * 0.1) ** UPDATES if decays else before[name]
        assert torch.allclose(value, shrunk, rtol=1e-5), name


def test_frozen_parameters_are_left_alone(tmp_path):
    model = make_net()
    model.conv.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    fit(tmp_path, model=model, weight_decay=0.5, ema=0.5)
    assert torch.equal(model.conv.weight, before["conv.weight"])
    assert torch.equal(model.conv.bias, before["conv.bias"])
    assert not torch.equal(model.out.weight, before["out.weight"])


def test_parameters_learn_at_their_own_multiple_of_the_learning_rate(tmp_path):
    batches = line_batches(4, 4)

    def lr_multiplier(name):
        return {"linear.weight": 0.1, "linear.bias": 0.0}[name]

    model = Line()
    weight, bias = model.linear.weight.detach().clone(), model.linear.bias.detach().clone()
    (x,) = next(iter(batches[0].epoch(0)))
    outcome = fit(
        tmp_path,
        model=model,
        batches=batches,
        objective=sum_of_outputs,
        max_epoch=1,
        lr_multiplier=lr_multiplier,
        **plain_sgd(),
    )
    assert torch.allclose(model.linear.weight, weight - 0.05 * x.mean(0), atol=1e-6)
    assert torch.equal(model.linear.bias, bias)
    assert outcome.run.events["TRAIN"][0]["Learning_rate"] == 0.5, "of a parameter that learns at it itself"


# Averaged weights


def test_the_averaged_weights_are_those_validated_and_saved_and_do_not_change_training(tmp_path):
    averaged, plain = fit(tmp_path / "averaged", ema=0.9), fit(tmp_path / "plain")
    assert_same(averaged.last["training"]["weights"], plain.last["state_dict"])
    assert not torch.equal(averaged.last["state_dict"]["out.weight"], plain.last["state_dict"]["out.weight"])
    model = make_net()
    checkpoint.restore_weights(model, averaged.last["state_dict"], "last")
    metrics = evaluate(model, classification(), make_batches()[1])
    assert metrics == averaged.last["metrics"]


# Validation


def test_validation_does_not_change_training(tmp_path):
    """Though it draws random numbers and sees a network with dropout and batch normalisation."""

    def noisy(model, batch):
        if not model.training:
            torch.rand(17)
        return classification()(model, batch)

    often = fit(tmp_path / "often", validate_interval_updates=1, objective=noisy)
    seldom = fit(tmp_path / "seldom", validate_interval_updates=1000)
    assert_same(dict(often.model.state_dict()), dict(seldom.model.state_dict()))
    assert len(often.run.events["VALID"]) == UPDATES
    assert len(seldom.run.events["VALID"]) == 1


def test_validation_is_the_mean_over_every_example_whatever_the_batches():
    model = make_net().eval()
    images, labels = make_batches()[1].tensors
    with torch.no_grad():
        logits = model(images)
    expected_loss = F.cross_entropy(logits, labels).item()
    expected_accuracy = (logits.argmax(1) == labels).double().mean().item()
    for batch_size in (1, 5, 7, 100):
        metrics = evaluate(model, classification(), InOrder(images, labels, batch_size=batch_size))
        assert metrics["loss"] == pytest.approx(expected_loss, rel=1e-5)
        assert metrics["accuracy"] == pytest.approx(expected_accuracy)


def test_evaluating_leaves_every_module_in_its_mode_also_after_an_error():
    model = make_net().train()
    model.norm.eval()  # as in a frozen trunk

    def fails(model, _batch):
        assert not model.training
        raise ZeroDivisionError

    evaluate(model, classification(), make_batches()[1])
    assert model.training
    assert not model.norm.training
    with pytest.raises(ZeroDivisionError):
        evaluate(model, fails, make_batches()[1])
    assert model.training
    assert not model.norm.training


def test_labels_are_smoothed_in_training_only():
    model = make_net()
    batch = next(iter(make_batches()[1]))
    plain, smoothed = classification(), classification(label_smoothing=0.2)
    model.eval()
    assert torch.equal(smoothed(model, batch)["loss"], plain(model, batch)["loss"])
    model.train()
    model.dropout.eval()
    logits = model(batch[0]).log_softmax(1)
    target = F.one_hot(batch[1], 3) * 0.8 + 0.2 / 3
    assert smoothed(model, batch)["loss"].item() == pytest.approx(-(logits * target).sum().item(), rel=1e-5)


# When it stops


def scripted(accuracies):
    """An objective whose validations report these accuracies, one after the other."""
    left = iter(accuracies)

    def objective(model, batch):
        if model.training:
            return flat(model, batch)
        return {"loss": torch.tensor(1.0), "accuracy": torch.tensor(next(left)), "count": 1}

    training, validation = make_batches()
    return {"objective": objective, "batches": (training, InOrder(*validation.tensors))}


def test_the_best_checkpoint_is_that_of_the_best_validation(tmp_path):
    outcome = fit(tmp_path, max_epoch=5, **scripted([0.2, 0.6, 0.4, 0.6, 0.5]))
    assert outcome.progress.best_update == outcome.best["update"] == 20  # the later of two equals
    assert outcome.best["metrics"]["accuracy"] == pytest.approx(0.6)
    assert outcome.last["update"] == 25
    assert "training" not in outcome.best


def test_of_equal_accuracies_the_lower_loss_is_the_better():
    assert by_accuracy({"accuracy": 0.5, "loss": 1.0}) > by_accuracy({"accuracy": 0.5, "loss": 1.1})
    assert by_accuracy({"accuracy": 0.6, "loss": 9.0}) > by_accuracy({"accuracy": 0.5, "loss": 1.1})


def test_patience_counts_validations_since_the_best_one(tmp_path):
    outcome = fit(tmp_path, max_epoch=9, patience=2, **scripted([0.2, 0.6, 0.5, 0.7, 0.6, 0.69, 0.9, 0.9]))
    assert outcome.progress.update == 30  # of 45: validations 5 and 6 are no better than the fourth
    assert outcome.progress.best_update == 20


def test_max_update_ends_the_run_there_and_its_schedule_too(tmp_path):
    outcome = fit(tmp_path, max_update=7, log_interval=1)
    assert outcome.progress.update == 7
    steps, rates = outcome.run.series("TRAIN", "Learning_rate")
    assert steps[-1] == 7
    assert rates[-1] == pytest.approx(0.01 * learning_rate_factor(make_settings(), 6, 7), rel=1e-5)
    assert [event["Step"] for event in outcome.run.events["VALID"]] == [5, 7]
    assert outcome.last["update"] == 7


def test_the_checkpoints_of_chosen_epochs_are_kept(tmp_path):
    whole = fit(tmp_path / "whole", save_epochs=(1, 3), schedule="constant")
    assert sorted(path.name for path in whole.folder.iterdir()) == [
        "checkpoint_best.pt",
        "checkpoint_epoch_1.pt",
        "checkpoint_epoch_3.pt",
        "checkpoint_last.pt",
    ]
    one = fit(tmp_path / "one", max_epoch=1, schedule="constant")
    kept = checkpoint.load(whole.folder / "checkpoint_epoch_1.pt")
    assert_same(kept["state_dict"], one.last["state_dict"])
    assert kept["update"] == 5
    assert kept["metrics"] == one.last["metrics"]


def test_a_checkpoint_between_two_validations_has_no_metrics_of_other_weights(tmp_path):
    outcome = fit(tmp_path, save_epochs=(1, 2, 3), validate_interval_updates=10)
    kept = [checkpoint.load(outcome.folder / f"checkpoint_epoch_{n}.pt")["metrics"] for n in (1, 2, 3)]
    assert [bool(metrics) for metrics in kept] == [False, True, True]


# Losses that are not finite


def breaks_at(update: int, value: float):
    """Classification whose training loss is `value` in update number `update`, counted from 1."""
    count = 0

    def objective(model, batch):
        nonlocal count
        sums = classification()(model, batch)
        if model.training:
            count += 1
            if count == update:
                sums["loss"] = sums["loss"] + value
        return sums

    return objective


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("update", [1, 6, 8, 15])
@pytest.mark.parametrize("log_interval", [1, 4, 100])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_in_which_update(
    tmp_path, value, update, log_interval
):
    with pytest.raises(RunFailed) as failed:
        fit(tmp_path, objective=breaks_at(update, value), log_interval=log_interval)
    message = str(failed.value)
    assert message.startswith(f"the loss is {value} in update {update} (epoch {1 + (update - 1) // 5});")
    assert "smaller --learning-rate than 0.01" in message
    best = tmp_path / checkpoint.BEST
    assert (str(best) in message) == best.exists() == (update > 5)
    last = checkpoint.load(tmp_path / checkpoint.LAST)
    assert last["update"] == (update - 1) // 5 * 5
    assert all(torch.isfinite(value).all() for value in last["state_dict"].values())


def test_weights_that_are_not_finite_are_never_saved_though_the_loss_still_was(tmp_path):
    def explode(model, batch):
        sums = classification()(model, batch)
        if model.training:
            with torch.no_grad():
                model.out.bias.fill_(math.inf)  # behind this update's loss
        return sums

    with pytest.raises(RunFailed, match="the loss is nan in update 1 "):
        fit(tmp_path, objective=explode, validate_interval_updates=1)
    assert not (tmp_path / checkpoint.BEST).exists()
    assert checkpoint.load(tmp_path / checkpoint.LAST)["update"] == 0


def test_the_checkpoint_of_an_epoch_is_never_of_weights_that_are_not_finite(tmp_path):
    with pytest.raises(RunFailed, match="in update 4 "):
        fit(
            tmp_path,
            objective=breaks_at(4, math.nan),
            log_interval=100,
            validate_interval_updates=100,
            save_epochs=(1,),
        )
    assert not (tmp_path / "checkpoint_epoch_1.pt").exists()


def test_the_log_tells_the_epoch_and_step_of_every_validation(tmp_path):
    run = fit(tmp_path).run
    events = [(event["Epoch"], event["Step"]) for event in run.events["VALID"]]
    assert events == [(1, 5), (2, 10), (3, 15)]
    assert {"Valid_loss", "Valid_accuracy"} <= set(run.events["VALID"][0])
    assert run.series("TRAIN", "Training_loss")[0] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
