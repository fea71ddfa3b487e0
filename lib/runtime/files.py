"""Files and folders: found readable, made writable, written whole or not at all."""

import contextlib
import glob
import itertools
import os
import tempfile
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from lib.runtime.errors import RunFailed, UserError

ABANDONED = 600  # seconds since a process that is gone wrote to a temporary file


def writable_folder(path: str | Path) -> Path:
    """Make the folder `path` where it is missing and return it.

    Raises:
        UserError: it is a file, or may not be written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to the folder {folder}: {error.strerror}") from None
    return folder


def writable_file(path: str | Path) -> Path:
    """Return `path` as a `Path`, in a folder that is made where it is missing.

    Raises:
        UserError: it is a folder, a device or a pipe, or its folder may not be written to.
    """
    file = Path(path)
    if os.path.isdir(file):
        raise UserError(f"{file} is a folder, not a file")
    if os.path.exists(file) and not os.path.isfile(file):
        raise UserError(f"{file} is no regular file, and would be replaced by one")
    writable_folder(file.parent)
    return file


def spare(output: str | None, *inputs: str | Sequence[str] | None) -> None:
    """Complain if a file that is to be written, if any, is one of those that are to be read.

    Raises:
        UserError: it is, under whatever name.
    """
    if not output or not os.path.exists(output):
        return
    names = itertools.chain.from_iterable([each] if isinstance(each, str) else each or () for each in inputs)
    for name in names:
        if os.path.exists(name) and os.path.samefile(name, output):
            raise UserError(f"{output} would be written over {name}, which is read")


def existing_file(path: str | Path) -> Path:
    """Return `path` as a `Path` if it is a readable file.

    Raises:
        UserError: it is missing, a folder, or not readable.
    """
    file = Path(path)
    if os.path.isdir(file):
        raise UserError(f"{file} is a folder, not a file")
    if not os.path.exists(file):  # unlike Path.exists(), it survives a name that no file could have
        raise UserError(f"there is no file {file}")
    if not os.access(file, os.R_OK):
        raise UserError(f"no permission to read {file}")
    return file


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace the file at `path` by `content` in one step, or leave it as it was.

    Raises:
        RunFailed: the disk is full or not writable.
    """
    with replaced(path) as file:
        file.write(content)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of the one at `path` when the block ends; not when it fails.

    Raises:
        RunFailed: the disk is full or not writable.
    """
    target = Path(os.path.realpath(path))  # a link stays one, and what it points to is replaced
    _remove_abandoned(target)
    temporary = target.with_name(f"{_prefix(target)}{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = f"; the older {path.name} there is whole" if os.path.exists(path) else ""
        raise RunFailed(f"could not save {path}: {error.strerror}{kept}") from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _prefix(target: Path) -> str:
    """What the names of temporary files for `target` begin with, before the number of the process.

    So several processes may write at once, and the last one stays. A name may have 255 bytes, and each of
    its characters up to four.
    """
    name = target.name
    return f".{name}." if len(name) <= 48 else f".{name[:40]}{zlib.crc32(os.fsencode(name)):08x}."


def _remove_abandoned(target: Path) -> None:
    """Remove what processes left that were killed while they wrote `target`."""
    for path in target.parent.glob(f"{glob.escape(_prefix(target))}*.tmp"):
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to remove
            if time.time() - path.stat().st_mtime > ABANDONED and not _is_alive(path.name.split(".")[-2]):
                path.unlink()


def _is_alive(process: str) -> bool:
    """Whether there is a process of that number here, which may be waiting for what it is to write."""
    if os.name == "nt":  # where a signal 0 is no question
        return False
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once its folder is on disk too. Windows cannot open folders.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
