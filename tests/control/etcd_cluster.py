"""A cluster of real etcd members on loopback, each to be killed, stopped in its tracks, started.

member 0 ─┐
member 1 ─┼─ peers; with TLS towards clients if certificates are given
member 2 ─┘
"""

from __future__ import annotations

import contextlib
import http.client
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from control.embedded_etcd import LOOPBACK
from control.etcd import EtcdClient
from control.etcd_config import EtcdConfig
from control.etcd_types import EtcdError
from tests.control.conftest import EtcdServer, free_port

START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Certificates:
    """PEM files: an authority, a server's certificate for loopback, a client's."""

    cafile: str
    server: tuple[str, str]
    """Certificate and key."""
    client: tuple[str, str]

    @classmethod
    def make(cls, directory: Path) -> Certificates:
        """Signed by an authority of their own, valid for a day."""
        directory.mkdir()
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]
        ca = (f"{directory}/ca.pem", f"{directory}/ca-key.pem")
        _openssl(
            "req", "-x509", *key, "-subj", "/CN=test authority", "-out", ca[0], "-keyout", ca[1]
        )

        def signed(name: str, *more: str) -> tuple[str, str]:
            certificate, own_key = f"{directory}/{name}.pem", f"{directory}/{name}-key.pem"
            request = f"{directory}/{name}.csr"
            _openssl("req", *key[:-2], "-subj", f"/CN={name}", "-out", request, "-keyout", own_key)
            sign = ["-req", "-in", request, "-CA", ca[0], "-CAkey", ca[1], "-CAcreateserial"]
            _openssl("x509", *sign, "-days", "1", "-out", certificate, *more)
            return certificate, own_key

        names = directory / "names"
        names.write_text(f"subjectAltName=IP:{LOOPBACK}\n")
        return cls(ca[0], signed("server", "-extfile", str(names)), signed("client"))


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class Member(EtcdServer):
    """One etcd of a cluster. Ports are settled before its peers must know them."""

    def __init__(self, directory: Path, name: str, *more: str) -> None:
        super().__init__(directory)
        self.name = name
        self.initial_cluster = ""
        self._more = more
        self._metrics_port = free_port()
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{LOOPBACK}:{self._wanted_ports[0]}"

    @property
    def peer_url(self) -> str:
        return f"http://{LOOPBACK}:{self._wanted_ports[1]}"

    def arguments(self) -> Sequence[str]:
        return (
            f"--name={self.name}",
            f"--data-dir={self.data_dir / 'data'}",
            f"--listen-client-urls={self.url}",
            f"--advertise-client-urls={self.url}",
            f"--listen-peer-urls={self.peer_url}",
            f"--initial-advertise-peer-urls={self.peer_url}",
            f"--initial-cluster={self.initial_cluster}",
            f"--listen-metrics-urls=http://{LOOPBACK}:{self._metrics_port}",
            *self._more,
        )

    def answers(self) -> bool:
        # Health is told there too, and without TLS.
        connection = http.client.HTTPConnection(LOOPBACK, self._metrics_port, timeout=1)
        with contextlib.closing(connection):
            try:
                connection.request("GET", "/health")
                return b'"true"' in connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                return False

    def _wait_until_it_answers(self, deadline: float) -> None:
        """Not yet: without its peers a member has no leader."""


class EtcdCluster:
    """Members that are started together."""

    def __init__(
        self,
        directory: Path,
        size: int = 3,
        certificates: Certificates | None = None,
        wants_client_certificate: bool = False,
        options: Sequence[str] = (),
    ) -> None:
        more = list(options)
        if certificates is not None:
            certificate, key = certificates.server
            more += [f"--cert-file={certificate}", f"--key-file={key}"]
        if certificates is not None and wants_client_certificate:
            more += ["--client-cert-auth", f"--trusted-ca-file={certificates.cafile}"]
        self.members = [Member(directory / str(n), f"member{n}", *more) for n in range(size)]
        for member in self.members:
            member.initial_cluster = ",".join(f"{m.name}={m.peer_url}" for m in self.members)
            member.scheme = "http" if certificates is None else "https"

    @property
    def urls(self) -> tuple[str, ...]:
        return tuple(member.url for member in self.members)

    def start(self) -> None:
        """All that do not run; returns when all answer."""
        for member in self.members:
            if member.pid is None:
                member.start()
        self.wait_healthy()

    def wait_healthy(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(member.answers() for member in self.members if member.pid is not None):
            assert time.monotonic() < deadline, "the cluster does not answer"
            time.sleep(0.05)

    def kill(self) -> None:
        """All at once."""
        for member in self.members:
            member.kill()

    def stop(self) -> None:
        for member in self.members:
            member.stop()

    def leader(self) -> Member:
        """Asked of each member in turn, until one knows."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            for member in self.members:
                client = EtcdClient(EtcdConfig((member.url,), request_timeout_s=2))
                try:
                    status = client.status()
                except EtcdError:
                    continue
                finally:
                    client.close()
                if status.member_id == status.leader_id:
                    return member
        raise AssertionError("no member leads")
