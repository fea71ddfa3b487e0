"""Suggestions for misspelt flags: what a user meant who typed a flag that a script does not have."""

import difflib
from collections.abc import Collection

# What other programs call the flags of these scripts.
_SYNONYMS = {
    "epoch": "max-epoch",
    "epochs": "max-epoch",
    "n-epochs": "max-epoch",
    "num-epochs": "max-epoch",
    "max-epochs": "max-epoch",
    "steps": "max-update",
    "max-steps": "max-update",
    "iterations": "max-update",
    "lr": "learning-rate",
    "rate": "learning-rate",
    "bs": "batch-size",
    "batch": "batch-size",
    "wd": "weight-decay",
    "opt": "optimizer",
    "scheduler": "schedule",
    "lr-scheduler": "schedule",
    "grad-clip": "clip-norm",
    "clip-grad-norm": "clip-norm",
    "early-stopping": "patience",
    "fp16": "amp",
    "bf16": "amp",
    "cuda": "device",
    "gpu": "device",
    "gpus": "device",
    "num-workers": "workers",
    "num-threads": "threads",
    "augmentation": "augment",
    "data": "dataset",
    "data-path": "data-dir",
    "data-root": "data-dir",
    "root": "data-dir",
    "img-size": "size",
    "image-size": "size",
    "input-size": "size",
    "resolution": "size",
    "val-fraction": "valid-fraction",
    "val-split": "valid-fraction",
    "eval": "eval-only",
    "evaluate": "eval-only",
    "test": "eval-only",
    "predict": "predict-only",
    "ckpt": "restore-file",
    "checkpoint": "restore-file",
    "load": "restore-file",
    "restore": "restore-file",
    "ckpt-dir": "checkpoint-dir",
    "save-dir": "checkpoint-dir",
    "log-every": "log-interval",
    "print-freq": "log-interval",
    "out": "out-dir",
    "output": "out-dir",
    "output-dir": "out-dir",
    "image": "input",
    "images": "input",
    "img": "input",
    "file": "input",
    "log": "log-file",
    "logs": "log-file",
    "arch": ("model", "ptm"),
    "net": "network",
    "pretrained": "ptm",
    "model": "ptm",
    "class": "target",
    "target-class": "target",
    "label": "target",
    "topk": "top-k",
    "k": "top-k",
    "layers": "layer",
    "target-layer": "layer",
    "cam": "method",
    "n-steps": "steps",
    "patch-size": "patch-side-len",
    "samples": "budget",
    "nsamples": "budget",
    "text": "input",
    "sentence": "input",
}
_LIKE = 0.6


def meant(flag: str, flags: Collection[str]) -> str | None:
    """Return the flag of a script that is most likely meant by one that it does not have.

    Args:
        flag: what was typed, e.g. `--epochs`.
        flags: the script's flags, e.g. `--max-epoch`.
    """
    name = flag.lstrip("-").casefold().replace("_", "-")
    named = _SYNONYMS.get(name, ())
    for each in (name, *((named,) if isinstance(named, str) else named)):
        if f"--{each}" in flags:
            return f"--{each}"
    long = [each for each in flags if each.startswith("--")]
    begun = [each for each in long if each.startswith(f"--{name}")]
    if name and len(begun) == 1:
        return begun[0]
    return next(iter(difflib.get_close_matches(f"--{name}", long, 1, _LIKE)), None)


def unknown(words: list[str], flags: Collection[str]) -> str:
    """Return what is wrong with words of a command line that no flag takes, and what was probably meant."""
    said = f"unrecognized arguments: {' '.join(words)}"
    flag = next((word.partition("=")[0] for word in words if word.startswith("-") and len(word) > 1), None)
    near = meant(flag, flags) if flag else None
    if near:
        return f"{said} (did you mean {near}?)"
    if not flag and "--input" in flags:
        return f"{said} (did you mean --input {words[0]}?)"
    return said
