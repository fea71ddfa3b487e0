"""What a ReLU passes back, by another rule than its derivative, however a network spells its ReLUs."""

import math
from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from lib.runtime.errors import UserError

RULES = ("guided", "deconvnet")

# They stand in a ReLU's place, and are none. Sigmoid and tanh do not: they gate or squash.
_OTHER_ACTIVATIONS = (
    "celu",
    "elu",
    "gelu",
    "hardswish",
    "leaky_relu",
    "mish",
    "prelu",
    "rrelu",
    "selu",
    "silu",
)


class _Call(NamedTuple):
    """A call of min(max(0, x), ceiling)."""

    x: Tensor
    ceiling: float = math.inf
    inplace: bool = False


def _relu(input: Tensor, inplace: bool = False) -> _Call:
    return _Call(input, inplace=inplace)


def _relu6(input: Tensor, inplace: bool = False) -> _Call:
    return _Call(input, 6.0, inplace)


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> _Call | None:
    return _Call(input, max_val, inplace) if min_val == 0 else None


# By name, because `torch.relu`, `Tensor.relu` and `functional.relu` are different objects that share one.
_SPELLINGS = {"relu": _relu, "relu6": _relu6, "hardtanh": _hardtanh}


class RectifierRule(TorchFunctionMode):
    """Within this context, every ReLU that is called passes gradients back by a rule.

    Modules, functions, methods and their forms in place all arrive here as functions (a hook on `nn.ReLU`
    would miss all but the first), and do forward what they always do.

    Attributes:
        intercepted: how many ReLUs were called.
        others: how often activations were called that are no ReLU, by name.

    Raises:
        UserError: no such rule.
    """

    def __init__(self, rule: str):
        super().__init__()
        if rule not in RULES:
            raise UserError(f"there is no rule {rule!r}; choose from {', '.join(RULES)}")
        self.rule = rule
        self.intercepted = 0
        self.others: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        plain = name.removesuffix("_")
        call = _SPELLINGS[plain](*args, **kwargs) if plain in _SPELLINGS else None
        if call is None:
            self.others.update([plain] if plain in _OTHER_ACTIVATIONS else [])
            return func(*args, **kwargs)
        self.intercepted += 1
        in_place = call.inplace or name.endswith("_")
        return _Rectifier.apply(call.x, call.ceiling, self.rule == "guided", in_place)

    def check(self, network: str) -> None:
        """Complain if a rule for ReLUs says nothing, or not all there is to say, about a network.

        Raises:
            UserError: the `network` called no ReLU, or also activations of another kind.
        """
        others = ", ".join(sorted(self.others))
        if others:
            raise UserError(
                f"the {self.rule} rule is for ReLUs, and does not apply to the {others} of {network}"
            )
        if not self.intercepted:
            raise UserError(f"the {self.rule} rule is for ReLUs, and {network} calls none")


class _Rectifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, ceiling: float, guided: bool, in_place: bool) -> Tensor:
        rectified = x.clamp_(0, ceiling) if in_place else x.clamp(0, ceiling)
        if in_place:
            ctx.mark_dirty(rectified)
        # What came out tells as well as what went in, which in place is gone, where the ReLU was open.
        ctx.save_for_backward(*([rectified] if guided else []))
        ctx.ceiling = ceiling
        return rectified

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        passed = gradient.relu()
        for rectified in ctx.saved_tensors:
            passed = torch.ops.aten.hardtanh_backward(passed, rectified, 0, ctx.ceiling)
        return passed, None, None, None
