"""Statistics of the outputs of a network's convolutions: mean, variance, sparsity and histogram."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from lib.evaluation.tables import aligned, four_decimals
from lib.models import layers


class Activations(NamedTuple):
    """Statistics of a convolution's outputs, over examples, channels and positions.

    Attributes:
        layer: name of the convolution.
        mean, variance: of its outputs.
        sparsity: share of zeros in the output of the next activation function; None if the next convolution
            comes before any.
        counts: histogram (bins,) of its outputs over `limits`; outputs beyond are in the outermost bins.
        limits: the ends of the histogram.
    """

    layer: str
    mean: float
    variance: float
    sparsity: float | None
    counts: np.ndarray
    limits: tuple[float, float]


_ACTIVATION_FUNCTIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Tanh)


class _Outputs:
    """Running sums over the outputs of one convolution.

    `behind` and `zeros` count the outputs, and the zeros among them, of the activation function that follows.
    """

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.count, self.mean = 0, 0.0
        self.squares = 0.0  # Σ (x − mean)²
        self.behind, self.zeros = 0, 0
        self.limit, self.counts = 0.0, torch.zeros(bins, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        values = values.detach().float()
        if not self.count:  # the first batch sets the range of the histogram
            self.limit = max(values.abs().max().item(), 1e-12)
        self._add_moments(values.flatten(0, -2))
        # In parts: `histc` counts in float32, which is exact only up to 2**24.
        for part in values.clamp(-self.limit, self.limit).flatten().split(2**24):
            self.counts += torch.histc(part, self.bins, -self.limit, self.limit).cpu()

    def _add_moments(self, rows: Tensor) -> None:
        """Add the outputs (R, W) to the mean and to the sum of squared deviations from it.

        Batches a and b of n_a and n_b outputs are combined by (Chan, Golub & LeVeque 1983)

            Σ_ab = Σ_a + Σ_b + (mean_b − mean_a)² · n_a · n_b / (n_a + n_b)

        All terms are sums of squares. The difference of the mean square and the squared mean would cancel
        where the mean is large compared with the deviation, and could come out negative.
        """
        count = rows.numel()
        # Sum each row in float32 and then the rows in float64 on the CPU, because MPS has no float64.
        mean = rows.sum(1).cpu().double().sum().item() / count
        squares = (rows - mean).square_().sum(1).cpu().double().sum().item()
        between, whole = mean - self.mean, self.count + count
        self.squares += squares + between**2 * self.count * count / whole
        self.mean += between * count / whole
        self.count = whole

    def add_behind(self, values: Tensor) -> None:
        self.behind += values.numel()
        self.zeros += int((values == 0).sum())

    def statistics(self, layer: str) -> Activations:
        sparsity = self.zeros / self.behind if self.behind else None
        variance = self.squares / self.count
        return Activations(
            layer, self.mean, variance, sparsity, self.counts.numpy(), (-self.limit, self.limit)
        )


def activation_statistics(model: nn.Module, batches: Iterable[Tensor], bins: int = 80) -> list[Activations]:
    """Return the statistics of every convolution that `model`, in eval mode, calls, in order of execution.

    The sparsity is known only of activation functions that are modules (`nn.ReLU` and not `F.relu`).
    """
    found: dict[str, _Outputs] = {}
    latest: list[_Outputs] = []  # the last convolution, until an activation function follows it; else empty

    def convolved(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def add(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            latest[:] = [found.setdefault(name, _Outputs(bins))]
            latest[0].add(output)

        return add

    def activated(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        while latest:
            latest.pop().add_behind(output)

    handles = []
    try:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                handles.append(module.register_forward_hook(convolved(name)))
            elif isinstance(module, _ACTIVATION_FUNCTIONS):
                handles.append(module.register_forward_hook(activated))
        with layers.evaluating(model), torch.no_grad():
            for inputs in batches:
                latest.clear()
                model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [outputs.statistics(name) for name, outputs in found.items()]


def activation_table(activations: Sequence[Activations]) -> list[str]:
    """Return the mean, variance and sparsity of each convolution as aligned lines of text."""
    rows = [
        (
            row.layer,
            four_decimals(row.mean),
            four_decimals(row.variance),
            "-" if row.sparsity is None else four_decimals(row.sparsity),
        )
        for row in activations
    ]
    return aligned([("convolution", "mean", "variance", "sparsity"), *rows])
