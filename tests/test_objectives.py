"""The classification objective: its losses against closed forms, its options in training alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib.training.objectives import classification, with_neutral

INPUTS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


class Fixed(nn.Module):
    """Answers with one of some linear maps after the other: what dropout makes of a network."""

    def __init__(self, *seeds: int):
        super().__init__()
        self.maps = nn.ParameterList(
            torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed in seeds
        )
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return inputs @ self.maps[(self.calls - 1) % len(self.maps)]


def loss(model: nn.Module, **options) -> float:
    return float(classification(**options)(model, (INPUTS, LABELS))["loss"].detach())


def cross_entropy(logits, targets, **options) -> float:
    return float(F.cross_entropy(logits.detach().float(), targets, reduction="sum", **options))


def test_validation_knows_no_option_and_counts_what_is_right():
    model, teacher = Fixed(1).eval(), Fixed(2)
    plain = classification()(model, (INPUTS, LABELS))
    dressed = classification(0.3, teacher=teacher, r_drop=2.0)(model, (INPUTS, LABELS))
    assert plain == dressed
    assert int(plain["accuracy"]) == int(((INPUTS @ model.maps[0]).argmax(1) == LABELS).sum())
    assert (plain["count"], teacher.calls, model.calls) == (6, 0, 2)


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_a_teacher_is_a_share_of_the_loss_and_is_frozen(weight):
    model, teacher = Fixed(1), Fixed(2)
    logits, answers = INPUTS @ model.maps[0], (INPUTS @ teacher.maps[0]).float().softmax(1)
    from_labels = cross_entropy(logits, LABELS, label_smoothing=0.1)
    from_teacher = -float((answers * logits.float().log_softmax(1)).sum().detach())
    found = loss(model, label_smoothing=0.1, teacher=teacher, teacher_weight=weight)
    assert found == pytest.approx((1 - weight) * from_labels + weight * from_teacher, rel=1e-5)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_r_drop_is_the_mean_loss_of_two_answers_and_their_divergence():
    model = Fixed(1, 2)
    first, second = ((INPUTS @ each).float() for each in model.maps)
    p, q = (logits.detach().softmax(1) for logits in (first, second))
    divergence = F.kl_div(q.log(), p, reduction="sum") + F.kl_div(p.log(), q, reduction="sum")
    expected = (cross_entropy(first, LABELS) + cross_entropy(second, LABELS)) / 2 + 3 / 4 * float(divergence)
    assert loss(model, r_drop=3.0) == pytest.approx(expected, rel=1e-5)


def test_r_drop_of_a_network_that_drops_nothing_is_its_plain_loss():
    assert loss(Fixed(1), r_drop=5.0) == pytest.approx(loss(Fixed(1)), rel=1e-6)


def test_neutral_inputs_add_their_distance_from_equal_answers_for_each_example_in_training_alone():
    model, neutral = Fixed(1), INPUTS[:2] * 3
    objective = with_neutral(classification(), lambda: neutral, weight=0.25)
    p = (neutral @ model.maps[0]).float().softmax(1)
    equal = torch.full_like(p, 1 / 3)
    surprise = cross_entropy(neutral @ model.maps[0], equal) / 2
    sums = objective(model, (INPUTS, LABELS))
    assert float(sums["loss"].detach()) == pytest.approx(loss(model) + 0.25 * 6 * surprise, rel=1e-5)
    assert sums["count"] == 6
    assert objective(model.eval(), (INPUTS, LABELS)) == classification()(model, (INPUTS, LABELS))
