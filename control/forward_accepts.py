"""Accepts among iptables' forward rules, on hosts where those would drop the cluster's packets.

Docker, ufw and others set FORWARD's policy to DROP. No accept in a table of our own undoes that:
a packet passes if every table lets it. So, where somebody's iptables rules judge what is
forwarded, and nowhere else, ours stand among them:

    FORWARD       -i TAP -j ACCEPT                  packets of ours that leave uncut
                  -s NETWORK -j ACCEPT              as flannel's do: after everybody's
                  -d NETWORK -j ACCEPT
    DOCKER-USER   -s NETWORK -d NETWORK -j ACCEPT   since Docker 28 its own chains, which come
                                                    before, drop what enters a bridge unasked

In DOCKER-USER, the chain that Docker leaves to others, an accept comes before Docker's isolation
of its networks from each other. That is why it is for packets inside the cluster alone.

The rules go in by the programs that Docker itself uses, so that they land where its own do,
whether that is nftables or the older tables.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from control.firewall_tools import ToolMissingError, run_tool
from control.masquerade import table_name
from forwarder.config import tap_name

IPNetwork = IPv4Network | IPv6Network

TOOLS = {4: "iptables", 6: "ip6tables"}
LOCK_WAIT_S = 5
"""How long to wait for another program that changes the older tables (/run/xtables.lock)."""

FORWARD = "FORWARD"
DOCKER_USER = "DOCKER-USER"

_ENDS_A_CHAIN = frozenset({"DROP", "REJECT", "RETURN"})


@dataclass
class Chain:
    """One of iptables' chains as it is."""

    policy: str
    """ACCEPT or DROP; "-" for a chain that other chains lead to."""
    rules: list[list[str]] = field(default_factory=list)
    """Each as its words, without `-A CHAIN`."""


class ForwardAccepts:
    """The rules of one overlay device, in the network namespace of the thread that calls."""

    def __init__(self, device: str, networks: Iterable[IPNetwork]) -> None:
        """`device`: name of the overlay device, by which our rules are known again.
        `networks`: everything the overlay carries; none may overlap another."""
        self._comment, self._tap = table_name(device), tap_name(device)
        self._networks: dict[int, list[IPNetwork]] = {}
        for network in networks:
            self._networks.setdefault(network.version, []).append(network)

    def reconcile(self) -> bool:
        """Have the rules in place; whether any had to be written. Raises FirewallError."""
        written = [self._apply(version, wanted=True) for version in self._networks]
        return any(written)

    def remove(self) -> None:
        """Take our rules away, if there are any. Raises FirewallError."""
        for version in self._networks:
            self._apply(version, wanted=False)

    def _apply(self, version: int, *, wanted: bool) -> bool:
        tool = TOOLS[version]
        try:
            chains = read_chains(run_tool(f"{tool}-save", "-t", "filter"))
        except ToolMissingError:
            return False  # then there are no rules of iptables
        lines: list[str] = []
        for name in (FORWARD, DOCKER_USER):
            if chain := chains.get(name):
                ours = self._rules_for(name, chain, version) if wanted else []
                lines += self._changes(name, chain, ours)
        if lines:
            script = "\n".join(["*filter", *lines, "COMMIT", ""])
            run_tool(f"{tool}-restore", "--noflush", "--wait", str(LOCK_WAIT_S), script=script)
        return bool(lines)

    def _rules_for(self, name: str, chain: Chain, version: int) -> list[list[str]]:
        """What of ours the chain shall have, in this order."""
        end = ["-m", "comment", "--comment", self._comment, "-j", "ACCEPT"]
        each = [str(network) for network in self._networks[version]]
        if name == DOCKER_USER:
            return [["-s", source, "-d", to, *end] for source in each for to in each]
        if chain.policy == "ACCEPT" and all(map(self._is_ours, chain.rules)):
            return []
        from_tap = ["-i", self._tap, *end]
        return [from_tap, *([side, one, *end] for one in each for side in ("-s", "-d"))]

    def _changes(self, name: str, chain: Chain, wanted: list[list[str]]) -> list[str]:
        """Lines for iptables-restore; none if all is as wanted.

        Ours come last, so that whatever an operator drops stays dropped, but before a rule that
        decides about all packets: there they would never be asked.
        """
        ours = [rule for rule in chain.rules if self._is_ours(rule)]
        reached = chain.rules[: _end_of(chain.rules)]
        if ours == wanted and all(rule in reached for rule in ours):
            return []
        removals = [f"-D {name} {shlex.join(rule)}" for rule in ours]
        at = 1 + _end_of([rule for rule in chain.rules if not self._is_ours(rule)])
        insertions = [f"-I {name} {at} {shlex.join(rule)}" for rule in reversed(wanted)]
        return removals + insertions

    def _is_ours(self, rule: list[str]) -> bool:
        return self._comment in rule


def read_chains(listing: str) -> dict[str, Chain]:
    """The chains by name, of what `iptables-save -t filter` prints."""
    chains: dict[str, Chain] = {}
    for line in listing.splitlines():
        if line.startswith(":"):
            name, policy, *_ = line[1:].split()
            chains[name] = Chain(policy)
        elif line.startswith("-A "):
            _, name, *rule = shlex.split(line)
            chains[name].rules.append(rule)
    return chains


def _end_of(rules: list[list[str]]) -> int:
    """The index of the first rule that decides about all packets, or the number of rules."""
    return next(
        (i for i, rule in enumerate(rules) if rule[:1] == ["-j"] and rule[1] in _ENDS_A_CHAIN),
        len(rules),
    )
