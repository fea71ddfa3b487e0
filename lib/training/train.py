"""The training loop `fit`, which is the same for every task.

A task is a function `objective(model, batch) -> sums`. It returns a dictionary of sums over the examples of
the batch (or its pixels, or tokens), with at least

    loss     the sum of their losses, differentiable
    count    the number of examples

and whatever else validation is to report, such as `accuracy`, the number of correct answers.

All random numbers of an update (augmentation, dropout) come from generators seeded by (seed, update, rank),
and the learning rate is a function of the update. So the state of a run consists of its weights, its
optimizer's state and a few counters. A run that was killed at any instant and resumed ends with the same
weights, on a CPU bit for bit, as a run without interruption.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib.models import layers
from lib.runtime import checkpoint, distributed, run_folder
from lib.runtime.errors import Interrupted, RunFailed, UserError
from lib.runtime.interrupts import Signals
from lib.runtime.runlog import RunLog
from lib.training.optimisation import Settings, WeightAverage, learning_rate_factor, make_optimizer

Sums = Mapping[str, Tensor | int]  # the loss is a Tensor, a count may be an int
Objective = Callable[[nn.Module, Any], Sums]
Metrics = dict[str, float]


class Batches(Protocol):
    """The training data of `fit`, e.g. `lib.data.batches.TensorBatches`."""

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Return the batches of an epoch from number `start` on, as a pure function of the arguments."""


@dataclass
class Progress:
    """The counters of a run. All are plain values, because checkpoints store them."""

    update: int = 0
    best_score: list[float] | None = None
    best_update: int = 0
    validations_since_best: int = 0


@dataclass
class Checkpoints:
    """The folder of a run's checkpoints, and the entries that each of them holds besides weights."""

    folder: Path
    description: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Path:
        return self.folder / checkpoint.BEST

    @property
    def last(self) -> Path:
        return self.folder / checkpoint.LAST

    def epoch(self, number: int) -> Path:
        return run_folder.epoch_file(self.folder, number)


def by_accuracy(metrics: Metrics) -> tuple[float, ...]:
    """Score for `fit`: the higher accuracy is better; of equal ones, the lower loss."""
    return metrics["accuracy"], -metrics["loss"]


def by_recency(_metrics: Metrics) -> tuple[float, ...]:
    """Score for `fit` by which the latest checkpoint is the best: for validation on the test data."""
    return ()


def full_rate(_parameter_name: str) -> float:
    """Multiplier 1 for every parameter: all learn at the learning rate itself."""
    return 1.0


def means(sums: dict[str, Tensor]) -> Metrics:
    """Return an objective's sums over a split as means over its examples."""
    count = float(sums["count"])
    return {name: float(value) / count for name, value in sums.items() if name != "count"}


def fit(
    model: nn.Module,
    objective: Objective,
    training: Batches,
    validation: Iterable[Any],
    settings: Settings,
    *,
    log: RunLog,
    checkpoints: Checkpoints,
    score: Callable[[Metrics], tuple[float, ...]] = by_accuracy,
    summarise: Callable[[dict[str, Tensor]], Metrics] = means,
    rate_of: Callable[[str], float] = full_rate,
    resume: dict[str, Any] | None = None,
) -> Progress:
    """Train `model` in place, and save `checkpoint_best.pt` and `checkpoint_last.pt`.

    Under torchrun, each rank calls this with its own share of the batches; rank 0 logs and saves.

    Args:
        model: network, on its device.
        objective: task, see the docstring of this module. It tells training from validation by
            `model.training`.
        training: batches to train on.
        validation: batches on which the best checkpoint is chosen.
        settings: hyper-parameters, intervals and limits.
        log: receives the `[TRAIN]` and `[VALID]` lines.
        checkpoints: folder of the checkpoints, and their entries besides weights.
        score: function from validation metrics to a tuple. The checkpoint with the largest tuple is the best;
            of equal ones, the latest.
        summarise: function from validation sums to metrics.
        rate_of: function from the name of a parameter to the multiplier of its learning rate.
        resume: loaded `checkpoint_last.pt` to go on from; None begins a new run.

    Raises:
        Interrupted: Ctrl-C or SIGTERM arrived; `checkpoint_last.pt` was saved first.
        RunFailed: a loss is not finite, or the disk is full.
    """
    run = _Run(model, objective, settings, log, checkpoints, score, summarise, rate_of)
    return run.train(training, validation, resume)


