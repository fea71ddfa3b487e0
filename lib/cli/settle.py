"""Settle the flags of a training script: what was typed, a checkpoint, the model's recipe, the defaults.

The value of a flag is the first of these that exists: the typed value (or that of `--config`), the value in
the restored or resumed checkpoint if the flag's scope lets checkpoints keep it, the value in the model's
recipe, the parser's default.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lib.cli.parser import CommandLine
from lib.cli.scope import Flag, Scope, spelled
from lib.runtime import checkpoint, run_folder
from lib.runtime.errors import UserError
from lib.runtime.files import refuse_overwrite

Recipe = Callable[[SimpleNamespace], dict[str, Any]]

# Modes other than training; each needs --restore-file.
INSPECTIONS = ("eval_only", "predict_only", "explain", "sample")
# Those among them that take a network of the user's own, with --network, instead.
OWN_NETWORK_MODES = ("eval_only", "predict_only")


@dataclass(frozen=True)
class Settled:
    """The settled flags of a run.

    Attributes:
        line: the command line that they come from.
        values: the value of every flag, by name.
        saved: the checkpoint that is restored or resumed; empty if there is none.
        sources: the names of the flags whose values are typed, or come from the configuration, the
            checkpoint or the recipe.
    """

    line: CommandLine
    values: dict[str, Any]
    saved: dict[str, Any]
    sources: dict[str, list[str]]

    @property
    def kept(self) -> dict[str, Any]:
        """The flags that checkpoints keep."""
        return {name: self.values[name] for name, flag in self.line.flags.items() if flag.is_kept}


def settle(task: str, line: CommandLine, recipe: Recipe) -> Settled:
    """Settle the flags, and load the checkpoint that they name.

    Args:
        task: task name in checkpoints, e.g. 'image-classification'.
        line: the command line.
        recipe: function from the flags to the defaults that suit their model and data.

    Raises:
        UserError: the flags contradict each other, or the checkpoint cannot be used.
    """
    defaults, typed, flags = line.defaults, line.typed, line.values
    line.check_company()
    inspection = next((name for name in INSPECTIONS if flags.get(name)), None)
    _check_files(flags, inspection, defaults["dataset"])
    if flags["resume"] and not flags["checkpoint_dir"]:
        flags["checkpoint_dir"] = run_folder.newest(flags["model"], typed.get("dataset"))
    flags["checkpoint_dir"] = flags["checkpoint_dir"] or run_folder.default_name(flags, defaults["dataset"])
    saved = _saved(task, flags)
    own = _kept_values(saved, line, resumes=flags["resume"])
    own = _usable(own, line.flags, resumes=flags["resume"])
    _check_agreement(own, line, resumes=flags["resume"])
    if flags["restore_file"] and not inspection:  # a new run from old weights
        own = {name: value for name, value in own.items() if line.flags[name].scope is Scope.NETWORK}
    resumed_folder = flags["checkpoint_dir"] if flags["resume"] else None
    # A network of the user's own has no recipe; that of --model's default says nothing about it.
    usual = {} if flags.get("network") else recipe(SimpleNamespace(**(defaults | own | typed)))
    flags = defaults | usual | own | typed
    # Only now are the model and the data set known, because they may come from --restore-file.
    folder = resumed_folder or flags["checkpoint_dir"]
    flags["checkpoint_dir"] = folder or run_folder.default_name(flags, defaults["dataset"])
    is_new = not inspection and not (flags["resume"] and saved)
    if is_new and not flags["overwrite"]:
        run_folder.refuse_other_run(flags["checkpoint_dir"], task, flags, _identity(flags, line))
    sources = {
        "typed": [name for name in typed if name not in line.config],
        "config": sorted(line.config),
        "checkpoint": [name for name in own if name not in typed],
        "recipe": [name for name in usual if name not in own and name not in typed],
    }
    return Settled(line, flags, saved, sources)


def _check_files(flags: Mapping[str, Any], inspection: str | None, usual_dataset: str) -> None:
    """Raise a UserError if a checkpoint is missing or one too many, or an output would replace an input."""
    if flags.get("network"):  # a network of the user's own, which has no checkpoint
        if inspection not in OWN_NETWORK_MODES:
            raise UserError(f"--network goes with {' or '.join(map(spelled, OWN_NETWORK_MODES))} alone")
    elif inspection and not flags["restore_file"]:
        example = f"{run_folder.default_name(flags, usual_dataset)}/{checkpoint.BEST}"
        raise UserError(f"{spelled(inspection)} needs --restore-file, e.g. {example}")
    if flags["resume"] and flags["restore_file"]:
        raise UserError("--resume goes on from --checkpoint-dir; leave out --restore-file")
    inputs = [flags["restore_file"], flags.get("input"), flags.get("test_file"), flags.get("config")]
    for output in ("out_file", "save_config"):
        refuse_overwrite(flags.get(output), *inputs)


def _saved(task: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    if flags["restore_file"]:
        return checkpoint.load(flags["restore_file"], task=task)
    if not flags["resume"]:
        return {}
    folder = Path(flags["checkpoint_dir"])
    return load_last(folder, task) or load_last(run_folder.member(folder, 0), task)


def load_last(folder: Path, task: str) -> dict[str, Any]:
    """Return the folder's checkpoint to resume from; empty if there is none.

    Raises:
        UserError: it lacks the state of its run.
    """
    last = folder / checkpoint.LAST
    if not last.exists():
        return {}
    saved = checkpoint.load(last, task=task)
    missing = [key for key in ("run", "epochs", "update", "metrics", "training") if key not in saved]
    if missing:
        raise UserError(
            f"{last} cannot be resumed, because it lacks {', '.join(missing)}; "
            f"to start a new run from its weights: --restore-file {last}"
        )
    return saved


def _kept_values(saved: Mapping[str, Any], line: CommandLine, *, resumes: bool) -> dict[str, Any]:
    """Return the values in a checkpoint of the flags that their scope lets it keep."""
    kept = {}
    for name, value in saved.get("flags", {}).items():
        flag = line.flags.get(name)
        # Checkpoints of earlier versions keep more, e.g. --log-interval.
        if flag is None or not flag.is_kept or (flag.kept_for_resume and not resumes):
            continue
        # A folder of the machine that it was trained on gives way to the default.
        if flag.is_path and line.defaults[name] is not None and not Path(str(value)).exists():
            continue
        kept[name] = value
    return kept


def _usable(saved: Mapping[str, Any], flags: Mapping[str, Flag], *, resumes: bool) -> dict[str, Any]:
    """Return the values of `saved` that their flags accept.

    Another script may offer other networks, data sets, augmentations. The names of the first two are looked
    up later, where there is a message for each; the others matter only to a run that is resumed.

    Raises:
        UserError: a value is damaged.
    """
    usable = {}
    for name, value in saved.items():
        flag = flags[name]
        if flag.accepts(value) or (name in ("model", "dataset") and isinstance(value, str)):
            usable[name] = value
        elif resumes or flag.scope is not Scope.TRAINING or not _are_words(value):
            said = repr(value)
            short = said if len(said) <= 60 else f"{said[:60]}…"
            raise UserError(
                f"the checkpoint is damaged, or of a script with other flags: it says {spelled(name)} {short}"
            )
    return usable


def _are_words(value: Any) -> bool:
    words = value if isinstance(value, tuple) else (value,)
    return all(isinstance(word, str) for word in words)


def _check_agreement(saved: Mapping[str, Any], line: CommandLine, *, resumes: bool) -> None:
    """Raise a UserError if a typed flag contradicts the checkpoint's network or the run that is resumed."""
    for name, value in saved.items():
        flag = line.flags[name]
        is_binding = flag.is_binding if resumes else flag.scope is Scope.NETWORK
        if is_binding and name in line.typed and value != line.typed[name]:
            raise UserError(
                f"{spelled(name)} {line.typed[name]} does not fit the checkpoint, "
                f"which was trained with {value}"
            )


def _identity(flags: Mapping[str, Any], line: CommandLine) -> list[str]:
    """Return the names of the flags that determine a run's network and data."""
    # A flag of the network that is None gets its value later, from the data or the weights.
    network = [n for n, flag in line.flags.items() if flag.scope is Scope.NETWORK and flags[n] is not None]
    data = [name for name, flag in line.flags.items() if flag.scope is Scope.DATA]
    # Data sets are found below --data-dir by their names; a folder of images has only this one.
    return [*network, *(name for name in data if name != "data_dir" or flags["dataset"] == "folder")]
