"""Attributions of the words of a phrase, shown in the terminal, as a figure and as an HTML page."""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

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
    """Print how much each word of `--explain` adds to the prediction, and draw it as a figure and as a page.

    Standard output shows the words in colour (only on a terminal), then a line per word and a line of totals.
    Words that are not in the network's vocabulary are marked.
    """
    if not distributed.is_main():
        return
    words = words_of(settings.explain)
    if not words:
        raise UserError(f"there is no word to explain in --explain {settings.explain!r}")
    chosen, probability, found = attribute(model, reader, words, run.device)
    values = found.values.sum(1).tolist()
    name = reader.classes[chosen]
    unknown = reader.vocabulary.unknown(words)
    explained = [
        text_pictures.Word(*each, is_known=each[0] not in unknown) for each in zip(words, values, strict=True)
    ]
    lines = [text_pictures.coloured_terminal(explained)] if sys.stdout.isatty() else []
    lines.append("word\tattribution\tin_vocabulary")
    lines += [f"{each.text}\t{each.value:+.6f}\t{'yes' if each.is_known else 'no'}" for each in explained]
    lines.append(
        f"prediction={name} probability={probability:.6f} log_odds={found.score:.6f} "
        f"baseline_log_odds={found.baseline_score:.6f} sum={sum(values):.6f} "
        f"completeness_gap={found.gap:.2e} steps={found.steps} unknown_words={len(unknown)}"
    )
    sys.stdout.write("\n".join(lines) + "\n")
    if unknown:
        warn(
            f"{len(unknown)} of {len(words)} words are not in the vocabulary that this network learnt, so it "
            f"knows at most parts of them: {', '.join(dict.fromkeys(unknown))}"
        )
    difference = float(found.score - found.baseline_score)
    if abs(float(found.gap)) > TOLERANCE * abs(difference):
        warn(
            f"{found.steps} steps do not bring the sum within {TOLERANCE:.0%} of the difference of the "
            f"log-odds: it misses {found.gap:.2g} of {difference:.2g}"
        )
    folder = writable_folder(settings.out_dir)
    stem = f"explain-{re.sub(r'[^a-z0-9]+', '-', ' '.join(words))[:40].strip('-') or 'phrase'}"
    heading = f"{name}, probability {probability:.3f}; completeness gap {found.gap:.1e}"
    if unknown:
        heading += f"; {len(unknown)} of {len(words)} words unknown (dashed)"
    page = folder / f"{stem}.html"
    write_atomically(page, text_pictures.coloured_html(explained, heading).encode())
    figure = text_pictures.attribution_lines(explained, heading, f"log-odds\nof {name}")
    picture = style.save(figure, folder / f"{stem}.png", show=settings.show)
    run.log.event("FIGURE", file=picture, page=page)


def attribute(
    model: PhraseNetwork, reader: Reader, words: Sequence[str], device: torch.device
) -> tuple[int, float, Attributions]:
    """Return the class that `model` predicts, its probability, and its attributions (T, D) to word vectors.

    They are the integrated gradients of the class's log-odds. The baseline is a phrase of as many unknown
    words, which the network has seen in training because of word dropout; it has never seen zero vectors.
    """
    encoded = reader.vocabulary.encode([words, [UNKNOWN] * len(words)]).to(device)
    phrases = encoded.phrases(encoded.rows(torch.arange(2, device=device)))
    with layers.evaluating(model):
        with torch.no_grad():
            vectors, baseline = model.embed(phrases)
            probabilities = model.classify(vectors[None]).softmax(1)[0]
        chosen = int(probabilities.argmax())
        log_odds = class_scores([chosen], "log-odds")
        found = integrated_gradients(
            lambda points: log_odds(model.classify(points))[0], vectors, baseline, tolerance=TOLERANCE
        )
    return chosen, float(probabilities[chosen]), found
