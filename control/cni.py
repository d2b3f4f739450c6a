"""A CNI configuration from subnet.env: `loden cni-conf`, for containerd, CRI-O and podman.

    bridge       the pod's interface, on a bridge with the subnet's first address, as docker0
      host-local   its address, from this node's subnet
    portmap      ports of the host that lead to the pod, if the runtime asks for any

It says what flannel's own plugin would say to these, so that this plugin is not needed.
https://www.cni.dev/docs/spec/, and /plugins/current/ there for each plugin's fields.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import click

from control.flags import check_device_name
from control.from_subnet_env import made_from, subnet_file_option, write_output
from control.subnet_env import SubnetEnv, SubnetEnvError

CNI_VERSION = "0.4.0"
"""Of the specification: what runtimes and plugins from 2019 on understand."""
DEFAULT_NAME = "loden"
DEFAULT_BRIDGE = "cni0"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def network_config_list(
    contents: SubnetEnv, name: str = DEFAULT_NAME, bridge: str = DEFAULT_BRIDGE
) -> dict[str, Any]:
    """The configuration as CNI wants it in a `.conflist`, an address range per family.

    The plugins masquerade exactly if we do not. Raises SubnetEnvError if pods cannot be given
    addresses from these contents.
    """
    interfaces = (contents.subnet, contents.ipv6_subnet)
    subnets = [interface.network for interface in interfaces if interface is not None]
    if not subnets:
        raise SubnetEnvError("subnet.env: FLANNEL_SUBNET and FLANNEL_IPV6_SUBNET are missing")
    if contents.mtu_bytes <= 0:
        raise SubnetEnvError("subnet.env: FLANNEL_MTU is missing or not above 0")
    bridge_plugin = {
        "type": "bridge",
        "bridge": bridge,
        "mtu": contents.mtu_bytes,
        "isDefaultGateway": True,
        "ipMasq": not contents.ip_masq,
        "hairpinMode": True,  # a pod may reach itself by a service's address
        "ipam": {"type": "host-local", "ranges": [[{"subnet": str(one)}] for one in subnets]},
    }
    portmap_plugin = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": CNI_VERSION, "name": name, "plugins": [bridge_plugin, portmap_plugin]}


def _check_name(context: click.Context, parameter: click.Parameter, name: str) -> str:
    if not _NAME.fullmatch(name):
        allowed = "letters, digits and _.-, a letter or digit first"
        raise click.BadParameter(f"'{name}', allowed: {allowed}")
    return name


@click.command("cni-conf")
@subnet_file_option
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, allow_dash=True),
    default="-",
    help="Where to write it, at one stroke.  [default: standard output]",
)
@click.option(
    "--name", callback=_check_name, default=DEFAULT_NAME, show_default=True, help="The network's."
)
@click.option(
    "--bridge",
    callback=check_device_name,
    default=DEFAULT_BRIDGE,
    show_default=True,
    help="The pods' bridge, which the first pod makes.",
)
def cni_conf_command(subnet_file: Path, output: Path, name: str, bridge: str) -> None:
    """Turn subnet.env into a CNI configuration, for containerd, CRI-O or podman.

    These read it from /etc/cni/net.d, the first file there by its name:

    loden cni-conf -o /etc/cni/net.d/10-loden.conflist

    It asks for the CNI project's plugins bridge, host-local and portmap (Debian:
    containernetworking-plugins).  Where flannel's own plugin is configured already, nothing of
    this is needed: it reads subnet.env as it is.
    """
    config = made_from(subnet_file, lambda contents: network_config_list(contents, name, bridge))
    text = json.dumps(config, indent=2) + "\n"
    if str(output) == "-":
        click.echo(text, nl=False)
    else:
        write_output(output, text)
