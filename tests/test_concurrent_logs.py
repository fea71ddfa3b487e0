"""Logs that several runs wrote at the same time, and logs as other programs leave them."""

import io
import os
import random
import re
import threading
from pathlib import Path

import pytest

from lib.runtime import runlog, text_lines
from lib.runtime.errors import UserError
from lib.runtime.runlog import RunLog, parse


def curve(run: str, losses, *, interval=10, named=True) -> list[str]:
    """Return the lines of a run's log, as this version writes them, or `named=False`, as earlier ones did."""
    stream = io.StringIO()
    log = RunLog("train", stream=stream)
    log.event("RUN", id=run, model="lenet5")
    log.event("PLAN", Steps_per_epoch=2 * interval)
    for number, loss in enumerate(losses, 1):
        log.event("TRAIN", Step=number * interval, Training_loss=loss)
        if number % 2 == 0:
            log.event("VALID", Step=number * interval, Valid_loss=loss)
    lines = stream.getvalue().splitlines(keepends=True)
    return lines if named else [re.sub(r" run=\S+$", "", line, flags=re.MULTILINE) for line in lines]


def mixed(rng: random.Random, *logs: list[str]) -> list[str]:
    """Return the lines of `logs` in random turns, each log in its own order."""
    turns = [number for number, lines in enumerate(logs) for _ in lines]
    rng.shuffle(turns)
    waiting = [iter(lines) for lines in logs]
    return [next(waiting[number]) for number in turns]


def series(log: runlog.ParsedLog, tag="TRAIN", key="Training_loss") -> dict[str, list[float]]:
    return {run.id: run.series(tag, key)[1] for run in log.runs}


def losses_of(scale: float, count: int) -> list[float]:
    return [float(f"{scale / number:.6g}") for number in range(1, count + 1)]


@pytest.mark.parametrize("seed", range(20))
def test_lines_that_name_their_run_are_told_apart_exactly(seed):
    rng = random.Random(seed)
    # The curves meet, the intervals are the same: nothing but the names tells them apart.
    curves = {name: [rng.random() for _ in range(rng.randint(2, 12))] for name in "abc"}
    curves = {name: [float(f"{loss:.6g}") for loss in losses] for name, losses in curves.items()}
    log = parse(mixed(rng, *(curve(name, losses) for name, losses in curves.items())))
    assert series(log) == curves
    assert not log.is_guessed


@pytest.mark.parametrize("seed", range(20))
def test_lines_without_a_name_are_told_apart_by_steps_and_losses(seed):
    rng = random.Random(seed)
    count = rng.randint(4, 20)
    a, b = losses_of(2, count), losses_of(9, count)
    first, second = curve("a", a, named=False), curve("b", b, interval=rng.choice((10, 25)), named=False)
    # Both have begun before the first step; after it they take turns.
    log = parse([first[0], second[0], *_in_turns(rng, first[1:], second[1:])])
    # Which name is whose cannot be known where the runs take turns from their first line on.
    found = (
        [series(log)[run.id] for run in log.runs],
        [series(log, "VALID", "Valid_loss")[run.id] for run in log.runs],
    )
    assert [sorted(each) for each in found] == [sorted((a, b)), sorted((a[1::2], b[1::2]))]
    assert (log.together, log.is_guessed) == ((("a", "b"),), True)


def _in_turns(rng: random.Random, first: list[str], second: list[str]) -> list[str]:
    """Return the lines in turns of one or two, so that neither run is ahead by much."""
    out, waiting = [], [list(first), list(second)]
    while any(waiting):
        for lines in waiting:
            out += lines[: (size := rng.randint(1, 2))]
            del lines[:size]
    return out


def test_two_runs_of_a_log_without_run_lines_are_told_apart():
    a, b = losses_of(2, 12), losses_of(9, 12)
    pairs = zip(*(curve("x", each, named=False)[2:] for each in (a, b)), strict=True)
    log = parse([line for pair in pairs for line in pair])
    assert series(log) == {"run 1": a, "run 2": b}
    assert log.together


def test_runs_one_after_the_other_did_not_write_together():
    logs = [curve(name, losses_of(2, 9), named=named) for name in "ab" for named in (True, False)]
    for together in (logs, [lines[2:] for lines in logs]):
        assert parse([line for lines in together for line in lines]).together == ()


def test_a_killed_and_resumed_run_did_not_write_together_with_itself():
    whole = curve("a", losses_of(2, 9))
    resumed = [line for line in whole if "[RUN]" not in line and _step(line) > 40]
    start = whole[0].replace("id=a", "id=a Resume_step=40")
    log = parse([*whole, start, *resumed])
    assert series(log) == {"a": losses_of(2, 9)}
    assert log.together == ()


