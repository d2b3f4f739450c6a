"""`python -m perf between`: the same measures between two machines that are there already.

The agents and iperf3 are started at either end by a command that leads there, and spoken to over
its standard input and output:

    this machine                                            another one
    ┌───────────────────────────┐   ssh far   ┌────────────────────────────┐
    │ perf between ─────────────┼─────────────┼─> perf.agent, iperf3 -s -1 │
    │    └─> perf.agent, iperf3 ┼─ measured ──┼─>                          │
    └───────────────────────────┘             └────────────────────────────┘

Whoever calls it has set up what is measured: each contender is an address of the far end.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import click

from perf.agent_client import AgentClient
from perf.measure import Effort, Measure, Scene
from perf.namespace import Output, end_process, run_command
from perf.pair import Pair
from perf.pair_catalogue import OFFLOADS
from perf.running import measure_and_report, only_option, output_option, quick_option, repeat_option
from perf.traffic import MeasurementError, ping

STOP_S = 5.0
AGENT_MODULE, MACHINE_MODULE = "perf.agent", "perf.machine"
MEASURES = tuple(measure for measure in OFFLOADS.measures if not measure.name.startswith("cpu-"))
"""What CPUs did is only known of one machine."""


@dataclass(frozen=True)
class Reached:
    """A place that a command leads to, such as `ssh far` or `ip netns exec pod`."""

    name: str
    leading: tuple[str, ...]
    """Goes before every command; nothing: they run here."""
    address: IPv4Address | IPv6Address

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str | Path | None = None,
        timeout_s: float = 30.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """`cwd` is here, wherever the command is."""
        return run_command([*self.leading, *argv], cwd=cwd, timeout_s=timeout_s, check=check)

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: Output = subprocess.DEVNULL,
        stderr: Output = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """As `run`.  In a session of its own: Ctrl-C does not reach it."""
        return subprocess.Popen(
            [*self.leading, *argv],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )


@contextlib.contextmanager
def pair_between(near: Reached, far: Reached, far_python: str) -> Iterator[Pair]:
    """Raises MeasurementError, AgentError, CommandError."""
    with contextlib.ExitStack() as leaving:
        directory = Path(leaving.enter_context(tempfile.TemporaryDirectory(prefix="loden-bench-")))
        if ping(near, far.address, count=3).received == 0:
            raise MeasurementError(f"no ping gets through to {far.address}")
        agents = [
            leaving.enter_context(started_agent(end, directory / log_name, python))
            for end, log_name, python in (
                (near, "near.log", sys.executable),
                (far, "far.log", far_python),
            )
        ]
        for agent in agents:
            agent.wait_until_ready()
        told = far.run([far_python, "-m", MACHINE_MODULE]).stdout
        facts = {"far machine": json.loads(told.splitlines()[-1])}
        yield Pair(near, far, directory, facts=facts, started_agents=agents)


@contextlib.contextmanager
def started_agent(end: Reached, log_path: Path, python: str) -> Iterator[AgentClient]:
    """It ends with its input, wherever it is."""
    agent = AgentClient(end, log_path, [python, "-m", AGENT_MODULE])
    try:
        yield agent
    finally:
        agent.close()
        try:
            agent.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            end_process(agent.process.pid, STOP_S)
            agent.process.wait()


def named_addresses(
    context: click.Context, option: click.Parameter, values: tuple[str, ...]
) -> dict[str, IPv4Address | IPv6Address]:
    """NAME=ADDRESS, by name.  Raises BadParameter."""
    addresses = {}
    for value in values:
        name, equals, address = value.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"'{value}' is not NAME=ADDRESS, such as loden=10.5.11.1")
        try:
            addresses[name] = ip_address(address)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error
    return addresses


@click.command("between")
@click.option(
    "--to",
    "addresses",
    metavar="NAME=ADDRESS",
    multiple=True,
    required=True,
    callback=named_addresses,
    help="A contender, and the address of the far end that it leads to; repeatable.",
)
@click.option(
    "--far",
    metavar="COMMAND",
    required=True,
    help="What runs a command at the far end, such as 'ssh root@far'.",
)
@click.option(
    "--far-python",
    metavar="PATH",
    default=sys.executable,
    help="The Python there that has loden.  [this one's path]",
)
@click.option(
    "--near",
    metavar="COMMAND",
    default="",
    help="What runs a command at the near end, such as 'ip netns exec pod'.  [nothing: here]",
)
@only_option(MEASURES)
@quick_option
@repeat_option
@output_option
def command(
    addresses: dict[str, IPv4Address | IPv6Address],
    far: str,
    far_python: str,
    near: str,
    only: tuple[str, ...],
    quick: bool,
    repeat: int | None,
    output: Path | None,
) -> None:
    """Measure between two machines, which are set up already.

    Takes the measures of two pods from this machine to another one, which needs loden and iperf3,
    too, and a command that leads there, as root.  Each contender is another address of it:

    \b
      python -m perf between --far 'ssh root@192.168.1.11' \\
          --far-python /opt/loden/.venv/bin/python \\
          --to bare=192.168.1.11 --to loden=10.5.11.1
    """
    near_leading, far_leading = tuple(shlex.split(near)), tuple(shlex.split(far))

    def build(name: str) -> Callable[[Effort], AbstractContextManager[Pair]]:
        there = Reached("the far end", far_leading, addresses[name])
        here = Reached("the near end", near_leading, addresses[name])
        return lambda effort: pair_between(here, there, far_python)

    scene = Scene[Pair](
        "between",
        "between two machines",
        {name: build(name) for name in addresses},
        tuple(measure_between(measure, tuple(addresses)) for measure in MEASURES),
        build_s=lambda effort: 5.0 * len(addresses),
    )
    scene = scene.quickened(tuple(addresses)) if quick and not only else scene.narrowed(only, ())
    contenders = {name: f"by way of {address}" for name, address in addresses.items()}
    measure_and_report([scene], contenders, quick=quick, repeat=repeat, output=output)


def measure_between(measure: Measure[Pair], names: tuple[str, ...]) -> Measure[Pair]:
    """For these contenders, with ratios to the first of them; without targets."""
    return replace(measure, contenders=names, reference=names[0], targets=())
