"""Acquiring this node's subnet under flannel's rules.

In order: the lease that has our address, the subnet subnet.env names, any free one at random. The
lease that subnet.env names stays ours also when only our address has changed: its MAC tells.

Never two nodes on one subnet: the key is created in a transaction, and afterwards it is checked
that nobody created an overlapping key under another name (the other family of a dual-stack subnet,
another SubnetLen) at the same time; of two such the older stays.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from control.backoff import Backoff
from control.etcd import EtcdClient
from control.etcd_types import Entry, EtcdError, EtcdLeaseGoneError
from control.lease import (
    SUBNETS,
    IPNetwork,
    Lease,
    LeaseAttrs,
    LeaseFormatError,
    NodeSubnet,
    subnet_key,
)
from control.network_config import NetworkConfig, SubnetPool

log = logging.getLogger(__name__)

DEFAULT_TTL_S = 24 * 3600
"""flannel's, so that a node may be off for a day and find its subnet again."""
LARGEST_TTL_S = 9_000_000_000
"""etcd's own limit."""
RACES_LOST_BEFORE_GIVING_UP = 100


class SubnetsExhaustedError(Exception):
    """No subnet of the pool is free. Trying again makes sense: leases end, nodes leave."""

    retryable = True


class LeaseContendedError(Exception):
    """Others were faster every time. Trying again makes sense."""

    retryable = True


def acquire(
    client: EtcdClient,
    config: NetworkConfig,
    attrs: LeaseAttrs,
    previous: NodeSubnet | None = None,
    ttl_s: int = DEFAULT_TTL_S,
    choose: Callable[[int], int] = random.randrange,
    sleep: Callable[[float], object] = time.sleep,
) -> Lease:
    """This node's lease, published with `attrs` and freshly renewed.

    `previous`: the subnet in subnet.env. `choose(n)` picks a number below n. Races lost are run
    again. Raises SubnetsExhaustedError, LeaseContendedError and EtcdError's subclasses.
    """
    check_ttl(ttl_s)
    etcd_lease = _EtcdLease(client, ttl_s)
    backoff = Backoff()
    try:
        for _ in range(RACES_LOST_BEFORE_GIVING_UP):
            lease = _try_to_acquire(client, config, attrs, previous, etcd_lease, choose)
            if lease is not None:
                return lease
            sleep(backoff.next_s())
    finally:
        etcd_lease.revoke_unless_used()
    raise LeaseContendedError(
        f"lost {RACES_LOST_BEFORE_GIVING_UP} races for a subnet below {client.config.prefix}"
    )


def check_ttl(ttl_s: int) -> None:
    """Raises ValueError unless etcd can grant a lease of `ttl_s` seconds."""
    if not 1 <= ttl_s <= LARGEST_TTL_S:
        raise ValueError(f"lease TTL is {ttl_s} s, allowed: 1 to {LARGEST_TTL_S}")


def create_lease(
    client: EtcdClient, subnet: NodeSubnet, attrs: LeaseAttrs, etcd_lease_id: int, since: int
) -> Lease | None:
    """Take a subnet that was free at revision `since`; None if another node was faster."""
    key = subnet_key(client.config.prefix, subnet)
    revision = client.create_if_absent(key, attrs.to_json(), etcd_lease_id)
    if revision is None:
        return None
    lease = Lease(key, subnet, attrs, etcd_lease_id, revision, revision)
    created_since = client.list_prefix(_subnets(client), created_since=since + 1).entries
    for other in leases_in(client.config.prefix, created_since):
        if other.create_revision < revision and other.subnet.overlaps(subnet):
            log.info("%s overlaps %s, which is older: given up", key, other.key)
            client.compare_and_delete(key, revision)
            return None
    return lease


def leases_in(prefix: str, entries: Iterable[Entry]) -> list[Lease]:
    """The entries below `subnets/` that name a subnet, of any backend, however odd the value."""
    return [_lease_of(entry, subnet) for entry, subnet in _named_subnets(prefix, entries)]


def _named_subnets(prefix: str, entries: Iterable[Entry]) -> Iterator[tuple[Entry, NodeSubnet]]:
    below = len(f"{prefix}/{SUBNETS}")
    for entry in entries:
        with contextlib.suppress(LeaseFormatError):
            yield entry, NodeSubnet.parse(entry.key[below:])


def _lease_of(entry: Entry, subnet: NodeSubnet) -> Lease:
    try:
        attrs = LeaseAttrs.parse(entry.value)
    except LeaseFormatError:
        attrs = LeaseAttrs(None, backend_type="")  # whoever it is, the subnet is taken
    return Lease(
        entry.key, subnet, attrs, entry.lease_id, entry.create_revision, entry.mod_revision
    )


class _EtcdLease:
    """Grants an etcd lease when one is needed, and takes it back if none was."""

    def __init__(self, client: EtcdClient, ttl_s: int) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._id = 0
        self.used = False

    @property
    def id(self) -> int:
        if self._id == 0:
            self._id = self._client.grant_lease(self._ttl_s)
        return self._id

    def forget(self) -> None:
        """It does not exist in etcd any more."""
        self._id = 0

    def revoke_unless_used(self) -> None:
        if self._id and not self.used:
            with contextlib.suppress(EtcdError):  # it ends by itself, too
                self._client.revoke_lease(self._id)


