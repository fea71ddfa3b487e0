"""Batches of data that fit in memory: a data set is one tensor on the device, a batch is an index."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from lib import distributed
from lib.errors import UserError


class TensorBatches:
    """The batches of some tensors of equal length, e.g. images (N, C, H, W) and labels (N,).

    The order of examples is a pure function of (seed, epoch), never of how often batches were drawn, so
    a run that was stopped goes on with the batches it had not seen. Each rank takes its share of every
    batch. A last batch too small to give each rank two examples, which batch normalisation needs, joins
    the one before it.

    Args:
        tensors: tensors of N rows each.
        batch_size: examples a batch, over all ranks.
        seed: of the shuffle.
        transform: applied to the first tensor of each batch (augmentation).

    Raises:
        UserError: `batch_size` gives a rank fewer than two examples.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int,
        seed: int,
        transform: Callable[[Tensor], Tensor] | None = None,
    ):
        least = 2 * distributed.world_size()
        if batch_size < least:
            raise UserError(f"--batch-size {batch_size} is too small: each rank needs two examples, {least}")
        self.tensors = tensors
        self.batch_size = batch_size
        self.seed = seed
        self.transform = transform
        self.examples = len(tensors[0])
        whole, rest = divmod(self.examples, batch_size)
        self._length = max(1, whole + (rest >= least))

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of `epoch` from number `start` on."""
        order = self._order(epoch)
        rank, ranks = distributed.rank(), distributed.world_size()
        for number in range(start, len(self)):
            end = (number + 1) * self.batch_size if number + 1 < len(self) else self.examples
            index = order[number * self.batch_size + rank : end : ranks]
            yield self._take(index)

    def _order(self, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.examples, generator=generator).to(self.tensors[0].device)

    def _take(self, index: Tensor) -> tuple[Tensor, ...]:
        first, *others = (tensor.index_select(0, index) for tensor in self.tensors)
        return (self.transform(first) if self.transform else first, *others)


class InOrder:
    """The rows of some tensors in order, once: for validation. Each rank takes its share, none twice."""

    def __init__(self, *tensors: Tensor, batch_size: int = 1000, distributed_over_ranks: bool = True):
        ranked = distributed_over_ranks
        self.rank = distributed.rank() if ranked else 0
        self.ranks = distributed.world_size() if ranked else 1
        self.tensors = tensors
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for first in range(0, len(self.tensors[0]), self.batch_size * self.ranks):
            rows = slice(first + self.rank, first + self.batch_size * self.ranks, self.ranks)
            batch = tuple(tensor[rows] for tensor in self.tensors)
            if len(batch[0]):
                yield batch
