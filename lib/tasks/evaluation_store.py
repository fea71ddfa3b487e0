"""A file of evaluations of games, so that later runs need not repeat them."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lib.runtime import distributed
from lib.runtime.errors import UserError
from lib.runtime.files import existing_file, replaced

SECONDS_BETWEEN_SAVES = 5.0


class EvaluationStore:
    """The known values of a game, kept in a file so that later runs can reuse them.

    The file is an .npz for several games: for each, its coalitions as packed bits, and their values (S, T).

    Args:
        path: path of the file; created at the first save if missing.
        key: fingerprint of the game and of everything that its values depend on.
        shape: number of players n, and number of targets T.

    Raises:
        UserError: the file is not such a store, or is damaged.
    """

    def __init__(self, path: Path, key: str, shape: tuple[int, int]):
        self._path, self._key, self._players = path, key, shape[0]
        self._others, self._values = _read_record(path, key, shape) if path.exists() else ({}, {})
        self._saved = time.monotonic()
        self._is_dirty = False

    def coalitions(self) -> Tensor:
        """Return the coalitions (K, n) in the store, in the order in which they were evaluated."""
        packed = b"".join(self._values)
        rows = np.frombuffer(packed, np.uint8).reshape(len(self._values), -(-self._players // 8))
        return torch.from_numpy(np.unpackbits(rows, axis=1, count=self._players).astype(bool))

    def knows(self, coalitions: Tensor) -> Tensor:
        """Return whether each of the coalitions (S, n) is in the store, (S,) bool."""
        return torch.tensor([key in self._values for key in _packed(coalitions)])

    def values(self, coalitions: Tensor) -> Tensor:
        """Return the values (S, T) of coalitions (S, n), which must all be in the store."""
        return torch.from_numpy(np.stack([self._values[key] for key in _packed(coalitions)]))

    def add(self, coalitions: Tensor, values: Tensor) -> None:
        """Add the values (S, T) of coalitions (S, n); save the file if the last save was some seconds ago."""
        self._values.update(zip(_packed(coalitions), values.numpy(), strict=True))
        self._is_dirty = True
        if time.monotonic() > self._saved + SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write the file if there are new values; only rank 0 writes.

        Raises:
            RunFailed: the file cannot be written.
        """
        if not self._is_dirty or not distributed.is_main():
            return
        arrays: dict[str, Any] = {
            f"{self._key}/coalitions": np.stack([np.frombuffer(key, np.uint8) for key in self._values]),
            f"{self._key}/values": np.stack(list(self._values.values())),
        }
        with replaced(self._path) as file:
            np.savez(file, **self._others, **arrays)
        self._saved, self._is_dirty = time.monotonic(), False


def _packed(coalitions: Tensor) -> list[bytes]:
    return [row.tobytes() for row in np.packbits(coalitions.numpy(), axis=1)]


def _read_record(
    path: Path, key: str, shape: tuple[int, int]
) -> tuple[dict[str, Any], dict[bytes, np.ndarray]]:
    """Return the arrays of other games, and the values of this game by packed coalition."""
    existing_file(path)  # a pipe would be waited for
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        if not arrays or any(name.partition("/")[2] not in ("coalitions", "values") for name in arrays):
            raise ValueError("it has other arrays")
        players, targets = shape
        coalitions = arrays.pop(f"{key}/coalitions", np.empty((0, -(-players // 8)), np.uint8))
        values = arrays.pop(f"{key}/values", np.empty((0, targets)))
        if coalitions.dtype != np.uint8 or coalitions.shape != (len(values), -(-players // 8)):
            raise ValueError("its coalitions are not those of this game")
        if values.dtype != np.float64 or values.shape != (len(values), targets):
            raise ValueError("its values are not those of this game")
        if not np.isfinite(values).all():
            raise ValueError("not all of its values are finite")
    except Exception as error:  # a damaged file makes NumPy and zipfile raise errors of a dozen kinds
        raise UserError(f"{path} holds no values of an earlier run, or is damaged: {error}") from None
    return arrays, {row.tobytes(): value for row, value in zip(coalitions, values, strict=True)}
