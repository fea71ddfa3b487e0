"""The game of image parts: v(S) is a score of the image in which only the parts S are present.

Absent parts show the baseline. Coalitions are evaluated in batches, on all ranks, and never twice.
"""

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lib.explain.batch_size import BatchSizeTuner, is_out_of_memory
from lib.explain.targets import Scores
from lib.runtime import distributed


class MaskedImage:
    """The game of one image: a function from coalitions of its parts to values.

    Args:
        model: network from normalised inputs (B, C, H, W) to logits (B, classes), in eval mode.
        image, baseline: normalised images (C, H, W), on the model's device.
        player_map: (H, W), the player of each pixel.
        scores: function from logits in float64 to values (T, B).
        amp: whether forward passes compute in bf16, all but the last linear layer.
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
    ) -> None:
        self.model, self.image, self.baseline, self.scores, self.amp = model, image, baseline, scores, amp
        self.player_map = player_map.to(image.device)
        # With channels last, convolutions on a CPU or in bf16 are 20 % faster.
        last = image.device.type == "cpu" or amp
        self._layout = torch.channels_last if last else torch.contiguous_format

    @torch.inference_mode()
    def __call__(self, coalitions: Tensor) -> Tensor:
        """Return the values (B, T) of coalitions (B, n), from one forward pass, as float64 on the CPU."""
        logits = self.logits(self.masked(coalitions)).float()
        if logits.device.type == "mps":  # MPS has no float64
            logits = logits.cpu()
        return self.scores(logits.double()).T.cpu()

    def masked(self, coalitions: Tensor) -> Tensor:
        """Return the network's inputs (B, C, H, W) for coalitions (B, n)."""
        present = coalitions.to(self.image.device)[:, self.player_map.flatten()]
        shown = torch.where(present.view(-1, 1, *self.player_map.shape), self.image, self.baseline)
        return shown.contiguous(memory_format=self._layout)

    def logits(self, inputs: Tensor) -> Tensor:
        """Return the network's logits (B, classes) for inputs (B, C, H, W)."""
        if not self.amp:
            return self.model(inputs)
        with distributed.autocast(inputs.device, True), float32_head(self.model):
            return self.model(inputs)

    def fingerprint(self, *more: object) -> str:
        """Return a hash of everything that the values depend on, including `more`."""
        digest = hashlib.sha256(repr((self.amp, *more)).encode())
        for tensor in (self.image, self.baseline, self.player_map, *self.model.state_dict().values()):
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:32]


@contextlib.contextmanager
def float32_head(model: nn.Module) -> Iterator[None]:
    """Within the context, the last linear layer computes in float32, also under autocast.

    bf16 has 8 bits of mantissa and would round logits to one part in 256. The hooks are removed at the end.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        yield
        return
    head = linear[-1]
    contexts: list[torch.autocast] = []

    def enter(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        contexts.append(torch.autocast(inputs[0].device.type, enabled=False))
        contexts[-1].__enter__()
        return (inputs[0].float(),)

    def leave(*_: Any) -> None:
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
    """Store of the values of a game, which keeps those of an earlier run and takes those of this one."""

    def coalitions(self) -> Tensor:
        """Return the coalitions (K, n) whose values are known."""

    def knows(self, coalitions: Tensor) -> Tensor:
        """Return a mask (S,) of the coalitions (S, n) whose values are known."""

    def values(self, coalitions: Tensor) -> Tensor:
        """Return the values (S, T) of coalitions (S, n), all of which must be known."""

    def add(self, coalitions: Tensor, values: Tensor) -> None:
        """Store the values (S, T) of coalitions (S, n)."""


class Evaluation:
    """A game for `lib.explain.shapley` that evaluates coalitions in batches, distributed over all ranks.

    Args:
        evaluate: function from a batch of coalitions (B, n) to values (B, T) on the CPU.
        device: where `evaluate` computes.
        tuner: search for the batch size; by default a new one.
        record: store of known values, which also receives the new ones; None for no store.
        is_stopped: called before each batch; once it returns True, no more coalitions are evaluated.
        progress: called after each batch with its number of coalitions.

    Attributes:
        tuner: see above.
        reused: number of values that came from `record`.
        seconds: time spent on evaluations and look-ups.
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
    ) -> None:
        self._evaluate = evaluate
        self._device = torch.device(device)
        self._record = record
        self._is_stopped = is_stopped
        self._progress = progress
        self.tuner = tuner or BatchSizeTuner()
        self.reused = 0
        self.seconds = 0.0

    def __call__(self, coalitions: Tensor) -> Tensor:
        """Return the values (S, T) float64 of coalitions (S, n); if stopped, only those of the first ones."""
        parts: list[Tensor] = []
        done = 0
        while done < len(coalitions) and not distributed.max_over_ranks(
            int(self._is_stopped()), self._device
        ):
            started = time.perf_counter()
            size = distributed.max_over_ranks(self.tuner.size, self._device) * distributed.world_size()
            wanted = coalitions[done : done + size]
            parts.append(self._recorded(self._record, wanted) if self._record else self._on_all_ranks(wanted))
            done += len(wanted)
            self.seconds += time.perf_counter() - started
            self._progress(len(wanted))
        return torch.cat(parts) if parts else torch.empty(0, 0, dtype=torch.float64)

    def _recorded(self, record: KnownValues, coalitions: Tensor) -> Tensor:
        """Return the values of `coalitions`, of which only those not in `record` are evaluated."""
        known = record.knows(coalitions)
        self.reused += int(known.sum())
        if not known.all():
            record.add(coalitions[~known], self._on_all_ranks(coalitions[~known]))
        return record.values(coalitions)

    def _on_all_ranks(self, coalitions: Tensor) -> Tensor:
        """Return the values of `coalitions`, of which each rank evaluates a share."""
        rank, world = distributed.rank(), distributed.world_size()
        if world == 1:
            return self._in_batches(coalitions)
        # Every rank takes the same number of rows, so the last row is repeated; the repetitions are cut off.
        rows = torch.arange(-(-len(coalitions) // world) * world).clamp_max(len(coalitions) - 1)
        own = self._in_batches(coalitions[rows[rank::world]])
        values = own.new_zeros(len(rows), own.shape[1], device=self._device)
        values[rank::world] = own.to(self._device)
        return distributed.total(values)[: len(coalitions)].cpu()

    def _in_batches(self, coalitions: Tensor) -> Tensor:
        """Return the values of `coalitions`, evaluated on this rank in batches that fit into memory."""
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
