"""Runs of the training scripts: settle the flags, start the log, build, train and restore networks."""

import contextlib
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lib import models
from lib.cli import CommandLine, config, scripts
from lib.cli.scope import Scope, is_unset
from lib.cli.settle import INSPECTIONS, Recipe, Settled, load_last, settle
from lib.models import layers
from lib.runtime import checkpoint, compilation, distributed, memory, run_folder, threads
from lib.runtime.errors import RunFailed, UserError
from lib.runtime.files import remove_abandoned, writable_folder
from lib.runtime.runlog import RunLog
from lib.runtime.settings import Settings
from lib.runtime.spelling import as_typed
from lib.training import fit as loop
from lib.training.objectives import Objective
from lib.training.optimisation import Settings as TrainingSettings

# Flags of the machine that concern training alone.
_OF_TRAINING_FOLDERS = ("checkpoint_dir", "log_interval", "compile", "overwrite", "workers")


@dataclass(frozen=True)
class RunSettings(Settings):
    """The flags that every run of a training script has."""

    model: str
    dataset: str
    seed: int
    amp: bool
    resume: bool
    restore_file: str | None
    checkpoint_dir: str


@contextlib.contextmanager
def start(task: str, line: CommandLine, recipe: Recipe) -> Iterator["TrainingRun"]:
    """Settle the flags, join the other ranks and open the log; yield a `TrainingRun`.

    Arguments and errors are those of `lib.cli.settle.settle`.
    """
    started = time.perf_counter()
    settled = settle(task, line, recipe)
    flags = settled.values
    models.check_options(flags["model"], line.typed)
    is_small = models.is_small(flags["model"]) and not flags.get("network")
    flags["threads"] = flags["threads"] or threads.suitable(is_small)
    device = distributed.pick_device(flags["device"])
    if flags["compile"] and not any(flags.get(mode) for mode in INSPECTIONS):
        compilation.check(device)
    if device.type == "cpu":
        memory.keep_freed_memory()
    # If predictions go to standard output, the log goes to standard error.
    answers = flags["predict_only"] or flags.get("explain")
    stream = sys.stderr if answers and not flags["out_file"] else None
    with (
        distributed.process_group(device),
        RunLog(task, stream=stream, tensorboard=flags["tensorboard"], enabled=distributed.is_main()) as log,
    ):
        run = TrainingRun(task, settled, device, log)
        run.check_ranks()
        threads.use(flags["threads"])
        if flags["save_config"] and distributed.is_main():
            config.save(flags["save_config"], flags, line.flags, line.typed)
        run.log_start()
        yield run
        log.event("DONE", Seconds=round(time.perf_counter() - started, 1))


