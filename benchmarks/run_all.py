#!/usr/bin/env python3
"""Run all benchmarks, or some, one after the other, and write their tables to one file in Markdown.

The file says on which machine and with which versions they ran. One that fails is told of in the table, and
the others go on. With --quick, only the shortest one runs: to see that this script works.
"""

import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import common  # noqa: E402
from lib import cli  # noqa: E402
from lib.runtime.files import writable_file, write_atomically  # noqa: E402

FOLDER = Path(__file__).resolve().parent
QUICK = {"only": ["explanation_measures.py"], "out": "results-of-benchmarks.md"}
PACKAGES = ("torch", "torchvision", "numpy", "captum", "grad-cam", "shap")


def scripts() -> list[str]:
    """Return the names of the benchmarks, without this one."""
    own = Path(__file__).name
    found = sorted(path for path in FOLDER.glob("*.py") if path.name != own)
    return [path.name for path in found if 'if __name__ == "__main__"' in path.read_text(encoding="utf-8")]


def make_parser() -> cli.Parser:
    parser = common.make_parser("run_all.py", __doc__)
    add = parser.add_argument_group("which, and where to").add_argument
    add("--only", nargs="+", choices=scripts(), metavar="NAME.py", help="run these benchmarks alone")
    add("--out", default="docs/results-of-benchmarks.md", metavar="FILE", help="the file of all tables")
    return parser


def machine() -> str:
    """Return the machine and the versions of what the benchmarks use, in one line."""
    versions = [f"{name} {metadata.version(name)}" for name in PACKAGES if _is_there(name)]
    return f"{processor()}, Python {platform.python_version()}, {', '.join(versions)}"


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
    """Run a benchmark; return its name, its output, its last error and how long it took."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(FOLDER / script), *flags], capture_output=True, text=True, check=False
    )
    error = done.stderr.strip().splitlines()[-1:] if done.returncode else []
    return {
        "script": script,
        "status": done.returncode,
        "seconds": round(time.perf_counter() - started, 1),
        "output": done.stdout.strip(),
        "error": "".join(error),
    }


def main(argv=None) -> None:
    options = common.settle(make_parser(), argv, QUICK)
    out = writable_file(options.out)
    flags = [*(["--quick"] if options.quick else []), "--threads", str(options.threads)]
    found = []
    print("| benchmark | status | s |\n|---|---:|---:|")
    for script in options.only or scripts():
        found.append(run(script, flags))
        print(f"| {script} | {found[-1]['status']} | {found[-1]['seconds']} |", flush=True)
    parts = ["# Results of the benchmarks", machine() + "."]
    for each in found:
        parts += [f"## {each['script']}", f"`python3 benchmarks/{each['script']} {' '.join(flags)}`"]
        parts.append(each["output"] if not each["status"] else f"Failed: {each['error']}")
    write_atomically(out, ("\n\n".join(parts) + "\n").encode())
    common.write_json(options, found)


if __name__ == "__main__":
    cli.run(main)
