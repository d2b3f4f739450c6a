"""The RIB: the routes believed, from what etcd holds. Pure: no etcd, no clock, no log.

Routes come from leases (`subnets/`) and from loden's extension (`routes/`). Apply a snapshot or
events; each application returns what changed. Whatever cannot be a route is ignored for a reason.

Of several claims to one prefix one wins, and always the same one, in whatever order they were
heard of: our own lease, then leases before extension routes, then the oldest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address

from control.etcd_types import Deletion, Entry, Event
from control.lease import (
    ROUTES,
    SUBNETS,
    VXLAN,
    IPNetwork,
    LeaseAttrs,
    LeaseFormatError,
    NodeSubnet,
    Vtep,
    parse_network_name,
)


class Kind(Enum):
    """Where a route leads."""

    LOCAL = "pods of this node"
    REMOTE = "pods behind another node's VTEP"


class Reason(Enum):
    """Why an entry makes no route."""

    BAD_KEY = "the key is not in flannel's format"
    BAD_VALUE = "the value is not a lease"
    OTHER_BACKEND = "the lease is another backend's"
    OTHER_VNI = "the lease is of another VNI"
    NO_VTEP = "the lease lacks the address or the MAC of a VTEP"
    OWN_ADDRESS = "a lease under another key has this node's address"
    DUPLICATE = "another entry has the same prefix"


@dataclass(frozen=True)
class Route:
    """One prefix, and the VTEP its packets go to."""

    prefix: IPNetwork
    kind: Kind
    public_ip: IPv4Address | IPv6Address
    """The VTEP's underlay address; of the prefix's own family."""
    vtep_mac: str
    """Lower case with colons."""
    vni: int
    key: str
    """The etcd key it comes from."""


@dataclass(frozen=True)
class Ignored:
    """An entry, or one family of it, that makes no route."""

    key: str
    reason: Reason
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.key}: {self.reason.value}" + (f" ({self.detail})" if self.detail else "")


@dataclass(frozen=True)
class Own:
    """How to tell this node's entries from the others'."""

    key: str | None = None
    """The key of our lease; None before we hold one."""
    public_ip: IPv4Address | None = None
    public_ipv6: IPv6Address | None = None


@dataclass
class Changes:
    """What an application changed."""

    routes: dict[IPNetwork, Route | None] = field(default_factory=dict)
    """The prefixes whose route is now another; None: there is none any more."""
    ignored: list[Ignored] = field(default_factory=list)
    """What is ignored now and was not, or not for this reason, before: to be said once."""


@dataclass(frozen=True)
class _Reading:
    """What one entry says: routes it claims, in each of its families, and what is wrong."""

    claims: tuple[Route, ...] = ()
    ignored: tuple[Ignored, ...] = ()


class Rib:
    """The routes below one etcd prefix, as one node of one VNI sees them."""

    def __init__(self, prefix: str, vni: int, own: Own | None = None) -> None:
        """`prefix` without a slash at its end."""
        self._subnets = f"{prefix}/{SUBNETS}"
        self._routes_below = f"{prefix}/{ROUTES}"
        self._vni = vni
        self._own = own or Own()
        self._entries: dict[str, Entry] = {}
        self._deleted: dict[str, int] = {}  # revisions of deletions since the snapshot
        self._snapshot_revision = 0
        self._readings: dict[str, _Reading] = {}
        self._claims: dict[IPNetwork, dict[str, Route]] = {}
        self._routes: dict[IPNetwork, Route] = {}
        self._ignored: dict[str, tuple[Ignored, ...]] = {}

    @property
    def routes(self) -> Mapping[IPNetwork, Route]:
        return self._routes

    @property
    def entries(self) -> Iterable[Entry]:
        """The leases and extension routes the routes are made of, as etcd has them."""
        return self._entries.values()

    @property
    def ignored(self) -> tuple[Ignored, ...]:
        """Everything that makes no route at present, by key."""
        return tuple(item for key in sorted(self._ignored) for item in self._ignored[key])

    def apply_snapshot(self, entries: Iterable[Entry], revision: int) -> Changes:
        """Believe exactly these entries: all there were at `revision`."""
        wanted = {entry.key: entry for entry in entries if self._concerns(entry.key)}
        self._snapshot_revision = revision
        self._deleted.clear()
        gone = [key for key in self._entries if key not in wanted]
        news = [entry for key, entry in wanted.items() if self._entries.get(key) != entry]
        self._entries = wanted
        return self._read_again([*gone, *(entry.key for entry in news)])

    def apply_events(self, events: Iterable[Event]) -> Changes:
        """Follow changes, in any order and however often they are repeated."""
        touched = []
        for event in events:
            if not self._concerns(event.key) or event.mod_revision <= self._seen(event.key):
                continue
            touched.append(event.key)
            if isinstance(event, Deletion):
                self._entries.pop(event.key, None)
                self._deleted[event.key] = event.mod_revision
            else:
                self._entries[event.key] = event
                self._deleted.pop(event.key, None)
        return self._read_again(touched)

    def configure(self, vni: int, own: Own) -> Changes:
        """Look at the same entries with another VNI, or as a node of other address or lease."""
        if (vni, own) == (self._vni, self._own):
            return Changes()
        self._vni, self._own = vni, own
        return self._read_again(list(self._entries))

    def _concerns(self, key: str) -> bool:
        return key.startswith((self._subnets, self._routes_below))

    def _seen(self, key: str) -> int:
        """The latest revision at which we know the key's state."""
        entry = self._entries.get(key)
        known = entry.mod_revision if entry else self._deleted.get(key, 0)
        return max(known, self._snapshot_revision)

    def _read_again(self, keys: Iterable[str]) -> Changes:
        """Bring claims and routes in step with the entries at `keys`."""
        changes = Changes()
        prefixes: set[IPNetwork] = set()
        affected = set(keys)
        for key in affected:
            entry = self._entries.get(key)
            before = self._readings.pop(key, _Reading())
            reading = self._read(entry) if entry else _Reading()
            if entry:
                self._readings[key] = reading
            for claim in before.claims:
                self._claims[claim.prefix].pop(key)
            for claim in reading.claims:
                self._claims.setdefault(claim.prefix, {})[key] = claim
            prefixes.update(claim.prefix for claim in (*before.claims, *reading.claims))
        for prefix in prefixes:
            affected.update(self._claims[prefix])
            self._choose(prefix, changes)
        for key in sorted(affected):
            self._note_ignored(key, changes)
        return changes

    def _choose(self, prefix: IPNetwork, changes: Changes) -> None:
        """Let one of the claims to `prefix` win."""
        before = self._routes.pop(prefix, None)
        claims = self._claims[prefix]
        winner = claims[min(claims, key=self._rank)] if claims else None
        if winner is None:
            del self._claims[prefix]
        else:
            self._routes[prefix] = winner
        if winner != before:
            changes.routes[prefix] = winner

    def _rank(self, key: str) -> tuple[bool, bool, bool, int, str]:
        """The lowest wins. Entries kept from a lost cluster (revision 0) come after live ones."""
        entry = self._entries[key]
        return (
            key != self._own.key,
            not key.startswith(self._subnets),
            entry.mod_revision == 0,
            entry.create_revision,
            key,
        )

    def _note_ignored(self, key: str, changes: Changes) -> None:
        reading = self._readings.get(key, _Reading())
        losses = tuple(
            Ignored(key, Reason.DUPLICATE, f"{claim.prefix} is routed by {winner.key}")
            for claim in reading.claims
            if (winner := self._routes[claim.prefix]).key != key
        )
        before = self._ignored.pop(key, ())
        if now := reading.ignored + losses:
            self._ignored[key] = now
        changes.ignored += [item for item in now if item not in before]

    def _read(self, entry: Entry) -> _Reading:
        """What an entry claims by itself, whatever the others claim."""
        key = entry.key
        try:
            networks = self._networks_of(key)
        except LeaseFormatError as error:
            return _Reading(ignored=(Ignored(key, Reason.BAD_KEY, str(error)),))
        try:
            attrs = LeaseAttrs.parse(entry.value)
        except LeaseFormatError as error:
            return _Reading(ignored=(Ignored(key, Reason.BAD_VALUE, str(error)),))
        if attrs.backend_type != VXLAN:
            detail = f"{attrs.backend_type!r}, not 'vxlan'"
            return _Reading(ignored=(Ignored(key, Reason.OTHER_BACKEND, detail),))
        read = [self._claim(key, network, attrs) for network in networks]
        return _Reading(
            tuple(item for item in read if isinstance(item, Route)),
            tuple(item for item in read if isinstance(item, Ignored)),
        )

    def _networks_of(self, key: str) -> tuple[IPNetwork, ...]:
        if key.startswith(self._subnets):
            return NodeSubnet.parse(key[len(self._subnets) :]).networks
        return (parse_network_name(key[len(self._routes_below) :]),)

    def _claim(self, key: str, network: IPNetwork, attrs: LeaseAttrs) -> Route | Ignored:
        """One family of an entry: each has a VTEP of its own."""
        public_ip: IPv4Address | IPv6Address | None
        own_ip: IPv4Address | IPv6Address | None
        vtep: Vtep | None
        if network.version == 4:
            public_ip, vtep, own_ip = attrs.public_ip, attrs.vtep, self._own.public_ip
        else:
            public_ip, vtep, own_ip = attrs.public_ipv6, attrs.vtep_v6, self._own.public_ipv6
        if public_ip is None or vtep is None:
            return Ignored(key, Reason.NO_VTEP, f"for {network}")
        if vtep.vni != self._vni:
            return Ignored(key, Reason.OTHER_VNI, f"{vtep.vni}, not {self._vni}")
        is_ours = key == self._own.key or public_ip == own_ip
        if is_ours and key != self._own.key and key.startswith(self._subnets):
            # A route to ourselves would be a loop; that lease is an old one of ours or a mistake.
            return Ignored(key, Reason.OWN_ADDRESS, str(public_ip))
        kind = Kind.LOCAL if is_ours else Kind.REMOTE
        return Route(network, kind, public_ip, vtep.mac, vtep.vni, key)
