"""Real etcd servers for the tests, each a process of its own on a free loopback port; hosts."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from control.embedded_etcd import LOOPBACK, EmbeddedEtcd
from control.etcd import EtcdClient
from control.etcd_config import EtcdConfig
from tests.control.firewalls import Site, built_site

_prefixes = itertools.count()


def free_port() -> int:
    """A port of loopback that nobody has, and that nobody is given while its server is down.

    Below the range the kernel takes the ports of outgoing connections from (32768 and above).
    """
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, random.randrange(20_000, 32_000)))
            return int(probe.getsockname()[1])


class EtcdServer(EmbeddedEtcd):
    """An etcd that can be treated badly: killed, stopped in its tracks, started again."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir, client_port=free_port(), peer_port=free_port())

    def restart(self) -> None:
        """Start again on the same ports and data."""
        self.start()

    def restart_empty(self) -> None:
        """Start again on the same ports as another, new cluster."""
        self.kill()
        self.data_dir = self.data_dir.with_name(self.data_dir.name + "-new")
        self.restart()

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.stop()

    def suspend(self) -> None:
        """The connections stay open, nobody answers on them."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self, timeout_s: float = 5.0) -> None:
        if self.pid is not None:
            self.resume()
        super().stop(timeout_s)

    def enable_auth(self, user: str, password: str) -> None:
        """Only this user, who may do anything, is let in from now on."""
        self.etcdctl("user", "add", f"{user}:{password}")
        self.etcdctl("user", "grant-role", user, "root")
        self.etcdctl("auth", "enable")

    def etcdctl(self, *arguments: str) -> None:
        subprocess.run(
            ["etcdctl", f"--endpoints={self.url}", *arguments],
            check=True,
            capture_output=True,
            env={"ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"},
        )

    def _signal(self, number: signal.Signals) -> None:
        if self.pid is not None:
            os.kill(self.pid, number)


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """One server for all tests that do it no harm; each uses a prefix of its own."""
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def own_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """A server to kill, suspend and restart."""
    server = EtcdServer(tmp_path / "etcd")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def prefix() -> str:
    """An etcd prefix nobody else uses."""
    return f"/test-{next(_prefixes)}/network"


@pytest.fixture
def connect() -> Iterator[Callable[..., EtcdClient]]:
    """Makes clients of a server, and closes them after the test."""
    clients: list[EtcdClient] = []

    def client_of(
        server: EmbeddedEtcd, prefix: str = "/test/network", request_timeout_s: float = 2.0
    ) -> EtcdClient:
        config = EtcdConfig((server.url,), prefix, request_timeout_s=request_timeout_s)
        clients.append(EtcdClient(config))
        return clients[-1]

    yield client_of
    for client in clients:
        client.close()


@pytest.fixture
def client(shared_etcd: EtcdServer, connect: Callable[..., EtcdClient], prefix: str) -> EtcdClient:
    """A client of the shared server, below a prefix of its own."""
    return connect(shared_etcd, prefix)


def wait_for(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    """Return as soon as `condition` holds; fail the test if it never does."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Three hosts to try firewall rules on."""
    with built_site() as site:
        yield site
