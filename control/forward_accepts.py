"""Accepts among iptables' rules, on hosts where those would drop the cluster's packets.

Docker, ufw and others set FORWARD's policy to DROP. No accept in a table of our own undoes that:
a packet passes if every table lets it. So, where somebody's iptables rules judge what is
forwarded, and nowhere else, ours stand among them:

    filter  FORWARD      -i TAP                          packets of ours that leave uncut
                         -s NETWORK                      as flannel's do: after everybody's
                         -d NETWORK
    filter  DOCKER-USER  -s NETWORK -d NETWORK           since Docker 28 its own chains, which
                                                         come before FORWARD's end, drop what
    raw     PREROUTING   -s NETWORK -d NETWORK -i DEVICE enters a bridge unasked, and do so a
                                                         second time, long before

In DOCKER-USER, the chain that Docker leaves to others, an accept comes before Docker's isolation
of its networks from each other. That is why it is for packets inside the cluster alone.

The rules go in by the programs that Docker itself uses, so that they land where its own do,
whether that is nftables or the older tables.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass, field

from control.firewall_tools import ToolMissingError, run_tool
from control.host_state import IPNetwork
from control.masquerade import table_name
from forwarder.config import tap_name

TOOLS = {4: "iptables", 6: "ip6tables"}
LOCK_WAIT_S = 5
"""How long to wait for another program that changes the older tables (/run/xtables.lock)."""

Place = tuple[str, str]
"""A chain's table and name."""
FORWARD: Place = ("filter", "FORWARD")
DOCKER_USER: Place = ("filter", "DOCKER-USER")
PREROUTING: Place = ("raw", "PREROUTING")

Rule = list[str]
"""A rule's words, without `-A CHAIN`."""


@dataclass
class Chain:
    """One of iptables' chains as it is."""

    policy: str
    """ACCEPT or DROP; "-" for a chain that other chains lead to."""
    rules: list[Rule] = field(default_factory=list)


class ForwardAccepts:
    """The rules of one overlay device, in the network namespace of the thread that calls."""

    def __init__(self, device: str, networks: Iterable[IPNetwork]) -> None:
        """`device`: name of the overlay device, by which our rules are known again.
        `networks`: everything the overlay carries; none may overlap another."""
        self._device = device
        self._comment = table_name(device)
        self._networks: dict[int, list[str]] = {}
        for network in networks:
            self._networks.setdefault(network.version, []).append(str(network))

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
            chains = read_chains(run_tool(f"{tool}-save"))
        except ToolMissingError:
            return False  # then there are no rules of iptables
        script = ""
        for place in (FORWARD, DOCKER_USER, PREROUTING):
            if (chain := chains.get(place)) is None:
                continue
            ours = self._rules_for(place, chain, self._networks[version]) if wanted else []
            if lines := self._changes(place, chain, ours):
                script += "\n".join([f"*{place[0]}", *lines, "COMMIT", ""])
        if script:
            run_tool(f"{tool}-restore", "--noflush", "--wait", str(LOCK_WAIT_S), script=script)
        return bool(script)

    def _rules_for(self, place: Place, chain: Chain, networks: list[str]) -> list[Rule]:
        """What of ours the chain shall have, in this order; each as iptables-save writes it."""
        others = [rule for rule in chain.rules if not self._is_ours(rule)]
        accepted = [["-s", source, "-d", to] for source in networks for to in networks]
        if place == FORWARD:
            if chain.policy == "ACCEPT" and not others:
                return []
            accepted = [["-i", tap_name(self._device)]]
            accepted += [[side, network] for network in networks for side in ("-s", "-d")]
        elif place == PREROUTING:
            if not any(_target(rule) == "DROP" for rule in others):
                return []
            accepted = [[*matches, "-i", self._device] for matches in accepted]
        end = ["-m", "comment", "--comment", self._comment, "-j", "ACCEPT"]
        return [[*matches, *end] for matches in accepted]

    def _changes(self, place: Place, chain: Chain, wanted: list[Rule]) -> list[str]:
        """Lines for iptables-restore; none if all is as wanted."""
        _, name = place
        ours = [rule for rule in chain.rules if self._is_ours(rule)]
        reached = chain.rules[: _end_of(place, chain.rules)]
        if ours == wanted and all(rule in reached for rule in ours):
            return []
        removals = [f"-D {name} {shlex.join(rule)}" for rule in ours]
        at = 1 + _end_of(place, [rule for rule in chain.rules if not self._is_ours(rule)])
        insertions = [f"-I {name} {at} {shlex.join(rule)}" for rule in reversed(wanted)]
        return removals + insertions

    def _is_ours(self, rule: Rule) -> bool:
        return self._comment in rule


def read_chains(listing: str) -> dict[Place, Chain]:
    """All chains of what `iptables-save` prints, by their places."""
    chains: dict[Place, Chain] = {}
    table = ""
    for line in listing.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":"):
            name, policy, *_ = line[1:].split()
            chains[table, name] = Chain(policy)
        elif line.startswith("-A ") and table in ("filter", "raw"):  # nat has thousands, at times
            _, name, *rule = shlex.split(line)
            chains[table, name].rules.append(rule)
    return chains


def _target(rule: Rule) -> str | None:
    return rule[rule.index("-j") + 1] if "-j" in rule else None


def _end_of(place: Place, rules: list[Rule]) -> int:
    """The index of the first rule behind which ours would come too late.

    Ours come last, so that whatever an operator drops stays dropped: but before a rule that
    decides about all packets, and, early on, before Docker's own drops, one for each container.
    """
    for index, rule in enumerate(rules):
        decides_all = rule[:1] == ["-j"] and _target(rule) in ("DROP", "REJECT", "RETURN")
        if decides_all or (place == PREROUTING and _target(rule) == "DROP"):
            return index
    return len(rules)