def _try_to_acquire(
    client: EtcdClient,
    config: NetworkConfig,
    attrs: LeaseAttrs,
    previous: NodeSubnet | None,
    etcd_lease: _EtcdLease,
    choose: Callable[[int], int],
) -> Lease | None:
    """One round of the rules; None if etcd changed under our hands."""
    listing = client.list_prefix(_subnets(client))
    taken = list(_named_subnets(client.config.prefix, listing.entries))
    candidates = [
        _lease_of(entry, subnet)
        for entry, subnet in taken
        if _may_be_ours(entry, attrs) or subnet == previous
    ]
    try:
        own = _own_lease(candidates, config, attrs, previous)
        if own is not None and not own.subnet.fits(config):
            log.warning("%s does not fit the network config any more: deleted", own.key)
            client.compare_and_delete(own.key, own.mod_revision)
            return None
        if own is not None:
            lease = _take_over(client, own, attrs, 0 if own.is_reservation else etcd_lease.id)
        else:
            subnet = _free_subnet([subnet for _, subnet in taken], config, previous, choose)
            lease = create_lease(client, subnet, attrs, etcd_lease.id, listing.revision)
    except EtcdLeaseGoneError:  # we were too slow for our own TTL
        etcd_lease.forget()
        return None
    etcd_lease.used = lease is not None and not lease.is_reservation
    return lease


def _subnets(client: EtcdClient) -> str:
    return f"{client.config.prefix}/{SUBNETS}"


def _may_be_ours(entry: Entry, attrs: LeaseAttrs) -> bool:
    """Whether the value has to be read: among 50,000 leases few speak of our address."""
    # There is but one way to write an IPv4 address, and several for IPv6.
    return attrs.public_ip is None or str(attrs.public_ip).encode() in entry.value


def _own_lease(
    leases: list[Lease], config: NetworkConfig, attrs: LeaseAttrs, previous: NodeSubnet | None
) -> Lease | None:
    """The lease that is ours; of several the best to keep, one that does not fit as the last."""
    ours = [
        lease
        for lease in leases
        if lease.attrs.same_address(attrs)
        or (lease.subnet == previous and lease.attrs.macs & attrs.macs)
    ]
    return max(
        ours,
        key=lambda lease: (
            lease.subnet.fits(config),
            lease.subnet == previous,
            lease.is_reservation,
            -lease.create_revision,
        ),
        default=None,
    )


def _take_over(
    client: EtcdClient, lease: Lease, attrs: LeaseAttrs, etcd_lease_id: int
) -> Lease | None:
    """Keep the lease's subnet, with our attributes and a fresh etcd lease."""
    revision = client.compare_and_put(lease.key, attrs.to_json(), lease.mod_revision, etcd_lease_id)
    if revision is None:
        return None
    if not lease.is_reservation:
        # Nothing lives by the old one now; a node that restarts in a loop would pile them up.
        with contextlib.suppress(EtcdError):
            if not client.time_to_live(lease.lease_id).keys:
                client.revoke_lease(lease.lease_id)
    return Lease(lease.key, lease.subnet, attrs, etcd_lease_id, lease.create_revision, revision)


def _free_subnet(
    taken: list[NodeSubnet],
    config: NetworkConfig,
    previous: NodeSubnet | None,
    choose: Callable[[int], int],
) -> NodeSubnet:
    """The previous subnet if it is free and fits, else a random one of each family."""
    wanted = previous if previous is not None and previous.fits(config) else None
    if wanted is not None and not any(subnet.overlaps(wanted) for subnet in taken):
        return wanted
    networks = [network for subnet in taken for network in subnet.networks]
    chosen = NodeSubnet(
        free_network(config.ipv4, networks, choose) if config.ipv4 else None,
        free_network(config.ipv6, networks, choose) if config.ipv6 else None,
    )
    if wanted is not None:  # said here, for while there is none it is tried again and again
        log.warning("the previous subnet %s belongs to another node now", wanted)
    return chosen


def free_network(
    pool: SubnetPool[Any], taken: Iterable[IPNetwork], choose: Callable[[int], int]
) -> Any:
    """A subnet of `pool` that overlaps none of `taken`, each with the same probability.

    Raises SubnetsExhaustedError.
    """
    occupied = _occupied_ranges(pool, taken)
    free = pool.size - sum(end - begin for begin, end in occupied)
    if free == 0:
        raise SubnetsExhaustedError(
            f"all {pool.size} subnets from {pool.first} to {pool.last} are taken; "
            "free one, or widen SubnetMin, SubnetMax or Network in the network config"
        )
    index = choose(free)  # counted among the free ones; now skip the occupied ones before it
    for begin, end in occupied:
        if begin > index:
            break
        index += end - begin
    return pool[index]


def _occupied_ranges(pool: SubnetPool[Any], taken: Iterable[IPNetwork]) -> list[tuple[int, int]]:
    """The pool's indexes that `taken` overlaps: ascending ranges that do not touch each other."""
    ranges: list[tuple[int, int]] = []
    for begin, end in sorted(_indexes(pool, taken)):
        if ranges and begin <= ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((begin, end))
    return ranges


def _indexes(pool: SubnetPool[Any], taken: Iterable[IPNetwork]) -> Iterable[tuple[int, int]]:
    for network in taken:
        if network.version == pool.network.version:
            begin = pool.index(network)
            wider_by = pool.subnet_len - network.prefixlen
            end = begin + (1 << wider_by if wider_by > 0 else 1)
            if max(begin, 0) < min(end, pool.size):
                yield max(begin, 0), min(end, pool.size)
