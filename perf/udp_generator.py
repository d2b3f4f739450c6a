"""Numbered UDP packets, sent at a rate and counted; and the shortest question and answer.

The loops of `perf/agent.py`, compiled as the forwarder's are, so that neither end is what is
measured.  Packets are sent one by one in the kernel's eyes: sendmmsg without UDP_SEGMENT, and
received without UDP_GRO, as applications do that know nothing of either.

A packet's payload begins with two little-endian words of 64 bits:

    trial (low 32 bits) | flow (high 32 bits)
    number: 0, 1, 2... over all flows of the trial

Payloads may differ in size: packet `number` has the size `sizes[number % len(sizes)]`.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

import numpy as np

from forwarder import libc
from forwarder.arrays import Bytes, Int, Longs
from forwarder.jit import kernel
from forwarder.udp import IOV, IOV_COUNT, MESSAGE_BYTES_AT, NAME, NAME_BYTES, SO_RCVBUFFORCE

IPAddress = IPv4Address | IPv6Address

TRAIN = 32
"""Most packets of one sendmmsg or recvmmsg."""
PAYLOAD_MIN, PAYLOAD_MAX = 16, 2048
FLOWS_MAX = 1024
TICK_NS = 100_000
"""A paced sender sleeps so long, sends what has become due, and sleeps again."""
RECEIVE_BUFFER_BYTES = 4 << 20
RECEIVE_WAIT_US = 20_000
"""A receiver looks this often whether it shall stop."""
REPLY_WAIT_US = 200_000
"""A question without an answer by then counts as lost."""
IMIX = (64, 548, 64, 64, 548, 64, 1392, 64, 548, 64, 64, 548)
"""The simple internet mix: of 12 packets 7 are small, 4 have 576 bytes with their headers, and 1 is
full (here 1420 bytes).  In an order that spreads them."""

MSG_WAITFORONE = 0x10000
CLOCK_MONOTONIC = 1
TFD_CLOEXEC = os.O_CLOEXEC
SOCKADDR_BYTES = 32
SOCKADDR_IN_BYTES = 16
SOCKADDR_IN_ADDRESS_AT = 4

# What a sender says afterwards, and what a receiver counts.
SENT, REFUSED, BEGUN_NS, ENDED_NS = range(4)
RECEIVED, DUPLICATES, REORDERED, STRANGE, FIRST_NS, LAST_NS = range(6)

SO_MEMINFO, MEMINFO_DROPS, MEMINFO_WORDS = 55, 8, 9  # include/uapi/linux/sock_diag.h


class Train(NamedTuple):
    """The memory of up to TRAIN packets, and the mmsghdrs that lead to it."""

    data: Longs
    """int64[TRAIN, PAYLOAD_MAX / 8]: a row per packet."""
    names: Bytes
    """uint8[TRAIN, 32]: a socket address per packet."""
    messages: Longs
    """int64[TRAIN, 8]: struct mmsghdr."""
    iovecs: Longs
    """int64[TRAIN, 2]"""


def check_sizes(sizes: Sequence[int]) -> Longs:
    """As an array.  Raises ValueError if one is out of range."""
    for size in sizes:
        if not PAYLOAD_MIN <= size <= PAYLOAD_MAX:
            allowed = f"{PAYLOAD_MIN} to {PAYLOAD_MAX}"
            raise ValueError(f"sizes: {size} is not allowed; allowed: {allowed}")
    return np.array(sizes, np.int64)


def make_train(name_bytes: int = 0) -> Train:
    """With room for PAYLOAD_MAX each.

    `name_bytes`: of the address in each message; 0: none, the socket is connected.
    """
    data = np.zeros((TRAIN, PAYLOAD_MAX // 8), np.int64)
    names = np.zeros((TRAIN, SOCKADDR_BYTES), np.uint8)
    messages, iovecs = np.zeros((TRAIN, 8), np.int64), np.zeros((TRAIN, 2), np.int64)
    for row in range(TRAIN):
        iovecs[row] = data[row].ctypes.data, PAYLOAD_MAX
        messages[row, IOV], messages[row, IOV_COUNT] = iovecs[row].ctypes.data, 1
        if name_bytes:
            messages[row, NAME], messages[row, NAME_BYTES] = names[row].ctypes.data, name_bytes
    return Train(data, names, messages, iovecs)


def make_addressed_train(port: int) -> Train:
    """Every packet has an IPv4 socket address of its own, which `send_numbered` completes."""
    train = make_train(SOCKADDR_IN_BYTES)
    address = struct.pack("=H", socket.AF_INET) + struct.pack(">H", port)
    train.names[:, : len(address)] = np.frombuffer(address, np.uint8)
    return train


def open_sockets(address: IPAddress, port: int, flows: int) -> list[socket.socket]:
    """One connected socket per flow: they differ in their source port."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    opened = []
    for _ in range(flows):
        flow = socket.socket(family, socket.SOCK_DGRAM)
        flow.connect((str(address), port))
        opened.append(flow)
    return opened


