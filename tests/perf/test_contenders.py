"""Contenders get through on the same topology, or say why they cannot."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from perf.contenders import (
    WIREGUARD_SOCKETS,
    connect_bare,
    connect_kernel,
    connect_nebula,
    connect_wireguard_go,
)
from perf.measure import NotHere
from perf.pair import MTU_BYTES, Connect, pair_of
from perf.topology import Topology
from perf.traffic import MeasurementError, ping

FULL_UNDERLAY_BYTES = 1500


@pytest.mark.netns
@pytest.mark.parametrize("plain_nic", [False, True])
def test_kernel_carries_full_packets_and_the_offloads_are_on_record(plain_nic: bool) -> None:
    with pair_of(connect_kernel, plain_nic=plain_nic) as pair:
        full = ping(pair.near, pair.far.address, packet_bytes=MTU_BYTES, dont_fragment=True)
        assert full.loss == 0
        for name in ("tx-udp_tnl-segmentation", "generic-segmentation-offload"):
            assert pair.facts["offloads"][name] is not plain_nic
        assert pair.directory.exists()
    assert not pair.directory.exists()


@pytest.mark.netns
def test_contender_that_carries_nothing_is_no_contender() -> None:
    def connect_badly(topology: Topology, directory: Path) -> dict[str, Any]:
        facts = connect_bare(topology, directory)
        topology.hosts[1].ip("route flush 10.7.1.0/24")
        return facts

    with (
        pytest.raises(MeasurementError, match=r"no ping gets through to 10\.7\.2\.2"),
        pair_of(connect_badly),
    ):
        pass


def wireguard_sockets() -> set[Path]:
    return set(WIREGUARD_SOCKETS.glob("*")) if WIREGUARD_SOCKETS.exists() else set()


@pytest.mark.netns
@pytest.mark.parametrize("connect", [connect_wireguard_go, connect_nebula])
def test_encrypting_contender_fills_the_underlay_and_no_more(connect: Connect) -> None:
    before = wireguard_sockets()
    try:
        with pair_of(connect) as pair:
            full = ping(pair.near, pair.far.address, packet_bytes=MTU_BYTES, dont_fragment=True)
            assert full.loss == 0
            assert pair.facts["encrypts"]
            shown = pair.hosts[0].run(["ip", "-s", "link", "show", "eth0"]).stdout
            assert f"mtu {FULL_UNDERLAY_BYTES}" in shown
            fragments = pair.hosts[0].run(["nstat", "-asz", "IpFragCreates"]).stdout
            assert fragments.split()[-2] == "0"
    except NotHere as error:
        pytest.skip(str(error))
    assert wireguard_sockets() <= before


@pytest.mark.parametrize(
    ("connect", "package"),
    [(connect_wireguard_go, "wireguard-go"), (connect_nebula, "nebula")],
)
def test_contender_that_is_not_installed_says_so(
    connect: Connect, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which(package) is None
    with pytest.raises(NotHere, match=rf"{package} is not installed \(Debian's package: {package}"):
        connect(Topology(2), tmp_path)
