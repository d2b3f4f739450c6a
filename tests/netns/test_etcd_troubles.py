"""Whole nodes while etcd is compacted, restored or emptied: pods go on talking all the time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from control.route_commands import route_command
from perf.topology import UNDERLAY_DEVICE, UNDERLAY_NETWORK
from tests.netns.nodes import Cluster, LodenNode, SteadyPing, cluster_of, reaches, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

GONE = "10.5.99.0/24"
"""The subnet of a node that will not come back."""
BACK_S = 30.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster_of(2, tmp_path_factory.mktemp("troubles")) as cluster:
        cluster.init()
        cluster.start(0, 1)
        yield cluster


def wait_in_sync(cluster: Cluster) -> None:
    for node in cluster.nodes:
        wait_for(lambda n=node: etcd_of(n).get("state") == "in_sync", "in sync", BACK_S)  # type: ignore[misc]


def etcd_of(node: LodenNode) -> dict[str, Any]:
    return dict(node.status().get("etcd", {}))


def key_of(node: LodenNode) -> str:
    return "/subnets/" + node.subnet.replace("/", "-")


def put_gone_node(cluster: Cluster) -> None:
    """The lease of a node that is not there any more."""
    lease = {
        "PublicIP": "192.168.77.99",
        "BackendType": "vxlan",
        "BackendData": {"VNI": 1, "VtepMAC": "0e:00:00:00:00:99"},
    }
    cluster.etcd.put("/subnets/" + GONE.replace("/", "-"), json.dumps(lease))


def test_lease_deleted_by_an_operator_is_back_in_a_moment(cluster: Cluster) -> None:
    first, second = cluster.nodes
    key, value = key_of(second), cluster.etcd.get(key_of(second))
    with SteadyPing(first.pod(), second.pod().address) as steady:
        cluster.etcd.delete(key)
        wait_for(lambda: cluster.etcd.get(key) == value, "the lease is there again")
        wait_for(lambda: second.subnet in first.routes(), "the peer has it again")
    # The peer learns of the deletion, and must believe it: some packets may meet no route.
    assert steady.lost < 30
    assert second.is_ready()


def test_compaction_while_disconnected_loses_no_packet(cluster: Cluster) -> None:
    first, second = cluster.nodes
    etcd = cluster.etcd
    with SteadyPing(first.pod(), second.pod().address) as steady:
        etcd.kill()
        wait_for(lambda: etcd_of(first)["state"] == "disconnected", "it is noticed")
        etcd.host.ip(f"link set {UNDERLAY_DEVICE} down")  # nobody sees what is done meanwhile
        etcd.start()
        put_gone_node(cluster)
        for number in range(20):
            etcd.put("/elsewhere", str(number))
        revision = etcd.ask("kv/range", key="AA==")["header"]["revision"]
        etcd.ask("kv/compaction", revision=revision, physical=True)
        etcd.host.ip(
            f"link set {UNDERLAY_DEVICE} up", f"route add default via {UNDERLAY_NETWORK[1]}"
        )
        wait_in_sync(cluster)
        for node in cluster.nodes:
            wait_for(lambda n=node: GONE in n.routes(), "what was missed is there")  # type: ignore[misc]
    assert steady.lost == 0
    etcd.delete("/subnets/" + GONE.replace("/", "-"))
    wait_for(lambda: GONE not in first.routes(), "it is gone with its key")


def test_cluster_restored_empty_keeps_routes_until_an_operator_confirms(cluster: Cluster) -> None:
    first, second = cluster.nodes
    put_gone_node(cluster)
    wait_for(lambda: GONE in first.routes(), "a route to the node that will be gone")
    wait_for(lambda: first.state_holds(first.routes()), "the routes are on disk")
    subnets = (first.subnet, second.subnet)
    with SteadyPing(first.pod(), second.pod().address) as steady:
        cluster.etcd.kill()
        shutil.rmtree(cluster.etcd.log_path.parent / "data")
        cluster.etcd.start()
        wait_for(lambda: etcd_of(first).get("retained"), "the loss is noticed", BACK_S)
        for node in cluster.nodes:
            wait_for(lambda n=node: cluster.etcd.get(key_of(n)), "leases are back", BACK_S)  # type: ignore[misc]
        cluster.init()
        wait_for(lambda: etcd_of(first).get("retained") == 1, "one is not back", BACK_S)
        assert GONE in first.routes()
        assert "etcd was replaced" in first.log()
        assert "loden route confirm-loss" in first.log()

        killed = first.pid_of("control")
        first.kill("control")
        wait_for(lambda: first.pid_of("control") not in (0, killed) and first.is_ready(), "control")
        wait_for(lambda: etcd_of(first).get("retained") == 1, "it knows what is kept", BACK_S)
        assert GONE in first.routes()

        confirmed = CliRunner().invoke(
            route_command, ["confirm-loss", "--run-dir", str(first.run_dir)]
        )
        assert confirmed.exit_code == 0, confirmed.output
        assert "1 leases and routes" in confirmed.output
        wait_for(lambda: GONE not in first.routes(), "it is let go of")
        assert GONE in second.routes(), "each node is told by itself"
    assert steady.lost == 0
    assert (first.subnet, second.subnet) == subnets


def test_lease_that_expired_while_etcd_was_out_of_reach_is_taken_again(tmp_path: Path) -> None:
    """etcd lives on meanwhile, but no node reaches it for longer than a lease lives."""
    with cluster_of(2, tmp_path) as cluster:
        cluster.init()
        first, second = cluster.nodes
        for node in cluster.nodes:
            node.start("--lease-ttl", "10", "--subnet-lease-renew-margin", "1")
        cluster.start(0, 1)
        subnets = (first.subnet, second.subnet)
        with SteadyPing(first.pod(), second.pod().address) as steady:
            cluster.etcd.host.ip(f"link set {UNDERLAY_DEVICE} down")
            wait_for(lambda: not cluster.etcd.leases(), "the leases have expired", 30)
            wait_for(lambda: etcd_of(first)["lease"]["state"] == "unconfirmed", "it is known", 30)
            assert first.is_ready(), "packets flow on"
            assert "is not held: its time is over" in etcd_of(first)["lease_not_held_because"]
        assert steady.lost == 0
        cluster.etcd.host.ip(
            f"link set {UNDERLAY_DEVICE} up", f"route add default via {UNDERLAY_NETWORK[1]}"
        )
        wait_for(lambda: len(cluster.etcd.leases()) == 2, "the leases are back", BACK_S)
        cluster.start(0, 1)  # they know each other
        assert (first.subnet, second.subnet) == subnets
        wait_for(lambda: reaches(first.pod(), second.pod()), "they reach each other")


def test_reservation_is_taken_and_stays_without_an_end(tmp_path: Path) -> None:
    with cluster_of(1, tmp_path) as cluster:
        cluster.init()
        (node,) = cluster.nodes
        reserved = {"PublicIP": str(node.host.address), "PublicIPv6": None}
        cluster.etcd.put("/subnets/10.5.42.0-24", json.dumps(reserved))
        cluster.start(0)
        assert node.subnet == "10.5.42.0/24"
        value = cluster.etcd.get("/subnets/10.5.42.0-24")
        assert value is not None
        assert json.loads(value)["BackendData"]["VtepMAC"] == node.mac
        assert cluster.etcd.ask("kv/lease/leases").get("leases", []) == []
