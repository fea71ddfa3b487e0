#!/usr/bin/env python3
"""Error of Shapley estimators at equal numbers of model evaluations, on games whose Shapley values are known.

    digits      16 patches of digits, a network trained here in seconds, all 65,536 coalitions enumerated
    --tables    .npy files of 2ⁿ values, or of several such rows; index Σ 2ᵃ over the present players a
    --network   64 patches of small photographs, a network and reference values from a folder

Ours (odd-gp, and for comparison permutation and per-patch) against shap, Captum and shapiq: those that are
installed, with paired sampling where they have it. Of shapiq, all estimators of Shapley values take part that
the installed version brings. Printed is the median over images of the mean squared error, each the mean over
seeds, and the share of our 95 % intervals that hold the truth.
"""

import contextlib
import functools
import inspect
import io
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.shapley_games import (  # noqa: E402
    FAMILY_SEPARATOR,
    Game,
    digit_games,
    fewest_evaluations,
    network_games,
    tabulated_games,
)
from lib import cli  # noqa: E402
from lib.explain import shapley  # noqa: E402
from lib.explain.shapley import Plan  # noqa: E402
from lib.runtime.errors import RunFailed, UserError, say  # noqa: E402

OURS = ("odd-gp", "permutation", "per-patch")
# Of the libraries, these take seconds to compile or to fit even the smallest game.
SLOW = ("shap PermutationExplainer", "shapiq ProxySPEX", "shapiq SPEX", "shapiq ShaplEIG")
# Nine patches, 512 coalitions, of a network that has hardly learnt.
QUICK = {"digits": 1, "patch": 10, "epochs": 2, "evaluations": [32, 128], "seeds": 1, "without": SLOW}

# Values of a game from so many evaluations and a seed, (n,).
Estimator = Callable[[Game, int, int], np.ndarray]
# Values (n,), and their standard errors (n,) if the estimator states them.
Answer = tuple[torch.Tensor, torch.Tensor | None]


def make_parser() -> cli.Parser:
    parser = common.make_parser("shapley.py", __doc__)
    add = parser.add_argument_group("games").add_argument
    add(
        "--tables",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE.npy",
        help="add the games whose 2ⁿ values stand in these files",
    )
    add(
        "--network",
        type=Path,
        metavar="DIR",
        help="add the games of this folder, which holds cifar_net.py, cifar_net.pt, cifar64_0.npz, …",
    )
    add("--no-digits", action="store_true", help="leave out the games of digits, which need no file")
    add("--digits", type=cli.integer(1), default=5, metavar="N", help="explain N digits")
    add(
        "--patch", type=cli.integer(7, 14), default=7, metavar="N", help="play with patches of N pixels of 28"
    )
    add("--epochs", type=cli.integer(1), default=20, metavar="N", help="train on the digits for N epochs")
    add = parser.add_argument_group("estimators").add_argument
    add(
        "--evaluations",
        type=cli.integer(2),
        nargs="+",
        default=[128, 256, 512, 1024, 2048, 4096],
        metavar="N",
        help="compare at each of these numbers of evaluations",
    )
    add(
        "--estimators",
        nargs="+",
        default=(),
        metavar="NAME",
        help="compare odd-gp with these alone, named as in the table, e.g. 'shapiq KernelSHAP'; "
        "default: with all there are",
    )
    add("--without", nargs="+", default=(), metavar="NAME", help="leave these estimators out")
    add("--seeds", type=cli.integer(1), default=3, metavar="N", help="estimate with N seeds in each cell")
    add(
        "--patience",
        type=cli.number(0, above=True),
        default=20.0,
        metavar="X",
        help="leave a library's estimator out once an estimate took it more than X seconds of its own",
    )
    add(
        "--promises",
        action="store_true",
        help="see, too, whether the stop by --tolerance of run-shapley-value.py keeps its promise",
    )
    return parser


def ours(name: str) -> Callable[[Game, int, int], Answer | None]:
    """Return an estimator of ours; it answers with None where the evaluations are too few for it."""

    def answer(game: Game, budget: int, seed: int) -> Answer | None:
        try:
            found = shapley.ESTIMATORS[name](game.of_tensor, game.positions, Plan(budget, seed=seed))
        except RunFailed as error:
            say_once(f"{name} is left out at {budget} evaluations of {game.n} players: {error}")
            return None
        return found.values[0], found.standard_errors[0]

    return answer


@functools.cache
def say_once(text: str) -> None:
    say(text)


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


def captum(method: str, samples: Callable[[int, int], int]) -> Estimator:
    """Return an estimator of Captum's; `samples` says how many to ask for, of evaluations and players."""

    def estimate(game: Game, budget: int, seed: int) -> np.ndarray:
        from captum import attr

        torch.manual_seed(seed)
        np.random.seed(seed)
        explainer = getattr(attr, method)(lambda inputs: torch.from_numpy(game.of_array(inputs)))
        ones = torch.ones(1, game.n, dtype=torch.float64)
        return explainer.attribute(ones, n_samples=samples(budget, game.n))[0].double().numpy()

    return estimate


