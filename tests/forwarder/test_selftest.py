"""The offloads' tests at the start: this kernel passes them, and each fault of another is found."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from forwarder import selftest
from forwarder.selftest import PAYLOAD, PrivateNetwork, run
from forwarder.wire.ip import PROTOCOL_TCP, PROTOCOL_UDP
from forwarder.wire.virtio_net import VNET_BYTES

pytestmark = pytest.mark.netns


def test_this_kernel_passes_and_nothing_is_left_behind() -> None:
    before = what_there_is()
    findings = run()
    assert (findings.faults, findings.untested) == ({}, None)
    assert what_there_is() == before


def what_there_is() -> tuple[list[str], list[str], str]:
    """Devices, our descriptors, our child processes."""
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text()
    return os.listdir("/sys/class/net"), os.listdir("/proc/self/fd"), children


def is_tcp(superpacket: bytes) -> bool:
    packet = superpacket[VNET_BYTES:]
    return packet[9 if packet[0] >> 4 == 4 else 6] == PROTOCOL_TCP


class SpoilsTcpReads(PrivateNetwork):
    def read(self) -> bytes:
        found = super().read()
        return found[:-1] + b"\xee" if is_tcp(found) else found


class CutsUdpReads(PrivateNetwork):
    """As if superpackets had been asked for, and none came."""

    def read(self) -> bytes:
        found = super().read()
        return found if is_tcp(found) else bytes(VNET_BYTES) + found[VNET_BYTES:]


class RefusesShortTails(PrivateNetwork):
    """Linux 6.6.44 and its relatives, for UDP."""

    def write(self, superpacket: bytes) -> None:
        if not is_tcp(superpacket):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        super().write(superpacket)


class LosesTcpWrites(PrivateNetwork):
    def write(self, superpacket: bytes) -> None:
        if not is_tcp(superpacket):
            super().write(superpacket)


class RefusesSegments(PrivateNetwork):
    """Before Linux 6.11, where the device does not sum."""

    def send_segments(self, version: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


class SpoilsTails(PrivateNetwork):
    """The last datagram of a message leaves with the checksum of another length."""

    def read_segment(self) -> bytes:
        segment = bytearray(super().read_segment())
        if len(segment) < 100:
            segment[-3] ^= 1
        return bytes(segment)


class ForgetsTails(PrivateNetwork):
    def send_to_self(self, version: int) -> tuple[bytes, int]:
        payload, size = super().send_to_self(version)
        return payload[:-1], size


@pytest.mark.parametrize(
    ("kernel", "offload", "fault"),
    [
        (SpoilsTcpReads, "tun_tso", "an IPv4 superpacket arrived changed"),
        (CutsUdpReads, "tun_uso", "arrived with another type or segment size"),
        (RefusesShortTails, "coalesce_udp", "the kernel refused it: Invalid argument"),
        (LosesTcpWrites, "coalesce_tcp", "what was sent did not arrive"),
        (RefusesSegments, "udp_gso", "the kernel refused it: Input/output error"),
        (SpoilsTails, "udp_gso", "an IPv4 datagram left with a wrong checksum"),
        (ForgetsTails, "udp_gro", "an IPv4 message arrived changed"),
    ],
)
def test_fault_is_found_where_it_is(kernel: type[PrivateNetwork], offload: str, fault: str) -> None:
    findings = run(kernel)
    assert findings.untested is None
    assert findings.faults.keys() == {offload}
    assert fault in findings.faults[offload]


def test_kernel_that_knows_no_uso_fails_no_test_of_it() -> None:
    class WithoutUso(PrivateNetwork):
        def takes(self, protocol: int) -> bool:
            return protocol != PROTOCOL_UDP

        def read(self) -> bytes:
            found = super().read()
            assert is_tcp(found)
            return found

    assert run(WithoutUso).faults == {}


def test_without_a_private_network_nothing_is_tested() -> None:
    def refused() -> PrivateNetwork:
        raise OSError(errno.EPERM, "no private network namespace: Operation not permitted")

    findings = run(refused)
    assert findings.faults == {}
    assert findings.untested is not None
    assert "no private network namespace" in findings.untested


def test_test_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs(PrivateNetwork):
        def transmit(self, superpacket: bytes) -> None:
            time.sleep(60)

    monkeypatch.setattr(selftest, "TIMEOUT_S", 0.2)
    assert run(Hangs).untested == "the tests of the offloads did not end"


def test_payload_ends_in_a_short_tail() -> None:
    assert len(PAYLOAD) % selftest.SEGMENT_BYTES == 1
