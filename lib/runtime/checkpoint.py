"""Checkpoints: saved atomically, and loaded without running code from the file.

A checkpoint is a dictionary of plain values and tensors:

    format         1
    task           the task that the network was trained for: 'image-classification', …
    model          {'name': …, 'config': {…}}, the arguments of `lib.models.build`
    state_dict     the weights that were validated (the averaged ones under --ema)
    classes        list of class names
    preprocessing  how a raw input becomes the network's input: {'size': 28, 'mean': [0.0], …}
    flags          the flags of the run
    run            the run's id in the log
    epochs, update how far training had come: the epoch, counted from 1, and the number of updates
                   (earlier versions wrote the epoch, counted from 0, as `epoch`)
    metrics        validation metrics of these weights; empty if they were not validated
    training       only in checkpoint_last.pt: the rest of the state that `--resume` needs
"""

import io
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.runtime import weights
from lib.runtime.errors import OtherTaskError, UserError
from lib.runtime.files import write_atomically

FORMAT = 1
BEST = "checkpoint_best.pt"
LAST = "checkpoint_last.pt"
START = "checkpoint_start.pt"  # the initial weights of an ensemble's networks, if they are not random


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write `checkpoint` to `path` atomically: a crash leaves either the old file or the new one, complete.

    Raises:
        RunFailed: the disk is full or not writable. An older file at `path` is left as it was.
    """
    # Serialise in memory first: torch's own file writer reports a full disk only at the end, as a bare
    # RuntimeError.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    write_atomically(path, buffer.getbuffer())


def load(path: str | Path, *, task: str | Collection[str] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; a state_dict, see `weights`, is returned as `{'state_dict': …}`.

    Args:
        path: the file.
        task: the task that the caller needs, or several of which one will do; empty if any will.

    Raises:
        OtherTaskError: it is of another task.
        UserError: no such file, not a checkpoint, damaged, of another format, or a pickle that would run code
            (the code is never run).
    """
    path = Path(path)
    content = weights.read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint or state_dict")
    if "format" not in content:
        return {"state_dict": weights.state_dict_of(content, path)}
    if not is_count(content["format"]) or content["format"] != FORMAT:
        found = str(content["format"])[:40]
        raise UserError(f"{path} has checkpoint format {found}; this version reads {FORMAT}")
    _check(path, content)
    if "epoch" in content:
        content.setdefault("epochs", content.pop("epoch") + 1)
    wanted = (task,) if isinstance(task, str) else task
    if wanted and content["task"] not in wanted:
        raise OtherTaskError(path, content, " or ".join(wanted))
    return content


def _check(path: Path, content: dict) -> None:
    """Raise a UserError if an entry of the checkpoint is missing or has the wrong type."""
    missing = [key for key in _REQUIRED if key not in content]
    if missing:
        raise UserError(f"{path} is not a checkpoint of this project: it lacks {', '.join(missing)}")
    for key, (is_sound, wanted) in _FIELDS.items():
        if key in content and not is_sound(content[key]):
            raise UserError(f"{path} is damaged, or no checkpoint of this project: its {key} is not {wanted}")
    weights.check_state_dict(path, content["state_dict"])
    _check_agreement(path, content)


def _check_agreement(path: Path, content: dict) -> None:
    """Raise a UserError if entries contradict each other."""
    network, flags = content["model"], content["flags"]
    count = network["config"].get("classes")
    if "classes" in content and isinstance(count, int) and count != len(content["classes"]):
        named = len(content["classes"])
        raise UserError(f"{path} is damaged: it names {named} classes, and its network has {count}")
    # The flag of an ensemble is that of its members.
    if isinstance(flags.get("model"), str) and network["name"] not in (flags["model"], "ensemble"):
        raise UserError(
            f"{path} is damaged: its network is {network['name']}, and its flags say {flags['model']}"
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def is_count(value: Any) -> bool:
    """Return whether a value of a checkpoint is an integer from 0 on; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(each, str) for each in value)


def _are_names_of_classes(value: Any) -> bool:
    return _are_texts(value) and len(value) > 0


def _are_numbers(value: Any) -> bool:
    return _has_names(value) and all(
        isinstance(each, int | float) and not isinstance(each, bool) for each in value.values()
    )


def _is_network(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("name")) and _has_names(value.get("config"))


def _is_vocabulary(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"words", "ngrams", "sizes"}
        and _are_texts(value["words"])
        and len(value["words"]) > 0
        and _are_texts(value["ngrams"])
        and isinstance(value["sizes"], list | tuple)
        and all(is_count(size) and size > 0 for size in value["sizes"])
    )


def _has_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


_REQUIRED = ("task", "model", "state_dict", "flags")
# Of each entry, what it must be, and how that is said. `lib.training.fit` checks the state of training,
# `lib.data.preprocessing` the preprocessing, `lib.cli.settle` the values of the flags.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "task": (_is_text, "a text"),
    "model": (_is_network, "a name with a configuration"),
    "flags": (_has_names, "a table of names"),
    "classes": (_are_names_of_classes, "a list of names"),
    "vocabulary": (_is_vocabulary, "lists of words, n-grams and sizes"),
    "preprocessing": (_has_names, "a table of names"),
    "run": (_is_text, "a text"),
    "epoch": (is_count, "a number from 0 on"),
    "epochs": (is_count, "a number from 0 on"),
    "update": (is_count, "a number from 0 on"),
    "metrics": (_are_numbers, "a table of numbers"),
    "training": (_has_names, "a table of names"),
}


def restore_weights(model: nn.Module, state_dict: Mapping[str, torch.Tensor], source: str | Path) -> None:
    """Load `state_dict` into `model`, whatever prefix its names have; error messages call it `source`.

    Raises:
        UserError: names or shapes differ (the message gives the first difference and the number of others),
            or a tensor is of a kind or has values that no network can use.
    """
    own = model.state_dict()
    found = weights.named_as(own, state_dict, source)
    # Files older than PyTorch 0.4.1 lack the batch counter of batch normalisation, which nothing here reads.
    optional = [name for name in own if name.endswith("num_batches_tracked")]
    problems = weights.problems(own, found, optional)
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(f"{source} does not fit {type(model).__name__}: {problems[0]}{more}")
    weights.check(model, found, source)
    model.load_state_dict(found, strict=False)
