"""Steps of run-shapley-value.py: choose the players and the estimator, estimate the values, draw them."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lib.data import photographs
from lib.explain import batch_size, interactions, players, shapley
from lib.explain.batch_size import BatchSizeTuner
from lib.explain.games import Evaluation, MaskedImage
from lib.explain.players import Players
from lib.explain.shapley import Estimate, Plan
from lib.explain.targets import class_scores
from lib.figures import shapley as pictures
from lib.figures import style
from lib.runtime import distributed
from lib.runtime.errors import Interrupted, RunFailed, UserError, warn
from lib.runtime.files import existing_file, replaced, writable_file, write_atomically
from lib.runtime.interrupts import Signals
from lib.runtime.runlog import RunLog
from lib.tasks.evaluation_store import EvaluationStore
from lib.tasks.explanation_run import (
    Answer,
    ExplanationRun,
    Question,
    answers,
    as_bytes,
    as_json,
    baseline_of,
    described,
)

# Default number of patches along a side, without --patch-side-len.
PATCHES_A_SIDE = 8
# Default budget, without --budget: this many evaluations per player. In small images, where a forward pass is
# cheap, all coalitions of up to ENUMERATED_PLAYERS players are evaluated instead.
EVALUATIONS_A_PLAYER = 32
SMALL_IMAGE = 64
ENUMERATED_PLAYERS = 16


@dataclass(frozen=True)
class Explained:
    """The Shapley values of one question's classes.

    Attributes:
        question: image, network and classes.
        answers: the network's outputs for each of the T classes.
        players: the parts of the image.
        estimator: name of the estimator that was used.
        estimate: the estimated values.
        budget: number of evaluations allowed.
        interrupted: whether Ctrl-C ended the estimation early.
        reused: number of evaluations taken from the file of `--resume-values`.
        rate: forward passes per second; 0 if there were none.
        seconds: duration of the whole explanation.
    """

    question: Question
    answers: Sequence[Answer]
    players: Players
    estimator: str
    estimate: Estimate
    budget: int
    interrupted: bool
    reused: int
    rate: float
    seconds: float

    def records(self) -> list[dict[str, Any]]:
        """Return the numbers of each class for standard output and `--json`."""
        found = self.estimate
        shared = {
            "image": self.question.picture.name,
            "model": self.question.subject.name,
            "estimator": self.estimator,
            "players": self.players.count,
        }
        return [
            {
                **shared,
                "class": self.question.subject.classes[answer.target],
                "target": answer.target,
                "probability": answer.probability,
                "value_full": float(found.full[row]),
                "value_empty": float(found.empty[row]),
                "values_sum": float(found.values[row].sum()),
                "efficiency_gap": float(found.values[row].sum() - (found.full[row] - found.empty[row])),
                "half_width": shapley.HALF_WIDTH * float(found.standard_errors[row].max()),
                "evaluations": found.evaluations,
                "reused": self.reused,
                "converged": found.converged,
                "evaluations_per_second": round(self.rate, 2),
                "seconds": round(self.seconds, 3),
            }
            for row, answer in enumerate(self.answers)
        ]

    @property
    def maps(self) -> Tensor:
        """The value of each pixel's player, (T, H, W)."""
        return self.estimate.values[:, self.players.map]


def explain(run: ExplanationRun) -> None:
    """Explain every question of the run: draw a figure for each image, and log the numbers of each class.

    Raises:
        UserError: the flags contradict each other or do not suit the image.
        Interrupted: Ctrl-C; the results obtained by then are drawn.
    """
    device = run.subjects[0].device
    with distributed.process_group(device), Signals() as signals:
        run = replace(run, log=RunLog(run.name, enabled=distributed.is_main()))
        done = []
        questions = [question for questions in run.questions() for question in questions]
        try:
            for question, stem in zip(questions, _stems(run, questions), strict=True):
                done.append(_explain_one(run, question, signals))
                _report(run, done[-1], stem)
                received = distributed.any_rank(signals.received, device)
                if received:
                    break
        finally:  # also if the last image failed, so that the results of the others are not lost
            if distributed.is_main() and done:
                _write(run, done)
    if received:
        last = done[-1]
        raise Interrupted(
            f"interrupted after {last.estimate.evaluations} of {last.budget} evaluations: "
            f"what is known is in {_path(run, stem)}",
            received,
        )


