"""`--docker`: when Docker is restarted, and what is said when it is not.

systemctl is a script here that writes down how it was called; the drop-in is checked by systemd.
"""

from __future__ import annotations

import logging
import shlex
import shutil
import subprocess
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from control import docker_service
from control.docker_service import follow_subnet
from control.subnet_env import SubnetEnv

DROP_IN = Path(__file__).parents[2] / "systemd/docker.service.d/loden.conf"
CONTENTS = SubnetEnv(
    network=IPv4Network("10.5.0.0/16"),
    subnet=IPv4Interface("10.5.10.1/24"),
    ipv6_network=None,
    ipv6_subnet=None,
    mtu_bytes=1450,
    ip_masq=True,
)
OPTIONS = """\
DOCKER_OPT_BIP="--bip=10.5.10.1/24"
DOCKER_OPT_IPMASQ="--ip-masq=false"
DOCKER_OPT_MTU="--mtu=1450"
"""
DEBIANS_UNIT = """\
[Unit]
Description=Docker Application Container Engine
Requires=docker.socket
[Service]
Type=notify
EnvironmentFile=-/etc/default/docker
ExecStart=/usr/sbin/dockerd -H fd:// --containerd=/run/containerd/containerd.sock $DOCKER_OPTS
"""


class Systemctl:
    """The one on PATH."""

    def __init__(self, directory: Path) -> None:
        self.options = directory / "run" / docker_service.FILE_NAME
        self.subnet_file = directory / "run" / "subnet.env"
        self._program, self._calls = directory / "systemctl", directory / "calls"
        self.shows("loaded", "active", reads_options=True)

    def shows(self, load: str, active: str, *, reads_options: bool) -> None:
        properties = [f"LoadState={load}", f"ActiveState={active}"]
        properties.append("EnvironmentFiles=/etc/default/docker (ignore_errors=yes)")
        if reads_options:
            properties.append(f"EnvironmentFiles={self.options} (ignore_errors=no)")
        text = shlex.quote("\n".join(properties))
        self.does(f'case $1 in show) echo {text};; *) echo "$@" >>{self._calls};; esac')

    def does(self, script: str) -> None:
        self._program.write_text(f"#!/bin/sh\n{script}\n")
        self._program.chmod(0o755)

    def changed(self) -> list[str]:
        """What it was told to change since the last time."""
        calls = self._calls.read_text().splitlines() if self._calls.exists() else []
        self._calls.unlink(missing_ok=True)
        return calls


@pytest.fixture
def systemctl(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Systemctl:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    caplog.set_level(logging.INFO)
    return Systemctl(tmp_path)


def test_docker_is_restarted_when_its_options_change_and_only_then(
    systemctl: Systemctl, caplog: pytest.LogCaptureFixture
) -> None:
    follow_subnet(CONTENTS, systemctl.subnet_file)
    assert systemctl.options.read_text() == OPTIONS
    assert systemctl.changed() == ["--no-block restart docker.service"]
    assert "docker.service is restarted" in caplog.text

    follow_subnet(CONTENTS, systemctl.subnet_file)
    assert systemctl.changed() == []

    moved = replace(CONTENTS, subnet=IPv4Interface("10.5.11.1/24"))
    follow_subnet(moved, systemctl.subnet_file)
    assert "--bip=10.5.11.1/24" in systemctl.options.read_text()
    assert systemctl.changed() == ["--no-block restart docker.service"]


def test_docker_that_failed_is_given_another_chance(systemctl: Systemctl) -> None:
    systemctl.shows("loaded", "failed", reads_options=True)
    follow_subnet(CONTENTS, systemctl.subnet_file)
    assert systemctl.changed() == [
        "reset-failed docker.service",
        "--no-block restart docker.service",
    ]


@pytest.mark.parametrize(
    ("load", "active", "reads_options", "message"),
    [
        ("loaded", "inactive", True, "docker.service reads it when it starts"),
        ("loaded", "active", False, "install systemd/docker.service.d/loden.conf"),
        ("not-found", "inactive", False, "there is no docker.service"),
    ],
)
def test_docker_is_left_alone_where_a_restart_is_of_no_use(
    systemctl: Systemctl,
    caplog: pytest.LogCaptureFixture,
    load: str,
    active: str,
    reads_options: bool,
    message: str,
) -> None:
    systemctl.shows(load, active, reads_options=reads_options)
    follow_subnet(CONTENTS, systemctl.subnet_file)
    assert systemctl.changed() == []
    assert message in caplog.text
    assert systemctl.options.exists()


def test_without_systemd_the_operator_is_told_what_to_do(
    systemctl: Systemctl, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl.does("echo System has not been booted with systemd >&2; exit 1")
    follow_subnet(CONTENTS, systemctl.subnet_file)
    assert "a running Docker must be restarted with these options" in caplog.text
    assert "System has not been booted with systemd" in caplog.text

    monkeypatch.setenv("PATH", "/nowhere")
    follow_subnet(replace(CONTENTS, mtu_bytes=1400), systemctl.subnet_file)
    assert "systemctl cannot: there is none on this host" in caplog.text
    assert "--mtu=1400" in systemctl.options.read_text()


def test_systemd_that_hangs_holds_nobody_up(
    systemctl: Systemctl, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_service, "SYSTEMCTL_TIMEOUT_S", 0.2)
    systemctl.does("exec sleep 60")
    follow_subnet(CONTENTS, systemctl.subnet_file)
    assert "no answer within 0.2 s" in caplog.text


def test_what_cannot_be_written_is_said(
    systemctl: Systemctl, caplog: pytest.LogCaptureFixture
) -> None:
    follow_subnet(replace(CONTENTS, subnet=None), systemctl.subnet_file)
    assert "Docker's bridge needs an IPv4 subnet" in caplog.text
    follow_subnet(CONTENTS, Path("/proc/subnet.env"))
    assert "/proc/docker_opts.env cannot be written: " in caplog.text
    assert systemctl.changed() == []


@pytest.mark.docker
def test_systemd_takes_the_drop_in(tmp_path: Path) -> None:
    unit = tmp_path / "docker.service"
    unit.write_text(DEBIANS_UNIT)
    (tmp_path / "docker.socket").write_text("[Socket]\nListenStream=/run/docker.sock\n")
    shutil.copytree(DROP_IN.parent, tmp_path / DROP_IN.parent.name)
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert f"EnvironmentFile=/run/flannel/{docker_service.FILE_NAME}\n" in DROP_IN.read_text()