class TrainingRun:
    """One run of a training script.

    Attributes:
        task: task name in checkpoints.
        flags: the settled value of every flag, by name.
        settings: those that every run has.
        device: device of the network and its batches.
        log: the log of the run.
        saved: the checkpoint that is restored or resumed; empty if there is none.
        id: id of the run; a resumed run keeps its id.
    """

    def __init__(self, task: str, settled: Settled, device: torch.device, log: RunLog):
        self.task, self.device, self.log = task, device, log
        self._settled = settled
        self.flags: Mapping[str, Any] = settled.values
        self.saved = settled.saved
        self.settings = RunSettings.of(self.flags)
        if self.settings.resume and self.saved:
            self.id = self.saved["run"]
        else:
            self.id = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"

    @property
    def source(self) -> str:
        """Where the initial weights come from, for messages."""
        return self.settings.restore_file or self.flags.get("weights") or "the checkpoint"

    @property
    def goes_on(self) -> bool:
        """Whether this command looks at, or goes on with, the network of a checkpoint and its classes."""
        return self.settings.resume or any(self.flags.get(mode) for mode in INSPECTIONS)

    @property
    def _answers(self) -> bool:
        """Whether this command is about single inputs; the layers of its network then say nothing new."""
        return bool(self.flags["predict_only"] or self.flags.get("explain"))

    def is_typed(self, name: str) -> bool:
        """Whether the user gave the flag, on the command line or in `--config`."""
        return name in self._settled.line.typed

    def picture_name(self, what: str) -> str:
        """Return the name of a picture's file: what it shows, of which network, and of which data.

        The script's usual network is not named; a folder of the user's own images is named by its own name.
        """
        network, data = self.settings.model, self.settings.dataset
        own = self.flags.get("network")
        if own:
            network = own.rpartition(":")[2]
        elif network == self._settled.line.defaults["model"]:
            network = ""
        if data == "folder":
            data = Path(self.flags["data_dir"]).resolve().name or data
        parts = [re.sub(r"[^\w.+]+", "-", each).strip("-.") for each in (what, network, data)]
        return f"{'-'.join(filter(None, parts))[:200]}.png"

    def fill_in(self, name: str, value: Any) -> None:
        """Give a flag that the user left open the value that the data or the weights decide."""
        self._settled.values[name] = value

    def check_ranks(self) -> None:
        """Raise a UserError on every rank if their checkpoints differ: hosts may have different files."""
        update = self.saved.get("update", -1)
        if distributed.max_over_ranks(update, self.device) != -distributed.max_over_ranks(
            -update, self.device
        ):
            raise UserError(
                f"not all ranks find the same checkpoint in "
                f"{self.settings.restore_file or self.settings.checkpoint_dir}: "
                "share the folder among all hosts, or copy it to each"
            )

    def log_start(self) -> None:
        """Write the `[RUN]` line: the run's id, the flags that matter in its mode, where they come from."""
        values = {
            name: as_typed(value)
            for name, value in self.flags.items()
            if not is_unset(value) and self._matters(name)
        }
        if self.settings.resume and self.saved:
            values["Resume_step"] = self.saved["update"]
        elif self.settings.resume:
            self.log.text("RUN", f"nothing to resume in {self.settings.checkpoint_dir}: starting anew")
        sources = {
            f"From_{source}": ",".join(told)
            for source, names in self._settled.sources.items()
            if (told := [name for name in names if self._matters(name)])
        }
        self.log.event("RUN", id=self.id, **values, **sources)

    def _matters(self, name: str) -> bool:
        """Return whether a flag says anything about what this command does."""
        flag = self._settled.line.flags.get(name)
        if flag is None or name in self._settled.line.typed:
            return True
        if flag.only_with and is_unset(self.flags.get(flag.only_with)):
            return False
        if name == "model" and self.flags.get("network"):
            return False
        if not self.inspects:
            return True
        if flag.scope is Scope.DATA and self.flags.get("input"):
            return False  # the user's own files are looked at, and no data set
        if name == "out_dir" and self._answers:
            return bool(self.flags.get("explain"))
        return flag.scope is not Scope.TRAINING and name not in _OF_TRAINING_FOLDERS

    @property
    def inspects(self) -> bool:
        """Whether this command looks at a network, instead of training one."""
        return any(self.flags.get(mode) for mode in INSPECTIONS)

    def build(self, example: Any, **config: Any) -> nn.Module:
        """Build the network, log its layers, and restore the checkpoint's weights, if there is a checkpoint.

        Args:
            example: an input of batch size 1, a tensor or `Phrases`, to log the sizes of the outputs.
            config: arguments of `lib.models.build`, besides the network's options, which are flags; the
                configuration in a checkpoint takes precedence.

        Raises:
            UserError: the checkpoint's network has another configuration, or does not take such an input.
        """
        config |= models.arguments(self.settings.model, self.flags)
        self.network = self.saved.get("model") or {"name": self.settings.model, "config": config}
        for name, value in self.network["config"].items():
            if config.get(name, value) != value:
                raise UserError(
                    f"the checkpoint's network has {name} {value}, the data have {config[name]}"
                    f"{self._way_out(name)}"
                )
        torch.manual_seed(self.settings.seed)
        model = models.build(self.network["name"], **self.network["config"])
        if self.saved:
            checkpoint.restore_weights(model, self.saved["state_dict"], self.source)
        model.to(self.device)
        # Made in any case, because it refuses an input that the network does not take.
        table = layers.table(model, example.to(self.device))
        if not self._answers:
            whole = self.inspects or self.flags["log_interval"]
            for line in layers.format_table(table if whole else layers.in_parts(table)):
                self.log.text("MODEL", line)
        return model

    def _way_out(self, name: str) -> str:
        """Return what to do with a checkpoint whose network has other classes or channels than the data."""
        if name == "channels":
            return scripts.way_out(self.source, self.saved)
        if name != "classes" or self.goes_on or "weights" not in self.flags:
            return ""
        return f": --weights {self.source} instead of --restore-file takes all but the last layer"

    def fit(
        self,
        model: nn.Module,
        objective: Objective,
        training: loop.Batches,
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
        _check_memory(model)
        checkpoints = self._checkpoints(description)
        self.log.event("PLAN", Steps_per_epoch=len(training))
        resume = self.saved if self.settings.resume and self.saved else None
        if not resume and distributed.is_main():
            run_folder.clear(checkpoints.folder)
        progress = loop.fit(
            model,
            objective,
            training,
            validation,
            TrainingSettings.of(self.flags),
            log=self.log,
            checkpoints=checkpoints,
            resume=resume,
            **options,
        )
        metrics: dict[str, float] = {}
        if distributed.is_main():
            best = checkpoint.load(checkpoints.best, task=self.task)
            if best.get("run") != self.id:
                raise RunFailed(
                    f"{checkpoints.best} is of run {best.get('run')}, which wrote to the same folder while "
                    f"{self.id} trained: give each its own --checkpoint-dir"
                )
            checkpoint.restore_weights(model, best["state_dict"], checkpoints.best)
            metrics = best.get("metrics", {})
        distributed.share_weights(model)
        length = len(training)
        self.log.event(
            "BEST",
            Epoch=loop.epoch_of(progress.best_update, length),
            Step=progress.best_update,
            **{f"Valid_{name}": value for name, value in metrics.items()},
            file=checkpoints.best,
        )

    def _checkpoints(self, description: dict[str, Any]) -> loop.Checkpoints:
        folder = writable_folder(self.settings.checkpoint_dir)
        if distributed.is_main():
            remove_abandoned(folder)
        return loop.Checkpoints(
            folder,
            {
                "task": self.task,
                "model": self.network,
                "run": self.id,
                "flags": self._settled.kept,
                **description,
            },
        )

    def members(self, count: int) -> list["TrainingRun"]:
        """Return a run for each network of an ensemble.

        Each has its own seed (--seed, --seed + 1, …) and its own folder, from which `--resume` continues it.
        The initial weights are saved too, so that members not yet started can begin after an interruption.
        """
        folder = Path(self.settings.checkpoint_dir)
        resumes = self.settings.resume and bool(self.saved)
        if not resumes and distributed.is_main():
            run_folder.clear(folder)
            remove_abandoned(writable_folder(folder))
            if self.saved:
                checkpoint.save(folder / checkpoint.START, self.saved)
        start = self.saved
        if resumes:
            kept = folder / checkpoint.START
            start = checkpoint.load(kept, task=self.task) if kept.exists() else {}
        return [self._member(run_folder.member(folder, number), number, start) for number in range(count)]

    def _member(self, folder: Path, number: int, start: dict[str, Any]) -> "TrainingRun":
        begun = load_last(folder, self.task) if self.settings.resume else {}
        own = {"seed": self.settings.seed + number, "checkpoint_dir": str(folder), "resume": bool(begun)}
        settled = replace(self._settled, values={**self.flags, **own}, saved=begun or start)
        member = TrainingRun(self.task, settled, self.device, self.log)
        member.check_ranks()
        return member

    def save_ensemble(self, model: nn.Module, members: Sequence["TrainingRun"], description: dict) -> None:
        """Save the ensemble `model` of the networks of `members` as one checkpoint."""
        self.network = {"name": "ensemble", "config": {"members": len(members), "member": members[0].network}}
        checkpoints = self._checkpoints(description)
        if distributed.is_main():
            checkpoint.save(checkpoints.best, checkpoints.description | {"state_dict": model.state_dict()})
        self.log.go_on_with(self.id)
        self.log.event("ENSEMBLE", members=len(members), file=checkpoints.best)


def _check_memory(model: nn.Module) -> None:
    """Raise a UserError if training `model` takes more memory than its device or this machine has."""
    weights = [each for each in model.parameters() if each.requires_grad]
    # The weights, their gradient, and the two moments of an optimizer such as AdamW.
    needed = 4 * sum(each.numel() * each.element_size() for each in weights)
    device = next(model.parameters()).device
    there = torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else memory.physical()
    if there and needed > there:
        raise UserError(
            f"to train {sum(each.numel() for each in weights):,} weights takes {memory.spelled(needed)}, "
            f"and there are {memory.spelled(there)} of memory: choose a smaller network"
        )
