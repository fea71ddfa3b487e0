"""What scripts that explain answers about images do around their method: whose, about what, the sheet."""

import contextlib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib import models
from lib.data import photographs
from lib.explain.baselines import KINDS, baseline
from lib.explain.progress import Stopped, Watch
from lib.explain.scores import class_scores, top_classes
from lib.figures import explanations as pictures
from lib.figures import style
from lib.models import subject as subjects
from lib.models.subject import Picture, Subject
from lib.runtime import distributed, threads
from lib.runtime.errors import Interrupted, UserError
from lib.runtime.files import replaced, spare, writable_file, writable_folder, write_atomically
from lib.runtime.interrupts import Signals
from lib.runtime.memory import keep_what_is_freed
from lib.runtime.runlog import RunLog

# On one line of a sheet, beside the image.
MOST_PANELS = 9


@dataclass(frozen=True)
class Question:
    """Why a network gives an image its scores: what one row of a sheet, or several, answer.

    Attributes:
        subject: the network.
        picture: the image.
        classes: indices of the classes that are asked about.
    """

    subject: Subject
    picture: Picture
    classes: Sequence[int]

    @property
    def pixels(self) -> Tensor:
        """The image as a batch (1, C, H, W) in [0, 1] on the network's device."""
        return self.picture.pixels[None].to(self.subject.device)


def baseline_of(flags: SimpleNamespace, question: Question, *, cropped: bool) -> Tensor:
    """Return the baseline (C, H, W) in [0, 1] that `--baseline` names, on the network's device.

    Args:
        cropped: a file is cropped as images are; otherwise it must have the size that the network sees.

    Raises:
        UserError: it has not.
    """
    subject, name = question.subject, flags.baseline
    if name in KINDS:
        return baseline(name, question.pixels[0], seed=flags.seed)
    if subjects.is_file(name) and not cropped:
        size = photographs.read(name).size
        if size != (subject.size, subject.size):
            raise UserError(
                f"the baseline {name} has {size[0]}×{size[1]} pixels; "
                f"the network sees {subject.size}×{subject.size}"
            )
    (picture,) = subject.read([name], flags.data_dir, invert=flags.invert)
    return picture.pixels.to(subject.device)


class Answer(NamedTuple):
    """What a network says of a class: its index, its probability in [0, 1] and its score."""

    target: int
    probability: float
    score: float


