"""Files and folders: found readable, made writable, or refused in one line."""

import subprocess
import sys

import pytest
from conftest import ROOT

from lib import files
from lib.errors import UserError


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
        f"from pathlib import Path; from lib import files; files.write_atomically(Path({str(path)!r}), b'b')"
    )
    with files.replaced(path) as file:
        file.write(b"a")
        subprocess.run([sys.executable, "-c", write], cwd=ROOT, check=True)
        assert path.read_bytes() == b"b"
    assert path.read_bytes() == b"a"
    assert list(tmp_path.iterdir()) == [path]
