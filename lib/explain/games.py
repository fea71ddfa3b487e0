"""The game of which parts of an image speak for a class: v(S) is the score of the image with parts S alone.

What is absent shows the baseline. Coalitions are evaluated in batches, on all ranks, and never twice.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from lib.explain.batch_size import BatchSizeTuner, is_out_of_memory
from lib.explain.scores import Scores
from lib.runtime import distributed


class MaskedImage:
    """Evaluates coalitions of parts of one image.

    Args:
        model: normalised inputs (B, C, H, W) to logits (B, classes), in eval mode.
        image, baseline: (C, H, W) normalised, on the model's device.
        player_map: (H, W) the player of each pixel.
        scores: logits, as float64, to values (T, B).
        amp: bf16 forward passes, but for the last linear layer.
    """

    def __init__(
        self,
        model: nn.Module,
        image: Tensor,
        baseline: Tensor,
        player_map: Tensor,
        scores: Scores,
        *,
        amp: bool = False,
    ):
        self.model, self.image, self.baseline, self.scores, self.amp = model, image, baseline, scores, amp
        self.player_map = player_map.to(image.device)
        # With channels last, convolutions on a CPU or in bf16 are a fifth faster.
        last = image.device.type == "cpu" or amp
        self._layout = torch.channels_last if last else torch.contiguous_format

    @torch.inference_mode()
    def __call__(self, coalitions: Tensor) -> Tensor:
        """Return v of coalitions (B, n), (B, T) float64 on the CPU, in one forward pass."""
        logits = self.logits(self.masked(coalitions)).float()
        if logits.device.type == "mps":  # which has no float64
            logits = logits.cpu()
        return self.scores(logits.double()).T.cpu()

    def masked(self, coalitions: Tensor) -> Tensor:
        """Return the inputs of coalitions (B, n): (B, C, H, W)."""
        present = coalitions.to(self.image.device)[:, self.player_map.flatten()]
        shown = torch.where(present.view(-1, 1, *self.player_map.shape), self.image, self.baseline)
        return shown.contiguous(memory_format=self._layout)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the network's answer to inputs (B, C, H, W)."""
        if not self.amp:
            return self.model(inputs)
        with distributed.autocast(inputs.device, True), float32_head(self.model):
            return self.model(inputs)

    def fingerprint(self, *more: object) -> str:
        """Return a text that changes with anything that the values depend on, `more` included."""
        digest = hashlib.sha256(repr((self.amp, *more)).encode())
        for tensor in (self.image, self.baseline, self.player_map, *self.model.state_dict().values()):
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:32]


@contextlib.contextmanager
def float32_head(model: nn.Module) -> Iterator[None]:
    """Within the context the last linear layer computes in float32, also under autocast.

    Eight bits of mantissa would round logits to one part in 256. The hooks are gone at the end.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        yield
        return
    head, contexts = linear[-1], []

    def enter(_module, inputs):
        contexts.append(torch.autocast(inputs[0].device.type, enabled=False))
        contexts[-1].__enter__()
        return (inputs[0].float(),)

    def leave(*_):
        if contexts:
            contexts.pop().__exit__(None, None, None)

    handles = [
        head.register_forward_pre_hook(enter),
        head.register_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class KnownValues(Protocol):
    """Values of a game that an earlier run has paid for, and a place for those of this one."""

    def knows(self, coalitions: Tensor) -> Tensor:
        """Return which of the coalitions (S, n) have a known value, (S,) bool."""

    def values(self, coalitions: Tensor) -> Tensor:
        """Return the values (S, T) of coalitions that are all known."""

    def add(self, coalitions: Tensor, values: Tensor) -> None:
        """Keep the values (S, T) of coalitions (S, n)."""


class Evaluation:
    """A game for `lib.explain.shapley`: evaluates coalitions in batches, over all ranks, and keeps count.

    Args:
        evaluate: a batch of coalitions (B, n) to values (B, T) on the CPU.
        device: where it computes.
        tuner: finds the size of the batches.
        record: knows values from an earlier run, and keeps those of this one.
        is_stopped: asked between batches; once it says so, no more coalitions are answered.
        progress: is told how many more are done, after each batch.

    Attributes:
        tuner: as given, or one of its own.
        reused: how many values came from the record.
        seconds: that went into evaluating the others.
    """

    def __init__(
        self,
        evaluate: Callable[[Tensor], Tensor],
        device: torch.device | str = "cpu",
        tuner: BatchSizeTuner | None = None,
        *,
        record: KnownValues | None = None,
        is_stopped: Callable[[], bool] = lambda: False,
        progress: Callable[[int], object] = lambda _count: None,
    ):
        self._evaluate = evaluate
        self._device = torch.device(device)
        self._record = record
        self._is_stopped = is_stopped
        self._progress = progress
        self.tuner = tuner or BatchSizeTuner()
        self.reused = 0
        self.seconds = 0.0

    def __call__(self, coalitions: Tensor) -> Tensor:
        """Return values (S, T) float64 of coalitions (S, n); of the first ones alone if it is stopped."""
        parts: list[Tensor] = []
        done = 0
        while done < len(coalitions) and not distributed.any_rank(int(self._is_stopped()), self._device):
            started = time.perf_counter()
            size = distributed.any_rank(self.tuner.size, self._device) * distributed.world_size()
            wanted = coalitions[done : done + size]
            parts.append(self._recorded(wanted) if self._record else self._on_all_ranks(wanted))
            done += len(wanted)
            self.seconds += time.perf_counter() - started
            self._progress(len(wanted))
        return torch.cat(parts) if parts else torch.empty(0, 0, dtype=torch.float64)

    def _recorded(self, coalitions: Tensor) -> Tensor:
        known = self._record.knows(coalitions)
        self.reused += int(known.sum())
        if not known.all():
            self._record.add(coalitions[~known], self._on_all_ranks(coalitions[~known]))
        return self._record.values(coalitions)

    def _on_all_ranks(self, coalitions: Tensor) -> Tensor:
        rank, world = distributed.rank(), distributed.world_size()
        if world == 1:
            return self._in_batches(coalitions)
        rows = torch.arange(-(-len(coalitions) // world) * world).clamp_max(len(coalitions) - 1)
        own = self._in_batches(coalitions[rows[rank::world]])
        values = own.new_zeros(len(rows), own.shape[1], device=self._device)
        values[rank::world] = own.to(self._device)
        return distributed.total(values)[: len(coalitions)].cpu()

    def _in_batches(self, coalitions: Tensor) -> Tensor:
        parts: list[Tensor] = []
        done = 0
        while done < len(coalitions):
            batch = coalitions[done : done + self.tuner.size]
            started = time.perf_counter()
            try:
                parts.append(self._evaluate(batch))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self.tuner.halve()
                continue
            self.tuner.note(len(batch), time.perf_counter() - started)
            done += len(batch)
        return torch.cat(parts)
