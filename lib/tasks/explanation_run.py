"""Shared steps of the scripts that explain images: load networks, choose targets, draw the sheet."""

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
from lib.data import image_inputs, photographs
from lib.data.image_inputs import ImageInput
from lib.explain.baselines import KINDS, baseline
from lib.explain.progress import Stopped, Watch
from lib.explain.targets import class_scores, top_classes
from lib.figures import explanations as pictures
from lib.figures import style
from lib.models import network as subjects
from lib.models.network import Network
from lib.runtime import distributed, threads
from lib.runtime.errors import Interrupted, UserError
from lib.runtime.files import replaced, spare, writable_file, writable_folder, write_atomically
from lib.runtime.interrupts import Signals
from lib.runtime.memory import keep_what_is_freed
from lib.runtime.runlog import RunLog

# The most panels on one line of a sheet, beside the image.
MOST_PANELS = 9


@dataclass(frozen=True)
class Question:
    """A network, an image, and the classes whose scores are to be explained: one or more rows of a sheet.

    Attributes:
        subject: the network.
        picture: the image.
        classes: indices of the classes to explain.
    """

    subject: Network
    picture: ImageInput
    classes: Sequence[int]

    @property
    def pixels(self) -> Tensor:
        """The image as a batch (1, C, H, W) in [0, 1] on the network's device."""
        return self.picture.pixels[None].to(self.subject.device)


def baseline_of(flags: SimpleNamespace, question: Question, *, cropped: bool) -> Tensor:
    """Return the baseline (C, H, W) in [0, 1] that `--baseline` names, on the network's device.

    Args:
        flags: the run's flags.
        question: the network and the image for which the baseline is made.
        cropped: whether to crop a baseline file like an image; if not, it must have the input size.

    Raises:
        UserError: the file has another size.
    """
    subject, name = question.subject, flags.baseline
    if name in KINDS:
        return baseline(name, question.pixels[0], seed=flags.seed)
    if image_inputs.is_file(name) and not cropped:
        size = photographs.read(name).size
        if size != (subject.size, subject.size):
            raise UserError(
                f"the baseline {name} has {size[0]}×{size[1]} pixels; "
                f"the network sees {subject.size}×{subject.size}"
            )
    (picture,) = image_inputs.read([name], subject.preprocessing, flags.data_dir, invert=flags.invert)
    return picture.pixels.to(subject.device)


class Answer(NamedTuple):
    """A network's output for a class: the class index, its probability in [0, 1] and its score."""

    target: int
    probability: float
    score: float


def answers(question: Question, output: Tensor, kind: str) -> list[Answer]:
    """Return the probability and the score, of the given kind, of each class of `question`.

    Args:
        question: names the classes.
        output: logits (1, classes) of the image.
        kind: kind of the score: `logit`, `log-odds` or `probability`.
    """
    probabilities = output[0].softmax(0)[list(question.classes)]
    scores = class_scores(question.classes, kind)(output)[:, 0]
    return [
        Answer(*each) for each in zip(question.classes, probabilities.tolist(), scores.tolist(), strict=True)
    ]


