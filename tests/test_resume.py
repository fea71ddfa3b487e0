"""That stopping a run, however and whenever, changes nothing of what it ends at."""

import os
import signal

import pytest
import torch
from conftest import assert_same
from torch import nn
from training import (
    UPDATES,
    Before,
    Killed,
    control_c,
    fit,
    kill,
    make_batches,
    make_net,
    make_settings,
    terminate,
)

from lib.data.augment import augmentation
from lib.runtime import checkpoint, interrupts
from lib.runtime.errors import Interrupted, UserError
from lib.training.fit import _Run

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
        run = _Run(make_net(), None, None, make_settings(), None, None, None, None)
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


@pytest.mark.parametrize("number", interrupts.ENDINGS)
def test_a_signal_ends_the_run_after_its_update_with_a_checkpoint_and_its_own_number(tmp_path, number):
    def send():
        os.kill(os.getpid(), number)

    with pytest.raises(Interrupted) as interrupted:
        fit(tmp_path, around=lambda batches: Before(batches, 6, send))
    assert interrupted.value.signal_number == number
    assert checkpoint.load(tmp_path / checkpoint.LAST)["update"] == 7


def test_a_signal_that_nohup_ignores_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        whole = fit(
            tmp_path, around=lambda batches: Before(batches, 6, lambda: os.kill(os.getpid(), signal.SIGHUP))
        )
    finally:
        signal.signal(signal.SIGHUP, before)
    assert whole.progress.update == 15


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
