"""Cache of results that took long to compute from files; a result is valid until one of the files changes."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lib.runtime.errors import RunFailed, UserError, warn
from lib.runtime.files import replaced, writable_folder

FORMAT = 1


def folder() -> Path:
    """Return the cache folder: `$XDG_CACHE_HOME/look-inside`, or `~/.cache/look-inside`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "look-inside"


def cached(
    kind: str,
    root: Path,
    files: Sequence[str],
    make: Callable[[], dict[str, Any]],
    is_sound: Callable[[dict[str, Any]], bool],
) -> dict[str, Any]:
    """Return the result of `make`, from the cache if no file changed its name, size or modification time.

    Only the latest result is kept for each kind and root. If the result cannot be written, a warning says so.

    Args:
        kind: a description of the result that includes everything it depends on besides the files.
        root: the folder that contains the files.
        files: paths below `root`, which begin with `root` itself.
        make: computes the result, a dict of plain values and tensors.
        is_sound: tells whether a kept result has the entries and shapes of one of `make`; another one, of
            whatever wrote there, is computed anew. It may raise anything.
    """
    family = _digest(f"{FORMAT} {kind} {root.resolve()}")
    kept = folder() / "images" / f"{family}-{_fingerprint(root, files)}.pt"
    found = _read(kept, is_sound)
    if found is not None:
        return found
    made = make()
    _write(kept, made, family)
    return made


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _fingerprint(root: Path, files: Sequence[str]) -> str:
    start = len(str(root))
    states = ((file[start:], os.stat(file)) for file in files)
    return _digest("\n".join(f"{name}\0{state.st_size}\0{state.st_mtime_ns}" for name, state in states))


def _read(path: Path, is_sound: Callable[[dict[str, Any]], bool]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
        return found if is_sound(found) else None
    except Exception:  # a damaged file may raise nearly anything; the result is then computed again
        return None


def _write(path: Path, content: dict[str, Any], family: str) -> None:
    try:
        writable_folder(path.parent)
        with replaced(path) as file:
            torch.save(content, file)
    except (UserError, RunFailed, RuntimeError) as error:  # RuntimeError: torch's, if the disk is full
        warn(f"nothing is kept for the next start: {error}")
        return
    for older in path.parent.glob(f"{family}-*.pt"):
        if older != path:
            older.unlink(missing_ok=True)
