"""The sentiment script with a checkpoint: answers to phrases, and what each word adds to them."""

import io
import json
import sys

import pytest
import torch
from conftest import table

from lib import models
from lib.data.text import words_of
from lib.data.tokens import Vocabulary
from lib.models.phrase_classifiers import BIGRAM_SIZE
from lib.runtime import checkpoint
from lib.tasks import text_classification, text_explanation, text_prediction
from lib.tasks.text_classification import Reader


def typed_in(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


# Predict


def test_answers_come_in_the_order_of_the_questions(sentiment_best, sentiment, monkeypatch):
    lines = [
        "a long walk , and a very warm and funny film it was",
        "awful",
        "",
        "Wonderful, I loved it!",
        "awful",
    ]
    typed_in(monkeypatch, "\n".join(lines).encode())
    done = sentiment("--predict-only", "--restore-file", sentiment_best, "--input", "-")
    rows = table(done.stdout)
    assert [row["sentence"] for row in rows] == lines
    assert rows[1] == rows[4]
    assert [row["prediction"] for row in rows[:2]] == ["positive", "negative"]
    for row in rows:
        assert float(row["negative"]) + float(row["positive"]) == pytest.approx(1, abs=2e-6)
        assert row["probability"] == row[row["prediction"]]


def test_raw_text_and_text_split_as_the_corpus_get_the_same_answer(sentiment_best, sentiment):
    pair = ("It's great, don't miss it!", "it 's great , do n't miss it !")
    raw, split = (
        sentiment("--predict-only", "--restore-file", sentiment_best, "--input", text).stdout for text in pair
    )
    assert table(raw)[0]["positive"] == table(split)[0]["positive"]


def test_an_answer_does_not_depend_on_the_chunk_it_came_in(sentiment_best, sentiment, monkeypatch):
    lines = "\n".join(["a warm film", "bad", "dull and cold from start to end", "lovely day"] * 5).encode()
    answers = []
    for rows in (10_000, 3):
        monkeypatch.setattr(text_prediction, "CHUNK_ROWS", rows)
        typed_in(monkeypatch, lines)
        answers.append(sentiment("--predict-only", "--restore-file", sentiment_best, "--input", "-").stdout)
    for a, b in zip(*map(table, answers), strict=True):
        assert a["sentence"] == b["sentence"]
        assert float(a["positive"]) == pytest.approx(float(b["positive"]), abs=2e-6)


def test_bytes_that_are_not_utf_8_are_answered_too(sentiment_best, sentiment, monkeypatch):
    typed_in(monkeypatch, b"good \xff\xfe film\nbad\n")
    done = sentiment("--predict-only", "--restore-file", sentiment_best, "--input", "-", "--format", "jsonl")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["prediction"] in record["probabilities"] for record in records] == [True, True]


def test_without_input_the_validation_split_is_answered_with_its_labels(
    sentiment_run, sentiment_best, sentiment, tmp_path
):
    done = sentiment("--predict-only", "--restore-file", sentiment_best, "--out-file", "answers/valid.tsv")
    assert done.status == 0, done.stderr
    rows = table((tmp_path / "answers" / "valid.tsv").read_text())
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / len(rows) == sentiment_run[1].run().events["EVAL"][0]["Valid_accuracy"]


def test_rows_without_a_label_among_those_with_one_leave_its_column_empty(
    sentiment_best, sentiment, tmp_path, monkeypatch
):
    monkeypatch.setattr(text_prediction, "CHUNK_ROWS", 2)
    labels = ("positive", None, None, "nega\ttive")
    rows = [
        {"sentence": f"film {number}"} | ({"label": label} if label else {})
        for number, label in enumerate(labels)
    ]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    done = sentiment("--predict-only", "--restore-file", sentiment_best, "--input", "in.jsonl")
    assert done.status == 0, done.stderr
    assert [row["label"] for row in table(done.stdout)] == ["positive", "", "", "nega tive"]


def test_a_phrase_may_be_longer_than_any_name_of_a_file(sentiment_best, sentiment):
    phrase = "фильм " * 200
    done = sentiment("--predict-only", "--restore-file", sentiment_best, "--input", phrase)
    assert (done.status, len(done.stdout.splitlines())) == (0, 2), done.stderr


def test_a_submission_to_glue_has_a_number_a_phrase(sentiment_best, sentiment, tmp_path):
    (tmp_path / "test.tsv").write_text("index\tsentence\n0\ta lovely film\n1\ta dreadful film\n")
    done = sentiment("--predict-only", "--restore-file", sentiment_best, "--glue", "--test-file", "test.tsv")
    assert done.stdout == "index\tprediction\n0\t1\n1\t0\n"


