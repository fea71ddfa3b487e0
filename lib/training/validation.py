"""Validation: the metrics of a network over a split, and the scores by which the best one is chosen."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lib.models import layers
from lib.runtime import distributed
from lib.runtime.errors import UserError
from lib.training.objectives import Objective

Metrics = dict[str, float]


def by_accuracy(metrics: Metrics) -> tuple[float, ...]:
    """Score for `fit`: the higher accuracy is better; of equal ones, the lower loss (then, the latest)."""
    return metrics["accuracy"], -metrics["loss"]


def by_recency(_metrics: Metrics) -> tuple[float, ...]:
    """Score for `fit` by which the latest checkpoint is the best: for validation on the test data."""
    return ()


def means(sums: dict[str, Tensor]) -> Metrics:
    """Return an objective's sums over a split as means over its examples."""
    count = float(sums["count"])
    return {name: float(value) / count for name, value in sums.items() if name != "count"}


def evaluate(
    model: nn.Module,
    objective: Objective,
    batches: Iterable[Any],
    *,
    amp: bool = False,
    summarise: Callable[[dict[str, Tensor]], Metrics] = means,
) -> Metrics:
    """Return the metrics of `model` over `batches`; with several ranks, over the batches of all of them.

    Raises:
        UserError: a rank has no batches.
    """
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    with layers.evaluating(model), torch.inference_mode(), distributed.autocast(device, amp):
        for batch in batches:
            for name, value in objective(model, batch).items():
                sums[name] = sums.get(name, 0) + torch.as_tensor(value)
    # If one rank raises, all must: otherwise the others would wait for its sums for ever.
    if distributed.max_over_ranks(not sums, device):
        raise UserError(f"each of {distributed.world_size()} ranks needs an example to be evaluated on")
    return summarise({name: distributed.total(value.to(device)) for name, value in sums.items()})
