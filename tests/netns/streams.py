"""Random bytes from pod to pod by TCP and UDP, and what arrived."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator, Sequence

from perf.namespace import Namespace
from perf.traffic import IPAddress

TIMEOUT_S = 20.0


def copy_by_tcp(source: Namespace, sink: Namespace, address: IPAddress, data: bytes) -> str:
    """Sends `data` and returns the SHA-256 of what arrived, in hexadecimal."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with sink.entered():
        listener = socket.create_server((str(address), 0), family=family)
    with listener:
        listener.settimeout(TIMEOUT_S)
        with source.entered():
            sender = socket.create_connection(listener.getsockname()[:2], TIMEOUT_S)
        receiver, _ = listener.accept()
    with sender, receiver:
        receiver.settimeout(TIMEOUT_S)
        thread = threading.Thread(target=_send_all, args=(sender, data))
        thread.start()
        digest = hashlib.sha256()
        while chunk := receiver.recv(1 << 18):
            digest.update(chunk)
        thread.join()
    return digest.hexdigest()


def _send_all(sender: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # the receiver's digest tells
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def udp_sockets(
    source: Namespace, sink: Namespace, address: IPAddress
) -> Iterator[tuple[socket.socket, socket.socket]]:
    """(a socket connected to the sink's, the sink's)."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with sink.entered():
        receiver = socket.socket(family, socket.SOCK_DGRAM)
    with source.entered():
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with sender, receiver:
        receiver.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        receiver.settimeout(TIMEOUT_S)
        receiver.bind((str(address), 0))
        sender.connect(receiver.getsockname()[:2])
        yield sender, receiver


def copy_by_udp(
    source: Namespace, sink: Namespace, address: IPAddress, datagrams: Sequence[bytes]
) -> list[bytes]:
    """Sends datagrams a few at a time, so that no queue overflows; what arrived, as it came."""
    arrived = []
    with udp_sockets(source, sink, address) as (sender, receiver):
        for at in range(0, len(datagrams), 8):
            few = datagrams[at : at + 8]
            for datagram in few:
                sender.send(datagram)
            arrived += [receiver.recv(65535) for _ in few]
    return arrived
