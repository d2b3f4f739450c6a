"""A private etcd, spoken to without any of control's own code: so many keys, at such a rate."""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import grpc

from control.embedded_etcd import EmbeddedEtcd
from control.etcd_messages import rpc

PUTS_PER_TRANSACTION = 100
"""etcd takes up to 128."""
PAGE_ENTRIES = 1000
DEADLINE_S = 60.0


class BulkEtcd(EmbeddedEtcd):
    """Runs from `start` to `stop`."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._channel: Any = None

    def start(self, timeout_s: float = 30.0) -> str:
        url = super().start(timeout_s)
        options = [("grpc.max_receive_message_length", 64 << 20), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(url.removeprefix("http://"), options)
        self._kv, self._watch = rpc.KVStub(self._channel), rpc.WatchStub(self._channel)
        return url

    def stop(self, timeout_s: float = 5.0) -> None:
        if self._channel is not None:
            self._channel.close()
        super().stop(timeout_s)

    def put(self, pairs: Sequence[tuple[str, str]]) -> Any:
        """Begins one transaction; its `result()` waits for etcd's answer."""
        operations = [
            rpc.RequestOp(request_put=rpc.PutRequest(key=key.encode(), value=value.encode()))
            for key, value in pairs
        ]
        return self._kv.Txn.future(rpc.TxnRequest(success=operations), timeout=DEADLINE_S)

    def fill(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Puts them all."""
        rest = iter(pairs)
        while batch := list(islice(rest, PUTS_PER_TRANSACTION)):
            self.put(batch).result()

    def list_s(self, prefix: str) -> float:
        """Seconds to read all below `prefix` in pages, and do nothing with it."""
        begun = time.perf_counter()
        key, end = prefix.encode(), prefix.encode()[:-1] + bytes([ord(prefix[-1]) + 1])
        more = True
        while more:
            request = rpc.RangeRequest(key=key, range_end=end, limit=PAGE_ENTRIES)
            page = self._kv.Range(request, timeout=DEADLINE_S)
            more = page.more
            key = page.kvs[-1].key + b"\0" if page.kvs else end
        return time.perf_counter() - begun

    def requests(self) -> int:
        """How many calls and streams clients have begun since it runs."""
        host, port = self.url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=DEADLINE_S)
        try:
            connection.request("GET", "/metrics")
            metrics = connection.getresponse().read().decode()
        finally:
            connection.close()
        counts = re.findall(r"^grpc_server_started_total\{.*\} (\S+)$", metrics, re.MULTILINE)
        return int(sum(map(float, counts)))

    def cpu_s(self) -> float:
        """CPU time it has used."""
        assert self.pid is not None
        return process_cpu_s(self.pid)

    def watchers(self, prefix: str, count: int) -> list[Watcher]:
        """So many watches of `prefix`, each a stream of its own, that follow from now on."""
        return [Watcher(self._watch, prefix) for _ in range(count)]


class Watcher:
    """One watch that does nothing with what it gets but count."""

    def __init__(self, stub: Any, prefix: str) -> None:
        self.events = 0
        self._ended = threading.Event()
        end = prefix.encode()[:-1] + bytes([ord(prefix[-1]) + 1])
        create = rpc.WatchCreateRequest(key=prefix.encode(), range_end=end)
        self._responses = stub.Watch(self._requests(rpc.WatchRequest(create_request=create)))
        next(self._responses)  # it is set up
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def _requests(self, create: Any) -> Iterator[Any]:
        yield create
        self._ended.wait()

    def _count(self) -> None:
        try:
            for response in self._responses:
                self.events += len(response.events)
        except grpc.RpcError:
            return  # cancelled

    def close(self) -> None:
        self._ended.set()
        self._responses.cancel()
        self._thread.join()


def process_cpu_s(pid: int) -> float:
    """User and system time a process has used, in seconds (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
