"""How scripts end where memory, streams or encodings are not as usual: in one line, with a status."""

import errno
import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, command, environment

from lib import cli
from lib.runtime import memory


def ended(capsys, monkeypatch, error: Exception, *typed: str) -> tuple[int, str]:
    def main(_argv):
        raise error

    monkeypatch.setattr(sys, "argv", ["x.py", *typed])
    with pytest.raises(SystemExit) as end:
        cli.run(main)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 7.45 TiB for an array with shape (1000000000000,)"),
        MemoryError("std::bad_alloc"),
        RuntimeError("std::bad_alloc"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you "
            "tried to allocate 4000000000000 bytes. Error code 12 (Cannot allocate memory)"
        ),
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB"
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        RuntimeError("Storage size calculation overflowed with sizes=[4611686018427387904]"),
        RuntimeError("numel: integer multiplication overflow"),
        OverflowError("Python int too large to convert to C long"),
        ValueError(
            "array is too big; `arr.size * arr.dtype.itemsize` is larger than the maximum possible size."
        ),
        RuntimeError("can't start new thread"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=lambda error: f"{type(error).__name__} {str(error)[:30]}",
)
def test_memory_that_does_not_suffice_is_one_line_that_names_the_flags(capsys, monkeypatch, error):
    status, said = ended(
        capsys, monkeypatch, error, "--batch-size=1000000000", "--hidden", "5", "--seed", "1"
    )
    assert (status, said.count("\n")) == (2, 1)
    assert said.startswith("error: ")
    assert "--batch-size, --hidden needs less" in said
    assert "--seed" not in said
    assert ended(capsys, monkeypatch, error)[0] == 1  # nothing that the user typed


def test_what_was_asked_for_is_said_where_it_is_known(capsys, monkeypatch):
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes.")
    assert "asks for 4000 bytes" in ended(capsys, monkeypatch, error)[1]


def test_a_mistake_of_ours_is_not_passed_off_as_a_lack_of_memory(monkeypatch):
    def main(_argv):
        raise RuntimeError("The size of tensor a (3) must match the size of tensor b (4)")

    monkeypatch.setattr(sys, "argv", ["x.py"])
    with pytest.raises(RuntimeError, match="must match"):
        cli.run(main)


@pytest.mark.parametrize("error", [AttributeError, ValueError, OSError])
def test_where_the_system_does_not_tell_its_memory_none_is_known(monkeypatch, error):
    def sysconf(_name):
        raise error

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert memory.physical() is None
    monkeypatch.delattr(os, "sysconf")
    assert memory.physical() is None


def test_amounts_of_memory_are_spelled_with_three_digits():
    spelled = [memory.spelled(count) for count in (12, 1500, 23.4e9, 5e12, 9e18)]
    assert spelled == ["12 bytes", "1.5 kB", "23.4 GB", "5 TB", "9,000,000 TB"]


# Output


@pytest.mark.parametrize(
    "encoding", ["ascii", "cp437", "cp1252", "cp932", "utf-16", "latin-1:strict", "ascii:strict"]
)
@pytest.mark.parametrize("flags", [("--help",), ("--log-file", "no-\u732b\x1b.log")], ids=["help", "error"])
def test_an_output_of_any_encoding_is_written(encoding, flags):
    line, variables = command("plot-log.py", *flags), environment(PYTHONIOENCODING=encoding)
    done = subprocess.run(line, env=variables, capture_output=True, check=False)
    assert done.returncode == (0 if flags == ("--help",) else 2)
    said = done.stderr.decode(encoding.partition(":")[0])
    assert len(said.splitlines()) == (0 if flags == ("--help",) else 1)
    assert "\x1b" not in said


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("flags", ["--help", "--log-file nothing.log", "--log-file -"])
def test_closed_streams_are_no_mistake(tmp_path, closed, flags):
    line = f"{sys.executable} {ROOT / 'plot-log.py'} {flags} --out-dir {tmp_path / 'imgs'} {closed}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert done.returncode == (0 if flags == "--help" else 2)
    assert not re.search("Traceback|Error", done.stderr)
