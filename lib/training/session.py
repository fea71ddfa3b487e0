"""Runs of the training scripts: settle the flags, start the log, build, train and restore networks.

The value of a flag is the first of these that exists: the typed value, the value in the restored or resumed
checkpoint, the value in the model's recipe, the parser's default.
"""

import contextlib
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from lib import models
from lib.models import layers
from lib.runtime import checkpoint, distributed, run_folder, threads
from lib.runtime.errors import RunFailed, UserError
from lib.runtime.files import spare, writable_folder
from lib.runtime.memory import keep_what_is_freed
from lib.runtime.runlog import RunLog
from lib.runtime.spelling import as_typed
from lib.training import fit as train
from lib.training.optimisation import Settings

Recipe = Callable[[SimpleNamespace], dict[str, Any]]

# Modes other than training; each needs --restore-file.
_INSPECTIONS = ("eval_only", "predict_only", "explain")

# Flags that choose the training and validation examples.
_OF_THE_DATA = ("dataset", "split", "labels", "classes", "valid_fraction", "limit", "holdout")

# Flags of the training that a resumed run takes from its checkpoint; a different typed value is an error.
_OF_ANY_RUN = (
    *_OF_THE_DATA,
    *("seed", "batch_size", "optimizer", "ema", "weights", "freeze", "teacher"),
)

# Flags that are valid only together with another flag.
_ONLY_WITH = {
    "input": "predict_only",
    "invert": "predict_only",
    "out_file": "predict_only",
    "layers": "eval_only",
    "samples": "eval_only",
    "dims": "eval_only",
    "perplexity": "eval_only",
    "projector": "eval_only",
    "thumbnails": "eval_only",
    "pool": "eval_only",
    "format": "predict_only",
    "glue": "predict_only",
    "teacher_weight": "teacher",
}

# Pairs of flags that both name the initial weights.
_NOT_WITH = {"weights": "restore_file"}

# Flags that describe only the present run, not the network or its training: never taken from a checkpoint.
_OF_THIS_RUN = {
    "eval_only",
    "predict_only",
    "explain",
    "resume",
    "restore_file",
    "checkpoint_dir",
    "out_dir",
    "out_file",
    "show",
    "device",
    "input",
    "invert",
    "layers",
    "samples",
    "dims",
    "perplexity",
    "pool",
    "glue",
    "format",
    "cell",
    "projector",
    "thumbnails",
    "overwrite",
    "list_models",
    "workers",
    "tensorboard",
    "compile",
}


@contextlib.contextmanager
def start(task: str, typed: dict, defaults: dict, recipe: Recipe, structural: Sequence[str]) -> Iterator:
    """Settle the flags, join the other ranks and open the log; yield a `Session`.

    Args:
        task: task name in checkpoints, e.g. 'image-classification'.
        typed, defaults: from `lib.cli.Parser.parse_typed`.
        recipe: function from the flags to the defaults that suit their model and data.
        structural: names of the flags that define the network; a checkpoint's values are binding.

    Raises:
        UserError: the flags contradict each other, or the checkpoint cannot be used.
    """
    started = time.perf_counter()
    flags, saved = settle(task, typed, defaults, recipe, structural)
    device = distributed.pick_device(flags.device)
    if device.type == "cpu":
        keep_what_is_freed()
    # If predictions go to standard output, the log goes to standard error.
    answers = flags.predict_only or getattr(flags, "explain", None)
    stream = sys.stderr if answers and not flags.out_file else None
    with (
        distributed.process_group(device),
        RunLog(task, stream=stream, tensorboard=flags.tensorboard, enabled=distributed.is_main()) as log,
    ):
        _check_ranks(saved, flags, device)
        threads.use(flags.threads)
        session = Session(task, flags, device, log, saved, _run_id(flags, saved))
        session.log_start()
        yield session
        log.event("DONE", Seconds=round(time.perf_counter() - started, 1))


