"""Numbers about maps: what all methods share of an image, and what each measure says of one map.

Scores of random removals depend on the image and the network alone. They are computed once and kept, so that
another method costs only its own maps, and the removals that follow its order.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lib.cli.comparison_flags import INPAINT
from lib.evaluation import faithfulness, maps
from lib.evaluation.measures import MEASURES
from lib.evaluation.removal import (
    Remembered,
    Removal,
    cell_sums,
    grid,
    random_cells,
    random_squares,
    shown_without,
)
from lib.explain import batch_size, shapley
from lib.explain.baselines import baseline
from lib.explain.games import float32_head
from lib.explain.players import Players
from lib.explain.shapley import Plan
from lib.explain.targets import scores_of
from lib.runtime import distributed
from lib.runtime.settings import Settings
from lib.tasks.explanation_panels import Question

FINE = 8  # cells a side for random removals
_SHARES = (1 / 8, 1 / 4, 1 / 2)  # of the cells: the n of sensitivity-n
_SUBSETS, _SQUARES = 16, 32
_OF_PATCHES = 0.25  # the best patches of a map


@dataclass(frozen=True)
class MeasureSettings(Settings):
    """How is measured; see the flags of these names."""

    measures: Collection[str] | None
    removal: str
    grid: int
    budget: int
    steps: int
    seed: int
    amp: bool

    def wants(self, *names: str) -> bool:
        """Return whether one of these measures is asked for."""
        asked = self.measures or ("all",)
        return "all" in asked or any(name in asked for name in names)

    @property
    def names(self) -> list[str]:
        """The measures asked for, in the order of the table."""
        return [name for name in MEASURES if self.wants(name)]


@dataclass(frozen=True)
class Shared:
    """What the measures of all maps of an image need, for its T targets.

    Attributes:
        estimator: how the Shapley values were found: `exact` or an estimator's name.
        evaluations: number of images that passed the network.
        full, empty: scores of the image and of the baseline, (T,).
        truth, errors: Shapley values of the coarse patches and their standard errors, (T, n).
        alone: drops of the score without each coarse patch, which is black, (T, n).
        subsets: drops without random sets of fine cells, (T, sizes, samples).
        squares: drops without random squares, (T, samples).
    """

    estimator: str
    evaluations: int
    full: list[float]
    empty: list[float]
    truth: list[list[float]]
    errors: list[list[float]]
    alone: list[list[float]]
    subsets: list[list[list[float]]]
    squares: list[list[float]]


def score_of(question: Question, *, amp: bool = False) -> Callable[[Tensor], Tensor]:
    """Return the function from pixels (N, C, H, W) to the scores of the question's targets (T, N).

    With `amp`, the network computes in bfloat16, all but its last linear layer.
    """
    network, scores = question.network, scores_of(question.targets)

    def score(pixels: Tensor) -> Tensor:
        inputs = network.normalise(pixels)
        if not amp:
            return scores(network.module(inputs))
        with distributed.autocast(inputs.device, True), float32_head(network.module):
            output = network.module(inputs)
        return scores(output.float())

    return score


def game_of(question: Question, kind: str, asked: MeasureSettings) -> Removal:
    """Return the game of a question's image.

    Args:
        question: the network, the image and the targets.
        kind: what removed parts show: a kind of baseline, or that they are in-painted.
        asked: the settings, for the seed of the baseline, and how the network computes.
    """
    pixels = question.pixels[0]
    shows = None if kind == INPAINT else baseline(kind, pixels, seed=asked.seed)
    return Removal(
        score_of(question, amp=asked.amp),
        pixels,
        shows,
        batch_size.suited(question.network.module, pixels, bfloat16=asked.amp),
    )


def shared(question: Question, asked: MeasureSettings) -> Shared:
    """Return what the measures of all maps of the question's image need."""
    size = question.size
    game, black = game_of(question, asked.removal, asked), game_of(question, "black", asked)
    ends = game(torch.tensor([True, False])[:, None, None].expand(2, *size))  # (T, 2)
    full = ends[:, :1]
    coarse, fine = grid(size, asked.grid), grid(size, FINE)
    count = len(coarse.unique())
    estimate, estimator = None, ""
    if asked.wants("agreement", "top-share"):
        estimator = shapley.choose(count, asked.budget)
        plan = Plan(asked.budget, seed=asked.seed)

        def play(coalitions: Tensor) -> Tensor:
            return game(shown_without(~coalitions, coarse)).T

        estimate = shapley.ESTIMATORS[estimator](play, Players(coarse).positions, plan)

    def drops(which: Removal, shown: Tensor, wanted: bool) -> list:
        return (full - which(shown)).tolist() if wanted else []

    alone = drops(black, shown_without(torch.eye(count).bool(), coarse), asked.wants("single-deletion"))
    cells = subsets_of(size, asked.seed)
    lost = drops(game, shown_without(cells.flatten(0, 1), fine), asked.wants("sensitivity-n"))
    squares = drops(game, ~random_squares(size, _SQUARES, asked.seed), asked.wants("infidelity"))
    return Shared(
        estimator,
        game.evaluations + black.evaluations,
        ends[:, 0].tolist(),
        ends[:, 1].tolist(),
        [] if estimate is None else estimate.values.tolist(),
        [] if estimate is None else estimate.standard_errors.tolist(),
        alone,
        [_doubles(each).view(cells.shape[:2]).tolist() for each in lost],
        squares,
    )


