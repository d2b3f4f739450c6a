"""What the control process may do: capabilities(7), as few as this host allows.

Root without capabilities still owns the files of its state, and its sockets.  It keeps what changes
devices, addresses, routes and rules, and hands it to nft, and no more to anything it starts.
"""

from __future__ import annotations

import os
import shutil

from control.firewall_tools import DIRECTORIES
from control.options import ControlOptions
from forwarder.capabilities import Capability, to_read

PRIVILEGED_PORTS = 1024
LEGACY_IPTABLES = "xtables-legacy-multi"


def needed(options: ControlOptions) -> frozenset[Capability]:
    """CAP_NET_ADMIN, and what these options or this host's programs take besides."""
    etcd = options.etcd
    wanted = {Capability.NET_ADMIN, *to_read(etcd.keyfile, etcd.certfile, etcd.cafile)}
    if 0 < options.healthz_port < PRIVILEGED_PORTS:
        wanted.add(Capability.NET_BIND_SERVICE)
    if options.forward_rules and _iptables_is_legacy():
        wanted.add(Capability.NET_RAW)  # it speaks to the kernel through a raw socket
    return frozenset(wanted)


def _iptables_is_legacy() -> bool:
    path = shutil.which("iptables", path=f"{os.environ.get('PATH', os.defpath)}:{DIRECTORIES}")
    return path is not None and os.path.basename(os.path.realpath(path)) == LEGACY_IPTABLES
