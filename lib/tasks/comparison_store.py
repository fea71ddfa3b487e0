"""Kept results of a comparison: what a method, a control or the truth is of one image, by what it depends on.

A result is a file of JSON with a checksum, and, for images that are shown, a file of maps beside it. The same
command finds them again; one that is damaged is told of, and computed once more.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from lib.runtime.errors import warn
from lib.runtime.files import replaced, write_atomically

# Part of every key: to be raised whenever the same settings would give other numbers.
VERSION = 4


def key_of(*parts: object) -> str:
    """Return a name for a result that depends on these parts, given by their `repr`."""
    return hashlib.sha256(repr((VERSION, *parts)).encode()).hexdigest()[:40]


class Store:
    """The folder of kept results.

    Attributes:
        damaged: number of results that were found, but are damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.damaged = 0

    def find(self, key: str, *, with_maps: bool = False) -> dict[str, Any] | None:
        """Return a result, with its maps (T, H, W) under `maps` if asked for; None if there is none."""
        path = self._file(key)
        if not path.exists():
            return None
        try:
            found = _checked(path.read_bytes())
            if with_maps:
                found["maps"] = self._maps(key, found)
        except Exception as error:  # NumPy and zipfile raise errors of a dozen kinds for a damaged file
            if isinstance(error, FileNotFoundError):  # the image was not shown then
                return None
            self.damaged += 1
            if self.damaged == 1:  # one line, and not one for each
                warn(f"the kept result {path} is damaged: it is computed again, as are all that are")
            return None
        return found

    def save(self, key: str, result: dict[str, Any], maps: np.ndarray | None = None) -> None:
        """Keep a result of plain values, and its maps (T, H, W) if they are to be shown.

        Raises:
            RunFailed: it cannot be written.
        """
        path = self._file(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = dict(result)
        if maps is not None:
            content["sha256_of_maps"] = _digest(maps)
            with replaced(path.with_suffix(".npz")) as file:
                np.savez_compressed(file, maps=maps)
        text = json.dumps(content)
        digest = hashlib.sha256(text.encode()).hexdigest()
        write_atomically(path, f"{digest}\n{text}\n".encode())

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"

    def _maps(self, key: str, found: dict[str, Any]) -> np.ndarray:
        path = self._file(key).with_suffix(".npz")
        if "sha256_of_maps" not in found:
            raise FileNotFoundError(path)
        with np.load(path, allow_pickle=False) as file:
            maps = file["maps"]
        if _digest(maps) != found["sha256_of_maps"]:
            raise ValueError("the maps have changed")
        return maps


def _digest(maps: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(maps).tobytes()).hexdigest()


def _checked(content: bytes) -> dict[str, Any]:
    digest, _, text = content.decode().partition("\n")
    text = text.removesuffix("\n")
    if hashlib.sha256(text.encode()).hexdigest() != digest:
        raise ValueError("the checksum is another")
    return json.loads(text)
