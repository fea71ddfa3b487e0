"""Updates: several optimizers in one run, and exact resumes of it."""

import math
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, assert_same, environment
from points_gan import (
    LATENT,
    PARTS,
    alternate,
    fit_gan,
    losses,
    make_gan,
    make_points,
    make_update,
)
from torch import nn
from training import UPDATES, Before, Killed, kill, make_net, make_settings, terminate

from lib.runtime import checkpoint, distributed
from lib.runtime.errors import Interrupted, RunFailed, UserError
from lib.training.optimisation import learning_rate_factor
from lib.training.pending import PendingSums
from lib.training.update import Minimiser, SeveralOptimizers


def copy_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, torch.Tensor]) -> list[str]:
    return [name for name, value in module.state_dict().items() if not torch.equal(value, before[name])]


# What a generator and its discriminator learn


def test_a_generator_learns_to_put_its_points_among_the_real_ones(tmp_path):
    distances = fit_gan(tmp_path, max_epoch=60, learning_rate=0.02).run.series("VALID", "Valid_loss")[1]
    assert distances[0] > 3
    assert min(distances) < 0.5


@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_the_updates_are_those_of_a_loop_written_by_hand(tmp_path, clip_norm):
    """Which freezes the discriminator while the generator learns, and has PyTorch's optimizers."""
    mine, its = make_gan(), make_gan().train()
    fit_gan(tmp_path, model=mine, clip_norm=clip_norm, ema=0.5)
    optimizers = {part: torch.optim.AdamW(getattr(its, part).parameters(), weight_decay=0) for part in PARTS}
    training, _ = make_points()
    for update in range(UPDATES):
        distributed.seed((3 * 1_000_003 + update) * 1_009, torch.device("cpu"))
        (real,) = next(training.epoch(*divmod(update, 5)))
        latent = torch.randn(len(real), LATENT)
        for part, rate in (("discriminator", 0.5), ("generator", 1.0)):
            own = getattr(its, part)
            its.requires_grad_(False)
            own.requires_grad_(True)
            (losses(its, real, latent, part) / len(real)).backward()
            if clip_norm:
                nn.utils.clip_grad_norm_(own.parameters(), clip_norm)
            for group in optimizers[part].param_groups:
                group["lr"] = 0.01 * learning_rate_factor(make_settings(), update, UPDATES) * rate
            optimizers[part].step()
            optimizers[part].zero_grad()
    for name, value in its.state_dict().items():
        assert torch.allclose(mine.state_dict()[name], value, atol=1e-6), name


def test_each_half_of_an_update_changes_its_own_network_alone_and_leaves_no_gradient(tmp_path):
    halves = []

    def watched(model, batch, optimizers):
        for part, other in (("discriminator", "generator"), ("generator", "discriminator")):
            before = {each: [p.detach().clone() for p in getattr(model, each).parameters()] for each in PARTS}
            loss = losses(model, batch[0], torch.randn(len(batch[0]), LATENT), part)
            optimizers[part].minimise(loss, len(batch[0]))
            same = {
                each: [
                    torch.equal(p, old)
                    for p, old in zip(getattr(model, each).parameters(), before[each], strict=True)
                ]
                for each in PARTS
            }
            assert not any(same[part])
            assert all(same[other])
            assert all(p.grad is None for p in model.parameters())
            halves.append(part)
        return {"loss": loss, "count": len(batch[0])}

    fit_gan(tmp_path, function=watched)
    assert len(halves) == 2 * UPDATES


def test_optimizers_may_differ_in_kind_and_rate(tmp_path):
    model = make_gan()
    settings = make_settings(schedule="constant", learning_rate=0.5)
    optimizers = {
        "generator": Minimiser(
            model,
            replace(settings, optimizer="sgd", momentum=0.0, learning_rate=0.25),
            parts=("generator",),
        ),
        "discriminator": Minimiser(model, settings, parts=("discriminator",), lr_multiplier=lambda _: 0.0),
    }
    before = copy_of(model)
    update = SeveralOptimizers(alternate, optimizers)
    fit_gan(tmp_path, model=model, update=update, max_epoch=1, schedule="constant")
    assert type(optimizers["generator"].optimizer) is torch.optim.SGD
    assert {group["lr"] for group in optimizers["generator"].optimizer.param_groups} == {0.25}
    assert all(name.startswith("generator") for name in moved(model, before))
    saved = checkpoint.load(tmp_path / checkpoint.LAST)["training"]["optimizer"]["optimizers"]
    assert {name: each["kind"] for name, each in saved.items()} == {
        "generator": "sgd",
        "discriminator": "adamw",
    }


