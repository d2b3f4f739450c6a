"""`loden demo`: two hosts and one overlay on this machine, shown and measured.

    ┌─ host0 ──────────────────────────┐            ┌─ host1 ──────────────────────────┐
    │  etcd   loden run                ├─ underlay ─┤  loden run                       │
    │  docker0 ── pod0                 │            │  docker0 ── pod0                 │
    └──────────────────────────────────┘            └──────────────────────────────────┘

Network namespaces stand in for the hosts; all the rest is what it would be on two machines.
Functions appear in the order of the show.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import click
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from control.embedded_etcd import EmbeddedEtcdError
from control.subnet_env import SubnetEnv
from perf.demo_tables import drop_table, figure_table, route_table, worker_table
from perf.namespace import CommandError, list_namespaces
from perf.nodes import Etcd, Node, NodeFailed, init_network, log_tail
from perf.topology import Pod, Topology, TopologyError, remove_topology
from perf.traffic import MeasurementError, measure_tcp, measure_udp, ping

NETWORK = "10.5.0.0/16"
KEPT_PREFIX = "loden-demo"
KEPT_DIR = Path("/run/loden-demo")
SMALL_PACKET_BYTES = 64
PACKAGE_OF = {"etcd": "etcd-server", "ip": "iproute2", "iperf3": "iperf3", "ping": "iputils-ping"}
"""The programs the demo runs, and Debian's packages that have them."""

FAILURES = (
    CommandError,
    EmbeddedEtcdError,
    MeasurementError,
    NodeFailed,
    TopologyError,
    OSError,
)


@click.command("demo")
@click.option("--keep", is_flag=True, help="Leave it all up, and print what to type.")
@click.option("--down", is_flag=True, help="Take down what --keep left up.")
@click.option(
    "--seconds",
    type=click.IntRange(1, 60),
    default=3,
    show_default=True,
    help="Length of each measurement.",
)
def command(keep: bool, down: bool, seconds: int) -> None:
    """Build two hosts on this machine, run loden on both, and measure between their pods.

    Hosts and pods are network namespaces, etcd is a private one; the machine's own network is
    not touched, and nothing is left behind.  Needs root.
    """
    if keep and down:
        raise click.UsageError("--keep and --down exclude each other")
    if reason := why_not_here():
        raise click.ClickException(reason)
    if down:
        take_down()
        return
    if keep and is_up():
        raise click.ClickException("a demo is up already; 'loden demo --down' takes it down")
    stop_in_order_on_signals()
    console = Console(highlight=False, emoji=False)
    try:
        show(console, keep, seconds)
    except FAILURES as error:
        console.print(f"[red]failed:[/] {error}", markup=True, soft_wrap=True)
        sys.exit(1)


def why_not_here() -> str | None:
    """What this machine lacks for the demo, in one line."""
    if os.geteuid() != 0:
        return "the demo builds network namespaces and needs root"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun: load the kernel's module tun (modprobe tun)"
    packages = [package for tool, package in PACKAGE_OF.items() if shutil.which(tool) is None]
    if packages:
        return f"programs are missing, install Debian's packages: {' '.join(packages)}"
    return None


def stop_in_order_on_signals() -> None:
    """The first signal unwinds the program, and the next ones do not disturb that."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(number: int, frame: FrameType | None) -> None:
        for ignored in numbers:
            signal.signal(ignored, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, stop)


def show(console: Console, keep: bool, seconds: int) -> None:
    """The whole demo. Raises FAILURES, after everything has been taken down."""
    with contextlib.ExitStack() as leaving:
        topology = Topology(prefix=KEPT_PREFIX if keep else None)
        with step(console, "two hosts, joined by a veth pair"):
            leaving.enter_context(topology)
        directory = make_directory(keep)
        leaving.callback(shutil.rmtree, directory)
        leaving.callback(topology.close)  # before its files are removed
        nodes = start_nodes(console, topology, directory)
        try:
            envs = [node.wait_until_ready() for node in nodes]
            pods = add_pods(console, nodes, envs)
            wait_for_routes(console, nodes)
            demonstrate(console, pods, envs[0].mtu_bytes, seconds)
            report(console, nodes)
        except (MeasurementError, CommandError) as error:
            logs = (f"{node.log_path}:\n{log_tail(node.log_path)}" for node in nodes)
            raise NodeFailed("\n".join((str(error), *logs))) from error
        if keep:
            topology.is_kept = True
            leaving.pop_all()
            print_what_to_type(console, nodes, pods)


@contextlib.contextmanager
def step(console: Console, what: str) -> Iterator[list[str]]:
    """Shows what is being done and for how long; then a line with what was put into the list."""
    begun = time.monotonic()
    found: list[str] = []
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        progress.add_task(what)
        yield found
    elapsed = f"[dim]{time.monotonic() - begun:.1f} s[/]"
    console.print(f"[green]✓[/] {': '.join((what, *found))}  {elapsed}", soft_wrap=True)


def make_directory(keep: bool) -> Path:
    if not keep:
        return Path(tempfile.mkdtemp(prefix="loden-demo-"))
    KEPT_DIR.mkdir(mode=0o700)
    return KEPT_DIR


def start_nodes(console: Console, topology: Topology, directory: Path) -> list[Node]:
    """etcd on the first host, the network's config in it, and loden on both hosts."""
    first_host = topology.hosts[0]
    etcd = Etcd(first_host, directory / "etcd")
    with step(console, f"a private etcd on host0, at {etcd.url}"):
        etcd.start()
    with step(console, f"loden init --network {NETWORK}"):
        init_network(first_host, etcd.url, NETWORK)
    nodes = [
        Node(host, directory / f"host{number}", etcd.url)
        for number, host in enumerate(topology.hosts)
    ]
    with step(console, "loden run on both (the very first start compiles for about a minute)"):
        for node in nodes:
            node.start()
        for node in nodes:
            node.wait_until_ready()
    return nodes