def check(flags: SimpleNamespace, typed: dict) -> None:
    """Raise a UserError if the flags contradict each other, before anything is loaded."""
    if flags.players != "patches" and "patch_side_len" in typed:
        raise UserError("--patch-side-len goes with --players patches alone")
    if flags.players != "slic" and "segments" in typed:
        raise UserError("--segments goes with --players slic alone")
    if flags.players not in ("patches", "slic"):
        existing_file(flags.players)
    if flags.max_context and flags.estimator != "per-patch":
        raise UserError("--max-context goes with --estimator per-patch alone")
    if flags.max_context and flags.budget:
        raise UserError("--max-context and --budget both say how many evaluations: choose one")
    if flags.interactions and flags.estimator == "per-patch":
        raise UserError("--interactions needs complementary pairs, which --estimator per-patch does not ask")
    if flags.resume_values:
        if not flags.resume_values.endswith(".npz"):
            raise UserError(f"--resume-values {flags.resume_values}: the name must end in .npz")
        writable_file(flags.resume_values)


def _explain_one(run: ExplanationRun, question: Question, signals: Signals) -> Explained:
    flags, subject, started = run.flags, question.subject, time.perf_counter()
    found = _players(flags, question)
    if found.note and distributed.is_main():
        warn(found.note)
    estimator, budget = _settle(flags, found.count, subject.size)
    with torch.inference_mode():
        said = answers(question, subject.logits(question.pixels), flags.score)
    game = _game(run, question, found, exact=estimator == "exact")
    with _progress(question, budget) as bar, _record(flags, game, question) as record:
        evaluation = Evaluation(
            game,
            subject.device,
            BatchSizeTuner(batch_size.largest(game.image), batch_size.first(game.image)),
            record=record,
            is_stopped=lambda: bool(signals.received),
            progress=bar.update,
        )
        plan = Plan(
            budget,
            flags.tolerance,
            flags.seed,
            report=lambda half_width: bar.set_postfix(half_width=f"{half_width:.3g}"),
            watched=bool(distributed.any_rank(int(not bar.disable), subject.device)),
        )
        try:
            estimate = shapley.ESTIMATORS[estimator](evaluation, found.positions, plan)
        except RunFailed as error:
            received = distributed.any_rank(signals.received, subject.device)
            if received:
                raise Interrupted(f"interrupted: {error}", received) from None
            raise
    fresh = estimate.evaluations - evaluation.reused
    return Explained(
        question,
        said,
        found,
        estimator,
        estimate,
        budget,
        interrupted=bool(signals.received) and not estimate.converged,
        reused=evaluation.reused,
        rate=fresh / evaluation.seconds if fresh else 0.0,
        seconds=time.perf_counter() - started,
    )


@contextlib.contextmanager
def _record(
    flags: SimpleNamespace, game: MaskedImage, question: Question
) -> Iterator[EvaluationStore | None]:
    """Yield the store that `--resume-values` names, if any, and save it however the block ends."""
    if not flags.resume_values:
        yield None
        return
    record = EvaluationStore(Path(flags.resume_values), game.fingerprint(list(question.classes), flags.score))
    try:
        yield record
    finally:
        record.save()


