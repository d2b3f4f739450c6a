"""Command-line flags: flanneld's, with its meaning, defaults and environment, and loden's own.

flanneld takes `-flag value`, `--flag=value` and, for switches, `--flag=true`; so do we.
The environment form of every flag is FLANNELD_ + upper case, `-` as `_`; the command line wins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any, TypeVar

import click

from control.acquire import DEFAULT_TTL_S
from control.etcd_config import DEFAULT_ENDPOINTS, DEFAULT_PREFIX, EtcdConfig
from control.options import (
    DEFAULT_DEVICE,
    DEFAULT_RUN_DIR,
    DEFAULT_STATE_DIR,
    ControlOptions,
)
from control.subnet_env import DEFAULT_PATH
from forwarder.dscp import parse_dscp

Command = TypeVar("Command", bound=Callable[..., Any])


def option(*names: str, **settings: Any) -> Callable[[Command], Command]:
    """A flag with its environment form."""
    long = next(name for name in names if name.startswith("--")).split("/")[0]
    variable = "FLANNELD_" + long.removeprefix("--").upper().replace("-", "_")
    decorate: Callable[[Command], Command] = click.option(
        *names, envvar=variable, show_default=settings.pop("show_default", True), **settings
    )
    return decorate


def address_option(*names: str, version: int | None = None, **settings: Any) -> Any:
    """A flag that takes an IP address, of one version or of either."""

    def convert(
        ctx: click.Context, param: click.Parameter, value: str | None
    ) -> IPv4Address | IPv6Address | None:
        if value is None:
            return None
        try:
            address = ip_address(value)
        except ValueError:
            address = None
        if address is None or version not in (None, address.version):
            kind = f"IPv{version}" if version else "IP"
            raise click.BadParameter(f"{value!r} is no {kind} address", ctx, param)
        return address

    return option(*names, callback=convert, metavar="IP", **settings)


def check_device_name(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """The kernel's rule (dev_valid_name).  Raises click.BadParameter."""
    if not re.fullmatch(r"[^/:\s%]{1,15}", value) or value in (".", ".."):
        allowed = "1 to 15 characters without '/', ':', '%' or white space"
        raise click.BadParameter(f"{value!r} is not allowed; allowed: {allowed}", ctx, param)
    return value


