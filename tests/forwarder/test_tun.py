"""The overlay device itself, in a namespace: opening it, reading from it, writing to it."""

import os
import select
import socket
from collections.abc import Iterator

import numpy as np
import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from forwarder import tun
from forwarder.arrays import Longs
from forwarder.batch import PACKETS, Outbound
from forwarder.counters import COLUMNS, Drop, Total
from forwarder.tun import Device, DeviceError, open_device
from forwarder.wire.virtio_net import GSO_NONE, GSO_UDP_L4, NEEDS_CSUM
from perf.namespace import Namespace
from perf.topology import Host, Topology
from tests.forwarder.packets import with_partial_checksum
from tests.forwarder.stages import DROPS
from tests.reference.packet import is_partial

pytestmark = pytest.mark.netns

UDP_SEGMENT = 103


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Topology(1) as topology:
        yield topology.hosts[0]


@pytest.fixture
def device(host: Host) -> Iterator[Device]:
    """One queue, so that every packet comes to it."""
    with host.entered():
        device = open_device("tun-test", 1)
    host.ip("address add 10.7.1.1/24 dev tun-test", "link set tun-test mtu 1450 up")
    yield device
    device.close()


def read(device: Device, batch: Outbound, row: Longs) -> list[bytes]:
    """The UDP packets waiting, at least one."""
    found: list[bytes] = []
    while not found:
        assert select.select([device.queues[0].fileno()], [], [], 5)[0]
        count = int(tun.receive(device.queues[0].fileno(), batch, row, int(Total.TUN_READS)))
        for i in range(count):
            start, length = int(batch.start[i]), int(batch.length[i])
            packet = batch.data[start : start + length].tobytes()
            if packet[9] == 17:
                found.append(packet)
    return found


def sender_in(namespace: Namespace) -> socket.socket:
    with namespace.entered():
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def test_packets_are_read_as_they_were_sent(
    host: Host, device: Device, outbound_batch: Outbound
) -> None:
    row = np.zeros(COLUMNS, np.int64)
    with sender_in(host) as sender:
        for number in range(3):
            sender.sendto(bytes([number]) * 100, ("10.7.1.2", 9))
    packets: list[bytes] = []
    while len(packets) < 3:
        packets += read(device, outbound_batch, row)
        assert outbound_batch.gso_type[0] == GSO_NONE
        assert outbound_batch.csum_start[0] == 20  # NEEDS_CSUM: we take what hardware would
        assert outbound_batch.csum_offset[0] == 6
    assert [IP(packet)[Raw].load for packet in packets] == [bytes([n]) * 100 for n in range(3)]
    assert all(is_partial(packet) for packet in packets)
    assert row[Total.TUN_READS] > 3


def test_superpacket_is_read_whole(host: Host, device: Device, outbound_batch: Outbound) -> None:
    if not device.uso:
        pytest.skip("this kernel has no UDP segmentation offload for TUN (Linux 6.2)")
    with sender_in(host) as sender:
        size = (1000).to_bytes(2, "little")
        sender.sendmsg([bytes(3500)], [(socket.IPPROTO_UDP, UDP_SEGMENT, size)], 0, ("10.7.1.2", 9))
    [packet] = read(device, outbound_batch, np.zeros(COLUMNS, np.int64))
    assert len(packet) == 3528
    assert (outbound_batch.gso_type[0], outbound_batch.gso_size[0]) == (GSO_UDP_L4, 1000)


def test_full_queue_is_read_in_batches(
    host: Host, device: Device, outbound_batch: Outbound
) -> None:
    row = np.zeros(COLUMNS, np.int64)
    with sender_in(host) as sender:
        for _ in range(PACKETS + 10):
            sender.sendto(b"x", ("10.7.1.2", 9))
    total = 0
    while total < PACKETS + 10:
        count = len(read(device, outbound_batch, row))
        assert count <= PACKETS
        total += count
    assert total == PACKETS + 10


def test_written_superpacket_arrives_as_datagrams(host: Host, device: Device) -> None:
    """What the kernel cuts out of one write, with the checksums it fills in."""
    with sender_in(host) as receiver:
        receiver.bind(("10.7.1.1", 0))
        receiver.settimeout(5)
        port = receiver.getsockname()[1]
        payload = os.urandom(2500)
        packet = bytes(IP(src="10.7.1.2", dst="10.7.1.1") / UDP(sport=9, dport=port) / Raw(payload))
        vnet = [NEEDS_CSUM, GSO_UDP_L4, 28, 0, 1000 & 0xFF, 1000 >> 8, 20, 0, 6, 0]
        partial = with_partial_checksum(packet)
        assert write(device, bytes(vnet), partial[:28], partial[28:]) == Drop.NONE
        sizes = [len(receiver.recv(65535)) for _ in range(3)]
    assert sizes == [1000, 1000, 500]


def write(device: Device, *parts: bytes) -> Drop:
    arrays = [np.frombuffer(part, np.uint8) for part in parts]
    iovecs = np.array([[array.ctypes.data, array.size] for array in arrays], np.int64)
    return DROPS[int(tun.write_packet(device.queues[0].fileno(), iovecs, len(parts)))]


def test_refused_write_has_its_reason(host: Host, device: Device) -> None:
    nonsense = bytes([NEEDS_CSUM, 99, 28, 0, 0, 0, 0, 0, 0, 0])
    assert write(device, nonsense, bytes(40)) == Drop.TUN_WRITE_INVALID
    host.ip("link set tun-test down")
    plain = bytes(IP(src="10.7.1.2", dst="10.7.1.1") / UDP())
    assert write(device, bytes(10), plain) == Drop.TUN_DOWN


def test_name_that_is_taken_is_refused(host: Host, device: Device) -> None:
    with host.entered(), pytest.raises(DeviceError, match="the name 'tun-test' is taken"):
        open_device("tun-test", 1)
    with host.entered(), pytest.raises(DeviceError, match="the name 'eth0' is taken"):
        open_device("eth0", 1)


def test_offloads_are_asked_for_or_left_out(host: Host) -> None:
    for tso, uso, expected in ((True, False, (True, False)), (False, True, (False, True))):
        with host.entered():
            device = open_device("tun-plain", 2, want_tso=tso, want_uso=uso)
        assert (device.tso, device.uso) == expected
        assert len(device.queues) == 2
        device.close()
