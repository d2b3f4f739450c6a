"""The command `loden`: every command's flags, and what it runs."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from importlib import metadata
from typing import Any

import click

from control.exits import (
    EXIT_FAILURE,
    EXIT_FINAL,
    EXIT_RESTART,
    EXIT_USAGE,
    ControlError,
    RestartWanted,
    fail,
    in_words,
)
from control.flags import (
    CONFIG_OPTIONS,
    CONTROL_OPTIONS,
    ETCD_OPTIONS,
    RUN_OPTIONS,
    NodeCommand,
    control_options,
    etcd_config,
    log_level,
    to_arguments,
)
from forwarder import capabilities, logs
from forwarder.capabilities import Capability
from forwarder.flags import HELP, with_options

LAZY_COMMANDS = {
    "config": "control.config_commands:config_command",
    "capture": "control.capture:capture_command",
    "forwarder": "forwarder.__main__:command",
    "cni-conf": "control.cni:cni_conf_command",
    "demo": "perf.demo:command",
    "doctor": "control.doctor.command:doctor_command",
    "docker-opts": "control.docker:docker_opts_command",
    "lookup": "control.lookup:lookup_command",
    "route": "control.route_commands:route_command",
    "routes": "control.routes_screen:routes_command",
    "status": "control.status_screen:status_command",
    "top": "control.top:top_command",
}
"""Commands of other modules, imported when they are asked for: NumPy and the like are slow."""


class Commands(click.Group):
    """The group of all commands, some of them lazy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *LAZY_COMMANDS})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in LAZY_COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = LAZY_COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command


@click.group(cls=Commands, context_settings=HELP)
@click.version_option(metadata.version("loden"), prog_name="loden")
def main() -> None:
    """A user-space VXLAN overlay: containers on different hosts reach each other.

    The first node:  loden run --embedded-etcd   and   loden init --network 10.5.0.0/16

    Where there is an etcd:  loden run --etcd-endpoints http://10.0.0.5:2379

    As a service:  loden config sample > /etc/loden/loden.toml   and   loden config check

    flanneld's flags and FLANNELD_* environment mean the same here.
    """


RUN_EXAMPLES = """\b
Examples:
  loden run --etcd-endpoints http://10.0.0.5:2379,http://10.0.0.6:2379
  loden run --iface eth1 --ip-masq --healthz-port 8471
  loden run --config ./node.toml --log-level debug
  FLANNELD_ETCD_PASSWORD=... loden run --etcd-username loden \\
      --etcd-endpoints https://10.0.0.5:2379 --etcd-cafile /etc/loden/ca.pem

\b
Exit status: 0 after SIGTERM or SIGINT, 2 for a value that cannot be, 3 when starting again cannot
help before somebody mends the cause, 1 otherwise.
"""


@main.command("run", cls=NodeCommand, context_settings=HELP, epilog=RUN_EXAMPLES)
@with_options(*RUN_OPTIONS)
def run_command(**values: Any) -> None:
    """Run a node: the data path and the control process.

    Each value is taken from the command line, else from the environment, else from the
    configuration file; 'loden config check' shows what comes of it.

    Obtains the node's subnet from etcd, sets up the overlay device, writes the subnet file when
    packets can flow, and follows the routes of the other nodes.  SIGTERM ends it; the subnet
    stays this node's, and a restart gets it again.
    """
    from control import run
    from control.embedded_etcd import EmbeddedEtcd, EmbeddedEtcdError

    values["log_level"] = log_level(values)
    logs.start(values["log_level"])
    require_net_admin("run")
    etcd = None
    if values["embedded_etcd"]:
        listen = values["embedded_etcd_listen"]
        etcd = EmbeddedEtcd(
            values["state_dir"] / "etcd",
            binary=values["etcd_binary"],
            client_port=2379,
            peer_port=2380,
            listen_address=str(listen) if listen else None,
        )
        values["etcd_endpoints"] = "http://127.0.0.1:2379"
    if values["etcd_password"]:
        os.environ["FLANNELD_ETCD_PASSWORD"] = values["etcd_password"]
    forwarder = main.get_command(click.Context(main), "forwarder")
    assert forwarder is not None
    node = run.Run(
        values["run_dir"],
        run.forwarder_command(to_arguments(forwarder, values)),
        run.control_command(to_arguments(control_command, values)),
        etcd,
    )
    try:
        sys.exit(node.run())
    except run.RunDirError as error:
        fail("run", error, EXIT_FINAL)
    except EmbeddedEtcdError as error:
        fail("run", error, EXIT_FAILURE if error.retryable else EXIT_FINAL)
    except OSError as error:
        fail("run", in_words(error))


