"""How etcd's settings are checked, and what TLS is made of."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from control.embedded_etcd import EmbeddedEtcd
from control.etcd import EtcdClient
from control.etcd_config import EtcdConfig, EtcdConfigError
from control.etcd_types import EtcdUnavailableError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://10.0.0.1:2379", "http://10.0.0.1:2379"),
        ("http://etcd-0.example", "http://etcd-0.example:2379"),
        ("https://etcd-0.example:4001/", "https://etcd-0.example:4001"),
        ("http://[fd77::1]:2379", "http://[fd77::1]:2379"),
        ("10.0.0.1:2379", "http://10.0.0.1:2379"),
    ],
)
def test_endpoints_are_read_as_flannel_takes_them(url: str, shown: str) -> None:
    (endpoint,) = EtcdConfig(urls=(url,)).endpoints
    assert str(endpoint) == shown


def test_slash_at_the_end_of_the_prefix_is_dropped() -> None:
    assert EtcdConfig(prefix="/my/network/").prefix == "/my/network"


@pytest.mark.parametrize(
    ("fields", "field", "allowed"),
    [
        ({"urls": ()}, "endpoints", "at least one"),
        ({"urls": ("ftp://etcd:2379",)}, "endpoint", "http://host:port"),
        ({"urls": ("http://etcd:99999",)}, "endpoint", "http://host:port"),
        ({"urls": ("http://",)}, "endpoint", "http://host:port"),
        ({"urls": ("http://etcd:2379/v3",)}, "endpoint", "http://host:port"),
        ({"urls": ("http://root:pw@etcd:2379",)}, "endpoint", "http://host:port"),
        ({"prefix": "/"}, "prefix", "/coreos.com/network"),
        ({"username": "root"}, "password", "required with the username"),
        ({"password": "x"}, "username", "required with the password"),
        ({"keyfile": "/dev/null"}, "certfile", "required with the keyfile"),
        ({"certfile": "/dev/null"}, "keyfile", "required with the certfile"),
        ({"cafile": "/nowhere/ca.pem"}, "cafile", "No such file"),
        ({"cafile": "/dev/null", "urls": ("http://etcd:1",)}, "endpoint", "https://"),
        ({"request_timeout_s": 0}, "request timeout", "more than 0"),
    ],
)
def test_refusals_name_field_and_what_is_allowed(
    fields: dict[str, Any], field: str, allowed: str
) -> None:
    with pytest.raises(EtcdConfigError, match=allowed) as caught:
        EtcdConfig(**fields)
    assert caught.value.field == field
    assert not caught.value.retryable


def test_password_is_not_shown() -> None:
    assert "secret" not in repr(EtcdConfig(username="root", password="secret"))


class TlsEtcd(EmbeddedEtcd):
    """Serves TLS at https://localhost and, if `clients_need_certificates`, asks for theirs."""

    clients_need_certificates = False

    def arguments(self) -> tuple[str, ...]:
        certificates = self.data_dir.parent
        https = self.url.replace("http:", "https:")
        demand = (f"--trusted-ca-file={certificates}/ca.pem", "--client-cert-auth=true")
        return (
            *(demand if self.clients_need_certificates else ()),
            *(a for a in super().arguments() if "client-urls" not in a),
            f"--listen-client-urls={https}",
            f"--advertise-client-urls={https}",
            f"--cert-file={certificates}/server.pem",
            f"--key-file={certificates}/server.key",
            f"--listen-metrics-urls=http://127.0.0.1:{self.metrics_port}",
        )

    @property
    def metrics_port(self) -> int:
        return self._ports[1] - 1

    def answers(self) -> bool:
        client_port, peer_port = self._ports
        self._ports = (self.metrics_port, peer_port)
        try:
            return super().answers()
        finally:
            self._ports = (client_port, peer_port)


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    """ca.pem, and a key and certificate each for a server called localhost and for a client."""
    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    ca = ["-x509", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem"]
    openssl(tmp_path, "req", *new_key, *ca)
    for name, alternative in (("server", "DNS:localhost"), ("client", "DNS:client")):
        openssl(
            tmp_path, "req", *new_key, "-x509", "-CA", "ca.pem", "-CAkey", "ca.key",
            "-subj", f"/CN={name}", "-addext", f"subjectAltName={alternative}",
            "-addext", "basicConstraints=critical,CA:FALSE",
            "-addext", "extendedKeyUsage=serverAuth,clientAuth",
            "-keyout", f"{name}.key", "-out", f"{name}.pem",
        )  # fmt: skip
    return tmp_path


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def tls_etcd(certificates: Path) -> Iterator[TlsEtcd]:
    server = TlsEtcd(certificates / "etcd")
    yield server
    server.stop()


def config_of(server: TlsEtcd, **files: str) -> EtcdConfig:
    url = server.url.replace("http://127.0.0.1", "https://localhost")
    directory = server.data_dir.parent
    paths = {name: str(directory / file) for name, file in files.items()}
    return EtcdConfig(urls=(url,), request_timeout_s=2, **paths)


@pytest.mark.etcd
def test_a_ca_alone_gives_tls(tls_etcd: TlsEtcd) -> None:
    tls_etcd.start()
    client = EtcdClient(config_of(tls_etcd, cafile="ca.pem"))
    client.put("/k", "x")
    assert client.get("/k") is not None
    client.close()


@pytest.mark.etcd
def test_a_server_nobody_vouches_for_is_not_spoken_to(tls_etcd: TlsEtcd) -> None:
    tls_etcd.start()
    config = config_of(tls_etcd, cafile="ca.pem")
    stranger = EtcdClient(dataclasses.replace(config, cafile=str(Path(__file__))))
    with pytest.raises(EtcdUnavailableError):
        stranger.get("/k")
    stranger.close()


@pytest.mark.etcd
def test_client_certificates(tls_etcd: TlsEtcd) -> None:
    tls_etcd.clients_need_certificates = True
    tls_etcd.start()
    without = EtcdClient(config_of(tls_etcd, cafile="ca.pem"))
    with pytest.raises(EtcdUnavailableError):
        without.get("/k")
    without.close()
    client = EtcdClient(
        config_of(tls_etcd, cafile="ca.pem", certfile="client.pem", keyfile="client.key")
    )
    client.put("/k", "x")
    assert client.get("/k") is not None
    client.close()
