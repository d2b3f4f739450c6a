"""The command `loden forwarder`: the data path alone, told what to do over its socket."""

import logging
import os
import sys

import click

from forwarder.config import ConfigError, ForwarderOptions

EXIT_USAGE = 2
EXIT_FAILURE = 1


def parse_cpus(text: str) -> tuple[int, ...]:
    """A list as taskset takes it: "0,2-5".  Raises ConfigError."""
    cpus: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise ConfigError(f"cpus: {text!r} is no list of CPUs such as '0,2-5'")
        cpus.extend(range(int(first), int(last or first) + 1))
    if not cpus or len(set(cpus)) != len(cpus):
        raise ConfigError(f"cpus: {text!r} names no CPU, or one twice")
    return tuple(cpus)


def choose_cpus(cpus: str | None, workers: int | None) -> tuple[int, ...]:
    """The CPUs that get a worker: those named, else the first `workers` usable, else all usable."""
    usable = sorted(os.sched_getaffinity(0))
    if cpus is not None:
        return parse_cpus(cpus)
    if workers is not None and not 1 <= workers <= len(usable):
        raise ConfigError(f"workers: {workers} is not allowed; allowed: 1 to {len(usable)}")
    return tuple(usable[:workers])


@click.command("forwarder")
@click.option(
    "--run-dir", default="/run/loden", show_default=True, help="Where the api's socket is."
)
@click.option("--cpus", metavar="LIST", help="CPUs to pin a worker to, such as 0,2-5.")
@click.option("--workers", type=int, help="Number of workers, when --cpus is not given.  [all]")
@click.option("--user", default="nobody", show_default=True, help="Whom the workers become.")
@click.option("--tso/--no-tso", default=True, help="Take TCP superpackets from the device.")
@click.option("--uso/--no-uso", default=True, help="Take UDP superpackets from the device.")
@click.option("--coalesce/--no-coalesce", default=True, help="Deliver many packets in one write.")
@click.option("--udp-gso/--no-udp-gso", default=True, help="Send many datagrams per message.")
@click.option("--udp-gro/--no-udp-gro", default=True, help="Receive many datagrams per message.")
@click.option("--tunnel-gso/--no-tunnel-gso", default=True, help="Have the NIC cut superpackets.")
@click.option("--dscp", default="0", show_default=True, help="DSCP of outer packets, or copy.")
@click.option(
    "--busy-poll-turns",
    type=click.IntRange(0, 1_000_000),
    default=0,
    show_default=True,
    help="Empty turns of a worker before it blocks: less latency for more CPU.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log more.")
def command(
    run_dir: str,
    cpus: str | None,
    workers: int | None,
    user: str,
    tso: bool,
    uso: bool,
    coalesce: bool,
    udp_gso: bool,
    udp_gro: bool,
    tunnel_gso: bool,
    dscp: str,
    busy_poll_turns: int,
    verbose: bool,
) -> None:
    """Run the data path alone.

    It needs no etcd: it opens its socket in the run dir and waits to be told the tunnel's
    parameters and routes (msgpack messages, see forwarder/api.py).  `loden run` starts it
    together with `loden control`, which does that.
    """
    from forwarder import supervisor  # NumPy and Numba are slow to import: not for --help
    from forwarder.rpc import RpcError

    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.INFO,
        format="%(levelname)s %(name)s: %(message)s",
    )
    try:
        options = ForwarderOptions(
            run_dir=run_dir,
            cpus=choose_cpus(cpus, workers),
            user=user,
            tso=tso,
            uso=uso,
            coalesce=coalesce,
            udp_gso=udp_gso,
            udp_gro=udp_gro,
            tunnel_gso=tunnel_gso,
            dscp=dscp,
            busy_poll_turns=busy_poll_turns,
        )
        supervisor.Supervisor(options).run()
    except ConfigError as error:
        click.echo(f"loden forwarder: {error}", err=True)
        sys.exit(EXIT_USAGE)
    except (RpcError, OSError) as error:
        click.echo(f"loden forwarder: {error}", err=True)
        sys.exit(EXIT_FAILURE)


if __name__ == "__main__":
    command()
