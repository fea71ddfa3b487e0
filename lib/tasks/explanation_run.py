"""Shared steps of the scripts that explain images: load networks, choose targets, draw the sheet."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lib import models
from lib.cli import CommandLine, config
from lib.data import class_names, image_inputs, photographs
from lib.data.image_inputs import ImageInput
from lib.explain.baselines import KINDS, baseline
from lib.explain.progress import Stopped, Watch
from lib.explain.targets import top_classes
from lib.figures import explanations as pictures
from lib.figures import style
from lib.models import own_network
from lib.models.network import Network, check_top, find_classes, load_checkpoint, load_pretrained
from lib.models.own_network import OwnNetwork
from lib.runtime import distributed, threads
from lib.runtime.errors import Interrupted, UserError, warn
from lib.runtime.files import refuse_overwrite, writable_file, writable_folder, write_atomically
from lib.runtime.interrupts import Signals
from lib.runtime.memory import keep_freed_memory
from lib.runtime.runlog import RunLog
from lib.runtime.settings import Settings
from lib.tasks.explanation_panels import Panel, Question, as_json, lines_of, save_values


@dataclass(frozen=True)
class NetworkChoice(Settings):
    """The networks to explain, and where they compute."""

    ptm: str | None
    network: str | None
    weights: str | None
    classes: str | None
    restore_file: Sequence[str] | None
    device: str
    threads: int | None
    seed: int


@dataclass(frozen=True)
class ImageQuestion(Settings):
    """The images, the classes that are explained, and the baseline, for methods that have one."""

    input: Sequence[str] | None
    data_dir: str
    invert: bool
    top_k: int
    target: Sequence[str] | None
    score: str
    seed: int
    baseline: str = KINDS[0]


@dataclass(frozen=True)
class OutputFiles(Settings):
    """The files to write: pictures, arrays, records; or only a list of layers."""

    out_dir: str
    save_values: str | None
    json: str | None
    show: bool
    animate: bool = False
    list_layers: bool = False


def baseline_of(asked: ImageQuestion, question: Question, *, cropped: bool) -> Tensor:
    """Return the baseline (C, H, W) in [0, 1] that `--baseline` names, on the network's device.

    Args:
        asked: names the baseline.
        question: the network and the image for which the baseline is made.
        cropped: whether to crop a baseline file like an image; if not, it must have the input size.

    Raises:
        UserError: the file has another size.
    """
    network, name = question.network, asked.baseline
    if name in KINDS:
        return baseline(name, question.pixels[0], seed=asked.seed)
    if image_inputs.is_file(name) and not cropped:
        size = photographs.read(name).size
        if size != (network.size, network.size):
            raise UserError(
                f"the baseline {name} has {size[0]}×{size[1]} pixels; "
                f"the network sees {network.size}×{network.size}"
            )
    (image,) = image_inputs.read([name], network.preprocessing, asked.data_dir, invert=asked.invert)
    return image.pixels.to(network.device)


@contextmanager
def start(name: str, line: CommandLine) -> Iterator["ExplanationRun"]:
    """Check the shared flags, load the networks and open the log; yield an `ExplanationRun`.

    Args:
        name: name of the method in file names and log lines.
        line: the flags.

    Raises:
        UserError: the flags contradict each other, a network cannot be loaded, or an output cannot
            be written.
    """
    flags, typed = line.values, line.typed
    choice, asked, files = NetworkChoice.of(flags), ImageQuestion.of(flags), OutputFiles.of(flags)
    _check(choice, asked, files, typed)
    refuse_overwrite(flags["save_config"], choice.restore_file, choice.weights, asked.input, flags["config"])
    for path in (files.save_values, files.json):
        if path:
            writable_file(path)
    if not files.list_layers:
        writable_folder(files.out_dir)
    image_inputs.check(asked.input or ())
    networks = _load(choice, OwnNetwork.of(flags))
    if "top_k" not in typed:
        fewest = min((len(each.classes) for each in networks if each.classes), default=asked.top_k)
        asked = replace(asked, top_k=min(asked.top_k, fewest))
    if files.save_values and len({each.size for each in networks}) > 1:
        raise UserError("--save-values cannot hold maps of different sizes: ask the networks one by one")
    if flags["save_config"] and distributed.is_main():
        config.save(flags["save_config"], flags, line.flags, typed)
    with RunLog(name) as log:
        yield ExplanationRun(name, log, networks, asked, files)


def _load(choice: NetworkChoice, own: OwnNetwork) -> list[Network]:
    """Return the networks, and choose the number of threads by their size."""
    device = distributed.pick_device(choice.device)
    if device.type == "cpu":
        keep_freed_memory()
    if choice.ptm:
        found = load_pretrained(choice.ptm, choice.weights, device, seed=choice.seed)
        networks = [_with_names(found, choice.classes)]
    elif choice.network:
        networks = [own_network.load(own, device)]
    else:
        networks = _by_age([load_checkpoint(file, device) for file in choice.restore_file or ()])
    small = all(models.is_small(each.name) for each in networks)
    threads.use(choice.threads or threads.suitable(small))
    return networks


def _with_names(network: Network, classes: str | None) -> Network:
    """Return a network of torchvision's with the class names that the user gives, if any."""
    if classes:
        return own_network.named(network, class_names.read(classes), len(network.classes))
    if network.classes == tuple(map(str, range(len(network.classes)))):
        warn(f"the {len(network.classes)} classes of {network.name} have no names: --classes FILE gives them")
    return network


