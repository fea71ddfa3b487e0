"""Batches: the order is a pure function of (seed, epoch), and every example comes once."""

import itertools

import pytest
import torch

from lib.data.batches import InOrder, ScheduledBatches, TensorBatches
from lib.runtime import distributed
from lib.runtime.errors import UserError


def batches(rows: int = 20, batch_size: int = 6, seed: int = 0, **options) -> TensorBatches:
    numbers = torch.arange(rows)
    return TensorBatches(numbers, numbers * 10, batch_size=batch_size, seed=seed, **options)


def order(some: TensorBatches, epoch: int, start: int = 0) -> list[int]:
    return torch.cat([first for first, _ in some.epoch(epoch, start)]).tolist()


@pytest.mark.parametrize(("rows", "batch_size"), list(itertools.product((1, 2, 7, 20, 24), (2, 6, 24, 99))))
def test_an_epoch_has_every_example_exactly_once(rows, batch_size):
    some = batches(rows, batch_size)
    for epoch in range(3):
        assert sorted(order(some, epoch)) == list(range(rows))
        assert len(list(some.epoch(epoch))) == len(some)


def test_a_batch_of_one_example_is_refused_as_batch_normalisation_needs_two():
    with pytest.raises(UserError, match="--batch-size 1 is too small"):
        batches(20, 1)


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    drawn_often, fresh = batches(), batches()
    for _ in range(3):
        order(drawn_often, 0)
    torch.manual_seed(99)
    assert order(drawn_often, 4) == order(fresh, 4)
    orders = {tuple(order(batches(seed=seed), epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_drawing_batches_draws_no_global_random_numbers():
    before = torch.get_rng_state()
    order(batches(), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_epoch_begun_in_its_middle_has_the_batches_that_were_left():
    some = batches()
    for start in range(len(some) + 1):
        begun, whole = list(some.epoch(2, start)), list(some.epoch(2))[start:]
        assert len(begun) == len(whole)
        for mine, its in zip(begun, whole, strict=True):
            assert torch.equal(mine[0], its[0])


def test_the_rows_of_all_tensors_stay_together():
    for first, second in batches().epoch(0):
        assert torch.equal(first * 10, second)


def test_a_last_batch_of_one_joins_the_one_before_it():
    assert [len(first) for first, _ in batches(13, 6).epoch(0)] == [6, 7]
    assert [len(first) for first, _ in batches(14, 6).epoch(0)] == [6, 6, 2]


def test_only_the_first_tensor_is_transformed():
    for first, second in batches(transform=lambda numbers: -numbers).epoch(0):
        assert torch.equal(first * -10, second)


def test_scheduled_batches_are_the_first_batches_for_some_epochs_and_then_the_others():
    first, then = batches(transform=lambda numbers: -numbers), batches()
    scheduled = ScheduledBatches(first, 2, then)
    assert len(scheduled) == len(then)
    for epoch in range(4):
        expected = order(first if epoch < 2 else then, epoch, start=1)
        assert order(scheduled, epoch, start=1) == expected


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1])
def test_any_seed_that_the_command_line_takes_makes_an_order(seed):
    assert sorted(order(batches(seed=seed), 1000)) == list(range(20))


@pytest.mark.parametrize("batch_size", [1, 3, 20, 50])
def test_in_order_is_every_row_once_in_order(batch_size):
    numbers = torch.arange(20)
    some = InOrder(numbers, numbers * 10, batch_size=batch_size)
    for _ in range(2):
        drawn = list(some)
        assert torch.cat([first for first, _ in drawn]).tolist() == list(range(20))
        assert all(torch.equal(first * 10, second) for first, second in drawn)
        assert all(len(first) <= batch_size for first, _ in drawn)


@pytest.fixture
def as_rank(monkeypatch):
    """Make this process believe that it is one rank of some."""

    def believe(rank: int, ranks: int) -> None:
        monkeypatch.setattr(distributed, "rank", lambda: rank)
        monkeypatch.setattr(distributed, "world_size", lambda: ranks)

    return believe


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_share_out_every_batch_and_no_example_comes_twice(as_rank, ranks):
    shares = []
    for rank in range(ranks):
        as_rank(rank, ranks)
        shares.append([first.tolist() for first, _ in batches(23, 6).epoch(1)])
    assert len({len(share) for share in shares}) == 1
    assert sorted(itertools.chain(*itertools.chain(*shares))) == list(range(23))
    as_rank(0, 1)
    together = [first.tolist() for first, _ in batches(23, 6).epoch(1)]
    for number, whole in enumerate(together[:2]):
        assert sorted(itertools.chain(*(share[number] for share in shares))) == sorted(whole)
    assert all(len(part) >= 2 for share in shares for part in share)


def test_a_batch_that_is_too_small_for_the_ranks_is_refused(as_rank):
    as_rank(0, 3)
    assert len(batches(23, 6)) == 3
    with pytest.raises(UserError, match="--batch-size 5 is too small: each rank needs two examples, 6"):
        batches(23, 5)


@pytest.mark.parametrize("rows", [1, 5, 23])
def test_the_ranks_share_out_the_validation_and_no_example_comes_twice(as_rank, rows):
    drawn = []
    for rank in range(3):
        as_rank(rank, 3)
        drawn += [
            number for (batch,) in InOrder(torch.arange(rows), batch_size=4) for number in batch.tolist()
        ]
    assert sorted(drawn) == list(range(rows))


def test_validation_that_is_not_distributed_is_whole_on_every_rank(as_rank):
    as_rank(1, 3)
    (batch,) = InOrder(torch.arange(5), distributed_over_ranks=False)
    assert batch[0].tolist() == list(range(5))