def test_several_losses_of_one_graph_are_differentiated_before_any_step(tmp_path):
    """As an autoencoder and its critic do, whose losses share one pass."""
    model, expected = make_gan(plain=True), make_gan(plain=True)
    latent = torch.randn(6, LATENT)

    def pair(model):
        points = model.generator(latent)
        return points.square().sum(), model.discriminator(points).sum()

    def together(model, _batch, optimizers):
        first, second = pair(model)
        optimizers["generator"].add_gradient(first, 6, retain_graph=True)
        optimizers["generator"].add_gradient(-second, 3, retain_graph=True)
        optimizers["discriminator"].add_gradient(second, 6)
        for each in optimizers.values():
            each.step()
        return {"loss": first, "count": 6}

    changes = {"optimizer": "sgd", "momentum": 0.0, "schedule": "constant", "max_update": 1}
    fit_gan(tmp_path, model=model, function=together, **changes)
    first, second = pair(expected)
    for objective, part, rate in (
        (first / 6 - second / 3, expected.generator, 0.01),
        (second / 6, expected.discriminator, 0.005),
    ):
        weights = list(part.parameters())
        for weight, slope in zip(
            weights, torch.autograd.grad(objective, weights, retain_graph=True), strict=True
        ):
            weight.data -= rate * slope
    for mine, its in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(mine, its, atol=1e-7)


def test_under_autocast_each_half_sees_the_weights_that_the_other_has_just_changed(tmp_path):
    seen = []

    def function(model, batch, optimizers):
        (real,) = batch
        assert torch.is_autocast_enabled("cpu")
        loss = losses(model, real, torch.randn(len(real), LATENT), "discriminator")
        optimizers["discriminator"].minimise(loss, len(real))
        model.discriminator.eval()
        after = model.discriminator(real)
        assert after.dtype == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            seen.append((after, model.discriminator(real)))
        model.discriminator.train()
        sums = alternate(model, batch, optimizers)
        return {"loss": sums["loss"], "count": sums["count"]}

    fit_gan(tmp_path, function=function, amp=True, learning_rate=0.5)
    assert len(seen) == UPDATES
    assert all(torch.equal(after, fresh) for after, fresh in seen)


def test_autocast_ends_where_a_gradient_is_taken_and_muon_multiplies():
    moved = []
    for amp in (False, True):
        model = make_net()
        minimiser = Minimiser(model, make_settings(optimizer="muon"))
        with distributed.autocast(torch.device("cpu"), amp):
            minimiser.add_gradient(sum((p * p.detach()).sum() for p in model.parameters()), 1)
            minimiser.step()
        moved.append(copy_of(model))
    assert_same(*moved)


@pytest.mark.slow
def test_compiled_networks_learn_what_the_others_do(tmp_path):
    plain = fit_gan(tmp_path / "plain", model=make_gan(plain=True), max_epoch=1)
    compiled = fit_gan(tmp_path / "compiled", model=make_gan(plain=True), max_epoch=1, compile=True)
    for name, value in plain.model.state_dict().items():
        assert torch.allclose(compiled.model.state_dict()[name], value, atol=1e-5), name


