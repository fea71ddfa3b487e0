"""Batches of examples: of tensors on the device, where a batch is an index, and of image files."""

import signal
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lib.runtime import distributed
from lib.runtime.errors import UserError

Transform = Callable[[Tensor], Tensor]


class Shuffled:
    """The batches of so many examples, by their numbers, in an order that is new in every epoch.

    The order of examples is a pure function of (seed, epoch), never of how often batches were drawn, so
    a run that was stopped goes on with the batches it had not seen. Each rank takes its share of every
    batch. A last batch too small to give each rank two examples, which batch normalisation needs, joins
    the one before it.

    Args:
        examples: how many there are.
        batch_size: examples a batch, over all ranks.
        seed: of the shuffle.

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

    def rows(self, order: Tensor, start: int) -> Iterator[Tensor]:
        """Yield this rank's examples of each batch of an epoch in the given order, from number `start` on."""
        rank, ranks = distributed.rank(), distributed.world_size()
        for number in range(start, len(self)):
            end = (number + 1) * self.batch_size if number + 1 < len(self) else self.examples
            yield order[number * self.batch_size + rank : end : ranks]

    def order(self, epoch: int) -> Tensor:
        """Return the numbers of all examples in the order of that epoch, (N,)."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return torch.randperm(self.examples, generator=generator)


class TensorBatches(Shuffled):
    """The batches of some tensors of equal length, e.g. images (N, C, H, W) and labels (N,).

    Args:
        tensors: tensors of N rows each.
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


class Phases:
    """Some epochs of certain batches, and then of others: as many an epoch, of as many examples.

    Args:
        first: the batches of the first epochs.
        epochs: how many those are.
        then: the batches of the epochs after them.
    """

    def __init__(self, first: Shuffled, epochs: int, then: Shuffled):
        self.first, self.epochs, self.then = first, epochs, then

    def __len__(self) -> int:
        return len(self.then)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches of `epoch` from number `start` on."""
        return (self.first if epoch < self.epochs else self.then).epoch(epoch, start)


class InOrder:
    """The rows of some tensors in order, once: for validation. Each rank takes its share, none twice.

    Args:
        tensors: tensors of N rows each.
        batch_size: rows at once.
        transform: applied to the first tensor of each batch.
        distributed_over_ranks: each rank its share; otherwise all rows on every rank.
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
    """Yield the rows of each batch that has any on this rank."""
    rank = distributed.rank() if over_ranks else 0
    ranks = distributed.world_size() if over_ranks else 1
    for first in range(0, examples, batch_size * ranks):
        if first + rank < examples:
            yield slice(first + rank, min(first + batch_size * ranks, examples), ranks)


class Reader(Protocol):
    """What reads the images of a `FileBatches` or a `FilesInOrder`, in a worker process."""

    def __getitem__(self, item: tuple[int, int | None]) -> tuple[Tensor, int]:
        """Return (image (C, H, W), uint8, and label) of a number; a seed, or None, says how to crop it."""


class FileBatches(Shuffled):
    """The batches of images that are read as they are needed, by worker processes.

    How an image is cropped is a pure function of (seed, epoch, its number), as their order is.

    Args:
        reader: of the examples.
        examples: how many it has.
        finish: uint8 images (B, C, H, W) to what the network takes: on their device, scaled, augmented.
        workers: processes; 0 to read in this one.
        device: of the labels.
        batch_size, seed: see `Shuffled`.
    """

    def __init__(
        self,
        reader: Reader,
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
        first = (self.seed * 1_000_003 + epoch) * self.examples
        rows = self.rows(self.order(epoch), start)
        numbered = ([(row, (first + row) % 2**63) for row in batch.tolist()] for batch in rows)
        return _read(self.reader, numbered, self.finish, self.workers, self.device)


class FilesInOrder:
    """Images in order, once, as `InOrder` has the rows of tensors; arguments as for `FileBatches`."""

    def __init__(
        self,
        reader: Reader,
        examples: int,
        *,
        finish: Transform,
        workers: int,
        device: torch.device,
        batch_size: int = 128,
        distributed_over_ranks: bool = True,
    ):
        self.reader, self.examples, self.finish = reader, examples, finish
        self.workers, self.device = workers, device
        self.batch_size, self.over_ranks = batch_size, distributed_over_ranks

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        slices = _in_order(self.examples, self.batch_size, self.over_ranks)
        numbered = ([(row, None) for row in range(self.examples)[rows]] for rows in slices)
        yield from _read(self.reader, numbered, self.finish, self.workers, self.device)


def _read(
    reader: Reader,
    batches: Iterable[list[tuple[int, int | None]]],
    finish: Transform,
    workers: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    loader = DataLoader(
        reader,
        batch_sampler=list(batches),
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=start_worker,
        # Without one of its own, the loader would take its seed from the global random numbers, which
        # are those of the update.
        generator=torch.Generator().manual_seed(0),
    )
    for images, labels in loader:
        yield finish(images), labels.to(device, non_blocking=True)


def start_worker(_number: int) -> None:
    """Make this process, just started, a worker of a `DataLoader`."""
    # Ctrl-C reaches every process of the terminal; the main one saves, and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
