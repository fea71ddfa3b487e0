"""The work of compare-explanations.py: explain each image by every method, measure the maps, keep them."""

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lib.data.image_inputs import ImageInput
from lib.evaluation.measures import CONTROLS, MEASURES
from lib.explain.methods import METHODS
from lib.models.network import Network
from lib.runtime import distributed
from lib.runtime.errors import Interrupted, RunFailed, UserError, warn
from lib.runtime.interrupts import Signals
from lib.runtime.settings import Settings
from lib.tasks import comparison_maps, comparison_measures
from lib.tasks.comparison_boxes import ImageBoxes
from lib.tasks.comparison_measures import Judge, MeasureSettings, Shared
from lib.tasks.comparison_results import Found, Row, Told
from lib.tasks.comparison_store import Store, key_of
from lib.tasks.explanation_panels import Question
from lib.tasks.explanation_records import digest_of
from lib.tasks.explanation_run import ExplanationRun
from lib.tasks.run_images import RunImages


@dataclass(frozen=True)
class ComparisonSettings(Settings):
    """What is compared, on how many images, and where the report goes; see the flags of these names."""

    methods: Sequence[str]
    probed: int
    boxes: str | None
    report: str | None
    format: str
    shown: int
    study: str | None
    images: int
    seed: int

    @property
    def method_names(self) -> list[str]:
        """The methods, in the order of the table of methods."""
        return [name for name in METHODS if "all" in self.methods or name in self.methods]


class _OfImage(NamedTuple):
    """What a rank found of an image; if it could not be read, why."""

    rows: Sequence[Row] = ()
    told: Sequence[Told] = ()
    bad: str = ""


# Function that hears of what was found of an image as it comes, on rank 0.
Hear = Callable[[Sequence[Row], Sequence[Told]], None]


class _Ended(Exception):
    """A signal came; what was computed is kept."""


