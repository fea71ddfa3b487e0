"""The batch size for forward passes, measured during the work, as no size is best everywhere; or guessed.

On one core, MobileNet-V2 processes 75 images of 224 px per second in batches of 2, 51 in batches of 8, and 38
in batches of 32, because larger activations do not fit the caches. ResNet-18 is fastest from 8 on. A GPU
needs hundreds.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lib.models.layers import evaluating
from lib.runtime.errors import RunFailed

LARGEST = 4096
# The most elements in a batch of inputs. Larger batches are not faster, and other processes need memory, too.
_MOST_NUMBERS_ON_CPU = 10_000_000
_MOST_NUMBERS_ON_A_DEVICE = 80_000_000
_WORTHWHILE = 1.05  # a larger batch is kept only if it is faster by this factor
_MEASUREMENTS = 2  # per size; the faster one counts, because other processes may have slowed down the other
_SMALL_IMAGE = 64 * 64  # pixels
# Numbers in the largest activation of a batch, 20 MB: on two cores, SqueezeNet and MobileNet-V2 are fastest
# in batches of 4 images of 224 px, ResNet-18 in 8, ShuffleNet in 16 or more.
_ACTIVATION = 5_000_000
_SUITED_ON_A_DEVICE, _MOST_SUITED = 64, 256


def largest(image: Tensor) -> int:
    """Return the largest batch size that is worth trying for inputs like `image` (C, H, W)."""
    on_cpu = image.device.type == "cpu"
    numbers = _MOST_NUMBERS_ON_CPU if on_cpu else _MOST_NUMBERS_ON_A_DEVICE
    return max(1, min(LARGEST, numbers // image.numel()))


def first(image: Tensor) -> int:
    """Return the batch size to begin with for inputs like `image` (C, H, W)."""
    if image.device.type != "cpu":
        return 32  # on an H200, integrated gradients of a ResNet-50 are 1.2 times as fast as by 16
    return 16 if is_small(image) else 2


def is_small(image: Tensor) -> bool:
    """Return whether batches of inputs like `image` (C, H, W) fit the caches: no size needs measuring."""
    return image[0].numel() <= _SMALL_IMAGE


def suited(module: nn.Module, image: Tensor, *, bfloat16: bool = False) -> int:
    """Return a batch size that is fast for inputs like `image` (C, H, W), always the same one for a network.

    On a CPU it follows from the network's largest activation, found in one forward pass; in bfloat16, twice
    as many find room.
    """
    if image.device.type != "cpu":
        return _SUITED_ON_A_DEVICE
    kept = _SUITED.setdefault(module, {})
    if image.shape not in kept:
        kept[image.shape] = max(1, min(_MOST_SUITED, round(_ACTIVATION / _largest_activation(module, image))))
    return kept[image.shape] * (2 if bfloat16 else 1)


_SUITED: WeakKeyDictionary[nn.Module, dict[torch.Size, int]] = WeakKeyDictionary()


def _largest_activation(module: nn.Module, image: Tensor) -> int:
    """Return the number of values in the largest output of a module for one image."""
    sizes = [image.numel()]

    def note(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    handles = [each.register_forward_hook(note) for each in module.modules()]
    try:
        with evaluating(module), torch.no_grad():
            module(image[None])
    finally:
        for handle in handles:
            handle.remove()
    return max(sizes)


class BatchSizeTuner:
    """Search for the fastest batch size during the work: the size is doubled as long as that pays.

    Args:
        most: the largest size.
        first: the size to begin with.

    Attributes:
        size: size of the next batch.
    """

    def __init__(self, most: int = LARGEST, first: int = 16) -> None:
        self._most = most
        self._best_rate = 0.0
        self._rates: list[float] = []  # inputs per second, measured with the present size
        self._is_warm = False
        self._is_settled = False
        self.size = max(1, min(first, most))

    def note(self, count: int, seconds: float) -> None:
        """Record that a batch of `count` inputs took `seconds`, and choose the next size."""
        if self._is_settled or count != self.size:
            return
        if not self._is_warm:  # the first batch of a size also allocates memory and chooses kernels
            self._is_warm = True
            return
        self._rates.append(count / max(seconds, 1e-9))
        if len(self._rates) < _MEASUREMENTS:
            return
        rate = max(self._rates)
        if rate < _WORTHWHILE * self._best_rate:
            self.size //= 2
            self._is_settled = True
            return
        self._best_rate, self._rates, self._is_warm = rate, [], False
        self._is_settled = 2 * self.size > self._most
        if not self._is_settled:
            self.size *= 2

    def halve(self) -> None:
        """Halve the size, because a batch did not fit into memory, and keep it from now on.

        Raises:
            RunFailed: the batch held one input.
        """
        if self.size == 1:
            raise RunFailed("memory does not even hold a batch of one image")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.size //= 2
        self._is_settled = True


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether `error` says that the memory of the device or of the machine is used up."""
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
