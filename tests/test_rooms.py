"""The rooms of `lib/`: which may import which, and what some of them never do."""

import ast
import tomllib
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

import pytest

LIB = Path(__file__).resolve().parent.parent / "lib"

# A room may import those on lower floors; what stands on one floor is independent, but for the arrows named.
FLOORS = (
    ("tasks",),
    ("training", "evaluation", "explain", "figures"),
    ("models",),
    ("data",),
    ("cli",),
    ("runtime",),
)
MOST_ROOMS, MOST_ARROWS = 10, 20
FILES = sorted(LIB.rglob("*.py"))


def room_of(file: Path) -> str:
    return file.relative_to(LIB).parts[0]


def imports(file: Path) -> list[str]:
    """The modules that a file imports anywhere in it, as dotted names."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def arrows() -> dict[tuple[str, str], list[str]]:
    """From one room to another: the files that import across."""
    found = defaultdict(list)
    for file in FILES:
        for name in imports(file):
            parts = name.split(".")
            if parts[0] == "lib" and len(parts) > 1 and parts[1] != room_of(file):
                found[room_of(file), parts[1]].append(str(file.relative_to(LIB)))
    return found


def test_every_module_is_in_a_room_that_has_a_floor():
    assert [file.name for file in LIB.glob("*.py")] == ["__init__.py"]
    rooms = {path.name for path in LIB.iterdir() if path.is_dir() and any(path.glob("*.py"))}
    assert rooms == {room for floor in FLOORS for room in floor}
    assert len(rooms) <= MOST_ROOMS


def test_no_arrow_points_upward_or_to_a_neighbour_and_there_are_few():
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = {arrow: files for arrow, files in arrows().items() if floor[arrow[1]] <= floor[arrow[0]]}
    assert not wrong
    assert len(arrows()) <= MOST_ARROWS, sorted(arrows())


@pytest.mark.parametrize("file", [file for file in FILES if room_of(file) == "explain"], ids=lambda f: f.name)
def test_explanations_open_no_file_and_parse_no_flag(file):
    assert not [name for name in imports(file) if name.split(".")[0] in ("argparse", "PIL", "zipfile")]
    assert not [name for name in imports(file) if name.startswith(("lib.cli", "lib.runtime.files"))]
    calls = [node.func for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call)]
    names = {call.id if isinstance(call, ast.Name) else getattr(call, "attr", "") for call in calls}
    assert not names & {
        "open",
        "read_text",
        "read_bytes",
        "write_text",
        "write_bytes",
        "savez",
        "add_argument",
    }


@pytest.mark.parametrize("file", [file for file in FILES if room_of(file) == "figures"], ids=lambda f: f.name)
def test_figures_import_no_network(file):
    assert not [
        name for name in imports(file) if name.split(".")[0] == "torch" or name.startswith("lib.models")
    ]


def test_an_installation_of_the_project_has_every_room():
    settings = tomllib.loads((LIB.parent / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["packages"]["find"]["include"]
    for folder in {path.parent.relative_to(LIB.parent) for path in (LIB.parent / "lib").rglob("*.py")}:
        assert (LIB.parent / folder / "__init__.py").is_file(), folder
        assert any(fnmatch(".".join(folder.parts), pattern) for pattern in patterns), folder
