"""How many threads compute, and that they leave the cores to others while they wait."""

import os

import pytest
from conftest import call

from lib.runtime import threads


def test_small_work_gets_one_thread_and_other_work_every_core_or_what_torchrun_says(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads.suitable(is_small=True) == 1
    assert threads.suitable(is_small=False) == threads.cores()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads.suitable(is_small=True) == 1
    assert threads.suitable(is_small=False) == 3


@pytest.mark.parametrize("given", [None, "5"])
def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch, given):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if given:
        monkeypatch.setenv("GOMP_SPINCOUNT", given)
    threads.share_cores_with_others()
    assert os.environ["GOMP_SPINCOUNT"] == (given or "2000")
    monkeypatch.delenv("GOMP_SPINCOUNT")


@pytest.mark.long
def test_a_run_logs_its_threads_and_its_resume_keeps_them(tmp_path):
    script, flags = (
        "run-mnist-classification.py",
        ("--dataset", "digits", "--limit", "60", "--max-epoch", "1"),
    )
    assert call(script, *flags, folder=tmp_path).run().fields["threads"] == 1
    begun = call(script, *flags, "--threads", "2", folder=tmp_path)
    assert begun.run().fields["threads"] == 2
    resumed = call(script, "--resume", "--max-epoch", "2", folder=tmp_path)
    assert resumed.run().fields["threads"] == 2
    best = "ckpts/mnist-classifier-digits/checkpoint_best.pt"
    evaluated = call(script, "--eval-only", "--restore-file", best, "--samples", "40", folder=tmp_path)
    assert evaluated.run().fields["threads"] == 1
    call(script, *flags, "--threads", "1", folder=tmp_path)