def answers(question: Question, output: Tensor, kind: str) -> list[Answer]:
    """Return what logits (1, classes) say of each class that is asked about; `kind` is that of the score."""
    probabilities = output[0].softmax(0)[list(question.classes)]
    scores = class_scores(question.classes, kind)(output)[:, 0]
    return [
        Answer(*each) for each in zip(question.classes, probabilities.tolist(), scores.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Panel:
    """One map: what of an image speaks for a class.

    Attributes:
        question: what it answers.
        answer: what the network says of the class.
        method: e.g. `grad-cam`.
        map: (H, W) at the size of the image, on the CPU.
        layer: whose map it is; empty if it is the input's own.
        raw_map: (h, w) the map before it was upsampled; None if it was not.
        signed: negative values speak against the class.
        redrawn: names of the layers whose weights were random, the last first.
        note: what stands over it besides the class and its probability.
        numbers: what else is to be said about it on standard output.
    """

    question: Question
    answer: Answer
    method: str
    map: Tensor
    layer: str = ""
    raw_map: Tensor | None = None
    signed: bool = False
    redrawn: tuple[str, ...] = ()
    note: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """Name of the class."""
        return self.question.subject.classes[self.answer.target]

    @property
    def values(self) -> Tensor:
        """The map as the method found it."""
        return self.map if self.raw_map is None else self.raw_map

    def record(self) -> dict[str, Any]:
        """Return its numbers, as standard output and `--json` have them."""
        subject, values = self.question.subject, self.values
        return {
            "image": self.question.picture.name,
            "model": subject.name,
            **({} if subject.epoch is None else {"epoch": subject.epoch}),
            **({"layer": self.layer} if self.layer else {}),
            "method": self.method,
            "class": self.class_name,
            **self.answer._asdict(),
            "map_minimum": float(values.min()),
            "map_maximum": float(values.max()),
            "map_mean": float(values.mean()),
            "zero_share": float((values == 0).float().mean()),
            **({"redrawn": ",".join(self.redrawn)} if self.redrawn else {}),
            **self.numbers,
        }


@contextlib.contextmanager
def start(name: str, typed: dict, defaults: dict) -> Iterator["Session"]:
    """Check the flags that all methods share, load the networks, open the log: a `Session` for the block.

    Args:
        name: of the method, as pictures and log lines have it.
        typed, defaults: from `lib.cli.Parser.parse_typed`.

    Raises:
        UserError: flags that do not go together, a network that cannot be loaded, a place that cannot be
            written to.
    """
    flags = SimpleNamespace(**(defaults | typed))
    _check(flags, typed)
    for path in (flags.save_values, flags.json):
        if path:
            writable_file(path)
    if not getattr(flags, "list_layers", False):
        writable_folder(flags.out_dir)
    subjects.check_inputs(flags.input or ())
    device = distributed.pick_device(flags.device)
    if device.type == "cpu":
        keep_what_is_freed()
    if flags.ptm:
        networks = [subjects.load_pretrained(flags.ptm, flags.weights, device, seed=flags.seed)]
    else:
        networks = _by_age([subjects.load_checkpoint(file, device) for file in flags.restore_file])
    small = all(models.is_small(each.name) for each in networks)
    threads.use(flags.threads or threads.suitable(small))
    if "top_k" not in typed:
        flags.top_k = min(flags.top_k, *(len(each.classes) for each in networks))
    if flags.save_values and len({each.size for each in networks}) > 1:
        raise UserError("--save-values cannot hold maps of different sizes: ask the networks one by one")
    with RunLog(name) as log:
        yield Session(name, flags, log, networks)


def _by_age(networks: list[Subject]) -> list[Subject]:
    """Return checkpoints of one network in the order of their epochs, which names of files seldom are in."""
    ages = [each.epoch for each in networks]
    if len({each.name for each in networks}) > 1 or None in ages:
        return networks
    return sorted(networks, key=lambda each: each.epoch)


def _check(flags: SimpleNamespace, typed: dict) -> None:
    if not flags.ptm and not flags.restore_file:
        raise UserError("whose answers? --ptm NAME, e.g. resnet18, or --restore-file CHECKPOINT")
    if flags.weights and not flags.ptm:
        raise UserError("--weights goes with --ptm alone: a checkpoint brings its own")
    if getattr(flags, "animate", False) and len(flags.restore_file or ()) < 2:
        raise UserError("--animate shows how a network changes: give --restore-file two checkpoints or more")
    if not flags.input and not getattr(flags, "list_layers", False):
        raise UserError("which images? --input FILE, or an example such as digits:7")
    if "target" in typed and "top_k" in typed:
        raise UserError("--top-k and --target both say which classes: choose one")
    if flags.save_values and not flags.save_values.endswith(".npz"):
        raise UserError(f"--save-values {flags.save_values}: the name must end in .npz")
    for output in (flags.json, flags.save_values):
        spare(output, flags.restore_file, flags.weights, flags.input, getattr(flags, "baseline", None))
    _check_baseline(getattr(flags, "baseline", KINDS[0]))


def _check_baseline(name: str) -> None:
    if name in KINDS:
        return
    if "." not in name and ":" not in name and not os.path.exists(name):
        raise UserError(f"--baseline {name} is neither a file nor one of {', '.join(KINDS)}")
    subjects.check_inputs([name])


@dataclass
class Session:
    """One run of a script that explains.

    Attributes:
        name: of the method.
        flags: as attributes.
        log: standard output.
        subjects: the networks, one or more.
    """

    name: str
    flags: SimpleNamespace
    log: RunLog
    subjects: list[Subject]

    def questions(self) -> list[list[Question]]:
        """Return, for each image, a question to each network.

        Where all networks tell the same classes apart, they are checkpoints of one that learns: all are asked
        about the likeliest classes of the last.

        Raises:
            UserError: an image that cannot be read, a class that is not there.
        """
        flags = self.flags
        shown = [each.read(flags.input, flags.data_dir, invert=flags.invert) for each in self.subjects]
        return [self._questions_about(picture) for picture in zip(*shown, strict=True)]

    def _questions_about(self, picture: Sequence[Picture]) -> list[Question]:
        asked = list(zip(self.subjects, picture, strict=True))
        if self.flags.target:
            return [Question(*each, subjects.find_classes(each[0], self.flags.target)) for each in asked]
        if len({subject.classes for subject in self.subjects}) == 1:
            likeliest = self._likeliest(*asked[-1])
            return [Question(*each, likeliest) for each in asked]
        return [Question(*each, self._likeliest(*each)) for each in asked]

    def _likeliest(self, subject: Subject, picture: Picture) -> list[int]:
        subjects.check_top(subject, self.flags.top_k)
        with torch.no_grad():
            return top_classes(subject.logits(picture.pixels[None]), self.flags.top_k)[:, 0].tolist()

    def explain_each(
        self,
        questions: Sequence[Question],
        rows_of: Callable[[Question, Watch], list[list[Panel]]],
        *,
        unit: str,
        animate: bool = False,
    ) -> None:
        """Answer questions one by one, with a progress bar, and report what there is.

        Args:
            questions: in the order of the sheet.
            rows_of: answers one of them; it may raise `Stopped` when the watch says so.
            unit: what the progress bar counts.
            animate: see `report`.

        Raises:
            Interrupted: Ctrl-C; what was known by then is reported.
        """
        rows: list[list[Panel]] = []
        answered = 0
        with Signals() as signals, tqdm(total=0, unit=f" {unit}", disable=None, leave=False) as bar:

            def expect(count: int) -> None:
                bar.total += count
                bar.refresh()

            watch = Watch(expect, bar.update, lambda: bool(signals.received))
            for question in questions:
                bar.set_description(f"{question.picture.name}, {question.subject.name}")
                try:
                    rows += rows_of(question, watch)
                except Stopped:
                    break
                answered += 1
                if signals.received:
                    break
        if rows:
            self.report(rows, animate=animate)
        if signals.received:
            raise Interrupted(
                f"interrupted: {answered} of {len(questions)} images are drawn with what is known of them",
                signals.received,
            )

    def report(self, rows: Sequence[Sequence[Panel]], *, animate: bool = False) -> None:
        """Log the panels' numbers, write them where the flags say, and draw the sheet.

        Args:
            rows: of panels, each row of one question.
            animate: write a GIF, too, with the rows of one network after the other's.
        """
        panels = [panel for row in rows for panel in row]
        records = [panel.record() for panel in panels]
        for record in records:
            self.log.event("PANEL", **record)
        if self.flags.json:
            write_atomically(Path(self.flags.json), as_json(records))
            self.log.event("RECORDS", file=self.flags.json)
        if self.flags.save_values:
            save_values(Path(self.flags.save_values), panels)
            self.log.event("VALUES", file=self.flags.save_values)
        self._draw(rows, animate)

    def _draw(self, rows: Sequence[Sequence[Panel]], animate: bool) -> None:
        folder = Path(self.flags.out_dir)
        asked = [row[0].question for row in rows]
        networks, images = (_joined(getattr(q, key).name for q in asked) for key in ("subject", "picture"))
        stem = f"{self.name}-{networks}-{images}"
        if animate:
            frames = [
                pictures.sheet(_lines(row for row in rows if row[0].question.subject is subject))
                for subject in self.subjects
            ]
            self.log.event("FIGURE", file=pictures.save_animation(frames, folder / f"{stem}.gif"))
        figure = pictures.sheet(_lines(rows))
        self.log.event("FIGURE", file=style.save(figure, folder / f"{stem}.png", show=self.flags.show))


def as_json(records: Sequence[dict[str, Any]]) -> bytes:
    """Return records of plain values as JSON, with null for numbers that are not finite: it has none."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    plain_records = [{key: plain(value) for key, value in record.items()} for record in records]
    return f"{json.dumps(plain_records, indent=1, ensure_ascii=False)}\n".encode()


def _lines(rows: Iterable[Sequence[Panel]]) -> list[list[pictures.Tile]]:
    """Return the lines of a sheet: a row of panels, or several where it would be too long to look at."""
    return [_tiles(line) for row in rows for line in _broken(row)]


def _broken(row: Sequence[Panel]) -> list[list[Panel]]:
    """Break a row between networks re-drawn to different depths, or else between classes."""
    several = len({panel.redrawn for panel in row}) > 1
    lines: list[list[Panel]] = [[]]
    for _, group in itertools.groupby(row, key=lambda p: p.redrawn if several else p.answer.target):
        group = list(group)
        if lines[-1] and len(lines[-1]) + len(group) > MOST_PANELS:
            lines.append([])
        lines[-1] += group
    return lines


def _tiles(row: Sequence[Panel]) -> list[pictures.Tile]:
    """Return what a sheet shows of panels of one question: the image that the network saw, then the maps."""
    pixels = as_bytes(row[0].question.picture.pixels)
    return [
        pictures.Tile(_describe(row[0]), pixels),
        *(
            pictures.Tile(
                [f"{panel.class_name}: {panel.answer.probability:.3f}", *panel.note.splitlines()],
                pixels,
                panel.map.numpy(),
                panel.signed,
            )
            for panel in row
        ),
    ]


def _describe(panel: Panel) -> list[str]:
    """Return what all panels of a row share: the image, the network and the layer."""
    subject, picture = panel.question.subject, panel.question.picture
    label = f" ({picture.label})" if picture.label else ""
    size = "" if panel.raw_map is None else " {}×{}".format(*panel.raw_map.shape)
    return [picture.name + label, described(subject), *([panel.layer + size] if panel.layer else [])]


def described(subject: Subject) -> str:
    """Return a network's name, and the epochs that it was trained for as files are named and people count."""
    epochs = "" if subject.epoch is None else f", {subject.epoch + 1} epoch{'s' if subject.epoch else ''}"
    return subject.name + epochs


def as_bytes(pixels: Tensor) -> np.ndarray:
    """Return pixels (C, H, W) in [0, 1] as (H, W, 3) uint8."""
    colour = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels
    return (colour * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def save_values(path: Path, panels: Sequence[Panel]) -> None:
    """Write the arrays behind a sheet, one row a panel in reading order, as an .npz file.

    maps (P, H, W) at input size; raw_maps (P, h, w) where any are coarser, each in the upper left corner,
    NaN beyond it, of raw_sizes (P, 2); inputs (P, H, W, 3) uint8; names, models, layers, methods, classes
    redrawn (P,) text; targets, probabilities, scores (P,); epochs (P,), −1 where that is not known.

    Raises:
        RunFailed: the file cannot be written.
    """
    records = [panel.record() for panel in panels]
    arrays = {
        "maps": np.stack([panel.map.numpy() for panel in panels]),
        **_raw_maps(panels),
        "inputs": np.stack([as_bytes(panel.question.picture.pixels) for panel in panels]),
        "names": np.array([record["image"] for record in records]),
        "models": np.array([record["model"] for record in records]),
        "layers": np.array([panel.layer for panel in panels]),
        "methods": np.array([panel.method for panel in panels]),
        "classes": np.array([panel.class_name for panel in panels]),
        "redrawn": np.array([",".join(panel.redrawn) for panel in panels]),
        "epochs": np.array([record.get("epoch", -1) for record in records]),
        "targets": np.array([panel.answer.target for panel in panels]),
        "probabilities": np.array([panel.answer.probability for panel in panels]),
        "scores": np.array([panel.answer.score for panel in panels]),
    }
    with replaced(path) as file:
        np.savez_compressed(file, **arrays)


def _raw_maps(panels: Sequence[Panel]) -> dict[str, np.ndarray]:
    raw = [np.empty((0, 0)) if panel.raw_map is None else panel.raw_map.numpy() for panel in panels]
    sizes = np.array([each.shape for each in raw])
    if not sizes.any():
        return {}
    maps = np.full((len(raw), *sizes.max(0)), np.nan, np.float32)
    for place, each in zip(maps, raw, strict=True):
        place[: each.shape[0], : each.shape[1]] = each
    return {"raw_maps": maps, "raw_sizes": sizes}


def _joined(names: Iterable[str]) -> str:
    """Return names as a part of a file's name: all of few, or the first of many."""
    parts = list(dict.fromkeys(re.sub(r"[^\w.+]+", "-", name).strip("-.") or "image" for name in names))
    shown = parts if len(parts) <= 3 else [parts[0], f"and-{len(parts) - 1}-more"]
    return "-".join(shown)[:100]
