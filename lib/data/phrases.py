"""Batches of phrases of equal length, so that nothing is padded, masked, or changed by padding."""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lib.data.batches import epoch_generator
from lib.data.tokens import Encoded, Phrases
from lib.runtime import distributed


class PhraseBatches:
    """Shuffled batches of labelled phrases for training; all phrases of a batch have the same length.

    The composition and the order of the batches are a pure function of (seed, epoch); the number of batches
    is the same in every epoch. Each rank takes its share of every batch; the share may be empty if there
    are few phrases of a length.

    Args:
        encoded: N phrases.
        labels: (N,).
        batch_size: most phrases per batch, over all ranks.
        max_tokens: most words per batch, over all ranks (a batch has at least one phrase).
        seed: seed of the shuffle.
        swap: augmentation that exchanges parts of phrases; None for none.
    """

    def __init__(
        self,
        encoded: Encoded,
        labels: Tensor,
        *,
        batch_size: int,
        max_tokens: int,
        seed: int,
        swap: "PhraseSwap | None" = None,
    ):
        self.encoded, self.labels, self.seed, self.swap = encoded, labels, seed, swap
        self.bounds = _bounds(encoded.lengths, batch_size, max_tokens)

    def __len__(self) -> int:
        return len(self.bounds)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Phrases, Tensor]]:
        """Yield the batches of `epoch` from number `start` on."""
        generator = epoch_generator(self.seed, epoch)
        rows = torch.randperm(len(self.encoded), generator=generator).to(self.labels.device)
        # Shuffled first and then sorted by length, stably: phrases of one length stay shuffled.
        rows = rows[self.encoded.lengths[rows].argsort(stable=True)]
        rank, ranks = distributed.rank(), distributed.world_size()
        for number in torch.randperm(len(self), generator=generator).tolist()[start:]:
            first, end = self.bounds[number]
            tokens = self.encoded.rows(rows[first:end])
            if self.swap:
                tokens = self.swap(tokens, rows[first:end])
            yield self.encoded.phrases(tokens[rank::ranks]), self.labels[rows[first:end]][rank::ranks]


class PhrasesInOrder:
    """One pass over all phrases, shortest first, for validation and prediction.

    Args:
        encoded: N phrases.
        labels: (N,).
        max_tokens: most words per batch (a batch has at least one phrase).
        distributed_over_ranks: give each rank its share; otherwise every rank gets all phrases.

    Attributes:
        order: row of each phrase, in the order in which the phrases are yielded.
    """

    def __init__(
        self,
        encoded: Encoded,
        labels: Tensor,
        *,
        max_tokens: int = 16384,
        distributed_over_ranks: bool = True,
    ):
        rows = torch.arange(len(encoded), device=labels.device)
        if distributed_over_ranks:
            rows = rows[distributed.rank() :: distributed.world_size()]
        lengths = encoded.lengths[rows]
        self.encoded, self.labels = encoded, labels
        self.order = rows[lengths.argsort(stable=True)]
        self.bounds = _bounds(lengths, len(rows), max_tokens)

    def __len__(self) -> int:
        return len(self.bounds)

    def __iter__(self) -> Iterator[tuple[Phrases, Tensor]]:
        for first, end in self.bounds:
            rows = self.order[first:end]
            yield self.encoded.phrases(self.encoded.rows(rows)), self.labels[rows]

    def restored(self, answers: Tensor) -> Tensor:
        """Return `answers` (N, …), given in the order of iteration, in the order of the rows."""
        return torch.empty_like(answers).index_copy_(0, self.order.to(answers.device), answers)


