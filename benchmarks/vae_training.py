#!/usr/bin/env python3
"""Train the tutorials' variational autoencoder an epoch: as the tutorials do, and as this project does.

Both train the same network (784-400-20-400-784, ReLU; pytorch/examples `vae`) with Adam at 1e-3 on the same
images for the same number of updates. The tutorials' way: a `DataLoader` over PIL images and `ToTensor`,
a sigmoid before the binary cross-entropy, `.item()` in every step. Ours: `lib.training.fit` over one tensor,
without its validation. The ways are timed in turn, because the speed of a machine comes and goes.
"""

import io
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common

common.before_torch()

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from benchmarks import epochs  # noqa: E402
from lib import cli  # noqa: E402
from lib.data import images  # noqa: E402
from lib.models.vae import Vae  # noqa: E402
from lib.runtime.runlog import RunLog  # noqa: E402
from lib.training.fit import Checkpoints, fit  # noqa: E402
from lib.training.optimisation import Settings  # noqa: E402
from lib.training.validation import by_recency  # noqa: E402
from lib.training.variational import VariationalSettings, evidence  # noqa: E402

SEED, LEARNING_RATE, HIDDEN, LATENT = 42, 1e-3, 400, 20
QUICK = {"dataset": "digits", "repetitions": 1}


def make_parser() -> cli.Parser:
    parser = common.make_parser("vae_training.py", __doc__, repetitions=3)
    add = parser.add_argument_group("what is trained").add_argument
    epochs.add_data_flags(add)
    add("-bs", "--batch-size", type=cli.integer(2), default=128, metavar="N", help="images per update")
    return parser


class TutorialVae(nn.Module):
    """The network of pytorch/examples, `vae/main.py`, line by line."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, HIDDEN)
        self.fc21 = nn.Linear(HIDDEN, LATENT)
        self.fc22 = nn.Linear(HIDDEN, LATENT)
        self.fc3 = nn.Linear(LATENT, HIDDEN)
        self.fc4 = nn.Linear(HIDDEN, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h1 = F.relu(self.fc1(x.view(-1, 784)))
        mu, logvar = self.fc21(h1), self.fc22(h1)
        z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


def tutorial_epoch(data: images.ImageData, batch_size: int) -> Callable[[], None]:
    """Return a function that trains one epoch as the tutorials do."""
    loader = DataLoader(epochs.TutorialImages(data.train), batch_size=batch_size, shuffle=True)
    torch.manual_seed(SEED)
    model = TutorialVae()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)

    def epoch() -> None:
        model.train()
        running_loss = 0.0
        for inputs, _ in loader:
            optimizer.zero_grad()
            decoded, mu, logvar = model(inputs)
            bce = F.binary_cross_entropy(decoded, inputs.view(-1, 784), reduction="sum")
            kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
            loss = bce + kl
            loss.backward()
            running_loss += loss.item()
            optimizer.step()

    return epoch


def our_network() -> Vae:
    """Return this project's autoencoder with layers of the tutorials' sizes."""
    torch.manual_seed(SEED)
    return Vae(1, 28, latent=LATENT, hidden=HIDDEN, depth=1, activation="relu")


def our_epoch(
    data: images.ImageData, batch_size: int, folder: Path, validations: list[epochs.Seconds]
) -> Callable[[], None]:
    """Return a function that trains one epoch by `fit`, and adds the seconds of its validation to a list."""
    # The tutorials divide neither loss nor gradient by the batch, which Adam does not notice.
    settings = Settings(
        seed=SEED, max_epoch=1, learning_rate=LEARNING_RATE, optimizer="adam", schedule="constant"
    )
    training = data.train.shuffled((), lambda _names: None, batch_size=batch_size, seed=SEED)

    def epoch() -> None:
        validation = epochs.TimedValidation(data.valid.rows(torch.arange(100)).in_order())
        fit(
            our_network(),
            evidence(VariationalSettings()),
            training,
            validation,
            settings,
            log=RunLog("benchmark", stream=io.StringIO()),
            checkpoints=Checkpoints(folder),
            score=by_recency,
        )
        validations.append(validation.seconds)

    return epoch


def compare(options: SimpleNamespace, data: images.ImageData) -> dict:
    """Time both ways; return a row of the table."""
    ours = partial(our_epoch, data, options.batch_size)
    row = epochs.compare(tutorial_epoch(data, options.batch_size), ours, options.repetitions)
    return {
        "batch_size": options.batch_size,
        "images": len(data.train.labels),
        "threads": options.threads,
        **row,
    }


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    data = images.load(options.dataset, options.data_dir, limit=options.limit)
    row = compare(options, data)
    print("\n".join(epochs.table([row])))
    print(
        f"\n{options.dataset}, {row['images']:,} images an epoch, {options.threads} thread(s), "
        f"torch {torch.__version__}; medians of {options.repetitions}."
    )
    common.write_json(options, row)


if __name__ == "__main__":
    cli.run(main)
