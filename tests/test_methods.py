"""The table of methods: every entry draws through the script, and what no method promises is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import explaining, panels_of
from explained import network_of, request, small, small_images
from torch import nn

from lib.explain.explanation import Request
from lib.explain.integrated_gradients import RULES
from lib.explain.methods import METHODS, drawn_by
from lib.explain.players import patches
from lib.explain.progress import Stopped, Watch
from lib.explain.shapley import ESTIMATORS
from lib.explain.targets import Target, class_target
from lib.runtime.errors import UserError

explain = explaining("run-grad-cam.py")
SHEETS = drawn_by("run-grad-cam.py")


@pytest.mark.parametrize("name", SHEETS)
def test_every_method_draws_records_and_saves_without_an_edit_elsewhere(explain, tmp_path, name):
    files = ("--json", "all.json", "--save-values", "all.npz")
    panels = panels_of(explain("--method", name, "-k", 2, *files))
    assert [panel["method"] for panel in panels] == [name] * 2
    assert len(json.loads((tmp_path / "all.json").read_text())) == 2
    arrays = np.load(tmp_path / "all.npz")
    assert arrays["maps"].shape == (2, 28, 28)
    assert ("raw_maps" in arrays) == METHODS[name].at_layers
    assert (arrays["maps"] < 0).any() == METHODS[name].signed
    stem = "gradcam" if name == "grad-cam" else name
    assert list(tmp_path.glob(f"imgs/{stem}-*.png"))


def test_every_method_is_in_the_help_with_its_paper(process):
    printed = process("run-grad-cam.py", "--help").stdout
    assert all(each.title in printed and each.paper in printed for each in SHEETS.values())


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
        return output[:, 0].mean((1, 2))

    found = METHODS["score-cam"].explain(request(model, images, [scores], ["0"])).values["0"]
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    masks = (images - low) / (high - low + 1e-8)
    weights = torch.stack([(images[:, 0] * masks[:, k]).mean((1, 2)) for k in range(2)], 1).softmax(1)
    torch.testing.assert_close(found[0], torch.einsum("bk,bkhw->bhw", weights, images))


def test_occlusion_of_a_linear_score_is_the_mean_of_what_each_square_takes_away():
    torch.manual_seed(0)
    images, weights = torch.randn(2, 1, 6, 7).double(), torch.randn(6, 7).double()
    model = nn.Flatten()

    def scores(output):
        return (output.view(-1, 6, 7) * weights).sum((1, 2))

    settings = {"occlusion-side": 3, "occlusion-stride": 2}
    black = torch.zeros_like(images)
    asked = request(model, images, [scores], baseline=black, settings=settings)
    found = METHODS["occlusion"].explain(asked).values[""]
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
    found = METHODS[name].explain(request(small(), small_images(), [1], ["second"], watch=watch))
    assert sum(planned) == sum(done) == found.forward_passes - len(small_images())
    stopped = Watch(is_stopped=lambda: True)
    with pytest.raises(Stopped):
        METHODS[name].explain(request(small(), small_images(), [1], ["second"], watch=stopped))


def test_score_cam_names_a_layer_that_has_a_map():
    with pytest.raises(UserError, match="has no spatial map"):
        METHODS["score-cam"].explain(request(small(), small_images(), [1], ["head"]))


@pytest.mark.parametrize("name", METHODS)
def test_every_method_explains_a_network_from_elsewhere_through_the_one_door(name):
    """No script, no file, no class names: a module, images and targets, and all else by default."""
    images = torch.rand(2, 2, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    method, settings = METHODS[name], {"players": patches(8, 4)} if name == "shapley" else {}
    network = network_of(small())
    method.check(network)
    asked = Request(
        network, images, [class_target(1), class_target(3, "log-odds", "three")], settings=settings
    )
    found = method.explain(asked)
    (values,) = found.values.values()
    assert values.shape[:2] == (2, 2)
    assert values.isfinite().all()
    assert values.any()
    assert (values < 0).any() <= method.signed == found.signed
    (maps,) = found.maps(8).values()
    assert maps.shape == (2, 2, 8, 8)
    torch.testing.assert_close(found.output, network.logits(images))
    assert found.forward_passes >= 2
    assert found.seconds > 0
    record = found.record(1, image=1)
    assert record["seconds"] == round(found.seconds, 4)
    assert not [value for value in record.values() if isinstance(value, torch.Tensor)]
    if found.additivity is not None:
        sums = values.flatten(2).sum(2).double()
        promised = found.additivity
        torch.testing.assert_close(sums - promised.difference, promised.gap)
        assert (promised.gap_share <= 0.01).all()
    # Each image is explained by itself: the other changes nothing.
    alone = method.explain(replace(asked, images=images[1:]))
    torch.testing.assert_close(next(iter(alone.values.values()))[:, 0], values[:, 1])


def test_the_choices_in_the_table_are_those_that_the_methods_know():
    """The table is read by `--help`, and cannot import what computes."""
    choices = {option.name: option.choices for method in METHODS.values() for option in method.options}
    assert sorted(choices["quadrature"]) == sorted(RULES)
    assert sorted(choices["estimator"]) == sorted(["auto", *ESTIMATORS])


@pytest.mark.parametrize("name", ["occlusion", "input-x-gradient", "integrated-gradients", "shapley"])
def test_the_negative_of_a_target_has_the_negative_explanation(name):
    images, settings = torch.rand(1, 2, 8, 8).double(), {"players": patches(8, 4)}
    target = class_target(2)
    found, negative = (
        METHODS[name].explain(Request(network_of(small()), images, [each], settings=settings)).values[""]
        for each in (target, -target)
    )
    torch.testing.assert_close(negative, -found)


def test_an_area_of_an_output_can_be_a_target():
    """The class 1 over the left half of a segmentation: its explanation is zero on the right."""
    segmentation = nn.Conv2d(2, 3, 1).double()
    target = Target("class 1, left half", lambda output: output[:, 1, :, :4].mean((1, 2)))
    images = torch.rand(1, 2, 8, 8).double()
    for name in ("input-x-gradient", "integrated-gradients"):
        asked = Request(network_of(segmentation), images, [target])
        (found,) = METHODS[name].explain(asked).values[""]
        expected = images * segmentation.weight[1].detach() / 32
        torch.testing.assert_close(found[..., :4], expected[..., :4])
        assert not found[..., 4:].any()


@pytest.mark.parametrize(
    ("module", "name", "sentence"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(128, 5)), "grad-cam", "has a spatial map on which"),
        (lambda: small(torch.tanh).float(), "guided", "Small calls none"),
        (lambda: small(torch.nn.functional.gelu).float(), "deconvnet", "does not apply to the gelu of Small"),
        (lambda: Quantised(), "integrated-gradients", "Quantised passes no gradients back to its images"),
    ],
)
def test_a_network_that_lacks_what_a_method_needs_is_refused_with_a_sentence(module, name, sentence):
    with pytest.raises(UserError, match=sentence):
        METHODS[name].check(network_of(module()))


class Quantised(nn.Module):
    """A network that nothing can be derived through."""

    def forward(self, x):
        return (x > 0.5).float().flatten(1)
