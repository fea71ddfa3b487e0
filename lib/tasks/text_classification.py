"""Steps of the script that classifies phrases: build the network, train it, answer, report."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lib import models
from lib.data.phrases import PhraseBatches, PhrasesInOrder, PhraseSwap, RandomWords
from lib.data.text import TextData, TextSplit
from lib.data.tokens import words_never_alone
from lib.evaluation import answers
from lib.evaluation.answers import wilson_interval
from lib.models.phrase_classifiers import Dropout, Ensemble, PhraseClassifier
from lib.runtime import checkpoint, distributed
from lib.runtime.errors import UserError
from lib.runtime.settings import Settings
from lib.tasks.text_data import Reader
from lib.training.objectives import Objective, classification, with_neutral
from lib.training.run import TrainingRun
from lib.training.validation import by_accuracy, by_recency, evaluate

NEUTRAL_WORDS_AN_UPDATE = 64

PhraseNetwork = PhraseClassifier | Ensemble


@dataclass(frozen=True)
class NetworkSettings(Settings):
    """The flags that choose the network and its dropout."""

    model: str
    cell: str
    word_dropout: float
    bigram_dropout: float | None
    embedding_dropout: float
    recurrent_dropout: float
    head_dropout: float


@dataclass(frozen=True)
class LearningSettings(Settings):
    """The flags that say how a classifier of phrases learns, besides those of `fit`."""

    batch_size: int
    max_tokens: int
    label_smoothing: float
    phrase_swap: float
    neutral_words: float
    r_drop: float
    teacher: str | None
    teacher_weight: float
    keep: str
    patience: int | None
    ensemble: int
    limit: int | None


def build(run: TrainingRun, reader: Reader, settings: NetworkSettings) -> PhraseNetwork:
    """Build the network that the flags name, or that of the checkpoint, for the reader's words and classes.

    Raises:
        UserError: `--bigram-dropout` is given for a network without bigrams.
    """
    if settings.model == "plain" and settings.bigram_dropout:
        raise UserError("--bigram-dropout goes with --model lstm alone")
    encoded = reader.vocabulary.encode([reader.vocabulary.words[1:4]])
    model = run.build(
        encoded.phrases(encoded.rows(torch.zeros(1, dtype=torch.long))),
        words=len(reader.vocabulary.words),
        ngrams=len(reader.vocabulary.ngrams),
        classes=len(reader.classes),
    )
    assert isinstance(model, PhraseNetwork)  # the flags and checkpoints of this task name no other
    shares = Dropout(
        word=settings.word_dropout,
        bigram=settings.bigram_dropout or 0.0,
        embedding=settings.embedding_dropout,
        recurrent=settings.recurrent_dropout,
        head=settings.head_dropout,
    )
    model.configure(shares, settings.cell)
    return model


def fit(
    run: TrainingRun,
    data: TextData,
    reader: Reader,
    network: NetworkSettings,
    settings: LearningSettings,
) -> PhraseNetwork:
    """Train the network, or each member of an ensemble, and return it with the weights of `--keep`.

    Raises:
        UserError: `--patience` with `--keep last`, or the initial weights are an ensemble's.
    """
    if run.saved.get("model", {}).get("name") == "ensemble":
        raise UserError("an ensemble is not trained further: --restore-file a checkpoint of one network")
    if settings.patience and settings.keep == "last":
        raise UserError("--patience waits for better weights, and --keep last keeps the latest: --keep best")
    if settings.ensemble == 1:
        model = build(run, reader, network)
        _fit_one(run, model, data, reader, settings)
        return model
    members = run.members(settings.ensemble)
    networks: list[PhraseClassifier] = []
    for member in members:
        member.log_start()
        member_network = build(member, reader, network)
        assert isinstance(member_network, PhraseClassifier)  # an ensemble was refused above
        networks.append(member_network)
        _fit_one(member, member_network, data, reader, settings)
    ensemble = Ensemble(networks)
    run.save_ensemble(ensemble, members, reader.plain())
    return ensemble


def _fit_one(
    run: TrainingRun, model: nn.Module, data: TextData, reader: Reader, settings: LearningSettings
) -> None:
    encoded, labels = reader.encode(data.train, run.device)
    training = PhraseBatches(
        encoded,
        labels,
        batch_size=settings.batch_size,
        max_tokens=settings.max_tokens,
        seed=run.settings.seed,
        swap=PhraseSwap(encoded, labels, settings.phrase_swap) if settings.phrase_swap else None,
    )
    run.fit(
        model,
        _objective(run, data, reader, settings),
        training,
        PhrasesInOrder(*reader.encode(data.valid, run.device)),
        description=reader.plain(),
        score=by_accuracy if settings.keep == "best" else by_recency,
    )


def _objective(run: TrainingRun, data: TextData, reader: Reader, settings: LearningSettings) -> Objective:
    """Return the training objective: labels, predictions of `--teacher`, and `--neutral-words`."""
    objective = classification(
        settings.label_smoothing,
        teacher=_teacher(run, reader, settings.teacher) if settings.teacher else None,
        teacher_weight=settings.teacher_weight,
        r_drop=settings.r_drop,
    )
    if not settings.neutral_words:
        return objective
    if settings.limit:
        raise UserError("--neutral-words takes words without a label for neutral, but --limit drops labels")
    words = words_never_alone(data.train.phrases)
    if not words:
        raise UserError("every word is labelled by itself: leave out --neutral-words")
    encoded = reader.vocabulary.encode(words).to(run.device)
    return with_neutral(objective, RandomWords(encoded, NEUTRAL_WORDS_AN_UPDATE), settings.neutral_words)


def _teacher(run: TrainingRun, reader: Reader, file: str) -> nn.Module:
    saved = checkpoint.load(file, task=run.task)
    if {name: saved.get(name) for name in reader.plain()} != reader.plain():
        raise UserError(f"the teacher {file} reads other words: train it on the same phrases")
    teacher = models.build(saved["model"]["name"], **saved["model"]["config"])
    checkpoint.restore_weights(teacher, saved["state_dict"], file)
    return teacher.to(run.device)


def report(run: TrainingRun, model: nn.Module, data: TextData, reader: Reader) -> None:
    """Log loss and accuracy on each split: `[EVAL]`, and `[TEST]` if there is a test split.

    The accuracies on the validation and test splits come with 95 % confidence intervals.
    """

    def metrics(name: str, split: TextSplit) -> dict[str, float]:
        batches = PhrasesInOrder(*reader.encode(split, run.device))
        found = evaluate(model, classification(), batches, amp=run.settings.amp)
        return {f"{name}_{key}": found[key] for key in ("loss", "accuracy")}

    def unseen(name: str, split: TextSplit) -> dict[str, float]:
        found = metrics(name, split)
        low, high = wilson_interval(found[f"{name}_accuracy"], len(split))
        return found | {f"{name}_accuracy_low": low, f"{name}_accuracy_high": high}

    run.log.event("EVAL", **metrics("Train", data.train), **unseen("Valid", data.valid))
    if data.test:
        run.log.event("TEST", **unseen("Test", data.test))


def answer(
    model: nn.Module,
    reader: Reader,
    phrases: Sequence[tuple[str, ...]],
    device: torch.device,
    amp: bool = False,
) -> answers.Predictions:
    """Return the predictions of `model` for phrases, in their order."""
    return answer_split(model, reader, TextSplit(phrases, None), device, amp)


def answer_split(
    model: nn.Module, reader: Reader, split: TextSplit, device: torch.device, amp: bool = False
) -> answers.Predictions:
    """Return the predictions of `model` for the phrases of a split, in their order, with the labels."""
    batches = PhrasesInOrder(
        *reader.encode(split, device), max_tokens=8192, distributed_over_ranks=False
    )  # 8192 gave the most phrases per second of the sizes tried
    with distributed.autocast(device, amp):
        found = answers.predict(model, batches)
    return answers.Predictions(
        batches.restored(found.probabilities), batches.restored(found.labels), found.loss
    )
