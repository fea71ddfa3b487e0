"""Work that processes of their own do ahead, item by item; if one of them dies, it goes on with fewer."""

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset

from lib.runtime import interrupts
from lib.runtime.errors import UserError, warn

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class _Refused:
    """The message of a UserError in a worker; as an exception it would arrive as a text with a traceback."""

    message: str


class _Work(Dataset):
    """The data set of a `DataLoader`: applies a function to an item, in a worker process."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __getitem__(self, item: Any) -> Any:
        try:
            return self.function(item)
        except UserError as error:
            return _Refused(str(error))


def in_workers(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    *,
    pin_memory: bool = False,
    context: str | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for each item, in order.

    A worker dies if the system has too little memory, or a container too little shared memory (/dev/shm). Its
    item, and those that others have begun, are then done again by half as many workers, at last by none.

    Args:
        function: the work. Its results are sent between processes; tensors travel in shared memory.
        items: taken one by one, as workers become free.
        workers: number of processes; 0 works in this one.
        pin_memory: put results into pinned memory, for the way to a CUDA device.
        context: how processes are started; None for the usual way.

    Raises:
        UserError: by `function`.
    """
    source, begun = iter(items), deque[Item]()
    while True:
        results = _loaded(function, _taken(begun, source), workers, pin_memory, context)
        while True:
            try:
                result = next(results)
            except StopIteration:
                return
            except (RuntimeError, OSError) as error:
                if not workers:
                    raise
                workers //= 2
                _say(error, workers)
                break
            begun.popleft()
            if isinstance(result, _Refused):
                raise UserError(result.message)
            yield result


def _taken(begun: deque[Item], source: Iterator[Item]) -> Iterator[Item]:
    """Yield the items of `begun` and then of `source`, which are noted in `begun`."""
    yield from list(begun)
    for item in source:
        begun.append(item)
        yield item


def _loaded(
    function: Callable[[Item], Result],
    items: Iterator[Item],
    workers: int,
    pin_memory: bool,
    context: str | None,
) -> Iterator[Result]:
    loader: DataLoader = DataLoader(
        _Work(function),
        # A cast, because a sampler is only iterated over.
        sampler=cast(Iterable, items),
        batch_size=None,
        collate_fn=_unchanged,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=start_worker,
        multiprocessing_context=context if workers else None,
        # Without a generator of its own, the loader draws its seed from the global one, and so would
        # change the random numbers of the training step.
        generator=torch.Generator().manual_seed(0),
    )
    with _own_handler():
        results = iter(loader)
    yield from results


class _own_handler:  # noqa: N801 - used like a function
    """Context that puts back the handler of SIGCHLD.

    The loader's handler raises an error wherever the main process happens to be when a worker dies, e.g. in
    an update. Without it, the loader notices within five seconds, where the next result is waited for.
    """

    def __enter__(self) -> None:
        number = getattr(signal, "SIGCHLD", None)
        self._before = None if number is None else signal.getsignal(number)

    def __exit__(self, *_: object) -> None:
        if self._before is None or signal.getsignal(signal.SIGCHLD) is self._before:
            return
        signal.signal(signal.SIGCHLD, self._before)


def _unchanged(result: Result) -> Result:
    return result


def _say(error: Exception, left: int) -> None:
    text = str(error)
    cause = "killed, as if memory were short" if "killed by signal: Killed" in text else text.splitlines()[-1]
    if any(word in text for word in ("Bus error", "shared memory", "shm", "No space left")):
        cause = "the shared memory, /dev/shm, is too small"
    on = f"with {left} of them" if left else "in the main process alone"
    warn(f"a worker process has died ({cause[:200]}): the work goes on {on}; fewer --workers need less")


def start_worker(_number: int) -> None:
    """Initialise a worker process: ignore the signals that end the main process, use one thread.

    Signals of a terminal or a scheduler reach every process of a job. The main process saves a checkpoint and
    ends its workers, which until then must go on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in interrupts.ENDINGS:
        if signal.getsignal(number) != signal.SIG_DFL:  # handlers of the main process, inherited
            signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
