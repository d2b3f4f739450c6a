"""Two forwarders without control, on real devices and sockets: what the wire and the pods see."""

from __future__ import annotations

import hashlib
import os
import pwd
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path
from random import Random

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet
from scapy.utils import rdpcap

from forwarder.capabilities import OF_FORWARDER, to_read
from forwarder.fib.routes import IPAddress, Prefix, RemoteVtep
from forwarder.selftest import TESTS
from forwarder.wire.vxlan import format_mac, parse_mac
from perf.namespace import Namespace, run_command
from perf.peers import KernelVxlan
from perf.topology import Host, Pod, Topology
from perf.traffic import measure_tcp, ping
from tests.forwarder.packets import Flow, encapsulated
from tests.netns.forwarders import PORT, VNI, Forwarder, Pair, pair_of_forwarders
from tests.netns.nodes import SteadyPing, wait_for
from tests.netns.streams import copy_by_tcp, copy_by_udp

pytestmark = pytest.mark.netns

WAYS = [(0, 1), (1, 0)]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Default veth offloads, and a stranger on the same wire."""
    with pair_of_forwarders(tmp_path_factory.mktemp("pair"), hosts=3) as pair:
        yield pair


def assert_bytes_arrive(source: Namespace, sink: Namespace, address: IPAddress) -> None:
    """A file by TCP; by UDP datagrams of all sizes, of which the large ones travel in fragments."""
    random = Random(str(address))
    data = random.randbytes(20_000_000)
    assert copy_by_tcp(source, sink, address, data) == hashlib.sha256(data).hexdigest()
    sizes = [*range(8), 1402, 1403, *(random.randrange(65_000) for _ in range(20))]
    datagrams = [random.randbytes(size) for size in sizes]
    assert Counter(copy_by_udp(source, sink, address, datagrams)) == Counter(datagrams)


def assert_fast_tcp(source: Namespace, sink: Host | Pod) -> None:
    """More than 1 Gbit/s; in one of three seconds, for others may use the machine as well."""
    measured = [measure_tcp(source, sink).gbit_per_s]
    while measured[-1] <= 1 and len(measured) < 3:
        measured.append(measure_tcp(source, sink).gbit_per_s)
    assert max(measured) > 1, measured


# ---- pods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
def test_full_size_packets_pass_unfragmented(pair: Pair, version: int) -> None:
    address = pair.address_of(1, version)
    result = ping(pair.ends[0].pod, address, packet_bytes=1450, dont_fragment=True)
    assert (result.sent, result.received) == (3, 3)


@pytest.mark.parametrize(("near", "far"), WAYS)
def test_tcp_is_fast_both_ways(pair: Pair, near: int, far: int) -> None:
    assert_fast_tcp(pair.ends[near].pod, pair.ends[far].pod)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("near", "far"), WAYS)
def test_bytes_arrive_as_they_were_sent(pair: Pair, near: int, far: int, version: int) -> None:
    assert_bytes_arrive(pair.ends[near].pod, pair.ends[far].pod, pair.address_of(far, version))


@pytest.mark.parametrize(
    "switch", ["--no-tso", "--no-uso", "--no-coalesce", "--no-udp-gso", "--no-udp-gro"]
)
def test_each_offload_can_be_switched_off(tmp_path: Path, switch: str) -> None:
    with pair_of_forwarders(tmp_path, [switch]) as pair:
        assert "switched off" in pair.ends[0].client.stats()["offloads"].values()
        for near, far in WAYS:
            source, sink = pair.ends[near].pod, pair.ends[far].pod
            assert_bytes_arrive(source, sink, pair.address_of(far, 4))


def test_kernel_that_fails_every_test_is_used_without_offloads(tmp_path: Path) -> None:
    with pair_of_forwarders(tmp_path, module="tests.netns.broken_kernel") as pair:
        end = pair.ends[0]
        states = end.client.stats()["offloads"]
        assert {states[name] for name in TESTS} == {"failed its test: this kernel is broken"}
        for name in TESTS:
            assert end.log().count(f"{name} is not used any more: failed its test") == 1
        for near, far in WAYS:
            source, sink = pair.ends[near].pod, pair.ends[far].pod
            assert_bytes_arrive(source, sink, pair.address_of(far, 4))
        totals = end.client.stats()["totals"]
        assert totals["out_messages"] == totals["out_segments"]  # no datagram travelled with others
        assert totals["tun_writes"] >= totals["in_packets"] > 1000


def test_underlay_may_be_ipv6(tmp_path: Path) -> None:
    with pair_of_forwarders(tmp_path, ipv6_underlay=True) as pair:
        # The outer headers are 20 bytes longer, and the devices' MTU is what an operator set.
        address = pair.address_of(1, 4)
        result = ping(pair.ends[0].pod, address, packet_bytes=1430, dont_fragment=True)
        assert result.received == 3
        assert_bytes_arrive(pair.ends[0].pod, pair.ends[1].pod, pair.address_of(1, 6))


# ---- the wire -----------------------------------------------------------------------------------


def test_captured_packets_are_valid_vxlan(tmp_path: Path) -> None:
    """On a NIC without offloads everything is on the wire as it will be for good."""
    capture = tmp_path / "capture.pcap"
    with pair_of_forwarders(tmp_path, plain_nic=True) as pair:
        near, far = pair.ends
        argv = [
            "tcpdump",
            "-i",
            "eth0",
            "-B",
            "32768",
            "-Q",
            "out",
            "--immediate-mode",
            "-U",
            "-w",
            str(capture),
        ]
        with (tmp_path / "tcpdump").open("wb") as said:
            tcpdump = near.host.popen([*argv, "-Z", "root", f"udp port {PORT}"], stderr=said)
        wait_for(lambda: b"listening on" in (tmp_path / "tcpdump").read_bytes(), "tcpdump")
        for version in (4, 6):
            address = pair.address_of(1, version)
            ping(near.pod, address, packet_bytes=1450)
            data = os.urandom(200_000)
            copy_by_tcp(near.pod, far.pod, address, data)
            copy_by_udp(near.pod, far.pod, address, [data[:900], data[:7], data[:3000]])
        marker = os.urandom(32)
        copy_by_udp(near.pod, far.pod, pair.address_of(1, 4), [marker])
        wait_for(lambda: marker in capture.read_bytes(), "the last packet in the capture")
        tcpdump.send_signal(signal.SIGINT)
        tcpdump.wait(5)
    packets = rdpcap(str(capture))
    assert len(packets) > 150
    for packet in packets:
        assert_sound_outer(packet, near, far)
    assert_tshark_finds_nothing_wrong(capture)
    ports = {packet[UDP].sport for packet in packets}
    assert len(ports) > 2  # entropy: several flows, several source ports
    assert PORT not in ports


def assert_sound_outer(packet: Packet, near: Forwarder, far: Forwarder) -> None:
    outer, vxlan = packet[IP], packet[VXLAN]
    assert (outer.src, outer.dst) == (str(near.underlay), str(far.underlay))
    assert (outer.ttl, outer.flags, packet[UDP].dport) == (64, 0, PORT)
    assert (bytes(vxlan)[:8].hex(), vxlan.vni) == ("0800000000000100", VNI)
    inner = vxlan.payload
    assert (inner.src, inner.dst) == (format_mac(near.mac), format_mac(far.mac))
    assert len(bytes(inner.payload)) <= 1450
    assert outer.len == len(bytes(outer)) == packet[UDP].len + 20


def assert_tshark_finds_nothing_wrong(capture: Path) -> None:
    checks = [f"{protocol}.check_checksum:TRUE" for protocol in ("ip", "udp", "tcp")]
    options = [word for check in checks for word in ("-o", check)]
    argv = ["tshark", "-r", str(capture), "-d", f"udp.port=={PORT},vxlan", *options]
    fields = ["-T", "fields", "-e", "ip.checksum.status", "-e", "udp.checksum.status"]
    fields += ["-e", "tcp.checksum.status", "-e", "_ws.malformed"]
    lines = run_command([*argv, *fields], timeout_s=60).stdout.splitlines()
    counted: Counter[str] = Counter()
    for line in lines:
        columns = line.split("\t")
        # tshark guesses at what UDP carries here, random bytes: that is not ours to get right.
        assert not re.search(r"Malformed Packet: (Ethernet|VXLAN|IPv4|IPv6|UDP|TCP)\b", line)
        for name, column in zip(("ip", "udp", "tcp"), columns, strict=False):
            counted.update(f"{name} {status}" for status in column.split(",") if status)
    good = {name: count for name, count in counted.items() if name.endswith(" 1")}
    bad = {name: count for name, count in counted.items() if name.endswith(" 0")}
    assert bad == {}
    assert good["ip 1"] > 150
    assert good["udp 1"] > 150
    assert good["tcp 1"] > 100


# ---- who may send -------------------------------------------------------------------------------

POD_0, POD_1 = "10.7.0.2", "10.7.1.2"


def inner_of(source: str = POD_1, destination: str = POD_0) -> bytes:
    return Flow(protocol="udp", source=source, destination=destination).packet(b"injected")


def send(host: Namespace, to: Forwarder, frame: bytes, times: int = 3) -> None:
    with host.entered(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(times):
            sender.sendto(frame, (str(to.underlay), PORT))


def framed(inner: bytes, to: Forwarder, source: Forwarder, vni: int = VNI) -> bytes:
    return encapsulated(inner, to=to.mac, source=source.mac, vni=vni)


@pytest.mark.parametrize(
    ("reason", "sender"),
    [
        ("unknown_vtep", 2),
        ("spoofed_source", 1),
        ("not_our_destination", 1),
        ("wrong_vni", 1),
        ("not_our_mac", 1),
        ("own_source_mac", 1),
        ("no_vni_flag", 1),
        ("reserved_bits", 1),
        ("truncated", 1),
        ("not_ip", 1),
        ("inner_malformed", 1),
    ],
)
def test_injected_packet_is_dropped_with_its_reason(pair: Pair, reason: str, sender: int) -> None:
    victim, peer = pair.ends
    good = framed(inner_of(), victim, peer)
    frames = {
        "unknown_vtep": good,
        "spoofed_source": framed(inner_of(source=POD_0), victim, peer),
        "not_our_destination": framed(inner_of(destination="10.7.1.9"), victim, peer),
        "wrong_vni": framed(inner_of(), victim, peer, vni=VNI + 1),
        "not_our_mac": framed(inner_of(), peer, peer),
        "own_source_mac": framed(inner_of(), victim, victim),
        "no_vni_flag": b"\0" + good[1:],
        "reserved_bits": good[:1] + b"\1" + good[2:],
        "truncated": good[:21],
        "not_ip": good[:20] + b"\x08\x06" + good[22:],
        "inner_malformed": good[:-1],
    }
    before = victim.client.stats()
    send(pair.hosts[sender], victim, frames[reason])
    expected = before["drops"][reason] + 3
    wait_for(lambda: victim.client.stats()["drops"][reason] == expected, f"three {reason}")
    assert victim.client.stats()["totals"]["in_packets"] == before["totals"]["in_packets"]


def test_what_the_right_vtep_sends_is_delivered(pair: Pair) -> None:
    victim, peer = pair.ends
    before = victim.client.stats()["totals"]["in_packets"]
    send(pair.hosts[1], victim, framed(inner_of(), victim, peer))
    wait_for(lambda: victim.client.stats()["totals"]["in_packets"] == before + 3, "deliveries")


def test_packet_without_a_route_is_counted_and_answered(pair: Pair) -> None:
    end = pair.ends[0]
    before = end.client.stats()["drops"]["no_route"]
    end.pod.run(["ping", "-c", "1", "-W", "1", "10.7.200.1"], check=False)
    wait_for(lambda: end.client.stats()["drops"]["no_route"] == before + 1, "a drop")


def test_packets_of_each_peer_are_counted(pair: Pair) -> None:
    end, other = pair.ends

    def counted() -> list[int]:
        return dict(end.client.peers())[other.as_next_hop()]

    before = counted()
    assert ping(end.pod, pair.address_of(1, 4), count=3, packet_bytes=1000).received == 3
    expected = [count + more for count, more in zip(before, [3, 3000, 3, 3000], strict=True)]
    wait_for(lambda: counted() == expected, f"{before} to become {expected}")


# ---- the workers --------------------------------------------------------------------------------


def worker_pids(end: Forwarder) -> list[int]:
    return [worker["pid"] for worker in end.client.stats()["per_worker"] if worker["alive"]]


def test_workers_hold_no_privilege(pair: Pair) -> None:
    pids = worker_pids(pair.ends[0])
    assert len(pids) == len(os.sched_getaffinity(0))
    nobody = pwd.getpwnam("nobody")
    for pid in pids:
        status = status_of(pid)
        assert status["Uid"].split() == [str(nobody.pw_uid)] * 4
        assert status["Gid"].split() == [str(nobody.pw_gid)] * 4
        assert status["Groups"] == ""
        assert status["NoNewPrivs"] == "1"
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(status[name], 16) == 0
        assert status["Seccomp"] == "2"  # SECCOMP_MODE_FILTER
        assert len(os.sched_getaffinity(pid)) == 1


def status_of(pid: int) -> dict[str, str]:
    """proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def test_worker_has_only_its_own_descriptors(pair: Pair) -> None:
    held = [
        sorted(os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))
        for pid in worker_pids(pair.ends[0])
    ]
    for links in held:
        assert links.count("/dev/net/tun") <= 2  # the overlay device, and perhaps tunnel GSO's
        assert not [link for link in links if "memfd" in link]
    sockets = [{link for link in links if link.startswith("socket:")} for links in held]
    assert all(sockets)
    assert not set.intersection(*sockets), "workers share sockets"


