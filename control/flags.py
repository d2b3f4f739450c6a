"""Command-line flags: flanneld's, with its meaning, defaults and environment, and loden's own.

flanneld takes `-flag value`, `--flag=value` and, for switches, `--flag=true`; so do we.  How flags
are declared and where else their values come from: forwarder/flags.py, config_file.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import click

from control import config_file
from control.acquire import DEFAULT_TTL_S
from control.etcd_config import DEFAULT_ENDPOINTS, DEFAULT_PREFIX, EtcdConfig, EtcdConfigError
from control.options import (
    DEFAULT_DEVICE,
    DEFAULT_RUN_DIR,
    DEFAULT_STATE_DIR,
    ControlOptions,
)
from control.subnet_env import DEFAULT_PATH
from forwarder.flags import (
    FILE,
    FORWARDER_OPTIONS,
    LOG_OPTIONS,
    Command,
    Flag,
    FlagCommand,
    note_problem,
    option,
    source_of,
    with_options,
)


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


_ETCD, _UNDERLAY, _NODE = "etcd", "Underlay: the network between the hosts", "This node"
_FIREWALL, _HEALTH, _FILES = "Firewall and Docker", "Health and metrics", "Files"
_EMBEDDED = "A private etcd on this host"


def read_config_file(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Has the other flags take their defaults from the file; notes what is wrong with it."""
    path = value or (config_file.DEFAULT_FILE if config_file.DEFAULT_FILE.exists() else None)
    if path is None or ctx.resilient_parsing:
        return
    ctx.default_map, problems = config_file.read(path, run_flags())
    ctx.meta[FILE] = path
    for problem in problems:
        note_problem(ctx, problem)


config_option = option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=read_config_file,
    is_eager=True,
    expose_value=False,
    show_default=f"{config_file.DEFAULT_FILE}, if there is one",
    heading=_FILES,
    help="TOML; its keys are the flags of 'loden run' without their dashes.",
)
_run_dir_option = option(
    "--run-dir",
    type=click.Path(path_type=Path),
    default=DEFAULT_RUN_DIR,
    heading=_FILES,
    help="Sockets of this node; one run dir per node of a machine.",
)


def run_dir_option(command: Command) -> Command:
    """For commands that ask a node: its run dir, said in its configuration file or here."""
    return config_option(_run_dir_option(command))


CONFIG_OPTIONS = (config_option,)

ETCD_OPTIONS = (
    option(
        "--etcd-endpoints",
        default=",".join(DEFAULT_ENDPOINTS),
        heading=_ETCD,
        help="URLs of the etcd members, separated by commas.",
    ),
    option(
        "--etcd-prefix",
        default=DEFAULT_PREFIX,
        heading=_ETCD,
        help="Key below which the network lives.",
    ),
    option("--etcd-keyfile", heading=_ETCD, help="Private key for TLS (PEM)."),
    option("--etcd-certfile", heading=_ETCD, help="Client certificate for TLS (PEM)."),
    option("--etcd-cafile", heading=_ETCD, help="Authorities that sign etcd's certificates (PEM)."),
    option("--etcd-username", heading=_ETCD, help="etcd user."),
    option(
        "--etcd-password",
        heading=_ETCD,
        help="The user's password; better given in the environment.",
    ),
)