def test_a_file_that_breaks_off_leaves_no_half_of_its_answers(sentiment_best, sentiment, tmp_path):
    (tmp_path / "in.tsv").write_text("sentence\tlabel\ngood\t1\nbad\n")
    done = sentiment(
        "--predict-only", "--restore-file", sentiment_best, "--input", "in.tsv", "--out-file", "out.tsv"
    )
    assert done.status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["in.tsv"]


# Explain


def test_what_the_words_add_makes_up_the_answer_and_the_network_stays_as_it_was(sentiment_best):
    saved = checkpoint.load(sentiment_best)
    model = models.build(saved["model"]["name"], **saved["model"]["config"]).train()
    model.load_state_dict(saved["state_dict"])
    reader = Reader(Vocabulary(**saved["vocabulary"]), tuple(saved["classes"]))
    words = words_of("a warm and funny film, but badly made!")
    chosen, probability, explained, found = text_explanation.attribute(
        model, reader, words, torch.device("cpu")
    )
    assert explained == 1
    assert found.values.shape == (len(words), 128 + BIGRAM_SIZE)
    assert abs(found.gap) <= 0.01 * abs(found.score - found.baseline_score)
    explained_probability = probability if chosen == explained else 1 - probability
    assert torch.tensor(found.score).sigmoid().item() == pytest.approx(explained_probability, abs=1e-5)
    answer = text_classification.answer(model, reader, [words], torch.device("cpu"))
    assert answer.probabilities[0, chosen].item() == pytest.approx(probability, abs=1e-5)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("phrase", ["a lovely , funny film", "a dreadful , boring film"])
def test_words_have_the_same_sign_whatever_is_predicted(sentiment_best, sentiment, tmp_path, phrase):
    done = sentiment("--explain", phrase, "--restore-file", sentiment_best)
    *words, totals = done.stdout.splitlines()
    named = dict(pair.split("=") for pair in totals.split())
    assert named["explained"] == "positive"
    assert named["prediction"] == ("positive" if "lovely" in phrase else "negative")
    values = {row["word"]: float(row["attribution"]) for row in table("\n".join(words))}
    assert values["lovely" if "lovely" in phrase else "dreadful"] * (1 if "lovely" in phrase else -1) > 0
    (page,) = (tmp_path / "imgs").glob("*.html")
    assert "red speaks for positive, blue for negative" in page.read_text()


def test_an_explanation_is_numbers_a_picture_and_a_page(sentiment_best, sentiment, tmp_path):
    done = sentiment("--explain", "I <b>loved</b> it & the film", "--restore-file", sentiment_best)
    assert done.status == 0, done.stderr
    *words, totals = done.stdout.splitlines()
    rows = table("\n".join(words))
    named = dict(pair.split("=") for pair in totals.split())
    assert sum(float(row["attribution"]) for row in rows) == pytest.approx(float(named["sum"]), abs=1e-4)
    gap = float(named["sum"]) - (float(named["log_odds"]) - float(named["baseline_log_odds"]))
    assert gap == pytest.approx(float(named["completeness_gap"]), abs=1e-4)
    files = {path.suffix: path for path in (tmp_path / "imgs").iterdir()}
    assert set(files) == {".png", ".html"}
    assert "<b>" not in files[".html"].read_text().split("<body")[1].split("</body>")[0].replace("<body", "")
    assert "&lt;" in files[".html"].read_text()


def test_json_lines_are_strict_json_where_an_answer_is_not_a_number():
    chunk = text_prediction.Chunk(0, False, ["a\tb\x1b"], [None])
    (line,) = text_prediction._as_json(chunk, torch.tensor([[float("nan"), 1.0]]), ["no", "yes"])

    def refuse(constant):
        raise AssertionError(constant)

    record = json.loads(line, parse_constant=refuse)
    assert record["probabilities"] == {"no": None, "yes": 1.0}


def test_classes_and_phrases_are_one_cell_each_whatever_they_hold():
    chunk = text_prediction.Chunk(0, True, ["a\tb\x1b"], ["x\ny"])
    lines = list(text_prediction._as_tsv(chunk, torch.tensor([[0.25, 0.75]]), ["no\t", "y\x1bs"]))
    assert lines == [
        "sentence\tlabel\tprediction\tprobability\tno\ty\\x1bs",
        "a b\\x1b\tx y\ty\\x1bs\t0.750000\t0.250000\t0.750000",
    ]