def test_forwarder_keeps_the_capabilities_of_its_trade(pair: Pair) -> None:
    expected = sum(1 << capability for capability in OF_FORWARDER | to_read())
    pid = pair.ends[0].client.hello()["pid"]
    for task in os.listdir(f"/proc/{pid}/task"):
        status = status_of(int(task))
        assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == expected
        assert int(status["CapBnd"], 16) == expected


def test_worker_that_leaves_its_loop_is_ended_and_replaced(pair: Pair) -> None:
    """What the kernel does to a forbidden call, done to a worker from outside."""
    end = pair.ends[0]
    victim, *others = worker_pids(end)
    os.kill(victim, signal.SIGSYS)
    wait_for(partial(has_successor, end, victim, set(others)), "the worker's successor")
    assert "killed for a system call that its sandbox does not allow" in end.log()


def test_filter_can_be_switched_off(tmp_path: Path) -> None:
    with pair_of_forwarders(tmp_path, ["--no-seccomp"]) as pair:
        assert pair.ends[0].client.stats()["seccomp"] == "switched off"
        assert {status_of(pid)["Seccomp"] for pid in worker_pids(pair.ends[0])} == {"0"}
        assert_bytes_arrive(pair.ends[0].pod, pair.ends[1].pod, pair.address_of(1, 4))


