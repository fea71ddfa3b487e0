#!/usr/bin/env python3
"""Time what is kept from one epoch, or one start, to the next: features of a frozen trunk, decoded folders.

    features    an epoch of training the head alone, its trunk computing every image anew, against the same on
                features that were computed once; in turn in one process, medians
    folder      the first start on a folder of images, which decodes them, against the second, which finds
                them in the cache; with --data-dir

Both epochs are of `lib.training.fit.fit`, as the training script calls it; validation is left out.
"""

import io
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lib import cli, models  # noqa: E402
from lib.data import image_files  # noqa: E402
from lib.data.batches import InOrder, TensorBatches  # noqa: E402
from lib.data.preprocessing import Preprocessing  # noqa: E402
from lib.models import transfer  # noqa: E402
from lib.runtime.errors import UserError  # noqa: E402
from lib.runtime.runlog import RunLog  # noqa: E402
from lib.training.fit import Checkpoints, fit  # noqa: E402
from lib.training.objectives import classification  # noqa: E402
from lib.training.optimisation import Settings  # noqa: E402

SEED = 42
CLASSES = 10
QUICK = {"images": 8, "size": 64, "batch_size": 4, "repetitions": 1}


def make_parser() -> cli.Parser:
    parser = common.make_parser("frozen_trunk.py", __doc__, repetitions=3)
    add = parser.add_argument_group("what is timed").add_argument
    add(
        "--model",
        "--network",
        default="resnet18",
        metavar="NAME",
        help="train the head of this network, one of torchvision's or of this project's",
    )
    add("--images", type=cli.integer(2), default=160, metavar="N", help="train on N random images")
    add("--size", type=cli.integer(8, 1024), default=224, metavar="N", help="make the images N pixels large")
    add("--batch-size", type=cli.integer(2), default=32, metavar="N", help="train on N images at once")
    add("--data-dir", metavar="DIR", help="time two starts on this folder of images, too")
    return parser


def frozen(name: str, size: int) -> nn.Module:
    """Return a new network of which only the head is to be trained.

    Raises:
        UserError: it has no features that could be kept, or takes no images of that size.
    """
    torch.manual_seed(SEED)
    model = models.build(name, classes=CLASSES, channels=3, size=size)
    if not transfer.has_features(model):
        kind = type(transfer.head_of(model)[1]).__name__
        raise UserError(
            f"the head of {name} is a {kind} and not a linear layer, so it has no features to keep: "
            "take a network such as resnet18 or mobilenet_v2"
        )
    transfer.freeze(model)
    try:
        with torch.no_grad():
            model(torch.zeros(2, 3, size, size))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{name} does not take images of {size} px: {error}") from None
    return model


def epoch_of(model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int, folder: str) -> None:
    """Train `model` for an epoch on inputs (N, …), with its checkpoints in a folder."""
    fit(
        model,
        classification(),
        TensorBatches(inputs, labels, batch_size=batch_size, seed=SEED),
        InOrder(inputs[:2], labels[:2]),
        Settings(seed=SEED, max_epoch=1, learning_rate=1e-3, log_interval=1_000_000),
        log=RunLog("benchmark", stream=io.StringIO()),
        checkpoints=Checkpoints(Path(folder)),
    )


def compare_epochs(options: SimpleNamespace) -> dict:
    """Time epochs with and without kept features."""
    model = frozen(options.model, options.size)
    images = torch.randn(options.images, 3, options.size, options.size)
    labels = torch.arange(options.images) % CLASSES
    kept: list[tuple[Tensor, Tensor]] = []
    once, _ = common.timed(
        lambda: kept.append(transfer.features(model, InOrder(images, labels, batch_size=128)))
    )
    ((features, _),) = kept
    seconds: dict[str, list[float]] = {"recomputed": [], "kept": []}
    with tempfile.TemporaryDirectory() as folder:
        epochs: dict[str, Callable[[], None]] = {
            name: partial(epoch_of, model, inputs, labels, options.batch_size, folder)
            for name, inputs in (("recomputed", images), ("kept", features))
        }
        for _ in range(options.repetitions):
            for name, epoch in epochs.items():
                seconds[name].append(common.timed(epoch)[0])
    recomputed, with_kept = (statistics.median(seconds[name]) for name in seconds)
    what = f"epoch of {options.model}, {options.images:,} images of {options.size} px"
    return {
        "what": what,
        "anew": recomputed,
        "kept": with_kept,
        "once": once,
        "ratio": recomputed / with_kept,
    }


def compare_starts(data_dir: str) -> dict:
    """Time loading a folder with an empty cache, and again."""
    how = Preprocessing(32, 3, mean=(0.0,) * 3, std=(1.0,) * 3, resize=32)
    loaded: list[int] = []

    def start() -> None:
        data = image_files.load(data_dir, how, valid_fraction=0.1)
        loaded.append(len(data.train.labels) + len(data.valid.labels))

    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        first, second = (common.timed(start)[0] for _ in range(2))
    what = f"start on a folder of {loaded[0]:,} images"
    return {"what": what, "anew": first, "kept": second, "once": first, "ratio": first / second}


def table(rows: Sequence[dict]) -> str:
    lines = ["| | anew, s | kept, s | ratio | kept once, s |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {row['what']} | {row['anew']:.2f} | {row['kept']:.3f} | {row['ratio']:.1f} | {row['once']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    rows = [compare_epochs(options)]
    if options.data_dir:
        rows.append(compare_starts(options.data_dir))
    print(table(rows))
    print(
        f"\n{options.threads} thread(s), torch {torch.__version__}; medians of {options.repetitions} epochs."
    )
    common.write_json(options, rows)


if __name__ == "__main__":
    cli.run(main)
