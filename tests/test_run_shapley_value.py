"""run-shapley-value.py from flags to pictures and numbers."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from conftest import Ended, explaining
from PIL import Image
from test_distributed import torchrun

from lib.data.image_inputs import read
from lib.explain import games
from lib.models.network import load_checkpoint
from lib.tasks import evaluation_store

SCRIPT = "run-shapley-value.py"
FEW = ("-lp", "10", "-k", "1")  # 9 players


explain = explaining(SCRIPT)


def panels(ended: Ended) -> list[dict]:
    assert ended.status == 0, ended.stderr
    return ended.run().events["PANEL"]


def test_nine_players_are_exact_and_add_up(explain, tmp_path, subject_folder):
    ended = explain("-lp", "10", "--save-values", "values.npz", "--json", "numbers.json")
    found = panels(ended)
    assert [panel["estimator"] for panel in found] == ["exact"] * 3
    assert {panel["evaluations"] for panel in found} == {512}
    for panel in found:
        assert abs(panel["efficiency_gap"]) < 1e-9
        assert panel["values_sum"] == pytest.approx(panel["value_full"] - panel["value_empty"], abs=1e-4)
    assert "the last row and column have 8 px" in ended.stderr
    assert Image.open(tmp_path / "imgs" / "shap-lenet5-digits-7.png").size[0] > 500
    assert [each["class"] for each in json.loads((tmp_path / "numbers.json").read_text())] == [
        str(panel["class"]) for panel in found
    ]
    values = np.load(tmp_path / "values.npz")
    assert values["values"].shape == values["standard_errors"].shape == (3, 9)
    assert values["player_map"].shape == (28, 28)
    assert np.array_equal(values["maps"], values["values"][:, values["player_map"]])
    assert values["inputs"].shape == (3, 28, 28, 3)

    network = load_checkpoint(subject_folder / "own.pt")
    (picture,) = read(["digits:7"], network.preprocessing)
    with torch.no_grad():
        full, empty = (
            network.logits(pixels[None])[0].double()
            for pixels in (picture.pixels, torch.full_like(picture.pixels, 0.5))
        )
    target = values["targets"][0]
    odds = [float(torch.special.logit(logits.softmax(0)[target])) for logits in (full, empty)]
    assert odds == pytest.approx([values["scores"][0], values["empty_scores"][0]], abs=1e-4)


def test_more_players_are_estimated_with_errors_that_hold_the_exact_values(explain, tmp_path):
    explain(*FEW, "--save-values", "exact.npz")
    (panel,) = panels(explain(*FEW, "--budget", "200", "--save-values", "estimated.npz"))
    assert (panel["estimator"], panel["evaluations"]) == ("odd-gp", 200)
    exact, found = (np.load(tmp_path / f"{name}.npz") for name in ("exact", "estimated"))
    difference = np.abs(exact["values"] - found["values"])
    assert (difference <= 4 * found["standard_errors"]).all()
    assert panel["half_width"] == pytest.approx(1.96 * found["standard_errors"].max(), rel=1e-4)


def test_more_classes_cost_no_more_evaluations(explain, monkeypatch):
    asked = []
    original = games.MaskedImage.__call__
    monkeypatch.setattr(
        games.MaskedImage, "__call__", lambda game, s: asked.append(len(s)) or original(game, s)
    )
    for flags in (("-k", "1"), ("--target", *"0123456789")):
        asked.clear()
        found = panels(explain("-lp", "7", "--budget", "256", *flags))
        assert sum(asked) == found[0]["evaluations"] == 256


@pytest.mark.parametrize("estimator", ["odd-gp", "permutation", "per-patch", "exact"])
def test_every_estimator_draws(explain, tmp_path, estimator):
    flags = ("--show-uncertainty", *(() if estimator == "per-patch" else ("--interactions",)))
    (panel,) = panels(explain(*FEW, "--estimator", estimator, *flags))
    assert panel["estimator"] == estimator
    files = sorted(path.name for path in (tmp_path / "imgs").iterdir())
    assert len(files) == 1 + len(flags)
    for file in files:
        assert np.asarray(Image.open(tmp_path / "imgs" / file).convert("L")).std() > 10


@pytest.mark.parametrize("players", ["slic", "labels.png"])
@pytest.mark.parametrize("baseline", ["mean", "blur", "noise", "square.png"])
def test_other_players_and_baselines(explain, subject_folder, players, baseline):
    segments = ("--segments", "6") if players == "slic" else ()
    named = {name: subject_folder / name for name in ("labels.png", "square.png")}
    flags = ("--players", named.get(players, players), "--baseline", named.get(baseline, baseline))
    found = panels(explain("-k", "1", "--budget", "64", *flags, *segments))
    assert 2 <= found[0]["players"] <= 8


@pytest.mark.parametrize("estimator", ["exact", "odd-gp", "permutation"])
def test_one_player_has_all_there_is_whatever_the_estimator(explain, estimator):
    (panel,) = panels(explain("-lp", 28, "-k", 1, "--estimator", estimator))
    assert panel["evaluations"] == 2
    # The log has six digits of each.
    assert panel["values_sum"] == pytest.approx(panel["value_full"] - panel["value_empty"], rel=1e-4)


def test_scores_have_their_unit(explain):
    for score, low, high in (("probability", 0, 1), ("logit", -99, 99)):
        (panel,) = panels(explain(*FEW, "--score", score))
        assert low <= panel["value_empty"] <= high
        if score == "probability":
            assert panel["value_full"] == pytest.approx(panel["probability"], abs=1e-5)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(explain, tmp_path):
    def values(seed):
        assert explain(*FEW, "--budget", "100", "--seed", seed, "--save-values", "v.npz").status == 0
        return np.load(tmp_path / "v.npz")["values"]

    assert np.array_equal(values(1), values(1))
    assert not np.array_equal(values(1), values(2))


def test_tolerance_stops_early(explain):
    flags = ("-lp", "4", "-k", "1", "--budget", "3000")
    (whole,) = panels(explain(*flags))
    (early,) = panels(explain(*flags, "--tolerance", 8 * whole["half_width"]))
    assert early["evaluations"] < whole["evaluations"]
    assert early["half_width"] <= 8 * whole["half_width"]
    assert early["converged"]


def test_several_images_and_players_of_their_own_share_a_file(explain, tmp_path, subject_folder):
    flags = ("--input", "digits:7", subject_folder / "photo.png", "--players", "slic", "--segments", "9")
    found = panels(explain("-k", "2", "--budget", "64", *flags, "--save-values", "v.npz"))
    assert len(found) == 4
    values = np.load(tmp_path / "v.npz")
    assert values["values"].shape[0] == 4
    if len(values["player_map"].shape) == 3:
        for row, players in enumerate(values["player_map"]):
            assert np.isfinite(values["values"][row][: players.max() + 1]).all()


def test_what_is_not_known_is_null_in_the_records(explain, tmp_path):
    done = explain("--estimator", "per-patch", "-lp", "14", "-m", "1", "-k", "1", "--json", "records.json")
    assert done.status == 0, done.stderr

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    (record,) = json.loads((tmp_path / "records.json").read_text(), parse_constant=refuse)
    assert record["half_width"] is None


def test_no_picture_takes_the_place_of_another_and_each_names_its_epochs(explain, tmp_path, subject_folder):
    networks = [subject_folder / f"epoch_{number}.pt" for number in (3, 12)]
    same = tmp_path / "same" / "photo.png"
    same.parent.mkdir()
    same.write_bytes((subject_folder / "photo.png").read_bytes())
    flags = ("--input", subject_folder / "photo.png", same, "-k", "1", "--budget", "64", "-lp", "14")
    done = explain("--restore-file", *networks, *flags, own=False)
    assert done.status == 0, done.stderr
    names = [event["file"].rsplit("/")[-1] for event in done.run().events["FIGURE"]]
    stems = [f"shap-lenet5-epoch-{number}-photo" for number in (3, 12)]
    assert sorted(names) == sorted(f"{stem}{end}.png" for stem in stems for end in ("", "-2"))


def interrupt_after(monkeypatch, batches, act):
    """Do something before a batch of the script's evaluations."""
    original, count = games.MaskedImage.__call__, iter(range(10**6))

    def evaluate(game, coalitions):
        if next(count) == batches:
            act()
        return original(game, coalitions)

    monkeypatch.setattr(games.MaskedImage, "__call__", evaluate)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_with_what_is_known_by_then(explain, tmp_path, monkeypatch, number, status):
    interrupt_after(monkeypatch, 8, lambda: os.kill(os.getpid(), number))
    ended = explain("-lp", "4", "-k", "1", "--budget", "3000", "--save-values", "v.npz")
    assert ended.status == status
    assert "interrupted after" in ended.stderr
    assert "of 3000 evaluations: what is known is in imgs/shap-lenet5-digits-7.png" in ended.stderr
    assert (tmp_path / "imgs" / "shap-lenet5-digits-7.png").exists()
    values = np.load(tmp_path / "v.npz")
    assert 147 <= values["evaluations"][0] < 3000
    assert np.isfinite(values["standard_errors"]).all()


