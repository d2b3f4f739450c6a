"""sd_notify, heard by a socket such as systemd's."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.systemd import Notifier, environment_of_others, environment_of_speaker


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """Listens as systemd does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        is_path = request.param == "path"
        listener.bind(str(tmp_path / "notify") if is_path else f"\0loden-test-{os.getpid()}")
        listener.settimeout(5.0)
        yield listener


def notifier_for(listener: socket.socket, **environ: str) -> Notifier:
    address = listener.getsockname()
    name = address if isinstance(address, str) else "@" + address[1:].decode()
    return Notifier({"NOTIFY_SOCKET": name, **environ})


def test_each_state_is_told(systemd: socket.socket) -> None:
    notifier = notifier_for(systemd)
    assert notifier.is_enabled
    notifier.ready("10.7.29.0/24, 3 peers")
    notifier.status("waiting for\netcd")
    notifier.stopping()
    assert [systemd.recv(1024) for _ in range(3)] == [
        b"READY=1\nSTATUS=10.7.29.0/24, 3 peers",
        b"STATUS=waiting for etcd",  # a second line would be an assignment of its own
        b"STOPPING=1",
    ]


def test_what_was_the_last_word_is_not_said_again(systemd: socket.socket) -> None:
    notifier = notifier_for(systemd)
    for _ in range(3):
        notifier.status("waiting for etcd")
    notifier.ready("subnet")
    notifier.ready("subnet")
    notifier.stopping()
    told = [systemd.recv(1024) for _ in range(3)]
    assert told == [b"STATUS=waiting for etcd", b"READY=1\nSTATUS=subnet", b"STOPPING=1"]


def test_the_watchdog_is_fed_at_half_its_time(systemd: socket.socket) -> None:
    notifier = notifier_for(systemd, WATCHDOG_USEC="30000000", WATCHDOG_PID=str(os.getpid()))
    notifier.watchdog()
    assert systemd.recv(1024) == b"WATCHDOG=1"
    assert notifier.watchdog_timeout_s == 30.0
    assert notifier.watchdog_interval_s == 15.0


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
    ],
    ids=["off", "another process's", "zero", "not a number"],
)
def test_no_sign_of_life_is_sent_where_none_is_expected(
    systemd: socket.socket, environ: dict[str, str]
) -> None:
    notifier = notifier_for(systemd, **environ)
    notifier.watchdog()
    notifier.stopping()
    assert systemd.recv(1024) == b"STOPPING=1"
    assert notifier.watchdog_interval_s is None


def test_without_systemd_nothing_happens(caplog: pytest.LogCaptureFixture) -> None:
    notifier = Notifier({})
    notifier.ready()
    notifier.watchdog()
    assert not notifier.is_enabled
    assert caplog.records == []


def test_a_systemd_that_went_away_is_mentioned_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "1000000"})
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            notifier.watchdog()
    assert len(caplog.records) == 1
    assert "WATCHDOG=1" in caplog.text


def test_an_address_of_another_kind_is_named(caplog: pytest.LogCaptureFixture) -> None:
    assert not Notifier({"NOTIFY_SOCKET": "vsock:2:1234"}).is_enabled
    assert "'vsock:2:1234'" in caplog.text


def test_control_speaks_for_the_service_and_nobody_else_does(systemd: socket.socket) -> None:
    """systemd expects the signs of life of the main process, which is not the one that knows."""
    address = systemd.getsockname()
    socket_name = address if isinstance(address, str) else "@" + address[1:].decode()
    environ = {"NOTIFY_SOCKET": socket_name, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}
    others = environment_of_others({**environ, "PATH": "/bin"})
    assert others == {"PATH": "/bin"}
    Notifier(environment_of_speaker(environ)).watchdog()
    assert systemd.recv(1024) == b"WATCHDOG=1"
