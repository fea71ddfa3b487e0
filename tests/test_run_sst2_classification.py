"""The sentiment script from end to end: train, log, restore, evaluate, predict, explain, resume, refuse."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import kill_and_resume as killing
import pytest
import torch
from conftest import ROOT, Ended, call
from test_distributed import torchrun

from lib import checkpoint, models, text_classification, text_explanation, text_prediction, text_views
from lib.data.text import words_of
from lib.data.tokens import Vocabulary, words_never_alone
from lib.models.recurrent import BIGRAM_SIZE
from lib.text_classification import Reader

SCRIPT = "run-sst2-classification.py"
TINY = ("--dataset", "tiny")
SMALL = (*TINY, "--embedding-size", "16", "--hidden-size", "16")
BRIEF = (*SMALL, "--max-epoch", "1")


@pytest.fixture
def sentiment(tmp_path) -> Callable[..., Ended]:
    """Call the script with some flags in this process, in a folder of its own."""
    return lambda *flags, folder=tmp_path: call(SCRIPT, *flags, folder=folder)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory) -> tuple[Path, Ended]:
    """A run on the tiny data set: its best checkpoint, and how it ended. Not to be written to."""
    folder = tmp_path_factory.mktemp("learnt")
    ended = call(SCRIPT, *TINY, "--max-epoch", "15", folder=folder)
    assert ended.status == 0, ended.stderr
    return folder / "ckpts" / "lstm" / checkpoint.BEST, ended


@pytest.fixture
def best(learnt) -> Path:
    return learnt[0]


def typed_in(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def table(tsv: str) -> list[dict[str, str]]:
    header, *rows = (line.split("\t") for line in tsv.splitlines())
    return [dict(zip(header, row, strict=True)) for row in rows]


# Train, restore, evaluate


def test_the_tiny_data_set_is_learnt_in_seconds(learnt):
    run = learnt[1].run()
    assert learnt[1].stderr == ""
    assert run.events["EVAL"][0]["Valid_accuracy"] > 0.8
    assert run.events["EVAL"][0]["Valid_accuracy_low"] < run.events["EVAL"][0]["Valid_accuracy"]
    assert [event["split"] for event in run.events["DATA"]] == ["train", "valid"]
    assert run.events["DATA"][0]["contradictory"] == 0
    assert run.events["DONE"][0]["Seconds"] < 60


def test_without_a_hold_out_the_last_weights_are_kept(learnt):
    run = learnt[1].run()
    assert run.events["BEST"][0]["Epoch"] == 14
    assert run.fields["keep"] == "last"


def test_a_checkpoint_restored_with_no_other_flag_has_the_numbers_of_its_run(
    learnt, best, sentiment, tmp_path
):
    done = sentiment("--eval-only", "--restore-file", best)
    assert done.status == 0, done.stderr
    events = done.run().events
    saved = learnt[1].run().events["EVAL"][0]
    assert events["EVAL"][0] == pytest.approx(saved, abs=1e-4)
    assert sum(event["examples"] for event in events["LENGTH"]) == 64
    mistakes = round((1 - saved["Valid_accuracy"]) * 64)
    assert len(events.get("MISTAKE", [])) == min(mistakes, text_views.MISTAKES)
    assert all(event["label"] != event["prediction"] for event in events.get("MISTAKE", []))
    assert [event["layer"] for event in events["FEATURE"]] == ["pool", "head"]
    assert {path.name for path in (tmp_path / "imgs").iterdir()} == {"confusion-tiny.png", "feature-tiny.png"}


def test_sentences_held_out_choose_the_weights_and_the_official_split_is_tested_once(sentiment):
    done = sentiment(*BRIEF, "--holdout", 0.2)
    run = done.run()
    assert run.fields["keep"] == "best"
    assert "Test_accuracy_high" in run.events["TEST"][0]
    assert [event["split"] for event in run.events["DATA"]] == ["train", "valid", "test"]


def test_every_network_trains_and_restores(sentiment, tmp_path):
    variants = {
        "plain": ("--model", "plain"),
        "deep": ("--depth", 2, "--pool", "attention", "--no-bidirectional"),
        "words": ("--ngrams", "none", "--pool", "last"),
        "everything": ("--amp", "--ema", 0.9, "--patience", 1, "--limit", 100, "--label-smoothing", 0.1),
    }
    for name, flags in variants.items():
        done = sentiment(*BRIEF, *flags, "--checkpoint-dir", name)
        assert done.status == 0, done.stderr
        restored = sentiment("--eval-only", "--restore-file", tmp_path / name / checkpoint.BEST)
        found, saved = (ended.run().events["EVAL"][0] for ended in (restored, done))
        assert found == pytest.approx(saved, abs=1e-4), name


def test_a_checkpoint_of_one_cell_has_the_same_numbers_with_the_other(best, sentiment):
    ended = [
        sentiment("--eval-only", "--restore-file", best, "--cell", cell) for cell in ("fused", "reference")
    ]
    fused, reference = (each.run().events["EVAL"][0] for each in ended)
    assert fused == pytest.approx(reference, abs=1e-5)


def test_files_of_ones_own_bring_their_own_classes(sentiment, tmp_path):
    lines = [
        f'{{"text": "{word} day", "label": "{mood}"}}' for word, mood in zip("abcd", "xyzx", strict=True)
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    (tmp_path / "valid.csv").write_text('label,sentence\nx,"a, day"\n')
    files = ("--train-file", "train.jsonl", "--valid-file", "valid.csv")
    done = sentiment(*BRIEF, *files)
    assert done.status == 0, done.stderr
    saved = checkpoint.load(tmp_path / "ckpts" / "lstm" / checkpoint.BEST)
    assert saved["classes"] == ["x", "y", "z"]


def test_an_ensemble_is_one_checkpoint_and_goes_on_after_a_stop(sentiment, tmp_path):
    flags = (*SMALL, "--max-epoch", 2, "--ensemble", 2)
    done = sentiment(*flags)
    assert done.status == 0, done.stderr
    folder = tmp_path / "ckpts" / "lstm"
    whole = checkpoint.load(folder / checkpoint.BEST)
    assert whole["model"]["name"] == "ensemble"
    (folder / checkpoint.BEST).unlink()
    (folder / "member-1" / checkpoint.LAST).unlink()
    resumed = sentiment("--resume")
    assert resumed.status == 0, resumed.stderr
    again = checkpoint.load(folder / checkpoint.BEST)
    assert killing.same(again["state_dict"], whole["state_dict"])
    seeds = [checkpoint.load(folder / f"member-{n}" / checkpoint.BEST)["flags"]["seed"] for n in range(2)]
    assert seeds == [42, 43]
    answered = sentiment("--predict-only", "--restore-file", folder / checkpoint.BEST, "--input", "good film")
    assert len(table(answered.stdout)) == 1
    explained = sentiment("--explain", "good film", "--restore-file", folder / checkpoint.BEST)
    assert explained.status == 0, explained.stderr
    for members in (1, 2):
        refused = sentiment(*TINY, "--restore-file", folder / checkpoint.BEST, "--ensemble", members)
        assert "not trained further" in refused.stderr


def test_the_networks_of_an_ensemble_begin_with_the_weights_they_are_given(best, sentiment, tmp_path):
    brief = ("--max-update", 1, "-lr", 1e-9, "--ensemble", 2, "--checkpoint-dir", "two")
    done = sentiment(*TINY, "--restore-file", best, *brief)
    assert done.status == 0, done.stderr
    given = checkpoint.load(best)["state_dict"]
    for number in range(2):
        found = checkpoint.load(tmp_path / "two" / f"member-{number}" / checkpoint.LAST)["state_dict"]
        for name, value in given.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


def test_an_ensemble_is_not_gone_on_with_as_the_single_run_that_was_in_its_folder(sentiment, tmp_path):
    assert sentiment(*BRIEF).status == 0
    assert sentiment(*BRIEF, "--max-update", 2, "--ensemble", 2, "--seed", 7).status == 0
    resumed = sentiment("--resume", "--max-update", 4)
    assert resumed.status == 0, resumed.stderr
    saved = checkpoint.load(tmp_path / "ckpts" / "lstm" / checkpoint.BEST)
    assert (saved["model"]["config"]["members"], saved["flags"]["seed"]) == (2, 7)


def test_words_that_are_never_labelled_alone_become_neutral_where_that_is_asked_for(sentiment, tmp_path):
    shown = ["a fine film", "fine", "a dull film", "dull"]
    (tmp_path / "mine.tsv").write_text(
        "sentence\tlabel\n" + "".join(f"{text}\t{int('fine' in text)}\n" for text in shown)
    )
    assert words_never_alone([words_of(each) for each in shown]) == [("a",), ("film",)]
    files = ("--train-file", "mine.tsv", "--valid-file", "mine.tsv", "--max-epoch", 60, "-bs", 4)
    certainty = {}
    for name, flags in {"neutral": ("--neutral-words", 2.0), "plain": ()}.items():
        done = sentiment(*files, "--bigrams", 0, "--checkpoint-dir", name, "--keep", "last", *flags)
        assert done.status == 0, done.stderr
        (tmp_path / "words.txt").write_text("a\nfilm\nfine\ndull\n")
        best = tmp_path / name / checkpoint.BEST
        answers = table(sentiment("--predict-only", "--restore-file", best, "--input", "words.txt").stdout)
        certainty[name] = [float(row["probability"]) for row in answers]
    assert max(certainty["neutral"][:2]) < 0.6 < min(certainty["neutral"][2:])
    assert max(certainty["plain"][:2]) > max(certainty["neutral"][:2])


# Stop and go on


def test_a_teacher_is_learnt_from_and_stays_as_it_was(best, sentiment, tmp_path):
    before = checkpoint.load(best)["state_dict"]

    def numbers(name: str, *flags) -> dict[str, float]:
        done = sentiment(*TINY, "--max-epoch", 2, "--seed", 7, "--checkpoint-dir", name, *flags)
        assert done.status == 0, done.stderr
        return done.run().events["EVAL"][0]

    alone = numbers("alone")
    assert numbers("ignored", "--teacher", best, "--teacher-weight", 0) == alone
    heard = numbers("heard", "--teacher", best, "--teacher-weight", 1)
    assert heard["Valid_loss"] < alone["Valid_loss"]
    assert all(torch.equal(before[name], now) for name, now in checkpoint.load(best)["state_dict"].items())
    # Restoring the student takes no teacher.
    done = sentiment("--eval-only", "--restore-file", tmp_path / "heard" / checkpoint.BEST)
    assert done.run().events["EVAL"][0] == pytest.approx(heard, abs=1e-4)


def test_a_run_killed_at_any_instant_and_resumed_ends_at_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(killing, "SCRIPT", ROOT / SCRIPT)
    flags = (*SMALL, "--max-epoch", "6", "--validate-interval-updates", "3")
    trials = killing.kill_and_resume(1, flags, tmp_path)
    assert all(trial.equal for trial in trials), trials


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line_and_status_1(sentiment):
    done = sentiment(*BRIEF, "-lr", "1e30", "--optimizer", "sgd", "--clip-norm", "1e30")
    assert done.status == 1
    assert done.is_one_line_error()


def test_two_ranks_train_as_one_run_with_one_log_and_one_checkpoint(tmp_path):
    done = torchrun(SCRIPT, *BRIEF, folder=tmp_path)
    assert done.status == 0, done.stderr
    run = done.run()
    assert len(run.events["VALID"]) == len(run.events["DONE"]) == 1
    # Of 64 phrases none came twice.
    assert (run.events["VALID"][0]["Valid_accuracy"] * 64).is_integer()
    assert checkpoint.load(tmp_path / "ckpts" / "lstm" / checkpoint.LAST)["update"] > 0


def test_a_rank_without_an_example_to_validate_on_is_said_in_one_line(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "good\t1\nbad\t0\n" * 8)
    (tmp_path / "valid.tsv").write_text("sentence\tlabel\ngood\t1\n")
    files = ("--train-file", "train.tsv", "--valid-file", "valid.tsv")
    done = torchrun(SCRIPT, *files, *BRIEF[2:], folder=tmp_path)
    assert done.status != 0
    assert "error: each of 2 ranks needs an example to be evaluated on" in done.stderr
    assert "Connection closed" not in done.stderr


# Predict


def test_answers_come_in_the_order_of_the_questions(best, sentiment, monkeypatch):
    lines = [
        "a long walk , and a very warm and funny film it was",
        "awful",
        "",
        "Wonderful, I loved it!",
        "awful",
    ]
    typed_in(monkeypatch, "\n".join(lines).encode())
    done = sentiment("--predict-only", "--restore-file", best, "--input", "-")
    rows = table(done.stdout)
    assert [row["sentence"] for row in rows] == lines
    assert rows[1] == rows[4]
    assert [row["prediction"] for row in rows[:2]] == ["positive", "negative"]
    for row in rows:
        assert float(row["negative"]) + float(row["positive"]) == pytest.approx(1, abs=2e-6)
        assert row["probability"] == row[row["prediction"]]


def test_raw_text_and_text_split_as_the_corpus_get_the_same_answer(best, sentiment):
    pair = ("It's great, don't miss it!", "it 's great , do n't miss it !")
    raw, split = (
        sentiment("--predict-only", "--restore-file", best, "--input", text).stdout for text in pair
    )
    assert table(raw)[0]["positive"] == table(split)[0]["positive"]


def test_an_answer_does_not_depend_on_the_chunk_it_came_in(best, sentiment, monkeypatch):
    lines = "\n".join(["a warm film", "bad", "dull and cold from start to end", "lovely day"] * 5).encode()
    answers = []
    for rows in (10_000, 3):
        monkeypatch.setattr(text_prediction, "CHUNK_ROWS", rows)
        typed_in(monkeypatch, lines)
        answers.append(sentiment("--predict-only", "--restore-file", best, "--input", "-").stdout)
    for a, b in zip(*map(table, answers), strict=True):
        assert a["sentence"] == b["sentence"]
        assert float(a["positive"]) == pytest.approx(float(b["positive"]), abs=2e-6)


def test_bytes_that_are_not_utf_8_are_answered_too(best, sentiment, monkeypatch):
    typed_in(monkeypatch, b"good \xff\xfe film\n\0\n")
    done = sentiment("--predict-only", "--restore-file", best, "--input", "-", "--format", "jsonl")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["prediction"] in record["probabilities"] for record in records] == [True, True]


def test_without_input_the_validation_split_is_answered_with_its_labels(learnt, best, sentiment, tmp_path):
    done = sentiment("--predict-only", "--restore-file", best, "--out-file", "answers/valid.tsv")
    assert done.status == 0, done.stderr
    rows = table((tmp_path / "answers" / "valid.tsv").read_text())
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / len(rows) == learnt[1].run().events["EVAL"][0]["Valid_accuracy"]


def test_rows_without_a_label_among_those_with_one_leave_its_column_empty(
    best, sentiment, tmp_path, monkeypatch
):
    monkeypatch.setattr(text_prediction, "CHUNK_ROWS", 2)
    labels = ("positive", None, None, "nega\ttive")
    rows = [
        {"sentence": f"film {number}"} | ({"label": label} if label else {})
        for number, label in enumerate(labels)
    ]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = sentiment("--predict-only", "--restore-file", best, "--input", "in.jsonl")
    assert done.status == 0, done.stderr
    assert [row["label"] for row in table(done.stdout)] == ["positive", "", "", "nega tive"]


def test_a_phrase_may_be_longer_than_any_name_of_a_file(best, sentiment):
    phrase = "фильм " * 200
    done = sentiment("--predict-only", "--restore-file", best, "--input", phrase)
    assert (done.status, len(done.stdout.splitlines())) == (0, 2), done.stderr


def test_a_submission_to_glue_has_a_number_a_phrase(best, sentiment, tmp_path):
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\ta lovely film\n1\ta dreadful film\n")
    done = sentiment("--predict-only", "--restore-file", best, "--glue", "--test-file", "test.tsv")
    assert done.stdout == "index\tprediction\n0\t1\n1\t0\n"


def test_a_file_that_breaks_off_leaves_no_half_of_its_answers(best, sentiment, tmp_path):
    (tmp_path / "in.tsv").write_text("sentence\tlabel\ngood\t1\nbad\n")
    done = sentiment("--predict-only", "--restore-file", best, "--input", "in.tsv", "--out-file", "out.tsv")
    assert done.status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in.tsv"]


# Explain


def test_what_the_words_add_makes_up_the_answer_and_the_network_stays_as_it_was(best):
    saved = checkpoint.load(best)
    model = models.build(saved["model"]["name"], **saved["model"]["config"]).train()
    model.load_state_dict(saved["state_dict"])
    reader = Reader(Vocabulary(**saved["vocabulary"]), tuple(saved["classes"]))
    words = words_of("a warm and funny film, but badly made!")
    chosen, probability, found = text_explanation.attribute(model, reader, words, torch.device("cpu"))
    assert found.values.shape == (len(words), 128 + BIGRAM_SIZE)
    assert abs(found.gap) <= 0.01 * abs(found.score - found.baseline_score)
    assert torch.tensor(found.score).sigmoid().item() == pytest.approx(probability, abs=1e-5)
    answer = text_classification.answer(model, reader, [words], torch.device("cpu"))
    assert answer.probabilities[0, chosen].item() == pytest.approx(probability, abs=1e-5)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_explanation_is_numbers_a_picture_and_a_page(best, sentiment, tmp_path):
    done = sentiment("--explain", "I <b>loved</b> it & the film", "--restore-file", best)
    assert done.status == 0, done.stderr
    *words, totals = done.stdout.splitlines()
    rows = table("\n".join(words))
    named = dict(pair.split("=") for pair in totals.split())
    assert sum(float(row["attribution"]) for row in rows) == pytest.approx(float(named["sum"]), abs=1e-4)
    gap = float(named["sum"]) - (float(named["log_odds"]) - float(named["unknown_words"]))
    assert gap == pytest.approx(float(named["completeness_gap"]), abs=1e-4)
    files = {path.suffix: path for path in (tmp_path / "imgs").iterdir()}
    assert set(files) == {".png", ".html"}
    assert "<b>" not in files[".html"].read_text().split("<body")[1].split("</body>")[0].replace("<body", "")
    assert "&lt;" in files[".html"].read_text()


# Bad input: one line, exit 2, nothing left behind


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, learnt) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    whole = learnt[0].read_bytes()
    (folder / "short.pt").write_bytes(whole[: len(whole) // 2])
    content = checkpoint.load(learnt[0])
    checkpoint.save(folder / "task.pt", content | {"task": "image-classification"})
    torch.save(content["state_dict"], folder / "bare.pt")
    (folder / "words.tsv").write_text("words\ngood\n")
    (folder / "three.tsv").write_text("sentence\tlabel\na\tx\nb\ty\nc\tz\n")
    return folder


RESTORED = ("--restore-file", "{best}")
BAD_INPUT = {
    "unknown data set": ("--dataset", "imdb"),
    "unknown model": ("--model", "transformer"),
    "unknown pooling": (*BRIEF, "--pool", "median"),
    "ngrams of 9": (*BRIEF, "--ngrams", "3,9"),
    "dropout of everything": (*BRIEF, "--word-dropout", 1),
    "hold-out of everything": (*BRIEF, "--holdout", 1),
    "n-grams for the plain network": (*BRIEF, "--model", "plain", "--ngrams", "3"),
    "no training file": (*BRIEF, "--valid-file", "{bad}/three.tsv"),
    "nothing to validate on": (*BRIEF, "--train-file", "{bad}/three.tsv"),
    "training file that is missing": (*BRIEF, "--train-file", "{bad}/none.tsv", "--holdout", 0.5),
    "another pooling than the file's": ("--eval-only", *RESTORED, "--pool", "last"),
    "other classes than the file's": (
        *("--eval-only", *RESTORED),
        *("--train-file", "{bad}/three.tsv", "--valid-file", "{bad}/three.tsv"),
    ),
    "nothing to explain with": ("--explain", "a film"),
    "nothing to explain": ("--explain", " ", *RESTORED),
    "explain what an unset variable holds": ("--explain", "", *RESTORED),
    "predict what an unset variable holds": ("--predict-only", *RESTORED, "--input", ""),
    "submission of a training run": (*BRIEF, "--glue"),
    "format of a training run": (*BRIEF, "--format", "jsonl"),
    "weight of no teacher": (*BRIEF, "--teacher-weight", 0.3),
    "both directions of the plain network": (*BRIEF, "--model", "plain", "--bidirectional"),
    "layers of the plain network": (*BRIEF, "--model", "plain", "--depth", 2),
    "pairs of words for the plain network": (*BRIEF, "--model", "plain", "--bigrams", 64),
    "an optimizer of kernels": (*BRIEF, "--optimizer", "muon"),
    "a name too long": (*BRIEF, "--train-file", "x" * 300, "--valid-file", "{bad}/three.tsv"),
    "explain and predict": ("--explain", "a film", "--predict-only", *RESTORED),
    "input that is missing": ("--predict-only", *RESTORED, "--input", "none.tsv"),
    "input without sentences": ("--predict-only", *RESTORED, "--input", "{bad}/words.tsv"),
    "no test split": ("--predict-only", *RESTORED, "--glue"),
    "answers into a folder": ("--predict-only", *RESTORED, "--out-file", "{bad}"),
    "layer that is not there": ("--eval-only", *RESTORED, "--layers", "fc2"),
    "layer with a vector a word": ("--eval-only", *RESTORED, "--layers", "recurrent.0"),
    "perplexity of all samples": ("--eval-only", *RESTORED, "--perplexity", 64),
    "checkpoint cut short": ("--eval-only", "--restore-file", "{bad}/short.pt"),
    "checkpoint of another task": ("--eval-only", "--restore-file", "{bad}/task.pt"),
    "neutral words of a part": (*BRIEF, "--limit", 40, "--neutral-words", 0.3),
    "neutral words where all are labelled": (
        *("--train-file", "{bad}/three.tsv", "--valid-file", "{bad}/three.tsv"),
        *("--neutral-words", 0.3),
    ),
    "teacher that reads other words": (*BRIEF, "--limit", 40, "--teacher", "{best}"),
    "teacher cut short": (*BRIEF, "--teacher", "{bad}/short.pt"),
    "weights without words": ("--predict-only", "--restore-file", "{bad}/bare.pt", "--input", "good"),
}


@pytest.mark.parametrize("flags", BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_line_and_exit_2_and_leaves_nothing_behind(
    sentiment, flags, bad_files, best, tmp_path
):
    done = sentiment(*(str(flag).format(bad=bad_files, best=best) for flag in flags))
    assert done.status == 2, done
    errors = [line for line in done.stderr.splitlines() if " - INFO - " not in line]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