def _by_age(networks: list[Network]) -> list[Network]:
    """Return checkpoints of one network sorted by epoch (file names seldom sort so); others unchanged."""
    aged = [(each.epoch, each) for each in networks if each.epoch is not None]
    if len({each.name for each in networks}) > 1 or len(aged) < len(networks):
        return networks
    return [each for _, each in sorted(aged, key=lambda pair: pair[0])]


def _check(choice: NetworkChoice, asked: ImageQuestion, files: OutputFiles, typed: Mapping[str, Any]) -> None:
    if not choice.ptm and not choice.restore_file and not choice.network:
        raise UserError(
            "no network given: use --ptm NAME (e.g. resnet18), --restore-file CHECKPOINT, or --network "
            "FILE.py:NAME, one of your own"
        )
    for name in ("weights", "classes"):
        if getattr(choice, name) and choice.restore_file:
            raise UserError(f"--{name} goes with --ptm or --network alone: a checkpoint brings its own")
    if files.animate and len(choice.restore_file or ()) < 2:
        raise UserError("--animate shows how a network changes: give --restore-file two checkpoints or more")
    if not asked.input and not files.list_layers:
        raise UserError("no image given: use --input FILE, or an example such as --input digits:7")
    if "target" in typed and "top_k" in typed:
        raise UserError("--top-k and --target both say which classes: choose one")
    if files.save_values and not files.save_values.endswith(".npz"):
        raise UserError(f"--save-values {files.save_values}: the name must end in .npz")
    for output in (files.json, files.save_values):
        refuse_overwrite(output, choice.restore_file, choice.weights, asked.input, asked.baseline)
    _check_baseline(asked.baseline)


def _check_baseline(name: str) -> None:
    if name in KINDS:
        return
    if "." not in name and ":" not in name and not os.path.exists(name):
        raise UserError(f"--baseline {name} is neither a file nor one of {', '.join(KINDS)}")
    image_inputs.check([name])


