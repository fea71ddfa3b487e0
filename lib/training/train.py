"""One training loop for every task: `fit` knows nothing of what the network is for.

A task is a function `objective(model, batch) -> sums`: a dictionary of sums over the batch's examples
(or pixels, or tokens) that holds at least

    loss     the sum of their losses, differentiable
    count    how many there are

and whatever else validation should report, such as `accuracy`, the number answered right.

Everything in an update that is random (augmentation, dropout) draws from generators seeded by (seed,
update, rank), and the learning rate is a function of the update. So a run's state is its weights, its
optimizer's state and a few counters: one that was killed at any instant and resumed ends at the same
weights, bit for bit on a CPU, as one that never stopped.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from lib.models import layers
from lib.runtime import checkpoint, distributed, run_folder
from lib.runtime.errors import Interrupted, RunFailed, UserError
from lib.runtime.interrupts import Signals
from lib.runtime.runlog import RunLog
from lib.training.optimisation import Settings, WeightAverage, learning_rate_factor, make_optimizer

Objective = Callable[[nn.Module, Any], dict[str, Tensor]]
Metrics = dict[str, float]


class Batches(Protocol):
    """What `fit` trains on, e.g. `lib.data.batches.TensorBatches`."""

    def __len__(self) -> int:
        """The number of batches an epoch."""

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of an epoch from number `start` on: a pure function of its arguments."""


@dataclass
class Progress:
    """Where a run stands. Plain values: it is saved as it is."""

    update: int = 0
    best_score: list[float] | None = None
    best_update: int = 0
    validations_since_best: int = 0


@dataclass
class Checkpoints:
    """The folder of a run's checkpoints, and what each one says besides weights."""

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
    """A score for `fit`: higher accuracy is better, then lower loss."""
    return metrics["accuracy"], -metrics["loss"]


def by_recency(_metrics: Metrics) -> tuple[float, ...]:
    """A score for `fit`: the latest is the best, where validation must not choose (it is the test)."""
    return ()


def full_rate(_parameter_name: str) -> float:
    """Every parameter learns at the learning rate itself."""
    return 1.0


