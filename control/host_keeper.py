"""The host's links, routes and rules, kept as the overlay needs them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from control import node
from control.exits import ControlError
from control.firewall import Firewall
from control.firewall_tools import FirewallError
from control.host_state import IPNetwork, LinkError
from control.lease import NodeSubnet
from control.link import HostNetwork
from control.network_config import NetworkConfig
from control.options import ControlOptions
from control.rib import Kind, Route
from forwarder.fib.routes import IPAddress

log = logging.getLogger(__name__)


class HostKeeper:
    """What the host needs for one subnet under one config.  For the control loop's thread alone."""

    def __init__(self, options: ControlOptions, config: NetworkConfig, subnet: NodeSubnet) -> None:
        """`subnet`: this node's own."""
        self.config = config
        self.subnet = subnet
        self.error: str | None = "the overlay device is not set up yet"
        """Why the host is not as it should be; None: it is."""
        self._host = HostNetwork(options.device, node.networks_of(config))
        self._firewall = Firewall(
            options.device,
            node.networks_of(config),
            ip_masq=options.ip_masq,
            forward=options.forward_rules,
        )
        self._moved_here: set[IPNetwork] = set()
        self._extra: set[IPNetwork] = set()
        self._vteps: dict[IPNetwork, IPAddress] = {}
        self._refused: frozenset[IPNetwork] = frozenset()
        self._direct: dict[IPNetwork, IPAddress] = {}

    def follow_routes(self, changed: Mapping[IPNetwork, Route | None]) -> bool:
        """Takes note of routes the host must know too; whether `reconcile` has work to do.

        The kernel has one route for the whole network.  It needs others where that one is not the
        one it would take (node.needs_kernel_route), and for peers on our own link under
        DirectRouting.  The firewall takes a pod that has moved here for one of ours.
        """
        before = (set(self._extra), dict(self._direct), set(self._moved_here))
        for prefix, route in changed.items():
            self._extra.discard(prefix)
            self._direct.pop(prefix, None)
            self._vteps.pop(prefix, None)
            self._moved_here.discard(prefix)
            if route is None:
                continue
            if route.kind is Kind.LOCAL and node.has_moved_in(prefix, self.config, self.subnet):
                self._moved_here.add(prefix)
            if route.kind is not Kind.REMOTE:
                continue
            self._vteps[prefix] = route.public_ip
            if node.needs_kernel_route(prefix, self.config, self.subnet):
                self._extra.add(prefix)
            elif self.config.direct_routing and self._host.reaches_directly(route.public_ip):
                self._direct[prefix] = route.public_ip
        return (self._extra, self._direct, self._moved_here) != before

    def reconcile(self, mtu_bytes: int) -> None:
        """Puts right whatever is not as it should be.  What cannot be, it says once.

        Raises ControlError where trying again cannot help.
        """
        extra = self._extra - self._would_loop()
        wanted = node.host_state(self.config, self.subnet, mtu_bytes, extra, self._direct)
        try:
            for change in self._host.reconcile(wanted):
                log.info("host: %s", change)
            self._firewall.follow([*self.subnet.networks, *self._moved_here])
            for done in self._firewall.reconcile():
                log.info("host: %s", done)
        except (LinkError, FirewallError) as error:
            if not error.retryable:
                raise ControlError(str(error)) from error
            if self.error != str(error):
                log.warning("host: %s", error)
            self.error = str(error)
        else:
            self.error = None

    def _would_loop(self) -> frozenset[IPNetwork]:
        """Prefixes that cover a VTEP: with such a route, tunnel packets would come back to us."""
        vteps = set(self._vteps.values()) if self._extra else set()
        refused = frozenset(
            prefix for prefix in self._extra if any(vtep in prefix for vtep in vteps)
        )
        for prefix in sorted(refused - self._refused, key=str):
            log.error("the route %s covers a node's own address: the host does not get it", prefix)
        self._refused = refused
        return refused

    def note_firewall_change(self) -> None:
        """The next `reconcile` looks whether our rules are still there."""
        self._firewall.note_change()

    def leave(self) -> None:
        """At a real end: takes back what is ours.  subnet.env stays, as flannel leaves it."""
        try:
            self._host.remove()
            self._firewall.remove()
        except (LinkError, FirewallError) as error:
            log.warning("host: %s", error)

    def close(self) -> None:
        """Lets go of the host and leaves all as it is."""
        self._host.close()
