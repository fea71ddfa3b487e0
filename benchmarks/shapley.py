#!/usr/bin/env python3
"""Error of Shapley estimators at equal numbers of model evaluations, on games whose Shapley values are known.

    digits      16 patches of digits, a network trained here in seconds, all 65,536 coalitions enumerated
    --tables    .npy files of 2ⁿ values, or of several such rows; index Σ 2ᵃ over the present players a
    --network   64 patches of small photographs, a network and reference values from a folder

Our estimators (odd-gp, and for comparison permutation and per-patch) are compared with those of shap, Captum
and shapiq that are installed, with paired sampling where a library has it; from shapiq, with all estimators
of Shapley values in the installed version. The tables show the median over images of the mean squared error,
each averaged over seeds, and the share of our 95 % intervals that contain the true value.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402

from benchmarks.shapley_estimators import OURS, Answer, forgiving, ours, peers  # noqa: E402
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
from lib.runtime.errors import UserError  # noqa: E402

# Of the libraries, these take seconds to compile or to fit even the smallest game.
SLOW = ("shap PermutationExplainer", "shapiq ProxySPEX", "shapiq SPEX", "shapiq ShaplEIG")
# Nine patches, 512 coalitions, of a network that has hardly learnt.
QUICK = {"digits": 1, "patch": 10, "epochs": 2, "evaluations": [32, 128], "seeds": 1, "without": SLOW}


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


def measure(
    game: Game, answer: Callable[[Game, int, int], Answer | None], budget: int, seeds: int
) -> dict | None:
    """Return an estimator's mean error, coverage and cost over seeds on a game; None if it cannot run."""
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
    """Return how often the stop by tolerance keeps its promise, over loose to tight tolerances.

    A run keeps it if at least 95 % of its players are within the tolerance. The share of all players of all
    runs that are within it is returned too.
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
    """Return the numbers of evaluations that suffice for odd-gp with n players.

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
