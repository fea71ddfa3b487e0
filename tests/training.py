"""A network small enough to be trained hundreds of times, and runs of it that are stopped on purpose."""

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from lib.data.augment import augmentation
from lib.data.batches import InOrder, TensorBatches
from lib.runtime import checkpoint, runlog
from lib.training import fit as loop
from lib.training.objectives import classification
from lib.training.optimisation import Settings

UPDATES = 15  # of a whole run below: 3 epochs of 5


class Net(nn.Module):
    """Everything that could spoil a resume: batch normalisation, dropout, several kinds of parameters."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.dropout = nn.Dropout(0.3)
        self.out = nn.Linear(48, 3)

    def forward(self, x):
        return self.out(self.dropout(F.relu(self.norm(self.conv(x)))).flatten(1))


def make_settings(**changes) -> Settings:
    return Settings(**{"seed": 3, "max_epoch": 3, "learning_rate": 0.01, "log_interval": 2} | changes)


def make_net() -> Net:
    torch.manual_seed(5)
    return Net()


def make_batches(batch_size: int = 6) -> tuple[TensorBatches, InOrder]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 1, 6, 6, generator=generator)
    labels = torch.randint(3, (40,), generator=generator)
    training = TensorBatches(
        images[:28],
        labels[:28],
        batch_size=batch_size,
        seed=3,
        transform=augmentation(("shift", "rotate", "scale", "erase")),
    )
    return training, InOrder(images[28:], labels[28:], batch_size=5)


class Outcome:
    """What a run left: its folder, its log, its progress and its network."""

    def __init__(self, folder, log, progress, model):
        self.folder, self.progress, self.model = folder, progress, model
        runs = runlog.parse(log.splitlines(keepends=True)).runs
        self.run = runs[-1] if runs else None
        self.last = checkpoint.load(folder / checkpoint.LAST) if (folder / checkpoint.LAST).exists() else None
        self.best = checkpoint.load(folder / checkpoint.BEST) if (folder / checkpoint.BEST).exists() else None


DESCRIPTION = {"task": "test", "model": {"name": "net", "config": {}}, "flags": {}}


def fit(folder: Path, *, around=None, resume=False, objective=None, model=None, batches=None, **changes):
    """Train a small network into `folder`; `changes` are for `Settings` and `fit`."""
    options = {name: changes.pop(name) for name in ("score", "update", "lr_multiplier") if name in changes}
    model = model or make_net()
    training, validation = batches or make_batches()
    stream = io.StringIO()
    folder.mkdir(exist_ok=True)
    progress = loop.fit(
        model,
        objective or classification(),
        around(training) if around else training,
        validation,
        make_settings(**changes),
        log=runlog.RunLog("test", stream=stream),
        checkpoints=loop.Checkpoints(folder, DESCRIPTION),
        resume=checkpoint.load(folder / checkpoint.LAST) if resume else None,
        **options,
    )
    return Outcome(folder, stream.getvalue(), progress, model)


class Killed(BaseException):
    """Ends a run as abruptly as this process survives it."""


class Before:
    """Batches that call `act` before update number `at` (from 0) gets its batch."""

    def __init__(self, batches, at: int, act):
        self.batches, self.at, self.act = batches, at, act

    def __len__(self):
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0) -> Iterator:
        for number, batch in enumerate(self.batches.epoch(epoch, start), epoch * len(self) + start):
            if number == self.at:
                self.act()
            yield batch


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


def control_c():
    os.kill(os.getpid(), signal.SIGINT)
