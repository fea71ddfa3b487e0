#!/usr/bin/env python3
"""Time one epoch of mnist-classifier: the loop of the tutorials against `lib.train.fit`.

Both train the same network with AdamW at the same batch size, on the same number of threads, in turn in one
process:

    tutorial    torchvision's MNIST, ToTensor on every image, a shuffling DataLoader, plain nn.Conv2d,
                AdamW as it comes, loss.item() in every step
    this        the training script's way, with its log and its checkpoints (in a temporary folder)

Loading the data is left out of both. Validation is timed apart: as a share of the training it follows.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import nn  # noqa: E402

from lib import models, train  # noqa: E402
from lib.data import images  # noqa: E402
from lib.data.batches import InOrder, TensorBatches  # noqa: E402
from lib.models.digits import ShiftedConv2d  # noqa: E402
from lib.objectives import classification  # noqa: E402
from lib.optimisation import Settings  # noqa: E402
from lib.runlog import RunLog  # noqa: E402

SEED = 42
LEARNING_RATE = 1e-3


def make_network(library_convolutions: bool) -> nn.Module:
    torch.manual_seed(SEED)
    model = models.build("mnist-classifier")
    if library_convolutions:
        for block in model.layers.values():
            convolution = nn.Conv2d(1, 1, kernel_size=2)
            convolution.load_state_dict(block.conv.state_dict())
            block.conv = convolution
    assert library_convolutions != any(isinstance(module, ShiftedConv2d) for module in model.modules())
    return model


def tutorial_epoch(data_dir: Path, limit: int | None, batch_size: int) -> Callable[[], None]:
    """Return what trains one epoch as the tutorials do."""
    from torch.utils.data import DataLoader, Subset
    from torchvision.datasets import MNIST
    from torchvision.transforms import ToTensor

    dataset = MNIST(str(data_dir), train=True, transform=ToTensor())
    subset = Subset(dataset, range(limit)) if limit else dataset
    loader = DataLoader(subset, batch_size=batch_size, shuffle=True)
    model = make_network(library_convolutions=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    criterion = nn.CrossEntropyLoss()

    def epoch() -> None:
        model.train()
        running_loss = 0.0
        for inputs, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()

    return epoch


class TimedValidation:
    """Validation batches that note the wall-clock and CPU seconds of a validation, its network included."""

    def __init__(self, batches: InOrder):
        self.batches = batches
        self.seconds = (0.0, 0.0)

    def __iter__(self):
        # fit() draws the batches one after the other, with the network's work between them.
        wall, cpu = time.perf_counter(), time.process_time()
        yield from self.batches
        self.seconds = time.perf_counter() - wall, time.process_time() - cpu


def our_epoch(
    data: images.ImageData, batch_size: int, folder: Path, validations: list[tuple[float, float]]
) -> Callable[[], None]:
    """Return what trains one epoch with `lib.train.fit`; it adds the seconds of validation to a list."""
    settings = Settings(
        seed=SEED, max_epoch=1, learning_rate=LEARNING_RATE, schedule="constant", weight_decay=0.01
    )
    training = TensorBatches(*data.train, batch_size=batch_size, seed=SEED)

    def epoch() -> None:
        validation = TimedValidation(InOrder(*data.valid))
        train.fit(
            make_network(library_convolutions=False),
            classification(),
            training,
            validation,
            settings,
            log=RunLog("benchmark", stream=io.StringIO()),
            checkpoints=train.Checkpoints(folder),
        )
        validations.append(validation.seconds)

    return epoch


def timed(epoch: Callable[[], None]) -> tuple[float, float]:
    """Return the wall-clock and the CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    epoch()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(options: argparse.Namespace, data: images.ImageData, batch_size: int) -> dict:
    """Time both ways `options.repetitions` times in turn; return the medians, as a row of the table."""
    times: dict[str, list[tuple[float, float]]] = {"tutorial": [], "this": []}
    validations: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "tutorial": tutorial_epoch(options.data_dir, options.limit, batch_size),
            "this": our_epoch(data, batch_size, Path(folder), validations),
        }
        for _ in range(options.repetitions):
            for name, epoch in ways.items():
                times[name].append(timed(epoch))
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
        "batch_size": batch_size,
        "examples": len(data.train.labels),
        "threads": options.threads,
        **medians,
        "wall_ratio": medians["tutorial_wall_seconds"] / medians["this_wall_seconds"],
        "cpu_ratio": medians["tutorial_cpu_seconds"] / medians["this_cpu_seconds"],
        "validation_share": validation / medians["this_wall_seconds"],
    }


def table(rows: list[dict]) -> list[str]:
    lines = [
        "| batch size | tutorial, s (CPU) | this, s (CPU) | ratio (CPU) | validation / training |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        pairs = [
            f"{row[f'{name}_wall_seconds']:.2f} ({row[f'{name}_cpu_seconds']:.2f})"
            for name in ("tutorial", "this")
        ]
        pairs.append(f"{row['wall_ratio']:.2f} ({row['cpu_ratio']:.2f})")
        lines.append(f"| {row['batch_size']} | {' | '.join(pairs)} | {row['validation_share']:.1%} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data-dir", type=Path, default=Path("data"), help="holds MNIST/raw/…; default: data"
    )
    parser.add_argument("-bs", "--batch-size", type=int, nargs="+", default=[16, 128], metavar="N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--repetitions", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--limit", type=int, metavar="N", help="so many training examples, for a quick look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows of the table, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = images.load("mnist", options.data_dir, limit=options.limit)
    rows = []
    for batch_size in options.batch_size:
        rows.append(compare(options, data, batch_size))
        print("\n".join(table(rows)) if len(rows) == 1 else table(rows)[-1], flush=True)
    print(
        f"\n{rows[0]['examples']:,} examples an epoch, {options.threads} thread(s), "
        f"torch {torch.__version__}; "
        f"medians of {options.repetitions}; a validation is of {len(data.valid.labels):,} images."
    )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
