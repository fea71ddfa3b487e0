"""How many inputs to give a network at once: measured on the way, because no size is best everywhere.

On one core, MobileNet-V2 answers 75 images of 224 px a second in batches of 2, 51 in batches of 8 and 38 in
batches of 32, whose activations leave the caches. ResNet-18 is fastest from 8 on. A GPU wants hundreds.
"""

import torch
from torch import Tensor

from lib.runtime.errors import RunFailed

LARGEST = 4096
# Numbers in a batch of inputs: more of them make nothing faster, and other processes need memory, too.
_MOST_NUMBERS_ON_CPU = 10_000_000
_MOST_NUMBERS_ON_A_DEVICE = 80_000_000
_WORTHWHILE = 1.05  # a larger batch is kept as long as it is faster by this factor
_MEASUREMENTS = 2  # of each size; the faster one counts, for other processes disturb the slower one
_SMALL_IMAGE = 64 * 64  # pixels


def largest(image: Tensor) -> int:
    """Return how many inputs like `image` (C, H, W) are worth a forward pass at most."""
    on_cpu = image.device.type == "cpu"
    numbers = _MOST_NUMBERS_ON_CPU if on_cpu else _MOST_NUMBERS_ON_A_DEVICE
    return max(1, min(LARGEST, numbers // image.numel()))


def first(image: Tensor) -> int:
    """Return the size to begin with for inputs like `image` (C, H, W)."""
    return 2 if image.device.type == "cpu" and image[0].numel() > _SMALL_IMAGE else 16


class BatchSizeTuner:
    """Finds the batch size that is fastest while the work is done: doubled as long as that pays.

    Args:
        most: the largest size.
        first: the size to begin with.

    Attributes:
        size: of the next batch.
    """

    def __init__(self, most: int = LARGEST, first: int = 16):
        self._most = most
        self._best_rate = 0.0
        self._rates: list[float] = []  # of the present size
        self._is_warm = False
        self._is_settled = False
        self.size = max(1, min(first, most))

    def note(self, count: int, seconds: float) -> None:
        """Take note of how long a batch of `count` took."""
        if self._is_settled or count != self.size:
            return
        if not self._is_warm:  # the first batch of a size pays for memory and for choosing kernels
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
        """Take note that a batch did not fit into memory.

        Raises:
            RunFailed: it was one input.
        """
        if self.size == 1:
            raise RunFailed("memory does not even hold a batch of one image")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.size //= 2
        self._is_settled = True


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell whether `error` says that memory, the device's or the machine's, is used up."""
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text
