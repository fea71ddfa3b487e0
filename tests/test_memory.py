"""Memory that a process keeps, where its C library can be told to."""

import ctypes
from types import SimpleNamespace

from lib.runtime import memory


def test_the_c_library_is_told_to_keep_freed_memory(monkeypatch):
    told = {}
    library = SimpleNamespace(mallopt=lambda what, value: told.update({what: value}))
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    memory.keep_freed_memory()
    # mallopt(3): M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD -3, and at most 32 MiB.
    assert told == {-1: 2**31 - 1, -3: 2**25}


def test_a_c_library_that_cannot_be_told_is_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace())
    memory.keep_freed_memory()


def test_the_thresholds_are_taken_where_the_library_is_gnus():
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    assert mallopt is None or mallopt(-3, 2**25) == 1
