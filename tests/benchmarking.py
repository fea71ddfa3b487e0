"""Benchmarks as modules and as commands, and the tables that they print."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from conftest import ROOT, Ended, call

FOLDER = ROOT / "benchmarks"


def load(script: str) -> ModuleType:
    """Return a benchmark as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{Path(script).stem}", FOLDER / script)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def rows_of(markdown: str) -> list[list[str]]:
    """Return the cells of every row of the tables in a text, their heads left out."""
    tables = re.findall(r"^\|.*\|\s*\n\|(?:[-:]+\|)+\n((?:\|.*\|\s*(?:\n|$))+)", markdown, re.MULTILINE)
    return [line.strip().strip("|").split("|") for table in tables for line in table.splitlines()]


def assert_has_table(done: Ended) -> None:
    assert done.status == 0, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    rows = rows_of(done.stdout)
    assert rows, f"no table in {done.stdout!r}"
    cells = [cell for row in rows for cell in row[1:]]
    assert not re.search(r"\b(nan|inf)\b", " ".join(cells))
    assert sum(bool(re.search(r"\d", cell)) for cell in cells) >= 2


def benchmark(script: str, *flags, folder: Path) -> Ended:
    return call(f"benchmarks/{script}", *flags, folder=folder)