def test_an_interrupt_that_comes_too_early_is_one_line(explain, monkeypatch):
    interrupt_after(monkeypatch, 1, lambda: os.kill(os.getpid(), signal.SIGINT))
    ended = explain("-lp", "4", "-k", "1", "--budget", "3000")
    assert ended.status == 130
    assert ended.stderr.count("\n") == 1
    assert "too few to say anything" in ended.stderr


class Killed(BaseException):
    """As a killed process does, it lets nothing be tidied up that asks for less."""


def test_a_run_that_was_killed_reuses_the_evaluations_it_paid_for(explain, tmp_path, monkeypatch):
    flags = ("-lp", "4", "-k", "1", "--budget", "1000", "--resume-values", "paid.npz")
    (whole,) = panels(explain(*flags[:-2], "--save-values", "whole.npz"))

    def kill():
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(evaluation_store, "SECONDS_BETWEEN_SAVES", 0.0)
        interrupt_after(patched, 6, kill)
        with pytest.raises(Killed):
            explain(*flags)
    (resumed,) = panels(explain(*flags, "--save-values", "resumed.npz"))
    assert 50 < resumed["reused"] < 1000
    assert resumed["evaluations"] == whole["evaluations"] == 1000
    before, after = (np.load(tmp_path / f"{name}.npz")["values"] for name in ("whole", "resumed"))
    assert np.allclose(before, after, rtol=0, atol=1e-4)
    (again,) = panels(explain(*flags))
    assert again["reused"] == 1000