def _bounds(lengths: Tensor, batch_size: int, max_tokens: int) -> list[tuple[int, int]]:
    """Divide phrases that are sorted by length into batches of one length: `(first, end)` of each.

    The phrases of a length are divided into as few batches as the limits allow, nearly equal in size.
    """
    bounds: list[tuple[int, int]] = []
    first = 0
    for length, count in zip(*(t.tolist() for t in torch.unique(lengths, return_counts=True)), strict=True):
        batches = -(-count // max(1, min(batch_size, max_tokens // length)))  # rounded up
        edges = [first + count * i // batches for i in range(batches + 1)]
        bounds += pairwise(edges)
        first += count
    return bounds


class PhraseSwap:
    """Augmentation that replaces a part of a phrase by another phrase of the same label and length.

    A part is a subphrase that is itself a labelled phrase of the corpus, as the parse trees of SST-2
    provide: `a gorgeous , witty , seductive movie` may become `a tender , funny , seductive movie`.
    Random numbers come from torch's global generator, which `lib.training.fit.fit` seeds for every update.

    Args:
        encoded: N phrases, both those to be changed and those inserted into them.
        labels: (N,).
        rate: probability that a phrase with at least one such part is changed.
    """

    def __init__(self, encoded: Encoded, labels: Tensor, rate: float):
        self.encoded, self.rate = encoded, rate
        device = labels.device
        tokens, starts, lengths = (t.cpu().numpy() for t in (encoded.tokens, encoded.starts, encoded.lengths))
        # A kind is a pair (length, label) as one number; phrases of one kind may replace each other.
        kinds = lengths * (int(labels.max()) + 1) + labels.cpu().numpy()
        rows, offsets, parts = _labelled_parts(tokens, starts, lengths)
        self.part_offsets = torch.from_numpy(offsets).to(device)
        self.part_lengths = torch.from_numpy(lengths[parts]).to(device)
        self.part_kinds = torch.from_numpy(kinds[parts]).to(device)
        self.parts_from, self.parts = _ranges(rows, len(lengths), device)
        # The phrases sorted by kind: the candidates for a part are one contiguous range.
        self.by_kind = torch.from_numpy(kinds.argsort(kind="stable")).to(device)
        self.kind_from, self.kind_sizes = _ranges(np.sort(kinds), int(kinds.max()) + 1, device)

    def __call__(self, tokens: Tensor, rows: Tensor) -> Tensor:
        """Change some of the tokens (B, T) of the phrases `rows` (B,) in place, and return them."""
        wanted = torch.rand(len(rows), device=rows.device) < self.rate
        chosen = (wanted & (self.parts[rows] > 0)).nonzero()[:, 0]
        part = _draw(self.parts_from[rows[chosen]], self.parts[rows[chosen]])
        kind = self.part_kinds[part]
        donor = self.by_kind[_draw(self.kind_from[kind], self.kind_sizes[kind])]
        # One entry per exchanged word: `each` is the number of its part, `within` its position in the part.
        counts = self.part_lengths[part]
        each = torch.repeat_interleave(counts)
        within = torch.arange(len(each), device=rows.device) - (counts.cumsum(0) - counts)[each]
        tokens[chosen[each], self.part_offsets[part][each] + within] = self.encoded.tokens[
            self.encoded.starts[donor][each] + within
        ]
        return tokens


class RandomWords:
    """Random batches of single words.

    Random numbers come from torch's global generator, which `lib.training.fit.fit` seeds for every update.

    Args:
        encoded: N phrases of one word each.
        count: words per batch.
    """

    def __init__(self, encoded: Encoded, count: int):
        self.encoded, self.count = encoded, count

    def __call__(self) -> Phrases:
        """Draw `count` of the words, with replacement."""
        rows = torch.randint(len(self.encoded), (self.count,), device=self.encoded.lengths.device)
        return self.encoded.phrases(self.encoded.rows(rows))


def _draw(first: Tensor, count: Tensor) -> Tensor:
    """Draw a random integer from each of the ranges [first, first + count)."""
    # A float32 just below 1 multiplied by the count may round up to the count.
    drawn = (torch.rand(len(first), device=first.device) * count).long()
    return first + drawn.minimum(count - 1)


def _ranges(sorted_numbers: np.ndarray, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return where each number 0 … count − 1 begins in the sorted array, and how often it occurs."""
    counts = np.bincount(sorted_numbers, minlength=count)
    return torch.from_numpy(counts.cumsum() - counts).to(device), torch.from_numpy(counts).to(device)


def _labelled_parts(
    tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find all proper subphrases that are phrases themselves: `(rows, offsets, rows of the parts)`, by row.

    Windows of one length are compared all at once, by a polynomial hash modulo 2⁶⁴ of their words:
    h(w₁ … wₙ) = h(w₁ … wₙ₋₁) · factor + value(wₙ), with random values and a random odd factor.
    """
    random = np.random.default_rng(0).integers(1, 2**63, int(tokens.max()) + 2, dtype=np.uint64)
    factor, values = random[-1] | np.uint64(1), random[tokens]  # odd: multiplication loses no bits
    row_of = np.repeat(np.arange(len(lengths)), lengths)
    offset = np.arange(len(tokens)) - starts[row_of]
    hashes = np.zeros_like(values)
    found = []
    for length in range(1, int(lengths.max())):
        windows = len(values) - length + 1
        # Extend the hash of the window that begins at each token by one word; overflow wraps around.
        hashes = hashes[:windows] * factor + values[length - 1 :]
        phrases = (lengths == length).nonzero()[0]
        # Windows that lie within one phrase and are shorter than it.
        inside = ((lengths[row_of] > length) & (offset + length <= lengths[row_of]))[:windows].nonzero()[0]
        if len(phrases) and len(inside):
            known, first = np.unique(hashes[starts[phrases]], return_index=True)
            place = np.searchsorted(known, hashes[inside]).clip(max=len(known) - 1)
            match = known[place] == hashes[inside]
            window = inside[match]
            found.append(np.stack([row_of[window], offset[window], phrases[first[place[match]]]]))
    rows, offsets, parts = np.concatenate([*found, np.empty((3, 0), np.int64)], axis=1)
    order = rows.argsort(kind="stable")
    return rows[order], offsets[order], parts[order]