def _players(flags: SimpleNamespace, question: Question) -> Players:
    if flags.players == "patches":
        size = question.subject.size
        return players.patches(size, flags.patch_side_len or -(-size // PATCHES_A_SIDE))
    if flags.players == "slic":
        return players.superpixels(question.picture.pixels, flags.segments)
    labels = photographs.read_labels(flags.players)
    return players.from_labels(labels, question.subject.size, flags.players)


def _settle(flags: SimpleNamespace, n: int, size: int) -> tuple[str, int]:
    """Return the estimator and its budget, for n players in an image of side `size`."""
    if flags.interactions and n < 2:
        raise UserError("--interactions needs two players or more: a smaller --patch-side-len")
    if flags.max_context:
        return "per-patch", 2 + 2 * n * flags.max_context
    affordable = size <= SMALL_IMAGE and n <= ENUMERATED_PLAYERS and flags.estimator == "auto"
    budget = flags.budget or (2**n if affordable else EVALUATIONS_A_PLAYER * n)
    if flags.estimator == "exact" and not flags.budget and n <= ENUMERATED_PLAYERS:
        budget = 2**n
    # With one player the value is v(N) − v(∅) exactly.
    chooses = flags.estimator == "auto" or n == 1
    estimator = shapley.choose(n, budget) if chooses else flags.estimator
    if estimator == "exact":
        if 2**n > budget:
            raise UserError(f"--estimator exact needs 2^{n} = {2**n} evaluations of {n} players: --budget")
        return estimator, 2**n
    least = shapley.FEWEST_EVALUATIONS_A_PLAYER * n
    least += least % 2  # evaluations come in complementary pairs
    if budget < least:
        raise UserError(
            f"--budget {budget} is less than {shapley.FEWEST_EVALUATIONS_A_PLAYER} evaluations for each of "
            f"{n} players: {least} or more, or fewer players"
        )
    return estimator, budget


def _game(run: ExplanationRun, question: Question, found: Players, exact: bool) -> MaskedImage:
    flags, subject, pixels = run.flags, question.subject, question.pixels[0]
    if flags.amp and exact and distributed.is_main():
        warn("--amp is off: rounding would undo what exact values are for")
    return MaskedImage(
        subject.module,
        subject.normalise(pixels),
        subject.normalise(baseline_of(flags, question, cropped=False)),
        found.map,
        class_scores(question.classes, flags.score),
        amp=flags.amp and not exact,
    )


@contextlib.contextmanager
def _progress(question: Question, budget: int) -> Iterator[tqdm]:
    name = f"{question.picture.name}, {question.subject.name}"
    disable = None if distributed.is_main() else True
    with tqdm(total=budget, unit=" evaluations", desc=name, disable=disable, leave=False) as bar:
        yield bar


def _report(run: ExplanationRun, explained: Explained, stem: str) -> None:
    """Log the numbers of one question and draw its figures; their file names begin with `stem`."""
    if not distributed.is_main():
        return
    for record in explained.records():
        run.log.event("PANEL", **record)
    for suffix, figure in _figures(run, explained):
        path = style.save(figure, _path(run, stem, suffix), show=run.flags.show)
        run.log.event("FIGURE", file=path)


def _path(run: ExplanationRun, stem: str, suffix: str = "") -> Path:
    return Path(run.flags.out_dir) / f"{stem}{suffix}.png"


def _stems(run: ExplanationRun, questions: Sequence[Question]) -> list[str]:
    """Return a distinct first part of the file names for each question's figures."""
    several_epochs = len({subject.name for subject in run.subjects}) < len(run.subjects)
    stems: list[str] = []
    for subject, picture in ((question.subject, question.picture) for question in questions):
        epoch = f"-epoch-{subject.epoch + 1}" if several_epochs and subject.epoch is not None else ""
        stem = f"{run.name}-{subject.name}{epoch}-{picture.name}"
        names = (stem, *(f"{stem}-{number}" for number in range(2, len(questions) + 1)))
        stems.append(next(name for name in names if name not in stems))
    return stems


def _figures(run: ExplanationRun, explained: Explained) -> Iterator[tuple[str, Any]]:
    flags, found, parts = run.flags, explained.estimate, explained.players
    scene = pictures.Scene(
        as_bytes(explained.question.picture.pixels), parts.map.numpy(), _heading(explained), flags.score
    )
    names = [_title(record) for record in explained.records()]
    yield "", pictures.attributions(scene, names, found.values.numpy())
    if flags.show_uncertainty:
        uncertain = found.values.abs() <= shapley.HALF_WIDTH * found.standard_errors
        yield "-uncertainty", pictures.attributions(scene, names, found.values.numpy(), uncertain.numpy())
    if flags.interactions:
        pairwise = (
            interactions.exact(found.coalitions, found.outcomes)
            if found.evaluations == 2**parts.count
            else interactions.estimate(found.coalitions, found.outcomes, parts.positions)
        )
        yield "-interactions", pictures.interactions(scene, names, found.values.numpy(), pairwise.numpy())


def _title(record: dict[str, Any]) -> str:
    """Return the title of a class's panel."""
    ends = f"v(N) {record['value_full']:.3g}, v(∅) {record['value_empty']:.3g}".replace("-", "−")
    error = f", ±{record['half_width']:.2g} (95 %)" if record["half_width"] else ""
    return f"{record['class']}: {record['probability']:.3f}\n{ends}{error}"


def _heading(explained: Explained) -> list[str]:
    """Return the title of the image: its name, the network, the estimator and its evaluations."""
    picture, found = explained.question.picture, explained.estimate
    label = f" ({picture.label})" if picture.label else ""
    how = f"{explained.estimator}, {found.evaluations} evaluations"
    if explained.interrupted:
        how = f"interrupted: {how} of {explained.budget}"
    return [picture.name + label, described(explained.question.subject), how]


def _write(run: ExplanationRun, done: Sequence[Explained]) -> None:
    flags = run.flags
    if flags.json:
        records = [record for explained in done for record in explained.records()]
        write_atomically(Path(flags.json), as_json(records))
        run.log.event("RECORDS", file=flags.json)
    if flags.save_values:
        save_values(Path(flags.save_values), done)
        run.log.event("VALUES", file=flags.save_values)


def save_values(path: Path, done: Sequence[Explained]) -> None:
    """Save the arrays behind the figures as an .npz file, with a row for each class of each image in turn.

    The arrays are maps (P, H, W) at input size; inputs (P, H, W, 3) uint8; names, models, classes (P,) text;
    targets, probabilities, scores, empty_scores, evaluations (P,); values, standard_errors (P, players), NaN
    at the end if an image has fewer players than others; player_map (H, W), or (P, H, W) if it differs
    between images.

    Raises:
        UserError: the networks take images of different sizes.
        RunFailed: the file cannot be written.
    """
    if len({explained.players.map.shape for explained in done}) > 1:
        raise UserError(f"{path} cannot hold maps of different sizes: ask the networks one by one")
    records = [record for explained in done for record in explained.records()]
    rows = [explained for explained in done for _ in explained.answers]
    maps = [explained.players.map for explained in rows]
    same = all(torch.equal(each, maps[0]) for each in maps)
    arrays: dict[str, Any] = {
        "maps": torch.cat([explained.maps for explained in done]).numpy(),
        "inputs": np.stack([as_bytes(explained.question.picture.pixels) for explained in rows]),
        "names": np.array([record["image"] for record in records]),
        "models": np.array([record["model"] for record in records]),
        "classes": np.array([record["class"] for record in records]),
        "targets": np.array([record["target"] for record in records]),
        "probabilities": np.array([record["probability"] for record in records]),
        "scores": np.array([record["value_full"] for record in records]),
        "empty_scores": np.array([record["value_empty"] for record in records]),
        "evaluations": np.array([record["evaluations"] for record in records]),
        "values": _side_by_side([explained.estimate.values for explained in done]),
        "standard_errors": _side_by_side([explained.estimate.standard_errors for explained in done]),
        "player_map": maps[0].numpy() if same else torch.stack(maps).numpy(),
    }
    with replaced(path) as file:
        np.savez_compressed(file, **arrays)


def _side_by_side(parts: Sequence[Tensor]) -> np.ndarray:
    """Return arrays (T, n) of different widths n stacked vertically, padded with NaN on the right."""
    width = max(part.shape[1] for part in parts)
    padded = [
        np.pad(part.numpy(), ((0, 0), (0, width - part.shape[1])), constant_values=np.nan) for part in parts
    ]
    return np.concatenate(padded)
