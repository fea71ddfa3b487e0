"""The rank of this process, as the environment variables of its launcher say. Nothing here imports torch."""

import os
from typing import NamedTuple

from lib.runtime.errors import UserError
from lib.runtime.spelling import whole_number

_MOST_RANKS = 1_000_000
_HOW = "start the script by torchrun, which sets all of them, or unset RANK and WORLD_SIZE"


class Launch(NamedTuple):
    """One process of those that torchrun started.

    Attributes:
        rank: its number among all processes.
        world_size: number of processes.
        local_rank: its number among those of this host.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


def launched() -> Launch:
    """Return what the environment says of this process; without a launcher, it is the only one.

    Raises:
        UserError: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT are half set, or nonsense.
    """
    world_size = _integer("WORLD_SIZE", 1, _MOST_RANKS)
    rank = _integer("RANK", 0, _MOST_RANKS)
    local_rank = _integer("LOCAL_RANK", 0, _MOST_RANKS) or 0
    if world_size is None and not rank:
        return Launch(0, 1, local_rank)
    if world_size is None:
        raise UserError(f"RANK is {rank}, but WORLD_SIZE is not set: {_HOW}")
    if rank is None and world_size > 1:
        raise UserError(f"WORLD_SIZE is {world_size}, but RANK is not set: {_HOW}")
    if rank is not None and rank >= world_size:
        raise UserError(f"RANK {rank} is not below WORLD_SIZE {world_size}: {_HOW}")
    if world_size > 1:
        if not os.environ.get("MASTER_ADDR", "").strip():
            raise UserError(f"WORLD_SIZE is {world_size}, but MASTER_ADDR is not set: {_HOW}")
        if _integer("MASTER_PORT", 1, 65535) is None:
            raise UserError(f"WORLD_SIZE is {world_size}, but MASTER_PORT is not set: {_HOW}")
    return Launch(rank or 0, world_size, local_rank)


def speaks() -> bool:
    """Tell whether this process reports errors: the first of several, or one that has no valid rank."""
    try:
        return not has_others() or not _integer("RANK", 0, _MOST_RANKS)
    except UserError:
        return True


def has_others() -> bool:
    """Tell whether this is one of several processes."""
    try:
        return (_integer("WORLD_SIZE", 1, _MOST_RANKS) or 1) > 1
    except UserError:
        return False


def _integer(name: str, least: int, most: int) -> int | None:
    """Return the environment variable as an integer; None if it is not set, or empty."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    value = whole_number(text)
    if value is None or not least <= value <= most:
        raise UserError(f"{name} is {text[:40]!r}, not a number from {least} to {most:,}: {_HOW}")
    return value
