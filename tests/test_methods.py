"""The table of methods: every entry draws through the script, and what no method promises is refused."""

import json

import numpy as np
import pytest
import torch
from conftest import explaining, panels_of
from explained import small, small_images
from torch import nn

from lib.explain.methods import METHODS, Request
from lib.explain.progress import Stopped, Watch
from lib.explain.targets import class_scores
from lib.runtime.errors import UserError

explain = explaining("run-grad-cam.py")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_draws_records_and_saves_without_an_edit_elsewhere(explain, tmp_path, name):
    files = ("--json", "all.json", "--save-values", "all.npz")
    panels = panels_of(explain("--method", name, "-k", 2, *files))
    assert [panel["method"] for panel in panels] == [name] * 2
    assert len(json.loads((tmp_path / "all.json").read_text())) == 2
    arrays = np.load(tmp_path / "all.npz")
    assert arrays["maps"].shape == (2, 28, 28)
    assert ("raw_maps" in arrays) == METHODS[name].at_layers
    assert (arrays["maps"] < 0).any() == METHODS[name].signed
    assert list(tmp_path.glob("imgs/gradcam-*.png"))


def test_every_method_is_in_the_help_with_its_paper(process):
    printed = process("run-grad-cam.py", "--help").stdout
    assert all(each.title in printed and each.paper in printed for each in METHODS.values())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--method", "occlusion", "--layer", "c1"), "--layer goes with maps of layers"),
        (("--method", "input-x-gradient", "--guided"), "--guided goes with maps of layers"),
        (("--occlusion-side", "4"), "--occlusion-side does not go with --method grad-cam"),
        (("--method", "score-cam", "--baseline", "black"), "--baseline does not go with --method score-cam"),
        (("--method", "score"), "invalid choice: 'score'"),
    ],
)
def test_what_does_not_go_together_is_said_in_one_line(explain, flags, said):
    done = explain(*flags)
    assert (done.status, done.is_one_line_error()) == (2, True)
    assert said in done.stderr


def test_score_cam_is_its_equation_in_closed_form():
    """One layer that copies the image's channels, and a score that is the mean of the first of them."""
    images = small_images()[:, :2].abs()
    model = nn.Sequential(nn.Identity())

    def scores(output):
        return output[:, 0].mean((1, 2))[None]

    found = METHODS["score-cam"].explain(Request(model, images, scores, ["0"])).values["0"]
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    masks = (images - low) / (high - low + 1e-8)
    weights = torch.stack([(images[:, 0] * masks[:, k]).mean((1, 2)) for k in range(2)], 1).softmax(1)
    torch.testing.assert_close(found[0], torch.einsum("bk,bkhw->bhw", weights, images))


def test_occlusion_of_a_linear_score_is_the_mean_of_what_each_square_takes_away():
    torch.manual_seed(0)
    images, weights = torch.randn(2, 1, 6, 7).double(), torch.randn(6, 7).double()
    model = nn.Flatten()

    def scores(output):
        return (output.view(-1, 6, 7) * weights).sum((1, 2))[None]

    settings = {"occlusion-side": 3, "occlusion-stride": 2}
    found = METHODS["occlusion"].explain(Request(model, images, scores, settings=settings)).values[""]
    expected, count = torch.zeros(2, 6, 7).double(), torch.zeros(6, 7).double()
    for row in (0, 2, 4):
        for column in (0, 2, 4):
            place = (slice(row, row + 3), slice(column, column + 3))
            taken = (images[:, 0] * weights)[:, place[0], place[1]].sum((1, 2))
            expected[:, place[0], place[1]] += taken[:, None, None]
            count[place] += 1
    torch.testing.assert_close(found[0], expected / count)


@pytest.mark.parametrize("name", ["score-cam", "occlusion"])
def test_methods_of_many_passes_tell_their_progress_and_stop_when_told_to(name):
    planned, done = [], []
    watch = Watch(planned.append, done.append)
    request = Request(small().eval(), small_images(), class_scores([1]), ["second"], watch=watch)
    found = METHODS[name].explain(request)
    assert sum(planned) == sum(done) == found.forward_passes - len(small_images())
    stopped = Watch(is_stopped=lambda: True)
    with pytest.raises(Stopped):
        METHODS[name].explain(
            Request(small().eval(), small_images(), class_scores([1]), ["second"], watch=stopped)
        )


def test_score_cam_names_a_layer_that_has_a_map():
    model = small().eval()
    with pytest.raises(UserError, match="has no spatial map"):
        METHODS["score-cam"].explain(Request(model, small_images(), class_scores([1]), ["head"]))
