"""The kernel's own decision about a packet: by which device it leaves, or why it does not.

`ip route get`: rules, tables, and (for a packet that arrives from elsewhere) reverse-path filter
and forwarding are all the kernel's; nothing is worked out here.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from forwarder.fib.routes import IPAddress

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_RTN_LOCAL = 2
_IPV6_FORWARDING = Path("/proc/sys/net/ipv6/conf/all/forwarding")
_NO_WAY_BACK = (
    "the reverse-path filter (rp_filter) drops it, because the way back to its source is another; "
    "or a blackhole route does"
)
_REFUSALS = {
    errno.ENETUNREACH: "this host has no route to it",
    errno.EACCES: "a route of this host prohibits it",
    errno.EINVAL: "a blackhole route of this host drops it",
}


@dataclass(frozen=True)
class Decision:
    """What the kernel does with a packet."""

    device: str | None = None
    """The device it leaves by; None: by none."""
    gateway: str | None = None
    """The next router; None: there is none between."""
    is_local: bool = False
    """Whether it is for this host itself."""
    refusal: str | None = None
    """Why it goes nowhere."""

    def __str__(self) -> str:
        if self.refusal is not None:
            return self.refusal
        if self.is_local:
            return "for this host itself"
        return f"by {self.device}" + (f" via {self.gateway}" if self.gateway else "")


def decide(
    destination: IPAddress, source: IPAddress | None = None, arriving_by: str | None = None
) -> Decision:
    """Asks the kernel about a packet to `destination`.

    Without `arriving_by` it is the host's own; with it, one from `source` that comes in by that
    device and has to be forwarded.
    """
    query = {"family": _FAMILY[destination.version], "dst": str(destination)}
    if source is not None:
        query["src"] = str(source)
    with IPRoute() as netlink:
        try:
            if arriving_by is not None:
                (query["iif"],) = netlink.link_lookup(ifname=arriving_by)
            (route,) = netlink.route("get", **query)
        except ValueError:
            return Decision(refusal=f"there is no device {arriving_by}")
        except NetlinkError as error:
            return Decision(refusal=_refusal(error.code, arriving_by is not None))
        if route["type"] == _RTN_LOCAL:
            return Decision(is_local=True)
        if arriving_by is not None and destination.version == 6 and not _forwards_ipv6():
            return Decision(refusal="it is not forwarded: net.ipv6.conf.all.forwarding is 0")
        (link,) = netlink.get_links(route.get_attr("RTA_OIF"))
        return Decision(link.get_attr("IFLA_IFNAME"), route.get_attr("RTA_GATEWAY"))


def _refusal(code: int, is_forwarded: bool) -> str:
    if is_forwarded and code == errno.EHOSTUNREACH:
        return "it is not forwarded: net.ipv4.ip_forward is 0, or a route makes it unreachable"
    if is_forwarded and code in (errno.EXDEV, errno.EINVAL):  # by the kernel's version
        return _NO_WAY_BACK
    return _REFUSALS.get(code, os.strerror(code))


def _forwards_ipv6() -> bool:
    """`ip route get` does not tell, for IPv6."""
    return _IPV6_FORWARDING.read_text().strip() != "0"
