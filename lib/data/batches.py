"""Batches of examples: rows of tensors on the device (a batch is an index), or files read by workers."""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import default_collate

from lib.data.workers import in_workers
from lib.runtime import distributed
from lib.runtime.errors import RunFailed, UserError

Transform = Callable[[Tensor], Tensor]
_FILES_A_BATCH = 128  # in validation
_Item = tuple[int, int | None]  # number of an example, and the seed of its crop


def epoch_seed(seed: int, epoch: int) -> int:
    """Return a number of its own for each pair (seed, epoch), up to 1,000,003 epochs.

    The sum of both would give run 1 in epoch 0 the order of run 0 in epoch 1.
    """
    return seed * 1_000_003 + epoch


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return a new generator for that epoch, so that no other draw of random numbers changes its order."""
    return torch.Generator().manual_seed(epoch_seed(seed, epoch))


class Shuffled:
    """Shuffled batches of example numbers, reshuffled every epoch; the base of the batches to train on.

    The order of the examples is a pure function of (seed, epoch), not of how many batches were drawn
    before, so a resumed run continues with exactly the batches it has not seen. Each rank takes its share
    of every batch. Batch normalisation needs two examples per rank: a last batch that is smaller is merged
    into the one before it.

    Args:
        examples: number of examples.
        batch_size: examples per batch, over all ranks.
        seed: seed of the shuffle.

    Raises:
        UserError: `batch_size` gives a rank fewer than two examples.
    """

    def __init__(self, examples: int, batch_size: int, seed: int):
        least = 2 * distributed.world_size()
        if batch_size < least:
            raise UserError(f"--batch-size {batch_size} is too small: each rank needs two examples, {least}")
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        whole, rest = divmod(examples, batch_size)
        self._length = max(1, whole + (rest >= least))

    def __len__(self) -> int:
        return self._length

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of `epoch` from number `start` on."""
        raise NotImplementedError

    def rows(self, order: Tensor, start: int) -> Iterator[Tensor]:
        """Yield this rank's part of each batch of an epoch in the given order, from number `start` on."""
        rank, ranks = distributed.rank(), distributed.world_size()
        for number in range(start, len(self)):
            end = (number + 1) * self.batch_size if number + 1 < len(self) else self.examples
            yield order[number * self.batch_size + rank : end : ranks]

    def order(self, epoch: int) -> Tensor:
        """Return the permutation of the examples in that epoch, (N,)."""
        return torch.randperm(self.examples, generator=epoch_generator(self.seed, epoch))


class TensorBatches(Shuffled):
    """Shuffled batches of tensors of equal length, e.g. images (N, C, H, W) and labels (N,).

    Args:
        tensors: tensors of N rows each, on the device where the batches are wanted.
        batch_size, seed: see `Shuffled`.
        transform: applied to the first tensor of each batch (augmentation).
    """

    def __init__(self, *tensors: Tensor, batch_size: int, seed: int, transform: Transform | None = None):
        super().__init__(len(tensors[0]), batch_size, seed)
        self.tensors = tensors
        self.transform = transform

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of `epoch` from number `start` on."""
        for index in self.rows(self.order(epoch).to(self.tensors[0].device), start):
            yield self._take(index)

    def _take(self, index: Tensor) -> tuple[Tensor, ...]:
        first, *others = (tensor.index_select(0, index) for tensor in self.tensors)
        return (self.transform(first) if self.transform else first, *others)


class ScheduledBatches:
    """A schedule of batches: `first` for a number of epochs, then `then`.

    Both must have the same number of examples and of batches per epoch.

    Args:
        first: batches of the first epochs.
        epochs: number of epochs that use `first`.
        then: batches of all later epochs, which may be a schedule again.
    """

    def __init__(self, first: Shuffled, epochs: int, then: "Shuffled | ScheduledBatches"):
        self.first, self.epochs, self.then = first, epochs, then

    def __len__(self) -> int:
        return len(self.then)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of `epoch` from number `start` on."""
        return (self.first if epoch < self.epochs else self.then).epoch(epoch, start)


