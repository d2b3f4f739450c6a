"""The host's interface that carries the underlay: what the flags ask for, as the host is now."""

from __future__ import annotations

from control.exits import ControlError
from control.external_interface import (
    ExternalInterface,
    ExternalInterfaceError,
    InterfaceChoice,
    find_external_interface,
)
from control.network_config import NetworkConfig
from control.options import ControlOptions


def check_flags(options: ControlOptions) -> None:
    """Raises ControlError for what no waiting will mend: an interface that the flags get wrong."""
    try:
        find_external_interface(_choice(options, needs_ipv4=False, needs_ipv6=False))
    except ExternalInterfaceError as error:
        if not error.retryable:
            raise ControlError(str(error)) from error


def find_underlay(options: ControlOptions, config: NetworkConfig) -> ExternalInterface:
    """The interface, with an address of each family in use.  Raises ExternalInterfaceError."""
    needs_ipv4, needs_ipv6 = config.ipv4 is not None, config.ipv6 is not None
    return find_external_interface(_choice(options, needs_ipv4, needs_ipv6))


def _choice(options: ControlOptions, needs_ipv4: bool, needs_ipv6: bool) -> InterfaceChoice:
    return InterfaceChoice(
        ifaces=options.ifaces,
        regexes=options.iface_regexes,
        can_reach=options.iface_can_reach,
        public_ipv4=options.public_ip,
        public_ipv6=options.public_ipv6,
        needs_ipv4=needs_ipv4,
        needs_ipv6=needs_ipv6,
    )


def in_words(interface: ExternalInterface) -> str:
    """For the log."""
    addresses = [address for address in (interface.ipv4, interface.ipv6) if address]
    return f"{interface.name}, {' and '.join(map(str, addresses))}, MTU {interface.mtu_bytes}"