def check_dscp(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """Passes on what names a DSCP.  Raises click.BadParameter."""
    try:
        parse_dscp(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from None
    return value


run_dir_option = option(
    "--run-dir",
    type=click.Path(path_type=Path),
    default=DEFAULT_RUN_DIR,
    help="Sockets of this node; one run dir per node of a machine.",
)
verbose_option = click.option("--verbose", is_flag=True, help="Log more.")

ETCD_OPTIONS = (
    option(
        "--etcd-endpoints",
        default=",".join(DEFAULT_ENDPOINTS),
        help="URLs of the etcd members, separated by commas.",
    ),
    option("--etcd-prefix", default=DEFAULT_PREFIX, help="Key below which the network lives."),
    option("--etcd-keyfile", help="Private key for TLS (PEM)."),
    option("--etcd-certfile", help="Client certificate for TLS (PEM)."),
    option("--etcd-cafile", help="Authorities that sign etcd's certificates (PEM)."),
    option("--etcd-username", help="etcd user."),
    option("--etcd-password", help="The user's password; better given in the environment."),
)

NODE_OPTIONS = (
    option("--iface", multiple=True, help="Underlay interface, name or address; repeatable."),
    option("--iface-regex", multiple=True, help="Likewise, as a regular expression; repeatable."),
    address_option("--iface-can-reach", help="The interface that reaches this address."),
    address_option("--public-ip", version=4, help="Address the other nodes send to."),
    address_option("--public-ipv6", version=6, help="Likewise, for IPv6."),
    option(
        "--subnet-file",
        type=click.Path(path_type=Path, dir_okay=False),
        default=DEFAULT_PATH,
        help="Written when packets can flow: this node's subnet and MTU.",
    ),
    option(
        "--subnet-lease-renew-margin",
        type=click.IntRange(1, 24 * 60),
        default=60,
        metavar="MINUTES",
        help="Renew the lease this long before its end, or earlier.",
    ),
    option(
        "--lease-ttl",
        type=click.IntRange(min=10),
        default=DEFAULT_TTL_S,
        metavar="SECONDS",
        help="How long the subnet stays ours when this node is silent.",
    ),
    option("--ip-masq/--no-ip-masq", default=False, help="Masquerade what leaves the cluster."),
    option(
        "--iptables-forward-rules/--no-iptables-forward-rules",
        default=True,
        help="Have the firewall accept what is forwarded from and to the cluster: in nftables, "
        "and in iptables where it is in use.",
    ),
    option(
        "--docker/--no-docker",
        default=False,
        help="Keep Docker's options in docker_opts.env beside the subnet file, and have systemd "
        "restart Docker when they change.",
    ),
    option("--healthz-ip", default="0.0.0.0", help="Address of the health server."),
    option(
        "--healthz-port",
        type=click.IntRange(0, 65535),
        default=0,
        help="Its port (/healthz, /readyz, /metrics); 0: none.",
    ),
    option(
        "--metrics-peers/--no-metrics-peers",
        default=True,
        help="Have /metrics tell of every peer: four series for each.",
    ),
    run_dir_option,
    option(
        "--state-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_STATE_DIR,
        help="What outlives a reboot: this node's MAC and the last good routes.",
    ),
    option(
        "--device",
        default=DEFAULT_DEVICE,
        callback=check_device_name,
        help="Name of the overlay device.",
    ),
    option(
        "--source-ports",
        type=click.IntRange(1, 64),
        default=8,
        help="UDP source ports that flows are spread over.",
    ),
    verbose_option,
)

FORWARDER_OPTIONS = (
    option("--cpus", metavar="LIST", help="CPUs to pin a worker to, such as 0,2-5."),
    option(
        "--workers",
        type=int,
        metavar="N",
        help="Number of workers, when --cpus is not given.  [default: one per CPU]",
    ),
    option("--user", default="nobody", help="Whom the workers become."),
    option("--tso/--no-tso", default=True, help="Take TCP superpackets from the device."),
    option("--uso/--no-uso", default=True, help="Take UDP superpackets from the device."),
    option("--coalesce/--no-coalesce", default=True, help="Deliver many packets in one write."),
    option("--udp-gso/--no-udp-gso", default=True, help="Send many datagrams per message."),
    option("--udp-gro/--no-udp-gro", default=True, help="Receive many datagrams per message."),
    option("--tunnel-gso/--no-tunnel-gso", default=True, help="Have the NIC cut superpackets."),
    option(
        "--steer-by-cpu/--no-steer-by-cpu",
        default=False,
        help="Give each worker what arrives on its CPU, for NICs that spread flows (RSS).",
    ),
    option(
        "--dscp",
        default="0",
        metavar="0-63|copy",
        callback=check_dscp,
        help="DSCP of outer packets, or copy: the inner packet's.",
    ),
    option(
        "--busy-poll-us",
        type=click.IntRange(0, 1_000_000),
        default=50,
        help="Where packets come more often than this many microseconds, a worker looks for so "
        "long before it blocks: less latency for more CPU; 0: it blocks at once.",
    ),
)

EMBEDDED_ETCD_OPTIONS = (
    option(
        "--embedded-etcd/--no-embedded-etcd",
        default=False,
        help="Start a private etcd on this host, data under the state dir; the first node needs "
        "nothing else.",
    ),
    address_option(
        "--embedded-etcd-listen",
        help="Serve other nodes on this address too (plain HTTP: on a trusted network only).",
    ),
    option("--etcd-binary", help="The etcd to start.  [default: the one on PATH]"),
)


def with_options(*groups: Sequence[Callable[..., Any]]) -> Callable[[Command], Command]:
    """Decorates a command with groups of options, shown in this order."""

    def decorate(command: Command) -> Command:
        for group in reversed(groups):
            for one in reversed(group):
                command = one(command)
        return command

    return decorate


def etcd_config(values: dict[str, Any]) -> EtcdConfig:
    """Takes the etcd flags out of `values`.  Raises EtcdConfigError."""
    urls = values.pop("etcd_endpoints").split(",")
    return EtcdConfig(
        urls=tuple(url.strip() for url in urls if url.strip()),
        **{
            name: values.pop(f"etcd_{name}")
            for name in ("prefix", "keyfile", "certfile", "cafile", "username", "password")
        },
    )


def control_options(values: dict[str, Any]) -> ControlOptions:
    """The control process's settings from the parsed flags.  Raises EtcdConfigError."""
    values = dict(values)
    return ControlOptions(
        etcd=etcd_config(values),
        ifaces=values["iface"],
        iface_regexes=values["iface_regex"],
        iface_can_reach=values["iface_can_reach"],
        public_ip=values["public_ip"],
        public_ipv6=values["public_ipv6"],
        subnet_file=values["subnet_file"],
        ip_masq=values["ip_masq"],
        forward_rules=values["iptables_forward_rules"],
        docker=values["docker"],
        lease_ttl_s=values["lease_ttl"],
        renew_margin_s=60.0 * values["subnet_lease_renew_margin"],
        healthz_ip=values["healthz_ip"],
        healthz_port=values["healthz_port"],
        metrics_peers=values["metrics_peers"],
        run_dir=values["run_dir"],
        state_dir=values["state_dir"],
        device=values["device"],
        lanes=values["source_ports"],
    )


def to_arguments(command: click.Command, values: dict[str, Any]) -> list[str]:
    """The arguments that give `command` the values it knows of `values`.

    Secrets are left out: they travel in the environment.
    """
    arguments: list[str] = []
    for parameter in command.params:
        value = values.get(parameter.name or "")
        if not isinstance(parameter, click.Option) or value is None or value == ():
            continue
        if parameter.name == "etcd_password":
            continue
        if parameter.is_flag:
            names = parameter.opts if value else parameter.secondary_opts
            arguments += names[:1]
            continue
        for one in value if parameter.multiple else (value,):
            arguments += [parameter.opts[0], str(one)]
    return arguments


def as_flanneld_writes(arguments: Sequence[str], command: click.Command) -> list[str]:
    """Arguments in Go's style made click's: one dash for two, `--switch=true` for `--switch`.

    Raises click.BadParameter for a switch that is neither true nor false.
    """
    flags = {
        name: parameter
        for parameter in command.params
        if isinstance(parameter, click.Option)
        for name in parameter.opts
    }
    converted: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("-") and not name.startswith("--") and f"-{name}" in flags:
            name = f"-{name}"
        known = flags.get(name)
        if known is None or not equals or not known.is_flag:
            converted.append(name + equals + value)
        elif value.lower() in ("true", "1", "t"):
            converted.append(name)
        elif value.lower() in ("false", "0", "f"):
            converted += known.secondary_opts[:1]  # without a form that says no: leave it out
        else:
            raise click.BadParameter(f"{name}: {value!r} is not allowed; allowed: true, false")
    return converted