def has_successor(end: Forwarder, dead: int, others: set[int]) -> bool:
    pids = set(worker_pids(end))
    return dead not in pids and len(pids) == len(others) + 1


def test_killed_worker_is_replaced_and_traffic_goes_on(pair: Pair) -> None:
    end = pair.ends[0]
    before = worker_pids(end)
    with SteadyPing(end.pod, pair.address_of(1, 4)) as steady:
        for victim in before:
            others = set(worker_pids(end)) - {victim}
            os.kill(victim, signal.SIGKILL)
            wait_for(partial(has_successor, end, victim, others), "the worker's successor")
    assert steady.lost <= 2 * len(before)  # at most what the dead one had in its hands
    assert "killed by signal 9" in end.log()
    assert_fast_tcp(pair.ends[1].pod, end.pod)


def test_routes_are_listed_and_changed_while_packets_flow(pair: Pair) -> None:
    end, other = pair.ends
    prefix = Prefix.parse(f"{POD_1}/32")
    with SteadyPing(end.pod, pair.address_of(1, 4)) as steady:
        until = time.monotonic() + 0.5  # some fifty pings, thousands of changes
        while time.monotonic() < until:
            assert end.client.set_routes([(prefix, other.as_next_hop())]) == 1
            assert end.client.set_routes([], [prefix]) == 1
    assert steady.sent > 10
    assert steady.lost == 0
    listed = {str(prefix): str(hop) for prefix, hop, _ in end.client.list_routes()}
    assert listed["10.7.1.0/24"] == f"192.168.77.11 (VNI 1, {format_mac(other.mac)})"
    assert listed["10.7.0.0/24"] == "local"


