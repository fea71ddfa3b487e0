"""Modified backpropagation through ReLUs, in whatever form a network calls them."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lib.models.layers import CallInterceptor
from lib.runtime.errors import UserError

RULES = ("guided", "deconvnet")

# Activation functions that are used in place of a ReLU. Sigmoid and tanh are not listed, because networks use
# them as gates or to limit a range.
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
    """The arguments of a call of min(max(0, x), ceiling)."""

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


# By name, because `torch.relu`, `Tensor.relu` and `functional.relu` are different objects with the same name.
_SPELLINGS: dict[str, Callable[..., _Call | None]] = {"relu": _relu, "relu6": _relu6, "hardtanh": _hardtanh}


class RectifierRule(CallInterceptor):
    """Context in which every ReLU that is called passes gradients back by a rule.

    A `TorchFunctionMode` intercepts modules, functions, methods and their in-place variants alike, whereas a
    hook on `nn.ReLU` would miss all but the first. The forward pass is unchanged.

    Attributes:
        intercepted: number of calls of ReLUs.
        others: number of calls of other activation functions, by name.

    Raises:
        UserError: no such rule.
    """

    def __init__(self, rule: str) -> None:
        super().__init__()
        if rule not in RULES:
            raise UserError(f"there is no rule {rule!r}; choose from {', '.join(RULES)}")
        self.rule = rule
        self.intercepted = 0
        self.others: Counter[str] = Counter()

    def intercept(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
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
        """Refuse networks for which the rule is not defined; call this after the forward pass.

        Args:
            network: name of the network, for error messages.

        Raises:
            UserError: the network called no ReLU, or it also called other activation functions.
        """
        others = ", ".join(sorted(self.others))
        if others:
            raise UserError(
                f"the {self.rule} rule is for ReLUs, and does not apply to the {others} of {network}"
            )
        if not self.intercepted:
            raise UserError(f"the {self.rule} rule is for ReLUs, and {network} calls none")


class _Rectifier(torch.autograd.Function):
    """min(max(0, x), ceiling) with a modified gradient.

    The gradient g at the output becomes ReLU(g) at the input; with `guided`, only where 0 < x < ceiling.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ceiling: float, guided: bool, in_place: bool) -> Tensor:
        rectified = x.clamp_(0, ceiling) if in_place else x.clamp(0, ceiling)
        if in_place:
            ctx.mark_dirty(rectified)
        # The output shows where the ReLU was open as well as the input, which an in-place ReLU overwrites.
        ctx.save_for_backward(*([rectified] if guided else []))
        ctx.ceiling = ceiling
        return rectified

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        passed = gradient.relu()
        for rectified in ctx.saved_tensors:
            passed = torch.ops.aten.hardtanh_backward(passed, rectified, 0, ctx.ceiling)
        return passed, None, None, None
