#!/usr/bin/env python3
"""Press Ctrl-C at random instants of `… | tee -a log`, resume, and compare with a run never stopped.

interrupt_and_resume.py --times 20 --dataset digits --limit 600 --max-epoch 60

The terminal sends the signal to every process of the pipeline: `tee`, too, is gone before the script has
written its last line. Each time, `checkpoint_last.pt` must be at the last logged update or later, the status
130 and the message must be there, and the resumed run must end at the weights of the run that was never
stopped. Flags unknown here go to the training script.
"""

import argparse
import fcntl
import os
import pty
import random
import re
import shlex
import struct
import sys
import tempfile
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "run-mnist-classification.py"
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]


class Session(NamedTuple):
    """What a command printed on its terminal, and its exit status."""

    status: int
    screen: str


def in_terminal(
    line: str, folder: Path, *, interrupt_after: float | None = None, wait_for: str = ""
) -> Session:
    """Run a line of bash in a pseudo-terminal; press Ctrl-C so many seconds after `wait_for` was printed.

    `wait_for` is a regular expression.
    """
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.environ["OMP_NUM_THREADS"] = "1"
        # The trap keeps bash itself alive; the processes of the pipeline get the signal as ever.
        os.execvp("bash", ["bash", "-c", f"trap : INT; {line}; exit ${{PIPESTATUS[0]}}"])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    os.set_blocking(terminal, False)
    screen, deadline, pressed = b"", None, interrupt_after is None
    give_up = time.monotonic() + 120
    try:
        while True:
            try:
                part = os.read(terminal, 65536)
                if not part:
                    break
                screen += part
            except BlockingIOError:
                time.sleep(0.002)
            except OSError:  # the last process has closed the terminal
                break
            now = time.monotonic()
            if now > give_up:
                raise SystemExit(f"no end within two minutes: {screen[-500:]!r}")
            if deadline is None and not pressed and re.search(wait_for.encode(), screen):
                deadline = now + interrupt_after
            if deadline is not None and not pressed and now >= deadline:
                os.write(terminal, b"\x03")
                pressed = True
    finally:
        os.close(terminal)
    _, status = os.waitpid(process, 0)
    return Session(os.waitstatus_to_exitcode(status), screen.decode("utf-8", "replace").replace("\r", "\n"))


class Trial(NamedTuple):
    """One Ctrl-C: the update of the checkpoint, the last one logged, and what was wrong (empty: nothing)."""

    saved: int
    logged: int
    wrong: str


def train_command(flags: Sequence[str]) -> str:
    return shlex.join(
        [sys.executable, str(SCRIPT), "--checkpoint-dir", "run", "--log-interval", "10", *flags]
    )


def interrupt_and_resume(
    folder: Path, whole: Path, flags: Sequence[str], after: int, seconds: float
) -> Trial | None:
    """Interrupt one run in `folder`, so many seconds after an update was logged, and resume it.

    Returns:
        None if the run ended before the Ctrl-C came.
    """
    from kill_and_resume import _weights_and_state, same

    from lib.runtime import checkpoint

    folder.mkdir()
    first = in_terminal(
        f"{train_command(flags)} | tee -a log", folder, interrupt_after=seconds, wait_for=f"Step={after} "
    )
    if first.status == 0 or "[DONE]" in first.screen:
        return None
    last = folder / "run" / checkpoint.LAST
    saved = checkpoint.load(last)["update"] if last.exists() else -1
    logged = max(map(int, re.findall(r"\[TRAIN\] .*?Step=(\d+)", (folder / "log").read_text())), default=0)
    resumed = in_terminal(f"{train_command([*flags, '--resume'])} | tee -a log", folder)
    ends = [_weights_and_state(each / "run" / checkpoint.LAST) for each in (folder, whole)]
    finished = saved == ends[1]["update"]  # the Ctrl-C came while the trained network was evaluated
    said = " ".join(first.screen.split())
    problems = {
        f"status {first.status}": first.status != 130,
        f"no message in {first.screen[-400:]!r}": "interrupted"
        + ("" if finished else f" after update {saved}")
        not in said,
        f"checkpoint at update {saved}, but {logged} was logged": saved < logged,
        f"the resumed run ended with status {resumed.status}": resumed.status != 0,
        "other weights": not same(*ends),
    }
    return Trial(saved, logged, ", ".join(name for name, wrong in problems.items() if wrong))


def trials(count: int, flags: Sequence[str], folder: Path, seed: int = 0) -> list[Trial]:
    """Train once without a stop, then interrupt `count` runs, each at another instant."""
    whole = folder / "whole"
    whole.mkdir()
    done = in_terminal(f"{train_command(flags)} | tee -a log", whole)
    if done.status:
        raise SystemExit(f"training ended with status {done.status}: {done.screen[-500:]}")
    logged = [int(step) for step in re.findall(r"\[TRAIN\] .*?Step=(\d+)", (whole / "log").read_text())]
    instants, found = random.Random(seed), []
    for number in range(10 * count):
        if len(found) == count:
            break
        after, seconds = instants.choice(logged[:-1]), instants.uniform(0, 0.05)
        trial = interrupt_and_resume(folder / f"run-{number}", whole, flags, after, seconds)
        if trial:
            found.append(trial)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=20, help="how many; default: 20")
    options, flags = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        found = trials(options.times, flags, Path(folder))
    print("| Ctrl-C | last logged update | checkpoint of update | wrong |\n|---|---|---|---|")
    for number, trial in enumerate(found, 1):
        print(f"| {number} | {trial.logged} | {trial.saved} | {trial.wrong or '-'} |")
    wrong = sum(bool(trial.wrong) for trial in found)
    print(f"\n{len(found)} interruptions, {wrong} of them lost something")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
