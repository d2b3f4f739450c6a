"""Notices from the kernel that something of the host has changed, whoever did it.

They say no more than that: netlink drops notices when they come too fast, so the only safe answer
is to look at all again.
"""

from __future__ import annotations

import errno
import select
import socket

from pyroute2.netlink.rtnl import (
    RTMGRP_IPV4_IFADDR,
    RTMGRP_IPV4_ROUTE,
    RTMGRP_IPV6_IFADDR,
    RTMGRP_IPV6_ROUTE,
    RTMGRP_LINK,
)

# linux/netlink.h, linux/netfilter/nfnetlink.h: groups are bits, counted from 1.
_NETLINK_NETFILTER = 12
_NFNLGRP_NFTABLES = 1 << (7 - 1)


class HostChanges:
    """Of links, addresses and routes, in the network namespace this object was made in.

    `fileno()` goes into a poll beside other things.
    """

    PROTOCOL = socket.NETLINK_ROUTE
    GROUPS = (
        RTMGRP_LINK
        | RTMGRP_IPV4_IFADDR
        | RTMGRP_IPV6_IFADDR
        | RTMGRP_IPV4_ROUTE
        | RTMGRP_IPV6_ROUTE
    )

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            self.PROTOCOL,
        )
        self._socket.bind((0, self.GROUPS))

    def fileno(self) -> int:
        return self._socket.fileno()

    def wait(self, timeout_s: float) -> bool:
        """Whether something changed since the last call, or does so within `timeout_s`."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000)) and self.drain()

    def drain(self) -> bool:
        """Take all notices that are waiting; whether there were any. Does not block."""
        changed = False
        while True:
            try:
                self._socket.recv(65_536)
                changed = True
            except BlockingIOError:
                return changed
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                changed = True  # notices were lost: that is news as well

    def close(self) -> None:
        self._socket.close()


class FirewallChanges(HostChanges):
    """Of nftables' rules, iptables' among them unless they are of the older kind."""

    PROTOCOL = _NETLINK_NETFILTER
    GROUPS = _NFNLGRP_NFTABLES
