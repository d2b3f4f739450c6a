"""Device and sockets as configs come and go: what stays the same stays open."""

import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest

from forwarder.api import ForwarderError
from forwarder.config import ForwarderOptions, TunnelConfig
from forwarder.endpoint import Endpoint
from forwarder.selftest import Findings
from forwarder.tunnel import Tunnel
from perf.topology import Host, Topology

pytestmark = pytest.mark.netns

CONFIG = TunnelConfig(
    "tun-a", mac=bytes.fromhex("020000000001"), lanes=2, addresses=(ip_address("192.168.77.10"),)
)
OPTIONS = ForwarderOptions(run_dir="unused", cpus=(0, 1))


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Topology(2) as topology:
        yield topology.hosts[0]


@pytest.fixture
def endpoint(host: Host) -> Iterator[Endpoint]:
    endpoint = Endpoint(OPTIONS)
    with host.entered():
        endpoint.open(CONFIG)
        yield endpoint
        endpoint.close()


def tunnel_of(endpoint: Endpoint, worker: int = 0) -> Tunnel:
    return endpoint.tunnel_of(worker, wake_fd=-1, path_mtu=np.zeros(1, np.uint32))


def test_workers_have_queues_and_sockets_of_their_own_and_equal_ports(endpoint: Endpoint) -> None:
    first, second = tunnel_of(endpoint, 0), tunnel_of(endpoint, 1)
    assert first.tun_fd != second.tun_fd
    assert first.receivers[0] != second.receivers[0]
    assert (first.receivers[1], first.sockets[2:].tolist()) == (-1, [-1, -1])
    assert first.lane_ports.tolist() == second.lane_ports.tolist()
    assert len(set(first.lane_ports[:2].tolist())) == 2


def test_what_a_config_does_not_change_stays_open(endpoint: Endpoint) -> None:
    device, sockets = endpoint.device, endpoint.sockets
    endpoint.open(replace(CONFIG, mtu_bytes=1400))
    assert (endpoint.device, endpoint.sockets) == (device, sockets)
    assert tunnel_of(endpoint).mtu_bytes == 1400
    endpoint.open(replace(CONFIG, lanes=3))
    assert endpoint.device is device
    assert len(tunnel_of(endpoint).sockets) == 6


def test_config_that_cannot_be_opened_leaves_the_old_one_open(
    endpoint: Endpoint, host: Host
) -> None:
    device, sockets = endpoint.device, endpoint.sockets
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((str(CONFIG.addresses[0]), 4789))
        with pytest.raises(ForwarderError, match="port: UDP port 4789"):
            endpoint.open(replace(CONFIG, device="tun-b", port=4789))
    assert (endpoint.config, endpoint.device, endpoint.sockets) == (CONFIG, device, sockets)
    assert "tun-b" not in host.run(["ip", "link"]).stdout
    with pytest.raises(ForwarderError, match="the name 'eth0' is taken"):
        endpoint.open(replace(CONFIG, device="eth0"))
    assert endpoint.config == CONFIG


def test_another_name_is_another_device(endpoint: Endpoint, host: Host) -> None:
    endpoint.open(replace(CONFIG, device="tun-b"))
    links = host.run(["ip", "link"]).stdout
    assert "tun-b" in links
    assert "tun-a" not in links


def test_failed_test_keeps_an_offload_from_the_workers(host: Host) -> None:
    endpoint = Endpoint(OPTIONS)
    endpoint.heed(Findings({"coalesce_udp": "lost", "udp_gso": "lost"}))
    with host.entered():
        endpoint.open(CONFIG)
        tunnel = tunnel_of(endpoint)
        endpoint.close()
    assert (tunnel.coalesce_tcp, tunnel.coalesce_udp, tunnel.udp_gso[0]) == (True, False, 0)
    assert endpoint.offload_states()["udp_gso"] == "failed its test: lost"


def test_refusal_that_a_worker_meets_shows(endpoint: Endpoint) -> None:
    assert endpoint.offload_states()["udp_gso"] == "on"
    tunnel_of(endpoint).udp_gso[0] = 0  # as it does after EIO
    assert endpoint.offload_states()["udp_gso"] == "refused by this kernel"


def test_closing_removes_the_devices(host: Host) -> None:
    endpoint = Endpoint(OPTIONS)
    with host.entered():
        endpoint.open(CONFIG)
        endpoint.close()
    assert "tun-a" not in host.run(["ip", "link"]).stdout
