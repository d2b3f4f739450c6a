"""A private etcd as a child of ours: the first node of a cluster needs nothing else.

It listens on loopback, and on one more address if other nodes shall reach it. It dies with the
process that started it, and finds its data again at the next start.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from control.systemd import environment_of_others

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.05
LOG_TAIL_BYTES = 2000
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


class EmbeddedEtcdError(Exception):
    """The private etcd does not run; `retryable` says whether a new start may help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


def find_etcd_binary(wanted: str | None = None) -> str:
    """The etcd to run: the one wanted, else the one on PATH. Raises EmbeddedEtcdError."""
    found = shutil.which(wanted or "etcd")
    if found is None:
        what = f"--etcd-binary {wanted} is no program" if wanted else "there is no etcd on PATH"
        how = "install Debian's package etcd-server or name one with --etcd-binary"
        raise EmbeddedEtcdError(f"{what}: {how}", retryable=False)
    return found


class EmbeddedEtcd:
    """One etcd process. Start and stop it from one thread; that thread's end would end it too."""

    def __init__(
        self,
        data_dir: Path,
        *,
        binary: str | None = None,
        client_port: int = 0,
        peer_port: int = 0,
        listen_address: str | None = None,
    ) -> None:
        """`data_dir` receives `data/` and `etcd.log`. A port of 0 means any that is free.

        `listen_address`: a further address of this host to serve other nodes at, without TLS.
        """
        self.data_dir = data_dir
        self.log_path = data_dir / "etcd.log"
        self.listen_address = listen_address
        self._binary = binary
        self._wanted_ports = (client_port, peer_port)
        self._ports = self._wanted_ports
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where this host's processes reach it, once it was started."""
        return f"http://{LOOPBACK}:{self._ports[0]}"

    @property
    def pid(self) -> int | None:
        """None while it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """Start it, wait until it answers, return its URL. Raises EmbeddedEtcdError, OSError."""
        binary = find_etcd_binary(self._binary)
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        client_port, peer_port = self._wanted_ports
        self._ports = (_free_port(client_port), _free_port(peer_port))
        with self.log_path.open("ab") as output:
            self._process = subprocess.Popen(
                [binary, *self.arguments()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                # Of its own group: a terminal's Ctrl-C is for us, we stop it when we are done.
                start_new_session=True,
                preexec_fn=die_with_parent,
            )
        try:
            self._wait_until_it_answers(time.monotonic() + timeout_s)
        except BaseException:
            self.stop()
            raise
        log.info("a private etcd runs at %s, pid %d", self.url, self._process.pid)
        return self.url

    def arguments(self) -> Sequence[str]:
        """etcd's command line."""
        client_port, peer_port = self._ports
        peer_url = f"http://{LOOPBACK}:{peer_port}"
        client_urls = [self.url]
        if self.listen_address is not None:
            client_urls.append(f"http://{_bracketed(self.listen_address)}:{client_port}")
        return (
            "--name=loden",
            f"--data-dir={self.data_dir / 'data'}",
            f"--listen-client-urls={','.join(client_urls)}",
            f"--advertise-client-urls={client_urls[-1]}",
            f"--listen-peer-urls={peer_url}",
            f"--initial-advertise-peer-urls={peer_url}",
            f"--initial-cluster=loden={peer_url}",
            "--auto-compaction-retention=1",  # hours of history; without it the data only grows
        )

    def answers(self) -> bool:
        """Whether it is healthy: it has a leader and serves requests."""
        client = http.client.HTTPConnection(LOOPBACK, self._ports[0], timeout=1)
        try:
            client.request("GET", "/health")
            return b'"true"' in client.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            client.close()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop it, by force if it takes longer than `timeout_s`."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            log.warning("the private etcd did not stop within %g s: killed", timeout_s)
            self._process.kill()
            self._process.wait()
        self._process = None

    def _wait_until_it_answers(self, deadline: float) -> None:
        assert self._process is not None
        while not self.answers():
            if self._process.poll() is not None:
                raise EmbeddedEtcdError(f"etcd ended at once: {self._last_words()}", retryable=True)
            if time.monotonic() > deadline:
                raise EmbeddedEtcdError(
                    f"etcd does not answer at {self.url}, its log is {self.log_path}",
                    retryable=True,
                )
            time.sleep(POLL_S)

    def _last_words(self) -> str:
        tail = self.log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
        return f"{tail.splitlines()[-1] if tail else 'no output'} (log: {self.log_path})"


def _environment() -> dict[str, str]:
    """Without etcd's own settings, and without the way to systemd: etcd would say READY for us."""
    environ = environment_of_others(os.environ)
    return {name: value for name, value in environ.items() if not name.startswith("ETCD_")}


def _free_port(wanted: int) -> int:
    """The port wanted, or any. Raises EmbeddedEtcdError if it is taken.

    etcd would say so too, but whoever has the port may be an etcd, and answer in its place.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, wanted))
        except OSError as error:
            message = f"port {wanted} on {LOOPBACK} is not free for etcd: {error.strerror}"
            raise EmbeddedEtcdError(message, retryable=True) from None
        return int(probe.getsockname()[1])


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


# Looked up here, because the child between fork and exec should do as little as possible.
_prctl = ctypes.CDLL(None).prctl


def die_with_parent() -> None:
    """For a child between fork and exec: SIGTERM reaches it when the thread that forked it ends."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
