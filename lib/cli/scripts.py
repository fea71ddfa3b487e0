"""The scripts that checkpoints belong to, so that one given to another script is told the right one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SCRIPTS = {
    "reconstruction": "run-vae.py",
    "segmentation": "run-segmentation.py",
    "text-classification": "run-sst2-classification.py",
}
_OF_IMAGES = {1: "run-mnist-classification.py", 3: "run-image-classification.py"}


def way_out(file: str | Path, saved: Mapping[str, Any]) -> str:
    """Return what to do with a checkpoint given to the wrong script, to be put behind an error message."""
    script = script_of(saved)
    return f": use {script} --restore-file {file}" if script else ""


def script_of(saved: Mapping[str, Any]) -> str | None:
    """Return the script that trains networks such as that of a checkpoint; None if there is none here."""
    if saved.get("task") != "image-classification":
        return _SCRIPTS.get(str(saved.get("task")))
    how = saved.get("preprocessing")
    mean = how.get("mean") if isinstance(how, dict) else None
    return _OF_IMAGES.get(len(mean)) if isinstance(mean, list | tuple) else None
