"""Learning rates and averaged weights in closed form; Muon, also against PyTorch's and against AdamW."""

import math

import pytest
import torch
from torch import nn

from lib.runtime.errors import UserError
from lib.training.optimisation import (
    NEWTON_SCHULZ,
    NEWTON_SCHULZ_STEPS,
    Settings,
    WeightAverage,
    learning_rate_factor,
    make_optimizer,
    orthogonalised,
    unit_lr_multiplier,
)

SETTINGS = Settings(seed=0, max_epoch=1, learning_rate=0.02, optimizer="muon", weight_decay=0.3, momentum=0.8)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_one_cycle_rises_linearly_and_falls_along_half_a_cosine_to_zero():
    settings = Settings(seed=0, max_epoch=1, learning_rate=0.01, warmup=0.2)
    factors = [learning_rate_factor(settings, update, 100) for update in range(100)]
    for update in range(20):
        assert factors[update] == pytest.approx((update + 1) / 21)
    for update in range(20, 100):
        assert factors[update] == pytest.approx(math.cos(math.pi * (update - 20) / 160) ** 2)
    assert max(factors) == factors[20] == 1
    assert 0 < factors[99] < 0.001


@pytest.mark.parametrize("updates", [1, 2, 3, 50])
@pytest.mark.parametrize("warmup", [0.0, 0.25, 1.0])
def test_every_learning_rate_of_one_cycle_is_above_zero_and_at_most_the_full_one(updates, warmup):
    settings = Settings(seed=0, max_epoch=1, learning_rate=0.01, warmup=warmup)
    factors = [learning_rate_factor(settings, update, updates) for update in range(updates)]
    assert all(0 < factor <= 1 for factor in factors)


def test_the_constant_schedule_is_constant():
    settings = Settings(seed=0, max_epoch=1, learning_rate=0.01, schedule="constant")
    assert {learning_rate_factor(settings, update, 10) for update in range(10)} == {1.0}


def test_the_average_of_weights_is_the_weighted_sum_that_its_decays_say():
    torch.manual_seed(0)
    model = nn.BatchNorm1d(3)  # with buffers
    visited, statistics = [model.weight.detach().double().clone()], [model.running_mean.double().clone()]
    average = WeightAverage(model, decay=0.7)
    for update in range(30):
        with torch.no_grad():
            model.weight.normal_()
            model.running_mean.normal_()
            model.num_batches_tracked += 1
        visited.append(model.weight.detach().double().clone())
        statistics.append(model.running_mean.double().clone())
        average.update(model, update)
    decays = [min(0.7, (1 + update) / (10 + update)) for update in range(30)]
    assert decays[0] == 0.1
    assert decays[-1] == 0.7
    shares = [math.prod(decays)]
    shares += [(1 - decays[update]) * math.prod(decays[update + 1 :]) for update in range(30)]
    assert sum(shares) == pytest.approx(1)
    for averaged, values in ((average.model.weight, visited), (average.model.running_mean, statistics)):
        expected = sum(share * value for share, value in zip(shares, values, strict=True))
        assert torch.allclose(averaged.double(), expected, atol=1e-6)
    assert average.model.num_batches_tracked == 30


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (16, 16), (1, 9)])
def test_a_matrix_is_made_orthogonal_by_a_polynomial_of_its_singular_values(shape):
    matrix = random(*shape).double()
    u, values, v = torch.linalg.svd(matrix, full_matrices=False)
    values = values / values.norm()
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        values = a * values + b * values**3 + c * values**5
    torch.testing.assert_close(orthogonalised(matrix), u * values @ v, atol=1e-5, rtol=0)
    if shape != (16, 16):  # the smallest of a square one is close to zero
        found = torch.linalg.svdvals(orthogonalised(matrix))
        assert 0.65 < found.min() <= found.max() < 1.25


def step(optimizer: torch.optim.Optimizer, parameters, times: int = 4) -> None:
    for time in range(times):
        for number, parameter in enumerate(parameters):
            parameter.grad = random(*parameter.shape, seed=100 * time + number)
        optimizer.step()
        optimizer.zero_grad()


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 4))


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_kernel_moves_as_the_matrix_of_its_rows_moves_in_torch(channels_last):
    model = net()
    matrix = nn.Parameter(model[0].weight.detach().flatten(1).clone())
    if channels_last:
        model.to(memory_format=torch.channels_last)
    theirs = torch.optim.Muon(
        [matrix], lr=0.02, weight_decay=0.3, momentum=0.8, adjust_lr_fn="match_rms_adamw"
    )
    before = matrix.detach().clone()
    for time in range(4):
        model[0].weight.grad = random(8, 3, 3, 3, seed=time)
        matrix.grad = random(8, 3, 3, 3, seed=time).flatten(1)
        if time == 0:
            ours = make_optimizer(model, SETTINGS, unit_lr_multiplier)
        ours.step()
        theirs.step()
    moved, expected = (each.detach().flatten(1) - before for each in (model[0].weight, matrix))
    # PyTorch's steps of Newton and Schulz are in bfloat16.
    assert (moved - expected).norm() < 0.02 * expected.norm()


def test_all_other_parameters_move_as_by_adamw():
    mine, its = net(), net()
    settings = Settings(**vars(SETTINGS) | {"optimizer": "adamw"})
    for model, how in ((mine, SETTINGS), (its, settings)):
        step(make_optimizer(model, how, unit_lr_multiplier), list(model.parameters()))
    for (name, ours), theirs in zip(mine.named_parameters(), its.parameters(), strict=True):
        assert torch.equal(ours, theirs) == (name != "0.weight"), name


def test_a_frozen_kernel_stays_and_a_network_without_any_is_refused():
    model = net()
    model[0].requires_grad_(False)
    with pytest.raises(UserError, match="kernels of convolutions, and none are to be trained: take adamw"):
        make_optimizer(model, SETTINGS, unit_lr_multiplier)


def test_a_network_with_nothing_to_train_is_refused():
    model = net().requires_grad_(False)
    with pytest.raises(UserError, match="nothing is left to train"):
        make_optimizer(model, SETTINGS, unit_lr_multiplier)
