"""The log line: what is written is read back, and nothing that is read is an error."""

import io
import math
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.runtime.errors import UserError
from lib.runtime.runlog import Run, RunLog, parse

STAMP = "2025-01-31 12:00:00,123 - train - INFO - "


def written(*events) -> str:
    """Return the log of `events`, each `(tag, fields)`."""
    stream = io.StringIO()
    with RunLog("train", stream=stream) as log:
        for tag, fields in events:
            log.event(tag, **fields)
    return stream.getvalue()


def runs_of(text: str) -> list[Run]:
    return parse(io.StringIO(text, newline="\n")).runs


def steps_of(run: Run, tag: str = "TRAIN") -> list[float]:
    return run.series(tag, "Training_loss")[0]


def train(step, loss=0.5, **more) -> tuple:
    return "TRAIN", {"Step": step, "Training_loss": loss, **more}


def test_a_line_has_time_name_level_tag_and_fields():
    line = written(("TRAIN", {"Epoch": 0, "Step": 250, "Training_loss": 0.412314159, "Learning_rate": 1e-5}))
    expected = r"TRAIN] Epoch=0 Step=250 Training_loss=0.412314 Learning_rate=1e-05"
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - train - INFO - \[" + re.escape(expected) + "\n", line
    )


def test_lines_go_to_the_standard_output_of_the_moment(capsys):
    log = RunLog("train")
    log.event("DONE", Seconds=1)
    assert capsys.readouterr().out.endswith("[DONE] Seconds=1\n")


def test_a_table_is_one_log_line_for_each_of_its_lines():
    stream = io.StringIO()
    RunLog("train", stream=stream).text("MODEL", "conv1   320\n  fc   1290")
    assert [line.split(" - ")[-1] for line in stream.getvalue().splitlines()] == [
        "[MODEL] conv1   320",
        "[MODEL]   fc   1290",
    ]


def test_a_disabled_log_writes_nothing(tmp_path):
    stream = io.StringIO()
    with RunLog("train", stream=stream, tensorboard=tmp_path / "board", enabled=False) as log:
        log.event("TRAIN", Step=1, Training_loss=1.0)
        log.text("MODEL", "conv1")
    assert stream.getvalue() == ""
    assert not list(tmp_path.iterdir())


class FailingStream:
    def __init__(self, error):
        self.error = error

    def write(self, _):
        raise self.error


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (BrokenPipeError(), "its reader is gone"),
        (OSError(28, "No space left on device"), "it cannot be written (No space left on device)"),
    ],
)
def test_a_log_that_cannot_be_written_ends_with_one_warning_and_the_run_goes_on(error, why, capsys):
    log = RunLog("train", stream=FailingStream(error))
    for step in range(3):
        log.event("TRAIN", Step=step)
    assert (
        capsys.readouterr().err == f"warning: the log ends here, because {why}; files are written as before\n"
    )


keys = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]*", fullmatch=True).filter(lambda key: key != "Total_step")
# A whole time stamp inside a value would be taken for the beginning of the next line.
strings = st.text().filter(lambda text: not re.search(r"\d{4}-\d\d-\d\d ", text))
values = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(),
    strings,
    st.sampled_from(
        ["None", "True", "nan", "-inf", "1", "1e5", '"', "a b", "a=b", "", "\ud800", " - [RUN] id=x"]
    ),
)


@given(st.dictionaries(keys, values, min_size=1))
def test_every_field_is_read_back_as_it_was_written(fields):
    (run,) = runs_of(written(("NOTE", fields)))
    assert run.events["NOTE"] == [fields]


@given(st.floats())
def test_a_float_is_read_back_to_six_digits(value):
    (run,) = runs_of(written(("TRAIN", {"Step": 1, "Training_loss": value})))
    (found,) = run.series("TRAIN", "Training_loss")[1]
    if math.isfinite(value):
        assert found == pytest.approx(value, rel=1e-5) or math.isinf(found)  # the largest round to inf
    else:
        assert str(found) == str(value)


