"""The training loop `fit`, which is the same for every task.

A task says what validation measures by an objective (see `lib.training.objectives`), and what is learnt from
a batch by an update (see `lib.training.update`): usually one step of one optimizer that makes the objective's
loss smaller, for a generator and its discriminator one of each.

All random numbers of an update (augmentation, dropout, noise) come from generators seeded by (seed, update,
rank), and the learning rate is a function of the update. So the state of a run consists of its weights, the
state of its optimizers and a few counters. A run that was killed at any instant and resumed ends with the
same weights, on a CPU bit for bit, as a run without interruption.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn
from tqdm import tqdm

from lib.runtime import checkpoint, distributed, run_folder
from lib.runtime.errors import Interrupted, RunFailed, UserError
from lib.runtime.interrupts import Signals
from lib.runtime.runlog import RunLog
from lib.training.log_schedule import LogSchedule
from lib.training.objectives import Objective
from lib.training.optimisation import Settings, WeightAverage, learning_rate_factor, unit_lr_multiplier
from lib.training.pending import PendingSums
from lib.training.update import OneObjective, Update
from lib.training.validation import Metrics, by_accuracy, evaluate, means


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
    update: Update | None = None,
    lr_multiplier: Callable[[str], float] = unit_lr_multiplier,
    resume: dict[str, Any] | None = None,
) -> Progress:
    """Train `model` in place, and save `checkpoint_best.pt` and `checkpoint_last.pt`.

    Under torchrun, each rank calls this with its own share of the batches; rank 0 logs and saves.

    Args:
        model: network, on its device.
        objective: what validation measures, and what is minimised if no `update` is given.
        training: batches to train on.
        validation: batches on which the best checkpoint is chosen.
        settings: hyper-parameters, intervals and limits.
        log: receives the `[TRAIN]` and `[VALID]` lines; see `lib.training.log_schedule`.
        checkpoints: folder of the checkpoints, and their entries besides weights.
        score: function from validation metrics to a tuple. The checkpoint with the largest tuple is the best;
            of equal ones, the latest. Curves mark the same one: see `lib.figures.curves.Curve`.
        summarise: function from validation sums to metrics.
        update: the training step, which owns the optimizers; None minimises `objective` by one optimizer.
        lr_multiplier: function from the name of a parameter to the multiplier of its learning rate, for the
            optimizer of `objective`; the optimizers of an `update` have their own.
        resume: loaded `checkpoint_last.pt` to go on from; None begins a new run.

    Raises:
        Interrupted: Ctrl-C or SIGTERM arrived; `checkpoint_last.pt` was saved first.
        RunFailed: a loss is not finite, or the disk is full.
        UserError: `resume` is of other data or other optimizers, or damaged.
        ValueError: both an `update` and an `lr_multiplier` are given.
    """
    if update and lr_multiplier is not unit_lr_multiplier:
        raise ValueError("give lr_multiplier to the optimizers of the update")
    update = update or OneObjective(model, objective, settings, lr_multiplier)
    run = _Run(model, objective, update, settings, log, checkpoints, score, summarise)
    return run.train(training, validation, resume)


def epoch_of(update: int, length: int) -> int:
    """Return the epoch of an update, both counted from 1, where an epoch has `length` updates."""
    return -(-update // length)


class _Run:
    """The state of one call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        update: Update,
        settings: Settings,
        log: RunLog,
        checkpoints: Checkpoints,
        score: Callable[[Metrics], tuple[float, ...]],
        summarise: Callable[[dict[str, Tensor]], Metrics],
    ) -> None:
        self.model, self.objective, self.update, self.settings = model, objective, update, settings
        self.log, self.checkpoints = log, checkpoints
        self.score, self.summarise = score, summarise
        self.device = next(model.parameters()).device
        self.average = WeightAverage(model, settings.ema) if settings.ema else None
        self.progress = Progress()
        self.metrics: Metrics = {}  # of the present weights; empty until they are validated
        self.learning_rate = 0.0  # of the latest update, before the multipliers of single parameters
        self.pending = PendingSums()
        self.length = 0  # batches per epoch

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and saved: the weight average if there is one."""
        return self.average.model if self.average else self.model

    @property
    def epoch(self) -> int:
        """The epoch of the latest update, counted from 1; 0 before the first update."""
        return epoch_of(self.progress.update, self.length)

    def train(self, training: Batches, validation: Iterable[Any], resume: dict | None) -> Progress:
        self.length = len(training)
        updates = self.settings.max_epoch * self.length
        if self.settings.max_update:
            updates = min(updates, self.settings.max_update)
        period = self.settings.validate_interval_updates or self.length
        self.schedule = LogSchedule(updates, period, self.settings.log_interval)
        if resume:
            self._resume(resume)
            if self.progress.update >= updates:
                self.log.text("RUN", f"nothing is left to train: {self.progress.update} updates are done")
        else:
            # Save at once, so that --resume continues this run and not an older one in the same folder.
            self._save(self.checkpoints.last, resumable=True)
        self.model.train()
        runner = self.update.runner(self.model, self.settings.compile)
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

    def _step(self, runner: nn.Module, batch: Any, updates: int) -> None:
        factor = learning_rate_factor(self.settings, self.progress.update, updates)
        self.learning_rate = self.settings.learning_rate * factor
        with distributed.autocast(self.device, self.settings.amp):
            sums = self.update.step(runner, batch, factor)
        if self.average:
            self.average.update(self.model, self.progress.update)
        self.pending.add(sums)
        self.progress.update += 1
        self.metrics = {}

    def _log_validate_save(self, validation: Iterable[Any], last: bool) -> None:
        done, settings = self.progress.update, self.settings
        validates = last or done % self.schedule.period == 0
        epochs, rest = divmod(done, self.length)
        keeps = rest == 0 and epochs in settings.save_epochs
        shows = not validates or keeps or self.schedule.shows(done)
        numbers = self._training_numbers() if validates or keeps or self.schedule.takes(done) else {}
        if shows:
            self._log_training(numbers)
        if validates:
            self._validate(validation, {} if shows else numbers, shows=shows)
        if keeps:
            self._save(self.checkpoints.epoch(epochs))
        if validates:
            # Last of all: if the run is killed between two files, it is resumed from a state before both.
            self._save(self.checkpoints.last, resumable=True)
            self.pending.restart_clock()

    def _stop_if(self, signals: Signals, unless: bool) -> None:
        received = distributed.max_over_ranks(signals.received, self.device)
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
        if not self.pending:
            return {}
        updates = len(self.pending)
        taken = self.pending.take(self.device)
        bad = taken.first_not_finite()
        if bad:
            index, name, value = bad
            self._fail(self.progress.update - updates + index + 1, value, name)
        means_of_sums = taken.means()
        return {
            "Epoch": self.epoch,
            "Step": self.progress.update,
            "Training_loss": means_of_sums.pop("loss"),
            **means_of_sums,
            "Learning_rate": self.learning_rate,
            "Examples_per_second": round(taken.examples / max(taken.seconds, 1e-9)),
        }

    def _fail(self, update: int, loss: float, name: str = "loss") -> None:
        kept = "none yet" if self.progress.best_score is None else self.checkpoints.best
        raise RunFailed(
            f"the {name} is {loss} in update {update} (epoch {epoch_of(update, self.length)}); "
            f"last good checkpoint: {kept}; try a smaller --learning-rate than "
            f"{self.settings.learning_rate:g}, or --clip-norm 1"
        )

    def _validate(self, validation: Iterable[Any], numbers: dict[str, float], *, shows: bool) -> None:
        """Validate; if it `shows`, or ends the run, log it, and `numbers` of training that were held back."""
        distributed.share_buffers(self.evaluated)
        self.metrics = evaluate(
            self.evaluated, self.objective, validation, amp=self.settings.amp, summarise=self.summarise
        )
        named = {f"Valid_{name}": value for name, value in self.metrics.items()}
        named = {"Epoch": self.epoch, "Step": self.progress.update, **named}
        is_finite = math.isfinite(self.metrics["loss"])
        score = list(self.score(self.metrics))
        self.progress.validations_since_best += 1
        is_best = self.progress.best_score is None or score >= self.progress.best_score
        if is_finite and is_best:
            self.progress = Progress(self.progress.update, score, self.progress.update, 0)
        if shows or not is_finite or self._out_of_patience():
            self._log_training(numbers)
            self.log.event("VALID", **named)
        else:
            self.log.numbers("TRAIN", **numbers)
            self.log.numbers("VALID", **named)
        if not is_finite:
            self._fail(self.progress.update, self.metrics["loss"])
        if is_best:
            self._save(self.checkpoints.best)

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.progress.validations_since_best >= patience

    def _save(self, path: Path, resumable: bool = False) -> None:
        if not distributed.is_main():
            return
        training = {
            "weights": self.model.state_dict() if self.average else None,
            "optimizer": self.update.state(),
            "progress": asdict(self.progress),
            "batches_an_epoch": self.length,
        }
        checkpoint.save(
            path,
            {
                **self.checkpoints.description,
                "state_dict": self.evaluated.state_dict(),
                "epochs": self.epoch,
                "update": self.progress.update,
                "metrics": self.metrics,
                **({"training": training} if resumable else {}),
            },
        )

    def _resume(self, saved: dict[str, Any]) -> None:
        name = self.checkpoints.last
        damaged = _damaged(saved)
        if damaged:
            raise UserError(f"{name} cannot be resumed: its {damaged} is damaged")
        training = saved["training"]
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
        self.update.load_state(training["optimizer"], name)
        self.progress = Progress(**training["progress"])
        self.metrics = saved["metrics"]


def _damaged(saved: dict[str, Any]) -> str | None:
    """Return the name of an entry that a resume needs and that has the wrong type; None if all are sound.

    The state of the optimizers is checked by the update.
    """
    training = saved.get("training")
    if not isinstance(training, dict) or "optimizer" not in training:
        return "training"
    progress, weights = training.get("progress"), training.get("weights", ())
    if not isinstance(progress, dict) or progress.keys() != {each.name for each in fields(Progress)}:
        return "progress"
    score = progress["best_score"]
    counters = [value for name, value in progress.items() if name != "best_score"]
    sound = {
        "progress": all(map(checkpoint.is_count, counters))
        and progress["update"] == saved.get("update")
        and (score is None or (isinstance(score, list) and all(isinstance(x, int | float) for x in score))),
        "batches_an_epoch": checkpoint.is_count(training.get("batches_an_epoch")),
        "weights": weights is None
        or (isinstance(weights, dict) and all(isinstance(each, Tensor) for each in weights.values())),
        "metrics": isinstance(saved.get("metrics"), dict),
    }
    return next((name for name, is_sound in sound.items() if not is_sound), None)


def _progress_bar(updates: int, done: int) -> tqdm:
    return tqdm(total=updates, initial=done, unit=" updates", desc="training", disable=None, leave=False)
