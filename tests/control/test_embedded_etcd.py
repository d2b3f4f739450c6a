"""The private etcd child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from control.embedded_etcd import EmbeddedEtcd, EmbeddedEtcdError, find_etcd_binary
from control.etcd import EtcdClient
from control.etcd_config import EtcdConfig
from tests.control.conftest import EtcdServer, wait_for


def client_of(url: str) -> EtcdClient:
    return EtcdClient(EtcdConfig(urls=(url,)))


@pytest.mark.etcd
def test_it_answers_stops_and_finds_its_data_again(tmp_path: Path) -> None:
    etcd = EmbeddedEtcd(tmp_path / "etcd")
    client = client_of(etcd.start())
    client.put("/k", "x")
    client.close()
    pid = etcd.pid
    assert pid is not None
    etcd.stop()
    assert etcd.pid is None
    assert not Path(f"/proc/{pid}").exists()
    etcd.stop()

    client = client_of(etcd.start())  # on other ports than before
    entry = client.get("/k")
    assert entry is not None
    assert entry.value == b"x"
    client.close()
    etcd.stop()
    assert (tmp_path / "etcd" / "etcd.log").stat().st_size > 0


@pytest.mark.etcd
def test_other_nodes_reach_it_at_the_listen_address(tmp_path: Path) -> None:
    etcd = EmbeddedEtcd(tmp_path / "etcd", listen_address="127.0.0.2")
    url = etcd.start()
    client = client_of(url.replace("127.0.0.1", "127.0.0.2"))
    client.put("/k", "x")
    client.close()
    etcd.stop()


@pytest.mark.etcd
def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, control.embedded_etcd as e\n"
        "etcd = e.EmbeddedEtcd(pathlib.Path(sys.argv[1])); etcd.start()\n"
        "print(etcd.pid, flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "etcd")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    etcd_pid = int(parent.stdout.readline())
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    wait_for(lambda: not _runs(etcd_pid))


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.etcd
def test_a_port_taken_by_another_etcd_is_not_mistaken_for_ours(
    tmp_path: Path, shared_etcd: EtcdServer
) -> None:
    port = int(shared_etcd.url.rpartition(":")[2])
    etcd = EmbeddedEtcd(tmp_path / "etcd", client_port=port)
    with pytest.raises(EmbeddedEtcdError, match=r"not free.*in use") as caught:
        etcd.start()
    assert caught.value.retryable
    assert etcd.pid is None


def test_a_missing_binary_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmbeddedEtcdError, match=r"/no/etcd is no program.*etcd-server") as caught:
        find_etcd_binary("/no/etcd")
    assert not caught.value.retryable
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(EmbeddedEtcdError, match=r"no etcd on PATH.*etcd-server"):
        find_etcd_binary()


def test_a_program_that_ends_at_once_is_reported(tmp_path: Path) -> None:
    etcd = EmbeddedEtcd(tmp_path / "etcd", binary="false")
    with pytest.raises(EmbeddedEtcdError, match="ended at once"):
        etcd.start()
