"""Games whose Shapley values are known: from digits, from tables, from a trained network."""

import io
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lib.explain import shapley
from lib.explain.coalitions import all_coalitions
from lib.explain.games import MaskedImage
from lib.explain.players import patches
from lib.explain.scores import class_scores
from lib.explain.shapley import shapley_weights

FAMILY_SEPARATOR = "/"


@dataclass
class Game:
    """A game whose Shapley values are known, which counts what it is asked.

    Attributes:
        name: `FAMILY/NUMBER`.
        positions: (n, 2) of the players.
        value: coalitions (S, n), bool, to (S,) float64.
        references: two estimates (n,) of the truth with independent errors; the same one twice if exact.
    """

    name: str
    positions: torch.Tensor
    value: Callable[[torch.Tensor], torch.Tensor]
    references: tuple[torch.Tensor, torch.Tensor]
    asked: int = 0
    seconds: float = 0.0

    @property
    def n(self) -> int:
        return len(self.positions)

    def of_tensor(self, coalitions: torch.Tensor) -> torch.Tensor:
        """The game as `lib.explain.shapley` wants it."""
        started = time.perf_counter()
        values = self.value(coalitions)[:, None]
        self.asked += len(coalitions)
        self.seconds += time.perf_counter() - started
        return values

    def of_array(self, coalitions) -> np.ndarray:
        """The game as other packages want it: numbers that are 0 or 1, to values."""
        rows = np.atleast_2d(np.asarray(coalitions)) > 0.5
        return self.of_tensor(torch.from_numpy(rows))[:, 0].numpy()

    def squared_error(self, values: torch.Tensor) -> float:
        """The mean squared error; the product of two independent ones has no bias from the references'."""
        first, second = self.references
        return float(((values - first) * (values - second)).mean())

    def coverage(self, values: torch.Tensor, errors: torch.Tensor) -> float:
        """The share of 95 % intervals that hold the truth, allowing for what is not known of it."""
        first, second = self.references
        own = (first - second).square().mean() / 4
        inside = (values - (first + second) / 2).abs() <= shapley.HALF_WIDTH * (errors.square() + own).sqrt()
        return float(inside.double().mean())


def grid(side: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()


def table_game(name: str, table: torch.Tensor) -> Game:
    """Return the game of 2ⁿ values, n a square number, with its exact Shapley values."""
    n = round(math.log2(len(table)))
    if len(table) != 2**n or math.isqrt(n) ** 2 != n:
        raise SystemExit(f"{name}: {len(table)} values are not those of the coalitions of a square")
    place = 2 ** torch.arange(n)
    truth = shapley_weights(all_coalitions(n)).T @ table
    return Game(name, grid(math.isqrt(n)), lambda s: table[(s * place).sum(1)], (truth, truth))


def digit_games(images: int) -> Iterator[Game]:
    """Train the network of run-mnist-classification.py on digits; enumerate the log-odds of its answers."""
    from lib import models, train
    from lib.data import images as data
    from lib.data.batches import InOrder, TensorBatches
    from lib.objectives import classification
    from lib.optimisation import Settings
    from lib.runlog import RunLog

    digits = data.load("digits", "data").prepared((0.0,), (1.0,), torch.device("cpu"))
    torch.manual_seed(0)
    model = models.build("mnist-classifier")
    settings = Settings(seed=0, max_epoch=20, learning_rate=0.01, schedule="one-cycle", weight_decay=0.01)
    with tempfile.TemporaryDirectory() as folder:
        train.fit(
            model,
            classification(),
            TensorBatches(*digits.train, batch_size=32, seed=0),
            InOrder(*digits.valid),
            settings,
            log=RunLog("benchmark", stream=io.StringIO()),
            checkpoints=train.Checkpoints(Path(folder)),
        )
    model.eval()
    players = patches(28, 7)
    for number in range(images):
        image = digits.valid.images[number]
        with torch.inference_mode():
            target = int(model(image[None]).argmax())
        masked = MaskedImage(
            model, image, torch.full_like(image, 0.5), players.map, class_scores([target], "log-odds")
        )
        table = torch.cat([masked(part) for part in all_coalitions(players.count).split(1024)])[:, 0]
        yield table_game(f"digits{FAMILY_SEPARATOR}{number}", table)


def tabulated_games(files: Sequence[Path]) -> Iterator[Game]:
    for file in files:
        family = file.stem.rstrip("0123456789").rstrip("_") or file.stem
        for number, row in enumerate(np.atleast_2d(np.load(file))):
            name = f"{family}{FAMILY_SEPARATOR}{file.stem}" + (f"-{number}" if number else "")
            yield table_game(name, torch.from_numpy(row).double())


def network_games(folder: Path) -> Iterator[Game]:
    """Return the games of cifar_net on cifar_images.npz, with the reference values of cifar64_I.npz."""
    sys.path.insert(0, str(folder))
    from cifar_net import net

    model = net()
    model.load_state_dict(torch.load(folder / "cifar_net.pt", weights_only=True))
    model.eval()
    players = patches(32, 4)
    for number, image in enumerate(torch.from_numpy(np.load(folder / "cifar_images.npz")["x"])):
        halves = torch.from_numpy(np.load(folder / f"cifar64_{number}.npz")["reference_halves"])
        with torch.inference_mode():
            target = int(model(image[None]).argmax())
        masked = MaskedImage(
            model, image, torch.zeros_like(image), players.map, class_scores([target], "log-odds")
        )

        def value(coalitions, masked=masked):
            return torch.cat([masked(part) for part in coalitions.split(256)])[:, 0]

        yield Game(f"cifar64{FAMILY_SEPARATOR}{number}", grid(8), value, tuple(halves))
