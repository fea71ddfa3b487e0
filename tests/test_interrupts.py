"""Ctrl-C, readers that go away and closed streams: no long job loses what it knows."""

import json
import os
import shlex
import signal
import subprocess
import time

import numpy as np
import pytest
from conftest import command, environment, table
from interrupt_and_resume import in_terminal, train_command, trials

from lib.data.preprocessing import Preprocessing
from lib.runtime import checkpoint
from lib.runtime.interrupts import Signals
from lib.tasks import text_prediction

DIGITS = ("--dataset", "digits", "--limit", "300", "--max-epoch", "8")


@pytest.mark.slow
def test_ctrl_c_on_a_run_piped_to_tee_loses_no_update(tmp_path):
    """tests/interrupt_and_resume.py does so twenty times."""
    flags = ("--dataset", "digits", "--limit", "600", "--max-epoch", "15")
    (trial,) = trials(1, flags, tmp_path)
    assert not trial.wrong


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        pytest.param("| head -5", "its reader is gone", marks=pytest.mark.slow),
        pytest.param(">&-", "", marks=pytest.mark.long),
        pytest.param("> /dev/full", "it cannot be written (No space left on device)", marks=pytest.mark.slow),
        pytest.param("| tee -a /dev/full > shown", "", marks=pytest.mark.long),
    ],
)
def test_a_run_whose_log_cannot_be_written_trains_to_its_end(tmp_path, behind, said):
    done = subprocess.run(
        ["bash", "-c", f"{train_command(DIGITS)} {behind}; exit ${{PIPESTATUS[0]}}"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert checkpoint.load(tmp_path / "run" / checkpoint.LAST)["epochs"] == 8


PHRASE = b"a fine film\n"


class SilentPipe:
    """A standard input that sends so many phrases, then a signal to this process, and then nothing."""

    def __init__(self, phrases: int, number: int):
        self.phrases, self.number = phrases, number
        self.buffer = self

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        """Worker processes close their standard input."""

    def read(self, size: int) -> bytes:
        if self.phrases:
            lines = min(self.phrases, size // len(PHRASE))
            self.phrases -= lines
            return lines * PHRASE
        os.kill(os.getpid(), self.number)
        time.sleep(60)
        return b""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("out_file", ["a.tsv", None])
def test_answers_to_phrases_that_are_known_at_a_signal_are_kept(
    sentiment, sentiment_best, tmp_path, monkeypatch, number, out_file
):
    monkeypatch.setattr(text_prediction, "CHUNK_ROWS", 4)
    monkeypatch.setattr("sys.stdin", SilentPipe(80, number))
    flags = ("--predict-only", "--restore-file", sentiment_best, "--input", "-")
    done = sentiment(*flags, *(("--out-file", out_file) if out_file else ()))
    assert done.status == 128 + number, done.stderr
    rows = table((tmp_path / out_file).read_text() if out_file else done.stdout)
    assert 40 <= len(rows) < 80
    assert f"interrupted: {out_file or 'standard output'} has the first {len(rows)} answers" in done.stderr


def test_answers_to_images_that_are_known_at_a_signal_are_kept(
    classify, trained, subject_folder, tmp_path, monkeypatch
):
    asked = []
    read = Preprocessing.read

    def read_until_a_signal_comes(self, path):
        asked.append(path)
        if len(asked) == 150:  # in the third batch of 64
            os.kill(os.getpid(), signal.SIGINT)
        return read(self, path)

    monkeypatch.setattr(Preprocessing, "read", read_until_a_signal_comes)
    files = [subject_folder / "square.png"] * 300
    done = classify(
        "--predict-only", "--restore-file", trained.best, "--out-file", "a.tsv", "--input", *files
    )
    assert done.status == 130, done.stderr
    rows = table((tmp_path / "a.tsv").read_text())
    assert len(rows) == 128
    assert "interrupted: a.tsv has the first 128 of 300 answers" in done.stderr


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        pytest.param(
            "run-integrated-gradients.py",
            ("--tolerance", "1e-9", "--smoothgrad", "100000"),
            marks=pytest.mark.long,
        ),
        pytest.param("run-shapley-value.py", ("-lp", "4", "--budget", "200000"), marks=pytest.mark.slow),
    ],
)
def test_an_explanation_that_is_interrupted_keeps_what_is_known(subject_folder, tmp_path, script, flags):
    files = ("--json", "all.json", "--save-values", "all.npz", "-k", "1", "--out-dir", ".")
    own = ("--restore-file", subject_folder / "own.pt", "--input", "digits:1")
    line = shlex.join(command(script, *own, *files, *flags))
    done = in_terminal(f"{line} | tee log", tmp_path, interrupt_after=2.0, wait_for=r"\d \w+/s")
    assert done.status == 130, done.screen[-800:]
    assert "interrupted" in done.screen
    (record,) = json.loads((tmp_path / "all.json").read_text())
    assert record.get("converged") is False
    assert len(np.load(tmp_path / "all.npz")["maps"]) == 1
    assert list(tmp_path.glob("*.png"))


def test_a_signal_ends_the_items_also_while_the_next_one_is_waited_for():
    def items():
        yield 1
        yield 2
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
        yield 3

    with Signals() as signals:
        assert list(signals.until_received(items())) == [1, 2]
    assert signals.received == signal.SIGTERM
