"""Shapley values of the parts of images: which parts, which estimator, how many evaluations."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from lib.explain import batch_size, players, shapley
from lib.explain.batch_size import BatchSizeTuner
from lib.explain.explanation import Additivity, Explanation, Request
from lib.explain.games import Evaluation, KnownValues, MaskedImage
from lib.explain.players import Players
from lib.explain.shapley import Estimate, Plan
from lib.runtime import distributed
from lib.runtime.errors import UserError, warn

# Default number of patches along a side.
PATCHES_A_SIDE = 8
# Default budget: this many evaluations per player. In small images, where a forward pass is cheap, all
# coalitions of up to ENUMERATED_PLAYERS players are evaluated instead.
EVALUATIONS_A_PLAYER = 32
SMALL_IMAGE = 64
ENUMERATED_PLAYERS = 16

# Function from a game to the store of its known values, which is saved however the context ends.
Store = Callable[[MaskedImage], AbstractContextManager[KnownValues | None]]


class Found(NamedTuple):
    """The Shapley values of the parts of one image.

    Attributes:
        players: the parts.
        estimate: the estimated values.
        estimator: name of the estimator that was used.
        budget: number of evaluations allowed.
        reused: number of evaluations taken from the store.
        rate: forward passes per second; 0 if there were none.
    """

    players: Players
    estimate: Estimate
    estimator: str
    budget: int
    reused: int
    rate: float


def patches(size: int | tuple[int, int], side: int | None = None) -> Players:
    """Return square patches of an image of `size` as players; by default, eight along its longest side."""
    longest = max(size) if isinstance(size, tuple) else size
    return players.patches(size, side or -(-longest // PATCHES_A_SIDE))


def explain(request: Request) -> Explanation:
    """Return the Shapley values of the parts of each image, with their standard errors.

    Settings beside the method's options: `players`, the parts (default: 8 × 8 patches); `seed` of the
    coalitions; `store`, see `Store`.

    Raises:
        UserError: the settings contradict each other or do not suit the number of parts.
        RunFailed: the watch stopped the computation too early for an estimate.
    """
    parts = request.settings.get("players") or patches((request.images.shape[2], request.images.shape[3]))
    with torch.inference_mode():
        output = request.network.logits(request.images)
    estimator, budget = choose(request, parts.count)
    found = [_of_image(request, parts, estimator, budget, index) for index in range(len(request.images))]
    estimates = [each.estimate for each in found]
    values, errors, empty, full = (
        torch.stack([getattr(each, name) for each in estimates], dim=1)
        for name in ("values", "standard_errors", "empty", "full")
    )
    # Row by row, because the order of a sum decides its last digits.
    totals = torch.stack([torch.stack([row.sum() for row in each.values]) for each in estimates], dim=1)
    gap = totals - (full - empty)

    def of_images(numbers: list[int] | list[bool] | list[float]) -> Tensor:
        kind = torch.float64 if isinstance(numbers[0], float) else None
        return torch.tensor(numbers, dtype=kind).expand(len(values), -1)

    return Explanation(
        {"": values},
        output,
        sum(each.estimate.evaluations - each.reused for each in found) + len(found),
        0,
        parts=parts.map,
        standard_errors=errors,
        additivity=Additivity(full, empty, full - empty, gap),
        numbers={
            "estimator": estimator,
            "players": parts.count,
            "value_full": full,
            "value_empty": empty,
            "values_sum": totals,
            "efficiency_gap": gap,
            "half_width": shapley.HALF_WIDTH * errors.amax(2),
            "evaluations": of_images([each.evaluations for each in estimates]),
            "reused": of_images([each.reused for each in found]),
            "converged": of_images([each.converged for each in estimates]),
            "evaluations_per_second": of_images([round(each.rate, 2) for each in found]),
        },
        details=found,
    )


def _of_image(request: Request, parts: Players, estimator: str, budget: int, index: int) -> Found:
    settings, network, watch = request.settings, request.network, request.watch
    game = MaskedImage(
        network.module,
        network.normalise(request.images[index]),
        network.normalise(request.start[index]),
        parts.map,
        request.scores,
        amp=settings["amp"] and estimator != "exact",
    )
    if settings["amp"] and not game.amp and distributed.is_main():
        warn("--amp is off: rounding would undo what exact values are for")
    store: Store = settings.get("store") or (lambda _game: nullcontext())
    watch.expect(budget)
    with store(game) as record:
        evaluation = Evaluation(
            game,
            network.device,
            BatchSizeTuner(batch_size.largest(game.image), batch_size.first(game.image)),
            record=record,
            is_stopped=watch.is_stopped,
            progress=watch.advance,
        )
        plan = Plan(
            budget,
            settings["tolerance"],
            settings.get("seed", 42),
            report=watch.report or (lambda _half_width: None),
            known=record.coalitions() if record else None,
            # All ranks must make the same estimates, whoever watches.
            watched=bool(distributed.max_over_ranks(int(watch.report is not None), network.device)),
        )
        estimate = shapley.ESTIMATORS[estimator](evaluation, parts.positions, plan)
    fresh = estimate.evaluations - evaluation.reused
    return Found(
        parts, estimate, estimator, budget, evaluation.reused, fresh / evaluation.seconds if fresh else 0.0
    )


def choose(request: Request, n: int) -> tuple[str, int]:
    """Return the estimator and its budget for the settings of `request` and n players.

    Raises:
        UserError: the budget is too small for the estimator.
    """
    settings, size = request.settings, max(request.images.shape[-2:])
    wanted, asked = settings["estimator"], settings["budget"]
    if settings["max-context"]:
        return "per-patch", 2 + 2 * n * settings["max-context"]
    affordable = size <= SMALL_IMAGE and n <= ENUMERATED_PLAYERS and wanted == "auto"
    budget = asked or (2**n if affordable else EVALUATIONS_A_PLAYER * n)
    if wanted == "exact" and not asked and n <= ENUMERATED_PLAYERS:
        budget = 2**n
    # With one player the value is v(N) − v(∅) exactly.
    estimator = shapley.choose(n, budget) if wanted == "auto" or n == 1 else wanted
    if estimator == "exact":
        if 2**n > budget:
            raise UserError(f"--estimator exact needs 2^{n} = {2**n} evaluations of {n} players: --budget")
        return estimator, 2**n
    least = shapley.FEWEST_EVALUATIONS_A_PLAYER * n
    least += least % 2  # evaluations come in complementary pairs
    if budget < 2**n <= least:
        raise UserError(f"--budget {budget} is too small for {n} players: with {2**n}, values are exact")
    if budget < min(least, 2**n):
        raise UserError(
            f"--budget {budget} is less than {shapley.FEWEST_EVALUATIONS_A_PLAYER} evaluations for each of "
            f"{n} players: {least} or more, or fewer players"
        )
    return estimator, budget
