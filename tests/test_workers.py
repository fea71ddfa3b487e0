"""Work in processes of its own: its order, its errors, and what happens when a process dies."""

import os
import signal

import pytest
import torch

from lib.data.workers import in_workers
from lib.runtime.errors import UserError


def square(number: int) -> torch.Tensor:
    return torch.tensor(number * number)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_come_in_order(count):
    assert [int(each) for each in in_workers(square, range(20), count)] == [n * n for n in range(20)]


@pytest.mark.parametrize("count", [0, 2])
def test_an_image_that_vanishes_is_one_line_and_no_traceback(count, tmp_path):
    def read(name: str) -> str:
        if not (tmp_path / name).exists():
            raise UserError(f"there is no file {name}")
        return name

    (tmp_path / "a").touch()
    results = in_workers(read, ["a", "b"], count)
    assert next(results) == "a"
    with pytest.raises(UserError, match=r"^there is no file b$"):
        next(results)


@pytest.mark.usefixtures("impatient_loaders")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS, signal.SIGTERM])
@pytest.mark.parametrize("at", [0, 7, 19])
def test_work_goes_on_with_fewer_when_a_worker_dies(number, at, tmp_path, capsys):
    marker = tmp_path / "died"

    def work(item: int) -> int:
        if item == at and not marker.exists():
            marker.touch()
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        return item

    assert list(in_workers(work, range(20), 2)) == list(range(20))
    assert capsys.readouterr().err.count("warning: a worker process has died") == 1


@pytest.mark.usefixtures("impatient_loaders")
def test_work_is_done_in_the_main_process_when_every_worker_dies(capsys):
    main = os.getpid()

    def work(item: int) -> int:
        if os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    assert list(in_workers(work, range(5), 2)) == list(range(5))
    assert "in the main process alone" in capsys.readouterr().err


def test_shared_memory_that_is_too_small_is_named(capsys):
    main = os.getpid()

    def work(item: int) -> int:
        if os.getpid() != main:
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device"
            )
        return item

    assert list(in_workers(work, range(3), 1)) == list(range(3))
    assert "/dev/shm, is too small" in capsys.readouterr().err


@pytest.mark.usefixtures("impatient_loaders")
def test_a_mistake_of_the_work_itself_is_not_hidden():
    def work(item: int) -> int:
        raise RuntimeError(f"a mistake in {item}")

    with pytest.raises(RuntimeError, match=r"^a mistake in 0$"):
        list(in_workers(work, range(3), 1))


def test_the_handler_of_dead_children_stays_as_it_was():
    before = signal.getsignal(signal.SIGCHLD)
    list(in_workers(square, range(3), 1))
    assert signal.getsignal(signal.SIGCHLD) == before


def test_random_numbers_of_the_main_process_are_not_drawn():
    state = torch.random.get_rng_state()
    list(in_workers(square, range(3), 2))
    assert torch.equal(torch.random.get_rng_state(), state)
