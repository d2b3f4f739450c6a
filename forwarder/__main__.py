"""The command `loden forwarder`: the data path alone, told what to do over its socket."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import click

from forwarder import logs
from forwarder.cpus import choose_cpus
from forwarder.flags import FORWARDER_OPTIONS, HELP, LOG_OPTIONS, FlagCommand, option, with_options

EXIT_USAGE = 2
EXIT_FAILURE = 1


@click.command(
    "forwarder",
    cls=FlagCommand,
    context_settings=HELP,
    epilog="Example:  loden forwarder --run-dir /run/loden-test --cpus 2,3 --no-uso",
)
@option("--run-dir", default="/run/loden", heading="Files", help="Where its socket is made.")
@with_options(FORWARDER_OPTIONS, LOG_OPTIONS)
def command(cpus: str | None, workers: int | None, log_level: str, **values: Any) -> None:
    """Run the data path alone.

    It needs no etcd: it opens its socket in the run dir and waits to be told the tunnel's
    parameters and routes (msgpack messages, see forwarder/api.py).  'loden run' starts it
    together with 'loden control', which does that.

    It keeps the capabilities it needs for devices, sockets and workers.  The workers keep none.
    """
    from forwarder import supervisor  # NumPy and Numba are slow to import: not for --help
    from forwarder.config import ConfigError, ForwarderOptions
    from forwarder.rpc import RpcError

    logs.start(log_level)
    try:
        options = ForwarderOptions(cpus=choose_cpus(cpus, workers), **values)
        supervisor.Supervisor(options).run()
    except ConfigError as error:
        fail(error, EXIT_USAGE)
    except (RpcError, OSError) as error:
        fail(error, EXIT_FAILURE)


def fail(error: Exception, status: int) -> NoReturn:
    click.echo(logs.last_word(f"loden forwarder: {error}"), err=True)
    sys.exit(status)


if __name__ == "__main__":
    command(prog_name="loden forwarder")
