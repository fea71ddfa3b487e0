"""The training loop: what is learnt, what is logged and saved, and that stopping changes none of it."""

import copy
import io
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import assert_same
from torch import nn
from torch.nn import functional as F

from lib import checkpoint, runlog, train
from lib.data.augment import augmentation
from lib.data.batches import InOrder, TensorBatches
from lib.errors import Interrupted, RunFailed, UserError
from lib.objectives import classification
from lib.optimisation import Settings, WeightAverage, learning_rate_factor, make_optimizer

UPDATES = 15  # of a whole run below: 3 epochs of 5


class Net(nn.Module):
    """Everything that could spoil a resume: batch normalisation, dropout, several kinds of parameters."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(48, 3)

    def forward(self, x):
        return self.out(self.dropout(F.relu(self.norm(self.conv(x)))).flatten(1))


def make_settings(**changes) -> Settings:
    return Settings(**{"seed": 3, "max_epoch": 3, "learning_rate": 0.01, "log_interval": 2} | changes)


def make_net() -> Net:
    torch.manual_seed(5)
    return Net()


def make_batches(batch_size: int = 6) -> tuple[TensorBatches, InOrder]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 1, 6, 6, generator=generator)
    labels = torch.randint(3, (40,), generator=generator)
    training = TensorBatches(
        images[:28],
        labels[:28],
        batch_size=batch_size,
        seed=3,
        transform=augmentation(("shift", "rotate", "scale", "erase")),
    )
    return training, InOrder(images[28:], labels[28:], batch_size=5)


class Outcome:
    """What a run left: its folder, its log, its progress and its network."""

    def __init__(self, folder, log, progress, model):
        self.folder, self.progress, self.model = folder, progress, model
        runs = runlog.parse(log.splitlines(keepends=True)).runs
        self.run = runs[-1] if runs else None
        self.last = checkpoint.load(folder / checkpoint.LAST) if (folder / checkpoint.LAST).exists() else None
        self.best = checkpoint.load(folder / checkpoint.BEST) if (folder / checkpoint.BEST).exists() else None


DESCRIPTION = {"task": "test", "model": {"name": "net", "config": {}}, "flags": {}}


def fit(folder: Path, *, around=None, resume=False, objective=None, model=None, batches=None, **changes):
    """Train a small network into `folder`; `changes` are for `Settings` and `fit`."""
    options = {name: changes.pop(name) for name in ("score", "rate_of") if name in changes}
    model = model or make_net()
    training, validation = batches or make_batches()
    stream = io.StringIO()
    folder.mkdir(exist_ok=True)
    progress = train.fit(
        model,
        objective or classification(),
        around(training) if around else training,
        validation,
        make_settings(**changes),
        log=runlog.RunLog("test", stream=stream),
        checkpoints=train.Checkpoints(folder, DESCRIPTION),
        resume=checkpoint.load(folder / checkpoint.LAST) if resume else None,
        **options,
    )
    return Outcome(folder, stream.getvalue(), progress, model)


class Killed(BaseException):
    """Ends a run as abruptly as this process survives it."""


class Before:
    """Batches that call `act` before update number `at` (from 0) gets its batch."""

    def __init__(self, batches, at: int, act):
        self.batches, self.at, self.act = batches, at, act

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator:
        for number, batch in enumerate(self.batches.epoch(epoch, start), epoch * len(self) + start):
            if number == self.at:
                self.act()
            yield batch


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def control_c():
    os.kill(os.getpid(), signal.SIGINT)


# Resume

RUNS = {
    "adamw, one-cycle": {},
    "adamw, averaged weights": {"ema": 0.9, "weight_decay": 0.1},
    "adam, constant, clipped": {"optimizer": "adam", "schedule": "constant", "clip_norm": 0.5},
    "sgd, averaged weights": {"optimizer": "sgd", "ema": 0.8, "learning_rate": 0.1},
    "muon": {"optimizer": "muon", "weight_decay": 0.1},
    "validated mid-epoch": {"validate_interval_updates": 4},
    "out of patience": {"patience": 1, "validate_interval_updates": 3, "learning_rate": 0.3},
}


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_run_killed_before_any_update_and_resumed_ends_bit_for_bit_as_one_never_stopped(tmp_path, changes):
    whole = fit(tmp_path / "whole", **changes)
    updates = whole.progress.update
    assert updates == UPDATES or (changes.get("patience") and 3 <= updates < UPDATES)
    for at in range(updates):
        folder = tmp_path / f"killed-{at}"
        with pytest.raises(Killed):
            fit(folder, around=lambda batches, at=at: Before(batches, at, kill), **changes)
        resumed = fit(folder, resume=True, **changes)
        assert_same(resumed.last, whole.last, f"killed before update {at}: last")
        assert_same(resumed.best, whole.best, f"killed before update {at}: best")


@pytest.mark.parametrize("changes", list(RUNS.values())[:3], ids=list(RUNS)[:3])
def test_a_run_interrupted_in_any_update_goes_on_from_that_update(tmp_path, changes):
    whole = fit(tmp_path / "whole", **changes)
    for at in range(UPDATES - 1):
        folder = tmp_path / f"terminated-{at}"
        with pytest.raises(Interrupted, match=f"after update {at + 1}: .*{checkpoint.LAST} is saved"):
            fit(folder, around=lambda batches, at=at: Before(batches, at, terminate), **changes)
        assert checkpoint.load(folder / checkpoint.LAST)["update"] == at + 1
        resumed = fit(folder, resume=True, **changes)
        assert_same(resumed.last, whole.last, f"interrupted in update {at}: last")
        assert_same(resumed.best, whole.best, f"interrupted in update {at}: best")


def test_a_run_stopped_again_and_again_ends_bit_for_bit_as_one_never_stopped(tmp_path):
    whole = fit(tmp_path / "whole")
    folder = tmp_path / "stopped"
    for at in range(UPDATES - 1):
        with pytest.raises(Interrupted):
            fit(folder, around=lambda batches, at=at: Before(batches, at, terminate), resume=at > 0)
    resumed = fit(folder, resume=True)
    assert_same(resumed.last, whole.last)
    assert_same(resumed.best, whole.best)


def test_a_finished_run_resumed_changes_nothing(tmp_path):
    whole = fit(tmp_path)
    again = fit(tmp_path, resume=True)
    assert_same(again.last, whole.last)
    assert_same(dict(again.model.state_dict()), dict(whole.model.state_dict()))
    assert again.run is None


def test_a_finished_run_goes_on_when_it_is_given_more_epochs(tmp_path):
    fit(tmp_path, schedule="constant")
    longer = fit(tmp_path, schedule="constant", resume=True, max_epoch=4)
    whole = fit(tmp_path / "whole", schedule="constant", max_epoch=4)
    assert_same(longer.last, whole.last)


def test_augmentation_and_dropout_do_change_from_update_to_update():
    images = torch.rand(6, 1, 6, 6)
    augment = augmentation(("shift", "rotate", "scale", "erase"))
    outcomes = []
    for update in (0, 1, 0):
        run = train._Run(make_net(), None, make_settings(), None, None, None, None, train.full_rate)
        run.progress.update = update
        run._seed()
        outcomes.append(nn.Dropout(0.3)(augment(images)))
    assert torch.equal(outcomes[0], outcomes[2])
    assert not torch.equal(outcomes[0], outcomes[1])


def test_a_resume_takes_the_settings_of_the_optimizer_that_it_is_given(tmp_path):
    fit(tmp_path, weight_decay=0.0)
    resumed = fit(tmp_path, resume=True, max_epoch=4, weight_decay=0.25, beta2=0.9)
    groups = resumed.last["training"]["optimizer"]["param_groups"]
    assert {group["weight_decay"] for group in groups} == {0.25, 0.0}
    assert {tuple(group["betas"]) for group in groups} == {(0.9, 0.9)}


@pytest.mark.parametrize(("before", "after"), [("adamw", "sgd"), ("sgd", "adamw"), ("adamw", "muon")])
def test_a_resume_with_another_optimizer_is_refused(tmp_path, before, after):
    fit(tmp_path, optimizer=before)
    with pytest.raises(UserError, match="another optimizer: give the same --optimizer"):
        fit(tmp_path, resume=True, max_epoch=4, optimizer=after)


def test_a_resume_with_batches_of_another_size_is_refused(tmp_path):
    fit(tmp_path)
    with pytest.raises(UserError, match="same data, --batch-size and number of ranks"):
        fit(tmp_path, resume=True, max_epoch=4, batches=make_batches(batch_size=10))


def test_a_resume_with_other_parameters_frozen_is_refused(tmp_path):
    fit(tmp_path)
    model = make_net()
    model.conv.requires_grad_(False)
    with pytest.raises(UserError):
        fit(tmp_path, resume=True, max_epoch=4, model=model)


# Signals


@pytest.mark.parametrize(("act", "number"), [(terminate, signal.SIGTERM), (control_c, signal.SIGINT)])
def test_a_signal_ends_the_run_after_its_update_with_a_checkpoint_and_its_own_number(tmp_path, act, number):
    with pytest.raises(Interrupted) as interrupted:
        fit(tmp_path, around=lambda batches: Before(batches, 6, act))
    assert interrupted.value.signal_number == number
    assert checkpoint.load(tmp_path / checkpoint.LAST)["update"] == 7


def test_a_second_ctrl_c_does_not_wait_for_the_update(tmp_path):
    def twice():
        control_c()
        control_c()

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, around=lambda batches: Before(batches, 6, twice))
    assert checkpoint.load(tmp_path / checkpoint.LAST)["update"] == 5  # of the first epoch's validation


def test_the_handlers_of_signals_are_afterwards_as_they_were(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    fit(tmp_path)
    with pytest.raises(Interrupted):
        fit(tmp_path, around=lambda batches: Before(batches, 2, terminate))
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# Learning rate


def test_one_cycle_rises_linearly_and_falls_along_half_a_cosine_to_zero():
    settings = make_settings(warmup=0.2)
    factors = [learning_rate_factor(settings, update, 100) for update in range(100)]
    for update in range(20):
        assert factors[update] == pytest.approx((update + 1) / 21)
    for update in range(20, 100):
        assert factors[update] == pytest.approx(math.cos(math.pi * (update - 20) / 160) ** 2)
    assert max(factors) == factors[20] == 1
    assert 0 < factors[99] < 0.001


@pytest.mark.parametrize("updates", [1, 2, 3, 50])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_every_learning_rate_of_one_cycle_is_above_zero_and_at_most_the_full_one(updates, warmup):
    settings = make_settings(warmup=warmup)
    factors = [learning_rate_factor(settings, update, updates) for update in range(updates)]
    assert all(0 < factor <= 1 for factor in factors)


def test_the_constant_schedule_is_constant():
    settings = make_settings(schedule="constant")
    assert {learning_rate_factor(settings, update, 10) for update in range(10)} == {1.0}


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


def test_a_network_with_nothing_to_train_is_refused():
    model = make_net().requires_grad_(False)
    with pytest.raises(UserError, match="nothing is left to train"):
        make_optimizer(model, make_settings(), train.full_rate)


def test_parameters_learn_at_their_own_multiple_of_the_learning_rate(tmp_path):
    batches = line_batches(4, 4)

    def rate_of(name):
        return {"linear.weight": 0.1, "linear.bias": 0.0}[name]

    model = Line()
    weight, bias = model.linear.weight.detach().clone(), model.linear.bias.detach().clone()
    (x,) = next(iter(batches[0].epoch(0)))
    fit(
        tmp_path,
        model=model,
        batches=batches,
        objective=sum_of_outputs,
        max_epoch=1,
        rate_of=rate_of,
        **plain_sgd(),
    )
    assert torch.allclose(model.linear.weight, weight - 0.05 * x.mean(0), atol=1e-6)
    assert torch.equal(model.linear.bias, bias)


# Averaged weights


def test_the_average_of_weights_is_the_weighted_sum_that_its_decays_say():
    torch.manual_seed(0)
    model = nn.BatchNorm1d(3)  # with buffers
    visited, statistics = [model.weight.detach().double().clone()], [model.running_mean.double().clone()]
    average = WeightAverage(model, decay=0.7)
    for update in range(30):
        with torch.no_grad():
            model.weight.normal_()
            model.running_mean.normal_()
            model.num_batches_tracked += 1
        visited.append(model.weight.detach().double().clone())
        statistics.append(model.running_mean.double().clone())
        average.update(model, update)
    decays = [min(0.7, (1 + update) / (10 + update)) for update in range(30)]
    assert decays[0] == 0.1
    assert decays[-1] == 0.7
    shares = [math.prod(decays)]
    shares += [(1 - decays[update]) * math.prod(decays[update + 1 :]) for update in range(30)]
    assert sum(shares) == pytest.approx(1)
    for averaged, values in ((average.model.weight, visited), (average.model.running_mean, statistics)):
        expected = sum(share * value for share, value in zip(shares, values, strict=True))
        assert torch.allclose(averaged.double(), expected, atol=1e-6)
    assert average.model.num_batches_tracked == 30


def test_the_averaged_weights_are_those_validated_and_saved_and_do_not_change_training(tmp_path):
    averaged, plain = fit(tmp_path / "averaged", ema=0.9), fit(tmp_path / "plain")
    assert_same(averaged.last["training"]["weights"], plain.last["state_dict"])
    assert not torch.equal(averaged.last["state_dict"]["out.weight"], plain.last["state_dict"]["out.weight"])
    model = make_net()
    checkpoint.restore_weights(model, averaged.last["state_dict"], "last")
    metrics = train.evaluate(model, classification(), make_batches()[1])
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
        metrics = train.evaluate(model, classification(), InOrder(images, labels, batch_size=batch_size))
        assert metrics["loss"] == pytest.approx(expected_loss, rel=1e-5)
        assert metrics["accuracy"] == pytest.approx(expected_accuracy)


def test_evaluating_leaves_every_module_in_its_mode_also_after_an_error():
    model = make_net().train()
    model.norm.eval()  # as in a frozen trunk

    def fails(model, _batch):
        assert not model.training
        raise ZeroDivisionError

    train.evaluate(model, classification(), make_batches()[1])
    assert model.training
    assert not model.norm.training
    with pytest.raises(ZeroDivisionError):
        train.evaluate(model, fails, make_batches()[1])
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
    assert train.by_accuracy({"accuracy": 0.5, "loss": 1.0}) > train.by_accuracy(
        {"accuracy": 0.5, "loss": 1.1}
    )
    assert train.by_accuracy({"accuracy": 0.6, "loss": 9.0}) > train.by_accuracy(
        {"accuracy": 0.5, "loss": 1.1}
    )


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


def test_a_kill_at_any_save_loses_no_checkpoint_of_an_epoch(tmp_path, monkeypatch):
    save = checkpoint.save
    written = []
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: (written.append(1), save(*arguments)))
    whole = fit(tmp_path / "whole", save_epochs=(1, 2, 3))
    assert len(written) >= 8
    for survived in range(len(written)):
        left = iter(range(survived))

        def save_or_die(*arguments, left=left):
            if next(left, None) is None:
                raise Killed
            save(*arguments)

        folder = tmp_path / str(survived)
        monkeypatch.setattr(checkpoint, "save", save_or_die)
        with pytest.raises(Killed):
            fit(folder, save_epochs=(1, 2, 3))
        monkeypatch.setattr(checkpoint, "save", save)
        resumed = fit(folder, save_epochs=(1, 2, 3), resume=(folder / checkpoint.LAST).exists())
        assert_same(resumed.last, whole.last)
        for epoch in (1, 2, 3):
            assert checkpoint.load(folder / f"checkpoint_epoch_{epoch}.pt")["update"] == 5 * epoch


def test_a_new_run_takes_the_place_of_an_older_one_in_the_same_folder_at_once(tmp_path):
    fit(tmp_path)
    with pytest.raises(Killed):
        fit(tmp_path, around=lambda batches: Before(batches, 0, kill))
    assert checkpoint.load(tmp_path / checkpoint.LAST)["update"] == 0


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
    assert message.startswith(f"the loss is {value} in update {update} (epoch {(update - 1) // 5});")
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
    assert events == [(0, 5), (1, 10), (2, 15)]
    assert {"Valid_loss", "Valid_accuracy"} <= set(run.events["VALID"][0])
    assert run.series("TRAIN", "Training_loss")[0] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
