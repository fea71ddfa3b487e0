"""The sentiment script from end to end: train, log, restore, evaluate, resume, refuse."""

from pathlib import Path

import kill_and_resume as killing
import pytest
import torch
from conftest import SENTIMENT_SCRIPT, table
from test_distributed import torchrun

from lib.data.text import words_of
from lib.data.tokens import words_never_alone
from lib.runtime import checkpoint
from lib.tasks import text_views

TINY = ("--dataset", "tiny")
SMALL = (*TINY, "--embedding-size", "16", "--hidden-size", "16")
BRIEF = (*SMALL, "--max-epoch", "1")


# Train, restore, evaluate


def test_the_tiny_data_set_is_learnt_in_seconds(sentiment_run):
    run = sentiment_run[1].run()
    assert sentiment_run[1].stderr == ""
    assert run.events["EVAL"][0]["Valid_accuracy"] > 0.8
    assert run.events["EVAL"][0]["Valid_accuracy_low"] < run.events["EVAL"][0]["Valid_accuracy"]
    assert [event["split"] for event in run.events["DATA"]] == ["train", "valid"]
    assert run.events["DATA"][0]["contradictory"] == 0
    assert run.events["DONE"][0]["Seconds"] < 60


def test_without_a_hold_out_the_last_weights_are_kept(sentiment_run):
    run = sentiment_run[1].run()
    assert run.events["BEST"][0]["Epoch"] == 15
    assert run.fields["keep"] == "last"


def test_a_checkpoint_restored_with_no_other_flag_has_the_numbers_of_its_run(
    sentiment_run, sentiment_best, sentiment, tmp_path
):
    done = sentiment("--eval-only", "--restore-file", sentiment_best)
    assert done.status == 0, done.stderr
    events = done.run().events
    saved = sentiment_run[1].run().events["EVAL"][0]
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


@pytest.mark.slow
def test_every_network_trains_and_restores(sentiment, tmp_path):
    variants = {
        "plain": ("--model", "plain"),
        "deep": ("--depth", 2, "--pooling", "attention", "--no-bidirectional"),
        "words": ("--ngrams", "none", "--pooling", "last"),
        "everything": (
            "--amp",
            "--ema",
            0.9,
            "--keep",
            "best",
            "--patience",
            1,
            "--limit",
            100,
            "--label-smoothing",
            0.1,
        ),
    }
    for name, flags in variants.items():
        done = sentiment(*BRIEF, *flags, "--checkpoint-dir", name)
        assert done.status == 0, done.stderr
        restored = sentiment("--eval-only", "--restore-file", tmp_path / name / checkpoint.BEST)
        found, saved = (ended.run().events["EVAL"][0] for ended in (restored, done))
        assert found == pytest.approx(saved, abs=1e-4), name


def test_a_checkpoint_of_one_cell_has_the_same_numbers_with_the_other(sentiment_best, sentiment):
    ended = [
        sentiment("--eval-only", "--restore-file", sentiment_best, "--cell", cell)
        for cell in ("fused", "reference")
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
    saved = checkpoint.load(tmp_path / "ckpts" / "lstm-tiny" / checkpoint.BEST)
    assert saved["classes"] == ["x", "y", "z"]


def test_an_ensemble_is_one_checkpoint_and_goes_on_after_a_stop(sentiment, tmp_path):
    flags = (*SMALL, "--max-epoch", 2, "--ensemble", 2)
    done = sentiment(*flags)
    assert done.status == 0, done.stderr
    folder = tmp_path / "ckpts" / "lstm-tiny"
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


def test_the_networks_of_an_ensemble_begin_with_the_weights_they_are_given(
    sentiment_best, sentiment, tmp_path
):
    brief = ("--max-update", 1, "-lr", 1e-9, "--ensemble", 2, "--checkpoint-dir", "two")
    done = sentiment(*TINY, "--restore-file", sentiment_best, *brief)
    assert done.status == 0, done.stderr
    given = checkpoint.load(sentiment_best)["state_dict"]
    for number in range(2):
        found = checkpoint.load(tmp_path / "two" / f"member-{number}" / checkpoint.LAST)["state_dict"]
        for name, value in given.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=0)


def test_an_ensemble_that_was_stopped_goes_on_with_the_weights_that_all_begin_with(
    sentiment_best, sentiment, tmp_path
):
    done = sentiment(*TINY, "--restore-file", sentiment_best, "--max-update", 3, "--ensemble", 2)
    assert done.status == 0, done.stderr
    folder = tmp_path / "ckpts" / "lstm-tiny"
    whole = checkpoint.load(folder / checkpoint.BEST)["state_dict"]
    (folder / "member-1" / checkpoint.LAST).unlink()
    resumed = sentiment("--resume")
    assert resumed.status == 0, resumed.stderr
    assert killing.same(checkpoint.load(folder / checkpoint.BEST)["state_dict"], whole)
    anew = sentiment(*TINY, "--max-update", 1, "--ensemble", 2)
    assert anew.status == 0, anew.stderr
    assert not (folder / checkpoint.START).exists()


