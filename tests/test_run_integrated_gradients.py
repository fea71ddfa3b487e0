"""The integrated gradients script from end to end: sums that come out, baselines, numbers, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import explaining, panels_of

from lib.data.image_inputs import read
from lib.explain import baselines
from lib.models.network import load_checkpoint

SCRIPT = "run-integrated-gradients.py"


explain = explaining(SCRIPT)


def logits(subject_folder: Path, pixels: torch.Tensor) -> torch.Tensor:
    return load_checkpoint(subject_folder / "own.pt").logits(pixels[None])[0]


def example(subject_folder: Path) -> torch.Tensor:
    network = load_checkpoint(subject_folder / "own.pt")
    return read(["digits:7"], network.preprocessing)[0].pixels


def test_a_map_adds_up_to_the_difference_of_the_scores_but_for_the_gap_that_is_printed(
    explain, tmp_path, subject_folder
):
    panels = panels_of(explain("--save-values", "v.npz", "--tolerance", "0.05", "-k", 2))
    assert [path.name for path in (tmp_path / "imgs").iterdir()] == ["ig-lenet5-digits-7.png"]
    pixels = example(subject_folder)
    score, black = logits(subject_folder, pixels), logits(subject_folder, torch.zeros_like(pixels))
    with np.load(tmp_path / "v.npz") as values:
        assert "raw_maps" not in values
        sums = values["maps"].astype(np.float64).sum((1, 2))
    for panel, total in zip(panels, sums, strict=True):
        difference = float(score[panel["target"]] - black[panel["target"]])
        assert panel["score_difference"] == pytest.approx(difference, abs=1e-4)
        assert panel["completeness_gap"] == pytest.approx(total - difference, abs=1e-5)
        assert panel["gap_share"] <= 0.05
        assert panel["converged"] is True
        assert panel["backward_passes"] == 2 * (panel["forward_passes"] - 2)


def test_steps_that_are_not_enough_are_told_on_standard_error_and_in_the_numbers(explain):
    done = explain("--tolerance", "1e-12", "-k", 1)
    assert done.status == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: digits-7: 1458 steps do not bring 1 of 1 maps within --tolerance 1e-12")
    assert "converged=False" in done.stdout


@pytest.mark.parametrize("rule", ["midpoint", "trapezoid", "gauss-legendre", "right"])
def test_given_steps_are_taken_by_every_rule(explain, rule):
    panels = panels_of(explain("--steps", 7, "--quadrature", rule, "-k", 1))
    assert (panels[0]["steps"], panels[0]["rule"]) == (7, rule)


@pytest.mark.parametrize("kind", [*baselines.KINDS, "FILE", "digits:8"])
def test_the_path_begins_at_the_baseline(explain, subject_folder, kind):
    pixels = example(subject_folder)
    network = load_checkpoint(subject_folder / "own.pt")
    named = str(subject_folder / "photo.png") if kind == "FILE" else kind
    if kind in baselines.KINDS:
        start = baselines.baseline(kind, pixels, seed=42)
    else:
        start = read([named], network.preprocessing)[0].pixels
    (panel,) = panels_of(explain("--baseline", named, "--target", 3, "--steps", 5))
    assert panel["baseline_score"] == pytest.approx(float(logits(subject_folder, start)[3]), rel=1e-4)
    assert panel["baseline"] == named


def test_baselines_are_what_they_are_called():
    pixels = torch.rand(2, 3, 32, 32)
    black, grey, mean, blur, noise = (baselines.baseline(kind, pixels) for kind in baselines.KINDS)
    assert black.unique().tolist() == [0]
    assert grey.unique().tolist() == [0.5]
    torch.testing.assert_close(mean, pixels.mean((2, 3), keepdim=True).expand(-1, -1, 32, 32))
    assert blur.var() < 0.05 * pixels.var()
    torch.testing.assert_close(blur.mean(), pixels.mean(), atol=0.02, rtol=0)
    assert 0 <= noise.min() < 0.01 < 0.99 < noise.max() <= 1
    assert torch.equal(noise, baselines.baseline("noise", pixels))
    assert not torch.equal(noise, baselines.baseline("noise", pixels, seed=1))
    for each in (black, grey, mean, blur, noise):
        assert each.shape == pixels.shape
        assert torch.equal(baselines.baseline("blur", pixels[0]), blur[0])


def test_the_score_is_the_one_that_was_asked_for(explain, subject_folder):
    (panel,) = panels_of(explain("--target", 3, "--score", "log-odds"))
    z = logits(subject_folder, example(subject_folder)).double()
    others = torch.cat([z[:3], z[4:]])
    assert panel["score"] == pytest.approx(float(z[3] - others.logsumexp(0)), rel=1e-4)
    (panel,) = panels_of(explain("--target", 3, "--score", "probability"))
    assert panel["score"] == pytest.approx(panel["probability"], rel=1e-5)


def test_smoothing_averages_over_noisy_images_and_still_says_its_gap(explain, tmp_path):
    panels = panels_of(explain("--smoothgrad", 3, "--steps", 9, "--json", "v.json", "--save-values", "v.npz"))
    assert panels[0]["forward_passes"] == 3 * (9 + 2)
    with np.load(tmp_path / "v.npz") as values:
        sums = values["maps"].astype(np.float64).sum((1, 2))
    written = json.loads((tmp_path / "v.json").read_text(), parse_constant=pytest.fail)
    for record, total in zip(written, sums, strict=True):
        assert record["map_change"] is None  # the steps were given
        assert record["completeness_gap"] == pytest.approx(total - record["score_difference"], abs=1e-5)


def test_the_size_of_a_batch_changes_no_value(explain, tmp_path):
    explain("--steps", 10, "-bs", 1, "--save-values", "one.npz")
    explain("--steps", 10, "-bs", 64, "--save-values", "all.npz")
    with np.load(tmp_path / "one.npz") as one, np.load(tmp_path / "all.npz") as every:
        np.testing.assert_allclose(one["maps"], every["maps"], atol=1e-6)


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--steps", "5", "--tolerance", "0.1"), "choose one"),
        (("--tolerance", "0"), "above 0"),
        (("--quadrature", "gauss-legendre"), "needs a number of steps"),
        (("--baseline", "white"), "neither"),
        (("--baseline", "nothere.png"), "nothere.png"),
        (("--noise", "0.1"), "--noise goes with --smoothgrad alone"),
        (("-bs", "0"), "at least 1"),
        (("--target", "cat"), "no class 'cat'"),
        (("-k", "11"), "the 10 classes"),
    ],
)
def test_a_mistake_is_one_line_and_draws_nothing(explain, tmp_path, flags, match):
    done = explain(*flags)
    assert (done.status, done.stdout) == (2, "")
    assert done.is_one_line_error(), done.stderr
    assert match in done.stderr
    assert not list(tmp_path.glob("imgs/*"))


def test_the_old_names_of_flags_still_work_and_say_so_once(explain):
    done = explain("--steps", 7, "--rule=trapezoid", "--smooth", 2, "--smooth", 2, "-k", 1)
    assert done.status == 0
    assert sorted(done.stderr.splitlines()) == [
        "warning: --rule is now called --quadrature; the old name still works",
        "warning: --smooth is now called --smoothgrad; the old name still works",
    ]
    (panel,) = done.run().events["PANEL"]
    assert (panel["rule"], panel["forward_passes"]) == ("trapezoid", 2 * (8 + 2))
