"""A convolution that is fast where PyTorch's is nearly all overhead: one channel, a kernel of 2×2 pixels."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class ShiftedConv2d(nn.Conv2d):
    """A one-channel 2×2 convolution, computed on the CPU as four shifted multiply-adds.

    PyTorch's convolution of such a small layer is nearly all overhead. Parameters and results (up to
    rounding) are those of `Conv2d`; on other devices `Conv2d` itself computes.
    """

    bias: nn.Parameter  # never None here

    def __init__(self) -> None:
        super().__init__(1, 1, kernel_size=2)
        # A ReLU of one channel follows. If the weights start mostly negative, its output is zero everywhere
        # and it never recovers (two of four seeds, with PyTorch's initial values). So the layer starts
        # close to a shifted copy of its input: one weight is 0.5 to 1, the others −0.25 to 0.25.
        with torch.no_grad():
            self.weight.mul_(0.5).view(-1)[torch.randint(4, ())] += 0.75
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, H, W) to (B, 1, H − 1, W − 1)."""
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype and x.dim() == 4 and x.shape[1] == 1
        # When compiled, PyTorch's convolution is as fast, and this one would be recompiled at every step,
        # because it reads the weights as Python numbers.
        if plain and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling():
            return _ShiftedConvolution.apply(x, self.weight, self.bias)
        return super().forward(x)


def _shifted_views(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the part of x (B, 1, H, W) that each of the 2×2 weights multiplies, (B, 1, H − 1, W − 1)."""
    height, width = x.shape[2] - 1, x.shape[3] - 1
    above, below = x.narrow(2, 0, height), x.narrow(2, 1, height)
    return (
        above.narrow(3, 0, width),
        above.narrow(3, 1, width),
        below.narrow(3, 0, width),
        below.narrow(3, 1, width),
    )


class _ShiftedConvolution(torch.autograd.Function):
    """The convolution y[i, j] = b + Σ w[k, l] · x[i + k, j + l], k, l ∈ {0, 1}, and its gradients.

    With g = ∂L/∂y, and x_kl the part of x that w[k, l] multiplies (a shifted view, shaped like y):

        ∂L/∂w[k, l] = Σ g · x_kl,   ∂L/∂b = Σ g,

    and ∂L/∂x is the sum of all w[k, l] · g, each added at the place of x_kl in x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        views, ctx.factors = _shifted_views(x), weight.flatten().tolist()
        ctx.save_for_backward(x, *views)
        out = torch.add(bias.view(1, 1, 1, 1), views[0], alpha=ctx.factors[0])
        for view, factor in zip(views[1:], ctx.factors[1:], strict=True):
            out.add_(view, alpha=factor)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor]:
        x, *views = ctx.saved_tensors
        x_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = torch.zeros_like(x)
            for view, factor in zip(_shifted_views(x_gradient), ctx.factors, strict=True):
                view.add_(gradient, alpha=factor)
        weight_gradient = torch.stack([(gradient * view).sum() for view in views])
        return x_gradient, weight_gradient.view(1, 1, 2, 2), gradient.sum().view(1)
