"""Explanations of many images: as they come, flat in memory, resumed after a kill, shared by ranks."""

import gc
import json

import numpy as np
import pytest
from conftest import call, explaining
from PIL import Image
from test_distributed import torchrun

from lib.explain import gradients
from lib.tasks import explanation_output
from lib.tasks.explanation_panels import Panel

SCRIPT = "run-grad-cam.py"
explain = explaining(SCRIPT)

NETWORK = """
import torch
from torch import nn

SIZE, MEAN, STD, CLASSES = 64, 0.0, 1.0, ("bright", "dark")

class Bright(nn.Module):
    '''The brighter an image, the more of the first class; any size.'''
    def __init__(self):
        super().__init__()
        self.grey = nn.Conv2d(3, 4, 4, stride=4)
        self.grey.weight.data.fill_(1 / 48), self.grey.bias.data.zero_()
    def forward(self, x):
        mean = self.grey(x).relu().mean((1, 2, 3))
        return torch.stack([mean, -mean], 1)
"""


@pytest.fixture
def folder(tmp_path):
    """Fifteen small images in two folders, of which the eighth cannot be read, and a network for them."""
    for number in range(15):
        path = tmp_path / "in" / ("", "below")[number % 2] / f"i{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (40, 50 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    (tmp_path / "in" / "below" / "i07.png").write_text("no image")
    (tmp_path / "net.py").write_text(NETWORK)
    return tmp_path


def bright(*flags, folder, script=SCRIPT):
    return call(script, "--network", "net.py:Bright", "-k", 1, *flags, folder=folder)


def records(path) -> list[dict]:
    """Records without what differs from run to run."""
    text = path.read_text()
    found = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    left_out = ("seconds", "evaluations_per_second", "fingerprint", "panels")
    return [{key: value for key, value in each.items() if key not in left_out} for each in found]


@pytest.mark.slow
def test_each_of_many_images_has_a_figure_and_a_bad_one_is_skipped_and_counted(folder):
    done = bright("--input", "in", "--skip-bad", "--json", "r.jsonl", folder=folder)
    assert done.status == 0
    assert done.stderr.strip().splitlines() == [
        "warning: in/below/i07.png is not an image in a known format: skipped"
    ]
    names = [f"i{number:02d}" for number in (1, 3, 5, 9, 11, 13, *range(0, 15, 2))]
    assert [record["image"] for record in records(folder / "r.jsonl")] == names
    pictures = {path.name for path in (folder / "imgs").glob("*.png")}
    stem = "gradcam-net.Bright" if f"gradcam-net.Bright-{names[0]}.png" in pictures else "gradcam-Bright"
    assert pictures == {*(f"{stem}-{name}.png" for name in names), f"{stem}-i01-and-14-more-contact.png"}
    (event,) = done.run().events["DONE"]
    assert (event["images"], event["skipped"]) == (14, 1)
    assert event["images_per_second"] > 0


def test_without_skip_bad_one_line_names_the_image_and_the_way_out(folder):
    done = bright("--input", "in", folder=folder)
    assert done.status == 2
    assert "below/i07.png is not an image" in done.stderr
    assert "--skip-bad" in done.stderr


@pytest.mark.long
def test_nothing_is_kept_of_an_image_that_is_done(folder, monkeypatch):
    alive = []
    add = explanation_output.Output.add

    def count(output, result):
        add(output, result)
        gc.collect()
        alive.append(sum(type(each) is Panel for each in gc.get_objects()))

    monkeypatch.setattr(explanation_output.Output, "add", count)
    assert bright("--input", "in", "--skip-bad", folder=folder).status == 0
    assert len(alive) == 15
    assert max(alive) <= 1


class Killed(BaseException):
    """As a killed process does, it lets nothing be tidied up that asks for less."""


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(("--json", "r.jsonl"), marks=pytest.mark.long),
        pytest.param(("--save-values", "v/"), marks=pytest.mark.long),
        pytest.param(("--json", "r.jsonl", "--save-values", "v/"), marks=pytest.mark.slow),
    ],
)
def test_a_job_that_was_killed_goes_on_where_it_was(folder, monkeypatch, flags):
    usual = ("--input", "in", "--skip-bad")
    assert bright(*usual, "--json", "whole.json", folder=folder).status == 0
    original, calls = gradients.class_activation, []

    def explain_until(end):
        def explain(*arguments, **more):
            calls.append(1)
            if len(calls) == end:
                raise Killed
            return original(*arguments, **more)

        return explain

    with monkeypatch.context() as patched:
        patched.setattr(gradients, "class_activation", explain_until(6))
        with pytest.raises(Killed):
            bright(*usual, *flags, folder=folder)
    if (folder / "r.jsonl").exists():
        with (folder / "r.jsonl").open("a") as file:
            file.write('{"image": "i')  # what a process leaves that is killed while it writes
    calls.clear()
    monkeypatch.setattr(gradients, "class_activation", explain_until(0))
    done = bright(*usual, *flags, folder=folder)
    assert len(calls) == 14 - 5
    (event,) = done.run().events["DONE"]
    assert (event["images"], event["reused"], event["skipped"]) == (9, 5, 1)
    if (folder / "r.jsonl").exists():
        assert records(folder / "r.jsonl") == records(folder / "whole.json")
    if "v/" in flags:
        assert len(list((folder / "v").iterdir())) == 14
    calls.clear()
    # With other settings, everything is computed anew.
    bright(*usual, *flags, "--method", "layer-cam", folder=folder)
    assert len(calls) == 14


