"""What is built is as drawn, and nothing of it outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from perf.namespace import CommandError, list_namespaces
from perf.topology import Topology, TopologyError, remove_topology, sweep_leftovers
from perf.traffic import ping

pytestmark = pytest.mark.netns


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_two_hosts_reach_each_other_in_both_families() -> None:
    with Topology(ipv6=True) as topology:
        near, far = topology.hosts
        assert (str(near.address), str(far.address)) == ("192.168.77.10", "192.168.77.11")
        assert far.address_ipv6 == IPv6Address("fd77::11")

        assert ping(near, far.address, count=1).received == 1
        assert ping(near, far.address_ipv6, count=1).received == 1


def test_more_hosts_share_one_wire() -> None:
    with Topology(hosts=4) as topology:
        for far in topology.hosts[1:]:
            assert ping(topology.hosts[0], far.address, count=1).received == 1


def test_pods_of_a_host_reach_each_other_and_have_a_way_out() -> None:
    with Topology(hosts=1, ipv6=True) as topology:
        host = topology.hosts[0]
        subnets = ("172.17.10.0/24", "2001:db8:0:a::/64")
        first = host.add_pod(*subnets, mtu_bytes=1450)
        second = host.add_pod(*subnets, mtu_bytes=1450)

        assert second.addresses == [IPv4Address("172.17.10.3"), IPv6Address("2001:db8:0:a::3")]
        for address in (*second.addresses, host.address, host.address_ipv6):
            assert address is not None
            assert ping(first, address, count=1).received == 1
        assert "mtu 1450" in first.run(["ip", "link", "show", "eth0"]).stdout


def test_underlay_mtu_is_as_asked_for() -> None:
    with Topology(mtu_bytes=9000) as topology:
        near, far = topology.hosts
        assert ping(near, far.address, packet_bytes=9000, dont_fragment=True).loss == 0
        too_big = ping(near, far.address, packet_bytes=9001, dont_fragment=True, count=1)
        assert (too_big.received, too_big.errors) == (0, 1)


def test_plain_nic_offloads_nothing_but_gro() -> None:
    with Topology(plain_nic=True) as topology:
        shown = topology.hosts[1].run(["ethtool", "-k", "eth0"]).stdout
    for feature in (
        "tx-checksumming: off",
        "tcp-segmentation-offload: off",
        "tx-udp_tnl-segmentation: off",
        "generic-segmentation-offload: off",
        "generic-receive-offload: on",
    ):
        assert feature in shown


def test_topologies_stand_side_by_side() -> None:
    with Topology() as one, Topology() as other:
        assert one.prefix != other.prefix
        assert ping(one.hosts[0], one.hosts[1].address, count=1).received == 1
        assert ping(other.hosts[0], other.hosts[1].address, count=1).received == 1


def test_building_is_quick() -> None:
    begun = time.monotonic()
    with Topology() as topology:
        for number, host in enumerate(topology.hosts):
            host.add_pod(f"172.17.{number}.0/24", mtu_bytes=1450)
    assert time.monotonic() - begun < 1.0


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_nothing_is_left_after_an_exception(error: BaseException) -> None:
    pids: list[int] = []

    def fail_with_processes_running(topology: Topology) -> None:
        with topology:
            pod = topology.hosts[0].add_pod("172.17.10.0/24", mtu_bytes=1450)
            pod.popen(["sh", "-c", "sleep 600 & sleep 601"])
            wait_until(lambda: len(pod.pids()) == 3)
            pids.extend(pod.pids())
            raise error

    topology = Topology()
    with pytest.raises(type(error)):
        fail_with_processes_running(topology)

    assert list_namespaces(topology.prefix) == []
    assert not any(is_running(pid) for pid in pids)


def test_ctrl_c_takes_everything_down(owner: subprocess.Popen[str]) -> None:
    assert owner.stdout
    prefix = owner.stdout.readline().strip()
    pids = [pid for namespace in list_namespaces(prefix) for pid in namespace.pids()]
    assert pids

    owner.send_signal(signal.SIGINT)
    owner.wait(timeout=10)

    assert list_namespaces(prefix) == []
    assert not any(is_running(pid) for pid in pids)


def test_failure_while_building_leaves_nothing() -> None:
    topology = Topology(mtu_bytes=10**9)

    with pytest.raises(CommandError, match="Invalid argument"):
        topology.__enter__()

    assert list_namespaces(topology.prefix) == []


def test_process_that_ignores_sigterm_is_killed_with_its_children() -> None:
    with Topology(hosts=1) as topology:
        process = topology.hosts[0].popen(["sh", "-c", "trap '' TERM; sleep 600 & wait; wait"])
        wait_until(lambda: len(topology.hosts[0].pids()) == 2)
        pids = topology.hosts[0].pids()

        begun = time.monotonic()
        topology.close(grace_s=0.2)

        assert time.monotonic() - begun < 3.0
        assert process.returncode == -signal.SIGKILL
        assert not any(is_running(pid) for pid in pids)


def test_process_is_asked_to_end_before_it_is_killed(tmp_path: Path) -> None:
    goodbye = tmp_path / "goodbye"
    script = f"trap 'echo bye > {goodbye}; exit 0' TERM; echo > {tmp_path}/ready; sleep 600 & wait"
    with Topology(hosts=1) as topology:
        topology.hosts[0].popen(["sh", "-c", script])
        wait_until((tmp_path / "ready").exists)

    assert goodbye.read_text() == "bye\n"


def test_failing_command_says_what_the_tool_said() -> None:
    with Topology(hosts=1) as topology:
        with pytest.raises(CommandError, match=r"ip link show eth9.*does not exist"):
            topology.hosts[0].run(["ip", "link", "show", "eth9"])
        for start in (topology.hosts[0].run, topology.hosts[0].popen):
            with pytest.raises(CommandError, match="no-such-tool is not installed"):
                start(["no-such-tool"])


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    """Another process with a topology up and a process in it; prints the prefix."""
    code = (
        "from perf.topology import Topology\n"
        "import time\n"
        "with Topology(hosts=1) as topology:\n"
        "    topology.hosts[0].popen(['sleep', '600'])\n"
        "    print(topology.prefix, flush=True)\n"
        "    time.sleep(600)\n"
    )
    root = Path(__file__).parents[2]
    owner = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=root,
    )
    yield owner
    owner.kill()
    owner.wait()
    assert owner.stdout
    owner.stdout.close()
    sweep_leftovers()


def test_leftovers_of_a_killed_owner_are_swept(owner: subprocess.Popen[str]) -> None:
    assert owner.stdout
    prefix = owner.stdout.readline().strip()
    (namespace,) = list_namespaces(prefix)
    pids = namespace.pids()
    assert pids
    assert namespace.name not in sweep_leftovers(), "its owner is alive"

    os.kill(owner.pid, signal.SIGKILL)
    owner.wait()

    assert sweep_leftovers() == [namespace.name]
    assert list_namespaces(prefix) == []
    assert not any(is_running(pid) for pid in pids)


def test_kept_topology_stays_until_it_is_removed() -> None:
    prefix = f"kept-{os.getpid()}"
    with Topology(hosts=1, prefix=prefix) as topology:
        topology.is_kept = True
        sleeper = topology.hosts[0].popen(["sleep", "600"])
    try:
        assert sleeper.poll() is None
        with pytest.raises(TopologyError, match=f"'{prefix}' is taken"), Topology(prefix=prefix):
            pass
        assert sleeper.poll() is None
    finally:
        remove_topology(prefix)
    assert sleeper.wait(timeout=5) == -signal.SIGTERM
    assert list_namespaces(prefix) == []


def test_number_of_hosts_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match="hosts: 0 is not between 1 and 200"):
        Topology(hosts=0)
