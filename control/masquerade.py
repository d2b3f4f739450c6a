"""Masquerading and forwarding rules: flannel's, in an nftables table of our own.

    table inet loden-<device>
      postrouting   pods talk to each other under their own addresses;
                    what leaves the cluster, or enters it elsewhere, is masqueraded
      forward       what comes from the cluster, and what goes there, is accepted

The `nft` tool writes all in one transaction: there is no moment with half the rules. Nothing
outside the table is touched. As nftables works, an accept here ends this table's say and does not
undo a drop in somebody else's: control/forward_accepts.py deals with the one that matters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Any

from control.firewall_tools import ToolRefusedError, run_tool

IPNetwork = IPv4Network | IPv6Network

NFT = "nft"

LEAVE_ALONE_MARK = 0x4000
"""The mark of a packet that somebody else, such as kube-proxy, has decided about."""
MULTICAST = {4: "224.0.0.0/4", 6: "ff00::/8"}

_FAMILY = {4: "ip", 6: "ip6"}
# linux/netfilter_ipv4.h: NF_IP_PRI_NAT_SRC and NF_IP_PRI_FILTER, the same for IPv6.
_PRIORITY_SOURCE_NAT = 100
_PRIORITY_FILTER = 0


@dataclass(frozen=True)
class Rule:
    """One rule of a chain, in nft's language."""

    statement: str
    comment: str
    """What it is for; unlike the statement, it is listed just as it was written."""


@dataclass(frozen=True)
class Chain:
    """A chain and its rules, the first match decides; without a match: accept."""

    name: str
    type: str
    priority: int
    rules: tuple[Rule, ...]

    @property
    def hook(self) -> str:
        return self.name


class Masquerade:
    """The rules of one overlay device, in the network namespace of the thread that calls."""

    def __init__(
        self,
        device: str,
        networks: Iterable[IPNetwork],
        own_subnets: Iterable[IPNetwork],
        *,
        ip_masq: bool = True,
        forward: bool = True,
    ) -> None:
        """
        `device`: name of the overlay device; the table is named after it.
        `networks`: everything the overlay carries. `own_subnets`: what of it is on this node.
        Both may hold both address families, and may overlap.
        `ip_masq`, `forward`: which of the chains to have; without any, there shall be no table.
        """
        self.table = table_name(device)
        cluster, own = list(networks), list(own_subnets)
        chains = []
        if ip_masq:
            rules = tuple(_postrouting_rules(cluster, own))
            chains.append(Chain("postrouting", "nat", _PRIORITY_SOURCE_NAT, rules))
        if forward:
            rules = tuple(_forward_rules(cluster))
            chains.append(Chain("forward", "filter", _PRIORITY_FILTER, rules))
        self._chains = _sealed(chains)

    def reconcile(self) -> bool:
        """Have the rules in place; whether they had to be written. Raises FirewallError.

        Rules are compared by their comments, since how nft lists a statement differs from version
        to version. A comment goes with its rule, and changes with any rule of the set; whoever
        edits one by hand and keeps the comment is taken at his word.
        """
        wanted = _shape_of(self._chains) if self._chains else None
        if self._read_shape() == wanted:
            return False
        script = _removal(self.table)
        if self._chains:
            script += _ruleset(self.table, self._chains)
        run_tool(NFT, "-f", "-", script=script)
        return True

    def remove(self) -> None:
        """Take the table away, if there is one. Raises FirewallError."""
        run_tool(NFT, "-f", "-", script=_removal(self.table))

    def _read_shape(self) -> Shape | None:
        try:
            listing = json.loads(run_tool(NFT, "-j", "list", "table", "inet", self.table))
        except ToolRefusedError as refusal:
            if "No such file or directory" in refusal.said:
                return None
            raise
        except ValueError as error:
            raise ToolRefusedError(NFT, f"its listing is not JSON: {error}") from error
        return _listed_shape(listing["nftables"])


def table_name(device: str) -> str:
    """Of the table with the rules of this overlay device; letters, digits and `_.-`."""
    # An interface may be called almost anything, a table may not.
    return "loden-" + re.sub(r"[^A-Za-z0-9_.-]", lambda found: f"_{ord(found[0]):x}_", device)


