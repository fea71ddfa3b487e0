#!/usr/bin/env python3
"""Kill training runs at random instants, resume each, and compare the end with a run never stopped.

kill_and_resume.py --kills 50 --dataset digits --max-epoch 6 --validate-interval-updates 9

Every run is a process of its own, ended by SIGKILL, which no program can catch. The weights, the state of
the optimizer and the counters must be equal bit for bit. Flags unknown here go to the training script.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "run-mnist-classification.py"
FILES = ("checkpoint_last.pt", "checkpoint_best.pt")
sys.path.insert(0, str(ROOT))


class Trial(NamedTuple):
    """One kill: when, counted from the first checkpoint; of which update the last one was; and the end."""

    seconds: float
    update: int | None
    half_written: int
    equal: bool

    def row(self, number: int) -> str:
        update = "no file yet" if self.update is None else self.update
        equal = "yes" if self.equal else "NO"
        return f"| {number} | {self.seconds:.2f} | {update} | {self.half_written} | {equal} |"


HEADER = (
    "| kill | s of training | checkpoint of update | half-written files left | equal |\n|---|---|---|---|---|"
)


def start(folder: Path, *flags: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, SCRIPT, "--checkpoint-dir", folder, *flags],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen) -> None:
    if process.wait():
        raise SystemExit(f"training ended with status {process.returncode}")


def wait_for(path: Path, process: subprocess.Popen) -> float:
    """Return how long it took until `path` was there or `process` had ended."""
    began = time.monotonic()
    while process.poll() is None and not path.exists():
        time.sleep(0.002)
    return time.monotonic() - began


def train_whole(folder: Path, flags: Sequence[str]) -> tuple[float, float]:
    """Train without a stop; return the seconds until the first checkpoint, and from then on to the last."""
    process = start(folder, *flags)
    before = wait_for(folder / FILES[0], process)
    first = (folder / FILES[0]).stat().st_mtime
    finish(process)
    return before, (folder / FILES[0]).stat().st_mtime - first


def kill_and_resume(kills: int, flags: Sequence[str], folder: Path, seed: int = 0) -> list[Trial]:
    """Train once to the end, then `kills` times until a random instant, and to the end by `--resume`.

    One kill in ten falls before the first checkpoint; the others while the run trains and saves.

    Args:
        kills: how many.
        flags: for the training script.
        folder: for the checkpoints; empty.
        seed: of the instants.
    """
    whole = folder / "whole"
    before, training = train_whole(whole, flags)
    instants = random.Random(seed)
    trials = []
    while len(trials) < kills:
        run = folder / f"killed-{len(trials)}"
        early = len(trials) % 10 == 9
        seconds = instants.uniform(0, before if early else training)
        process = start(run, *flags)
        if not early:
            wait_for(run / FILES[0], process)
        if killed_after(seconds, process):
            trials.append(_resumed(run, whole, flags, seconds if not early else seconds - before))
        else:  # it was done sooner than the first one
            shutil.rmtree(run)
    return trials


def killed_after(seconds: float, process: subprocess.Popen) -> bool:
    """Kill `process` in so many seconds; False if it ended before."""
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait() == -signal.SIGKILL


def _resumed(folder: Path, whole: Path, flags: Sequence[str], seconds: float) -> Trial:
    from lib.runtime import checkpoint

    last = folder / FILES[0]
    update = checkpoint.load(last)["update"] if last.exists() else None
    half_written = len(list(folder.glob(".*"))) if folder.exists() else 0
    finish(start(folder, *flags, "--resume"))
    equal = all(same(*(_weights_and_state(run / name) for run in (folder, whole))) for name in FILES)
    return Trial(seconds, update, half_written, equal)


def _weights_and_state(path: Path) -> dict:
    """All of a checkpoint but the run's name and the flags that name folders."""
    from lib.runtime import checkpoint

    content = checkpoint.load(path)
    return {key: content.get(key) for key in ("state_dict", "training", "epoch", "update", "metrics")}


def same(a, b) -> bool:
    """Tell whether nested dictionaries, lists and tensors are equal bit for bit."""
    import torch

    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return a == b


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50, help="how many; default: 50")
    parser.add_argument("--kill-seed", type=int, default=0, help="of the instants; default: 0")
    options, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = kill_and_resume(options.kills, flags, Path(folder), options.kill_seed)
    print(HEADER)
    for number, trial in enumerate(trials, 1):
        print(trial.row(number))
    different = sum(not trial.equal for trial in trials)
    print(f"\n{len(trials)} kills, {different} of them ended at other weights")
    sys.exit(different > 0)


if __name__ == "__main__":
    main()
