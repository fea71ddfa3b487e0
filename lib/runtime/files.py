"""Files and folders: checks that they can be read or written, and atomic replacement of files."""

import contextlib
import glob
import itertools
import os
import re
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from lib.runtime.errors import RunFailed, UserError

LONGEST_NAME = 255  # bytes, of the file systems of Linux, macOS and Windows
STARTED = time.time()  # about when this process started; an older temporary file of its id is not its own

# A temporary file of ours: of which file, and of which process.
_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp", re.DOTALL)


def writable_folder(path: str | Path) -> Path:
    """Return the folder `path`, created if it is missing.

    Raises:
        UserError: it is a file, or is not writable.
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
    """Return `path` as a `Path`; its folder is created if it is missing.

    Raises:
        UserError: it is a folder, a device or a pipe, or its folder is not writable.
    """
    file = Path(path)
    if os.path.isdir(file):
        raise UserError(f"{file} is a folder, not a file")
    if os.path.exists(file) and not os.path.isfile(file):
        raise UserError(f"{file} is not a regular file, and would be replaced by one")
    check_name(file.name)
    writable_folder(file.parent)
    return file


def check_name(name: str, room: int = 0) -> None:
    """Raise a UserError if a file's name and `room` more bytes are longer than file systems allow."""
    length = len(os.fsencode(name))
    if length + room > LONGEST_NAME:
        raise UserError(
            f"{name[:40]}… is too long for a file's name: {length} bytes of {LONGEST_NAME - room}"
        )


def refuse_overwrite(output: str | None, *inputs: str | Sequence[str] | None) -> None:
    """Refuse to overwrite an input file with the output.

    Args:
        output: file to be written; None or empty if there is none.
        inputs: files to be read, each argument one name, several or None.

    Raises:
        UserError: `output` is one of the inputs, also under another name (a link).
    """
    if not output or not os.path.exists(output):
        return
    names = itertools.chain.from_iterable([each] if isinstance(each, str) else each or () for each in inputs)
    for name in names:
        if os.path.exists(name) and os.path.samefile(name, output):
            raise UserError(f"{output} would be written over {name}, which is an input")


def existing_file(path: str | Path) -> Path:
    """Return `path` as a `Path` if it is a readable file.

    Raises:
        UserError: it is missing, a folder, a pipe or a device (to read one could wait for ever), or not
            readable.
    """
    file = Path(path)
    if os.path.isdir(file):
        raise UserError(f"{file} is a folder, not a file")
    if not os.path.exists(file):  # Path.exists() raises an OSError for a name that is too long
        raise UserError(f"there is no file {file}")
    if not os.path.isfile(file):
        raise UserError(f"{file} is a pipe or a device, not a file")
    if not os.access(file, os.R_OK):
        raise UserError(f"no permission to read {file}")
    return file


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Replace the file at `path` by `content` atomically: an error leaves the old file as it was.

    Raises:
        RunFailed: the disk is full or not writable.
    """
    with replaced(path) as file:
        file.write(content)


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces the one at `path` when the block ends without an error.

    Raises:
        RunFailed: the disk is full or not writable.
    """
    target = Path(os.path.realpath(path))  # of a symbolic link, the file that it points to is replaced
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
    """Return the beginning of the names of temporary files for `target`; the process id follows.

    With the process id in the name, several processes may write the same target at once, and the last one
    wins. A long name is cut, because file systems allow 255 bytes and a character takes up to four.
    """
    name = target.name
    return f".{name}." if len(name) <= 48 else f".{name[:40]}{zlib.crc32(os.fsencode(name)):08x}."


def _remove_abandoned(target: Path) -> None:
    """Remove temporary files of processes that were killed while they wrote `target`."""
    _remove_those_of_dead_processes(target.parent.glob(f"{glob.escape(_prefix(target))}*.tmp"))


def remove_abandoned(folder: Path) -> None:
    """Remove the temporary files that processes left in `folder` when they were killed."""
    _remove_those_of_dead_processes(folder.glob(".*.tmp"))


def _remove_those_of_dead_processes(paths: Iterable[Path]) -> None:
    for path in paths:
        ours = _TEMPORARY.fullmatch(path.name)
        if not ours:
            continue
        with contextlib.suppress(OSError):  # another process removed it, or we lack the permission
            if path.is_file() and path.stat().st_mtime < STARTED and not _is_alive(ours[1]):
                path.unlink()


def _is_alive(process: str) -> bool:
    """Tell whether another process with this id is alive, and may thus still write to its temporary file."""
    # In a container, each process may have the id of the one before it.
    if int(process) == os.getpid():
        return False
    if os.name == "nt":  # where signal 0 is CTRL_C_EVENT, and would interrupt the process
        return False
    try:
        os.kill(int(process), 0)
    except PermissionError:
        return True
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _sync_folder(folder: Path) -> None:
    # A rename survives a power cut only once its folder is on the disk, too. Windows cannot open folders.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
