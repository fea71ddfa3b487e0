"""Checkpoints: written whole or not at all, read without ever running code from the file.

A checkpoint is a dictionary of plain values and tensors:

    format         1
    task           what the network was trained for: 'image-classification', …
    model          {'name': …, 'config': {…}}, what `lib.models.build` makes the network from
    state_dict     the weights that validation saw (the averaged ones under --ema)
    classes        list of class names
    preprocessing  what turns a raw input into the network's: {'size': 28, 'mean': [0.0], …}
    flags          the flags of the run
    run            the run's id in the log
    epoch, update  how far training had come
    metrics        validation metrics of these weights; empty where they were not validated
    training       only in checkpoint_last.pt: all that `--resume` needs besides
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
START = "checkpoint_start.pt"  # what the networks of an ensemble begin with, where that is not chance


def save(path: Path, checkpoint: dict[str, Any]) -> None:
    """Write `checkpoint` to `path`: a crash at any instant leaves the old file or the new one, whole.

    Raises:
        RunFailed: the disk is full or not writable. An older file at `path` is untouched.
    """
    # Through memory: torch's own file writer reports a full disk as a bare RuntimeError, after the fact.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **checkpoint}, buffer)
    write_atomically(path, buffer.getbuffer())


def load(path: str | Path, *, task: str | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; a bare state_dict comes back as `{'state_dict': …}` alone.

    Args:
        path: the file.
        task: what the caller can use; a checkpoint of another task is refused.

    Raises:
        UserError: no such file, not a checkpoint, damaged, of another task or format, or a pickle
            that would run code. It is never run.
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
    # weights_only is the wall between a downloaded file and code execution.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about pickles that it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "unsupported global" in str(error).lower():
            raise UserError(f"{path} is refused: it holds more than plain values and tensors") from None
        raise UserError(f"{path} is not a checkpoint, or is damaged") from None
    except Exception:  # bytes that are no pickle make the unpickler raise nearly anything
        raise UserError(f"{path} is not a checkpoint, or is cut short") from None


def _check(path: Path, content: dict) -> None:
    """Raise a UserError where something that every checkpoint has is missing or of the wrong kind."""
    missing = [key for key in ("task", "model", "state_dict", "flags") if key not in content]
    if missing:
        raise UserError(f"{path} is no checkpoint of this project: it lacks {', '.join(missing)}")
    model = content["model"] if isinstance(content["model"], dict) else {}
    sound = {
        "task": isinstance(content["task"], str),
        "model": isinstance(model.get("name"), str) and _has_names(model.get("config")),
        "flags": _has_names(content["flags"]),
    }
    for key, is_sound in sound.items():
        if not is_sound:
            raise UserError(f"{path} is no checkpoint of this project: its {key} is not what it should be")
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
    # DistributedDataParallel and torch.compile put these before every name.
    return {re.sub(r"^((module|_orig_mod)\.)+", "", name): value for name, value in weights.items()}


def restore_weights(model: nn.Module, weights: dict[str, torch.Tensor], source: str | Path) -> None:
    """Load `weights` into `model`; `source` names them in a complaint.

    Raises:
        UserError: names or shapes differ; says how many, and the first.
    """
    own = model.state_dict()
    # Files from before PyTorch 0.4.1 lack batch normalisation's counter, which nothing here reads.
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