def _step(line: str) -> int:
    found = re.search(r"Step=(\d+)", line)
    return int(found[1]) if found else 0


def test_an_ensemble_whose_first_run_goes_on_after_its_members_did_not_write_together():
    stream = io.StringIO()
    log = RunLog("train", stream=stream)
    for name in ("whole", "one", "two"):
        log.event("RUN", id=name)
        log.event("TRAIN", Step=1, Training_loss=1.0) if name != "whole" else None
    log.go_on_with("whole")
    log.event("EVAL", Valid_accuracy=0.5)
    read = parse(stream.getvalue().splitlines(keepends=True))
    assert [(run.id, list(run.events)) for run in read.runs] == [
        ("whole", ["EVAL"]),
        ("one", ["TRAIN"]),
        ("two", ["TRAIN"]),
    ]
    assert read.together == ()


# As other programs leave them

LINES = curve("a", losses_of(2, 6))
COLOURED = [f"\x1b[1;32m{line[:-1]}\x1b[0m\n" for line in LINES]


@pytest.mark.parametrize(
    "content",
    [
        "".join(LINES).encode("utf-16"),
        "".join(LINES).encode("utf-16-be"),
        "".join(LINES).encode("utf-16-le"),
        b"\xfe\xff" + "".join(LINES).encode("utf-16-be"),
        "".join(LINES).encode("utf-32"),
        "".join(LINES).encode("utf-8-sig"),
        "".join(LINES[:3]).encode() + "".join(LINES[3:]).encode("utf-16-le"),
        "".join(LINES).replace("\n", "\r\n").encode(),
        "".join(COLOURED).encode(),
        "".join(f"\x1b]0;training\x07{line}" for line in LINES).encode(),
        *(
            "".join(f"{prefix}{line}" for line in LINES).encode()
            for prefix in (
                "[rank0]:",
                "[default0]:",
                "[rank0]: ",
                "\x1b[36m[default0]:\x1b[0m",
                "trainer_1  | ",
                "pod/train-7d9f4 ",
                "2026-01-01T00:00:00.123456Z stdout F ",
                "Jan 01 00:00:00 host python3[4711]: ",
            )
        ),
    ],
)
def test_a_log_is_read_as_other_programs_leave_it(content):
    log = parse(text_lines.decoded(io.BytesIO(content)))
    assert series(log) == {"a": losses_of(2, 6)}
    assert log.skipped == 0


@pytest.mark.parametrize("seed", range(40))
def test_no_damage_to_a_log_is_an_error(seed):
    rng = random.Random(seed)
    damaged_log(rng)


def damaged_log(rng: random.Random) -> None:
    """Damage a log of two runs in random places, and read it; tests/fuzz_runtime.py does so 10⁴ times."""
    named = rng.random() < 0.5
    logs = [curve(name, losses_of(rng.uniform(0.1, 9), rng.randint(1, 9)), named=named) for name in "ab"]
    text = bytearray("".join(mixed(rng, *logs)).encode(rng.choice(("utf-8", "utf-16", "utf-8-sig"))))
    for _ in range(rng.randint(0, 12)):
        at = rng.randrange(len(text))
        piece = rng.choice((b"", b"\n", b"\x00", b"\x1b[31m", b"nan", b"-inf", b"Step=", rng.randbytes(3)))
        text[at : at + rng.randint(0, 20)] = piece
    log = parse(text_lines.decoded(io.BytesIO(bytes(text))))
    for run in log.runs:
        for key in ("Training_loss", "Valid_loss"):
            run.series("TRAIN", key)
        run.steps_per_epoch()


# Pipes and devices


def test_a_pipe_is_read_and_one_into_which_nobody_writes_is_refused(tmp_path, monkeypatch):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: Path(pipe).write_text("".join(LINES)))
    writer.start()
    with text_lines.open_text(pipe) as lines:
        assert series(parse(text_lines.decoded(lines))) == {"a": losses_of(2, 6)}
    writer.join()
    monkeypatch.setattr(text_lines, "PATIENCE", 0.01)
    with pytest.raises(UserError, match="nobody has written"):
        text_lines.open_text(pipe)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_a_device_that_never_ends_is_refused(device):
    with pytest.raises(UserError, match="device"):
        text_lines.open_text(Path(device))


# TensorBoard


def test_each_run_has_its_own_folder_for_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for name in ("a", "b"):
        with RunLog("train", stream=io.StringIO(), tensorboard=tmp_path) as log:
            log.event("RUN", id=name)
            log.event("TRAIN", Step=1, Training_loss=1.0)
    for name in ("a", "b"):
        board = accumulator.EventAccumulator(str(tmp_path / name)).Reload()
        assert len(board.Scalars("TRAIN/Training_loss")) == 1