@dataclass
class Comparison:
    """A comparison, on each rank.

    Attributes:
        run: the networks, and what is asked about which images.
        settings: what is compared.
        asked: how is measured.
        store: the kept results.
        masked: for each network, whether it was trained with masked patches.
    """

    run: ExplanationRun
    settings: ComparisonSettings
    asked: MeasureSettings
    store: Store
    masked: Sequence[bool] = ()
    signals: Signals = field(default_factory=Signals)

    def __post_init__(self) -> None:
        self._images = RunImages(self.run, keep=3)  # a few, since each is the other of another
        self.boxes = ImageBoxes(self.settings.boxes, self.run)

    def images(self, number: int) -> list[ImageInput]:
        """Return an image as each network sees it."""
        return self._images[number]

    @cached_property
    def refused(self) -> dict[int, dict[str, str]]:
        """For each number of a network, why some methods cannot explain it."""
        return {
            number: {
                name: why for name in self.settings.method_names if (why := self._why_not(network, name))
            }
            for number, network in enumerate(self.run.networks)
        }

    @cached_property
    def references(self) -> list[str]:
        """For each network, the method whose maps stand for all in the controls that need one."""
        usual = comparison_maps.REFERENCES
        return [
            next((name for name in usual if not self._why_not(network, name)), usual[-1])
            for network in self.run.networks
        ]

    def _why_not(self, network: Network, method: str) -> str:
        """Return why a method cannot explain a network, or nothing; kept, because to see it takes seconds."""
        key = key_of("check", method, digest_of(network), network.preprocessing)
        saved = self.store.find(key)
        if saved is None:
            saved = {"why": comparison_maps.check(network, method)}
            self.store.save(key, saved)
        return str(saved["why"])

    def do(self, hear: Hear) -> Found:
        """Compare on all images; return the results, on all ranks.

        Ranks share the images.

        Args:
            hear: what is called with the results of each image as they come, on rank 0.

        Raises:
            UserError: an image cannot be read or explained.
            Interrupted: a signal came; results are kept, and the same command goes on.
        """
        found = Found(self.run)
        world, rank = distributed.world_size(), distributed.rank()
        device = self.run.networks[0].device
        with self.signals, self._progress() as bar:
            for first in range(0, len(self.run.names), world):
                number = first + rank
                result = _OfImage()
                error: Exception | None = None
                with distributed.alone():
                    try:
                        if number < len(self.run.names):
                            result = self._of_image(number, bar)
                    except _Ended:
                        pass
                    except (UserError, RunFailed) as caught:
                        error = caught
                everyone = distributed.gathered((result, error))
                for place, (each, _) in enumerate(everyone):
                    found.rows += each.rows
                    found.told += each.told
                    if distributed.is_main() and each.bad:
                        warn(f"{each.bad}: skipped")
                        found.bad.add(first + place)
                    elif distributed.is_main():
                        hear(each.rows, each.told)
                if distributed.max_over_ranks(int(error is not None), device):
                    raise next((each for _, each in everyone if each), error or RunFailed("a rank failed"))
                received = distributed.max_over_ranks(self.signals.received, device)
                if received:
                    raise Interrupted("interrupted: the same command goes on where it was", received)
            self._images.warn()
        found = Found(self.run, *distributed.told_by_main((found.rows, found.told, found.bad)))
        if not found.good:
            raise UserError("none of the images can be read")
        return found

    @contextmanager
    def _progress(self) -> Iterator[tqdm]:
        """Show a bar of the maps to make, with the time left, on rank 0."""
        each = len(self.run.networks) * (len(self.settings.method_names) + len(CONTROLS))
        own = -(-len(self.run.names) // distributed.world_size())
        disable = None if distributed.is_main() else True
        with tqdm(total=own * each, unit=" maps", disable=disable, leave=False) as bar:
            yield bar

    def _another(self, number: int) -> list[ImageInput] | None:
        """Return the next image that is not the same picture; None if there is none."""
        own, count = self.images(number), len(self.run.names)
        for step in range(1, count):
            try:
                other = self.images((number + step) % count)
            except UserError:  # told of when its turn comes
                continue
            if not torch.equal(own[-1].pixels, other[-1].pixels):
                return other
        return None

    def _of_image(self, number: int, bar: tqdm) -> _OfImage:
        try:
            own = self.images(number)
        except UserError as error:
            if not self.run.asked.skip_bad:
                raise
            return _OfImage(bad=str(error))
        others = self._another(number)
        (questions,) = self.run.questions([own])
        (asked_of_others,) = self.run.questions([others]) if others else ([None] * len(own),)
        rows, told = [], []
        for index, pair in enumerate(zip(questions, asked_of_others, strict=True)):
            one = _One(self, number, index, *pair)
            rows += one.rows(bar)
            told.append(one.told)
        return _OfImage(rows, told)


@dataclass
class _One:
    """A network and an image: finds kept results, or computes them."""

    whole: Comparison
    number: int
    index: int
    question: Question
    other: Question | None

    def __post_init__(self) -> None:
        asked = self.whole.asked
        self._identity = self._identity_of(self.question)
        draws = asked.seed + zlib.crc32(self.question.image.name.encode())
        self._asked = comparison_maps.MapSettings(asked.removal, asked.seed, draws)
        key = key_of("shared", *self._identity, {**asdict(asked), "steps": 0, "measures": asked.names})
        saved = self.whole.store.find(key)
        if saved is None:
            made = comparison_measures.shared(self.question, asked)
            saved = asdict(made)
            self.whole.store.save(key, saved)
        self._shared: Shared = comparison_measures.shared_of(saved)
        self._box = self.whole.boxes.mask(self.question.image)

    @cached_property
    def _judge(self) -> Judge:
        return Judge(self.question, self.whole.asked, self._shared, self._box)

    def _identity_of(self, question: Question) -> tuple[object, ...]:
        network: Network = question.network
        image = question.image.pixels.contiguous().numpy()
        targets = (tuple(question.classes), question.score, [each.name for each in question.targets])
        areas = [area.numpy().tobytes() for area in question.areas]
        pixels = key_of(image.shape, image.tobytes())
        # The name of an image is part of the seed of what is drawn for it.
        name = question.image.name
        return (digest_of(network), network.preprocessing, name, pixels, targets, areas)

    @property
    def told(self) -> Told:
        """What the network says of the image."""
        known = self._shared
        share = 0.0
        if known.truth:
            spread = max(max(row) - min(row) for row in known.truth) or 1.0
            errors = [error for row in known.errors for error in row]
            share = sum(errors) / len(errors) / spread
        names = [each.name for each in self.question.targets]
        return Told(self.number, self.index, names, known.full, (known.estimator, share))

    def rows(self, bar: tqdm) -> list[Row]:
        """Return the rows of all methods and controls; a signal ends it after one of them."""
        found = []
        refused = self.whole.refused[self.index]
        for name in (*self.whole.settings.method_names, *CONTROLS):
            if self.whole.signals.received:
                raise _Ended
            if name not in refused:
                row = self._row(name)
                found += [] if row is None else [row]
            bar.set_description(self.question.image.name)
            bar.update()
        return found

    def _row(self, name: str) -> Row | None:
        whole = self.whole
        is_drawn = self.number < whole.settings.shown and whole.settings.format == "html"
        is_shown = is_drawn or bool(whole.run.files.save_values)
        probed = self.number < whole.settings.probed and whole.asked.wants(
            "max-sensitivity", "randomisation", "randomisation-smooth"
        )
        if name == "control-other" and self.other is None:
            return None
        is_method = name not in CONTROLS
        depends = [
            name,
            comparison_maps.settings_of(name),
            probed and is_method,
            self._identity_of(self.other) if name == "control-other" and self.other else None,
            {**asdict(whole.asked), "measures": whole.asked.names},
            None if self._box is None else self._box.numpy().tobytes(),
        ]
        key = key_of(*self._identity, *depends)
        saved = whole.store.find(key, with_maps=is_shown)
        reused = saved is not None
        if saved is None:
            saved = self._computed(name, key, is_shown=is_shown, probed=probed)
        cost = saved["passes"], saved["seconds"]
        return Row(self.number, self.index, name, key, saved["numbers"], *cost, reused)

    def _computed(self, name: str, key: str, *, is_shown: bool, probed: bool) -> dict[str, Any]:
        if name in CONTROLS:
            found = comparison_maps.of_control(
                self.question, name, self._asked, self.other, self.whole.references[self.index]
            )
            assert found is not None  # `_row` has looked
        else:
            found = comparison_maps.of_method(self.question, name, self._asked, probed=probed)
        numbers = []
        for target, own in enumerate(found.numbers):
            known = self._judge.judge(found.maps[target], target)
            known |= {each: value for each, value in own.items() if self.whole.asked.wants(each)}
            numbers.append({each: known.get(each) for each in MEASURES})
        result = {"numbers": numbers, "passes": found.passes, "seconds": round(found.seconds, 4)}
        maps = found.maps.float().cpu().numpy() if is_shown else None
        self.whole.store.save(key, result, maps)
        return result


def kept_maps(whole: Comparison, row: Row) -> np.ndarray:
    """Return the maps (T, H, W) of a row.

    Raises:
        RunFailed: they have vanished since they were computed.
    """
    saved = whole.store.find(row.key, with_maps=True)
    if saved is None:
        raise RunFailed(f"the kept maps of {row.method} have vanished meanwhile: run it again")
    return saved["maps"]


def check_refused(whole: Comparison) -> None:
    """Warn of methods that cannot explain a network, one line for each reason.

    Raises:
        UserError: a network can be explained by none.
    """
    for number, reasons in whole.refused.items():
        network = whole.run.network_names[number]
        if len(reasons) == len(whole.settings.method_names):
            raise UserError(f"no method asked for can explain {network}: {next(iter(reasons.values()))}")
        for why in dict.fromkeys(reasons.values()):
            names = [METHODS[name].title for name, reason in reasons.items() if reason == why]
            are = "is" if len(names) == 1 else "are"
            warn(f"{', '.join(names)} {are} left out for {network}: {why}")
