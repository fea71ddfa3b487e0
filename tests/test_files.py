"""Files and folders: found readable, made writable, or refused in one line."""

import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from lib.runtime import files
from lib.runtime.errors import UserError


def test_a_folder_that_is_missing_is_made_and_left_empty(tmp_path):
    folder = files.writable_folder(tmp_path / "a" / "b")
    assert folder.is_dir()
    assert list(folder.iterdir()) == []


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot write to the folder"):
            files.writable_folder(path)


def test_a_file_is_a_file_or_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert files.existing_file(tmp_path / "file") == tmp_path / "file"
    for path in (tmp_path, tmp_path / "no", tmp_path / ("long" * 100), tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"is a folder|there is no file"):
            files.existing_file(path)


def test_two_processes_may_replace_a_file_at_once_and_the_last_one_stays(tmp_path):
    path = tmp_path / "file"
    write = (
        "from pathlib import Path; from lib.runtime import files; "
        f"files.write_atomically(Path({str(path)!r}), b'b')"
    )
    with files.replaced(path) as file:
        file.write(b"a")
        subprocess.run([sys.executable, "-c", write], cwd=ROOT, check=True)
        assert path.read_bytes() == b"b"
    assert path.read_bytes() == b"a"
    assert list(tmp_path.iterdir()) == [path]


def test_the_longest_name_that_a_file_may_have_is_written(tmp_path):
    for name in ("n" * 255, "ф" * 127):
        files.write_atomically(tmp_path / name, b"content")
        assert (tmp_path / name).read_bytes() == b"content"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_temporary_file_that_a_process_has_not_written_to_for_long_is_its_own_while_it_lives(tmp_path):
    alive, gone = (tmp_path / f".file.{process}.tmp" for process in (os.getppid(), 2**31 - 1))
    for path in (alive, gone):
        path.write_bytes(b"")
        os.utime(path, (time.time() - 1000,) * 2)
    files.write_atomically(tmp_path / "file", b"content")
    assert set(tmp_path.iterdir()) == {alive, tmp_path / "file"}


def test_what_killed_processes_left_in_a_folder_is_removed_and_nothing_else_is(tmp_path):
    old = time.time() - 1000
    names = {
        ".checkpoint_last.pt.2147483647.tmp": True,
        f".checkpoint_best.pt.{os.getpid()}.tmp": True,  # of an earlier process with this one's id
        f".checkpoint_best.pt.{os.getppid()}.tmp": False,
        ".notes.tmp": False,
        "checkpoint_last.pt.2147483647.tmp": False,
        ".a.b.tmp": False,
        ".two\nlines.2147483647.tmp": True,
        "checkpoint_last.pt": False,
    }
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (old, old))
    (tmp_path / ".new.2147483647.tmp").touch()  # perhaps of a process on another host
    os.utime(tmp_path / ".new.2147483647.tmp", (time.time() + 60,) * 2)
    files.remove_abandoned(tmp_path)
    left = {name for name, is_removed in names.items() if not is_removed} | {".new.2147483647.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == left


def test_what_is_read_is_not_written_over(tmp_path):
    read, link = tmp_path / "in.txt", tmp_path / "link.txt"
    read.write_text("x")
    link.symlink_to(read)
    for inputs in ([str(read)], [None, ["other", str(read)]]):
        with pytest.raises(UserError, match=r"link.txt would be written over .*in.txt"):
            files.refuse_overwrite(str(link), *inputs)
    files.refuse_overwrite(None, str(read))
    files.refuse_overwrite(str(tmp_path / "new.txt"), str(read))
    files.refuse_overwrite(str(read), None, ["a phrase"], "x" * 10_000)
