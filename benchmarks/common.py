"""Flags that all benchmarks share, and how long a call takes."""

import functools
import importlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from lib import cli
from lib.runtime import threads
from lib.runtime.errors import say
from lib.runtime.files import writable_file


def before_torch() -> None:
    """Do what the scripts do before they load torch, so that the timings are those of the scripts."""
    threads.share_cores_with_others()


def make_parser(prog: str, description: str | None, *, repetitions: int | None = None) -> cli.Parser:
    """Return a parser with the flags of every benchmark.

    Args:
        prog: the name of the script.
        description: what `--help` begins with.
        repetitions: how often each way is timed by default; None for a benchmark that does not time.
    """
    parser = cli.Parser(prog=prog, description=description)
    add = parser.add_argument_group("flags of every benchmark").add_argument
    add(
        "--quick",
        action="store_true",
        help="take sizes so small that all ends within 20 seconds, and data that need no download: "
        "shows that the benchmark works, and not how fast anything is",
    )
    add("--threads", type=cli.integer(1, 1024), default=1, metavar="N", help="compute with N threads")
    if repetitions:
        add(
            "--repetitions",
            "--repeats",
            type=cli.integer(1),
            default=repetitions,
            metavar="N",
            help="time each way N times, in turn with the others, and print the medians",
        )
    add("--json", metavar="FILE", help="write the numbers of the tables to this file, too")
    return parser


def settle(parser: cli.Parser, argv: Sequence[str] | None, quick: dict[str, Any]) -> SimpleNamespace:
    """Return the value of every flag: the one typed, or else that of `quick` with `--quick`, or the default.

    Raises:
        UserError: a wrong flag, or a file for `--json` that cannot be written.
    """
    line = parser.parse(argv)
    options = SimpleNamespace(**(line.defaults | (quick if "quick" in line.typed else {}) | line.typed))
    if options.json:
        options.json = writable_file(options.json)  # complain now, and not after minutes of measuring
    return options


def write_json(options: SimpleNamespace, numbers: Any) -> None:
    """Write `numbers` to the file of `--json`, if there is one."""
    if options.json:
        options.json.write_text(json.dumps(numbers, indent=1) + "\n")


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Return the wall-clock and the CPU seconds that a call takes."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - cpu


@functools.cache
def is_installed(package: str) -> bool:
    """Return whether a package is installed; if not, say on standard error that it is left out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the package imports itself
            importlib.import_module(package)
    except ImportError as error:
        say(f"{package} is left out of the comparison: {error}")
        return False
    return True