def test_numpy_scalars_and_paths_are_written_as_what_they_hold(tmp_path):
    numpy = pytest.importorskip("numpy")
    (run,) = runs_of(
        written(("TEST", {"loss": numpy.float32(0.5), "n": numpy.int64(3), "file": tmp_path / "a b"}))
    )
    assert run.events["TEST"] == [{"loss": 0.5, "n": 3, "file": str(tmp_path / "a b")}]


def test_runs_appended_to_one_file_stay_apart():
    log = written(("RUN", {"id": "a", "seed": 1}), train(1), train(2), ("RUN", {"id": "b"}), train(1))
    a, b = runs_of(log)
    assert (a.id, a.fields["seed"], steps_of(a), b.id, steps_of(b)) == ("a", 1, [1, 2], "b", [1])


def test_a_resumed_run_forgets_what_the_kill_lost_and_becomes_the_newest():
    log = written(
        ("RUN", {"id": "a", "max_epoch": 3}),
        *(train(step, 1.0) for step in (1, 2, 3, 4)),
        ("VALID", {"Step": 4, "Valid_loss": 9.0}),
        ("RUN", {"id": "b"}),
        train(1),
        ("RUN", {"id": "a", "max_epoch": 5, "Resume_step": 2}),
        *(train(step, 2.0) for step in (3, 4, 5)),
    )
    b, a = runs_of(log)
    assert (b.id, a.id, a.fields["max_epoch"]) == ("b", "a", 5)
    assert a.series("TRAIN", "Training_loss") == ([1, 2, 3, 4, 5], [1.0, 1.0, 2.0, 2.0, 2.0])
    assert a.events["VALID"] == []


def test_a_log_pasted_twice_is_the_same_as_once():
    log = written(("RUN", {"id": "a"}), train(1), train(2))
    assert [steps_of(run) for run in runs_of(log + log)] == [[1, 2]]


def test_a_remark_about_the_run_begins_none():
    log = written(("RUN", {"id": "a"})) + STAMP + "[RUN] nothing to resume in ckpts/x=y: starting anew\n"
    assert [run.id for run in runs_of(log + written(train(1)))] == ["a"]


def test_an_old_log_is_one_run_and_its_total_step_is_the_step():
    log = STAMP + "[TRAIN] Epoch=0 Step=250 Training_loss=0.4\n" + STAMP
    log += "[VALID] Epoch=0 Total_step=250 Valid_loss=0.3\n"
    (run,) = runs_of(log)
    assert run.id == "run 1"
    assert run.series("VALID", "Valid_loss") == ([250], [0.3])


def test_where_no_line_says_run_a_step_that_falls_begins_one():
    log = written(train(1), ("VALID", {"Step": 2, "Valid_loss": 1.0}), train(2), train(1), train(2))
    assert [(run.id, steps_of(run)) for run in runs_of(log)] == [("run 1", [1, 2]), ("run 2", [1, 2])]


@pytest.mark.parametrize(
    "line",
    [
        "[TRAIN] Step=1 Training_loss=0.5\n",
        "2025-01-31 12:00:00,123 - root - WARNING - [TRAIN] Step=1 Training_loss=0.5\r\n",
        "my tool - [TRAIN] Step=1 Training_loss=.5 done\n",
        b"[TRAIN]\tStep=1  Training_loss=5e-1\n",
        b"\xff\xfe " + STAMP.encode() + b"[TRAIN] Step=1 Training_loss=0.5 name=\xff\n",
    ],
)
def test_lines_of_other_tools_are_read(line):
    (run,) = parse([line]).runs
    assert run.series("TRAIN", "Training_loss") == ([1], [0.5])


def test_a_last_line_without_its_newline_is_not_trusted():
    log = parse([STAMP + "[TRAIN] Step=1 Training_loss=0.4\n", STAMP + "[TRAIN] Step=2 Training_loss=0.4"])
    assert steps_of(log.runs[0]) == [1]
    assert log.skipped == 1


def test_a_line_cut_by_a_kill_does_not_take_the_next_one_with_it():
    log = parse(
        [STAMP + "[TRAIN] Step=2 Training_loss=0.4" + STAMP + "[RUN] id=b\n", STAMP + "[TRAIN] Step=1\n"]
    )
    assert [(run.id, list(run.events)) for run in log.runs] == [("b", ["TRAIN"])]
    assert log.skipped == 1


