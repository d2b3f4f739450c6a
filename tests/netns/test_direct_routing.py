"""DirectRouting: plain routes to peers on the same link, for as long as they are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.netns.nodes import LodenNode, cluster_of, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

CONFIG = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "DirectRouting": True}}


def lease(public_ip: str) -> str:
    data = {"VNI": 1, "VtepMAC": "0e:00:00:00:00:99"}
    return json.dumps({"PublicIP": public_ip, "BackendType": "vxlan", "BackendData": data})


def routes_on(node: LodenNode) -> str:
    return node.host.run(["ip", "route", "show", "proto", "76"]).stdout


def test_direct_route_comes_and_goes_with_an_on_link_peer(tmp_path: Path) -> None:
    with cluster_of(1, tmp_path) as cluster:
        cluster.etcd.put("/config", json.dumps(CONFIG))
        (node,) = cluster.nodes
        cluster.etcd.put("/subnets/10.5.98.0-24", lease("192.0.2.98"))  # behind the gateway
        cluster.start(0)
        on_link = "10.5.99.0/24 via 192.168.77.99"
        cluster.etcd.put("/subnets/10.5.99.0-24", lease("192.168.77.99"))
        wait_for(lambda: on_link in routes_on(node), "a direct route")
        assert "10.5.98.0" not in routes_on(node), "that peer is reached by the tunnel"
        assert node.routes()["10.5.98.0/24"] == "192.0.2.98"
        cluster.etcd.put("/subnets/10.5.99.0-24", lease("192.168.77.97"))
        wait_for(lambda: "10.5.99.0/24 via 192.168.77.97" in routes_on(node), "it follows")
        cluster.etcd.delete("/subnets/10.5.99.0-24")
        wait_for(lambda: "10.5.99.0" not in routes_on(node), "it is gone with the peer")
        assert "10.5.0.0/16 dev loden0" in routes_on(node)
