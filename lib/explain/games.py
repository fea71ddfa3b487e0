"""The game of which parts of an image speak for a class: v(S) is the score of the image with parts S alone.

What is absent shows the baseline. Coalitions are evaluated in batches, on all ranks, and never twice.
"""

import contextlib
import hashlib
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import distributed
from lib.errors import UserError
from lib.explain.batch_size import BatchSizeTuner, is_out_of_memory
from lib.explain.scores import Scores
from lib.files import replaced

SECONDS_BETWEEN_SAVES = 5.0


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
        record: "Record | None" = None,
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


class Record:
    """The values of a game that were paid for, kept in a file from run to run.

    The file is an .npz that holds several games; of each, its coalitions, packed, and its values (S, T).

    Args:
        path: of the file; made at the first save where there is none.
        key: names the game, and changes with whatever its values depend on.

    Raises:
        UserError: the file is no such record.
    """

    def __init__(self, path: Path, key: str):
        self._path, self._key = path, key
        self._others, self._values = _read_record(path, key) if path.exists() else ({}, {})
        self._saved = time.monotonic()
        self._is_dirty = False

    def knows(self, coalitions: Tensor) -> Tensor:
        """Return which of the coalitions (S, n) are in the record, (S,) bool."""
        return torch.tensor([key in self._values for key in _packed(coalitions)])

    def values(self, coalitions: Tensor) -> Tensor:
        """Return the values (S, T) of coalitions that are all known."""
        return torch.from_numpy(np.stack([self._values[key] for key in _packed(coalitions)]))

    def add(self, coalitions: Tensor, values: Tensor) -> None:
        """Keep the values (S, T) of coalitions (S, n), in the file at the latest some seconds later."""
        self._values.update(zip(_packed(coalitions), values.numpy(), strict=True))
        self._is_dirty = True
        if time.monotonic() > self._saved + SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write the file, if there is anything new; rank 0 does so for all.

        Raises:
            RunFailed: it cannot be written.
        """
        if not self._is_dirty or not distributed.is_main():
            return
        arrays = {
            f"{self._key}/coalitions": np.stack([np.frombuffer(key, np.uint8) for key in self._values]),
            f"{self._key}/values": np.stack(list(self._values.values())),
        }
        with replaced(self._path) as file:
            np.savez(file, **self._others, **arrays)
        self._saved, self._is_dirty = time.monotonic(), False


def _packed(coalitions: Tensor) -> list[bytes]:
    return [row.tobytes() for row in np.packbits(coalitions.numpy(), axis=1)]


def _read_record(path: Path, key: str) -> tuple[dict[str, np.ndarray], dict[bytes, np.ndarray]]:
    """Return the arrays of other games, and the values of this one by its coalitions."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if not arrays or any(name.partition("/")[2] not in ("coalitions", "values") for name in arrays):
            raise ValueError
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        raise UserError(f"{path} holds no values of an earlier run, or is damaged") from None
    coalitions = arrays.pop(f"{key}/coalitions", np.empty((0, 1), np.uint8))
    values = arrays.pop(f"{key}/values", np.empty((0, 1)))
    return arrays, {row.tobytes(): value for row, value in zip(coalitions, values, strict=True)}
