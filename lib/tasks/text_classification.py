"""Steps of the script that classifies phrases: build the reader and the network, train, evaluate, predict."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lib import models
from lib.data import text
from lib.data.phrases import PhraseBatches, PhrasesInOrder, PhraseSwap, Words
from lib.data.text import Split, TextData
from lib.data.tokens import Encoded, Vocabulary, words_never_alone
from lib.evaluation import views
from lib.models.recurrent import Dropout, Ensemble, PhraseClassifier
from lib.runtime import checkpoint, distributed
from lib.runtime.errors import UserError
from lib.training.objectives import Objective, classification, with_neutral
from lib.training.session import Session
from lib.training.validation import by_accuracy, by_recency, evaluate

NEUTRAL_WORDS_AN_UPDATE = 64

PhraseNetwork = PhraseClassifier | Ensemble

# Flags that the plain network does not have, with the only values that suit it.
PLAIN = {"depth": 1, "bidirectional": False, "pooling": "last", "bigrams": 0, "bigram_dropout": 0.0}


@dataclass(frozen=True)
class Reader:
    """The vocabulary and the class names of a network, as its checkpoint stores them."""

    vocabulary: Vocabulary
    classes: tuple[str, ...]

    @classmethod
    def of(cls, run: Session, data: TextData | None = None) -> "Reader":
        """Return the reader of the run's checkpoint, or else one made from the training split of `data`.

        Raises:
            UserError: there is neither, or their classes differ.
        """
        if "vocabulary" in run.saved:
            reader = cls(Vocabulary(**run.saved["vocabulary"]), tuple(run.saved["classes"]))
        elif data:
            sizes = tuple(map(int, run.flags.ngrams))
            reader = cls(Vocabulary.of(data.train.phrases, sizes), data.classes)
        else:
            raise UserError(
                f"{run.flags.restore_file} holds weights alone: which words they read is not known"
            )
        if data and data.classes != reader.classes:
            raise UserError(f"the checkpoint tells {reader.classes} apart, the data {data.classes}")
        return reader

    def plain(self) -> dict[str, Any]:
        return {"vocabulary": self.vocabulary.plain(), "classes": list(self.classes)}

    def encode(self, split: Split, device: torch.device) -> tuple[Encoded, Tensor]:
        labels = torch.tensor(split.labels if split.labels is not None else [0] * len(split))
        return self.vocabulary.encode(split.phrases).to(device), labels.to(device)


def build(run: Session, reader: Reader) -> PhraseNetwork:
    """Build the network of the run's flags, or of its checkpoint, for the reader's words and classes.

    Raises:
        UserError: a flag was given that the network does not have.
    """
    flags = run.flags
    config: dict[str, Any] = {
        "words": len(reader.vocabulary.words),
        "ngrams": len(reader.vocabulary.ngrams),
        "classes": len(reader.classes),
        "embedding": flags.embedding_size,
        "hidden": flags.hidden_size,
    }
    if flags.model == "lstm":
        config |= {"depth": flags.depth, "bidirectional": flags.bidirectional, "pool": flags.pooling}
        config["bigrams"] = flags.bigrams
    for name, only in PLAIN.items() if flags.model == "plain" else ():
        if getattr(flags, name) != only:
            raise UserError(f"--{name.replace('_', '-')} goes with --model lstm alone")
    encoded = reader.vocabulary.encode([reader.vocabulary.words[1:4]])
    model = run.build(encoded.phrases(encoded.rows(torch.zeros(1, dtype=torch.long))), **config)
    assert isinstance(model, PhraseNetwork)  # the flags and checkpoints of this task name no other
    shares = Dropout(
        word=flags.word_dropout,
        bigram=flags.bigram_dropout,
        embedding=flags.embedding_dropout,
        recurrent=flags.recurrent_dropout,
        head=flags.head_dropout,
    )
    model.configure(shares, flags.cell)
    return model


def fit(run: Session, data: TextData, reader: Reader) -> PhraseNetwork:
    """Train the network, or each member of an ensemble, and return it with the weights of `--keep`.

    Raises:
        UserError: `--patience` with `--keep last`, or the initial weights are an ensemble's.
    """
    if run.saved.get("model", {}).get("name") == "ensemble":
        raise UserError("an ensemble is not trained further: --restore-file a checkpoint of one network")
    if run.flags.patience and run.flags.keep == "last":
        raise UserError("--patience waits for better weights, and --keep last keeps the latest: --keep best")
    if run.flags.ensemble == 1:
        model = build(run, reader)
        _fit_one(run, model, data, reader)
        return model
    members = run.members(run.flags.ensemble)
    networks: list[PhraseClassifier] = []
    for member in members:
        member.log_start()
        network = build(member, reader)
        assert isinstance(network, PhraseClassifier)  # an ensemble was refused above
        networks.append(network)
        _fit_one(member, network, data, reader)
    ensemble = Ensemble(networks)
    run.save_ensemble(ensemble, members, reader.plain())
    return ensemble


def _fit_one(run: Session, model: nn.Module, data: TextData, reader: Reader) -> None:
    flags = run.flags
    encoded, labels = reader.encode(data.train, run.device)
    training = PhraseBatches(
        encoded,
        labels,
        batch_size=flags.batch_size,
        max_tokens=flags.max_tokens,
        seed=flags.seed,
        swap=PhraseSwap(encoded, labels, flags.phrase_swap) if flags.phrase_swap else None,
    )
    run.fit(
        model,
        _objective(run, data, reader),
        training,
        PhrasesInOrder(*reader.encode(data.valid, run.device)),
        description=reader.plain(),
        score=by_accuracy if flags.keep == "best" else by_recency,
    )


def _objective(run: Session, data: TextData, reader: Reader) -> Objective:
    """Return the training objective: labels, predictions of `--teacher`, and `--neutral-words`."""
    flags = run.flags
    objective = classification(
        flags.label_smoothing,
        teacher=_teacher(run, reader) if flags.teacher else None,
        teacher_weight=flags.teacher_weight,
        r_drop=flags.r_drop,
    )
    if not flags.neutral_words:
        return objective
    if flags.limit:
        raise UserError("--neutral-words takes words without a label for neutral, but --limit drops labels")
    words = words_never_alone(data.train.phrases)
    if not words:
        raise UserError("every word is labelled by itself: leave out --neutral-words")
    encoded = reader.vocabulary.encode(words).to(run.device)
    return with_neutral(objective, Words(encoded, NEUTRAL_WORDS_AN_UPDATE), flags.neutral_words)


def _teacher(run: Session, reader: Reader) -> nn.Module:
    flags = run.flags
    saved = checkpoint.load(flags.teacher, task=run.task)
    if {name: saved.get(name) for name in reader.plain()} != reader.plain():
        raise UserError(f"the teacher {flags.teacher} reads other words: train it on the same phrases")
    teacher = models.build(saved["model"]["name"], **saved["model"]["config"])
    checkpoint.restore_weights(teacher, saved["state_dict"], flags.teacher)
    return teacher.to(run.device)


def describe(run: Session, data: TextData) -> None:
    """Log the size of each split, and its numbers of duplicate and of contradictory phrases."""
    for name in ("train", "valid", "test"):
        split = getattr(data, name)
        if split:
            run.log.event("DATA", split=name, **text.statistics(split))


def report(run: Session, model: nn.Module, data: TextData, reader: Reader) -> None:
    """Log loss and accuracy on each split: `[EVAL]`, and `[TEST]` if there is a test split.

    The accuracies on the validation and test splits come with 95 % confidence intervals.
    """

    def metrics(name: str, split: Split) -> dict[str, float]:
        batches = PhrasesInOrder(*reader.encode(split, run.device))
        found = evaluate(model, classification(), batches, amp=run.flags.amp)
        return {f"{name}_{key}": found[key] for key in ("loss", "accuracy")}

    def unseen(name: str, split: Split) -> dict[str, float]:
        found = metrics(name, split)
        low, high = interval(found[f"{name}_accuracy"], len(split))
        return found | {f"{name}_accuracy_low": low, f"{name}_accuracy_high": high}

    run.log.event("EVAL", **metrics("Train", data.train), **unseen("Valid", data.valid))
    if data.test:
        run.log.event("TEST", **unseen("Test", data.test))


def interval(share: float, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's 95 % confidence interval for a share of `count` examples (Wilson 1927).

    Args:
        share: observed share.
        count: number of examples.
        z: quantile of the normal distribution; the default gives 95 %.
    """
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    reach = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return centre - reach, centre + reach


def answer(
    model: nn.Module,
    reader: Reader,
    phrases: Sequence[tuple[str, ...]],
    device: torch.device,
    amp: bool = False,
) -> views.Predictions:
    """Return the predictions of `model` for phrases, in their order."""
    return answer_split(model, reader, Split(phrases, None), device, amp)


def answer_split(
    model: nn.Module, reader: Reader, split: Split, device: torch.device, amp: bool = False
) -> views.Predictions:
    """Return the predictions of `model` for the phrases of a split, in their order, with the labels."""
    batches = PhrasesInOrder(
        *reader.encode(split, device), max_tokens=8192, distributed_over_ranks=False
    )  # 8192 gave the most phrases per second of the sizes tried
    with distributed.autocast(device, amp):
        found = views.predict(model, batches)
    return views.Predictions(
        batches.restored(found.probabilities), batches.restored(found.labels), found.loss
    )


def load(flags) -> TextData:
    """Load the data that the flags name; see `lib.data.text.load`."""
    files = {"train": flags.train_file, "valid": flags.valid_file, "test": flags.test_file}
    return text.load(flags.dataset, flags.data_dir, files, holdout=flags.holdout, limit=flags.limit)
