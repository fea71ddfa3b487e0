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
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from benchmarks import epochs  # noqa: E402
from lib import cli, models  # noqa: E402
from lib.data import images  # noqa: E402
from lib.models.shifted_convolution import ShiftedConv2d  # noqa: E402
from lib.runtime.runlog import RunLog  # noqa: E402
from lib.training.fit import Checkpoints, fit  # noqa: E402
from lib.training.objectives import classification  # noqa: E402
from lib.training.optimisation import Settings  # noqa: E402

SEED = 42
LEARNING_RATE = 1e-3
QUICK = {"dataset": "digits", "batch_size": [64, 128], "repetitions": 1}


def make_parser() -> cli.Parser:
    parser = common.make_parser("mnist_training.py", __doc__, repetitions=3)
    add = parser.add_argument_group("what is trained").add_argument
    epochs.add_data_flags(add)
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
    loader = DataLoader(epochs.TutorialImages(data.train), batch_size=batch_size, shuffle=True)
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


def our_epoch(
    data: images.ImageData, batch_size: int, folder: Path, validations: list[epochs.Seconds]
) -> Callable[[], None]:
    """Return a function that trains one epoch with `lib.training.fit.fit`.

    It adds the seconds of validation to a list.
    """
    settings = Settings(
        seed=SEED, max_epoch=1, learning_rate=LEARNING_RATE, schedule="constant", weight_decay=0.01
    )
    training = data.train.shuffled((), lambda _names: None, batch_size=batch_size, seed=SEED)

    def epoch() -> None:
        validation = epochs.TimedValidation(data.valid.in_order())
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
    """Time both ways; return a row of the table."""
    ours = partial(our_epoch, data, batch_size)
    row = epochs.compare(tutorial_epoch(data, batch_size), ours, options.repetitions)
    return {
        "batch_size": batch_size,
        "examples": len(data.train.labels),
        "threads": options.threads,
        **row,
    }


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    data = images.load(options.dataset, options.data_dir, limit=options.limit)
    rows = []
    for batch_size in options.batch_size:
        rows.append(compare(options, data, batch_size))
        print("\n".join(epochs.table(rows)) if len(rows) == 1 else epochs.table(rows)[-1], flush=True)
    print(
        f"\n{options.dataset}, {rows[0]['examples']:,} examples an epoch, {options.threads} thread(s), "
        f"torch {torch.__version__}; "
        f"medians of {options.repetitions}; a validation is of {len(data.valid.labels):,} images."
    )
    common.write_json(options, rows)


if __name__ == "__main__":
    cli.run(main)