def evaluate(
    model: nn.Module,
    objective: Objective,
    batches: Iterable[Any],
    *,
    amp: bool = False,
    summarise: Callable[[dict[str, Tensor]], Metrics] = means,
) -> Metrics:
    """Return the metrics of `model` over `batches`; with several ranks, over the batches of all of them.

    Raises:
        UserError: a rank has no batches.
    """
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    with layers.evaluating(model), torch.inference_mode(), distributed.autocast(device, amp):
        for batch in batches:
            for name, value in objective(model, batch).items():
                sums[name] = sums.get(name, 0) + torch.as_tensor(value)
    # If one rank raises, all must: otherwise the others would wait for its sums for ever.
    if distributed.any_rank(not sums, device):
        raise UserError(f"each of {distributed.world_size()} ranks needs an example to be evaluated on")
    return summarise({name: distributed.total(value.to(device)) for name, value in sums.items()})


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: Settings,
        log: RunLog,
        checkpoints: Checkpoints,
        score: Callable[[Metrics], tuple[float, ...]],
        summarise: Callable[[dict[str, Tensor]], Metrics],
        rate_of: Callable[[str], float],
    ) -> None:
        self.model, self.objective, self.settings = model, objective, settings
        self.log, self.checkpoints = log, checkpoints
        self.score, self.summarise = score, summarise
        self.device = next(model.parameters()).device
        self.optimizer = make_optimizer(model, settings, rate_of)
        self.average = WeightAverage(model, settings.ema) if settings.ema else None
        self.progress = Progress()
        self.metrics: Metrics = {}  # of the present weights; empty until they are validated
        self.learning_rate = 0.0  # of the latest update, before the multipliers of `rate_of`
        self.pending = _PendingLosses()
        self.length = 0  # batches per epoch

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and saved: the weight average if there is one."""
        return self.average.model if self.average else self.model

    @property
    def epoch(self) -> int:
        """The epoch of the latest update, counted from 0."""
        return max(0, self.progress.update - 1) // self.length

    def train(self, training: Batches, validation: Iterable[Any], resume: dict | None) -> Progress:
        self.length = len(training)
        updates = self.settings.max_epoch * self.length
        if self.settings.max_update:
            updates = min(updates, self.settings.max_update)
        if resume:
            self._resume(resume)
            if self.progress.update >= updates:
                self.log.text("RUN", f"nothing is left to train: {self.progress.update} updates are done")
        else:
            # Save at once, so that --resume continues this run and not an older one in the same folder.
            self._save(self.checkpoints.last, resumable=True)
        runner = self._runner()
        self.model.train()
        with Signals() as signals, _progress_bar(updates, self.progress.update) as bar:
            for batch in self._batches(training, updates):
                self._step(runner, batch, updates)
                bar.update()
                self._log_validate_save(validation, last=self.progress.update == updates)
                self._stop_if(signals, unless=self.progress.update == updates)
        return self.progress

    def _batches(self, training: Batches, updates: int) -> Iterator[Any]:
        """Yield the batches from the next update on, with the generators seeded for that update."""
        while self.progress.update < updates:
            batches = training.epoch(*divmod(self.progress.update, self.length))
            while self.progress.update < updates and not self._out_of_patience():
                self._seed()
                batch = next(batches, None)
                if batch is None:
                    break
                yield batch
            if self._out_of_patience():
                return

    def _seed(self) -> None:
        # Each (seed, update, rank) has a seed of its own, up to 1,000,003 updates and 1,009 ranks.
        seed = (self.settings.seed * 1_000_003 + self.progress.update) * 1_009 + distributed.rank()
        distributed.seed(seed % 2**63, self.device)

    def _runner(self) -> nn.Module:
        model = self.model
        if self.settings.compile:
            # torch.compile returns a module for a module; its annotation says only that it is callable.
            model = cast(nn.Module, torch.compile(model))
        if distributed.world_size() == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=devices)

    def _step(self, runner: nn.Module, batch: Any, updates: int) -> None:
        settings = self.settings
        factor = learning_rate_factor(settings, self.progress.update, updates)
        self.learning_rate = settings.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group["rate"]
        with distributed.autocast(self.device, settings.amp):
            sums = self.objective(runner, batch)
        loss, count = torch.as_tensor(sums["loss"]), sums["count"]
        (loss * distributed.mean_factor(count, self.device)).backward()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.model, self.progress.update)
        self.pending.add(loss.detach(), count)
        self.progress.update += 1
        self.metrics = {}

    def _log_validate_save(self, validation: Iterable[Any], last: bool) -> None:
        done, settings = self.progress.update, self.settings
        validates = last or done % (settings.validate_interval_updates or self.length) == 0
        epochs, rest = divmod(done, self.length)
        keeps = rest == 0 and epochs in settings.save_epochs
        if validates or keeps or done % settings.log_interval == 0:
            self._log_training(self._training_numbers())
        if validates:
            self._validate(validation)
        if keeps:
            self._save(self.checkpoints.epoch(epochs))
        if validates:
            # Last of all: if the run is killed between two files, it is resumed from a state before both.
            self._save(self.checkpoints.last, resumable=True)
            self.pending.restart_clock()

    def _stop_if(self, signals: Signals, unless: bool) -> None:
        received = distributed.any_rank(signals.received, self.device)
        if not received or unless:
            return
        # Save before logging: the signal may have ended the reader of the log as well.
        numbers = self._training_numbers()
        self._save(self.checkpoints.last, resumable=True)
        self._log_training(numbers)
        raise Interrupted(
            f"interrupted after update {self.progress.update}: "
            f"{self.checkpoints.last} is saved, go on with --resume",
            received,
        )

    def _log_training(self, numbers: dict[str, float]) -> None:
        if numbers:
            self.log.event("TRAIN", **numbers)

    def _training_numbers(self) -> dict[str, float]:
        """Return the fields of the next `[TRAIN]` line; none if there was no update since the last line.

        Training losses are copied from the device only here, because a copy waits for the device.

        Raises:
            RunFailed: a loss is not finite.
        """
        if not self.pending.losses:
            return {}
        losses, examples, seconds = self.pending.take(self.device)
        bad = (~torch.isfinite(losses)).nonzero()
        if len(bad):
            self._fail(self.progress.update - len(losses) + int(bad[0]) + 1, float(losses[bad[0]]))
        return {
            "Epoch": self.epoch,
            "Step": self.progress.update,
            "Training_loss": float(losses.sum()) / examples,
            "Learning_rate": self.learning_rate,
            "Examples_per_second": round(examples / max(seconds, 1e-9)),
        }

    def _fail(self, update: int, loss: float) -> None:
        kept = "none yet" if self.progress.best_score is None else self.checkpoints.best
        raise RunFailed(
            f"the loss is {loss} in update {update} (epoch {(update - 1) // self.length}); "
            f"last good checkpoint: {kept}; try a smaller --learning-rate than "
            f"{self.settings.learning_rate:g}, or --clip-norm 1"
        )

    def _validate(self, validation: Iterable[Any]) -> None:
        distributed.share_buffers(self.evaluated)
        self.metrics = evaluate(
            self.evaluated, self.objective, validation, amp=self.settings.amp, summarise=self.summarise
        )
        named = {f"Valid_{name}": value for name, value in self.metrics.items()}
        self.log.event("VALID", Epoch=self.epoch, Step=self.progress.update, **named)
        if not math.isfinite(self.metrics["loss"]):
            self._fail(self.progress.update, self.metrics["loss"])
        score = list(self.score(self.metrics))
        self.progress.validations_since_best += 1
        if self.progress.best_score is None or score >= self.progress.best_score:
            self.progress = Progress(self.progress.update, score, self.progress.update, 0)
            self._save(self.checkpoints.best)

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.progress.validations_since_best >= patience

    def _save(self, path: Path, resumable: bool = False) -> None:
        if not distributed.is_main():
            return
        training = {
            "weights": self.model.state_dict() if self.average else None,
            "optimizer": self._optimizer_state(),
            "progress": asdict(self.progress),
            "batches_an_epoch": self.length,
        }
        checkpoint.save(
            path,
            {
                **self.checkpoints.description,
                "state_dict": self.evaluated.state_dict(),
                "epoch": self.epoch,
                "update": self.progress.update,
                "metrics": self.metrics,
                **({"training": training} if resumable else {}),
            },
        )

    def _resume(self, saved: dict[str, Any]) -> None:
        training = saved["training"]
        name = self.checkpoints.last
        if training["batches_an_epoch"] != self.length:
            raise UserError(
                f"{name} stopped at update {saved['update']}, with {training['batches_an_epoch']} an epoch; "
                f"now an epoch has {self.length}: resume with the same data, --batch-size and number of ranks"
            )
        if training["progress"]["best_score"] is not None and not self.checkpoints.best.exists():
            raise UserError(f"{self.checkpoints.best}, which belongs to {name}, is gone: start a new run")
        if self.average:
            checkpoint.restore_weights(self.average.model, saved["state_dict"], name)
        checkpoint.restore_weights(self.model, training["weights"] or saved["state_dict"], name)
        self._resume_optimizer(training["optimizer"], name)
        self.progress = Progress(**training["progress"])
        self.metrics = saved["metrics"]

    def _optimizer_state(self) -> dict[str, Any]:
        """Return the optimizer's state, by parameter name.

        PyTorch's own state_dict numbers the parameters group by group, and the groups depend on the flags.
        """
        kept = self.optimizer.state
        state = {name: kept[p] for name, p in self.model.named_parameters() if kept.get(p)}
        return self.optimizer.state_dict() | {"kind": self.settings.optimizer, "state": state}

    def _resume_optimizer(self, saved: dict[str, Any], source: Path) -> None:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        mine = [names[p] for group in self.optimizer.param_groups for p in group["params"]]
        its = saved["state"]
        if saved["kind"] != self.settings.optimizer or (its and set(its) != set(mine)):
            raise UserError(f"{source} was saved with another optimizer: give the same --optimizer")
        # Only the state is restored: weight decay, momentum and other options come from this run's flags.
        state = {number: its[name] for number, name in enumerate(mine) if name in its}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


class _PendingLosses:
    """The losses since the last log line, kept on the device, because reading one waits for the device."""

    def __init__(self) -> None:
        self.restart_clock()
        self.losses: list[Tensor] = []
        self.counts: list[Tensor | int] = []

    def restart_clock(self) -> None:
        self.started = time.perf_counter()

    def add(self, loss: Tensor, count: Tensor | int) -> None:
        self.losses.append(loss)
        self.counts.append(count)

    def take(self, device: torch.device) -> tuple[Tensor, float, float]:
        """Return the loss sums (updates,), their number of examples and the seconds since the last call."""
        losses = distributed.total(torch.stack(self.losses).float()).cpu()
        examples = distributed.total(torch.as_tensor(sum(self.counts), device=device))
        seconds = time.perf_counter() - self.started
        self.losses, self.counts = [], []
        self.restart_clock()
        return losses, float(examples), seconds


def _progress_bar(updates: int, done: int) -> tqdm:
    return tqdm(total=updates, initial=done, unit=" updates", desc="training", disable=None, leave=False)
