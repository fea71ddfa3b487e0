"""An epoch of training as the tutorials do and as this project does, timed in turn; used by *_training.py."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.transforms import ToTensor

from benchmarks import common
from lib import cli
from lib.data import images
from lib.data.batches import InOrder

DATASETS = ("mnist", "fashion-mnist", "kmnist", "digits")  # grey drawings of ten classes
WAYS = ("tutorial", "this")

Epoch = Callable[[], None]
Seconds = tuple[float, float]  # by the clock, and of the CPU


def add_data_flags(add: Callable[..., Any]) -> None:
    """Add the flags that choose the images."""
    add(
        "--dataset",
        choices=DATASETS,
        default="mnist",
        help="train on these images; digits need no download",
    )
    add(
        "--data-dir",
        default="data",
        metavar="DIR",
        help="read MNIST/raw/… in this folder; what is missing there is downloaded",
    )
    add("--limit", type=cli.integer(1), metavar="N", help="train on a fixed stratified subset of N images")


class TutorialImages(MNIST):
    """Images in memory as torchvision's MNIST gives them out: one PIL image and one `ToTensor` an example."""

    def __init__(self, split: images.Split):
        self.data = (split.images[:, 0] * 255).round().to(torch.uint8)
        self.targets = split.labels
        self.transform, self.target_transform = ToTensor(), None


class TimedValidation:
    """Validation batches that note the wall-clock and CPU seconds of a validation, its network included."""

    def __init__(self, batches: InOrder):
        self.batches = batches
        self.seconds = (0.0, 0.0)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # fit() draws the batches one after the other, with the network's work between them.
        wall, cpu = time.perf_counter(), time.process_time()
        yield from self.batches
        self.seconds = time.perf_counter() - wall, time.process_time() - cpu


def compare(
    tutorial: Epoch, ours: Callable[[Path, list[Seconds]], Epoch], repetitions: int
) -> dict[str, float]:
    """Time both ways in turn, because the speed of a machine comes and goes; return medians and ratios.

    Args:
        tutorial: trains an epoch as the tutorials do.
        ours: function from a folder for checkpoints, and a list to which the seconds of each validation are
            added, to a function that trains an epoch by `lib.training.fit.fit`.
        repetitions: how often.
    """
    times: dict[str, list[Seconds]] = {name: [] for name in WAYS}
    validations: list[Seconds] = []
    with tempfile.TemporaryDirectory() as folder:
        ways = dict(zip(WAYS, (tutorial, ours(Path(folder), validations)), strict=True))
        for _ in range(repetitions):
            for name, epoch in ways.items():
                times[name].append(common.timed(epoch))
    # fit() validates once, at the end of the epoch: what is left of its time is training.
    times["this"] = [
        (wall - validation[0], cpu - validation[1])
        for (wall, cpu), validation in zip(times["this"], validations, strict=True)
    ]
    medians = {
        f"{name}_{unit}_seconds": statistics.median(pair[index] for pair in pairs)
        for name, pairs in times.items()
        for index, unit in enumerate(("wall", "cpu"))
    }
    validation = statistics.median(wall for wall, _ in validations)
    return {
        **medians,
        "wall_ratio": medians["tutorial_wall_seconds"] / medians["this_wall_seconds"],
        "cpu_ratio": medians["tutorial_cpu_seconds"] / medians["this_cpu_seconds"],
        "validation_share": validation / medians["this_wall_seconds"],
    }


def table(rows: Sequence[dict]) -> list[str]:
    """Return the lines of a table of rows of `compare`, to which `batch_size` was added."""
    lines = [
        "| batch size | tutorial, s (CPU) | this, s (CPU) | ratio (CPU) | validation / training |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        pairs = [f"{row[f'{name}_wall_seconds']:.2f} ({row[f'{name}_cpu_seconds']:.2f})" for name in WAYS]
        pairs.append(f"{row['wall_ratio']:.2f} ({row['cpu_ratio']:.2f})")
        lines.append(f"| {row['batch_size']} | {' | '.join(pairs)} | {row['validation_share']:.1%} |")
    return lines
