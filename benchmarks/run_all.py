#!/usr/bin/env python3
"""Run all benchmarks, or some, one after the other, and write their tables to one file in Markdown.

Each benchmark has a section of the file, which says on which machine, with which versions and by which
command it was made. Sections of benchmarks that are not run now stay as they are. A benchmark that fails, or
that needs a file or a GPU, is told of in its section, and the others go on. With --quick, only the shortest
one runs: to see that this script works.
"""

import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from lib import cli  # noqa: E402
from lib.runtime import threads  # noqa: E402
from lib.runtime.errors import UserError  # noqa: E402
from lib.runtime.files import writable_file, write_atomically  # noqa: E402

FOLDER = Path(__file__).resolve().parent
QUICK = {"only": ["explanation_measures.py"], "out": "benchmarks.md"}
TITLE = "# Results of the benchmarks"
PACKAGES = ("torch", "torchvision", "numpy", "captum", "grad-cam", "quantus", "shap", "shapiq")


def scripts() -> list[str]:
    """Return the names of the benchmarks, without this one."""
    own = Path(__file__).name
    found = sorted(path for path in FOLDER.glob("*.py") if path.name != own)
    return [path.name for path in found if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")]


def make_parser() -> cli.Parser:
    parser = common.make_parser("run_all.py", __doc__)
    add = parser.add_argument_group("which, and where to").add_argument
    add("--only", nargs="+", choices=scripts(), metavar="NAME.py", help="run these benchmarks alone")
    add(
        "--with",
        dest="extra",
        nargs="+",
        default=(),
        metavar="'NAME.py FLAG …'",
        help="give benchmarks flags of their own, such as the checkpoints they need; each in quotes",
    )
    add("--out", default="docs/benchmarks.md", metavar="FILE", help="the file of all tables")
    return parser


def flags_of(extra: Sequence[str]) -> dict[str, list[str]]:
    """Return the flags of each benchmark that `--with` names.

    Raises:
        UserError: a text does not begin with the name of a benchmark.
    """
    found = {}
    for text in extra:
        try:
            name, *flags = shlex.split(text)
        except ValueError:  # nothing, or a quote that does not end
            name, flags = "", []
        if name not in scripts():
            raise UserError(
                f"--with {text!r} does not begin with the name of a benchmark: {', '.join(scripts())}"
            )
        found[name] = flags
    return found


def machine() -> str:
    """Return the machine and the versions of what the benchmarks use, in one line."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES if _is_there(name)]
    return (
        f"{processor()}, {threads.cores()} cores, Python {platform.python_version()}, {', '.join(versions)}"
    )


def processor() -> str:
    """Return the name of the processor, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _is_there(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def run(script: str, flags: list[str]) -> dict:
    """Run a benchmark; return its name, its flags, its output, its last error and how long it took."""
    started = time.perf_counter()
    command = [sys.executable, str(FOLDER / script), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    error = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    return {
        "script": script,
        "flags": flags,
        "status": done.returncode,
        "seconds": round(time.perf_counter() - started, 1),
        "output": done.stdout.strip(),
        "error": "".join(error),
    }


def section(found: dict) -> str:
    """Return the section of the file that tells of a run."""
    command = shlex.join(["python3", f"benchmarks/{found['script']}", *found["flags"]])
    head = f"## {found['script']}\n\n`{command}`, {found['seconds']:.0f} s.\n{machine()}.\n\n"
    return head + (found["output"] if not found["status"] else f"Not measured: {found['error']}") + "\n"


def sections(text: str) -> dict[str, str]:
    """Return the sections of a file that this script wrote, by the names of the benchmarks."""
    names = "|".join(map(re.escape, scripts()))
    parts = re.split(rf"^## ({names})\n", text, flags=re.MULTILINE)[1:]
    return {name: f"## {name}\n{rest.rstrip()}\n" for name, rest in zip(parts[::2], parts[1::2], strict=True)}


def main(argv=None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    out = writable_file(options.out)
    own = flags_of(options.extra)
    flags = [*(["--quick"] if options.quick else []), "--threads", str(options.threads)]
    found = []
    print("| benchmark | status | s |\n|---|---:|---:|")
    for script in options.only or scripts():
        found.append(run(script, [*flags, *own.get(script, [])]))
        print(f"| {script} | {found[-1]['status']} | {found[-1]['seconds']} |", flush=True)
        # After each, so that what was measured stays if the next one is stopped.
        written = sections(out.read_text(encoding="utf-8")) if out.exists() else {}
        written[script] = section(found[-1])
        parts = [f"{TITLE}\n", *(written[name] for name in sorted(written))]
        write_atomically(out, "\n".join(parts).encode())
    common.write_json(options, found)


if __name__ == "__main__":
    cli.run(main)
