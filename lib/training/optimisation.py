"""Optimisation: the settings of a run, its learning rate schedule, its optimizer and its weight average."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib.runtime.errors import UserError
from lib.runtime.settings import Settings as FromFlags

MUON_SIZE = 0.2  # root mean square of the entries of AdamW's steps, as a share of the learning rate
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b and c of Jordan et al. 2024
NEWTON_SCHULZ_STEPS = 5


@dataclass(frozen=True)
class Settings(FromFlags):
    """The settings of `fit`; `lib.cli.add_training_flags` has a flag for each field."""

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
    log_interval: int | None = None
    validate_interval_updates: int | None = None
    save_epochs: tuple[int, ...] = ()
    amp: bool = False
    compile: bool = False


def learning_rate_factor(settings: Settings, update: int, updates: int) -> float:
    """Return the multiplier of the learning rate in update number `update` (from 0) of `updates`.

    `one-cycle` rises linearly over the share `warmup` of the updates and then falls to zero along a half
    cosine (Smith & Topin 2019, arXiv:1708.07120, without its momentum cycle). `constant` is always 1.
    """
    if settings.schedule == "constant":
        return 1.0
    rise = max(1.0, settings.warmup * updates)
    if update < rise:
        return (update + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (update - rise) / max(1.0, updates - rise)))


def unit_lr_multiplier(_parameter_name: str) -> float:
    """Return the multiplier 1 for every parameter: all learn at the learning rate itself."""
    return 1.0


def trainable_parameters(model: nn.Module, parts: Sequence[str] = ()) -> dict[str, nn.Parameter]:
    """Return the parameters of `model` that require gradients, by their names in it, in its order.

    Args:
        model: the network.
        parts: names of sub-modules or of parameters, e.g. ('encoder', 'decoder'); none for the whole network.

    Raises:
        ValueError: the network has no parameter of such a name.
    """
    named = dict(model.named_parameters())
    for part in parts:
        if not any(_is_in(name, part) for name in named):
            raise ValueError(f"{type(model).__name__} has no parameters in {part!r}")
    return {
        name: parameter
        for name, parameter in named.items()
        if parameter.requires_grad and (not parts or any(_is_in(name, part) for part in parts))
    }


def _is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def make_optimizer(
    model: nn.Module,
    settings: Settings,
    lr_multiplier: Callable[[str], float] = unit_lr_multiplier,
    parts: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """Return the optimizer of the trainable parameters, without weight decay on biases and norms.

    Each parameter group stores under "rate" what `lr_multiplier` returns for the names of its parameters;
    each update multiplies the learning rate by it. `parts` is as for `trainable_parameters`.

    Raises:
        UserError: no parameter is trainable, or muon was chosen for a network without trainable kernels of
            convolutions.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable_parameters(model, parts).items():
        decay = settings.weight_decay if parameter.ndim >= 2 else 0.0
        groups.setdefault((lr_multiplier(name), decay), []).append(parameter)
    if not groups:
        raise UserError("nothing is left to train: every parameter is frozen")
    described = [
        {"params": group, "rate": rate, "weight_decay": decay} for (rate, decay), group in groups.items()
    ]
    # A fused optimizer runs one kernel per update instead of a dozen small ones.
    device = next(model.parameters()).device.type
    common: dict[str, Any] = {"lr": settings.learning_rate, "fused": device in ("cpu", "cuda")}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(described, momentum=settings.momentum, **common)
    common["betas"] = (0.9, settings.beta2)
    if settings.optimizer == "muon":
        if all(parameter.ndim <= 2 for parameters in groups.values() for parameter in parameters):
            raise UserError("muon is for the kernels of convolutions, and none are to be trained: take adamw")
        return Muon(described, momentum=settings.momentum, **common)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.optimizer]
    return kind(described, **common)


class Muon(torch.optim.AdamW):
    """Orthogonalised momentum for the kernels of convolutions; AdamW for all other parameters.

    A kernel (outputs, inputs, height, width) is flattened to a matrix with one row per output. Its step is
    the orthogonal matrix nearest to its Nesterov momentum, in which all directions have the same size (Jordan
    et al. 2024, "Muon: An optimizer for hidden layers in neural networks"). The entries of an (M, N) matrix
    with orthonormal rows or columns have the root mean square 1/√max(M, N). The step is multiplied by
    0.2 · √max(M, N), which makes it as large as a step of AdamW, so that the same learning rate and weight
    decay suit both (Liu et al. 2025, arXiv:2502.16982, equation 4).

    `torch.optim.Muon` accepts only matrices.

    Args:
        groups, options: as for `torch.optim.AdamW`.
        momentum: share of the old momentum that each update keeps.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, **options: Any) -> None:
        super().__init__(groups, **options)
        self.momentum = momentum

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update every parameter that has a gradient; afterwards kernels have no gradient any more.

        Args:
            closure: evaluates the model again and returns the loss, which is then returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.ndim > 2 and kernel.grad is not None:
                    self._move(kernel, kernel.grad, group["lr"], group["weight_decay"])
                    kernel.grad = None  # AdamW skips parameters without a gradient
        super().step()
        return loss

    def _move(self, kernel: nn.Parameter, gradient: Tensor, rate: float, decay: float) -> None:
        state = self.state[kernel]
        if not state:  # when AdamW loads a state, it expects a "step" in that of every parameter
            state.update(step=torch.zeros(()), momentum_buffer=torch.zeros_like(kernel))
        state["step"] += 1
        momentum = state["momentum_buffer"].mul_(self.momentum).add_(gradient)
        direction = orthogonalised(gradient.add(momentum, alpha=self.momentum).flatten(1))
        size = MUON_SIZE * math.sqrt(max(direction.shape))
        kernel.mul_(1 - rate * decay).add_(direction.view_as(kernel), alpha=-rate * size)


def orthogonalised(matrix: Tensor) -> Tensor:
    """Return an (M, N) matrix with its singular values mapped to about 1: to 0.7 … 1.2, except tiny ones.

    Five Newton-Schulz steps X ← F X with F = a + b·XXᵀ + c·(XXᵀ)² and Jordan's coefficients, which trade
    exactness for speed. With G = XXᵀ, the next step has the Gram matrix F G Fᵀ = F G F, because F is a
    polynomial in G and symmetric. So all steps are taken on G alone, the smaller of XXᵀ and XᵀX, and X is
    multiplied once, by the product of the factors: about three times fewer multiplications for a wide X.
    """
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T  # in float32: rounding to bfloat16 may make small eigenvalues negative, and they then grow
    product = factor = _factor(gram)
    for _ in range(NEWTON_SCHULZ_STEPS - 1):
        gram = factor @ gram @ factor
        factor = _factor(gram)
        product = factor @ product
    x = product @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def _factor(gram: Tensor) -> Tensor:
    """Return a + b·G + c·G²."""
    a, b, c = NEWTON_SCHULZ
    factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
    factor.diagonal().add_(a)
    return factor


class WeightAverage:
    """Exponential moving average of a model's weights (Polyak & Juditsky 1992), in `self.model`.

    The decay in update u is at most (1 + u) / (10 + u), so that in a short run the initial weights fade, too.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
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
