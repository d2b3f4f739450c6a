"""The host's links, routes and rules, kept as the overlay needs them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from control import node
from control.host_state import IPNetwork, LinkError
from control.lease import NodeSubnet
from control.link import HostNetwork
from control.masquerade import Masquerade, MasqueradeError
from control.network_config import NetworkConfig
from control.options import ControlOptions
from control.rib import Kind, Route
from forwarder.fib.routes import IPAddress

log = logging.getLogger(__name__)


class HostKeeper:
    """What the host needs under one network config.  For the control loop's thread alone."""

    def __init__(self, options: ControlOptions, config: NetworkConfig) -> None:
        self.config = config
        self.subnet = NodeSubnet()
        """The node's own; set before the first `reconcile`."""
        self._device = options.device
        self._host = HostNetwork(options.device, node.networks_of(config))
        self._wants_masquerade = options.ip_masq
        self._masquerade: Masquerade | None = None
        self._outside: set[IPNetwork] = set()
        self._direct: dict[IPNetwork, IPAddress] = {}

    def follow_routes(self, changed: Mapping[IPNetwork, Route | None]) -> bool:
        """Takes note of routes the kernel must know too; whether `reconcile` has work to do.

        The kernel has one route for the whole network.  It needs others for prefixes outside of
        it, and for peers on our own link under DirectRouting.
        """
        before = (set(self._outside), dict(self._direct))
        for prefix, route in changed.items():
            self._outside.discard(prefix)
            self._direct.pop(prefix, None)
            if route is None:
                continue
            if node.is_outside(prefix, self.config):
                self._outside.add(prefix)
            elif self._is_direct(route):
                self._direct[prefix] = route.public_ip
        return (self._outside, self._direct) != before

    def _is_direct(self, route: Route) -> bool:
        return (
            self.config.direct_routing
            and route.kind is Kind.REMOTE
            and self._host.reaches_directly(route.public_ip)
        )

    def reconcile(self, mtu_bytes: int) -> None:
        """Puts right whatever is not as it should be.  Raises LinkError, MasqueradeError."""
        wanted = node.host_state(self.config, self.subnet, mtu_bytes, self._outside, self._direct)
        for change in self._host.reconcile(wanted):
            log.info("host: %s", change)
        if self._wants_masquerade:
            if self._masquerade is None:
                self._masquerade = Masquerade(
                    self._device, node.networks_of(self.config), self.subnet.networks
                )
            if self._masquerade.reconcile():
                log.info("host: masquerade rules written")

    def leave(self) -> None:
        """At a real end: takes back what is ours.  subnet.env stays, as flannel leaves it."""
        try:
            self._host.remove()
            if self._masquerade is not None:
                self._masquerade.remove()
        except (LinkError, MasqueradeError) as error:
            log.warning("host: %s", error)