def add_pods(console: Console, nodes: list[Node], envs: list[SubnetEnv]) -> list[Pod]:
    """As Docker would: a bridge and a pod per host, by what subnet.env says."""
    pods = []
    with step(console, "a bridge and a pod on each, as subnet.env says") as found:
        for node, env in zip(nodes, envs, strict=True):
            assert env.subnet is not None, "the demo's network is IPv4"
            pods.append(node.host.add_pod(env.subnet.network, mtu_bytes=env.mtu_bytes))
        found.append(", ".join(str(pod.address) for pod in pods))
    return pods


def wait_for_routes(console: Console, nodes: list[Node]) -> None:
    """Each node learns of the others through etcd; a moment after its own subnet."""
    with step(console, "routes to each other, through etcd"):
        for node in nodes:
            node.wait_for_routes(len(nodes) - 1)


def demonstrate(console: Console, pods: list[Pod], mtu_bytes: int, seconds: int) -> None:
    """Ping, TCP and UDP from pod to pod. Raises MeasurementError, also if a ping is lost."""
    near, far = pods
    for source, target in ((near, far), (far, near)):
        for packet_bytes in (SMALL_PACKET_BYTES, mtu_bytes):
            demonstrate_ping(console, source, target, packet_bytes)
    figures: list[tuple[str, str, str]] = []
    for reverse, direction in ((False, "host0 → host1"), (True, "host1 → host0")):
        with step(console, f"TCP, one stream, {direction}") as found:
            tcp = measure_tcp(near, far, seconds=seconds, reverse=reverse)
            found.append(f"{tcp.gbit_per_s:.2f} Gbit/s")
        figures.append(("TCP, one stream", direction, found[0]))
    small = f"UDP, {SMALL_PACKET_BYTES} bytes a packet"
    with step(console, f"{small}, host0 → host1") as found:
        udp = measure_udp(near, far, seconds=seconds, payload_bytes=SMALL_PACKET_BYTES)
        # On a machine with few CPUs iperf3 cannot read what iperf3 can send.
        sent_kpps = udp.sent / udp.seconds / 1000
        found.append(f"iperf3 sent {sent_kpps:.0f} kpps and read {udp.received_kpps:.0f}")
    figures.append((small, "host0 → host1", found[0]))
    console.print(figure_table(figures))


def demonstrate_ping(console: Console, source: Pod, target: Pod, packet_bytes: int) -> None:
    """Packets that must not be fragmented. Raises MeasurementError if one is lost."""
    what = f"ping {source.address} → {target.address}, {packet_bytes} bytes, DF"
    with step(console, what) as found:
        result = ping(source, target.address, packet_bytes=packet_bytes, dont_fragment=True)
        counts = f"{result.received} of {result.sent} came back"
        if result.loss or result.round_trip is None:
            raise MeasurementError(f"{what}: {counts}, {result.errors} errors")
        found.append(f"{counts}, {result.round_trip.mean_ms:.2f} ms")


def report(console: Console, nodes: list[Node]) -> None:
    """What the nodes say of themselves."""
    statuses = [node.ask("status") for node in nodes]
    console.print(route_table([node.ask("routes") for node in nodes]))
    console.print(worker_table(statuses))
    console.print(drop_table(statuses))


def print_what_to_type(console: Console, nodes: list[Node], pods: list[Pod]) -> None:
    loden = command_name()
    lines = [
        f"ip netns exec {pods[0].name} ping {pods[1].address}",
        f"ip netns exec {pods[0].name} ip route",
        f"ip netns exec {nodes[0].host.name} tcpdump -ni eth0 udp port 8472",
        *(f"{loden} status --run-dir {node.run_dir}" for node in nodes),
        f"{loden} routes --run-dir {nodes[0].run_dir}",
        f"tail -f {nodes[0].log_path}",
    ]
    console.print("It stays up. To look around:")
    for line in lines:
        console.print(f"  {line}", soft_wrap=True)
    console.print(f"To take it down:\n  {loden} demo --down")


def command_name() -> str:
    """How the user calls loden."""
    called = Path(sys.argv[0])
    return str(called) if called.name == "loden" else f"{sys.executable} -m control"


def is_up() -> bool:
    """Whether --keep left something that --down would take down."""
    return KEPT_DIR.exists() or bool(list_namespaces(f"{KEPT_PREFIX}-"))


def take_down() -> None:
    if not is_up():
        click.echo("no demo is up")
        return
    remove_topology(KEPT_PREFIX)
    if KEPT_DIR.exists():
        shutil.rmtree(KEPT_DIR)
    click.echo("the demo has been taken down")
