"""Where machine code is kept, and that it is never what somebody else wrote or for other code."""

import os
import time
from pathlib import Path

import numba
import pytest

from forwarder import jit
from forwarder.jit import A_DAY_S, FOLDERS_KEPT, prune_cache


@pytest.fixture
def candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The two folders named by the environment, best first."""
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(first))
    monkeypatch.setenv("CACHE_DIRECTORY", str(second))
    return first, second


def test_numbas_own_variable_comes_first(candidates: tuple[Path, Path]) -> None:
    folder = jit.choose_cache_folder()
    assert folder is not None
    assert folder.parent == candidates[0]
    assert folder.stat().st_mode & 0o777 == 0o755


def test_folder_that_cannot_be_made_is_passed_over(candidates: tuple[Path, Path]) -> None:
    candidates[0].write_text("a file is in the way")
    folder = jit.choose_cache_folder()
    assert folder is not None
    assert folder.parent == candidates[1]


def test_folder_that_others_can_write_to_is_passed_over(candidates: tuple[Path, Path]) -> None:
    mine = jit.choose_cache_folder()
    assert mine is not None
    mine.chmod(0o777)
    folder = jit.choose_cache_folder()
    assert folder is not None
    assert folder.parent == candidates[1]


def test_bounds_checked_kernels_have_a_cache_of_their_own(
    candidates: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = jit.choose_cache_folder()
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", 1)
    assert jit.choose_cache_folder() != plain


def test_kernels_of_versions_long_gone_are_removed(tmp_path: Path) -> None:
    ours, *others = [tmp_path / f"kernels-{number:016x}" for number in range(FOLDERS_KEPT + 4)]
    strangers = [tmp_path / "kernels-of-mine", tmp_path / "notes"]
    for folder in (ours, *others, *strangers):
        folder.mkdir()
        (folder / "work.nbc").write_bytes(b"machine code")
    now = time.time()
    days = {folder: 2.0 + number for number, folder in enumerate(others)}
    days[others[0]] = 0.5
    for folder in strangers:
        days[folder] = 100
    for folder, age in days.items():
        os.utime(folder, (now - age * A_DAY_S,) * 2)
    os.utime(ours, (now - 50 * A_DAY_S,) * 2)
    prune_cache(ours)
    left = set(tmp_path.iterdir())
    assert left == {ours, *others[:FOLDERS_KEPT], *strangers}
    assert now - ours.stat().st_mtime < 60


def test_kernels_used_within_a_day_are_kept_however_many(tmp_path: Path) -> None:
    folders = [tmp_path / f"kernels-{number:016x}" for number in range(FOLDERS_KEPT + 4)]
    for folder in folders:
        folder.mkdir()
    prune_cache(folders[0])
    assert set(tmp_path.iterdir()) == set(folders)


def test_what_leads_elsewhere_is_left_alone(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cache = tmp_path / "cache"
    ours = cache / f"kernels-{0:016x}"
    ours.mkdir(parents=True)
    for number in range(1, FOLDERS_KEPT + 3):
        link = cache / f"kernels-{number:016x}"
        link.symlink_to(elsewhere)
        os.utime(link, (0, 0), follow_symlinks=False)
    prune_cache(ours)
    assert elsewhere.is_dir()
