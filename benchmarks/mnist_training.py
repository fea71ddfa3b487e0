#!/usr/bin/env python3
"""Time one epoch of mnist-classifier: the loop of the tutorials against `lib.training.fit.fit`.

Both train the same network with AdamW at the same batch size, on the same images and the same number of
threads, in turn in one process:

    tutorial    torchvision's MNIST, ToTensor on every image, a shuffling DataLoader, plain nn.Conv2d,
                AdamW as it comes, loss.item() in every step
    this        the training script's way, with its log and its checkpoints (in a temporary folder)

Loading the data is left out of both. Validation is timed apart: as a share of the training it follows.
"""

import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402
from torchvision.datasets import MNIST  # noqa: E402
from torchvision.transforms import ToTensor  # noqa: E402

from lib import cli, models  # noqa: E402
from lib.data import images  # noqa: E402
from lib.data.batches import InOrder  # noqa: E402
from lib.models.shifted_convolution import ShiftedConv2d  # noqa: E402
from lib.runtime.runlog import RunLog  # noqa: E402
from lib.training.fit import Checkpoints, fit  # noqa: E402
from lib.training.objectives import classification  # noqa: E402
from lib.training.optimisation import Settings  # noqa: E402

SEED = 42
LEARNING_RATE = 1e-3
DATASETS = ("mnist", "fashion-mnist", "kmnist", "digits")  # what the network takes: grey, of ten classes
QUICK = {"dataset": "digits", "batch_size": [64, 128], "repetitions": 1}


def make_parser() -> cli.Parser:
    parser = common.make_parser("mnist_training.py", __doc__, repetitions=3)
    add = parser.add_argument_group("what is trained").add_argument
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
    add(
        "-bs",
        "--batch-size",
        type=cli.integer(2),
        nargs="+",
        default=[16, 128],
        metavar="N",
        help="compare at each of these batch sizes",
    )
    return parser


class TutorialImages(MNIST):
    """Images in memory as torchvision's MNIST gives them out: one PIL image and one `ToTensor` an example."""

    def __init__(self, split: images.Split):
        self.data = (split.images[:, 0] * 255).round().to(torch.uint8)
        self.targets = split.labels
        self.transform, self.target_transform = ToTensor(), None


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


def tutorial_epoch(data: images.ImageData, batch_size: int) -> Callable[[], None]:
    """Return a function that trains one epoch as the tutorials do."""
    loader = DataLoader(TutorialImages(data.train), batch_size=batch_size, shuffle=True)
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

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        # fit() draws the batches one after the other, with the network's work between them.
        wall, cpu = time.perf_counter(), time.process_time()
        yield from self.batches
        self.seconds = time.perf_counter() - wall, time.process_time() - cpu


def our_epoch(
    data: images.ImageData, batch_size: int, folder: Path, validations: list[tuple[float, float]]
) -> Callable[[], None]:
    """Return a function that trains one epoch with `lib.training.fit.fit`.

    It adds the seconds of validation to a list.
    """
    settings = Settings(
        seed=SEED, max_epoch=1, learning_rate=LEARNING_RATE, schedule="constant", weight_decay=0.01
    )
    training = data.train.shuffled((), lambda _names: None, batch_size=batch_size, seed=SEED)

    def epoch() -> None:
        validation = TimedValidation(data.valid.in_order())
        fit(
            make_network(library_convolutions=False),
            classification(),
            training,
            validation,
            settings,
            log=RunLog("benchmark", stream=io.StringIO()),
            checkpoints=Checkpoints(folder),
        )
        validations.append(validation.seconds)

    return epoch


def compare(options: SimpleNamespace, data: images.ImageData, batch_size: int) -> dict:
    """Time both ways `options.repetitions` times in turn; return the medians, as a row of the table."""
    times: dict[str, list[tuple[float, float]]] = {"tutorial": [], "this": []}
    validations: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        ways = {
            "tutorial": tutorial_epoch(data, batch_size),
            "this": our_epoch(data, batch_size, Path(folder), validations),
        }
        for _ in range(options.repetitions):
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
        "batch_size": batch_size,
        "examples": len(data.train.labels),
        "threads": options.threads,
        **medians,
        "wall_ratio": medians["tutorial_wall_seconds"] / medians["this_wall_seconds"],
        "cpu_ratio": medians["tutorial_cpu_seconds"] / medians["this_cpu_seconds"],
        "validation_share": validation / medians["this_wall_seconds"],
    }


def table(rows: Sequence[dict]) -> list[str]:
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


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    data = images.load(options.dataset, options.data_dir, limit=options.limit)
    rows = []
    for batch_size in options.batch_size:
        rows.append(compare(options, data, batch_size))
        print("\n".join(table(rows)) if len(rows) == 1 else table(rows)[-1], flush=True)
    print(
        f"\n{options.dataset}, {rows[0]['examples']:,} examples an epoch, {options.threads} thread(s), "
        f"torch {torch.__version__}; "
        f"medians of {options.repetitions}; a validation is of {len(data.valid.labels):,} images."
    )
    common.write_json(options, rows)


if __name__ == "__main__":
    cli.run(main)
