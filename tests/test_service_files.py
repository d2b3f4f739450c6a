"""The unit and its installation: what systemd's own tools say of it, and what is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from control.flags import run_flags
from forwarder.capabilities import OF_FORWARDER, Capability

ROOT = Path(__file__).parents[1]
UNIT = (ROOT / "systemd/loden.service").read_text()
MAX_EXPOSURE = 40
"""In tenths, of systemd-analyze's scale: below 5 is "OK", and root with the network can hardly
come below 3."""


def settings_of(unit: str) -> dict[str, str]:
    """Each setting's values, joined."""
    found: dict[str, str] = {}
    for line in unit.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name] = f"{found.get(name, '')} {value}".strip()
    return found


def rendered(directory: Path) -> Path:
    """The unit as it is installed for this Python."""
    environ = {**os.environ, "PYTHON": sys.executable, "PREFIX": sys.prefix}
    argv = [str(ROOT / "systemd/service"), "unit"]
    unit = directory / "loden.service"
    unit.write_text(subprocess.check_output(argv, env=environ, text=True))
    return unit


@pytest.mark.systemd
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    argv = ["systemd-analyze", "verify", "--man=no", str(rendered(tmp_path))]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.systemd
def test_systemd_finds_little_exposed(tmp_path: Path) -> None:
    argv = ["systemd-analyze", "security", "--offline=true", f"--threshold={MAX_EXPOSURE}"]
    done = subprocess.run([*argv, str(rendered(tmp_path))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_unit_lets_its_processes_have_what_they_keep() -> None:
    bounding = set(settings_of(UNIT)["CapabilityBoundingSet"].split())
    kept = {Capability.SETPCAP, *OF_FORWARDER}
    assert bounding == {f"CAP_{capability.name}" for capability in kept}


def test_watchdog_waits_for_several_signs_of_life() -> None:
    from control.daemon import TICK_S

    assert float(settings_of(UNIT)["WatchdogSec"]) > 5 * TICK_S


def service(action: str, destdir: Path) -> str:
    """`make ACTION-service`, without downloading what is here already."""
    site_packages = next(path for path in sys.path if path.endswith("site-packages"))
    environ = {
        **os.environ,
        "PIP_NO_DEPS": "1",
        "PYTHONPATH": site_packages,  # for the new virtual environment, which has loden alone
    }
    words = [f"PYTHON={sys.executable}", f"DESTDIR={destdir}"]
    done = subprocess.run(
        ["make", "--silent", f"{action}-service", *words],
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.slow
def test_service_replaces_an_older_one_and_is_removed_but_for_what_operators_wrote(
    tmp_path: Path,
) -> None:
    destdir = tmp_path / "package"
    prefix, unit = destdir / "opt/loden", destdir / "etc/systemd/system/loden.service"
    program, settings = destdir / "usr/local/bin/loden", destdir / "etc/loden/loden.toml"
    for path in (prefix / "lib/of-an-older-version.py", unit, program):
        path.parent.mkdir(parents=True)
        path.write_text("old")

    service("install", destdir)
    assert settings_of(unit.read_text())["ExecStart"].startswith("/opt/loden/bin/python -m control")
    assert os.readlink(program) == "/opt/loden/bin/loden"
    assert (prefix / "bin/loden").read_text().startswith("#!/opt/loden/bin/python")
    assert list(prefix.glob("lib/python3*/site-packages/forwarder/__pycache__/worker.*.pyc"))
    assert not (prefix / "lib/of-an-older-version.py").exists()
    assert str(destdir) not in (prefix / "pyvenv.cfg").read_text()
    assert f"#{run_flags()[0].opts[0].removeprefix('--')} = " in settings.read_text()
    assert oct(settings.stat().st_mode & 0o777) == oct(0o600)

    for _ in range(2):
        service("uninstall", destdir)
        left = {path.relative_to(destdir) for path in destdir.rglob("*") if not path.is_dir()}
        assert left == {Path("etc/loden/loden.toml")}
