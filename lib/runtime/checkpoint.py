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
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib.runtime.errors import UserError
from lib.runtime.files import existing_file, write_atomically

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
    """Read a checkpoint onto the CPU; a bare state_dict is returned as `{'state_dict': …}`.

    Args:
        path: the file.
        task: the task that the caller needs; a checkpoint of another task is refused. None accepts any.

    Raises:
        UserError: no such file, not a checkpoint, damaged, of another task or format, or a pickle that
            would run code (the code is never run).
    """
    path = existing_file(path)
    content = _unpickle(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a checkpoint or state_dict")
    if "format" not in content:
        return {"state_dict": _bare_state_dict(path, content)}
    if content["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {content['format']}; this version reads {FORMAT}")
    _check(path, content)
    if task is not None and content["task"] != task:
        raise UserError(f"{path} was trained for {content['task']}, not for {task}")
    return content


def _unpickle(path: Path) -> Any:
    # weights_only keeps a downloaded file from executing code.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about pickles that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported global" in str(error).lower():
            raise UserError(f"{path} is refused: it holds more than plain values and tensors") from None
        raise UserError(f"{path} is not a checkpoint, or is damaged") from None
    except Exception:  # on bytes that are not a pickle, the unpickler may raise nearly any exception
        raise UserError(f"{path} is not a checkpoint, or is cut short") from None


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
    _check_state_dict(path, content["state_dict"])


def _has_names(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _check_state_dict(path: Path, weights: Any) -> None:
    if not _has_names(weights) or not weights:
        raise UserError(f"{path} holds no weights: its state_dict has no names")
    wrong = [name for name, value in weights.items() if not isinstance(value, torch.Tensor)]
    if wrong:
        raise UserError(f"{path} holds no state_dict: its entry {wrong[0]!r} is not a tensor")


def _bare_state_dict(path: Path, content: dict) -> dict[str, torch.Tensor]:
    weights = content.get("state_dict", content)
    _check_state_dict(path, weights)
    # DistributedDataParallel and torch.compile add these prefixes to every name.
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in weights.items()}


def restore_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load `weights` into `model`; error messages call the weights `source`.

    Raises:
        UserError: names or shapes differ. The message gives the first difference and the number of others.
    """
    own = model.state_dict()
    # Files older than PyTorch 0.4.1 lack the batch counter of batch normalisation, which nothing here reads.
    needed = (name for name in own if not name.endswith("num_batches_tracked"))
    problems = [f"no {name}" for name in needed if name not in weights]
    problems += [f"unknown {name}" for name in weights if name not in own]
    problems += [
        f"{name} is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(f"{source} does not fit {type(model).__name__}: {problems[0]}{more}")
    model.load_state_dict(weights, strict=False)
