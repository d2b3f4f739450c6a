"""What control keeps of root's privileges, by its options and this host's programs."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from control.etcd_config import EtcdConfig
from control.options import ControlOptions
from control.privileges import LEGACY_IPTABLES, needed
from forwarder.capabilities import Capability, to_read

PLAIN = ControlOptions(etcd=EtcdConfig(), forward_rules=False)
LEAST = {Capability.NET_ADMIN, *to_read()}


def test_net_admin_is_all_that_it_takes() -> None:
    assert needed(PLAIN) == needed(replace(PLAIN, healthz_port=8471)) == LEAST


def test_low_port_takes_its_own() -> None:
    assert needed(replace(PLAIN, healthz_port=80)) == {*LEAST, Capability.NET_BIND_SERVICE}


@pytest.mark.parametrize("program", [LEGACY_IPTABLES, "xtables-nft-multi"])
def test_legacy_iptables_takes_raw_sockets(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / program).touch(mode=0o755)
    (tmp_path / "iptables").symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    raw = {Capability.NET_RAW} if program == LEGACY_IPTABLES else set()
    assert needed(replace(PLAIN, forward_rules=True)) == LEAST | raw


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_key_of_etcds_own_user_can_still_be_read(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch(mode=0o600)
    os.chown(key, 65534, 65534)
    etcd = EtcdConfig(urls=("https://192.0.2.1",), cafile=str(key))
    assert needed(replace(PLAIN, etcd=etcd)) == {*LEAST, Capability.DAC_READ_SEARCH}