@main.command(
    "control",
    cls=NodeCommand,
    context_settings=HELP,
    epilog="Example:  loden control --run-dir /run/loden-test --etcd-prefix /test/network",
)
@with_options(*CONTROL_OPTIONS)
def control_command(**values: Any) -> None:
    """Run the control process alone: etcd in, routes and devices out.

    It needs a forwarder in the same run dir ('loden forwarder'), which 'loden run' starts too.
    It gives up every capability but CAP_NET_ADMIN before it speaks to anybody.
    """
    from control import privileges
    from control.daemon import Daemon
    from control.health import HealthServerError
    from control.state import StateError
    from forwarder.rpc import RpcError

    logs.start(log_level(values))
    require_net_admin("control")
    options = control_options(values)
    capabilities.keep_only(privileges.needed(options))
    try:
        Daemon(options).run()
    except RestartWanted as reason:
        logging.getLogger(__name__).warning("%s: starting anew", reason)
        sys.exit(EXIT_RESTART)
    except (ControlError, RpcError, HealthServerError, StateError) as error:
        fail("control", error, EXIT_FINAL)


@main.command("init", cls=NodeCommand, context_settings=HELP)
@with_options(CONFIG_OPTIONS, ETCD_OPTIONS)
@click.option("--network", required=True, metavar="CIDR", help="The pods' network.")
@click.option("--subnet-len", type=int, metavar="BITS", help="Prefix length of a node's subnet.")
@click.option("--vni", type=int, default=1, show_default=True, help="VXLAN network identifier.")
@click.option("--port", type=int, default=8472, show_default=True, help="UDP port of VXLAN.")
@click.option("--force", is_flag=True, help="Replace a different config that is there already.")
def init_command(
    network: str, subnet_len: int | None, vni: int, port: int, force: bool, **values: Any
) -> None:
    """Write the network config to etcd, once for all nodes.

    Refuses to replace a different config, under which nodes may hold subnets, without --force.
    """
    from control.etcd import EtcdClient
    from control.etcd_types import EtcdError
    from control.lease import config_key
    from control.network_config import NetworkConfig, NetworkConfigError

    try:
        config = NetworkConfig.build(network, subnet_len, vni, port)
        client = EtcdClient(etcd_config(values))
    except NetworkConfigError as error:
        fail("init", error, EXIT_USAGE)
    key = config_key(client.config.prefix)
    try:
        entry = client.get(key)
        if entry is None:
            written = client.create_if_absent(key, config.to_json()) is not None
        elif same_config(entry.value, config):
            click.echo(f"{key} says so already")
            return
        elif force:
            revision = entry.mod_revision
            written = client.compare_and_put(key, config.to_json(), revision) is not None
        else:
            text = entry.value.decode(errors="replace")
            fail("init", f"{key} holds another config already (--force replaces it):\n{text}")
        if not written:
            fail("init", f"{key} was changed by someone else just now; look, and try again")
    except EtcdError as error:
        fail("init", error)
    finally:
        client.close()
    click.echo(f"{key} written")


def same_config(text: bytes, config: Any) -> bool:
    """Whether the text in etcd means the same config."""
    from control.network_config import NetworkConfig, NetworkConfigError

    try:
        return NetworkConfig.parse(text) == config
    except NetworkConfigError:
        return False


def require_net_admin(command: str) -> None:
    """Ends the command when links and routes cannot be changed."""
    if not capabilities.has(Capability.NET_ADMIN):
        fail(command, "no privilege to set up network devices: run as root", EXIT_FINAL)


if __name__ == "__main__":
    main()