def settle(
    task: str, typed: dict, defaults: dict, recipe: Recipe, structural: Sequence[str]
) -> tuple[SimpleNamespace, dict[str, Any]]:
    """Return the settled flags and the checkpoint that they name ({} if none); arguments as for `start`."""
    flags = defaults | typed
    for name, mode in _ONLY_WITH.items():
        if name in typed and not flags[mode]:
            raise UserError(f"{_spelled(name)} goes with {_spelled(mode)} alone")
    for name, other in _NOT_WITH.items():
        if name in typed and flags[other]:
            raise UserError(f"{_spelled(name)} does not go with {_spelled(other)}: give one of them")
    inspection = next((name for name in _INSPECTIONS if flags.get(name)), None)
    if inspection and not flags["restore_file"]:
        example = f"{run_folder.default_name(flags, defaults['dataset'])}/{checkpoint.BEST}"
        raise UserError(f"{_spelled(inspection)} needs --restore-file, e.g. {example}")
    if flags["resume"] and flags["restore_file"]:
        raise UserError("--resume goes on from --checkpoint-dir; leave out --restore-file")
    spare(flags.get("out_file"), flags["restore_file"], flags.get("input"), flags.get("test_file"))
    usual_dataset = defaults["dataset"]
    if flags["resume"] and not flags["checkpoint_dir"]:
        flags["checkpoint_dir"] = run_folder.newest(flags["model"], typed.get("dataset"))
    flags["checkpoint_dir"] = flags["checkpoint_dir"] or run_folder.default_name(flags, usual_dataset)
    saved = _saved(task, flags)
    own = {name: value for name, value in saved.get("flags", {}).items() if name not in _OF_THIS_RUN}
    if not flags["resume"]:
        own.pop("threads", None)  # specific to the machine, and needed only for an exact resumption
    _check_types(own, defaults)
    _check_agreement(own, typed, (*structural, *_OF_ANY_RUN) if flags["resume"] else structural)
    if flags["restore_file"] and not inspection:
        own = {name: own[name] for name in structural if name in own}  # a new run from old weights
    if "data_dir" in own and not Path(str(own["data_dir"])).exists():
        own.pop("data_dir")  # trained on another machine
    resumed_folder = flags["checkpoint_dir"] if flags["resume"] else None
    flags = defaults | recipe(SimpleNamespace(**(defaults | own | typed))) | own | typed
    # Only now are the model and the data set known, because they may come from --restore-file.
    folder = resumed_folder or flags["checkpoint_dir"] or run_folder.default_name(flags, usual_dataset)
    flags["checkpoint_dir"] = folder
    flags["threads"] = flags["threads"] or threads.suitable(models.is_small(flags["model"]))
    is_new = not inspection and not (flags["resume"] and saved)
    if is_new and not flags["overwrite"]:
        _refuse_other_run(task, flags, structural)
    return SimpleNamespace(**flags), saved


def _refuse_other_run(task: str, flags: dict, structural: Sequence[str]) -> None:
    # A structural flag that is None gets its value later, from the data or the weights.
    network = [name for name in structural if flags[name] is not None]
    data = [*_OF_THE_DATA, "train_file", "valid_file", "test_file"]
    if flags.get("dataset") == "folder":
        data.append("data_dir")
    run_folder.refuse_other_run(flags["checkpoint_dir"], task, flags, [*network, *data])


def _saved(task: str, flags: dict) -> dict[str, Any]:
    if flags["restore_file"]:
        return checkpoint.load(flags["restore_file"], task=task)
    if not flags["resume"]:
        return {}
    folder = Path(flags["checkpoint_dir"])
    return _load_last(folder, task) or _load_last(run_folder.member(folder, 0), task)


def _load_last(folder: Path, task: str) -> dict[str, Any]:
    last = folder / checkpoint.LAST
    if not last.exists():
        return {}
    saved = checkpoint.load(last, task=task)
    missing = [key for key in ("run", "epoch", "update", "metrics", "training") if key not in saved]
    if missing:
        raise UserError(
            f"{last} cannot be resumed, because it lacks {', '.join(missing)}; "
            f"to start a new run from its weights: --restore-file {last}"
        )
    return saved


def _check_ranks(saved: dict[str, Any], flags: SimpleNamespace, device: torch.device) -> None:
    """Raise a UserError on every rank if their checkpoints differ, because hosts may have different files."""
    update = saved.get("update", -1)
    if distributed.any_rank(update, device) != -distributed.any_rank(-update, device):
        raise UserError(
            f"not all ranks find the same checkpoint in {flags.restore_file or flags.checkpoint_dir}: "
            "share the folder among all hosts, or copy it to each"
        )


