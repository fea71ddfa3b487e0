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
    epoch, update  how far training had come
    metrics        validation metrics of these weights; empty if they were not validated
    training       only in checkpoint_last.pt: the rest of the state that `--resume` needs
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.runtime import weights
from lib.runtime.errors import UserError
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


def load(path: str | Path, *, task: str | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; a state_dict, see `weights`, is returned as `{'state_dict': …}`.

    Args:
        path: the file.
        task: the task that the caller needs; a checkpoint of another task is refused. None accepts any.

    Raises:
        UserError: no such file, not a checkpoint, damaged, of another task or format, or a pickle that
            would run code (the code is never run).
    """
    path = Path(path)
    content = weights.read(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint or state_dict")
    if "format" not in content:
        return {"state_dict": weights.state_dict_of(content, path)}
    if content["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {content['format']}; this version reads {FORMAT}")
    _check(path, content)
    if task is not None and content["task"] != task:
        raise UserError(f"{path} was trained for {content['task']}, not for {task}")
    return content


def _check(path: Path, content: dict) -> None:
    """Raise a UserError if a required entry of the checkpoint is missing or has the wrong type."""
    missing = [key for key in ("task", "model", "state_dict", "flags") if key not in content]
    if missing:
        raise UserError(f"{path} is not a checkpoint of this project: it lacks {', '.join(missing)}")
    model = content["model"] if isinstance(content["model"], dict) else {}
    sound = {
        "task": isinstance(content["task"], str),
        "model": isinstance(model.get("name"), str) and _has_names(model.get("config")),
        "flags": _has_names(content["flags"]),
    }
    for key, is_sound in sound.items():
        if not is_sound:
            raise UserError(f"{path} is not a checkpoint of this project: its {key} has the wrong type")
    weights.check_state_dict(path, content["state_dict"])
    try:
        _sound_classes(content)
    except ValueError as error:
        raise UserError(f"{path} is not a checkpoint of this project: {error}") from None


def _has_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _sound_classes(content: dict) -> None:
    """Raise a ValueError that says what is wrong with the names of the classes, if there are any."""
    if "classes" not in content:
        return
    classes, config = content["classes"], content["model"]["config"]
    if not isinstance(classes, list | tuple) or not all(isinstance(name, str) for name in classes):
        raise ValueError("it does not name its classes: its entry is no list of names")
    if not classes:
        raise ValueError("it does not name its classes: its list is empty")
    count = config.get("classes", len(classes))
    if count != len(classes):
        raise ValueError(f"it names {len(classes)} classes, and its network has {count}")


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