NODE_OPTIONS = (
    option(
        "--iface",
        multiple=True,
        heading=_UNDERLAY,
        help="Underlay interface, name or address; repeatable.",
    ),
    option(
        "--iface-regex",
        multiple=True,
        heading=_UNDERLAY,
        help="Likewise, as a regular expression; repeatable.",
    ),
    address_option(
        "--iface-can-reach", heading=_UNDERLAY, help="The interface that reaches this address."
    ),
    address_option(
        "--public-ip", version=4, heading=_UNDERLAY, help="Address the other nodes send to."
    ),
    address_option("--public-ipv6", version=6, heading=_UNDERLAY, help="Likewise, for IPv6."),
    option(
        "--subnet-file",
        type=click.Path(path_type=Path, dir_okay=False),
        default=DEFAULT_PATH,
        heading=_FILES,
        help="Written when packets can flow: this node's subnet and MTU.",
    ),
    option(
        "--subnet-lease-renew-margin",
        type=click.IntRange(1, 24 * 60),
        default=60,
        metavar="MINUTES",
        heading=_NODE,
        help="Renew the lease this long before its end, or earlier.",
    ),
    option(
        "--lease-ttl",
        type=click.IntRange(min=10),
        default=DEFAULT_TTL_S,
        metavar="SECONDS",
        heading=_NODE,
        help="How long the subnet stays ours when this node is silent.",
    ),
    option(
        "--ip-masq/--no-ip-masq",
        default=False,
        heading=_FIREWALL,
        help="Masquerade what leaves the cluster.",
    ),
    option(
        "--iptables-forward-rules/--no-iptables-forward-rules",
        default=True,
        heading=_FIREWALL,
        help="Have the firewall accept what is forwarded from and to the cluster: in nftables, "
        "and in iptables where it is in use.",
    ),
    option(
        "--docker/--no-docker",
        default=False,
        heading=_FIREWALL,
        help="Keep Docker's options in docker_opts.env beside the subnet file, and have systemd "
        "restart Docker when they change.",
    ),
    option(
        "--healthz-ip", default="0.0.0.0", heading=_HEALTH, help="Address of the health server."
    ),
    option(
        "--healthz-port",
        type=click.IntRange(0, 65535),
        default=0,
        heading=_HEALTH,
        help="Its port (/healthz, /readyz, /metrics); 0: none.",
    ),
    option(
        "--metrics-peers/--no-metrics-peers",
        default=True,
        heading=_HEALTH,
        help="Have /metrics tell of every peer: four series for each.",
    ),
    _run_dir_option,
    option(
        "--state-dir",
        type=click.Path(path_type=Path, file_okay=False),
        default=DEFAULT_STATE_DIR,
        heading=_FILES,
        help="What outlives a reboot: this node's MAC and the last good routes.",
    ),
    option(
        "--device",
        default=DEFAULT_DEVICE,
        callback=check_device_name,
        heading=_NODE,
        help="Name of the overlay device.",
    ),
    option(
        "--source-ports",
        type=click.IntRange(1, 64),
        default=8,
        heading=_UNDERLAY,
        help="UDP source ports that flows are spread over.",
    ),
)

EMBEDDED_ETCD_OPTIONS = (
    option(
        "--embedded-etcd/--no-embedded-etcd",
        default=False,
        heading=_EMBEDDED,
        help="Start a private etcd on this host, data under the state dir; the first node needs "
        "nothing else.",
    ),
    address_option(
        "--embedded-etcd-listen",
        heading=_EMBEDDED,
        help="Serve other nodes on this address too (plain HTTP: on a trusted network only).",
    ),
    option(
        "--etcd-binary", heading=_EMBEDDED, show_default="that on PATH", help="The etcd to start."
    ),
)


VERBOSITY_OPTIONS = (
    option(
        "--v",
        type=int,
        default=0,
        metavar="N",
        heading="Logs",
        help="flannel's way: above 0 means --log-level debug.",
    ),
)

RUN_OPTIONS = (
    CONFIG_OPTIONS,
    ETCD_OPTIONS,
    NODE_OPTIONS,
    FORWARDER_OPTIONS,
    EMBEDDED_ETCD_OPTIONS,
    LOG_OPTIONS,
    VERBOSITY_OPTIONS,
)
CONTROL_OPTIONS = (CONFIG_OPTIONS, ETCD_OPTIONS, NODE_OPTIONS, LOG_OPTIONS, VERBOSITY_OPTIONS)


def run_flags() -> list[Flag]:
    """Those that a configuration file can set: all of `loden run`'s but the file itself."""
    command = click.command()(with_options(*RUN_OPTIONS)(lambda: None))
    return [flag for flag in command.params if isinstance(flag, Flag) and not flag.is_eager]


def log_level(values: dict[str, Any]) -> str:
    """One of forwarder.logs.LEVELS."""
    return "debug" if values["v"] > 0 else str(values["log_level"])


class NodeCommand(FlagCommand):
    """A command that takes its flags as flanneld does, too."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, as_flanneld_writes(args, self))

    def check_together(self, ctx: click.Context) -> None:
        if "etcd_endpoints" not in ctx.params:
            return
        try:
            etcd_config(dict(ctx.params))
        except EtcdConfigError as error:
            flags = {flag.name: flag for flag in self.params if isinstance(flag, Flag)}
            for one in (error, *error.others):
                name = "etcd_endpoints" if one.field == "endpoint" else f"etcd_{one.field}"
                note_problem(ctx, f"{source_of(ctx, flags[name])}: {one}")


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