def _postrouting_rules(networks: list[IPNetwork], own_subnets: list[IPNetwork]) -> Iterator[Rule]:
    """flannel's, in flannel's order."""
    mark = f"{LEAVE_ALONE_MARK:#x}"
    yield Rule(f"meta mark & {mark} == {mark} return", "decided elsewhere")
    for version, ip in _FAMILY.items():
        cluster, own = _set_of(networks, version), _set_of(own_subnets, version)
        if not cluster:
            continue
        if own:
            yield Rule(f"{ip} saddr {own} {ip} daddr {cluster} return", "pod to cluster")
            yield Rule(f"{ip} saddr {cluster} {ip} daddr {own} return", "cluster to pod")
            yield Rule(f"{ip} saddr != {cluster} {ip} daddr {own} return", "outside to pod")
        yield Rule(
            f"{ip} saddr {cluster} {ip} daddr != {MULTICAST[version]} masquerade fully-random",
            "cluster to outside",
        )
        yield Rule(
            f"{ip} saddr != {cluster} {ip} daddr {cluster} masquerade fully-random",
            "outside to cluster",
        )


def _forward_rules(networks: list[IPNetwork]) -> Iterator[Rule]:
    for version, ip in _FAMILY.items():
        if cluster := _set_of(networks, version):
            yield Rule(f"{ip} saddr {cluster} accept", "from cluster")
            yield Rule(f"{ip} daddr {cluster} accept", "to cluster")


def _set_of(networks: list[IPNetwork], version: int) -> str:
    """nft's set of those of one family, empty if there are none; in a set none may overlap."""
    if version == 4:
        apart = map(str, collapse_addresses(n for n in networks if isinstance(n, IPv4Network)))
    else:
        apart = map(str, collapse_addresses(n for n in networks if isinstance(n, IPv6Network)))
    members = ", ".join(apart)
    return f"{{ {members} }}" if members else ""


def _sealed(chains: Sequence[Chain]) -> tuple[Chain, ...]:
    """The same chains, every comment with a digest of the whole set."""
    digest = hashlib.sha256(repr(chains).encode()).hexdigest()[:12]

    def seal(rule: Rule) -> Rule:
        return replace(rule, comment=f"{rule.comment} [{digest}]")

    return tuple(replace(chain, rules=tuple(map(seal, chain.rules))) for chain in chains)


def _ruleset(table: str, chains: Iterable[Chain]) -> str:
    lines = [f"table inet {table} {{"]
    for chain in chains:
        lines.append(f"  chain {chain.name} {{")
        lines.append(
            f"    type {chain.type} hook {chain.hook} priority {chain.priority}; policy accept;"
        )
        lines += [f'    {rule.statement} comment "{rule.comment}"' for rule in chain.rules]
        lines.append("  }")
    return "\n".join([*lines, "}", ""])


def _removal(table: str) -> str:
    # Deleting fails where there is nothing; adding does not fail where there is something.
    return f"add table inet {table}\ndelete table inet {table}\n"


Shape = dict[str, list[Any]]
"""By chain: what it is attached to, then the comments of its rules."""


def _shape_of(chains: Iterable[Chain]) -> Shape:
    return {
        chain.name: [
            (chain.type, chain.hook, chain.priority, "accept"),
            *(rule.comment for rule in chain.rules),
        ]
        for chain in chains
    }


def _listed_shape(items: Iterable[dict[str, Any]]) -> Shape | None:
    """Of libnftables-json(5)'s list; None if there is anything that we did not put there."""
    shape: Shape = {}
    for item in items:
        match item:
            case {"metainfo": _}:
                pass
            case {"table": table} if "flags" not in table:  # such as dormant
                pass
            case {"chain": chain}:
                attached = tuple(chain.get(name) for name in ("type", "hook", "prio", "policy"))
                shape[chain["name"]] = [attached]
            case {"rule": rule}:
                shape[rule["chain"]].append(rule.get("comment"))
            case _:
                return None
    return shape
