"""Acquiring a subnet under flannel's rules, against real etcd."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.acquire import (
    SubnetsExhaustedError,
    acquire,
    check_ttl,
    create_lease,
    free_network,
)
from control.etcd import EtcdClient
from control.etcd_connection import Connection
from control.etcd_messages import rpc
from control.lease import Lease, LeaseAttrs, NodeSubnet
from control.network_config import NetworkConfig
from tests.control.conftest import EtcdServer
from tests.control.nodes import CONFIG, DUAL_CONFIG, dual_node, held_by, node, put_lease

SUBNET = NodeSubnet(IPv4Network("10.7.29.0/24"))
FOUR = NetworkConfig.parse(
    '{"Network":"10.7.0.0/16","SubnetMin":"10.7.4.0","SubnetMax":"10.7.7.0",'
    '"Backend":{"Type":"vxlan"}}'
)


@pytest.mark.etcd
def test_a_new_node_gets_a_fitting_subnet_for_a_day(client: EtcdClient) -> None:
    lease = acquire(client, CONFIG, node(1))
    assert lease.subnet.fits(CONFIG)
    entry = client.get(lease.key)
    assert entry is not None
    assert entry.value.decode() == node(1).to_json()
    assert (entry.mod_revision, entry.lease_id) == (lease.mod_revision, lease.lease_id)
    life = client.time_to_live(lease.lease_id)
    assert life.granted_s == 24 * 3600
    assert life.keys == (lease.key,)


@pytest.mark.etcd
def test_dual_stack_takes_one_combined_key(client: EtcdClient) -> None:
    lease = acquire(client, DUAL_CONFIG, dual_node(1))
    assert lease.subnet.ipv4 is not None
    assert lease.subnet.ipv6 is not None
    assert lease.key.endswith(f"/subnets/{lease.subnet.name}")
    assert "&" in lease.key


@pytest.mark.etcd
def test_ipv6_only(client: EtcdClient) -> None:
    config = NetworkConfig.build("2001:cafe:42::/56")
    attrs = dataclasses.replace(dual_node(1), public_ip=None, vtep=None)
    lease = acquire(client, config, attrs)
    assert "/subnets/0.0.0.0-0&2001:cafe:42:" in lease.key
    again = acquire(client, config, attrs)
    assert again.subnet == lease.subnet


@pytest.mark.etcd
def test_a_restart_keeps_the_subnet_and_leaves_no_lease_behind(client: EtcdClient) -> None:
    first = acquire(client, CONFIG, node(1))
    second = acquire(client, CONFIG, node(1))
    assert second.subnet == first.subnet
    assert second.lease_id != first.lease_id
    assert client.time_to_live(first.lease_id).remaining_s < 0
    assert client.get(second.key) is not None


@pytest.mark.etcd
def test_a_new_mac_is_published_with_the_old_subnet(client: EtcdClient) -> None:
    first = acquire(client, CONFIG, node(1))
    attrs = dataclasses.replace(node(1), vtep=node(2).vtep)
    assert acquire(client, CONFIG, attrs).subnet == first.subnet
    assert held_by(client, first) == attrs


@pytest.mark.etcd
def test_a_new_address_keeps_the_subnet_that_subnet_env_names(client: EtcdClient) -> None:
    first = acquire(client, CONFIG, node(1))
    moved = dataclasses.replace(node(1), public_ip=IPv4Address("198.51.100.1"))
    assert acquire(client, CONFIG, moved, first.subnet).subnet == first.subnet
    assert held_by(client, first) == moved


@pytest.mark.etcd
def test_the_previous_subnet_is_taken_if_free(client: EtcdClient) -> None:
    assert acquire(client, CONFIG, node(1), SUBNET).subnet == SUBNET
    assert acquire(client, CONFIG, node(2), SUBNET).subnet != SUBNET


@pytest.mark.etcd
def test_a_previous_subnet_that_does_not_fit_is_not_taken(client: EtcdClient) -> None:
    lease = acquire(client, FOUR, node(1), SUBNET)
    assert lease.subnet.fits(FOUR)


@pytest.mark.etcd
def test_our_lease_that_no_longer_fits_is_deleted(client: EtcdClient) -> None:
    old = acquire(client, CONFIG, node(1), SUBNET)
    new = acquire(client, FOUR, node(1), SUBNET)
    assert new.subnet.fits(FOUR)
    assert held_by(client, old) is None


@pytest.mark.etcd
def test_of_several_leases_of_ours_the_one_in_subnet_env_is_kept(client: EtcdClient) -> None:
    for third in (27, 28, 29, 30):
        put_lease(client, f"10.7.{third}.0-24", node(1), client.grant_lease(60))
    assert acquire(client, CONFIG, node(1), SUBNET).subnet == SUBNET


@pytest.mark.etcd
def test_a_reservation_stays_without_an_etcd_lease(client: EtcdClient) -> None:
    key = put_lease(client, SUBNET.name, LeaseAttrs(node(1).public_ip, backend_type=""))
    lease = acquire(client, CONFIG, node(1))
    assert lease.key == key
    assert lease.is_reservation
    entry = client.get(key)
    assert entry is not None
    assert entry.lease_id == 0
    assert entry.value.decode() == node(1).to_json()


@pytest.mark.etcd
def test_subnets_of_other_backends_and_of_garbage_are_taken_all_the_same(
    client: EtcdClient,
) -> None:
    put_lease(client, "10.7.4.0-24", dataclasses.replace(node(9), backend_type="host-gw"))
    client.put(f"{client.config.prefix}/subnets/10.7.5.0-24", "garbage")
    client.put(f"{client.config.prefix}/subnets/garbage", "garbage")
    put_lease(client, "10.7.6.0-25&2001:cafe:42:1::-64", dual_node(8))
    assert acquire(client, FOUR, node(1)).subnet == NodeSubnet(IPv4Network("10.7.7.0/24"))


@pytest.mark.etcd
def test_a_full_pool_says_so_and_what_to_do(client: EtcdClient) -> None:
    for number in range(4):
        acquire(client, FOUR, node(number))
    with pytest.raises(SubnetsExhaustedError, match=r"all 4 subnets from 10\.7\.4\.0/24") as caught:
        acquire(client, FOUR, node(5))
    assert caught.value.retryable


@pytest.mark.etcd
def test_a_race_lost_is_run_again(client: EtcdClient) -> None:
    waits: list[float] = []

    def choose_the_same_again(free: int) -> int:
        if not waits:
            put_lease(client, "10.7.1.0-24", node(2))
        return 0

    lease = acquire(client, CONFIG, node(1), choose=choose_the_same_again, sleep=waits.append)
    assert len(waits) == 1
    assert lease.subnet == NodeSubnet(IPv4Network("10.7.2.0/24"))
    assert client.time_to_live(lease.lease_id).keys == (lease.key,)


@pytest.mark.etcd
def test_of_two_that_share_one_family_the_older_stays(client: EtcdClient) -> None:
    revision = client.list_prefix(client.config.prefix).revision
    ipv6 = IPv6Network("2001:cafe:42:7::/64")
    older = NodeSubnet(IPv4Network("10.7.1.0/24"), ipv6)
    younger = NodeSubnet(IPv4Network("10.7.2.0/24"), ipv6)
    assert create_lease(client, older, dual_node(1), 0, revision) is not None
    assert create_lease(client, younger, dual_node(2), 0, revision) is None
    assert [e.key for e in client.list_prefix(client.config.prefix).entries] == [
        f"{client.config.prefix}/subnets/{older.name}"
    ]


@pytest.mark.etcd
@pytest.mark.parametrize(
    ("config", "attrs", "count"), [(CONFIG, node, 200), (DUAL_CONFIG, dual_node, 50)]
)
def test_many_nodes_at_once_get_as_many_subnets(
    shared_etcd: EtcdServer,
    connect: Callable[..., EtcdClient],
    prefix: str,
    config: NetworkConfig,
    attrs: Callable[[int], LeaseAttrs],
    count: int,
) -> None:
    """200 of the 255 subnets of a /16: the last ones meet each other again and again."""
    leases: list[Lease] = []
    barrier = threading.Barrier(count)
    # Slower than a node's: here all share one machine with etcd.
    clients = [connect(shared_etcd, prefix, request_timeout_s=30.0) for _ in range(count)]

    def start_node(number: int) -> None:
        clients[number].get(prefix)  # connected
        barrier.wait()
        leases.append(acquire(clients[number], config, attrs(number)))

    threads = [threading.Thread(target=start_node, args=(number,)) for number in range(count)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    print(f"{count} leases in {time.monotonic() - begun:.1f} s")
    assert len(leases) == count
    networks = [network for lease in leases for network in lease.subnet.networks]
    assert len(set(networks)) == len(networks)
    keys = {entry.key for entry in clients[0].list_prefix(prefix).entries}
    assert keys == {lease.key for lease in leases}


@pytest.mark.etcd
def test_a_lease_not_used_is_not_left_behind(client: EtcdClient) -> None:
    def count_leases() -> int:
        def ask(connection: Connection) -> int:
            return len(connection.client.leasestub.LeaseLeases(rpc.LeaseLeasesRequest()).leases)

        return client._call(ask)

    before = count_leases()
    acquire(client, CONFIG, node(1))
    assert count_leases() == before + 1
    put_lease(client, SUBNET.name, node(2))
    acquire(client, CONFIG, node(2))
    assert count_leases() == before + 1


def test_a_ttl_etcd_cannot_grant_is_refused() -> None:
    for ttl_s in (0, -1, 9_000_000_001):
        with pytest.raises(ValueError, match="allowed: 1 to"):
            check_ttl(ttl_s)


@given(
    taken=st.lists(st.integers(0, 19).map(lambda n: f"10.7.{n}.0/24"), max_size=20)
    | st.lists(st.sampled_from(["10.7.6.0/23", "10.7.0.0/21", "10.7.9.128/25", "10.8.0.0/16"]))
)
def test_free_networks_are_exactly_those_that_overlap_nothing(taken: list[str]) -> None:
    pool = NetworkConfig.parse(
        '{"Network":"10.7.0.0/16","SubnetMin":"10.7.4.0","SubnetMax":"10.7.15.0",'
        '"Backend":{"Type":"vxlan"}}'
    ).ipv4
    assert pool is not None
    networks = [IPv4Network(text) for text in taken] + [ip_network("fd00::/8")]
    free = [
        subnet
        for subnet in (pool[i] for i in range(pool.size))
        if not any(n.version == 4 and n.overlaps(subnet) for n in networks)
    ]
    if not free:
        with pytest.raises(SubnetsExhaustedError):
            free_network(pool, networks, lambda n: 0)
        return
    indexes = iter(range(len(free)))
    assert [free_network(pool, networks, lambda n: next(indexes)) for _ in free] == free


def test_a_huge_ipv6_pool_is_chosen_from_at_once() -> None:
    pool = NetworkConfig.build("fd00::/8").ipv6
    assert pool is not None
    assert free_network(pool, [pool[0]], lambda n: n - 1) == pool.last
