"""How a script ends: its exit status, and one line that says why."""

import errno
import os
import re
import sys
from collections.abc import Callable, Sequence

from lib.cli import scripts
from lib.runtime import launch, streams, threads
from lib.runtime.errors import Interrupted, OtherTaskError, RunFailed, UserError, say, told_of_user_code

# What PyTorch, NumPy and the C++ library say where memory does not suffice, or where so much was asked for
# that its number of bytes is no 64-bit number. On the CPU, PyTorch raises a plain RuntimeError.
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|out of memory|unable to allocate|bad_alloc"
    r"|not enough memory"
    r"|storage size calculation overflowed|integer multiplication overflow|array is too big"
    r"|maximum allowed (dimension|size)|maximum supported dimension|invalid buffer size|exceeds .*max.* size"
    r"|too large to convert|without overflow|overflow when unpacking",
    re.IGNORECASE,
)
_OF_MEMORY = (MemoryError, RuntimeError, ValueError, TypeError, OverflowError)
_NO_THREADS = "can't start new thread"
# Flags whose value multiplies the memory that a script needs; those that most often help come first.
_COSTLY = (
    "--batch-size",
    "-bs",
    "--hidden",
    "--samples",
    "--steps",
    "--smooth",
    "--budget",
    "--max-tokens",
    "--size",
    "--limit",
    "--max-context",
    "-m",
    "--threads",
    "--workers",
    "--ensemble",
    "--members",
)


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Call `main(argv)` and exit with a status that says how it ended.

    Statuses: 0 success, 1 the run failed, 2 the user's input was wrong, 128 + n signal number n (130 Ctrl-C,
    143 SIGTERM), 141 the reader of standard output is gone.
    """
    streams.prepare()
    threads.share_cores_with_others()
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
        _leave(0)
    except OtherTaskError as error:
        _leave(2, f"error: {error}{scripts.way_out(error.path, error.content)}")
    except UserError as error:
        _leave(2, f"error: {error}")
    except RunFailed as error:
        _leave(1, f"error: {error}")
    except Interrupted as error:
        _leave(128 + error.signal_number, str(error))
    except KeyboardInterrupt:
        _leave(130, "interrupted")
    except BrokenPipeError:
        # The reader of standard output is gone (as with `| head`), so no message can reach it.
        streams.abandon(sys.stdout)
        _leave(141)
    except Exception as error:
        if isinstance(error, _OF_MEMORY) and _is_out_of_memory(error):
            _leave_without_memory(error)
        if told := told_of_user_code(error):
            _leave(2, f"error: {told}")
        if not isinstance(error, OSError):
            raise
        _leave_after(error)


def _leave_after(error: OSError) -> None:
    # Code that reads and writes files turns their errors into UserError or RunFailed. Three kinds are left:
    # no memory (for another process, say), invalid paths (e.g. too long), which the error names, and errors
    # of standard output.
    if error.errno == errno.ENOMEM:
        _leave_without_memory(error)
    if error.filename is not None:
        _leave(2, f"error: {os.fsdecode(error.filename)}: {error.strerror}")
    streams.abandon(sys.stdout)
    _leave(1, f"error: cannot write to standard output: {error.strerror or error}")


def _is_out_of_memory(error: Exception) -> bool:
    said = str(error)
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(said)) or _NO_THREADS in said


def _leave_without_memory(error: Exception) -> None:
    """Leave with what is missing and the flags that ask for it; status 2 if the user typed one of them."""
    words = [word.partition("=")[0] for word in sys.argv[1:]]
    typed = [flag for flag in _COSTLY if flag in words]
    remedy = f"a smaller {', '.join(typed or ['--batch-size or --size'])} needs less"
    status = 2 if typed else 1
    if _NO_THREADS in str(error):
        _leave(status, f"error: the system starts no more threads: {remedy}")
    asked = re.search(r"[Tt]ried to allocate ([\d.]+ ?\w+)|allocate ([\d.]+ ?\w+)", str(error))
    amount = f" (one part alone asks for {asked[1] or asked[2]})" if asked else ""
    where = "of the GPU" if "CUDA" in str(error) or "MPS" in str(error) else "of this machine"
    _leave(status, f"error: the memory {where} does not suffice{amount}: {remedy}")


def _leave(status: int, line: str = "") -> None:
    # Under torchrun every rank meets the same error; only rank 0 reports it.
    if line and launch.speaks():
        say(line)
    if launch.has_others():
        # A thread of gloo may still be releasing a tensor. If the interpreter is already shutting down then,
        # the process aborts (pytorch/pytorch#179291). So ranks exit without shutting the interpreter down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