def test_a_file_of_something_else_is_not_written_to(folder):
    (folder / "notes.jsonl").write_text("{}\n")
    done = bright("--input", "in", "--json", "notes.jsonl", folder=folder)
    assert (done.status, done.is_one_line_error()) == (2, True)
    assert "line 1 of notes.jsonl" in done.stderr
    assert (folder / "notes.jsonl").read_text() == "{}\n"


@pytest.mark.slow
def test_batches_give_the_numbers_of_single_images(folder):
    for size in (1, 4):
        flags = ("--input", "in", "--skip-bad", "--fit", "stretch", "--guided", "--batch-size", size)
        assert bright(*flags, "--json", f"{size}.json", folder=folder).status == 0
    one, four = (records(folder / f"{size}.json") for size in (1, 4))
    assert len(one) == len(four) == 14 * 3
    for alone, in_batch in zip(one, four, strict=True):
        assert alone.keys() == in_batch.keys()
        for key, value in alone.items():
            assert in_batch[key] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch", "native"])
def test_a_planted_square_is_found_in_the_map_drawn_on_the_original(folder, fit):
    from lib.figures import frames

    pixels = np.zeros((600, 900, 3), dtype=np.uint8)
    pixels[150:250, 500:600] = 255
    Image.fromarray(pixels).save(folder / "planted.png")
    flags = ("--input", "planted.png", "--fit", fit, "--save-values", "v.npz", "--target", "bright")
    done = call(SCRIPT, "--network", "net.py:Bright", *flags, folder=folder)
    assert done.status == 0, done.stderr
    with np.load(folder / "v.npz") as values:
        (values_map,), (box,) = values["maps"], values["boxes"]
        size = {"native": (43, 64)}.get(fit, (64, 64))
        assert values_map.shape == size
        assert values["inputs"].shape == (1, *size, 3)
    drawn = np.nan_to_num(frames.onto(values_map, (600, 900), tuple(box)))
    weights = np.where(drawn > 0.6 * drawn.max(), drawn, 0)
    rows, columns = np.indices(drawn.shape)
    assert (weights * rows).sum() / weights.sum() == pytest.approx(199.5, abs=15)
    assert (weights * columns).sum() / weights.sum() == pytest.approx(549.5, abs=15)


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        ("run-shapley-value.py", ("-lp", "16", "--budget", "64")),
        ("run-shapley-value.py", ("--players", "slic", "--segments", "6", "--baseline", "blur")),
        ("run-integrated-gradients.py", ("--steps", "3", "--baseline", "mean")),
        (SCRIPT, ("--method", "occlusion")),
        (SCRIPT, ("--method", "score-cam")),
    ],
)
def test_every_method_takes_an_image_that_is_not_square(folder, script, flags):
    flags = ("--input", "in/i04.png", "--fit", "native", "--longest-side", 48, *flags)
    done = bright(*flags, "--save-values", "v.npz", script=script, folder=folder)
    assert done.status == 0, done.stderr
    with np.load(folder / "v.npz") as values:
        assert values["maps"].shape == (1, 36, 48)
    assert any("native" in path.name for path in (folder / "imgs").iterdir())


def test_a_network_of_one_size_refuses_another_and_says_what_to_do(explain, subject_folder):
    done = explain("--input", subject_folder / "photo.png", "--fit", "native")
    assert (done.status, done.is_one_line_error()) == (2, True)
    assert "lenet5 does not take an image of 28×21 pixels" in done.stderr
    assert "--fit pad" in done.stderr


@pytest.mark.slow
def test_names_of_files_say_what_is_in_them(explain, tmp_path):
    for flags in (
        (),
        ("--method", "layer-cam"),
        ("--layer", "c1"),
        ("--counterfactual",),
        ("--guided",),
        ("--target", 3, "--score", "probability"),
    ):
        assert explain(*flags).status == 0
    stem = "lenet5-digits-7"
    assert {path.name for path in (tmp_path / "imgs").iterdir()} == {
        f"gradcam-{stem}.png",
        f"layer-cam-{stem}.png",
        *(f"gradcam-{stem}-{end}.png" for end in ("c1", "against", "guided", "of-3-probability")),
    }


def test_lines_fit_a_page_and_a_class_is_not_torn_from_its_guided_panels(explain, tmp_path):
    widths = {}
    for columns in (None, 10):
        more = () if columns is None else ("--columns", columns)
        assert explain("--guided", "-k", 3, *more).status == 0
        with Image.open(tmp_path / "imgs" / "gradcam-lenet5-digits-7-guided.png") as image:
            widths[columns] = image.size
    assert widths[None][0] <= 1150 * 1.5 < widths[10][0]  # at 150 dpi
    assert widths[None][1] > 2 * widths[10][1]


@pytest.mark.parametrize(
    ("script", "flags"),
    [
        pytest.param(SCRIPT, (), marks=pytest.mark.slow),
        pytest.param("run-shapley-value.py", ("-lp", 32), marks=pytest.mark.long),
        pytest.param("run-integrated-gradients.py", ("--steps", 4), marks=pytest.mark.long),
    ],
)
def test_two_ranks_give_the_records_of_one_in_the_same_order(folder, script, flags):
    usual = ("--network", "net.py:Bright", "--input", "in", "--skip-bad", *flags)
    assert call(script, *usual, "--json", "one.jsonl", folder=folder).status == 0
    done = torchrun(script, *usual, "--json", "two.jsonl", "--save-values", "v.npz", folder=folder)
    assert done.status == 0, done.stderr
    assert records(folder / "two.jsonl") == records(folder / "one.jsonl")