@dataclass(frozen=True)
class Panel:
    """One explanation map: the evidence in an image for a class.

    Attributes:
        question: the network, the image and the classes.
        answer: the network's output for the class of this map.
        method: name of the method, e.g. `grad-cam`.
        map: (H, W) at the size of the image, on the CPU.
        layer: name of the layer of the map; empty for a map of the input.
        raw_map: (h, w) the map before it was upsampled; None if it was not.
        signed: whether negative values are evidence against the class.
        redrawn: names of the layers with re-initialised weights, the last first.
        note: text above the map, in addition to the class and its probability.
        numbers: further numbers for standard output and `--json`.
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
        """The map as the method computed it, before upsampling."""
        return self.map if self.raw_map is None else self.raw_map

    def record(self) -> dict[str, Any]:
        """Return the numbers of the panel for standard output and `--json`."""
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
def start(name: str, typed: dict, defaults: dict) -> Iterator["ExplanationRun"]:
    """Check the shared flags, load the networks and open the log; yield a `ExplanationRun`.

    Args:
        name: name of the method in file names and log lines.
        typed, defaults: from `lib.cli.Parser.parse_typed`.

    Raises:
        UserError: the flags contradict each other, a network cannot be loaded, or an output cannot
            be written.
    """
    flags = SimpleNamespace(**(defaults | typed))
    _check(flags, typed)
    for path in (flags.save_values, flags.json):
        if path:
            writable_file(path)
    if not getattr(flags, "list_layers", False):
        writable_folder(flags.out_dir)
    image_inputs.check(flags.input or ())
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
        yield ExplanationRun(name, flags, log, networks)


def _by_age(networks: list[Network]) -> list[Network]:
    """Return checkpoints of one network sorted by epoch (file names seldom sort so); others unchanged."""
    aged = [(each.epoch, each) for each in networks if each.epoch is not None]
    if len({each.name for each in networks}) > 1 or len(aged) < len(networks):
        return networks
    return [each for _, each in sorted(aged, key=lambda pair: pair[0])]


def _check(flags: SimpleNamespace, typed: dict) -> None:
    if not flags.ptm and not flags.restore_file:
        raise UserError("no network given: use --ptm NAME (e.g. resnet18) or --restore-file CHECKPOINT")
    if flags.weights and not flags.ptm:
        raise UserError("--weights goes with --ptm alone: a checkpoint brings its own")
    if getattr(flags, "animate", False) and len(flags.restore_file or ()) < 2:
        raise UserError("--animate shows how a network changes: give --restore-file two checkpoints or more")
    if not flags.input and not getattr(flags, "list_layers", False):
        raise UserError("no image given: use --input FILE, or an example such as --input digits:7")
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
    image_inputs.check([name])


@dataclass
class ExplanationRun:
    """One run of a script that explains images.

    Attributes:
        name: name of the method.
        flags: the flags, as attributes.
        log: the log on standard output.
        subjects: the networks, one or more.
    """

    name: str
    flags: SimpleNamespace
    log: RunLog
    subjects: list[Network]

    def questions(self) -> list[list[Question]]:
        """Return one question per network for each image.

        Networks with the same classes are taken for checkpoints of one training run: all explain the most
        probable classes of the last one.

        Raises:
            UserError: an image cannot be read, or there is no such class.
        """
        flags = self.flags
        shown = [
            image_inputs.read(flags.input, each.preprocessing, flags.data_dir, invert=flags.invert)
            for each in self.subjects
        ]
        return [self._questions_about(picture) for picture in zip(*shown, strict=True)]

    def _questions_about(self, picture: Sequence[ImageInput]) -> list[Question]:
        asked = list(zip(self.subjects, picture, strict=True))
        if self.flags.target:
            return [Question(*each, subjects.find_classes(each[0], self.flags.target)) for each in asked]
        if len({subject.classes for subject in self.subjects}) == 1:
            likeliest = self._likeliest(*asked[-1])
            return [Question(*each, likeliest) for each in asked]
        return [Question(*each, self._likeliest(*each)) for each in asked]

    def _likeliest(self, subject: Network, picture: ImageInput) -> list[int]:
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
        """Explain the questions one by one, with a progress bar, and report the results.

        Args:
            questions: questions in the order of the sheet.
            rows_of: function that returns the panels of a question; it may raise `Stopped` if its `Watch`
                says to stop.
            unit: unit of the progress bar.
            animate: see `report`.

        Raises:
            Interrupted: Ctrl-C; the results obtained by then are reported.
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
        """Log the panels' numbers, write the files that the flags name, and draw the sheet.

        Args:
            rows: rows of panels; the panels of a row have the same question.
            animate: also write a GIF, with one frame for each network.
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
    """Return records of plain values as JSON, which has no NaN or infinity: these become null."""

    def plain(value: Any) -> Any:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    plain_records = [{key: plain(value) for key, value in record.items()} for record in records]
    return f"{json.dumps(plain_records, indent=1, ensure_ascii=False)}\n".encode()


def _lines(rows: Iterable[Sequence[Panel]]) -> list[list[pictures.Tile]]:
    """Return the lines of a sheet; a row with too many panels takes several lines."""
    return [_tiles(line) for row in rows for line in _broken(row)]


def _broken(row: Sequence[Panel]) -> list[list[Panel]]:
    """Split a row into lines between depths of re-initialisation, or else between classes."""
    several = len({panel.redrawn for panel in row}) > 1
    lines: list[list[Panel]] = [[]]
    for _, group in itertools.groupby(row, key=lambda p: p.redrawn if several else p.answer.target):
        panels = list(group)
        if lines[-1] and len(lines[-1]) + len(panels) > MOST_PANELS:
            lines.append([])
        lines[-1] += panels
    return lines


def _tiles(row: Sequence[Panel]) -> list[pictures.Tile]:
    """Return the tiles of a line: the image that the network sees, then the maps."""
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
    """Return the heading of a row: the image, the network and the layer."""
    subject, picture = panel.question.subject, panel.question.picture
    label = f" ({picture.label})" if picture.label else ""
    size = "" if panel.raw_map is None else " {}×{}".format(*panel.raw_map.shape)
    return [picture.name + label, described(subject), *([panel.layer + size] if panel.layer else [])]


def described(subject: Network) -> str:
    """Return a network's name and its number of training epochs, counted from 1 as in file names."""
    epochs = "" if subject.epoch is None else f", {subject.epoch + 1} epoch{'s' if subject.epoch else ''}"
    return subject.name + epochs


def as_bytes(pixels: Tensor) -> np.ndarray:
    """Return pixels (C, H, W) in [0, 1] as (H, W, 3) uint8."""
    colour = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels
    return (colour * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def save_values(path: Path, panels: Sequence[Panel]) -> None:
    """Save the arrays behind a sheet as an .npz file, one row per panel in reading order.

    The arrays are maps (P, H, W) at input size; raw_maps (P, h, w) if any map was coarser, each in the upper
    left corner, of size raw_sizes (P, 2), with NaN outside; inputs (P, H, W, 3) uint8; names, models, layers,
    methods, classes, redrawn (P,) text; targets, probabilities, scores (P,); epochs (P,), −1 if unknown.

    Raises:
        RunFailed: the file cannot be written.
    """
    records = [panel.record() for panel in panels]
    arrays: dict[str, Any] = {
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
    """Return names as a part of a file name: all of them if there are at most three, else only the first."""
    parts = list(dict.fromkeys(re.sub(r"[^\w.+]+", "-", name).strip("-.") or "image" for name in names))
    shown = parts if len(parts) <= 3 else [parts[0], f"and-{len(parts) - 1}-more"]
    return "-".join(shown)[:100]
