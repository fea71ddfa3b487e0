"""Maps that are zero everywhere: why they are, and that it is said."""

import pytest
import torch
from torch import nn

from lib.data.image_inputs import ImageInput
from lib.data.preprocessing import Preprocessing
from lib.explain.methods import METHODS, Request
from lib.models.network import Network
from lib.tasks.explanation_panels import Question, panels_of


class Scores(nn.Module):
    """Two classes: one grows with brightness, the other falls; with `clipped`, a ReLU follows the scores."""

    def __init__(self, clipped: bool):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1, bias=False), nn.ReLU())
        self.features[0].weight.data.fill_(0.1)
        self.clipped = clipped

    def forward(self, images):
        brightness = self.features(images).mean((1, 2, 3))
        scores = torch.stack([brightness, -brightness], 1)
        return scores.relu() if self.clipped else scores


def asked(clipped: bool, method: str, pixels: torch.Tensor):
    network = Network(Scores(clipped), ("bright", "dark"), Preprocessing(8, 1, (0.0,), (1.0,)), "tiny")
    question = Question(network, ImageInput("it", pixels), [0, 1])
    found = METHODS[method].explain(Request(network, question.pixels, question.targets))
    return panels_of(question, METHODS[method], found), found


IMAGE = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.1


@pytest.mark.parametrize("method", ["grad-cam", "layer-cam", "grad-cam++", "xgrad-cam", "hires-cam"])
def test_a_score_behind_a_dead_relu_has_no_gradient_and_that_is_said(method, capsys):
    ((bright, dark),), _ = asked(True, method, IMAGE)
    assert "zero_because" not in bright.record()
    assert dark.record()["zero_because"] == "the score has no gradient"
    assert dark.note.endswith("the score has no gradient")
    warning = capsys.readouterr().err
    assert "the map of dark (it, tiny) is zero everywhere: the score has no gradient; try --score" in warning
    assert warning.count("\n") == 1


def test_a_class_that_everything_speaks_against_has_nothing_positive(capsys):
    ((_, dark),), _ = asked(False, "grad-cam", IMAGE)
    assert dark.record()["zero_because"] == "nothing positive"
    assert "--counterfactual" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("input-x-gradient", "the score has no gradient"),
        ("guided", "the score has no gradient"),
        ("integrated-gradients", "the score has no gradient"),
        ("occlusion", "nothing changes the score"),
        ("shapley", "nothing changes the score"),
    ],
)
def test_methods_of_pixels_and_of_parts_say_it_too(method, why):
    _, found = asked(True, method, IMAGE)
    assert [found.why_zero("", target) for target in range(2)] == ["", why]
