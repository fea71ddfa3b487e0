"""Attributions of the words of a phrase, shown in the terminal, as a figure and as an HTML page."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lib.data.text import words_of
from lib.data.tokens import UNKNOWN
from lib.explain.integrated_gradients import Attributions, integrated_gradients
from lib.explain.targets import class_scores
from lib.figures import style
from lib.figures import text as text_pictures
from lib.models import layers
from lib.runtime import distributed
from lib.runtime.errors import UserError, warn
from lib.runtime.files import writable_folder, write_atomically
from lib.runtime.settings import Settings
from lib.tasks.text_classification import PhraseNetwork
from lib.tasks.text_data import Reader
from lib.training.run import TrainingRun

TOLERANCE = 0.01  # largest completeness gap, as a share of the difference of the log-odds


@dataclass(frozen=True)
class ExplanationSettings(Settings):
    """The flags of `--explain`."""

    explain: str
    out_dir: str
    show: bool


def explain(run: TrainingRun, model: PhraseNetwork, reader: Reader, settings: ExplanationSettings) -> None:
    """Print how much each word of `--explain` adds to a class's score, and draw it as a figure and as a page.

    The class is the last one (positive) of two, whatever the prediction, so that a colour means the same for
    all phrases: red speaks for it, and blue for the other. Of more classes, it is the predicted one.

    Standard output shows the words in colour (only on a terminal), then a line per word and a line of totals.
    Words that are not in the network's vocabulary are marked.
    """
    if not distributed.is_main():
        return
    words = words_of(settings.explain)
    if not words:
        raise UserError(f"there is no word to explain in --explain {settings.explain!r}")
    found = attribute(model, reader, words, run.device)
    path = found.path
    values = path.values.sum(1).tolist()
    name, answer = reader.classes[found.explained], reader.classes[found.predicted]
    unknown = reader.vocabulary.unknown(words)
    explained = [
        text_pictures.Word(*each, is_known=each[0] not in unknown) for each in zip(words, values, strict=True)
    ]
    lines = [text_pictures.coloured_terminal(explained)] if sys.stdout.isatty() else []
    lines.append("word\tattribution\tin_vocabulary")
    lines += [f"{each.text}\t{each.value:+.6f}\t{'yes' if each.is_known else 'no'}" for each in explained]
    lines.append(
        f"prediction={answer} probability={found.probability:.6f} explained={name} "
        f"log_odds={path.score:.6f} baseline_log_odds={path.baseline_score:.6f} sum={sum(values):.6f} "
        f"completeness_gap={path.gap:.2e} steps={path.steps} out_of_vocabulary={len(unknown)}"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    if unknown:
        warn(
            f"{len(unknown)} of {len(words)} words are not in the vocabulary that this network learnt, so it "
            f"knows at most parts of them: {', '.join(dict.fromkeys(unknown))}"
        )
    difference = float(path.score - path.baseline_score)
    if abs(float(path.gap)) > TOLERANCE * abs(difference):
        warn(
            f"{path.steps} steps do not bring the sum within {TOLERANCE:.0%} of the difference of the "
            f"log-odds: it misses {path.gap:.2g} of {difference:.2g}"
        )
    folder = writable_folder(settings.out_dir)
    stem = f"explain-{re.sub(r'[^a-z0-9]+', '-', ' '.join(words))[:40].strip('-') or 'phrase'}"
    against = next((each for each in reader.classes if each != name), "") if len(reader.classes) == 2 else ""
    heading = (
        f"prediction: {answer}, probability {found.probability:.3f}; red speaks for {name}, blue "
        f"{'for ' + against if against else 'against it'}; completeness gap {path.gap:.1e}"
    )
    if unknown:
        heading += f"; {len(unknown)} of {len(words)} words out of vocabulary (dashed)"
    page = folder / f"{stem}.html"
    write_atomically(page, text_pictures.coloured_html(explained, heading).encode())
    figure = text_pictures.attribution_lines(explained, heading, f"log-odds\nof {name}")
    picture = style.save(figure, folder / f"{stem}.png", show=settings.show)
    run.log.event("FIGURE", file=picture, page=page)


class Attributed(NamedTuple):
    """Attributions of the words of a phrase.

    Attributes:
        predicted: the class that the network predicts.
        probability: the probability of that class.
        explained: the class whose log-odds are explained.
        path: the attributions (T, D) to the word vectors.
    """

    predicted: int
    probability: float
    explained: int
    path: Attributions


def attribute(model: PhraseNetwork, reader: Reader, words: Sequence[str], device: torch.device) -> Attributed:
    """Return the integrated gradients of the log-odds of a class with respect to the word vectors.

    The class is the last one of two, or of more the predicted one. The baseline is a phrase of as many
    unknown words, which the network has seen in training because of word dropout; it has never seen zero
    vectors.
    """
    encoded = reader.vocabulary.encode([words, [UNKNOWN] * len(words)]).to(device)
    phrases = encoded.phrases(encoded.rows(torch.arange(2, device=device)))
    with layers.evaluating(model):
        with torch.no_grad():
            vectors, baseline = model.embed(phrases)
            probabilities = model.classify(vectors[None]).softmax(1)[0]
        chosen = int(probabilities.argmax())
        explained = 1 if len(probabilities) == 2 else chosen
        log_odds = class_scores([explained], "log-odds")
        found = integrated_gradients(
            lambda points: log_odds(model.classify(points))[0], vectors, baseline, tolerance=TOLERANCE
        )
    return Attributed(chosen, float(probabilities[chosen]), explained, found)
