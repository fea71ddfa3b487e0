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
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from shapley_games import FAMILY_SEPARATOR, Game, digit_games, network_games, tabulated_games  # noqa: E402

from lib.explain import shapley  # noqa: E402
from lib.explain.shapley import Plan  # noqa: E402

OURS = ("odd-gp", "permutation", "per-patch")


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