def test_forwarder_leaves_nothing_when_it_stops(tmp_path: Path) -> None:
    with pair_of_forwarders(tmp_path) as pair:
        end = pair.ends[0]
        assert end.stop() == 0
        assert not (end.run_dir / "forwarder.sock").exists()
        assert "loden0" not in end.host.run(["ip", "link"]).stdout


# ---- the kernel's vxlan as a peer ---------------------------------------------------------------


@pytest.mark.parametrize("plain_nic", [False, True])
def test_kernel_vxlan_peer_at_full_speed(tmp_path: Path, plain_nic: bool) -> None:
    """With default veth offloads: partial inner checksums, inner superpackets."""
    with Topology(2, ipv6=True, plain_nic=plain_nic) as topology:
        ours, theirs = topology.hosts
        end = Forwarder(ours, 0, tmp_path, ipv6_underlay=False)
        subnet = IPv4Network("10.7.1.0/24")
        kernel = KernelVxlan(theirs, subnet, vni=VNI, port=PORT)
        kernel.add_peer(end.subnets[0], ours.address, format_mac(end.mac))
        pod = theirs.add_pod(subnet, mtu_bytes=1450)
        end.start()
        hop = RemoteVtep(theirs.address, parse_mac(kernel.mac), VNI, PORT)
        end.configure({Prefix.of(subnet): hop})

        result = ping(end.pod, pod.address, packet_bytes=1450, dont_fragment=True)
        assert result.received == 3
        for source, sink in ((end.pod, pod), (pod, end.pod)):
            assert_bytes_arrive(source, sink, sink.address)
            assert_fast_tcp(source, sink)
