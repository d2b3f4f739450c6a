"""What flannel's CNI plugin makes of subnet.env, by its documentation and no more tolerant.

It reads NAME=VALUE lines, does not strip anything, and delegates to the bridge plugin. `delegate`
here is as kube-flannel configures it.
"""

from __future__ import annotations

from ipaddress import ip_interface
from typing import Any

NETWORKS = ("FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK")
SUBNETS = ("FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET")


def delegated_list(text: str, name: str) -> dict[str, Any]:
    """The bridge plugin's configuration, as a list of one. Raises ValueError, KeyError."""
    values = dict(line.split("=", 1) for line in text.split("\n") if line)
    networks = [ip_interface(values[key]).network for key in NETWORKS if key in values]
    subnets = [ip_interface(values[key]).network for key in SUBNETS if key in values]
    if not networks or not subnets:
        raise ValueError("networks or subnets are missing")
    delegate = {
        "type": "bridge",
        "hairpinMode": True,
        "isDefaultGateway": True,
        "isGateway": True,
        "ipMasq": values["FLANNEL_IPMASQ"] != "true",
        "mtu": int(values["FLANNEL_MTU"]),
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": str(subnet)}] for subnet in subnets],
            "routes": [{"dst": str(network)} for network in networks],
        },
    }
    return {"cniVersion": "0.3.1", "name": name, "plugins": [delegate]}
