#!/usr/bin/env python3
"""Error of Shapley estimators at equal numbers of model evaluations, on games whose Shapley values are known.

    digits      16 patches of digits, a network trained here in seconds, all 65,536 coalitions enumerated
    --tables    .npy files of 2ⁿ values, or of several such rows; index Σ 2ᵃ over the present players a
    --network   64 patches of small photographs, a network and reference values from a folder

Ours (odd-gp, and for comparison permutation and per-patch) against shap, Captum and shapiq: those that are
installed, at the settings that suit them best here. Printed is the median over images of the mean squared
error, each the mean over seeds, and the share of our 95 % intervals that hold the truth.
"""

import argparse
import contextlib
import functools
import io
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

from lib.explain import shapley  # noqa: E402
from lib.explain.coalitions import all_coalitions  # noqa: E402
from lib.explain.games import MaskedImage  # noqa: E402
from lib.explain.players import patches  # noqa: E402
from lib.explain.scores import class_scores  # noqa: E402
from lib.explain.shapley import Plan, shapley_weights  # noqa: E402

OURS = ("odd-gp", "permutation", "per-patch")
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


def ours(name: str) -> Callable:
    def estimate(game: Game, budget: int, seed: int):
        found = shapley.ESTIMATORS[name](game.of_tensor, game.positions, Plan(budget, seed=seed))
        return found.values[0], found.standard_errors[0]

    return estimate


def shap_permutation(game: Game, budget: int, seed: int) -> np.ndarray:
    import shap

    masker = shap.maskers.Independent(np.zeros((1, game.n)))
    explainer = shap.PermutationExplainer(game.of_array, masker, seed=seed)
    return explainer(np.ones((1, game.n)), max_evals=max(budget, 2 * game.n + 1), silent=True).values[0]


def shap_kernel(game: Game, budget: int, seed: int) -> np.ndarray:
    import shap

    np.random.seed(seed)
    explainer = shap.KernelExplainer(game.of_array, np.zeros((1, game.n)))
    full = np.ones((1, game.n))
    return explainer.shap_values(full, nsamples=budget - 2, l1_reg=False, silent=True)[0]


def shap_partition(game: Game, budget: int, seed: int) -> np.ndarray:
    import shap
    from scipy.cluster.hierarchy import linkage

    np.random.seed(seed)
    masker = shap.maskers.Partition(
        np.zeros((1, game.n)), clustering=linkage(game.positions.numpy(), "complete")
    )
    explainer = shap.PartitionExplainer(game.of_array, masker)
    return explainer(np.ones((1, game.n)), max_evals=budget, silent=True).values[0]


def captum(method: str, samples: Callable[[int, int], int]) -> Callable:
    def estimate(game: Game, budget: int, seed: int) -> np.ndarray:
        from captum import attr

        torch.manual_seed(seed)
        np.random.seed(seed)
        explainer = getattr(attr, method)(lambda inputs: torch.from_numpy(game.of_array(inputs)))
        ones = torch.ones(1, game.n, dtype=torch.float64)
        return explainer.attribute(ones, n_samples=samples(budget, game.n))[0].double().numpy()

    return estimate


def shapiq(method: str, **options) -> Callable:
    def estimate(game: Game, budget: int, seed: int) -> np.ndarray:
        from shapiq import approximator

        explainer = getattr(approximator, method)(n=game.n, random_state=seed, **options)
        found = explainer.approximate(budget=budget, game=game.of_array)
        return np.array([found[(player,)] for player in range(game.n)])

    return estimate


