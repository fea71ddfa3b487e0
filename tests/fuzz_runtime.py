#!/usr/bin/env python3
"""Try random input at the doors of `lib/runtime`: logs, checkpoints' fields, the environment, flags' numbers.

fuzz_runtime.py --times 10000              every door that often
fuzz_runtime.py --times 10000 --door logs  one of them

No input may end in anything but a value or one of the errors that become one line. The first that does is
printed with its seed. The tests try each door some fifty times.
"""

import argparse
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

SCRIPTS = (
    "run-mnist-classification.py",
    "run-image-classification.py",
    "run-sst2-classification.py",
    "run-grad-cam.py",
    "run-integrated-gradients.py",
    "run-shapley-value.py",
    "plot-log.py",
)
NUMBERS = (
    *(
        "0",
        "1",
        "-1",
        "+1",
        "2",
        "0.5",
        "-0.0",
        ".5",
        "5.",
        "1e3",
        "1e400",
        "-1e400",
        "1e-400",
        "nan",
        "-nan",
    ),
    *(
        "inf",
        "-inf",
        "infinity",
        "1_000",
        "0x10",
        "1,2",
        "1;2",
        " 3 ",
        "",
        " ",
        "٣",
        "½",
        "²",
        "１２",
        "1e",
        "e1",
    ),
    *(
        "9" * 30,
        "9" * 400,
        "9" * 5000,
        "1" + "0" * 18,
        str(2**31),
        str(2**63),
        str(2**64),
        "1.7976931348623157e308",
    ),
    *(
        "0.75:0.6",
        "0.75:0.6,1:2",
        "1:",
        ":",
        ",",
        "none",
        "1,1,1",
        "\x1b[31m",
        "\n",
        "\ud800",
        "5e-324",
        "true",
    ),
)


def logs(_folder: Path) -> Callable[[random.Random], None]:
    from test_concurrent_logs import damaged_log

    return damaged_log


def environment(_folder: Path) -> Callable[[random.Random], None]:
    from test_launch import VARIABLES, random_environment, read_environment

    def attempt(rng: random.Random) -> None:
        for name in VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(random_environment(rng))
        try:
            read_environment()
        finally:
            for name in VARIABLES:
                os.environ.pop(name, None)

    return attempt


def training_states(folder: Path) -> Callable[[random.Random], None]:
    import torch
    from damaged_checkpoints import damaged, resume
    from training import fit

    from lib.runtime import checkpoint

    fit(folder, max_epoch=1, max_update=2)
    saved = torch.load(folder / checkpoint.LAST, weights_only=True)

    def attempt(rng: random.Random) -> None:
        resume(damaged(rng, saved), folder)

    return attempt


def kept_flags(folder: Path) -> Callable[[random.Random], None]:
    import torch
    from conftest import module_of
    from damaged_checkpoints import damaged, settled

    doors = []
    for script, task in zip(
        SCRIPTS[:3], ("image-classification",) * 2 + ("text-classification",), strict=True
    ):
        line = module_of(script).make_parser().parse([])
        flags = {name: value for name, value in line.values.items() if line.flags[name].is_kept}
        saved = {
            "format": 1,
            "task": task,
            "model": {"name": flags["model"], "config": {}},
            "state_dict": {"w": torch.zeros(1)},
            "flags": flags,
            **{"run": "r1", "epoch": 0, "update": 5, "metrics": {}, "training": {}},
        }
        doors.append((saved, line, task))

    def attempt(rng: random.Random) -> None:
        saved, line, task = rng.choice(doors)
        settled(damaged(rng, saved), folder, line, task)

    return attempt


def numbers(_folder: Path) -> Callable[[random.Random], None]:
    from conftest import module_of

    from lib.runtime.errors import UserError

    parsers = [module_of(script).make_parser() for script in SCRIPTS]
    flags = [(parser, action) for parser in parsers for action in parser._actions if action.option_strings]
    flags = [(parser, action) for parser, action in flags if action.nargs is None and action.dest != "config"]

    def attempt(rng: random.Random) -> None:
        parser, action = rng.choice(flags)
        spelled = f"{action.option_strings[-1]}={rng.choice(NUMBERS)}"
        try:
            value = vars(parser.parse([spelled]))
        except UserError as error:
            # Of a script that needs other flags, too.
            str(error).encode("utf-8", "backslashreplace")
            return
        assert value

    return attempt


DOORS = {each.__name__: each for each in (logs, environment, training_states, kept_flags, numbers)}


def attempts(door: str, times: int, folder: Path, first: int = 0) -> str:
    """Try a door with the seeds from `first` on; return the first failure, or an empty text."""
    attempt = DOORS[door](folder)
    for seed in range(first, first + times):
        began = time.perf_counter()
        try:
            attempt(random.Random(seed))
        except Exception:
            return f"{door}, seed {seed}:\n{traceback.format_exc()}"
        if time.perf_counter() - began > 30:
            return f"{door}, seed {seed}: took {time.perf_counter() - began:.0f} s"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=10_000, help="how often each; default: 10000")
    parser.add_argument("--door", choices=tuple(DOORS), help="one alone")
    parser.add_argument("--seed", type=int, default=0, help="the first seed; default: 0")
    options = parser.parse_args()
    failures = 0
    for door in [options.door] if options.door else DOORS:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            failure = attempts(door, options.times, Path(folder), options.seed)
        print(failure or f"{door}: {options.times:,} inputs in {time.perf_counter() - began:.0f} s")
        failures += bool(failure)
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
