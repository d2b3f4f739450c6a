"""`loden route`: what an operator types, against real etcd."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from control.acquire import acquire
from control.etcd import EtcdClient
from control.lease import config_key
from control.rib import Rib
from control.route_commands import route_command
from tests.control.conftest import EtcdServer
from tests.control.nodes import CONFIG, DUAL_CONFIG, dual_node, node, put_lease

pytestmark = pytest.mark.etcd

Loden = Callable[..., Result]
MAC = "0e:00:00:00:00:09"


@pytest.fixture
def route(shared_etcd: EtcdServer, client: EtcdClient) -> Loden:
    """Runs `loden route` below the client's prefix."""

    def run(*words: str) -> Result:
        where = ["--etcd-endpoints", shared_etcd.url, "--etcd-prefix", client.config.prefix]
        return CliRunner().invoke(route_command, [*words, *where])

    return run


def listed(route: Loden) -> list[dict[str, Any]]:
    result = route("list", "--json")
    assert result.exit_code == 0
    return list(json.loads(result.stdout))


def believed(client: EtcdClient) -> dict[str, str]:
    """Prefix to VTEP address, as any node believes it."""
    rib = Rib(client.config.prefix, vni=1)
    listing = client.list_prefix(f"{client.config.prefix}/")
    rib.apply_snapshot(listing.entries, listing.revision)
    return {str(prefix): str(route.public_ip) for prefix, route in rib.routes.items()}


def test_a_pod_is_routed_to_a_node_by_its_address(route: Loden, client: EtcdClient) -> None:
    put_lease(client, "10.7.2.0-24", node(2))
    added = route("add", "10.7.9.9", "--to", "192.0.2.2")
    assert added.exit_code == 0, added.output
    assert "10.7.9.9/32 leads to 192.0.2.2" in added.output
    assert believed(client)["10.7.9.9/32"] == "192.0.2.2"
    assert listed(route) == [
        {
            "prefix": "10.7.9.9/32",
            "address": "192.0.2.2",
            "mac": "0e:00:00:00:00:02",
            "vni": 1,
            "node": "10.7.2.0/24",
        }
    ]
    deleted = route("del", "10.7.9.9/32")
    assert deleted.exit_code == 0
    assert listed(route) == []


def test_a_vtep_can_be_given_in_full(route: Loden, client: EtcdClient) -> None:
    client.put(config_key(client.config.prefix), CONFIG.to_json())
    vtep = ("--public-ip", "198.51.100.9", "--mac", "0E-00-00-00-00-09")
    assert route("add", "10.9.0.0/22", *vtep).exit_code == 0
    assert believed(client) == {"10.9.0.0/22": "198.51.100.9"}
    (row,) = listed(route)
    assert (row["mac"], row["vni"]) == ("0e:00:00:00:00:09", 1)
    assert row["node"] == "stale: no node has this address"


def test_each_family_is_routed_to_its_own_vtep(route: Loden, client: EtcdClient) -> None:
    lease = acquire(client, DUAL_CONFIG, dual_node(2))
    assert route("add", "2001:cafe:42:ff::9", "--to", "192.0.2.2").exit_code == 0
    assert believed(client)["2001:cafe:42:ff::9/128"] == "fd77::2"
    assert listed(route)[0]["node"] == str(lease.subnet)


def test_a_pod_is_moved_only_when_asked_to(route: Loden, client: EtcdClient) -> None:
    for number in (2, 3):
        put_lease(client, f"10.7.{number}.0-24", node(number))
    route("add", "10.7.2.9", "--to", "192.0.2.2")
    assert "says so already" in route("add", "10.7.2.9", "--to", "192.0.2.2").output
    refused = route("add", "10.7.2.9", "--to", "192.0.2.3")
    assert refused.exit_code == 1
    assert "leads elsewhere (--replace moves it)" in refused.output
    assert believed(client)["10.7.2.9/32"] == "192.0.2.2"
    assert route("add", "10.7.2.9", "--to", "192.0.2.3", "--replace").exit_code == 0
    assert believed(client)["10.7.2.9/32"] == "192.0.2.3"


def test_routes_that_have_become_stale_are_shown_so(route: Loden, client: EtcdClient) -> None:
    put_lease(client, "10.7.2.0-24", node(2))
    route("add", "10.7.9.9", "--to", "192.0.2.2")
    put_lease(client, "10.7.2.0-24", dataclasses.replace(node(2), vtep=node(3).vtep))
    client.put(f"{client.config.prefix}/routes/garbage", "x")
    client.put(f"{client.config.prefix}/routes/10.7.9.0-30", "x")
    rows = {row["prefix"].rpartition("/routes/")[2]: row["node"] for row in listed(route)}
    assert rows["10.7.9.9/32"] == "stale: its MAC or VNI is another now"
    assert rows["garbage"].startswith("ignored: ")
    assert rows["10.7.9.0/30"].startswith("ignored: not JSON")
    assert route("list").exit_code == 0


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("add", "10.7.9.9/24", "--to", "192.0.2.2"), 2, "has host bits set; allowed: an address"),
        (("add", "nonsense", "--to", "192.0.2.2"), 2, "allowed: an address or a network"),
        (("add", "10.7.9.9"), 2, "give the node with --to, or --public-ip and --mac"),
        (("add", "10.7.9.9", "--public-ip", "192.0.2.2"), 2, "--public-ip and --mac"),
        (("add", "10.7.9.9", "--to", "somewhere"), 2, "no IP address"),
        (("add", "10.7.9.9", "--to", "192.0.2.7"), 1, "allowed: 192.0.2.2"),
        (("add", "fd00::9", "--to", "192.0.2.2"), 1, "that node carries no IPv6"),
        (("add", "0.0.0.0/0", "--to", "192.0.2.2"), 1, "everything there is"),
        (("add", "224.0.0.5", "--to", "192.0.2.2"), 1, "unicast"),
        (("add", "192.0.2.0/24", "--to", "192.0.2.2"), 1, "contains 192.0.2.2"),
        (("add", "10.7.2.0/24", "--to", "192.0.2.2"), 1, "a node's own subnet"),
        (
            ("add", "10.7.9.9", "--public-ip", "fd77::2", "--mac", MAC, "--vni", "1"),
            1,
            "an IPv4 one",
        ),
        (("add", "10.7.9.9", "--public-ip", "192.0.2.9", "--mac", MAC), 1, "give --vni"),
        (
            ("add", "10.7.9.9", "--public-ip", "192.0.2.9", "--mac", "01:0:0", "--vni", "1"),
            1,
            "allowed: a unicast MAC",
        ),
        (("del", "10.7.9.9"), 1, "there is no /"),
    ],
)
def test_what_cannot_be_is_refused_with_the_reason(
    route: Loden, client: EtcdClient, words: tuple[str, ...], status: int, message: str
) -> None:
    put_lease(client, "10.7.2.0-24", node(2))
    result = route(*words)
    assert message in result.output
    assert result.exit_code == status
    assert "10.7.9.9/32" not in believed(client)


def test_no_etcd_is_said_in_one_line() -> None:
    result = CliRunner().invoke(route_command, ["list", "--etcd-endpoints", "http://127.0.0.1:1"])
    assert result.exit_code == 1
    assert result.output.startswith("loden route list: no etcd answers at http://127.0.0.1:1")
