"""Where machine code is kept, and that it is never what somebody else wrote or for other code."""

from pathlib import Path

import numba
import pytest

from forwarder import jit


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
