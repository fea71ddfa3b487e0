"""Files of evaluations: what is kept is read back, and no other file is taken for one."""

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lib.runtime.errors import UserError
from lib.tasks.evaluation_store import EvaluationStore

SHAPE = (11, 2)  # players, targets
COALITIONS = torch.rand(6, 11, generator=torch.Generator().manual_seed(0)) > 0.5
VALUES = torch.rand(6, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def path(tmp_path):
    store = EvaluationStore(tmp_path / "paid.npz", "game", SHAPE)
    store.add(COALITIONS, VALUES)
    store.save()
    return tmp_path / "paid.npz"


def test_what_is_kept_is_known_again_and_other_games_stay(path):
    other = EvaluationStore(path, "another", (3, 1))
    assert not other.knows(torch.ones(1, 3, dtype=torch.bool)).any()
    other.add(torch.ones(1, 3, dtype=torch.bool), torch.ones(1, 1, dtype=torch.float64))
    other.save()
    store = EvaluationStore(path, "game", SHAPE)
    assert store.knows(COALITIONS).all()
    assert torch.equal(store.values(COALITIONS), VALUES)
    assert not store.knows(~COALITIONS).any()


POISONED = {
    "not a number": {"game/values": np.full((6, 2), np.nan)},
    "infinite": {"game/values": np.full((6, 2), np.inf)},
    "one target": {"game/values": np.ones((6, 1))},
    "a list": {"game/values": np.ones(6)},
    "whole numbers": {"game/values": np.ones((6, 2), np.int64)},
    "texts": {"game/values": np.full((6, 2), "1.0")},
    "a row less": {"game/values": np.ones((5, 2))},
    "other players": {"game/coalitions": np.ones((6, 3), np.uint8)},
    "coalitions of another kind": {"game/coalitions": np.ones((6, 2))},
    "a number": {"game/coalitions": np.uint8(3)},
    "no coalitions": {"game/coalitions": None},
    "other arrays": {"maps": np.ones(3)},
    "objects": {"game/values": np.array([[{}, 1]] * 6, dtype=object)},
}


@pytest.mark.parametrize("changes", POISONED.values(), ids=POISONED)
def test_a_poisoned_file_is_refused_in_one_line(path, changes):
    with np.load(path) as file:
        arrays = {name: value for name, value in (dict(file) | changes).items() if value is not None}
    np.savez(path, **arrays)
    with pytest.raises(UserError, match="holds no values of an earlier run, or is damaged"):
        EvaluationStore(path, "game", SHAPE)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
def test_a_damaged_file_is_refused_or_read_and_nothing_else(path, where, byte, cut):
    content = path.read_bytes()
    where %= len(content)
    path.with_name("bad.npz").write_bytes(
        content[:where] + (b"" if cut else bytes([byte]) + content[where + 1 :])
    )
    try:
        store = EvaluationStore(path.with_name("bad.npz"), "game", SHAPE)
    except UserError:
        return
    assert all(
        store.values(COALITIONS[row][None]).isfinite().all()
        for row in range(6)
        if store.knows(COALITIONS[row][None]).all()
    )


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(UserError, match=r"pipe\.npz"):
        EvaluationStore(tmp_path / "pipe.npz", "game", SHAPE)
