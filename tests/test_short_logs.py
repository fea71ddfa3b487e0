"""Logs that fit a screen, epochs counted from 1, and a best step on which log, curve and checkpoint agree."""

import copy

import numpy as np
import pytest
import torch
from conftest import assert_same, call, module_of, write_checkpoint
from training import fit

from lib.figures.curves import best_point
from lib.models import layers
from lib.models.network import load_checkpoint
from lib.runtime import checkpoint
from lib.runtime.runlog import parse
from lib.training.log_schedule import LINES, LogSchedule

# ---- which lines


@pytest.mark.parametrize("length", [1, 7, 45, 469, 5000])
@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 8, 9, 10, 16, 30, 90, 100, 1000])
@pytest.mark.parametrize("cut", [0, 3])
def test_a_run_of_any_length_logs_about_a_screen(length, epochs, cut):
    updates = max(1, length * epochs - cut)
    schedule = LogSchedule(updates, length, None)
    ends = {*range(length, updates + 1, length), updates}
    shown = [update for update in sorted(ends) if schedule.shows(update)]
    taken = [update for update in range(1, updates + 1) if schedule.takes(update) and update not in ends]
    assert shown[-1] == updates
    assert shown[0] == min(length, updates)
    assert len(shown) <= LINES + 2
    assert 2 * len(shown) + len(taken) <= 28
    assert len(shown) + len(taken) >= min(LINES // 2, updates)


@pytest.mark.parametrize("interval", [1, 10, 100, 10_000])
def test_with_an_interval_all_lines_are_written(interval):
    schedule = LogSchedule(450, 45, interval)
    assert all(schedule.shows(update) for update in range(45, 451, 45))
    assert [u for u in range(1, 451) if schedule.takes(u)] == list(range(interval, 451, interval))


def test_a_short_log_has_the_numbers_of_a_long_one_and_the_same_weights(tmp_path):
    short = fit(tmp_path / "short", max_epoch=40, log_interval=None)
    long = fit(tmp_path / "long", max_epoch=40, log_interval=10_000)

    def lines(run, tag):
        return [{k: v for k, v in each.items() if not k.startswith("Examples")} for each in run.events[tag]]

    for tag in ("TRAIN", "VALID"):
        few, all_of_them = lines(short.run, tag), lines(long.run, tag)
        assert len(few) < 12 < len(all_of_them) == 40
        assert all(line in all_of_them for line in few)
        assert few[-1] == all_of_them[-1]
    saved = [checkpoint.load(tmp_path / name / checkpoint.LAST) for name in ("short", "long")]
    assert_same(*(each["state_dict"] for each in saved))


def test_a_run_out_of_patience_logs_the_validation_that_ended_it(tmp_path):
    run = fit(tmp_path, max_epoch=200, patience=3, learning_rate=1e-12, log_interval=None).run
    last = checkpoint.load(tmp_path / checkpoint.LAST)["update"]
    assert run.events["VALID"][-1]["Step"] == run.events["TRAIN"][-1]["Step"] == last


def test_the_layers_of_a_large_network_share_lines_and_none_of_their_weights_is_lost():
    model = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(30)))
    rows = layers.table(model, torch.zeros(1, 3))
    few = layers.in_parts(rows)
    assert len(few) == 8
    assert sum(row.parameters for row in few) == sum(row.parameters for row in rows) == 30 * 12
    nested = torch.nn.Sequential(model, torch.nn.ReLU())
    names = [(row.name, row.kind) for row in layers.in_parts(layers.table(nested, torch.zeros(1, 3)))]
    assert names == [("0", "30 layers"), ("1", "ReLU")]


# ---- the best step


def test_of_equal_values_the_highest_rank_is_the_best_and_then_the_latest():
    ys = np.array([0.5, 0.9, np.nan, 0.9, 0.9, 0.2])
    assert best_point(ys, "max") == 4
    assert best_point(ys, "min") == 5
    assert best_point(ys, "max", np.array([9.0, -0.1, 0, -0.1, -0.3, 9])) == 3


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_the_star_stands_where_the_best_checkpoint_is_from(tmp_path, seed, told):
    ended = fit(tmp_path, max_epoch=12, seed=seed, log_interval=1)
    best = checkpoint.load(tmp_path / checkpoint.BEST)
    run = copy.deepcopy(ended.run)
    if told:
        run.add("BEST", {"Step": best["update"], "Valid_accuracy": best["metrics"]["accuracy"]})
    plot = module_of("plot-log.py")
    curve = plot.curve("x", run, "VALID", "Valid_accuracy", "step")
    assert curve.xs[best_point(curve.ys, "max", curve.ranks)] == best["update"]


def test_a_best_step_without_a_line_of_its_own_is_a_point_of_the_curve():
    log = [
        "2026-01-01 00:00:00,000 - x - INFO - [VALID] Epoch=1 Step=10 Valid_loss=2\n",
        "2026-01-01 00:00:00,000 - x - INFO - [VALID] Epoch=3 Step=30 Valid_loss=1.5\n",
        "2026-01-01 00:00:00,000 - x - INFO - [BEST] Epoch=2 Step=20 Valid_loss=1 file=x\n",
    ]
    (run,) = parse(log).runs
    assert run.validations("Valid_loss") == ([10, 20, 30], [2, 1, 1.5])


# ---- epochs


@pytest.mark.parametrize(("written", "read"), [({"epoch": 0}, 1), ({"epoch": 7}, 8), ({"epochs": 7}, 7)])
def test_epochs_of_earlier_checkpoints_are_counted_from_one(tmp_path, written, read):
    file = write_checkpoint(tmp_path / "c.pt")
    content = torch.load(file, weights_only=True)
    content.pop("epoch")
    torch.save(content | written, file)
    assert checkpoint.load(file)["epochs"] == read
    assert load_checkpoint(file).epoch == read


def test_a_run_that_an_earlier_version_began_goes_on(tmp_path, trained):
    folder = tmp_path / "run"
    folder.mkdir()
    for file in trained.checkpoints.glob("*.pt"):
        content = torch.load(file, weights_only=True)
        content["epoch"] = content.pop("epochs") - 1
        torch.save(content, folder / file.name)
    flags = ("--resume", "--checkpoint-dir", "run", "--max-epoch", "5", "--log-interval", "10")
    ended = call("run-mnist-classification.py", *flags, folder=tmp_path)
    assert ended.status == 0, ended.stderr
    assert [event["Epoch"] for event in ended.run().events["VALID"]] == [5]
    assert checkpoint.load(folder / checkpoint.LAST)["epochs"] == 5


def lines(first: int, resumed: bool, plan: bool) -> list[str]:
    start = "2026-01-01 00:00:00,000 - x - INFO - "
    begin = 3 if resumed else 0
    run = f"{start}[RUN] id=a{' Resume_step=300' if resumed else ''}\n"
    steps = [(epoch, 100 * epoch + part) for epoch in range(begin, 6) for part in (50, 100)]
    return [
        run,
        *([f"{start}[PLAN] Steps_per_epoch=100\n"] if plan else []),
        *(f"{start}[TRAIN] Epoch={epoch + first} Step={step} Training_loss=1\n" for epoch, step in steps),
    ]


@pytest.mark.parametrize("resumed", [True, False])
@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize("first", [0, 1])
def test_logs_of_either_count_tell_the_length_of_an_epoch(first, plan, resumed):
    if first == 1 and resumed and not plan:
        pytest.skip("a version that counts from 1 writes [PLAN] lines")
    (run,) = parse(lines(first, resumed, plan)).runs
    assert run.steps_per_epoch() == 100
