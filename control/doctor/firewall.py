"""Firewall rules in the way: what nftables' rules (and iptables', which are kept there) would do.

The rules are read (`nft -j list ruleset`) and walked as the kernel walks them, with a packet of
which a few fields are known. What a rule asks beside these may hold or not: such a rule may decide,
and the walk goes on. Only what no rule can save is reported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from control.doctor.finding import Finding, failure, ok, unknown
from control.doctor.network import Place
from control.firewall_tools import FirewallError, run_tool
from forwarder.fib.routes import IPAddress

LEGACY_TABLES = Path("/proc/net/ip_tables_names")
ACCEPT, DROP, CONTINUE = "accept", "drop", "continue"
TERMINAL = {"accept": ACCEPT, "drop": DROP, "reject": DROP, "return": CONTINUE}
ASIDE = {"counter", "log", "comment", "notrack", "flow", "mangle", "set"}
"""Statements that decide nothing."""
FAMILIES = {4: {"ip", "inet"}, 6: {"ip6", "inet"}}


@dataclass(frozen=True)
class Packet:
    """The first packet of a conversation, as far as it is known."""

    name: str
    hook: str
    version: int
    fields: Mapping[str, object]
    """By nft's names: iifname, oifname, l4proto, dport, saddr, daddr."""


@dataclass
class Ruleset:
    """Chains by (family, table, name)."""

    base: list[dict[str, Any]] = field(default_factory=list)
    rules: dict[tuple[str, str, str], list[list[dict[str, Any]]]] = field(default_factory=dict)


def check_firewall(place: Place, bridge: str | None) -> list[Finding]:
    """`bridge`: that of this node's pods, None: not known."""
    try:
        ruleset = read_ruleset(json.loads(run_tool("nft", "-j", "list", "ruleset")))
    except FirewallError as error:
        return [unknown("firewall", str(error), "install nftables, run as root")]
    found = []
    for packet in packets_of(place, bridge):
        for chain in dropping(ruleset, packet):
            says = f"{packet.name} are dropped by the chain {chain}"
            found.append(failure("firewall", says, f"let them pass there: {_needed(packet)}"))
    if not found:
        found.append(ok("firewall", "no rule of nftables or iptables is in the way"))
    if LEGACY_TABLES.exists() and LEGACY_TABLES.read_text().strip():
        says = "there are rules of iptables-legacy, too, which are not looked at"
        found.append(unknown("firewall", says, "iptables-legacy-save shows them"))
    return found


def packets_of(place: Place, bridge: str | None) -> Iterator[Packet]:
    """What has to pass on this host, in each IP version in use."""
    tunnel = {"l4proto": "udp", "dport": place.port}
    for address in place.addresses:
        name, version = "tunnel packets of the other nodes", address.version
        inward = {**tunnel, "iifname": place.interface, "daddr": address}
        yield Packet(name, "input", version, inward)
        outward = {**tunnel, "oifname": place.interface, "saddr": address}
        yield Packet("tunnel packets to the other nodes", "output", version, outward)
    for subnet in place.subnets:
        pod: IPAddress = subnet.network_address + 2
        other = _outside(place.networks, subnet)
        leaving = {"iifname": bridge, "oifname": place.device, "saddr": pod, "daddr": other}
        yield Packet("pods' packets to other nodes", "forward", subnet.version, leaving)
        coming = {"iifname": place.device, "oifname": bridge, "saddr": other, "daddr": pod}
        yield Packet("packets to pods from other nodes", "forward", subnet.version, coming)


def _outside(
    networks: Iterable[IPv4Network | IPv6Network], subnet: IPv4Network | IPv6Network
) -> IPAddress | None:
    """An address of the overlay on another node."""
    network = next((n for n in networks if n.version == subnet.version), None)
    if network is None:
        return None
    first: IPAddress = network.network_address + 1
    last: IPAddress = network.broadcast_address - 1
    return last if first in subnet else first


def _needed(packet: Packet) -> str:
    if packet.hook == "forward":
        return "loden run accepts them, but where --no-iptables-forward-rules is given"
    way = "input from" if packet.hook == "input" else "output to"
    return f"UDP port {packet.fields['dport']}, {way} the other nodes"


# ---- walking the rules ---------------------------------------------------------------------------


def read_ruleset(listed: Mapping[str, Any]) -> Ruleset:
    """From `nft -j list ruleset`, see libnftables-json(5)."""
    ruleset = Ruleset()
    for item in listed["nftables"]:
        if chain := item.get("chain"):
            ruleset.rules.setdefault((chain["family"], chain["table"], chain["name"]), [])
            if "hook" in chain:
                ruleset.base.append(chain)
        elif rule := item.get("rule"):
            place = (rule["family"], rule["table"], rule["chain"])
            ruleset.rules.setdefault(place, []).append(rule["expr"])
    return ruleset


