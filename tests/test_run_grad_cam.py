"""The Grad-CAM script from end to end: sheets, numbers, arrays, filmstrips, refusals."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, call, explaining, panels_of, write_checkpoint
from PIL import Image
from scipy.stats import spearmanr

from lib.data.image_inputs import read
from lib.explain import gradients, placement
from lib.explain.targets import class_scores
from lib.models.network import load_checkpoint, load_pretrained
from lib.tasks.class_activation import rank_correlation

SCRIPT = "run-grad-cam.py"


explain = explaining(SCRIPT)


def test_a_sheet_is_drawn_and_every_panel_has_a_line_of_numbers(explain, tmp_path):
    done = explain()
    assert [path.name for path in (tmp_path / "imgs").iterdir()] == ["gradcam-lenet5-digits-7.png"]
    panels = panels_of(done)
    assert len(panels) == 3
    assert [panel["probability"] for panel in panels] == sorted(
        (panel["probability"] for panel in panels), reverse=True
    )
    for panel in panels:
        assert (panel["image"], panel["model"], panel["method"]) == ("digits-7", "lenet5", "grad-cam")
        assert {"layer", "class", "target", "score", "map_maximum", "zero_share", "seconds"} <= panel.keys()
        assert (panel["forward_passes"], panel["backward_passes"]) == (1, 3)


def test_each_cell_is_drawn_where_it_looks(explain, tmp_path):
    """A cell of s4 sees 16 pixels of every fourth: its middle is at 5.5 + 4 i, not at 2.3 + 5.6 i."""
    done = explain("--target", "3", "--guided", "--save-values", "v.npz")
    explain("--target", "3", "--guided", "--place", "grid", "--save-values", "grid.npz")
    with np.load(tmp_path / "v.npz") as values, np.load(tmp_path / "grid.npz") as on_grid:
        raw = torch.from_numpy(values["raw_maps"][0])
        place = placement.Place(*[placement.Axis(4, 5.5)] * 2)
        np.testing.assert_allclose(values["maps"][0], placement.drawn(raw, place, (28, 28)), rtol=1e-6)
        np.testing.assert_array_equal(raw, on_grid["raw_maps"][0])
        # Guided Grad-CAM multiplies there, too.
        maps, guided, product = values["maps"]
        np.testing.assert_allclose(product, maps * guided, rtol=1e-5, atol=1e-7)
        assert abs(maps - on_grid["maps"][0]).max() > 0.05 * maps.max()
    assert {panel.get("place") for panel in panels_of(done)} == {"receptive-field"}


def test_numbers_arrays_and_records_are_those_of_the_method(explain, tmp_path, subject_folder):
    done = explain(
        *("--target", "3", "8", "--layer", "c1", "s4", "--place", "grid"),
        *("--save-values", "v.npz", "--json", "out/v.json"),
    )
    network = load_checkpoint(subject_folder / "own.pt")
    (picture,) = read(["digits:7"], network.preprocessing)
    images = network.normalise(picture.pixels[None])
    found = gradients.grad_cam(network.module, ["c1", "s4"], images, class_scores([3, 8]))
    expected = [found.maps[layer][target, 0] for layer in ("c1", "s4") for target in range(2)]
    with np.load(tmp_path / "v.npz") as values:
        assert values["layers"].tolist() == ["c1", "c1", "s4", "s4"]
        assert values["classes"].tolist() == ["3", "8", "3", "8"]
        assert values["names"].tolist() == ["digits-7"] * 4
        assert values["inputs"].shape == (4, 28, 28, 3)
        np.testing.assert_array_equal(values["inputs"][0, ..., 0], np.round(picture.pixels[0].numpy() * 255))
        for index, raw in enumerate(expected):
            height, width = values["raw_sizes"][index]
            np.testing.assert_allclose(values["raw_maps"][index, :height, :width], raw, rtol=1e-6)
            assert np.isnan(values["raw_maps"][index, height:]).all()
            np.testing.assert_allclose(values["maps"][index], gradients.upsample(raw, 28), rtol=1e-6)
        np.testing.assert_allclose(values["scores"][:2], found.output[0, [3, 8]], rtol=1e-6)
    written = json.loads((tmp_path / "out" / "v.json").read_text())
    assert {record["place"] for record in written} == {"grid"}
    assert [record["map_maximum"] for record in written] == [float(raw.max()) for raw in expected]
    for record, logged in zip(written, panels_of(done), strict=True):
        assert record["probability"] == pytest.approx(logged["probability"], rel=1e-4)
        assert record["class"] == str(logged["class"])


def test_guided_adds_two_columns_a_class(explain, tmp_path, subject_folder):
    panels = panels_of(explain("--guided", "-k", 2, "--save-values", "v.npz"))
    assert [panel["method"] for panel in panels] == ["grad-cam", "guided", "guided-grad-cam"] * 2
    network = load_checkpoint(subject_folder / "own.pt")
    images = network.normalise(read(["digits:7"], network.preprocessing)[0].pixels[None])
    values = gradients.guided_backprop(network.module, images, class_scores([panels[0]["target"]])).values
    with np.load(tmp_path / "v.npz") as saved:
        np.testing.assert_allclose(saved["maps"][1], values[0, 0].sum(0), rtol=1e-5, atol=1e-9)
        product = saved["maps"][0] * saved["maps"][1]
        np.testing.assert_allclose(saved["maps"][2], product, rtol=1e-5, atol=1e-9)


def test_smoothing_and_the_rule_change_the_guided_columns_alone(explain):
    plain = panels_of(explain("--guided", "-k", 1))
    smooth = panels_of(explain("--guided", "-k", 1, "--smoothgrad", 3))
    deconvnet = panels_of(explain("--guided", "-k", 1, "--rule", "deconvnet"))
    for other in (smooth, deconvnet):
        assert other[0]["map_maximum"] == plain[0]["map_maximum"]
        assert other[1]["map_maximum"] != plain[1]["map_maximum"]
    assert (smooth[1]["forward_passes"], smooth[1]["backward_passes"]) == (3, 3)
    assert (
        panels_of(explain("--guided", "-k", 1, "--smoothgrad", 3))[1]["map_maximum"]
        == smooth[1]["map_maximum"]
    )


def test_redrawn_layers_add_columns_that_say_how_far_the_map_moved(explain):
    panels = panels_of(explain("--randomise", 2, "-k", 2))
    assert len(panels) == 6
    assert [panel.get("redrawn", "").count(",") for panel in panels[2:]] == [0, 0, 1, 1]
    assert panels[4]["redrawn"].startswith(panels[2]["redrawn"])
    assert all(-1 <= panel["rank_correlation"] <= 1 for panel in panels[2:])
    assert "rank_correlation" not in panels[0]
    assert panels[0]["score"] != panels[2]["score"]


def test_the_counterfactual_is_a_map_of_the_negated_score(explain):
    plain, negated = panels_of(explain("--target", 3)), panels_of(explain("--target", 3, "--counterfactual"))
    assert plain[0]["score"] == negated[0]["score"]
    assert plain[0]["map_maximum"] != negated[0]["map_maximum"]


@pytest.mark.slow
def test_checkpoints_are_a_filmstrip_in_the_order_of_their_epochs_about_the_classes_of_the_last(
    explain, subject_folder, tmp_path
):
    files = [subject_folder / f"{name}.pt" for name in ("own", "epoch_12", "epoch_3")]
    done = explain(
        "--restore-file", *files, "--input", "digits:7", subject_folder / "photo.png", "--animate", own=False
    )
    panels = panels_of(done, may_be_zero=True)
    assert [panel["epoch"] for panel in panels] == [1, 1, 1, 3, 3, 3, 12, 12, 12] * 2
    assert [panel["image"] for panel in panels] == ["digits-7"] * 9 + ["photo"] * 9
    for first in (0, 9):
        targets = [panel["target"] for panel in panels[first : first + 9]]
        assert targets[:3] == targets[3:6] == targets[6:]
    stem = "gradcam-lenet5-digits-7-photo"
    assert sorted(path.name for path in (tmp_path / "imgs").iterdir()) == [f"{stem}.gif", f"{stem}.png"]
    with Image.open(tmp_path / "imgs" / f"{stem}.gif") as animation:
        assert animation.n_frames == 3


def test_layers_are_listed_with_their_sizes_and_the_default_is_marked(explain, subject_folder):
    done = explain("--restore-file", subject_folder / "own.pt", "--list-layers", own=False)
    assert (done.status, done.stderr) == (0, "")
    assert any(line.split() == ["c1", "Conv2d", "6×28×28"] for line in done.stdout.splitlines())
    (default,) = [line.split()[0] for line in done.stdout.splitlines() if "(default)" in line]
    assert {panel["layer"] for panel in panels_of(explain())} == {default}


def test_a_network_of_torchvisions_explains_a_photograph(subject_folder, tmp_path):
    flags = (
        "--ptm",
        "squeezenet1_1",
        "--weights",
        "random",
        "--input",
        subject_folder / "photo.png",
        "-k",
        1,
    )
    panels = panels_of(call(SCRIPT, *flags, folder=tmp_path))
    assert len(panels) == 1
    assert (tmp_path / "imgs" / "gradcam-squeezenet1_1-photo.png").exists()


def test_several_networks_of_torchvisions_explain_the_same_classes_each_with_its_weights(
    subject_folder, tmp_path
):
    file = tmp_path / "squeezenet.pth"
    torch.save(load_pretrained("squeezenet1_1", "random", seed=7).module.state_dict(), file)
    flags = ("--input", subject_folder / "photo.png", "--target", 3, "--ptm", "squeezenet1_1", "alexnet")
    together = panels_of(call(SCRIPT, *flags, "--weights", file, "random", folder=tmp_path))
    alone = panels_of(call(SCRIPT, *flags[:-1], "--weights", file, folder=tmp_path))
    assert [panel["model"] for panel in together] == ["squeezenet1_1", "alexnet"]
    assert together[0]["map_maximum"] == alone[0]["map_maximum"]
    assert (tmp_path / "imgs" / "gradcam-squeezenet1_1-alexnet-photo-of-3.png").exists()


@pytest.mark.slow
def test_the_same_flags_write_the_same_bytes(explain, tmp_path):
    explain("--guided", "--smoothgrad", 2, "--randomise", 1, "--out-dir", "once")
    explain("--guided", "--smoothgrad", 2, "--randomise", 1, "--out-dir", "again")
    once, again = (next((tmp_path / name).iterdir()).read_bytes() for name in ("once", "again"))
    assert once == again


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (("--layer", "c9"), "no layer 'c9'; choose from"),
        (("--layer", "f6"), "'f6' has no spatial map"),
        (("--target", "cat"), "no class 'cat'"),
        (("--target", "10"), "0 to 9"),
        (("-k", "11"), "-k 11 is more than the 10 classes"),
        (("-k", "2", "--target", "3"), "choose one"),
        (("--weights", "random"), "--weights goes with --ptm or --network alone"),
        (("--rule", "deconvnet"), "--rule goes with --guided alone"),
        (("--smoothgrad", "3"), "--smoothgrad goes with --guided alone"),
        (("--randomise", "99"), "99"),
        (("--animate",), "two checkpoints or more"),
        (("--ptm", "resnet18"), "not allowed with"),
        (("--input", "nothere.jpg"), "there is no file nothere.jpg"),
        (("--input", "digits:360"), "0 to 359"),
        (("--save-values", "v.txt"), "must end in .npz"),
        (("--device", "nonesuch"), "--device nonesuch"),
        (("--method", "cam"), "invalid choice"),
    ],
)
def test_a_mistake_is_one_line_and_draws_nothing(explain, tmp_path, flags, match):
    done = explain(*flags)
    assert (done.status, done.stdout) == (2, "")
    assert done.is_one_line_error(), done.stderr
    assert match in done.stderr
    assert not list(tmp_path.glob("imgs/*"))


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ((), "--ptm NAME"),
        (("--ptm", "resnet18"), "--input FILE"),
        (("--ptm", "resnet", "--input", "digits:7"), "nearest names are resnet"),
        (("--restore-file", "missing.pt", "--input", "digits:7"), "there is no file missing.pt"),
        (
            ("--ptm", "vgg16", "alexnet", "--weights", "a", "b", "c", "--input", "digits:7"),
            "3 are given, 2 needed",
        ),
        (("--ptm", "resnet18", "fcn_resnet50", "--input", "digits:7"), "leave out the others"),
    ],
)
def test_without_a_network_or_an_image_one_line_says_what_is_missing(explain, flags, match):
    done = explain(*flags, own=False)
    assert done.status == 2
    assert done.is_one_line_error(), done.stderr
    assert match in done.stderr


def test_damaged_files_are_one_line(explain, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    write_checkpoint(tmp_path / "text.pt", task="text-classification")
    (tmp_path / "half.pt").write_bytes((tmp_path / "text.pt").read_bytes()[:1000])
    for flags in (
        ("--input", "text.jpg"),
        ("--input", "digits:7", "empty.png"),
        ("--restore-file", "text.pt"),
        ("--restore-file", "half.pt"),
    ):
        done = explain(*flags)
        assert done.status == 2
        assert done.is_one_line_error(), done.stderr
        assert flags[-1] in done.stderr


@pytest.mark.parametrize("script", [SCRIPT, "run-integrated-gradients.py"])
def test_help_answers_without_importing_torch(script):
    code = (
        "import atexit, runpy, sys; sys.argv[1:] = ['--help']; "
        "atexit.register(lambda: print('torch' in sys.modules or 'numpy' in sys.modules)); "
        f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "--save-values" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_an_interrupt_ends_in_one_line_and_leaves_no_picture(explain, tmp_path, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(gradients, "guided_backprop", interrupt)
    done = explain("--guided", "--save-values", "v.npz")
    assert (done.status, done.stdout, done.stderr) == (130, "", "interrupted\n")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_rank_correlation_is_spearmans_and_unknown_for_a_flat_map():
    a, b = torch.rand(2, 7, 7, generator=torch.Generator().manual_seed(0))
    b = (b * 4).round()  # with ties
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a.flatten(), b.flatten()).statistic)
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert np.isnan(rank_correlation(a, torch.zeros(7, 7)))


def test_the_flags_of_a_run_are_saved_and_make_it_again(explain, tmp_path):
    first = panels_of(explain("--method", "occlusion", "--occlusion-side", 5, "--save-config", "run.toml"))
    again = panels_of(explain("--config", "run.toml"))
    assert "occlusion-side = 5" in (tmp_path / "run.toml").read_text()
    for before, after in zip(first, again, strict=True):
        assert before | {"seconds": 0} == after | {"seconds": 0}
