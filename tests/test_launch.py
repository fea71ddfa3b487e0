"""The environment variables of a launcher: whole, half set, and nonsense."""

import contextlib
import random

import pytest

from lib.runtime import launch
from lib.runtime.errors import UserError
from lib.runtime.launch import Launch, launched

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
ADDRESS = {"MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def put(values):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Launch()),
        ({"RANK": "", "WORLD_SIZE": ""}, Launch()),
        ({"RANK": "0"}, Launch()),
        ({"WORLD_SIZE": "1"}, Launch()),
        ({"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}, Launch()),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **ADDRESS}, Launch(3, 4, 1)),
        ({"RANK": " 1 ", "WORLD_SIZE": "2", **ADDRESS}, Launch(1, 2, 0)),
    ],
    ids=str,
)
def test_what_a_launcher_says_is_read(environment, values, expected):
    environment(values)
    assert launched() == expected


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"RANK": "x"}, "RANK is 'x'"),
        ({"RANK": "1"}, "WORLD_SIZE is not set"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1'"),
        ({"RANK": "1.0", "WORLD_SIZE": "2"}, "RANK is '1.0'"),
        ({"RANK": "²", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "9" * 5000, "WORLD_SIZE": "2"}, "RANK"),
        ({"WORLD_SIZE": "x"}, "WORLD_SIZE is 'x'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"RANK": "2", "WORLD_SIZE": "2", **ADDRESS}, "RANK 2 is not below"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}, "MASTER_ADDR is not set"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}, "MASTER_PORT is not set"),
        (
            {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "http"},
            "MASTER_PORT is 'http'",
        ),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "70000"}, "MASTER_PORT"),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "x", **ADDRESS}, "LOCAL_RANK is 'x'"),
    ],
    ids=str,
)
def test_what_is_half_set_or_nonsense_is_refused_by_its_name(environment, values, named):
    environment(values)
    with pytest.raises(UserError, match="torchrun") as raised:
        launched()
    assert named in str(raised.value)
    assert launch.speaks() or int(values["RANK"]) > 0


@pytest.mark.parametrize("seed", range(50))
def test_no_environment_is_an_error_of_another_kind(environment, seed):
    environment(random_environment(random.Random(seed)))
    read_environment()


def random_environment(rng: random.Random) -> dict[str, str]:
    values = (
        "",
        "0",
        "1",
        "2",
        "7",
        "-1",
        "x",
        "1e3",
        " 1",
        "٣",
        "1_0",
        "0x1",
        "nan",
        "9" * 400,
        "::1",
        "29500",
        "\t",
    )
    return {name: rng.choice(values) for name in VARIABLES if rng.random() < 0.6}


def read_environment() -> None:
    """Read the environment; tests/fuzz_runtime.py does so 10⁴ times."""
    with contextlib.suppress(UserError):
        found = launched()
        assert 0 <= found.rank < found.world_size
    assert {launch.speaks(), launch.has_others()} <= {True, False}


def test_ranks_that_do_not_come_end_the_run_in_one_line(environment, monkeypatch):
    from datetime import timedelta

    import torch

    from lib.runtime import distributed
    from lib.runtime.errors import RunFailed

    environment({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"})
    monkeypatch.setattr(distributed, "LONGEST_WAIT", timedelta(seconds=1))
    with (
        pytest.raises(RunFailed, match="do not find each other"),
        distributed.process_group(torch.device("cpu")),
    ):
        pass