def open_receiver(address: IPAddress, port: int, wait_us: int) -> socket.socket:
    """A socket that gives up waiting after `wait_us`."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    receiver = socket.socket(family, socket.SOCK_DGRAM)
    receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    set_wait(receiver, wait_us)
    receiver.bind((str(address), port))
    return receiver


def set_wait(receiver: socket.socket, wait_us: int) -> None:
    """How long a read from it blocks."""
    receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@qq", 0, wait_us))


def count_drops(receiver: socket.socket) -> int:
    """The packets it had no room for: those that whoever reads it was too slow for."""
    words = receiver.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * MEMINFO_WORDS)
    return int(struct.unpack(f"@{MEMINFO_WORDS}I", words)[MEMINFO_DROPS])


def open_ticker() -> int:
    """A timerfd: every read waits for the next tick (Python itself has these from 3.13 on)."""
    libc_calls = ctypes.CDLL(None, use_errno=True)
    fd: int = libc_calls.timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC)
    interval = struct.pack("@qqqq", 0, TICK_NS, 0, TICK_NS)
    if fd < 0 or libc_calls.timerfd_settime(fd, 0, interval, None) != 0:
        raise OSError(ctypes.get_errno(), "timerfd")
    return fd


@kernel
def send_numbered(
    sockets: Longs,
    train: Train,
    sizes: Longs,
    ticker: Int,
    trial: Int,
    rate_pps: float,
    duration_ns: Int,
    most: Int,
    spread_from: Int,
    spread: Int,
    scratch: Longs,
    tally: Longs,
) -> None:
    """Sends packets over all flows in turn for `duration_ns`, at most `most`.

    rate_pps    0: as fast as it can
    spread      packets go to this many addresses (a power of two) from `spread_from` on, each
                next one to another that is far away; 0: to where the sockets are connected
    scratch     int64[2]
    tally       int64[4]: SENT, REFUSED, BEGUN_NS, ENDED_NS

    With many flows each next packet is of another flow.  What a socket refuses counts as sent: it
    is lost.
    """
    in_a_row = np.int64(max(1, TRAIN // len(sockets)))
    base = np.int64(train.messages.ctypes.data)
    sent = np.int64(0)
    refused = np.int64(0)
    begun = libc.monotonic_ns(scratch)
    now = begun
    while sent < most and now - begun < duration_ns:
        if rate_pps > 0.0:
            due: Int = np.int64(min(float(most), (now - begun) * rate_pps / 1e9 + 1.0))
            if due <= sent:
                libc.read(ticker, np.int64(scratch.ctypes.data), 8)
                now = libc.monotonic_ns(scratch)
                continue
        else:
            due = most
        flow = (sent // in_a_row) % len(sockets)
        count = min(in_a_row - sent % in_a_row, due - sent)
        for packet in range(count):
            number = sent + packet
            train.data[packet, 0] = trial | (flow << 32)
            train.data[packet, 1] = number
            train.iovecs[packet, 1] = sizes[number % len(sizes)]
            if spread > 0:
                _set_address(train.names, packet, spread_from + _scatter(number, spread))
        done = np.int64(libc.sendmmsg(sockets[flow], base, count, 0))
        if done > 0:
            sent += done
        elif libc.errno() != libc.EINTR:
            sent += 1
            refused += 1
        now = libc.monotonic_ns(scratch)
    tally[SENT], tally[REFUSED] = sent, refused
    tally[BEGUN_NS], tally[ENDED_NS] = begun, now


@kernel
def _scatter(number: Int, spread: Int) -> Int:
    """One of 0 to `spread` - 1: an odd factor visits them all, in leaps."""
    return np.int64((number * 0x9E3779B1) & (spread - 1))


@kernel
def _set_address(names: Bytes, packet: Int, address: Int) -> None:
    for byte in range(4):
        names[packet, SOCKADDR_IN_ADDRESS_AT + 3 - byte] = (address >> (8 * byte)) & 0xFF


@kernel
def receive_numbered(
    fd: Int,
    train: Train,
    sizes: Longs,
    trial: Int,
    seen: Bytes,
    highest: Longs,
    scratch: Longs,
    tally: Longs,
    stop: Longs,
) -> None:
    """Counts what arrives until `stop[0]` is set.

    seen        uint8 per number, zeros at first
    highest     int64 per flow, -1 at first: the highest number so far
    tally       int64[6]: RECEIVED (each number once), DUPLICATES, REORDERED (after a higher
                number of its flow), STRANGE (of no packet of this trial), FIRST_NS, LAST_NS
    """
    base = np.int64(train.messages.ctypes.data)
    while stop[0] == 0:
        got = np.int64(libc.recvmmsg(fd, base, TRAIN, MSG_WAITFORONE, 0))
        if got <= 0:
            continue
        tally[LAST_NS] = libc.monotonic_ns(scratch)
        if tally[FIRST_NS] == 0:
            tally[FIRST_NS] = tally[LAST_NS]
        for packet in range(got):
            flow, number = train.data[packet, 0] >> 32, train.data[packet, 1]
            arrived_bytes = train.messages[packet, MESSAGE_BYTES_AT] & 0xFFFFFFFF
            is_ours = train.data[packet, 0] & 0xFFFFFFFF == trial
            in_range = 0 <= number < len(seen) and 0 <= flow < len(highest)
            if not is_ours or not in_range or arrived_bytes != sizes[number % len(sizes)]:
                tally[STRANGE] += 1
            elif seen[number]:
                tally[DUPLICATES] += 1
            else:
                seen[number] = 1
                tally[RECEIVED] += 1
                tally[REORDERED] += number < highest[flow]
                highest[flow] = max(highest[flow], number)


@kernel
def echo(fd: Int, train: Train, stop: Longs) -> None:
    """Sends every packet back to where it came from, until `stop[0]` is set."""
    base = np.int64(train.messages.ctypes.data)
    room_bytes, name_bytes = train.iovecs[0, 1], train.messages[0, NAME_BYTES]
    while stop[0] == 0:
        train.messages[0, NAME_BYTES] = name_bytes
        if libc.recvmmsg(fd, base, 1, MSG_WAITFORONE, 0) == 1:
            train.iovecs[0, 1] = train.messages[0, MESSAGE_BYTES_AT] & 0xFFFFFFFF
            libc.sendmsg(fd, base, 0)
            train.iovecs[0, 1] = room_bytes


@kernel
def ping_pong(fd: Int, times_ns: Longs, duration_ns: Int, scratch: Longs) -> tuple[Int, Int]:
    """Asks with one byte and waits for the answer, at most once per element of `times_ns`.

    Fills in the times from question to answer.  Returns how many questions were asked within
    `duration_ns`, and how many were answered; the rest were lost.  `fd` is connected and gives up
    waiting after a while; `scratch` is int64[4].
    """
    question, answer = scratch[2:3], scratch[3:4]
    asked = np.int64(0)
    answered = np.int64(0)
    begun = libc.monotonic_ns(scratch)
    asked_at = begun
    while asked < len(times_ns) and asked_at - begun < duration_ns:
        question[0] = asked & 0xFF
        asked_at = libc.monotonic_ns(scratch)
        libc.write(fd, np.int64(question.ctypes.data), 1)
        asked += 1
        while True:
            answer[0] = 0
            if libc.read(fd, np.int64(answer.ctypes.data), 1) != 1:
                break
            if answer[0] == question[0]:  # else it is the answer to an earlier, late one
                times_ns[answered] = libc.monotonic_ns(scratch) - asked_at
                answered += 1
                break
    return asked, answered
