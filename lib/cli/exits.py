"""How a script ends: its exit status, and one line that says why."""

import os
import sys
from collections.abc import Callable, Sequence

from lib.runtime import streams, threads
from lib.runtime.errors import Interrupted, RunFailed, UserError, say


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Call `main(argv)` and exit with a status that says how it ended.

    Statuses: 0 success, 1 the run failed, 2 the user's input was wrong, 130 Ctrl-C, 143 SIGTERM, 141 the
    reader of standard output is gone.
    """
    streams.open_missing()
    threads.share_cores_with_others()
    try:
        main(sys.argv[1:])
        sys.stdout.flush()
        _leave(0)
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
    except OSError as error:
        # Code that reads and writes files turns their errors into UserError or RunFailed. Two kinds are left:
        # invalid paths (e.g. too long), which the error names, and errors of standard output.
        if error.filename is not None:
            _leave(2, f"error: {error.filename}: {error.strerror}")
        streams.abandon(sys.stdout)
        _leave(1, f"error: cannot write to standard output: {error.strerror or error}")


def _leave(status: int, line: str = "") -> None:
    # Under torchrun every rank meets the same error; only rank 0 reports it.
    if line and int(os.environ.get("RANK", 0)) == 0:
        say(" ".join(line.split()))
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # A thread of gloo may still be releasing a tensor. If the interpreter is already shutting down then,
        # the process aborts (pytorch/pytorch#179291). So ranks exit without shutting the interpreter down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
