"""Use from Python: the snippets of docs/python.md, and the notebook, whose outputs are kept in it."""

import json
import os
import re

import pytest
import torch
from conftest import ROOT
from notebooks import NOTEBOOK, executed


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder to work in; it has the checkpoint that the snippets name."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_the_snippets_of_the_page_run_one_after_the_other(elsewhere, subject_folder):
    (elsewhere / "ckpts/lenet5-digits").mkdir(parents=True)
    os.symlink(subject_folder / "own.pt", elsewhere / "ckpts/lenet5-digits/checkpoint_best.pt")
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 5
    torch.manual_seed(0)
    names = {}
    for number, snippet in enumerate(snippets):
        exec(compile(snippet, f"docs/python.md, snippet {number + 1}", "exec"), names)
    assert names["maps"].shape == (1, 2, 7, 7)
    assert {name: each.shape for name, each in names["several"].items()} == {
        "layer3": (2, 2, 14, 14),
        "layer4": (2, 2, 7, 7),
    }
    assert names["lines"].shape == (1, 2, 3, 224, 224)
    assert names["mine"].class_name(7) == "7"
    assert names["heat"].shape == (1, 1, 28, 28)
    assert names["share"] <= 0.01
    assert names["values"].shape == names["errors"].shape == names["certain"].shape == (49,)
    assert (elsewhere / "shapley.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_the_notebook_runs_from_a_fresh_clone_and_shows_what_it_showed():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    again = executed(notebook)
    for before, after in zip(notebook["cells"], again["cells"], strict=True):
        assert kinds(before) == kinds(after), "python3 tests/notebooks.py brings the outputs up to date"


def test_the_notebook_is_small_and_every_cell_of_code_has_been_run():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 300_000
    counts = [cell["execution_count"] for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert sum("image/png" in kind for cell in json.loads(text)["cells"] for kind in kinds(cell)) >= 3


def kinds(cell: dict) -> list[str]:
    """The kinds of a cell's outputs; numbers and pictures may differ from machine to machine."""
    return [kind for output in cell.get("outputs", ()) for kind in output.get("data", {"text": ""})]
