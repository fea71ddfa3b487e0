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
from lib.explain.shapley import shapley_weights
from lib.explain.targets import class_scores
from lib.runtime.errors import UserError

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


def fewest_evaluations(n: int) -> int:
    """Return the fewest evaluations from which odd-gp estimates the values of n players.

    It asks about pairs of complements: of an odd number of evaluations, one would not be used.
    """
    least = shapley.FEWEST_EVALUATIONS_A_PLAYER * n
    return least + least % 2


def grid(side: int) -> torch.Tensor:
    return torch.cartesian_prod(torch.arange(side), torch.arange(side)).double()


def table_game(name: str, table: torch.Tensor) -> Game:
    """Return the game of 2ⁿ values, n a square number, with its exact Shapley values."""
    n = round(math.log2(max(1, len(table))))
    if table.dim() != 1 or len(table) != 2**n or n < 4 or math.isqrt(n) ** 2 != n:
        raise UserError(
            f"{name}: {len(table)} values are not those of 2ⁿ coalitions of n = 4, 9, 16, … players"
        )
    place = 2 ** torch.arange(n)
    truth = shapley_weights(all_coalitions(n)).T @ table
    return Game(name, grid(math.isqrt(n)), lambda s: table[(s * place).sum(1)], (truth, truth))


def digit_games(images: int, *, patch: int = 7, epochs: int = 20) -> Iterator[Game]:
    """Train the network of run-mnist-classification.py on digits; enumerate the log-odds of its answers.

    Args:
        images: the number of games, one of each image.
        patch: side of the square patches that play, of images of 28 pixels.
        epochs: how long the network is trained.
    """
    from lib import models
    from lib.data import images as data
    from lib.runtime.runlog import RunLog
    from lib.training.fit import Checkpoints, fit
    from lib.training.objectives import classification
    from lib.training.optimisation import Settings

    digits = data.load("digits", "data").prepared((0.0,), (1.0,), torch.device("cpu"))
    if images > len(digits.valid.labels):
        raise UserError(f"there are {len(digits.valid.labels)} digits to explain, not {images}")
    torch.manual_seed(0)
    model = models.build("mnist-classifier")
    settings = Settings(seed=0, max_epoch=epochs, learning_rate=0.01, schedule="one-cycle", weight_decay=0.01)
    with tempfile.TemporaryDirectory() as folder:
        fit(
            model,
            classification(),
            digits.train.shuffled((), lambda _names: None, batch_size=32, seed=0),
            digits.valid.in_order(),
            settings,
            log=RunLog("benchmark", stream=io.StringIO()),
            checkpoints=Checkpoints(Path(folder)),
        )
    model.eval()
    players = patches(28, patch)
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
    """Return the games whose values stand in files, one or several in each."""
    for file in files:
        family = file.stem.rstrip("0123456789").rstrip("_") or file.stem
        try:
            rows = np.atleast_2d(np.load(file))
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"{file} is not an array of numbers that NumPy saved: {error}") from None
        for number, row in enumerate(rows):
            name = f"{family}{FAMILY_SEPARATOR}{file.stem}" + (f"-{number}" if number else "")
            yield table_game(name, torch.from_numpy(row).double())


def network_games(folder: Path) -> Iterator[Game]:
    """Return the games of cifar_net on cifar_images.npz, with the reference values of cifar64_I.npz."""
    sys.path.insert(0, str(folder))
    try:
        from cifar_net import net
    except ImportError as error:
        raise UserError(f"{folder} holds no cifar_net.py that says what the network is: {error}") from None
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