def subsets_of(size: tuple[int, int], seed: int) -> Tensor:
    """Return the random sets of fine cells (sizes, samples, cells) bool for an image of this size."""
    count = len(grid(size, FINE).unique())
    return random_cells(count, [max(1, round(share * count)) for share in _SHARES], _SUBSETS, seed)


@dataclass
class Judge:
    """Computes the measures of maps of one image.

    Attributes:
        question: the network, the image and the targets.
        asked: the settings.
        known: what the maps share.
        box: the mask of the object (H, W), if it is known.
    """

    question: Question
    asked: MeasureSettings
    known: Shared
    box: Tensor | None = None
    game: Remembered = field(init=False)

    def __post_init__(self) -> None:
        size, seed = self.question.size, self.asked.seed
        self.game = Remembered(game_of(self.question, self.asked.removal, self.asked))
        self._coarse, self._fine = grid(size, self.asked.grid), grid(size, FINE)
        self._subsets = subsets_of(size, seed).double()
        self._squares = random_squares(size, _SQUARES, seed).double()

    def judge(self, values: Tensor, target: int) -> dict[str, float | None]:
        """Return the measures of a map (H, W) of one target; None where one is not defined."""
        known, values = self.known, values.double().cpu()
        if not values.isfinite().all():
            return {}
        coarse, fine = cell_sums(values, self._coarse), cell_sums(values, self._fine)
        found: dict[str, float] = {}
        scale = max(abs(known.full[target]), abs(known.empty[target]))

        def changes(of_targets: list) -> Tensor:
            return faithfulness.or_nothing(_doubles(of_targets[target]), scale, bfloat16=self.asked.amp)

        if known.truth:
            truth = changes(known.truth)
            found["agreement"] = faithfulness.shapley_agreement(coarse, truth)
            best = max(1, round(_OF_PATCHES * len(truth)))
            found["top-share"] = faithfulness.top_share(coarse, truth, best)
        found |= self._by_removals(values, fine, target)
        if known.alone:
            found["single-deletion"] = faithfulness.single_deletion(coarse, changes(known.alone))
        if known.subsets:
            sums = self._subsets @ fine
            found["sensitivity-n"] = faithfulness.sensitivity_n(sums, changes(known.subsets))
        if known.squares:
            sums = (self._squares * values).sum((1, 2))
            found["infidelity"] = faithfulness.unexplained(sums, changes(known.squares))
        if self.box is not None:
            found["pointing"] = maps.pointing(values, self.box)
            found["mass"] = maps.relevance_mass(values, self.box)
            found["rank"] = maps.relevance_rank(values, self.box)
        return {name: plain(value) for name, value in found.items() if self.asked.wants(name)}

    def _by_removals(self, values: Tensor, fine: Tensor, target: int) -> dict[str, float]:
        asked, full, empty = self.asked, self.known.full[target], self.known.empty[target]

        def play(shown: Tensor) -> Tensor:
            return self.game(shown)[target]

        found: dict[str, float] = {}
        if asked.wants("deletion", "insertion"):
            curves = faithfulness.deletion_insertion(play, values, full, empty, asked.steps, asked.seed)
            found = {"deletion": curves.deletion, "insertion": curves.insertion}
        if asked.wants("f-fidelity"):
            found["f-fidelity"] = faithfulness.f_fidelity(
                play, fine, self._fine, full, empty, seed=asked.seed
            )
        return found


def _doubles(values: list) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def plain(value: float) -> float | None:
    """Return a number, or None if it is not finite, which JSON does not know."""
    return value if math.isfinite(value) else None


def shared_of(saved: dict[str, Any]) -> Shared:
    """Return what maps share from a kept result."""
    return Shared(**{name: saved[name] for name in Shared.__dataclass_fields__})
