"""Files replaced at one stroke."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from control.atomic_file import replace_file


def test_a_reader_of_the_old_file_keeps_it_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    replace_file(path, b"old", 0o644)
    with path.open("rb") as reader:
        replace_file(path, b"new, and longer", 0o644)
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new, and longer"


def test_modes_hold_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "made" / "file"
    before = os.umask(0o077)
    try:
        replace_file(path, b"", 0o644)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    with pytest.raises(OSError, match="taken"):
        replace_file(taken, b"x", 0o644)
    assert os.listdir(tmp_path) == ["taken"]
