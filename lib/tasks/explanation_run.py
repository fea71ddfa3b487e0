"""Shared steps of the scripts that explain images: load networks, choose targets, draw the sheet."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from lib.cli import CommandLine, config
from lib.cli.scope import spelled
from lib.data import image_inputs, photographs
from lib.data.fitting import Fit
from lib.data.image_inputs import ImageInput, Reader
from lib.explain.areas import output_box_target
from lib.explain.baselines import KINDS, baseline
from lib.explain.targets import Target, top_classes, unit_target
from lib.models import explained_autoencoder, outputs
from lib.models.network import Network, check_top, find_classes
from lib.models.own_network import OwnNetwork
from lib.runtime import distributed
from lib.runtime.errors import UserError
from lib.runtime.files import refuse_overwrite, writable_file, writable_folder
from lib.runtime.runlog import RunLog
from lib.runtime.settings import Settings
from lib.tasks import area_questions, chosen_networks
from lib.tasks.chosen_networks import NetworkChoice
from lib.tasks.explanation_names import PLAIN, Naming
from lib.tasks.explanation_panels import Question


@dataclass(frozen=True)
class SheetSettings(Settings):
    """How sheets are laid out; see the flags of these names."""

    on: str = "original"
    scale: str = "row"
    columns: int | None = None


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
    unit: Sequence[int] | None = None
    area: Sequence[tuple[int, int, int, int]] | None = None
    region: str | None = None
    mask: Sequence[str] | None = None
    dense: bool = False  # no flag: whether the networks segment
    baseline: str = KINDS[0]
    fit: str | None = None
    longest_side: int | None = None
    skip_bad: bool = False

    @property
    def others(self) -> list[Target]:
        """The targets that are no classes: latent units of an autoencoder, or areas of its reconstruction."""
        areas = () if self.dense else self.area or ()
        return [*map(unit_target, self.unit or ()), *map(output_box_target, areas)]

    @property
    def fitting(self) -> Fit:
        """How image files become inputs."""
        return Fit(self.fit, self.longest_side)


@dataclass(frozen=True)
class OutputFiles(Settings):
    """The files to write: pictures, arrays, records; or only a list of layers."""

    out_dir: str
    save_values: str | None
    json: str | None
    show: bool
    animate: bool = False
    list_layers: bool = False

    @property
    def values_folder(self) -> Path | None:
        """The folder for one file of values an image, if `--save-values` names one."""
        named = self.save_values or ""
        return Path(named) if named.endswith(("/", os.sep)) or os.path.isdir(named) else None

    @property
    def resumable(self) -> bool:
        """Whether results are written image by image, such that the same command goes on where it was."""
        return self.values_folder is not None or str(self.json).endswith(".jsonl")


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
    height, width = question.size
    if image_inputs.is_file(name) and not cropped:
        size = photographs.read(name).size
        if size != (width, height):
            raise UserError(
                f"the baseline {name} has {size[0]}×{size[1]} pixels; the network sees {width}×{height}"
            )
    how = Fit("stretch") if not cropped and network.preprocessing.resize else asked.fitting
    (image,) = image_inputs.read([name], network.preprocessing, asked.data_dir, invert=asked.invert, fit=how)
    pixels = image.pixels[None]
    if image.size != question.size:
        pixels = functional.interpolate(pixels, question.size, mode="bilinear", antialias=True)
    return pixels[0].to(network.device)


@contextmanager
def start(name: str, line: CommandLine, words: Naming = PLAIN) -> Iterator["ExplanationRun"]:
    """Check the shared flags, load the networks and open the log; yield an `ExplanationRun`.

    Args:
        name: name of the method in file names and log lines.
        line: the flags.
        words: what file names say beside that.

    Raises:
        UserError: the flags contradict each other, a network cannot be loaded, or an output cannot
            be written.
    """
    flags, typed = line.values, line.typed
    choice, asked, files = NetworkChoice.of(flags), ImageQuestion.of(flags), OutputFiles.of(flags)
    asked = replace(asked, dense=area_questions.are_dense(choice.ptm or (), choice.restore_file or ()))
    _check(choice, asked, files, typed)
    asked = replace(asked, input=image_inputs.expanded(asked.input or ()))
    _check_outputs(choice, asked, files, flags)
    if not asked.skip_bad:
        image_inputs.check(asked.input or ())
    autoencoder = partial(explained_autoencoder.load, reconstructs=bool(asked.area))
    networks = chosen_networks.load(
        choice,
        OwnNetwork.of({**flags, "weights": choice.weights[0] if choice.weights else None}),
        autoencoder=autoencoder if asked.others else None,
        lists_layers=files.list_layers,
    )
    if asked.others:
        asked = replace(asked, score="μ" if asked.unit else "brightness")
    if "top_k" not in typed:
        fewest = min((len(each.classes) for each in networks if each.classes), default=asked.top_k)
        asked = replace(asked, top_k=min(asked.top_k, fewest))
    if files.save_values and len({each.size for each in networks}) > 1:
        raise UserError("--save-values cannot hold maps of different sizes: ask the networks one by one")
    if flags["save_config"] and distributed.is_main():
        config.save(flags["save_config"], flags, line.flags, typed)
    naming = Naming(words.method or name, (*words.parts, *_typed_parts(typed)))
    sheets = SheetSettings.of(flags)
    with distributed.process_group(networks[0].device), _log(name) as log:
        yield ExplanationRun(name, log, networks, asked, files, sheets, naming)


def _log(name: str) -> RunLog:
    """Return the log, which only rank 0 writes; the ranks must have found each other."""
    return RunLog(name, enabled=distributed.is_main())


def _typed_parts(typed: Mapping[str, Any]) -> list[str]:
    """Return what file names say of flags that all scripts share, in words; nothing of defaults."""
    targets = [f"of-{'-'.join(typed['target'])}"] if typed.get("target") else []
    for name in ("unit", "area"):
        targets += [f"of-{name}-{'-'.join(map(_spelled, typed[name]))}"] if typed.get(name) else []
    return [*targets, *(str(typed[name]) for name in ("region", "score", "fit") if typed.get(name))]


def _spelled(value: int | tuple[int, ...]) -> str:
    return ".".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _check_outputs(
    choice: NetworkChoice, asked: ImageQuestion, files: OutputFiles, flags: Mapping[str, Any]
) -> None:
    """Check that the files to write can be written, and are none of those to read."""
    read = (choice.restore_file, choice.weights, asked.input)
    refuse_overwrite(flags["save_config"], *read, flags["config"])
    for output in (files.json, files.save_values):
        refuse_overwrite(output, *read, asked.baseline)
    if files.values_folder:
        writable_folder(files.values_folder)
    for path in (None if files.values_folder else files.save_values, files.json):
        if path:
            writable_file(path)
    if not files.list_layers:
        writable_folder(files.out_dir)


def _check(choice: NetworkChoice, asked: ImageQuestion, files: OutputFiles, typed: Mapping[str, Any]) -> None:
    if not choice.ptm and not choice.restore_file and not choice.network:
        raise UserError(
            "no network given: use --ptm NAME (e.g. resnet18), --restore-file CHECKPOINT, or --network "
            "FILE.py:NAME, one of your own"
        )
    for name in ("weights", "classes"):
        if getattr(choice, name) and choice.restore_file:
            raise UserError(f"--{name} goes with --ptm or --network alone: a checkpoint brings its own")
    given, needed = len(choice.weights or ()), len(choice.ptm or [None])
    if given not in (0, 1, needed):
        raise UserError(f"--weights takes one for each network: {given} are given, {needed} needed")
    if files.animate and len(choice.restore_file or ()) < 2:
        raise UserError("--animate shows how a network changes: give --restore-file two checkpoints or more")
    if not asked.input and not files.list_layers:
        raise UserError("no image given: use --input FILE, or an example such as --input digits:7")
    if "target" in typed and "top_k" in typed:
        raise UserError("--top-k and --target both say which classes: choose one")
    if asked.dense:
        area_questions.check(typed)
    else:
        _check_autoencoder(choice, typed)
    if files.save_values and not files.save_values.endswith(".npz") and not files.values_folder:
        raise UserError(
            f"--save-values {files.save_values}: the name must end in .npz, or in / for a folder of one file "
            "an image"
        )
    if asked.longest_side and asked.fit != "native":
        raise UserError("--longest-side goes with --fit native alone")
    _check_baseline(asked.baseline)


def _check_autoencoder(choice: NetworkChoice, typed: Mapping[str, Any]) -> None:
    if typed.get("region") or typed.get("mask"):
        raise UserError("--region and --mask go with networks that segment images alone")
    which = next((name for name in ("unit", "area") if typed.get(name)), None)
    if not which:
        return
    if not choice.restore_file:
        raise UserError(f"--{which} goes with --restore-file CHECKPOINT, of an autoencoder, alone")
    for name in ("area", "target", "top_k", "score"):
        if name in typed and name != which:
            raise UserError(f"--{which} says what is explained: leave out {spelled(name)}")


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
        name: name of the method in log lines.
        log: the log on standard output, of rank 0.
        networks: the networks, one or more.
        asked: what is asked about which images.
        files: the files to write.
        sheets: how sheets are laid out.
        naming: what file names say.
    """

    name: str
    log: RunLog
    networks: Sequence[Network]
    asked: ImageQuestion
    files: OutputFiles
    sheets: SheetSettings
    naming: Naming = PLAIN

    @property
    def sources(self) -> Sequence[str]:
        """The image files and examples."""
        return self.asked.input or ()

    @cached_property
    def names(self) -> list[str]:
        """Their names."""
        return image_inputs.names(self.sources)

    @cached_property
    def network_names(self) -> list[str]:
        """Names of the networks; those of the same name are told apart by their epochs, or are numbered."""
        found = []
        for number, network in enumerate(self.networks):
            alike = [each for each in self.networks if each.name == network.name]
            epochs = {each.epoch for each in alike}
            if len(alike) == 1:
                found.append(network.name)
            elif len(epochs) == len(alike) and None not in epochs:
                found.append(f"{network.name}, epoch {network.epoch}")
            else:
                found.append(f"{network.name} ({number + 1})")
        return found

    def readers(self) -> list[Reader]:
        """Return a reader of images for each network."""
        asked = self.asked
        return [
            Reader(each.preprocessing, asked.data_dir, invert=asked.invert, fit=asked.fitting)
            for each in self.networks
        ]

    def questions(self, images: Sequence[Sequence[ImageInput]]) -> list[list[Question]]:
        """Return, for each of some images, as each network sees it, the question of each network.

        Networks with the same classes are taken for checkpoints of one training run: all explain the most
        probable classes of the last one.

        Raises:
            UserError: there is no such class.
        """
        score, networks = self.asked.score, self.networks
        if self.asked.dense:
            return area_questions.questions(networks, images, self.asked)
        others = self.asked.others
        if others:
            numbers = list(self.asked.unit or range(len(others)))
            chosen = [[numbers] * len(networks)] * len(images)
        elif self.asked.target:
            wanted = [find_classes(network, self.asked.target) for network in networks]
            chosen = [wanted] * len(images)
        elif len({network.classes for network in networks}) == 1:
            last = self._likeliest(networks[-1], [each[-1] for each in images])
            chosen = [[classes] * len(networks) for classes in last]
        else:
            columns = zip(*images, strict=True)
            found = [self._likeliest(*each) for each in zip(networks, columns, strict=True)]
            chosen = [list(row) for row in zip(*found, strict=True)]
        return [
            [Question(*each, score, others) for each in zip(networks, row, classes, strict=True)]
            for row, classes in zip(images, chosen, strict=True)
        ]

    def _likeliest(self, network: Network, images: Sequence[ImageInput]) -> list[list[int]]:
        """Return the most probable classes of each of some images, which are asked in batches of one size."""
        check_top(network, self.asked.top_k)
        found: list[list[int]] = []
        with torch.no_grad():
            for _, alike in itertools.groupby(images, key=lambda image: image.size):
                pixels = torch.stack([image.pixels for image in alike])
                # Small probabilities are rounded to zero and then equal, which logits are not.
                some = network.logits(pixels) if network.views == 1 else network.probabilities(pixels)
                outputs.check_finite(some, network.name)
                found += top_classes(some, self.asked.top_k).T.tolist()
        return found
