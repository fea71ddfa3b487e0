"""Runs that are killed at random instants: tests/kill_and_resume.py in short."""

from pathlib import Path

import kill_and_resume as killing
import pytest
import torch
from kill_and_resume import MODES, kill_and_resume, same

from lib.runtime import checkpoint

# With images that workers read, which has most to go wrong.
VARIED = ("files",)


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=pytest.mark.slow if mode in VARIED else pytest.mark.long) for mode in MODES],
)
def test_a_run_killed_at_any_instant_and_resumed_ends_as_one_never_stopped(mode, tmp_path):
    trials = kill_and_resume(1, (), tmp_path, mode=mode)  # tests/kill_and_resume.py tries more
    assert all(trial.equal for trial in trials), trials


def test_the_comparison_of_runs_can_tell_runs_apart():
    a = {"x": [torch.zeros(2), 1], "y": None}
    assert same(a, {"x": [torch.zeros(2), 1], "y": None})
    assert not same(a, {"x": [torch.tensor([0, 1e-30]), 1], "y": None})
    assert not same(a, {"x": [torch.zeros(2), 2], "y": None})
    assert not same(a, {"x": [torch.zeros(2), 1]})


def test_another_result_and_a_file_left_over_are_differences(tmp_path):
    def write(name: str, accuracy: float) -> Path:
        folder = tmp_path / name
        content = {
            "task": "t",
            "model": {"name": "n", "config": {}},
            "flags": {},
            "state_dict": {"w": torch.ones(1)},
        }
        folder.mkdir()
        checkpoint.save(folder / checkpoint.LAST, content)
        line = f"2026-01-01 00:00:00,000 - t - INFO - [EVAL] Valid_accuracy={accuracy}\n"
        folder.with_suffix(".log").write_text(line)
        return folder

    whole, other = write("whole", 0.5), write("other", 0.5)
    assert killing._differences(other, whole) == []
    (other / ".checkpoint_last.pt.1.tmp").touch()
    worse = write("worse", 0.4)
    assert killing._differences(other, whole) == [".checkpoint_last.pt.1.tmp is left over"]
    assert "[EVAL]" in killing._differences(worse, whole)[0]