SHAP = {
    "shap PermutationExplainer": shap_permutation,
    "shap KernelExplainer": shap_kernel,
    "shap PartitionExplainer": shap_partition,
}
CAPTUM = {
    "Captum ShapleyValueSampling": captum(
        "ShapleyValueSampling", lambda budget, n: max(1, (budget - 1) // n)
    ),
    "Captum KernelShap": captum("KernelShap", lambda budget, _n: budget),
}

# shapiq's own list lacks these, in some versions or in all.
SHAPIQ_BESIDES_ITS_LIST = ("RegressionMSR", "ProxySHAP")
# What to tell an estimator of shapiq, as far as its version takes it. On the games of `--tables`, pairs of
# complements made none worse, and the error of most two to four times smaller.
SHAPIQ_OPTIONS = {"index": "SV", "pairing_trick": True, "show_progress": False}


def shapiq_estimators() -> dict[str, Estimator]:
    """Return the estimators of Shapley values that the installed version of shapiq brings."""
    from shapiq import approximator

    kinds = list(getattr(approximator, "SV_APPROXIMATORS", ()))
    kinds += [getattr(approximator, name) for name in SHAPIQ_BESIDES_ITS_LIST if hasattr(approximator, name)]
    return {f"shapiq {kind.__name__}": shapiq_estimator(kind) for kind in kinds}


def shapiq_estimator(kind: type) -> Estimator:
    """Return one of shapiq's approximators as an estimator.

    Which options an approximator takes changes from version to version: it is asked.
    """
    known = inspect.signature(kind).parameters
    options = {name: value for name, value in SHAPIQ_OPTIONS.items() if name in known}

    def estimate(game: Game, budget: int, seed: int) -> np.ndarray:
        explainer = kind(n=game.n, random_state=seed, **options)
        found = explainer.approximate(budget=budget, game=game.of_array)
        return np.array([found[(player,)] for player in range(game.n)])

    return estimate


def peers(wanted: Sequence[str], unwanted: Sequence[str]) -> dict[str, Estimator]:
    """Return the estimators of the libraries that are installed: those `wanted`, or else all but some.

    Raises:
        UserError: an installed library has no estimator of a name that is wanted.
    """
    libraries: dict[str, Callable[[], dict[str, Estimator]]] = {
        "shap": lambda: SHAP,
        "captum": lambda: CAPTUM,
        "shapiq": shapiq_estimators,
    }
    named = {name: name.partition(" ")[0].lower() for name in wanted if name not in OURS}
    missing = set()
    found: dict[str, Estimator] = {}
    for library, estimators in libraries.items():
        if wanted and library not in named.values():
            continue
        if common.is_installed(library):
            found |= estimators()
        else:
            missing.add(library)
    unknown = [name for name, library in named.items() if name not in found and library not in missing]
    if unknown:
        raise UserError(f"there is no estimator {unknown[0]!r}; there are {', '.join((*OURS, *found))}")
    chosen = wanted or found
    return {name: found[name] for name in found if name in chosen and name not in unwanted}


def forgiving(name: str, estimate: Estimator, patience: float) -> Callable[[Game, int, int], Answer | None]:
    """Return an estimator of a library's that answers with None where it cannot run, or was too slow before.

    What it may raise depends on its version, so that nothing short of any exception would do.
    """
    slow: list[str] = []

    def answer(game: Game, budget: int, seed: int) -> Answer | None:
        if slow:
            return None
        started = time.perf_counter()
        try:
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                warnings.simplefilter("ignore")
                values = torch.as_tensor(estimate(game, budget, seed), dtype=torch.float64)
            if not values.isfinite().all():
                raise ValueError("not all of its values are finite")
        except ImportError as error:
            say_once(f"{name} is left out: {error}")
            return None
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            say_once(f"{name} is left out at {budget} evaluations of {game.n} players: {what}")
            return None
        seconds = time.perf_counter() - started - game.seconds
        if seconds > patience:
            slow.append(name)
            say_once(f"{name} is left out from {budget} evaluations on: it took {seconds:.1f} s (--patience)")
            return None
        return values, None

    return answer


def measure(
    game: Game, answer: Callable[[Game, int, int], Answer | None], budget: int, seeds: int
) -> dict | None:
    """Return the mean over seeds of what an estimator achieves on a game; None where it cannot run."""
    errors, coverages, seconds, asked = [], [], [], []
    for seed in range(seeds):
        game.asked, game.seconds, started = 0, 0.0, time.perf_counter()
        found = answer(game, budget, seed)
        if found is None:
            return None
        seconds.append(time.perf_counter() - started - game.seconds)
        asked.append(game.asked)
        values, deviations = found
        errors.append(game.squared_error(values))
        if deviations is not None:
            coverages.append(game.coverage(values, deviations))
    return {
        "mse": statistics.mean(errors),
        "coverage": statistics.mean(coverages) if coverages else None,
        "seconds": statistics.median(seconds),
        "evaluations": statistics.mean(asked),
    }


def compare(
    family: str,
    games: Sequence[Game],
    estimators: Mapping[str, Callable[[Game, int, int], Answer | None]],
    budget: int,
    seeds: int,
) -> list[dict]:
    """Return a record for each estimator: medians over the games of a family."""
    rows = []
    for name, answer in estimators.items():
        found: list[dict] = []
        for game in games:
            each = measure(game, answer, budget, seeds)
            if each is None:
                break
            found.append(each)
        if len(found) < len(games):
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

    def line(title: str, texts: Iterable[str]) -> str:
        return f"| {title} | {' | '.join(texts)} |"

    lines = [
        line(f"{family}, {rows[0]['players']} players", (str(budget) for budget in budgets)),
        f"|---|{'---:|' * len(budgets)}",
    ]
    for name in names:
        found = (cells.get((name, budget)) for budget in budgets)
        lines.append(line(name, (f"{row['median_mse']:.1e}" if row else "–" for row in found)))
    own = [cells[OURS[0], budget] for budget in budgets]
    others = [
        [row["median_mse"] for row in rows if row["evaluations"] == budget and row["estimator"] != OURS[0]]
        for budget in budgets
    ]
    if any(others):
        ratios = (quotient(row["median_mse"], others_) for row, others_ in zip(own, others, strict=True))
        lines.append(line(f"{OURS[0]} / best of the others", ratios))
    lines.append(line(f"{OURS[0]}: coverage of 95 % intervals", (f"{row['coverage']:.3f}" for row in own)))
    lines.append(line(f"{OURS[0]}: own seconds", (f"{row['seconds']:.2f}" for row in own)))
    return lines


def quotient(error: float, others: Sequence[float]) -> str:
    """Return an error over the smallest of the others, if there is one that is not zero."""
    return f"{error / min(others):.2f}" if others and min(others) else "–"


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
    if not inside:
        return {"game": family, "runs": 0}
    return {
        "game": family,
        "runs": len(kept),
        "kept": statistics.mean(kept),
        "players_within": statistics.mean(inside),
        "all_within": statistics.mean(within),
    }


def describe_promises(found: dict) -> str:
    """Return what `promises` has found as a sentence."""
    if not found["runs"]:
        return f"Stop by tolerance, {found['game']}: no run came to its tolerance.\n"
    return (
        f"Stop by tolerance, {found['game']}: {found['runs']} runs; of {found['kept']:.1%} at least 95 % of "
        f"the players are within it, of {found['all_within']:.1%} all, "
        f"{found['players_within']:.1%} of all players.\n"
    )


def games_of(options: SimpleNamespace) -> dict[str, list[Game]]:
    """Return the games by their families.

    Raises:
        UserError: there are none.
    """
    games = []
    if not options.no_digits:
        games += digit_games(options.digits, patch=options.patch, epochs=options.epochs)
    games += tabulated_games(options.tables)
    games += network_games(options.network) if options.network else []
    if not games:
        raise UserError("no games are left: --no-digits needs --tables or --network")
    families: dict[str, list[Game]] = {}
    for game in games:
        families.setdefault(game.name.partition(FAMILY_SEPARATOR)[0], []).append(game)
    return families


def enough(budgets: Sequence[int], n: int) -> list[int]:
    """Return those numbers of evaluations that odd-gp can work with for n players.

    Raises:
        UserError: there is none.
    """
    least = fewest_evaluations(n)
    found = [budget for budget in budgets if budget >= least]
    if not found:
        raise UserError(f"--evaluations {max(budgets)} are too few for {n} players: give {least} or more")
    return found


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    chosen = [name for name in options.estimators or OURS if name not in options.without]
    own = [name for name in OURS if name in (OURS[0], *chosen)]
    estimators = {name: ours(name) for name in own} | {
        name: forgiving(name, estimate, options.patience)
        for name, estimate in peers(options.estimators, options.without).items()
    }
    records = []
    for family, members in games_of(options).items():
        budgets = enough(options.evaluations, members[0].n)
        rows = []
        for budget in budgets:
            rows += compare(family, members, estimators, budget, options.seeds)
        print("\n".join(table(family, rows, budgets)), "\n", flush=True)
        records += rows
        if options.promises:
            records.append(promises(family, members, options.seeds, 2**13))
            print(describe_promises(records[-1]), flush=True)
    print(f"{options.seeds} seed(s), {options.threads} thread(s), torch {torch.__version__}")
    common.write_json(options, records)


if __name__ == "__main__":
    cli.run(main)