@pytest.mark.slow
def test_under_torchrun_it_is_one_run_with_the_same_values(subject_folder, explain, tmp_path):
    flags = ("-lp", "4", "-k", "2", "--budget", "300")
    assert explain(*flags, "--save-values", "one.npz").status == 0
    usual = ("--restore-file", subject_folder / "own.pt", "--input", "digits:7")
    done = torchrun(SCRIPT, *usual, *flags, "--save-values", "two.npz", folder=tmp_path)
    assert done.status == 0, done.stderr
    assert len(done.run().events["PANEL"]) == 2
    one, two = (np.load(tmp_path / f"{name}.npz")["values"] for name in ("one", "two"))
    assert np.allclose(one, two, rtol=0, atol=1e-4)


def test_amp_changes_values_a_little_and_not_the_exact_ones(explain):
    (plain,) = panels(explain(*FEW, "--budget", "100"))
    (rounded,) = panels(explain(*FEW, "--budget", "100", "--amp"))
    assert rounded["value_full"] != plain["value_full"]
    assert rounded["value_full"] == pytest.approx(plain["value_full"], abs=0.05)
    ended = explain(*FEW, "--amp")
    assert "--amp is off" in ended.stderr
    assert panels(ended)[0]["estimator"] == "exact"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("-lp", "29"), "larger than the image"),
        (("-lp", "1"), "784 players, more than 400: -lp 2 or more"),
        (("-lp", "4", "--budget", "146"), "148 or more"),
        (("--tolerance", "0"), "is not a number above 0"),
        (("--tolerance", "nan"), "is not a number above 0"),
        (("--players", "photo.png"), "has 80×60 pixels; the network sees 28×28"),
        (("--players", "text.png"), "is not an image in a known format"),
        (("--players", "nowhere.png"), "there is no file"),
        (("--players", "slic", "-lp", "4"), "--patch-side-len goes with --players patches alone"),
        (("--segments", "4"), "--segments goes with --players slic alone"),
        (("--baseline", "photo.png"), "has 80×60 pixels; the network sees 28×28"),
        (("--baseline", "text.png"), "is not an image"),
        (("--baseline", "nowhere.png"), "there is no file"),
        (("--estimator", "exact", "-lp", "4"), "needs 2^49"),
        (("--max-context", "3"), "goes with --estimator per-patch alone"),
        (("--estimator", "per-patch", "-m", "3", "--budget", "99"), "choose one"),
        (("--estimator", "per-patch", "--interactions"), "complementary pairs"),
        (("-lp", "28", "--interactions"), "needs two players"),
        (("--resume-values", "photo.png"), "the name must end in .npz"),
        (("--resume-values", "text.npz"), "holds no values of an earlier run"),
        (("--target", "zebra"), "there is no class 'zebra'"),
    ],
)
def test_a_mistake_is_one_line(explain, subject_folder, tmp_path, flags, message):
    for name in ("photo.png", "text.png"):
        (tmp_path / name).write_bytes((subject_folder / name).read_bytes())
    (tmp_path / "text.npz").write_text("no record")
    ended = explain(*flags)
    assert ended.status == 2
    assert ended.stderr.count("error: ") == ended.stderr.count("\n") == 1
    assert message in ended.stderr
    assert not list(tmp_path.glob("imgs/*"))


def test_help_needs_no_torch(process, tmp_path):
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')")
    ended = process(SCRIPT, "--help", PYTHONPATH=str(tmp_path))
    assert ended.status == 0, ended.stderr
    assert "--patch-side-len" in ended.stdout


def test_the_smallest_budget_that_is_allowed_is_enough(explain):
    """49 players: 3 evaluations each are 147, an odd number, and evaluations come in pairs."""
    refused = explain("-lp", 4, "--budget", 147, "-k", 1)
    assert (refused.status, refused.is_one_line_error()) == (2, True)
    assert "148 or more" in refused.stderr
    assert explain("-lp", 4, "--budget", 148, "-k", 1).status == 0
