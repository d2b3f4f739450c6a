"""etcd's members, one by one, and what is in it."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.doctor.etcd import EtcdPicture, check_etcd, check_lease, check_member
from control.doctor.finding import Level
from control.etcd import EtcdClient
from control.etcd_config import EtcdConfig
from control.lease import config_key
from perf.namespace import run_command
from tests.control.conftest import free_port


class Member(http.server.BaseHTTPRequestHandler):
    """Answers as any member does, with its clock in the header Date."""

    def do_GET(self) -> None:  # http.server's name for it
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Not on standard error."""


@pytest.fixture
def soon_over(tmp_path: Path) -> Iterator[EtcdConfig]:
    """A member whose certificate, its own authority, holds for five days."""
    files = {"cert": tmp_path / "cert.pem", "key": tmp_path / "key.pem"}
    words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "5", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(files["key"])]
    run_command(["openssl", "req", *words, "-out", str(files["cert"])])
    server = http.server.HTTPServer(("localhost", 0), Member)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files["cert"], files["key"])
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    url = f"https://localhost:{server.server_port}"
    yield EtcdConfig(urls=(url,), cafile=str(files["cert"]))
    server.shutdown()
    thread.join()
    server.server_close()


def examine(config: EtcdConfig) -> tuple[EtcdPicture, bool]:
    picture = EtcdPicture()
    return picture, check_member(config.endpoints[0], config, picture)


def test_certificate_that_ends_soon_is_a_warning(soon_over: EtcdConfig) -> None:
    picture, answers = examine(soon_over)
    assert answers
    warning, fine = picture.findings
    assert (warning.level, fine.level) == (Level.WARNING, Level.OK)
    assert "ends in 5 days" in warning.says
    assert abs(picture.skews[soon_over.urls[0]]) < 60


def test_certificate_of_an_unknown_authority_is_a_failure(
    soon_over: EtcdConfig, tmp_path: Path
) -> None:
    words = ["-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other"]
    other = tmp_path / "other.pem"
    run_command(["openssl", "req", *words, "-keyout", "/dev/null", "-out", str(other)])
    picture, answers = examine(EtcdConfig(urls=soon_over.urls, cafile=str(other)))
    (finding,) = picture.findings
    assert (answers, finding.level) == (False, Level.FAILURE)
    assert "TLS fails: " in finding.says
    assert "--etcd-cafile" in finding.mend


@pytest.mark.parametrize(
    ("is_running", "means"), [(True, "packets flow on"), (False, "loden cannot start")]
)
def test_silent_etcd_means_more_before_loden_runs(is_running: bool, means: str) -> None:
    config = EtcdConfig(urls=(f"http://127.0.0.1:{free_port()}",))
    member, whole = check_etcd(config, is_running).findings
    assert (member.level, whole.level) == (Level.FAILURE, Level.FAILURE)
    assert "Connection refused" in member.says
    assert means in whole.says


@pytest.mark.etcd
def test_network_config_is_read_or_missed(client: EtcdClient) -> None:
    levels = []
    for value in (None, "{}", '{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}'):
        if value is not None:
            client.put(config_key(client.config.prefix), value)
        picture = check_etcd(client.config, False)
        levels.append(picture.findings[-1].level)
    assert levels == [Level.FAILURE, Level.FAILURE, Level.OK]
    assert picture.config is not None
    assert "10.5.0.0/16, VNI 1, 0 leases" in picture.findings[-1].says
    assert list(picture.skews) == [str(client.config.endpoints[0])]


def test_lease_that_is_not_held_is_a_warning() -> None:
    held: dict[str, object] = {"lease": {}, "lease_not_held_because": None, "retained": 0}
    assert check_lease(held).level is Level.OK
    assert check_lease(held | {"lease_not_held_because": "no answer"}).level is Level.WARNING
    assert "confirm-loss" in check_lease(held | {"retained": 3}).mend
