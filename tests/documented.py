"""The commands of README.md and docs/, as bash reads them.

Bash itself takes the commands apart, with a `python3` that notes how it was called. So variables, braces,
loops and pipes mean here what they mean to a reader who pastes them.
"""

import functools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from conftest import ROOT

SECONDS = 300  # for one command, on a machine that does much besides
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
SHELLS = ("shell", "bash", "sh")
# What documented commands may call beside the interpreter: nothing that could do harm.
UTILITIES = ("cat", "echo", "head", "ls", "mkdir", "seq", "sort", "tail", "tee", "wc")

# Of flags that are given twice, the last ones count: networks that take minutes are trained for a moment.
INTERPRETER = f"""#!/bin/bash
if [ -n "$RECORD" ]; then
    printf '%s\\0' "$COMMAND" $(($# + 1)) "${{0##*/}}" "$@" >> "$RECORD"
    exit 0
fi
case "$1" in
    -m) exit 0 ;;
    run-vae.py | run-segmentation.py)
        case " $* " in
            *" --restore-file "*) ;;
            *) set -- "$@" --max-epoch 2 ;;
        esac ;;
esac
exec {sys.executable} "$@"
"""
# Bash calls this function in place of a command that it does not find.
NOT_FOUND = """command_not_found_handle() { printf '%s\\0' "$COMMAND" 1 "$1" >> "$RECORD"; }"""


class Command(NamedTuple):
    """A documented command line.

    Attributes:
        text: as it stands in the document, lines that end in a backslash joined.
        place: the document, and the number of the block in it.
        before: the lines of the block above it that call no script; they may set variables.
        calls: how programs are called by it, each a name and arguments; ('python3', 'run-….py', …).
        runs: whether it is for the reader to run, and not only quoted, say in a table of results.
    """

    text: str
    place: str
    before: tuple[str, ...]
    calls: tuple[tuple[str, ...], ...]
    runs: bool


class Block(NamedTuple):
    """Command lines that belong together, as they stand in a document."""

    lines: list[str]
    runs: bool


# ---- finding the commands


def blocks_of(markdown: str) -> Iterator[Block]:
    """Yield the commands of a document in order: blocks of shell, code spans, and cells of tables."""
    for part in re.split(r"(^ *```.*?^ *``` *$)", markdown, flags=re.MULTILINE | re.DOTALL):
        if part.lstrip().startswith("```"):
            language, _, code = part.strip().strip("`").partition("\n")
            if language.strip() in SHELLS:
                yield Block(whole_lines(code), runs=True)
            continue
        yield from spans_of(part)


def spans_of(prose: str) -> Iterator[Block]:
    """Yield the commands in code spans, those in a table whose head says 'command after `python3 …`' too."""
    after = ""
    for paragraph in re.split(r"(^\|.*\|\s*$)", prose, flags=re.MULTILINE):
        is_row = paragraph.startswith("|")
        head = re.search(r"command after `(python3 [^`]+)`", paragraph) if is_row else None
        if head or (paragraph.strip() and not is_row):
            after = head[1] if head else ""
        for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", paragraph):
            text = " ".join(span.split())
            if text.startswith("python3 "):
                yield Block([text], runs=not is_row)
            elif re.match(r"[\w-]+\.py \S", text):
                yield Block([f"python3 {text}"], runs=False)
            elif after and text.startswith("-"):
                yield Block([f"{after} {text}"], runs=False)


def whole_lines(code: str) -> list[str]:
    """Return the lines of a block of shell, each as long as Bash needs it to be a whole command."""
    found: list[str] = []
    pending = ""
    for line in code.replace("\\\n", " ").splitlines():
        pending = f"{pending}\n{line}".strip()
        if pending and not subprocess.run(["bash", "-n", "-c", pending], capture_output=True).returncode:
            found.append(pending)
            pending = ""
    assert not pending, f"Bash does not understand {pending!r}"
    return found


def make_programs(folder: Path) -> Path:
    """Make a folder of the programs that documented commands find, and return it."""
    folder.mkdir()
    for name in ("python3", "torchrun"):
        (folder / name).write_text(INTERPRETER)
        (folder / name).chmod(0o755)
    for name in UTILITIES:
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    return folder


def calls_of(lines: Sequence[str], folder: Path) -> list[list[tuple[str, ...]]]:
    """Return how each line of a block calls programs, without running one."""
    record = folder / "record"
    record.write_bytes(b"")
    numbered = (f"export COMMAND={number}\n{line}" for number, line in enumerate(lines))
    subprocess.run(
        [shutil.which("bash"), "-c", "\n".join([NOT_FOUND, *numbered])],
        cwd=folder,
        env={"PATH": str(folder / "programs"), "RECORD": str(record), "HOME": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SECONDS,
    )
    calls: list[list[tuple[str, ...]]] = [[] for _ in lines]
    words = iter(record.read_bytes().decode().split("\0")[:-1])
    for number in words:
        calls[int(number)].append(tuple(next(words) for _ in range(int(next(words)))))
    return calls


@functools.cache
def documented() -> list[Command]:
    """Return the commands of all documents that call Python, in order."""
    found: list[Command] = []
    with tempfile.TemporaryDirectory() as name:
        make_programs(Path(name) / "programs")
        for document in DOCUMENTS:
            for number, block in enumerate(blocks_of(document.read_text(encoding="utf-8"))):
                place, before = f"{document.relative_to(ROOT)} block {number}", []
                # An ellipsis stands for flags that do not matter there.
                calls_of_lines = calls_of([line.replace("…", " ") for line in block.lines], Path(name))
                for line, calls in zip(block.lines, calls_of_lines, strict=True):
                    if any(call[0] in ("python3", "torchrun") for call in calls):
                        found.append(Command(line, place, tuple(before), tuple(calls), block.runs))
                    else:
                        before.append(line)
    return found
