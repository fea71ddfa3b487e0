#!/usr/bin/env python3
"""Time what is kept from one epoch, or one start, to the next: features of a frozen trunk, decoded folders.

    features    an epoch of training the head alone, its trunk computing every image anew, against the same on
                features that were computed once; in turn in one process, medians
    folder      the first start on a folder of images, which decodes them, against the second, which finds
                them in the cache; with --data-dir

Both epochs are of `lib.train.fit`, as the training script calls it; validation is left out.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from lib import models, train  # noqa: E402
from lib.data import image_files  # noqa: E402
from lib.data.batches import InOrder, TensorBatches  # noqa: E402
from lib.data.preprocessing import Preprocessing  # noqa: E402
from lib.models import transfer  # noqa: E402
from lib.objectives import classification  # noqa: E402
from lib.optimisation import Settings  # noqa: E402
from lib.runlog import RunLog  # noqa: E402

SEED = 42
CLASSES = 10


def epoch_of(model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int) -> Callable[[Path], None]:
    """Return what trains `model` for an epoch on inputs (N, …), with its checkpoints in a folder."""
    settings = Settings(seed=SEED, max_epoch=1, learning_rate=1e-3, log_interval=1_000_000)

    def epoch(folder: Path) -> None:
        train.fit(
            model,
            classification(),
            TensorBatches(inputs, labels, batch_size=batch_size, seed=SEED),
            InOrder(inputs[:2], labels[:2]),
            settings,
            log=RunLog("benchmark", stream=io.StringIO()),
            checkpoints=train.Checkpoints(folder),
        )

    return epoch


def compare_epochs(options: argparse.Namespace) -> dict:
    """Time epochs with and without kept features."""
    torch.manual_seed(SEED)
    model = models.build(options.model, classes=CLASSES, channels=3, size=options.size)
    transfer.freeze(model)
    images = torch.randn(options.images, 3, options.size, options.size)
    labels = torch.arange(options.images) % CLASSES
    started = time.perf_counter()
    features, _ = transfer.features(model, InOrder(images, labels, batch_size=128))
    once = time.perf_counter() - started
    epochs = {
        "recomputed": epoch_of(model, images, labels, options.batch_size),
        "kept": epoch_of(model, features, labels, options.batch_size),
    }
    seconds: dict[str, list[float]] = {name: [] for name in epochs}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.repeats):
            for name, epoch in epochs.items():
                started = time.perf_counter()
                epoch(Path(folder))
                seconds[name].append(time.perf_counter() - started)
    recomputed, kept = (statistics.median(seconds[name]) for name in epochs)
    what = f"epoch of {options.model}, {options.images:,} images of {options.size} px"
    return {"what": what, "anew": recomputed, "kept": kept, "once": once, "ratio": recomputed / kept}


def compare_starts(options: argparse.Namespace) -> dict:
    """Time loading a folder with an empty cache, and again."""
    how = Preprocessing(32, 3, mean=(0.0,) * 3, std=(1.0,) * 3, resize=32)
    seconds = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for _ in range(2):
            started = time.perf_counter()
            data = image_files.load(options.data_dir, how, valid_fraction=0.1)
            seconds.append(time.perf_counter() - started)
            images = len(data.train.labels) + len(data.valid.labels)
            del data
    first, second = seconds
    what = f"start on a folder of {images:,} images"
    return {"what": what, "anew": first, "kept": second, "once": first, "ratio": first / second}


def table(rows: list[dict]) -> str:
    lines = ["| | anew, s | kept, s | ratio | kept once, s |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| {row['what']} | {row['anew']:.2f} | {row['kept']:.3f} | {row['ratio']:.0f} | {row['once']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="resnet18", help="the network (default: %(default)s)")
    parser.add_argument("--images", type=int, default=160, help="how many (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="their side in pixels (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="epochs of each kind (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--data-dir", metavar="DIR", help="a folder of images, to time its starts too")
    parser.add_argument("--json", metavar="FILE", help="write the rows as records, too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [compare_epochs(options)]
    if options.data_dir:
        rows.append(compare_starts(options))
    print(table(rows))
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