def dropping(ruleset: Ruleset, packet: Packet) -> list[str]:
    """The base chains that let no such packet pass, as "family table chain"."""
    found = []
    for chain in ruleset.base:
        if chain["hook"] != packet.hook or chain["family"] not in FAMILIES[packet.version]:
            continue
        if chain.get("type") == "nat":
            continue  # it translates, and decides nothing
        place = (chain["family"], chain["table"], chain["name"])
        fates = _walk(ruleset, place, packet, ())
        if CONTINUE in fates:
            fates = fates - {CONTINUE} | {str(chain.get("policy", ACCEPT))}
        if fates == {DROP}:
            found.append(" ".join(place))
    return found


def _walk(
    ruleset: Ruleset,
    place: tuple[str, str, str],
    packet: Packet,
    passed: tuple[tuple[str, str, str], ...],
) -> set[str]:
    """All that may become of a packet in a chain."""
    fates: set[str] = set()
    if place in passed:
        return {CONTINUE}
    for expressions in ruleset.rules.get(place, []):
        certain, verdict = _judge(expressions, packet)
        if certain is False or verdict is None:
            continue
        kind, target = verdict
        if kind in ("jump", "goto"):
            reached = _walk(ruleset, (*place[:2], str(target)), packet, (*passed, place))
            fates |= reached - {CONTINUE}
            ends = CONTINUE not in reached or kind == "goto"
            if kind == "goto" and CONTINUE in reached:
                fates.add(CONTINUE)
        else:
            fates.add(kind)
            ends = True
        if certain and ends:
            return fates
    return fates | {CONTINUE}


def _judge(
    expressions: Sequence[Mapping[str, Any]], packet: Packet
) -> tuple[bool | None, tuple[str, object] | None]:
    """(whether the rule applies, None: perhaps; what it decides, None: nothing)."""
    certain: bool | None = True
    verdict: tuple[str, object] | None = None
    for expression in expressions:
        ((kind, value),) = expression.items()
        if kind in TERMINAL:
            verdict = (TERMINAL[kind], None)
        elif kind in ("jump", "goto"):
            verdict = (kind, value["target"])
        elif kind == "match":
            holds = _matches(value, packet)
            if holds is False:
                return False, None
            certain = None if holds is None else certain
        elif kind == "xt":
            if value.get("name") in ("conntrack", "state"):
                return False, None  # about conversations under way; ours is the first packet
            certain = certain if value.get("name") == "comment" else None
        elif kind not in ASIDE:
            certain = None  # a limit, a set of verdicts, whatever else
            verdict = verdict or ((ACCEPT, None) if kind == "vmap" else None)
    return certain, verdict


def _matches(match: Mapping[str, Any], packet: Packet) -> bool | None:
    """Whether one condition holds; None: it asks what is not known."""
    left = match["left"]
    if not isinstance(left, dict):
        return None
    if "ct" in left and left["ct"].get("key") == "state":
        values = _flattened(match["right"])
        return ("new" in values) != (match["op"] == "!=")
    known = _known(left, packet)
    if known is None:
        return None
    equal = _is_among(known, match["right"])
    if equal is None or match["op"] not in ("==", "!=", "in"):
        return None
    return equal != (match["op"] == "!=")


def _known(left: Mapping[str, Any], packet: Packet) -> object | None:
    """The packet's value of what is on the left; None: not known."""
    if "meta" in left:
        if left["meta"]["key"] == "nfproto":
            return {4: "ipv4", 6: "ipv6"}[packet.version]
        return packet.fields.get(left["meta"]["key"])
    payload = left.get("payload", {})
    name = payload.get("field")
    if name in ("saddr", "daddr"):
        return packet.fields.get(name)
    if name in ("protocol", "nexthdr"):
        return packet.fields.get("l4proto")
    if name in ("dport", "sport") and payload.get("protocol") not in ("udp", "th"):
        # Another protocol's port; of pods' packets, the protocol may be any.
        return -1 if "l4proto" in packet.fields else None
    return packet.fields.get("dport") if name == "dport" else None


def _is_among(known: object, right: object) -> bool | None:
    """Whether a value is what stands on the right: a value, a prefix, a range or a set of these."""
    if isinstance(right, dict) and "set" in right:
        members = [_is_among(known, member) for member in right["set"]]
        return True if True in members else (None if None in members else False)
    if isinstance(right, dict) and "prefix" in right:
        network = ip_network(f"{right['prefix']['addr']}/{right['prefix']['len']}", strict=False)
        return known in network
    if isinstance(right, dict) and "range" in right and isinstance(known, int):
        low, high = right["range"]
        return bool(low <= known <= high)
    if isinstance(right, dict) or (isinstance(right, str) and right.startswith("@")):
        return None
    if isinstance(right, str) and right.endswith("*"):
        return str(known).startswith(right[:-1])
    if isinstance(known, (str, int)):
        return str(known) == str(right)
    try:
        return known == ip_address(str(right))
    except ValueError:
        return None


def _flattened(right: object) -> list[object]:
    """All values in a value, a list or a set of values."""
    if isinstance(right, dict):
        right = list(right.values())
    if not isinstance(right, list):
        return [right]
    return [value for part in right for value in _flattened(part)]
