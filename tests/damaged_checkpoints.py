"""Checkpoints with random entries of a wrong type or value, and the doors through which they enter."""

import contextlib
import copy
import io
import random
from pathlib import Path
from typing import Any

import torch
from training import fit

from lib.cli.settle import settle
from lib.runtime import checkpoint
from lib.runtime.errors import RunFailed, UserError

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 2**40, 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "5", "\x1b[31mred", "a\nb", "nan", "../..", "x" * 500),
    *([], [1], ["a"], [[1]], (), (1, "a"), {}, {"a": 1}, {1: 2}, {"x": "y"}, {"a": {"b": None}}),
    *(torch.zeros(()), torch.zeros(2, 3), torch.full((4,), float("nan")), torch.zeros(1, dtype=torch.int8)),
)


def damaged(rng: random.Random, saved: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a checkpoint in which one or two entries, at any depth, are other things, or gone."""
    wrong = copy.deepcopy(saved)
    for _ in range(rng.choice((1, 1, 2))):
        holder: Any = wrong
        while True:
            keys = list(holder) if isinstance(holder, dict) else range(len(holder))
            key = rng.choice(keys)
            inner = holder[key]
            if not (isinstance(inner, dict | list) and inner and rng.random() < 0.7):
                break
            holder = inner
        if isinstance(holder, dict) and rng.random() < 0.15:
            del holder[key]
        elif isinstance(holder, dict) and rng.random() < 0.1:
            holder[rng.choice(("new", 5, None, "\x1b"))] = rng.choice(JUNK)
        else:
            holder[key] = rng.choice(JUNK)
        if not wrong:
            break
    return wrong


def resume(saved: dict[str, Any], folder: Path) -> str:
    """Write `saved` as the checkpoint of `folder`, resume its run, and return what is said; empty if nothing.

    Raises:
        Exception: what no user should see.
    """
    torch.save(saved, folder / checkpoint.LAST)
    return _said(lambda: fit(folder, resume=True, max_epoch=1, max_update=4))


def settled(saved: dict[str, Any], folder: Path, line: Any, task: str) -> str:
    """Write `saved` as the checkpoint of `folder`, settle the flags of its run, and return what is said."""
    torch.save(saved, folder / checkpoint.LAST)
    line = copy.copy(line)
    line.typed.update(resume=True, checkpoint_dir=str(folder))
    return _said(lambda: settle(task, line, lambda _flags: {}))


def _said(act: Any) -> str:
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            act()
        except (UserError, RunFailed) as error:
            return str(error)
    return ""