def means(sums: dict[str, Tensor]) -> Metrics:
    """Turn an objective's sums over a split into means."""
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
    """Train `model` in place; leave `checkpoint_best.pt` and `checkpoint_last.pt` in the folder.

    Under torchrun, each rank calls this with its own share of the batches; rank 0 logs and saves.

    Args:
        model: on its device.
        objective: see the head of this module. `model.training` tells it training from validation.
        training: batches to learn from.
        validation: batches to choose the best checkpoint on.
        settings: how to train.
        log: where the `[TRAIN]` and `[VALID]` lines go.
        checkpoints: where to save, and what a checkpoint says besides weights.
        score: validation metrics to a tuple; the larger is the better checkpoint, of equal ones the later.
        summarise: validation sums to metrics.
        rate_of: the name of a parameter to what multiplies its learning rate.
        resume: a `checkpoint_last.pt`, as loaded, to go on from.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; `checkpoint_last.pt` was saved first.
        RunFailed: a loss was not finite, or the disk is full.
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
    """Return the metrics of `model` over `batches` (each rank's share of them, reduced over ranks).

    Raises:
        UserError: a rank has none.
    """
    device = next(model.parameters()).device
    sums: dict[str, Tensor] = {}
    with layers.evaluating(model), torch.inference_mode(), distributed.autocast(device, amp):
        for batch in batches:
            for name, value in objective(model, batch).items():
                sums[name] = sums.get(name, 0) + torch.as_tensor(value)
    # All ranks must come to know, or some would wait for the others' sums for ever.
    if distributed.any_rank(not sums, device):
        raise UserError(f"each of {distributed.world_size()} ranks needs an example to be evaluated on")
    return summarise({name: distributed.total(value.to(device)) for name, value in sums.items()})


class _Run:
    """The state of one call of `fit`."""

    def __init__(self, model, objective, settings, log, checkpoints, score, summarise, rate_of):
        self.model, self.objective, self.settings = model, objective, settings
        self.log, self.checkpoints = log, checkpoints
        self.score, self.summarise = score, summarise
        self.device = next(model.parameters()).device
        self.optimizer = make_optimizer(model, settings, rate_of)
        self.average = WeightAverage(model, settings.ema) if settings.ema else None
        self.progress = Progress()
        self.metrics: Metrics = {}  # of the weights as they are; empty until they are validated
        self.learning_rate = 0.0  # of the latest update, where nothing lessens it
        self.pending = _PendingLosses()
        self.length = 0  # batches an epoch

    @property
    def evaluated(self) -> nn.Module:
        return self.average.model if self.average else self.model

    @property
    def epoch(self) -> int:
        """The epoch of the latest update, counted from 0."""
        return max(0, self.progress.update - 1) // self.length

    def train(self, training: Batches, validation: Iterable[Any], resume: dict | None) -> Progress:
        self.length = len(training)
        updates = min(self.settings.max_epoch * self.length, self.settings.max_update or math.inf)
        if resume:
            self._resume(resume)
            if self.progress.update >= updates:
                self.log.text("RUN", f"nothing is left to train: {self.progress.update} updates are done")
        else:
            # From here on, --resume goes on with this run and not with an older one in the same folder.
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
        """The batches from the next update on, each drawn with the random numbers of its update."""
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
        seed = (self.settings.seed * 1_000_003 + self.progress.update) * 1_009 + distributed.rank()
        distributed.seed(seed % 2**63, self.device)

    def _runner(self) -> nn.Module:
        model = torch.compile(self.model) if self.settings.compile else self.model
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
        (sums["loss"] * distributed.mean_factor(sums["count"], self.device)).backward()
        if settings.clip_norm:
            nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.update(self.model, self.progress.update)
        self.pending.add(sums["loss"].detach(), sums["count"])
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
            # After the others: a run killed between two files then goes on from before both.
            self._save(self.checkpoints.last, resumable=True)
            self.pending.restart_clock()

    def _stop_if(self, signals: Signals, unless: bool) -> None:
        received = distributed.any_rank(signals.received, self.device)
        if not received or unless:
            return
        # Save before a word is said: the signal may have ended the reader of the log as well.
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
        """Return the fields of the next `[TRAIN]` line, or none if there was no update since the last line.

        The losses are read from the device here and nowhere else.

        Raises:
            RunFailed: one of them is not finite.
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
                f"{name} had come to update {saved['update']} of {training['batches_an_epoch']} an epoch, "
                f"now an epoch has {self.length}: resume with the same data, --batch-size and number of ranks"
            )
        if training["progress"]["best_score"] is not None and not self.checkpoints.best.exists():
            raise UserError(f"{self.checkpoints.best} is gone, which {name} goes on from: start a new run")
        if self.average:
            checkpoint.restore_weights(self.average.model, saved["state_dict"], name)
        checkpoint.restore_weights(self.model, training["weights"] or saved["state_dict"], name)
        self._resume_optimizer(training["optimizer"], name)
        self.progress = Progress(**training["progress"])
        self.metrics = saved["metrics"]

    def _optimizer_state(self) -> dict[str, Any]:
        """The optimizer's state by the names of the parameters: their groups depend on the flags."""
        kept = self.optimizer.state
        state = {name: kept[p] for name, p in self.model.named_parameters() if kept.get(p)}
        return self.optimizer.state_dict() | {"kind": self.settings.optimizer, "state": state}

    def _resume_optimizer(self, saved: dict[str, Any], source: Path) -> None:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        mine = [names[p] for group in self.optimizer.param_groups for p in group["params"]]
        its = saved["state"]
        if saved["kind"] != self.settings.optimizer or (its and set(its) != set(mine)):
            raise UserError(f"{source} was saved with another optimizer: give the same --optimizer")
        # Its state alone: weight decay, momentum and the like are what this run's flags say.
        state = {number: its[name] for number, name in enumerate(mine) if name in its}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})


class _PendingLosses:
    """The losses since the last log line, left on the device: reading one would wait for it."""

    def __init__(self):
        self.restart_clock()
        self.losses: list[Tensor] = []
        self.counts: list[Tensor | int] = []

    def restart_clock(self) -> None:
        self.started = time.perf_counter()

    def add(self, loss: Tensor, count: Tensor | int) -> None:
        self.losses.append(loss)
        self.counts.append(count)

    def take(self, device: torch.device) -> tuple[Tensor, float, float]:
        """Return the loss sums (updates,), the examples they are over and the seconds they took."""
        losses = distributed.total(torch.stack(self.losses).float()).cpu()
        examples = distributed.total(torch.as_tensor(sum(self.counts), device=device))
        seconds = time.perf_counter() - self.started
        self.losses, self.counts = [], []
        self.restart_clock()
        return losses, float(examples), seconds


def _progress_bar(updates: int, done: int) -> tqdm:
    return tqdm(total=updates, initial=done, unit=" updates", desc="training", disable=None, leave=False)
