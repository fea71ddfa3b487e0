"""How weights are moved: the settings of a run, its learning rates, its optimizer, its weight average."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn

from lib.errors import UserError


@dataclass(frozen=True)
class Settings:
    """How to train; `lib.cli.add_training_flags` has a flag for each field."""

    seed: int
    max_epoch: int
    learning_rate: float
    optimizer: str = "adamw"
    schedule: str = "one-cycle"
    warmup: float = 0.2
    weight_decay: float = 0.0
    momentum: float = 0.9
    beta2: float = 0.999
    clip_norm: float | None = None
    max_update: int | None = None
    ema: float | None = None
    patience: int | None = None
    log_interval: int = 100
    validate_interval_updates: int | None = None
    save_epochs: tuple[int, ...] = ()
    amp: bool = False
    compile: bool = False

    @classmethod
    def of(cls, flags: dict[str, Any]) -> "Settings":
        return cls(**{each.name: flags[each.name] for each in fields(cls)})


def learning_rate_factor(settings: Settings, update: int, updates: int) -> float:
    """What to multiply the learning rate by in update number `update` of `updates`.

    `one-cycle` rises linearly over the first `warmup` of the updates and falls to zero along a half
    cosine (Smith & Topin 2019, arXiv:1708.07120, without its momentum cycle).
    """
    if settings.schedule == "constant":
        return 1.0
    rise = max(1.0, settings.warmup * updates)
    if update < rise:
        return (update + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (update - rise) / max(1.0, updates - rise)))


def make_optimizer(
    model: nn.Module, settings: Settings, rate_of: Callable[[str], float]
) -> torch.optim.Optimizer:
    """Return the optimizer over the trainable parameters; weight decay spares biases and norms."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
            groups.setdefault((rate_of(name), decay), []).append(parameter)
    if not groups:
        raise UserError("nothing is left to train: every parameter is frozen")
    described = [
        {"params": group, "rate": rate, "weight_decay": decay} for (rate, decay), group in groups.items()
    ]
    # One fused kernel an update instead of a dozen small ones.
    device = next(model.parameters()).device.type
    common = {"lr": settings.learning_rate, "fused": device in ("cpu", "cuda")}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(described, momentum=settings.momentum, **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(described, betas=(0.9, settings.beta2), **common)


class WeightAverage:
    """Exponential moving average of a model's weights (Polyak & Juditsky 1992), in `self.model`.

    Its decay warms up as (1 + u) / (10 + u), so that a short run is not held back by its first weights.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, update: int) -> None:
        decay = min(self.decay, (1 + update) / (10 + update))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for mine, its in zip(self.model.buffers(), model.buffers(), strict=True):
            if mine.is_floating_point():  # the statistics of batch normalisation
                mine.lerp_(its, 1 - decay)
            else:
                mine.copy_(its)