# Stopped and resumed


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}, {"optimizer": "sgd", "clip_norm": 0.5}], ids=str)
def test_a_run_stopped_in_any_update_and_resumed_ends_bit_for_bit_as_one_never_stopped(tmp_path, changes):
    whole = fit_gan(tmp_path / "whole", **changes)
    for at in range(UPDATES - 1):
        for act, error in ((terminate, Interrupted), (kill, Killed)):
            folder = tmp_path / f"{act.__name__}-{at}"
            with pytest.raises(error):
                fit_gan(folder, around=lambda batches, at=at, act=act: Before(batches, at, act), **changes)
            stopped = checkpoint.load(folder / checkpoint.LAST)["update"]
            assert stopped == (at + 1 if act is terminate else at // 5 * 5)
            resumed = fit_gan(folder, resume=True, **changes)
            assert_same(resumed.last, whole.last, f"{act.__name__} at {at}: last")
            assert_same(resumed.best, whole.best, f"{act.__name__} at {at}: best")


@pytest.mark.slow
def test_a_process_ended_by_sigkill_in_the_middle_of_an_epoch_is_resumed_to_the_same_weights(tmp_path):
    whole = fit_gan(tmp_path / "whole", ema=0.9)
    folder = tmp_path / "killed"
    killed = subprocess.run(
        [sys.executable, ROOT / "tests" / "points_gan.py", folder, "kill", "8"],
        env=environment(PYTHONPATH=str(ROOT)),
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert checkpoint.load(folder / checkpoint.LAST)["update"] == 5
    resumed = fit_gan(folder, resume=True, ema=0.9)
    assert_same(resumed.last, whole.last)
    assert_same(resumed.best, whole.best)
    assert_same(copy_of(resumed.model), copy_of(whole.model))


def test_the_averaged_weights_are_of_both_networks(tmp_path):
    averaged, plain = fit_gan(tmp_path / "averaged", ema=0.9), fit_gan(tmp_path / "plain")
    assert_same(averaged.last["training"]["weights"], plain.last["state_dict"])
    for part in PARTS:
        name = f"{part}.0.weight"
        assert not torch.equal(averaged.last["state_dict"][name], plain.last["state_dict"][name])


# What is logged, and what stops a run


def test_the_training_line_has_the_mean_of_every_sum(tmp_path):
    found = []

    def function(model, batch, optimizers):
        sums = alternate(model, batch, optimizers)
        found.append([sums["loss"].item(), sums["Discriminator_loss"].item(), sums["count"]])
        return sums

    run = fit_gan(tmp_path, function=function, log_interval=100).run
    for number, event in enumerate(run.events["TRAIN"]):
        loss, loss_d, count = (sum(each) for each in zip(*found[5 * number : 5 * number + 5], strict=True))
        assert event["Training_loss"] == pytest.approx(loss / count, rel=1e-5)
        assert event["Discriminator_loss"] == pytest.approx(loss_d / count, rel=1e-5)
    assert list(run.events["TRAIN"][0]) == [
        "Epoch",
        "Step",
        "Training_loss",
        "Discriminator_loss",
        "Learning_rate",
        "Examples_per_second",
    ]


@pytest.mark.parametrize("name", ["loss", "Discriminator_loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [1, 8])
def test_a_loss_of_either_that_is_not_finite_stops_the_run_and_says_in_which_update(
    tmp_path, name, value, at
):
    updates = 0

    def function(model, batch, optimizers):
        nonlocal updates
        updates += 1
        sums = alternate(model, batch, optimizers)
        return sums | {name: sums[name] + (value if updates == at else 0)}

    with pytest.raises(RunFailed) as failed:
        fit_gan(tmp_path, function=function)
    message = str(failed.value)
    assert message.startswith(f"the {name} is {value} in update {at} (epoch {(at - 1) // 5 + 1}); last good")
    assert "smaller --learning-rate than 0.01" in message
    assert checkpoint.load(tmp_path / checkpoint.LAST)["update"] == (at - 1) // 5 * 5


def test_the_first_of_several_sums_that_are_not_finite_is_named():
    pending = PendingSums()
    for update in range(3):
        pending.add(
            {
                "other": torch.tensor(math.nan if update else 0.0),
                "loss": torch.tensor(math.inf if update else 0.0),
                "count": 2,
            }
        )
    taken = pending.take(torch.device("cpu"))
    assert taken.examples == 6
    assert taken.first_not_finite() == (1, "loss", math.inf)
    assert len(pending) == 0


def test_sums_whose_names_change_are_an_error():
    pending = PendingSums()
    pending.add({"loss": torch.tensor(1.0), "penalty": torch.tensor(1.0), "count": 1})
    with pytest.raises(ValueError, match="this update has the sums"):
        pending.add({"loss": torch.tensor(1.0), "count": 1})


# Parameters and their owners


def test_a_parameter_of_two_optimizers_or_of_none_and_a_part_that_is_not_there_are_errors(tmp_path):
    model, settings = make_gan(), make_settings()
    every = Minimiser(model, settings)
    generator = Minimiser(model, settings, parts=("generator",))
    with pytest.raises(ValueError, match=r"generator\.0\.weight belongs to both optimizers all and own"):
        SeveralOptimizers(alternate, {"all": every, "own": generator})
    with pytest.raises(ValueError, match=r"discriminator\.0\.weight belongs to no optimizer"):
        fit_gan(tmp_path, model=model, update=SeveralOptimizers(alternate, {"generator": generator}))
    for part in ("critic", "gen", "generator.0.w"):
        with pytest.raises(ValueError, match=f"Gan has no parameters in '{part}'"):
            Minimiser(model, settings, parts=(part,))
    one = Minimiser(model, settings, parts=("generator.0", "discriminator.3.bias"))
    assert list(one.parameters) == ["generator.0.weight", "discriminator.3.bias"]


def test_a_multiplier_beside_an_update_which_would_never_see_it_is_an_error(tmp_path):
    model = make_gan()
    with pytest.raises(ValueError, match="give lr_multiplier to the optimizers of the update"):
        fit_gan(tmp_path, model=model, update=make_update(model), lr_multiplier=lambda _: 0.1)


def test_a_part_whose_every_parameter_is_frozen_has_nothing_to_train():
    model = make_gan()
    model.generator.requires_grad_(False)
    with pytest.raises(UserError, match="nothing is left to train"):
        Minimiser(model, make_settings(), parts=("generator",))
