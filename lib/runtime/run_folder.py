"""The folder of a run's checkpoints, which holds one run at a time and never a mixture of two."""

import contextlib
import glob
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.runtime import checkpoint
from lib.runtime.errors import UserError
from lib.runtime.spelling import as_typed

_EPOCH_FILE = re.compile(r"checkpoint_epoch_\d+\.pt")
_MEMBER_FOLDER = re.compile(r"member-\d+")


def default_name(flags: Mapping[str, Any], usual_dataset: str) -> str:
    """Return `ckpts/MODEL`, or `ckpts/MODEL-DATASET` if the data set is not the script's default."""
    dataset = flags["dataset"]
    return f"ckpts/{flags['model']}" + ("" if dataset == usual_dataset else f"-{dataset}")


def newest(model: str, dataset: str | None) -> str | None:
    """Return the default folder with the newest resumable run of `model`; None if there is none.

    Args:
        model: name of the network.
        dataset: name of the run's training data set; None for any.
    """
    found = []
    for folder in Path("ckpts").glob(f"{glob.escape(model)}*"):
        state = next(
            (
                file
                for file in (folder / checkpoint.LAST, member(folder, 0) / checkpoint.LAST)
                if file.is_file()
            ),
            None,
        )
        if state is None:
            continue
        with contextlib.suppress(UserError):  # a damaged checkpoint is skipped
            its = checkpoint.load(state).get("flags", {}).get("dataset")
            # Earlier versions put every run into ckpts/MODEL, whatever its data set.
            if folder.name in (model, f"{model}-{its}") and dataset in (None, its):
                found.append((state.stat().st_mtime, str(folder)))
    return max(found)[1] if found else None


def member(folder: str | Path, number: int) -> Path:
    """Return the folder of one network of an ensemble."""
    return Path(folder) / f"member-{number}"


def epoch_file(folder: Path, number: int) -> Path:
    """Return the path of the checkpoint of an epoch, counted from 1."""
    return folder / f"checkpoint_epoch_{number}.pt"


def refuse_other_run(folder: str | Path, task: str, flags: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse a `folder` that holds a run of another network or of other data than `flags` say.

    Args:
        folder: where the new run is to save its checkpoints.
        task: task of the new run.
        flags: its flags, with defaults filled in.
        names: names of the flags that determine its network and its data.

    Raises:
        UserError: the folder holds another run, or checkpoints that do not say which run they belong to.
    """
    files = sorted(_checkpoints(Path(folder)))
    if not files:
        return
    remedy = "give another --checkpoint-dir, or --overwrite to replace what is there"
    # Prefer checkpoint_last.pt, the most complete; the other files in the folder are of the same run.
    file = next((file for file in files if file.name == checkpoint.LAST), files[0])
    try:
        saved = checkpoint.load(file)
    except UserError as error:
        raise UserError(f"{folder} holds a checkpoint that cannot be read ({error}): {remedy}") from None
    if "flags" not in saved:
        raise UserError(f"{file} holds only weights, and does not say which run they are from: {remedy}")
    if saved["task"] != task:
        raise UserError(f"{folder} holds a run for {saved['task']}: {remedy}")
    for name in names:
        its, own = saved["flags"].get(name, flags.get(name)), flags.get(name)
        if its != own:
            spelled = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{folder} holds another run, with {_given(spelled, its)} instead of {_given(spelled, own)}: "
                f"{remedy}"
            )


def _given(flag: str, value: Any) -> str:
    if value is None or value is False or value == ():
        return f"no {flag}"
    return flag if value is True else f"{flag} {as_typed(value)}"


def clear(folder: str | Path) -> None:
    """Remove the checkpoints of an older run and of its ensemble members.

    Otherwise `--resume` could pick up the older run, or its epochs could be taken for those of the new run.
    """
    for file in _checkpoints(Path(folder)):
        file.unlink(missing_ok=True)
    for inner in _members(Path(folder)):
        with contextlib.suppress(OSError):  # the folder holds other files, too
            inner.rmdir()


def _checkpoints(folder: Path) -> list[Path]:
    names = (checkpoint.BEST, checkpoint.LAST, checkpoint.START)
    return [
        file
        for each in (folder, *_members(folder))
        if each.is_dir()
        for file in each.iterdir()
        if file.name in names or _EPOCH_FILE.fullmatch(file.name)
    ]


def _members(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [each for each in folder.iterdir() if _MEMBER_FOLDER.fullmatch(each.name) and each.is_dir()]