def test_foreign_lines_are_counted_and_blank_ones_are_not():
    log = parse(["Traceback (most recent call last):\n", "\n", "  File x\n", STAMP + "[DONE]\n"])
    assert (log.runs, log.skipped) == ([], 2)


def test_series_keep_nan_and_leave_out_what_is_no_number():
    log = "".join(
        f"[TRAIN] Step={step} Training_loss={loss}\n"
        for step, loss in [(1, "nan"), (2, "-inf"), (3, "oops"), ("x", 1), (4, True), ("nan", 1), (5, 0.5)]
    )
    steps, losses = runs_of(log)[0].series("TRAIN", "Training_loss")
    assert steps == [1, 2, 5]
    assert str(losses) == "[nan, -inf, 0.5]"


def test_the_length_of_an_epoch_is_told_by_its_steps():
    rows = [(epoch, step) for epoch in range(3) for step in range(100 * epoch + 20, 100 * epoch + 101, 20)]
    zero = runs_of(written(*(train(step, Epoch=epoch) for epoch, step in rows)))[0]
    one = runs_of(written(*(train(step, Epoch=epoch + 1) for epoch, step in rows)))[0]
    stated = Run("a", {}, zero.events | {"PLAN": [{"Steps_per_epoch": 90}]})
    assert [run.steps_per_epoch() for run in (zero, one, stated, Run("a"))] == [100, 100, 90, None]


def reads_without_error(lines) -> None:
    for run in parse(lines).runs:
        run.steps_per_epoch()
        for tag in run.events:
            for key in run.keys(tag):
                run.series(tag, key)


@given(st.lists(st.one_of(st.text(), st.binary())))
def test_no_line_is_an_error(lines):
    reads_without_error(lines)


REAL = written(
    ("RUN", {"id": "a", "model": "row lstm", "seed": 42}),
    train(250, math.nan, Epoch=0),
    ("VALID", {"Epoch": 0, "Total_step": 250, "Valid_loss": 0.38}),
    ("RUN", {"id": "a", "Resume_step": 100}),
    train(200, 1e-9, Epoch=0),
)


@given(st.lists(st.tuples(st.integers(0, len(REAL)), st.integers(0, 9), st.text(max_size=9))))
def test_no_damage_to_a_real_log_is_an_error(wounds):
    log = REAL
    for place, length, text in wounds:
        log = log[:place] + text + log[place + length :]
    reads_without_error(log.splitlines(keepends=True))


@pytest.mark.parametrize(
    "evil",
    [
        "k=" + "1" * 50_000 + "x",
        "k=1." + "1" * 50_000 + "x",
        "a=" * 25_000,
        'a="\\' * 12_000,
        "a" * 50_000,
        " - [" * 12_000,
        "k=" + "9" * 5_000,
    ],
)
def test_no_line_takes_more_than_a_moment(evil):
    started = time.perf_counter()
    reads_without_error(["[TRAIN] Step=1 " + evil + "\n", evil + "\n"])
    assert time.perf_counter() - started < 1  # linear: some milliseconds; quadratic: half a minute


def test_tensorboard_gets_every_number_of_an_event_with_a_step(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with RunLog("train", stream=io.StringIO(), tensorboard=tmp_path) as log:
        log.event("RUN", id="a", seed=3)
        log.event("TRAIN", Step=10, Training_loss=0.123456789, note="x", good=True)
    board = accumulator.EventAccumulator(str(tmp_path / "a")).Reload()
    assert board.Tags()["scalars"] == ["TRAIN/Training_loss"]
    (scalar,) = board.Scalars("TRAIN/Training_loss")
    assert (scalar.step, scalar.value) == (10, pytest.approx(0.123456789))


def test_a_tensorboard_folder_that_is_a_file_is_the_users_mistake(tmp_path):
    pytest.importorskip("tensorboard")
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="TensorBoard folder"):
        RunLog("train", stream=io.StringIO(), tensorboard=file).event("TRAIN", Step=1)