def _spelled(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_types(saved: dict, defaults: dict) -> None:
    for name, value in saved.items():
        default = defaults.get(name)
        kind = int | float if isinstance(default, float) else type(default)
        if default is not None and not isinstance(value, kind):
            raise UserError(f"the checkpoint is damaged: it says {_spelled(name)} {value!r}")


def _check_agreement(saved: dict, typed: dict, names: Sequence[str]) -> None:
    for name in names:
        if name in saved and name in typed and saved[name] != typed[name]:
            raise UserError(
                f"{_spelled(name)} {typed[name]} does not fit the checkpoint, "
                f"which was trained with {saved[name]}"
            )


def _run_id(flags: SimpleNamespace, saved: dict) -> str:
    if flags.resume and saved:
        return saved["run"]
    return f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


@dataclass
class Session:
    """One run of a training script.

    Attributes:
        task: task name in checkpoints.
        flags: the settled flags, as attributes.
        device: device of the network and its batches.
        log: the log of the run.
        saved: the checkpoint that is restored or resumed; empty if there is none.
        run: id of the run; a resumed run keeps its id.
    """

    task: str
    flags: SimpleNamespace
    device: torch.device
    log: RunLog
    saved: dict[str, Any]
    run: str

    def log_start(self) -> None:
        """Write the `[RUN]` line: the run's id and all flags that have a value."""
        values = {
            name: as_typed(value)
            for name, value in vars(self.flags).items()
            if not (value is None or value is False or value == ())
        }
        if self.flags.resume and self.saved:
            values["Resume_step"] = self.saved["update"]
        elif self.flags.resume:
            self.log.text("RUN", f"nothing to resume in {self.flags.checkpoint_dir}: starting anew")
        self.log.event("RUN", id=self.run, **values)

    def build(self, example: Any, **config: Any) -> nn.Module:
        """Build the network, log its layers, and restore the checkpoint's weights, if there is a checkpoint.

        Args:
            example: an input of batch size 1, a tensor or `Phrases`, to log the sizes of the outputs.
            config: arguments of `lib.models.build`; the configuration in a checkpoint takes precedence.

        Raises:
            UserError: the checkpoint's network has another configuration, or does not take such an input.
        """
        self.network = self.saved.get("model") or {"name": self.flags.model, "config": config}
        for name, value in self.network["config"].items():
            if config.get(name, value) != value:
                raise UserError(f"the checkpoint's network has {name} {value}, the data have {config[name]}")
        torch.manual_seed(self.flags.seed)
        model = models.build(self.network["name"], **self.network["config"])
        if self.saved:
            source = self.flags.restore_file or "the checkpoint"
            checkpoint.restore_weights(model, self.saved["state_dict"], source)
        model.to(self.device)
        for line in layers.format_table(layers.table(model, example.to(self.device))):
            self.log.text("MODEL", line)
        return model

    def fit(
        self,
        model: nn.Module,
        objective: train.Objective,
        training: train.Batches,
        validation: Iterable[Any],
        *,
        description: dict[str, Any],
        **options,
    ) -> None:
        """Train `model` with the settled flags; afterwards it has its best weights.

        Args:
            description: entries of the checkpoints that describe the data: `classes`, `preprocessing`, …
            model, objective, training, validation, options: see `lib.training.fit.fit`.
        """
        checkpoints = self._checkpoints(description)
        self.log.event("PLAN", Steps_per_epoch=len(training))
        resume = self.saved if self.flags.resume and self.saved else None
        if not resume and distributed.is_main():
            run_folder.clear(checkpoints.folder)
        progress = train.fit(
            model,
            objective,
            training,
            validation,
            Settings.of(vars(self.flags)),
            log=self.log,
            checkpoints=checkpoints,
            resume=resume,
            **options,
        )
        if distributed.is_main():
            best = checkpoint.load(checkpoints.best, task=self.task)
            if best.get("run") != self.run:
                raise RunFailed(
                    f"{checkpoints.best} is of run {best.get('run')}, which wrote to the same folder while "
                    f"{self.run} trained: give each its own --checkpoint-dir"
                )
            checkpoint.restore_weights(model, best["state_dict"], checkpoints.best)
        distributed.share_weights(model)
        length = len(training)
        self.log.event(
            "BEST",
            Epoch=max(0, progress.best_update - 1) // length,
            Step=progress.best_update,
            file=checkpoints.best,
        )

    def _checkpoints(self, description: dict[str, Any]) -> train.Checkpoints:
        return train.Checkpoints(
            writable_folder(self.flags.checkpoint_dir),
            {
                "task": self.task,
                "model": self.network,
                "run": self.run,
                "flags": {k: v for k, v in vars(self.flags).items() if k not in _OF_THIS_RUN},
                **description,
            },
        )

    def members(self, count: int) -> list["Session"]:
        """Return a run for each network of an ensemble.

        Each has its own seed (--seed, --seed + 1, …) and its own folder, from which `--resume` continues it.
        The initial weights are saved too, so that members not yet started can begin after an interruption.
        """
        folder = Path(self.flags.checkpoint_dir)
        resumes = self.flags.resume and bool(self.saved)
        if not resumes and distributed.is_main():
            run_folder.clear(folder)
            if self.saved:
                checkpoint.save(writable_folder(folder) / checkpoint.START, self.saved)
        start = self.saved
        if resumes:
            kept = folder / checkpoint.START
            start = checkpoint.load(kept, task=self.task) if kept.exists() else {}
        return [self._member(run_folder.member(folder, number), number, start) for number in range(count)]

    def _member(self, folder: Path, number: int, start: dict[str, Any]) -> "Session":
        begun = _load_last(folder, self.task) if self.flags.resume else {}
        own = {"seed": self.flags.seed + number, "checkpoint_dir": str(folder), "resume": bool(begun)}
        flags, saved = SimpleNamespace(**vars(self.flags) | own), begun or start
        _check_ranks(saved, flags, self.device)
        return Session(self.task, flags, self.device, self.log, saved, _run_id(flags, saved))

    def save_ensemble(self, model: nn.Module, members: Sequence["Session"], description: dict) -> None:
        """Save the ensemble `model` of the networks of `members` as one checkpoint."""
        self.network = {"name": "ensemble", "config": {"members": len(members), "member": members[0].network}}
        checkpoints = self._checkpoints(description)
        if distributed.is_main():
            checkpoint.save(checkpoints.best, checkpoints.description | {"state_dict": model.state_dict()})
        self.log.event("ENSEMBLE", members=len(members), file=checkpoints.best)
