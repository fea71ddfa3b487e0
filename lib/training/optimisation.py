"""How weights are moved: the settings of a run, its learning rates, its optimizer, its weight average."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from lib.runtime.errors import UserError

MUON_SIZE = 0.2  # the root mean square of AdamW's steps, as a share of the learning rate
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


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
    common["betas"] = (0.9, settings.beta2)
    if settings.optimizer == "muon":
        if all(parameter.ndim <= 2 for parameters in groups.values() for parameter in parameters):
            raise UserError("muon moves the kernels of convolutions, and none are to be trained: take adamw")
        return Muon(described, momentum=settings.momentum, **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(described, **common)


class Muon(torch.optim.AdamW):
    """Momentum made orthogonal, for the kernels of convolutions; AdamW for all other parameters.

    A kernel (outputs, inputs, height, width) is taken as a matrix of one row an output. It moves by the
    orthogonal matrix nearest to its momentum (Nesterov's), in which no direction outweighs the others
    (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"). That is scaled to the
    size of AdamW's steps, so that one learning rate and one weight decay suit both (Liu et al. 2025,
    arXiv:2502.16982, equation 4).

    `torch.optim.Muon` takes matrices alone.

    Args:
        groups, options: as for `torch.optim.AdamW`.
        momentum: share of the momentum so far that is kept in each update.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, **options):
        super().__init__(groups, **options)
        self.momentum = momentum

    @torch.no_grad()
    def step(self) -> None:
        """Move every parameter that has a gradient; the gradients of kernels are gone afterwards."""
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.ndim > 2 and kernel.grad is not None:
                    self._move(kernel, group["lr"], group["weight_decay"])
                    kernel.grad = None  # AdamW passes over what has none
        super().step()

    def _move(self, kernel: nn.Parameter, rate: float, decay: float) -> None:
        state = self.state[kernel]
        if not state:  # AdamW looks for the step of everything that has a state, when that is loaded
            state.update(step=torch.zeros(()), momentum_buffer=torch.zeros_like(kernel))
        state["step"] += 1
        momentum = state["momentum_buffer"].mul_(self.momentum).add_(kernel.grad)
        direction = orthogonalised(kernel.grad.add(momentum, alpha=self.momentum).flatten(1))
        size = MUON_SIZE * math.sqrt(max(direction.shape))
        kernel.mul_(1 - rate * decay).add_(direction.view_as(kernel), alpha=-rate * size)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return the (M, N) matrix with its singular values replaced by about one: 0.7 to 1.2, but the smallest.

    Five Newton-Schulz steps X ← (a + b·XXᵀ + c·(XXᵀ)²)·X with Jordan's coefficients, which trade exactness
    for speed. They are taken in the smaller of XXᵀ and XᵀX alone, of which all the factors are functions,
    and X is multiplied once, at the end: some three times fewer multiplications for a wide X.
    """
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T  # in float32: rounded to bfloat16, its small eigenvalues may turn negative and grow
    product = factor = _factor(gram)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    x = product @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def _factor(gram: Tensor) -> Tensor:
    """a + b·G + c·G²."""
    a, b, c = NEWTON_SCHULZ
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor


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