class InOrder:
    """One pass over tensors in order, for validation. The ranks share the rows; no row comes twice.

    Args:
        tensors: tensors of N rows each.
        batch_size: rows per batch on each rank.
        transform: applied to the first tensor of each batch.
        distributed_over_ranks: give each rank its share; otherwise every rank gets all rows.
    """

    def __init__(
        self,
        *tensors: Tensor,
        batch_size: int = 1000,
        transform: Transform | None = None,
        distributed_over_ranks: bool = True,
    ):
        self.tensors = tensors
        self.batch_size = batch_size
        self.transform = transform
        self.over_ranks = distributed_over_ranks

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for rows in _in_order(len(self.tensors[0]), self.batch_size, self.over_ranks):
            first, *others = (tensor[rows] for tensor in self.tensors)
            yield (self.transform(first) if self.transform else first, *others)


def _in_order(examples: int, batch_size: int, over_ranks: bool) -> Iterator[slice]:
    """Yield this rank's rows of each batch as a slice; batches without a row on this rank are skipped."""
    rank = distributed.rank() if over_ranks else 0
    ranks = distributed.world_size() if over_ranks else 1
    for first in range(0, examples, batch_size * ranks):
        if first + rank < examples:
            yield slice(first + rank, min(first + batch_size * ranks, examples), ranks)


class ImageReader(Protocol):
    """The data set behind `FileBatches` and `FilesInOrder`: it reads one image, in a worker process."""

    def __getitem__(self, item: _Item, /) -> tuple[Tensor, int]:
        """Return the image (C, H, W), uint8, and the label of `(number, seed of its crop or None)`."""


class FileBatches(Shuffled):
    """Shuffled batches of images that worker processes read from files when they are needed.

    Like the order, the crop of an image is a pure function of (seed, epoch, number of the image).

    Args:
        reader: reads one example.
        examples: number of examples in `reader`.
        finish: turns uint8 images (B, C, H, W) into network inputs: moves them to the device, scales and
            augments them.
        workers: number of worker processes; 0 reads in this process.
        device: device of the labels.
        batch_size, seed: see `Shuffled`.
    """

    def __init__(
        self,
        reader: ImageReader,
        examples: int,
        *,
        batch_size: int,
        seed: int,
        finish: Transform,
        workers: int,
        device: torch.device,
    ):
        super().__init__(examples, batch_size, seed)
        self.reader, self.finish, self.workers, self.device = reader, finish, workers, device

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of `epoch` from number `start` on."""
        # Distinct for each (seed, epoch, example), as `epoch_seed` is for each (seed, epoch).
        first = epoch_seed(self.seed, epoch) * self.examples
        rows = self.rows(self.order(epoch), start)
        numbered: Iterator[list[_Item]] = (
            [(row, (first + row) % 2**63) for row in batch.tolist()] for batch in rows
        )
        return _read(self.reader, numbered, self.finish, self.workers, self.device)


class FilesInOrder:
    """One pass over image files in order, like `InOrder` over tensors; arguments as for `FileBatches`."""

    def __init__(
        self,
        reader: ImageReader,
        examples: int,
        *,
        finish: Transform,
        workers: int,
        device: torch.device,
        distributed_over_ranks: bool = True,
    ):
        self.reader, self.examples, self.finish = reader, examples, finish
        self.workers, self.device = workers, device
        self.over_ranks = distributed_over_ranks

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        slices = _in_order(self.examples, _FILES_A_BATCH, self.over_ranks)
        numbered: Iterator[list[_Item]] = (
            [(row, None) for row in range(self.examples)[rows]] for rows in slices
        )
        yield from _read(self.reader, numbered, self.finish, self.workers, self.device)


def _read(
    reader: ImageReader,
    batches: Iterable[list[_Item]],
    finish: Transform,
    workers: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches; see `in_workers` for what happens if a worker dies.

    Raises:
        RunFailed: an image that could be read before cannot be read any more.
    """

    def read(batch: list[_Item]) -> tuple[Tensor, Tensor]:
        # In a worker, `default_collate` builds the batch in shared memory at once.
        return default_collate([reader[item] for item in batch])

    ready = in_workers(read, batches, workers, pin_memory=device.type == "cuda")
    while True:
        try:
            images, labels = next(ready)
        except StopIteration:
            return
        except UserError as error:
            raise RunFailed(
                f"{error}; it could be read when the run began: put it back, and --resume"
            ) from None
        yield finish(images), labels.to(device, non_blocking=True)