def test_an_ensemble_is_not_gone_on_with_as_the_single_run_that_was_in_its_folder(sentiment, tmp_path):
    assert sentiment(*BRIEF).status == 0
    assert sentiment(*BRIEF, "--max-update", 2, "--ensemble", 2, "--seed", 7).status == 0
    resumed = sentiment("--resume", "--max-update", 4)
    assert resumed.status == 0, resumed.stderr
    saved = checkpoint.load(tmp_path / "ckpts" / "lstm-tiny" / checkpoint.BEST)
    assert (saved["model"]["config"]["members"], saved["flags"]["seed"]) == (2, 7)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_teacher_is_learnt_from_and_stays_as_it_was(sentiment_best, sentiment, tmp_path):
    before = checkpoint.load(sentiment_best)["state_dict"]

    def numbers(name: str, *flags) -> dict[str, float]:
        done = sentiment(*TINY, "--max-epoch", 2, "--seed", 7, "--checkpoint-dir", name, *flags)
        assert done.status == 0, done.stderr
        return done.run().events["EVAL"][0]

    alone = numbers("alone")
    assert numbers("ignored", "--teacher", sentiment_best, "--teacher-weight", 0) == alone
    heard = numbers("heard", "--teacher", sentiment_best, "--teacher-weight", 1)
    assert heard["Valid_loss"] < alone["Valid_loss"]
    assert all(
        torch.equal(before[name], now) for name, now in checkpoint.load(sentiment_best)["state_dict"].items()
    )
    # Restoring the student takes no teacher.
    done = sentiment("--eval-only", "--restore-file", tmp_path / "heard" / checkpoint.BEST)
    assert done.run().events["EVAL"][0] == pytest.approx(heard, abs=1e-4)


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line_and_status_1(sentiment):
    done = sentiment(*BRIEF, "-lr", "1e30", "--optimizer", "sgd", "--clip-norm", "1e30")
    assert done.status == 1
    assert done.is_one_line_error()


@pytest.mark.slow
def test_two_ranks_train_as_one_run_with_one_log_and_one_checkpoint(tmp_path):
    done = torchrun(SENTIMENT_SCRIPT, *BRIEF, folder=tmp_path)
    assert done.status == 0, done.stderr
    run = done.run()
    assert len(run.events["VALID"]) == len(run.events["DONE"]) == 1
    # Of 64 phrases none came twice.
    assert (run.events["VALID"][0]["Valid_accuracy"] * 64).is_integer()
    assert checkpoint.load(tmp_path / "ckpts" / "lstm-tiny" / checkpoint.LAST)["update"] > 0


@pytest.mark.long
def test_a_rank_without_an_example_to_validate_on_is_said_in_one_line(tmp_path):
    (tmp_path / "train.tsv").write_text("sentence\tlabel\n" + "good\t1\nbad\t0\n" * 8)
    (tmp_path / "valid.tsv").write_text("sentence\tlabel\ngood\t1\n")
    files = ("--train-file", "train.tsv", "--valid-file", "valid.tsv")
    done = torchrun(SENTIMENT_SCRIPT, *files, *BRIEF[2:], folder=tmp_path)
    assert done.status != 0
    assert "error: each of 2 ranks needs an example to be evaluated on" in done.stderr
    assert "Connection closed" not in done.stderr


# Bad input: one line, exit 2, nothing left behind


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory, sentiment_run) -> Path:
    folder = tmp_path_factory.mktemp("bad")
    whole = sentiment_run[0].read_bytes()
    (folder / "short.pt").write_bytes(whole[: len(whole) // 2])
    content = checkpoint.load(sentiment_run[0])
    checkpoint.save(folder / "task.pt", content | {"task": "image-classification"})
    torch.save(content["state_dict"], folder / "bare.pt")
    (folder / "words.tsv").write_text("words\ngood\n")
    (folder / "three.tsv").write_text("sentence\tlabel\na\tx\nb\ty\nc\tz\n")
    return folder


RESTORED = ("--restore-file", "{best}")
BAD_INPUT = {
    "unknown data set": ("--dataset", "imdb"),
    "unknown model": ("--model", "transformer"),
    "unknown pooling": (*BRIEF, "--pooling", "median"),
    "ngrams of 9": (*BRIEF, "--ngrams", "3,9"),
    "dropout of everything": (*BRIEF, "--word-dropout", 1),
    "patience with the latest weights": (*BRIEF, "--patience", 2),
    "hold-out of everything": (*BRIEF, "--holdout", 1),
    "n-grams for the plain network": (*BRIEF, "--model", "plain", "--ngrams", "3"),
    "no training file": (*BRIEF, "--valid-file", "{bad}/three.tsv"),
    "nothing to validate on": (*BRIEF, "--train-file", "{bad}/three.tsv"),
    "training file that is missing": (*BRIEF, "--train-file", "{bad}/none.tsv", "--holdout", 0.5),
    "another pooling than the file's": ("--eval-only", *RESTORED, "--pooling", "last"),
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
    sentiment, flags, bad_files, sentiment_best, tmp_path
):
    done = sentiment(*(str(flag).format(bad=bad_files, best=sentiment_best) for flag in flags))
    assert done.status == 2, done
    errors = [line for line in done.stderr.splitlines() if " - INFO - " not in line]
    assert len(errors) == 1, done.stderr
    assert errors[0].startswith("error: ")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
