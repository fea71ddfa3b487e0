"""Tables and figures of `--eval-only` for text classifiers: lengths, mistakes, features of layers."""

import math
from collections.abc import Sequence

import torch

from lib.data.phrases import PhrasesInOrder
from lib.data.text import TextData, TextSplit
from lib.data.tokens import Phrases
from lib.evaluation import answers
from lib.evaluation.answers import wilson_interval
from lib.evaluation.features import layer_features
from lib.evaluation.projector import write_projector
from lib.models import layers
from lib.runtime import distributed
from lib.runtime.errors import UserError
from lib.tasks import inspection
from lib.tasks.inspection import ViewSettings
from lib.tasks.text_classification import PhraseNetwork, answer_split, report
from lib.tasks.text_data import Reader
from lib.training.run import TrainingRun

# Upper ends, in words, of the ranges of lengths whose accuracies are logged.
LENGTHS = (5, 10, 15, 20, 25, 30)
MISTAKES = 12


def look_inside(
    run: TrainingRun, model: PhraseNetwork, data: TextData, reader: Reader, settings: ViewSettings
) -> None:
    """Log metrics and tables of classes, lengths and mistakes; draw the confusion matrix and the features.

    Raises:
        UserError: no such layer, a layer without a vector per phrase, too few samples for the perplexity, or
            a folder that cannot be written; all are checked before anything is computed.
    """
    sample = _sample(run, settings, model, data.valid, reader)
    inspection.make_folders(settings)
    report(run, model, data, reader)
    if not distributed.is_main():
        return
    predictions = answer_split(model, reader, data.valid, run.device, run.settings.amp)
    inspection.show_answers(run, settings, predictions, reader.classes)
    _log_lengths(run, data.valid, predictions)
    _log_mistakes(run, data.valid, predictions, reader.classes)
    _embed(run, settings, model, sample, reader)


def _sample(
    run: TrainingRun, settings: ViewSettings, model: PhraseNetwork, split: TextSplit, reader: Reader
) -> TextSplit:
    """Return the phrases to embed, shortest first, after checking that the layers output one vector each."""
    sample = split.rows(inspection.sample(settings, torch.tensor(split.labels)).tolist())
    sample = sample.rows(sorted(range(len(sample)), key=lambda row: len(sample.phrases[row])))
    phrases = _batches(run, sample, reader)[-1]
    modules = layers.resolve(model, settings.layers or model.stages)
    with layers.evaluating(model), layers.record(modules) as outputs, torch.no_grad():
        model(phrases)
    for name, output in outputs.items():
        if output.ndim != 2 or len(output) != len(phrases):
            raise UserError(
                f"layer {name} puts out no vector a phrase; choose from {', '.join(model.stages)}"
            )
    return sample


def _batches(run: TrainingRun, split: TextSplit, reader: Reader) -> list[Phrases]:
    batches = PhrasesInOrder(*reader.encode(split, run.device), distributed_over_ranks=False)
    return [phrases for phrases, _ in batches]


def _log_lengths(run: TrainingRun, split: TextSplit, predictions: answers.Predictions) -> None:
    lengths = torch.tensor([len(phrase) for phrase in split.phrases])
    right = predictions.classes == predictions.labels
    for low, high in zip((0, *LENGTHS), (*LENGTHS, math.inf), strict=True):
        here = right[(lengths > low) & (lengths <= high)]
        if len(here):
            words = f"{low + 1}-{high}" if high < math.inf else f"{low + 1}+"
            accuracy = float(here.double().mean())
            ends = dict(
                zip(("accuracy_low", "accuracy_high"), wilson_interval(accuracy, len(here)), strict=True)
            )
            run.log.event("LENGTH", words=words, examples=len(here), accuracy=accuracy, **ends)


def _log_mistakes(
    run: TrainingRun, split: TextSplit, predictions: answers.Predictions, classes: Sequence[str]
) -> None:
    for row in answers.most_confident_mistakes(predictions, MISTAKES).tolist():
        chosen = int(predictions.classes[row])
        run.log.event(
            "MISTAKE",
            label=classes[int(predictions.labels[row])],
            prediction=classes[chosen],
            probability=float(predictions.probabilities[row, chosen]),
            sentence=" ".join(split.phrases[row]),
        )


def _embed(
    run: TrainingRun, settings: ViewSettings, model: PhraseNetwork, sample: TextSplit, reader: Reader
) -> None:
    batches = _batches(run, sample, reader)
    with distributed.autocast(run.device, run.settings.amp):
        features = layer_features(model, settings.layers or model.stages, batches, "flatten")
    inspection.show_features(run, settings, features, torch.tensor(sample.labels), reader.classes)
    if settings.projector:
        assert sample.labels is not None  # the validation split is always labelled
        facts = zip(sample.labels, sample.phrases, strict=True)
        names = [f"{reader.classes[label]}: {' '.join(phrase)}" for label, phrase in facts]
        write_projector(settings.projector, features, names)
        run.log.event("PROJECTOR", folder=settings.projector)
