#!/usr/bin/env python3
"""Coverage of odd-gp's 95 % intervals, and its error, on families of games that are hard in different ways.

    families   games with known Shapley values, defined in `shapley_families.py`; 32 evaluations per player
    --tables   .npy files of 2ⁿ values, as for shapley.py: such as games of a CNN
    seconds    of odd-gp itself, on 2,048 evaluations of three games of 64 players that cost nothing

Each game is asked about alone, along with an easy (additive) game, and along with another one of its family:
no interval should depend on what else is asked. The root mean squared error is that of the game alone.
"""

import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402

common.before_torch()

import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.shapley_families import FAMILIES, game_of  # noqa: E402
from benchmarks.shapley_games import FAMILY_SEPARATOR, Game, fewest_evaluations, tabulated_games  # noqa: E402
from lib import cli  # noqa: E402
from lib.explain import shapley  # noqa: E402
from lib.explain.shapley import Plan  # noqa: E402
from lib.runtime.errors import UserError  # noqa: E402

EASY = "additive"
WAYS = ("alone", "with an easy game", "with one of its kind")
OTHERS = 10_000  # number of the first game that is asked about along with another
TIMED_SIDE, TIMED_EVALUATIONS = 8, 2048
QUICK = {"side": [3], "games": 2, "repetitions": 1}


def make_parser() -> cli.Parser:
    parser = common.make_parser("shapley_coverage.py", __doc__, repetitions=5)
    add = parser.add_argument_group("games").add_argument
    add(
        "--families",
        nargs="+",
        choices=FAMILIES,
        default=list(FAMILIES),
        metavar="NAME",
        help=f"play these families: {', '.join(FAMILIES)}; default: all",
    )
    add(
        "--side",
        type=cli.integer(3, 16),
        nargs="+",
        default=[4, 7],
        metavar="N",
        help="play with N² players on a grid",
    )
    add("--games", type=cli.integer(2), default=30, metavar="N", help="play N games of each family")
    add(
        "--a-player",
        type=cli.integer(3),
        default=32,
        metavar="N",
        help="allow N evaluations for each player",
    )
    add(
        "--tables",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE.npy",
        help="add the games whose 2ⁿ values stand in these files",
    )
    add(
        "--table-evaluations",
        type=cli.integer(2),
        default=256,
        metavar="N",
        help="allow N evaluations of the games in files",
    )
    add("--seeds", type=cli.integer(1), default=3, metavar="N", help="estimate games in files with N seeds")
    return parser


def together(games: Sequence[Game]) -> Callable[[Tensor], Tensor]:
    """Return several games of the same players as one, as the classes of a network are."""
    return lambda coalitions: torch.cat([game.of_tensor(coalitions) for game in games], dim=1)


def measure(games: Sequence[tuple[Game, Game, int]], budget: int) -> dict:
    """Return coverages and errors of a family, from each game, another to go along with it, and a seed."""
    side = math.isqrt(games[0][0].n)
    coverages: dict[str, list[float]] = {way: [] for way in WAYS}
    errors = []
    for game, other, seed in games:
        easy = game_of(EASY, side, OTHERS + seed)
        for way, company in zip(WAYS, ([], [easy], [other]), strict=True):
            found = shapley.odd_gp(together([game, *company]), game.positions, Plan(budget, seed=seed))
            coverages[way].append(game.coverage(found.values[0], found.standard_errors[0]))
            if way == WAYS[0]:
                errors.append(game.squared_error(found.values[0]))
    return {
        "players": games[0][0].n,
        "evaluations": budget,
        "games": len(games),
        "coverage": {way: statistics.mean(found) for way, found in coverages.items()},
        "worst": min(coverages[WAYS[0]]),
        "rmse": math.sqrt(max(0.0, statistics.mean(errors))),
    }


def rows_of(options: SimpleNamespace) -> Iterator[dict]:
    """Yield the numbers of each family.

    Raises:
        UserError: the evaluations are too few, or so many that all coalitions would be asked about.
    """
    for side in options.side:
        budget = options.a_player * side**2
        check(budget, side**2)
        for family in options.families:
            games = [
                (game_of(family, side, number), game_of(family, side, OTHERS + number), number)
                for number in range(options.games)
            ]
            yield {"family": family} | measure(games, budget)
    families: dict[str, list[Game]] = {}
    for game in tabulated_games(options.tables):
        families.setdefault(game.name.partition(FAMILY_SEPARATOR)[0], []).append(game)
    for family, members in families.items():
        check(options.table_evaluations, members[0].n)
        games = [
            (game, members[number - 1], seed)
            for number, game in enumerate(members)
            for seed in range(options.seeds)
        ]
        yield {"family": family} | measure(games, options.table_evaluations)


def check(budget: int, n: int) -> None:
    least = fewest_evaluations(n)
    if not least <= budget < 2**n:
        raise UserError(f"{budget} evaluations of {n} players: give {least} or more, and fewer than {2**n}")


def own_seconds(repetitions: int) -> float:
    """Return the median time that odd-gp takes for three games like those of a network."""
    generator = torch.Generator().manual_seed(2)
    n = TIMED_SIDE**2
    weights = torch.randn(3, n, n, dtype=torch.float64, generator=generator) / n

    def cheap(coalitions: Tensor) -> Tensor:
        z = 2.0 * coalitions.double() - 1
        columns = []
        for each in weights:
            linear, quadratic = z @ each.mean(1), (z @ each * z).sum(1)
            columns.append(torch.tanh(linear + quadratic) + torch.tanh(3 * linear * z[:, 0] * z[:, 1]))
        return torch.stack(columns, dim=1)

    positions = game_of(EASY, TIMED_SIDE, 0).positions

    def estimate() -> None:
        shapley.odd_gp(cheap, positions, Plan(TIMED_EVALUATIONS))

    return statistics.median(common.timed(estimate)[1] for _ in range(repetitions))


def line(row: dict) -> str:
    covered = " | ".join(f"{row['coverage'][way]:.3f}" for way in WAYS)
    return (
        f"| {row['family']} | {row['players']} | {row['evaluations']} | {covered} | {row['worst']:.2f} "
        f"| {row['rmse']:.2e} |"
    )


def main(argv: Sequence[str] | None = None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    torch.set_num_threads(options.threads)
    print(f"| family | players | evaluations | {' | '.join(WAYS)} | worst game alone | RMSE |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    rows = []
    for row in rows_of(options):
        print(line(row), flush=True)
        rows.append(row)
    seconds = own_seconds(options.repetitions)
    print(
        f"\n{TIMED_EVALUATIONS} evaluations of three games of {TIMED_SIDE**2} players: "
        f"{seconds:.2f} s of the processor's time\n{options.threads} thread(s), torch {torch.__version__}"
    )
    common.write_json(options, {"families": rows, "own_seconds": seconds})


if __name__ == "__main__":
    cli.run(main)
