"""Targets and scores: kinds and their relations, targets for all images and for each, what cannot be."""

import pytest
import torch

from lib.explain.targets import Target, class_scores, class_target, scores_of, top_classes
from lib.models import outputs
from lib.runtime.errors import UserError


@pytest.fixture
def output():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_logits_are_the_outputs_own_numbers_in_targets_by_images(output):
    assert torch.equal(class_scores([5, 2])(output), output.T[[5, 2]])


def test_log_odds_are_the_logit_of_the_probability(output):
    probability = class_scores([0, 1, 5], "probability")(output)
    torch.testing.assert_close(probability, output.softmax(1).T[[0, 1, 5]])
    torch.testing.assert_close(class_scores([0, 1, 5], "log-odds")(output), probability.logit())


def test_log_odds_do_not_saturate_where_the_probability_does():
    sure = torch.tensor([[200.0, -100.0, -100.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(class_scores([0], "log-odds")(sure).sum(), sure)
    torch.testing.assert_close(gradient, torch.tensor([[1.0, -0.5, -0.5]]))
    (gradient,) = torch.autograd.grad(class_scores([0], "probability")(sure).sum(), sure)
    assert not gradient.any()


def test_targets_may_differ_from_image_to_image(output):
    targets = torch.tensor([[0, 1, 2, 3], [5, 4, 3, 2]])
    expected = torch.stack([output[range(4), row] for row in targets])
    assert torch.equal(class_scores(targets)(output), expected)


@pytest.mark.parametrize("kind", ["logit", "log-odds", "probability"])
def test_the_top_classes_have_the_top_scores(output, kind):
    classes = top_classes(output, 3)
    assert torch.equal(classes, output.argsort(1, descending=True).T[:3])
    assert (class_scores(top_classes(output, 6), kind)(output).diff(dim=0) <= 0).all()


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (lambda: class_scores([0], "logits"), "choose from logit, log-odds, probability"),
        (lambda: class_scores([1], "odds"), "there is no score 'odds'"),
        (lambda: class_scores([2, 6]), "there is no class 6: the network tells 6 apart"),
        (lambda: class_scores([-1]), "there is no class -1"),
        (lambda: lambda output: top_classes(output, 7), "the 7 likeliest classes of 6"),
        (lambda: lambda output: top_classes(output, 0), "the 0 likeliest classes"),
        (lambda: lambda output: class_scores([2])(output[:, :1]), "no class 2: the network tells 2 apart"),
    ],
)
def test_what_cannot_be_is_said(output, scores, message):
    with pytest.raises(UserError, match=message):
        scores()(output)


@pytest.mark.parametrize("kind", ["logit", "log-odds", "probability"])
def test_targets_are_asked_in_one_pass_and_are_the_scores_of_their_classes(output, kind):
    targets = [class_target(5, kind), class_target(2, kind, "two")]
    assert [target.name for target in targets] == ["5", "two"]
    assert torch.equal(scores_of(targets)(output), class_scores([5, 2], kind)(output))
    assert torch.equal(scores_of([-each for each in targets])(output), -class_scores([5, 2], kind)(output))


def test_any_scalar_of_an_output_is_a_target():
    reconstruction = torch.rand(3, 1, 4, 4)
    corner = Target("upper left corner", lambda output: output[:, 0, :2, :2].mean((1, 2)))
    unit = Target("second unit", lambda output: output.flatten(1)[:, 1])
    found = scores_of([corner, unit])(reconstruction)
    torch.testing.assert_close(found[0], reconstruction[:, 0, :2, :2].mean((1, 2)))
    assert torch.equal(found[1], reconstruction[:, 0, 0, 1])


# One logit, and independent classes


@pytest.mark.parametrize("kind", ["logit", "log-odds", "probability"])
def test_one_logit_is_that_of_two_classes(output, kind):
    z = output[:, :1].double()
    found = class_scores([0, 1], kind)(z)
    expected = torch.cat([-z, z], 1).T
    torch.testing.assert_close(found, expected.sigmoid() if kind == "probability" else expected)
    assert torch.equal(top_classes(z, 2)[0], (z[:, 0] > 0).long())


@pytest.mark.parametrize("kind", ["logit", "log-odds", "probability"])
def test_the_scores_of_independent_classes_do_not_depend_on_the_others(output, kind):
    found = class_scores([2, 4], kind, independent=True)(output)
    expected = output[:, [2, 4]].T
    torch.testing.assert_close(found, expected.sigmoid() if kind == "probability" else expected)


def test_two_logits_that_say_the_same_as_one_have_its_probabilities_and_log_odds(output):
    z = output[:, :1].double()
    two = outputs.as_exclusive(z)
    torch.testing.assert_close(outputs.probabilities(two), outputs.probabilities(z))
    torch.testing.assert_close(class_scores([0, 1], "log-odds")(two), class_scores([0, 1], "log-odds")(z))
