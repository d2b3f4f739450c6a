"""The wheel and the sdist hold what they must, and the wheel runs where there is nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("control", "forwarder", "perf")

pytestmark = pytest.mark.slow


def run(*argv: str | Path, cwd: Path) -> str:
    """Its output, both streams. Fails the test if the command does."""
    done = subprocess.run(
        [str(word) for word in argv],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, made from a copy of the sources, and the wheel made from it."""
    checkout = tmp_path_factory.mktemp("checkout") / "loden"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    run(sys.executable, "-m", "build", "--outdir", "dist", cwd=checkout)
    return checkout / "dist"


def test_wheel_contains_every_module_and_nothing_else(distributions: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected


def test_sdist_contains_what_building_and_testing_need(distributions: Path) -> None:
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {
        path.relative_to(ROOT).as_posix()
        for folder in (*PACKAGES, "tests")
        for path in (ROOT / folder).rglob("*.py")
    }
    wanted |= {"pyproject.toml", "tox.ini", "Makefile", "README.md", "ARCHITECTURE.md", "LICENSE"}
    assert wanted <= names


def test_wheel_runs_in_a_fresh_environment(distributions: Path, tmp_path: Path) -> None:
    (wheel,) = distributions.glob("*.whl")
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    run(programs / "pip", "install", "--quiet", wheel, cwd=tmp_path)

    assert "Usage: loden" in run(programs / "loden", "--help", cwd=tmp_path)
    code = "import control.cli, forwarder.supervisor, perf.demo; print(control.cli.__file__)"
    assert str(tmp_path) in run(programs / "python", "-c", code, cwd=tmp_path)