PEERS = {
    "shap PermutationExplainer": shap_permutation,
    "shap KernelExplainer": shap_kernel,
    "shap PartitionExplainer": shap_partition,
    "Captum ShapleyValueSampling": captum(
        "ShapleyValueSampling", lambda budget, n: max(1, (budget - 1) // n)
    ),
    "Captum KernelShap": captum("KernelShap", lambda budget, _n: budget),
    "shapiq KernelSHAP": shapiq("KernelSHAP", pairing_trick=True),
    "shapiq SVARM": shapiq("SVARM"),
    "shapiq kADDSHAP": shapiq("kADDSHAP", max_order=2, pairing_trick=True),
    "shapiq RegressionMSR": shapiq("RegressionMSR"),
    "shapiq ProxySHAP": shapiq("ProxySHAP"),
}


@functools.cache
def say_once(text: str) -> None:
    print(text, file=sys.stderr)


def measure(game: Game, name: str, budget: int, seeds: int) -> dict | None:
    """Return the mean over seeds of what an estimator achieves on a game; None where it cannot run."""
    errors, coverages, seconds, asked = [], [], [], []
    for seed in range(seeds):
        game.asked, game.seconds, started = 0, 0.0, time.perf_counter()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
                warnings.simplefilter("ignore")
                found = ours(name)(game, budget, seed) if name in OURS else PEERS[name](game, budget, seed)
        except (ImportError, AttributeError) as error:
            say_once(f"{name} is not installed: {error}")
            return None
        except (ValueError, np.linalg.LinAlgError) as error:
            say_once(f"{name} cannot run on {game.name} at {budget}: {error}")
            return None
        seconds.append(time.perf_counter() - started - game.seconds)
        asked.append(game.asked)
        values = found[0] if name in OURS else torch.as_tensor(found, dtype=torch.float64)
        errors.append(game.squared_error(values))
        if name in OURS:
            coverages.append(game.coverage(*found))
    return {
        "mse": statistics.mean(errors),
        "coverage": statistics.mean(coverages) if coverages else None,
        "seconds": statistics.median(seconds),
        "evaluations": statistics.mean(asked),
    }


def compare(family: str, games: Sequence[Game], names: Sequence[str], budget: int, seeds: int) -> list[dict]:
    """Return a record for each estimator: medians over the games of a family."""
    rows = []
    for name in names:
        found = [measure(game, name, budget, seeds) for game in games]
        if None in found:
            continue
        coverages = [each["coverage"] for each in found if each["coverage"] is not None]
        rows.append(
            {
                "game": family,
                "players": games[0].n,
                "evaluations": budget,
                "asked": statistics.mean(each["evaluations"] for each in found),
                "estimator": name,
                "median_mse": statistics.median(each["mse"] for each in found),
                "coverage": statistics.mean(coverages) if coverages else None,
                "seconds": statistics.median(each["seconds"] for each in found),
            }
        )
    return rows


def table(family: str, rows: Sequence[dict], budgets: Sequence[int]) -> list[str]:
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    cells = {(row["estimator"], row["evaluations"]): row for row in rows}

    def line(title: str, texts: Iterator[str]) -> str:
        return f"| {title} | {' | '.join(texts)} |"

    lines = [
        line(f"{family}, {rows[0]['players']} players", (str(budget) for budget in budgets)),
        f"|---|{'---:|' * len(budgets)}",
    ]
    for name in names:
        found = (cells.get((name, budget)) for budget in budgets)
        lines.append(line(name, (f"{row['median_mse']:.1e}" if row else "–" for row in found)))
    own = [cells.get((OURS[0], budget)) for budget in budgets]
    if None in own:
        return lines
    others = [row for row in rows if row["estimator"] != OURS[0]]
    if others:
        best = [
            min(row["median_mse"] for row in others if row["evaluations"] == budget) for budget in budgets
        ]
        ratios = (f"{row['median_mse'] / other:.2f}" for row, other in zip(own, best, strict=True))
        lines.append(line("odd-gp / best of the others", ratios))
    lines.append(line("odd-gp: coverage of 95 % intervals", (f"{row['coverage']:.3f}" for row in own)))
    lines.append(line("odd-gp: own seconds", (f"{row['seconds']:.2f}" for row in own)))
    return lines


def promises(family: str, games: Sequence[Game], seeds: int, most: int) -> dict:
    """Return how often the stop by tolerance keeps its promise, from tolerances loose to tight.

    Of each run it is asked whether at least 95 % of its players are within the tolerance, and of all runs
    together which share of players is.
    """
    kept, inside, within = [], [], []
    for game in games:
        spread = float(game.references[0].std())
        for share in (0.6, 0.3, 0.15):
            for seed in range(seeds):
                plan = Plan(most, tolerance=share * spread, seed=seed)
                found = shapley.odd_gp(game.of_tensor, game.positions, plan)
                if not found.converged:
                    continue
                first, second = game.references
                error = (found.values[0] - (first + second) / 2).abs()
                known = math.sqrt(float((first - second).square().mean())) / 2  # of the references themselves
                share_within = float((error <= plan.tolerance + known).double().mean())
                kept.append(share_within >= 0.95)
                within.append(share_within == 1)
                inside.append(share_within)
    return {
        "game": family,
        "runs": len(kept),
        "kept": statistics.mean(kept),
        "players_within": statistics.mean(inside),
        "all_within": statistics.mean(within),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--tables",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE.npy",
        help="2ⁿ values of each of some games",
    )
    add("--network", type=Path, metavar="DIR", help="holds cifar_net.py, cifar_net.pt, cifar64_0.npz, …")
    add("--no-digits", action="store_true", help="leave out the game that needs no file")
    add("--digits", type=int, default=5, metavar="N", help="images of it; default: 5")
    add("--evaluations", type=int, nargs="+", default=[128, 256, 512, 1024, 2048, 4096], metavar="N")
    add("--estimators", nargs="+", choices=(*OURS, *PEERS), default=[*OURS, *PEERS], metavar="NAME")
    add("--seeds", type=int, default=3, metavar="N", help="of each cell; default: 3")
    add("--promises", action="store_true", help="see, too, whether the stop by tolerance keeps its promise")
    add("--json", type=Path, metavar="FILE", help="write the records, too")
    options = parser.parse_args()
    games = [] if options.no_digits else list(digit_games(options.digits))
    games += tabulated_games(options.tables)
    games += network_games(options.network) if options.network else []
    families: dict[str, list[Game]] = {}
    for game in games:
        families.setdefault(game.name.partition(FAMILY_SEPARATOR)[0], []).append(game)
    names = list(dict.fromkeys([OURS[0], *options.estimators]))
    records = []
    for family, members in families.items():
        rows = []
        for budget in options.evaluations:
            rows += compare(family, members, names, budget, options.seeds)
        print("\n".join(table(family, rows, options.evaluations)), "\n", flush=True)
        records += rows
        if options.promises:
            found = promises(family, members, options.seeds, 2**13)
            print(
                f"Stop by tolerance, {family}: {found['runs']} runs; of {found['kept']:.1%} at least 95 % of "
                f"the players are within it, of {found['all_within']:.1%} all, "
                f"{found['players_within']:.1%} of all players.\n",
                flush=True,
            )
            records.append(found)
    print(f"{options.seeds} seeds, {torch.get_num_threads()} thread(s), torch {torch.__version__}")
    if options.json:
        options.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