@dataclass(frozen=True)
class ExplanationRun:
    """One run of a script that explains images.

    Attributes:
        name: name of the method.
        log: the log on standard output.
        networks: the networks, one or more.
        asked: what is asked about which images.
        files: the files to write.
    """

    name: str
    log: RunLog
    networks: Sequence[Network]
    asked: ImageQuestion
    files: OutputFiles

    def questions(self) -> list[Question]:
        """Return one question per network for each image in turn.

        Networks with the same classes are taken for checkpoints of one training run: all explain the most
        probable classes of the last one.

        Raises:
            UserError: an image cannot be read, or there is no such class.
        """
        asked = self.asked
        shown = [
            image_inputs.read(asked.input or (), each.preprocessing, asked.data_dir, invert=asked.invert)
            for each in self.networks
        ]
        return [question for image in zip(*shown, strict=True) for question in self._questions_about(image)]

    def _questions_about(self, image: Sequence[ImageInput]) -> list[Question]:
        """Return the questions of all networks about one image, as each of them sees it."""
        pairs, score = list(zip(self.networks, image, strict=True)), self.asked.score
        if self.asked.target:
            return [Question(*each, find_classes(each[0], self.asked.target), score) for each in pairs]
        if len({network.classes for network in self.networks}) == 1:
            likeliest = self._likeliest(*pairs[-1])
            return [Question(*each, likeliest, score) for each in pairs]
        return [Question(*each, self._likeliest(*each), score) for each in pairs]

    def _likeliest(self, network: Network, image: ImageInput) -> list[int]:
        check_top(network, self.asked.top_k)
        with torch.no_grad():
            pixels = image.pixels[None]
            # Small probabilities are rounded to zero and then equal, which logits are not.
            found = network.logits(pixels) if network.views == 1 else network.probabilities(pixels)
            return top_classes(found, self.asked.top_k)[:, 0].tolist()

    @contextmanager
    def watching(self, signals: Signals, unit: str) -> Iterator[tuple[Watch, tqdm]]:
        """Within the context, show a progress bar on the main process, and yield it with its `Watch`."""
        disable = None if distributed.is_main() else True
        with tqdm(total=0, unit=f" {unit}", disable=disable, leave=False) as bar:

            def expect(count: int) -> None:
                bar.total += count
                bar.refresh()

            def report(half_width: float) -> None:
                bar.set_postfix(half_width=f"{half_width:.3g}")

            yield (
                Watch(expect, bar.update, lambda: bool(signals.received), None if bar.disable else report),
                bar,
            )

    def explain_each(
        self,
        questions: Sequence[Question],
        rows_of: Callable[[Question, Watch], list[list[Panel]]],
        *,
        unit: str,
    ) -> None:
        """Explain the questions one by one, with a progress bar, and report the results.

        Args:
            questions: questions in the order of the sheet.
            rows_of: function that returns the panels of a question; it may raise `Stopped` if its `Watch`
                says to stop.
            unit: unit of the progress bar.

        Raises:
            Interrupted: Ctrl-C; the results obtained by then are reported.
        """
        rows: list[list[Panel]] = []
        answered = 0
        with Signals() as signals, self.watching(signals, unit) as (watch, bar):
            for question in questions:
                bar.set_description(f"{question.image.name}, {question.network.name}")
                try:
                    rows += rows_of(question, watch)
                except Stopped:
                    break
                answered += 1
                if signals.received:
                    break
        if rows:
            self._report(rows)
        if signals.received:
            raise Interrupted(
                f"interrupted: {answered} of {len(questions)} images are drawn with what is known of them",
                signals.received,
            )

    def _report(self, rows: Sequence[Sequence[Panel]]) -> None:
        """Log the panels' numbers, write the files that the flags name, and draw the sheet.

        The panels of a row have the same question.
        """
        panels = [panel for row in rows for panel in row]
        for panel in panels:
            self.log.event("PANEL", **panel.record())
        self.write(panels)
        self._draw(rows)

    def write(self, panels: Sequence[Panel]) -> None:
        """Write the records and the arrays of panels to the files that the flags name, if any."""
        if self.files.json:
            write_atomically(Path(self.files.json), as_json([panel.record() for panel in panels]))
            self.log.event("RECORDS", file=self.files.json)
        if self.files.save_values:
            save_values(Path(self.files.save_values), panels)
            self.log.event("VALUES", file=self.files.save_values)

    def _draw(self, rows: Sequence[Sequence[Panel]]) -> None:
        """Draw the sheet, and with `--animate` a GIF of one frame for each network."""
        folder = Path(self.files.out_dir)
        asked = [row[0].question for row in rows]
        networks, images = (_joined(getattr(q, key).name for q in asked) for key in ("network", "image"))
        stem = f"{self.name}-{networks}-{images}"
        if self.files.animate:
            frames = [
                pictures.sheet(lines_of(row for row in rows if row[0].question.network is network))
                for network in self.networks
            ]
            self.log.event("FIGURE", file=pictures.save_animation(frames, folder / f"{stem}.gif"))
        figure = pictures.sheet(lines_of(rows))
        self.log.event("FIGURE", file=style.save(figure, folder / f"{stem}.png", show=self.files.show))


def _joined(names: Iterable[str]) -> str:
    """Return names as a part of a file name: all of them if there are at most three, else only the first."""
    parts = list(dict.fromkeys(re.sub(r"[^\w.+]+", "-", name).strip("-.") or "image" for name in names))
    shown = parts if len(parts) <= 3 else [parts[0], f"and-{len(parts) - 1}-more"]
    return "-".join(shown)[:100]
