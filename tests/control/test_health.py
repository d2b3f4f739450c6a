"""/healthz and /readyz, asked over real connections: by patient clients and by rude ones."""

from __future__ import annotations

import http.client
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http import HTTPStatus

import pytest

from control import health
from control.health import (
    HealthPortTakenError,
    HealthServer,
    HealthServerError,
    Page,
    Pages,
    health_pages,
)
from tests.control.conftest import wait_for

PORT = 18080
_addresses = itertools.count(1)


@dataclass
class Loop:
    """A control loop's side of it."""

    beat: float = field(default_factory=time.monotonic)
    reasons: list[str] = field(default_factory=list)

    def pages(self) -> Pages:
        return health_pages(lambda: self.beat, lambda: self.reasons, largest_heartbeat_age_s=30.0)


@pytest.fixture
def ip() -> str:
    """A loopback address nobody else uses: so that every port of it is free."""
    pid = os.getpid()
    return f"127.{1 + pid // 256 % 254}.{pid % 256}.{next(_addresses)}"


@pytest.fixture
def serve(ip: str) -> Iterator[Callable[[Pages], HealthServer]]:
    with ExitStack() as stack:

        def start(pages: Pages) -> HealthServer:
            server = HealthServer(ip, PORT, pages)
            stack.callback(server.stop)
            return server

        yield start


def ask(ip: str, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection(ip, PORT, timeout=5.0)
    connection.request(method, path)
    response = connection.getresponse()
    answer = (response.status, response.read().decode())
    connection.close()
    return answer


def test_healthz_follows_the_heartbeat(ip: str, serve: Callable[[Pages], HealthServer]) -> None:
    loop = Loop()
    serve(loop.pages())
    assert ask(ip, "/healthz") == (200, "ok\n")
    loop.beat -= 100
    status, text = ask(ip, "/healthz")
    assert status == 503
    assert text == "the control loop has not turned for 100 s; allowed: 30 s\n"


def test_readyz_gives_each_reason_a_line(ip: str, serve: Callable[[Pages], HealthServer]) -> None:
    loop = Loop(reasons=["no lease: the pool is full", "worker 1 is silent"])
    serve(loop.pages())
    assert ask(ip, "/readyz") == (503, "no lease: the pool is full\nworker 1 is silent\n")
    assert ask(ip, "/healthz") == (200, "ok\n")
    loop.reasons.clear()
    assert ask(ip, "/readyz?verbose=1") == (200, "ok\n")


def test_head_has_the_status_alone_and_other_paths_are_not_found(
    ip: str, serve: Callable[[Pages], HealthServer]
) -> None:
    serve(Loop().pages())
    assert ask(ip, "/healthz", "HEAD") == (200, "")
    assert ask(ip, "/") == (404, "no page /; there are: /healthz, /readyz\n")
    assert ask(ip, "/healthz", "POST")[0] == 501


def test_a_page_that_fails_is_not_a_good_answer(
    ip: str, serve: Callable[[Pages], HealthServer]
) -> None:
    def broken() -> list[str]:
        raise RuntimeError("counters are gone")

    serve(health_pages(time.monotonic, broken))
    assert ask(ip, "/readyz") == (500, "no answer: see the log\n")


def test_port_0_is_off() -> None:
    threads = threading.active_count()
    server = HealthServer("0.0.0.0", 0, Loop().pages())
    assert threading.active_count() == threads
    server.stop()


def test_it_answers_over_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        port = probe.getsockname()[1]
    server = HealthServer("::1", port, Loop().pages())
    try:
        connection = http.client.HTTPConnection("::1", port, timeout=5.0)
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        server.stop()


def test_a_port_that_is_taken_is_named_and_free_again_after_stop(ip: str) -> None:
    first = HealthServer(ip, PORT, Loop().pages())
    with pytest.raises(HealthPortTakenError, match=f"healthz-port: {PORT} on {ip} is taken"):
        HealthServer(ip, PORT, Loop().pages())
    assert ask(ip, "/healthz")[0] == 200
    first.stop()
    first.stop()
    HealthServer(ip, PORT, Loop().pages()).stop()


@pytest.mark.parametrize(
    ("ip", "port", "message"),
    [
        ("192.0.2.1", PORT, r"healthz-ip: 192\.0\.2\.1, allowed: an address of this host"),
        ("localhost", PORT, "healthz-ip: localhost, allowed: an IP address"),
        ("127.0.0.1", 65536, "healthz-port: 65536, allowed: 0 to 65535"),
    ],
)
def test_an_address_that_cannot_be_is_named(ip: str, port: int, message: str) -> None:
    with pytest.raises(HealthServerError, match=message):
        HealthServer(ip, port, Loop().pages())


def test_hanging_clients_hold_up_nobody(
    ip: str, serve: Callable[[Pages], HealthServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "MAX_CONNECTIONS", 8)
    serve(Loop().pages())
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection((ip, PORT), timeout=5.0))
            for _ in range(20)
        ]
        assert ask(ip, "/healthz") == (200, "ok\n")
        assert silent[0].recv(1) == b"", "the oldest should have been cut"


def test_a_client_that_dribbles_is_cut_in_time(
    ip: str, serve: Callable[[Pages], HealthServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "REQUEST_TIME_S", 0.2)
    serve(Loop().pages())
    with socket.create_connection((ip, PORT)) as client:
        client.settimeout(0.02)

        def is_cut() -> bool:
            try:
                client.send(b"G")
                return client.recv(1) == b""
            except TimeoutError:
                return False
            except ConnectionError:
                return True

        wait_for(is_cut, timeout_s=5.0)


def test_stop_waits_neither_for_clients_nor_for_pages(ip: str) -> None:
    asked, release = threading.Event(), threading.Event()

    def stuck() -> Page:
        asked.set()
        release.wait(20.0)
        return Page(HTTPStatus.OK, "late")

    server = HealthServer(ip, PORT, {"/stuck": stuck})
    with (
        socket.create_connection((ip, PORT), timeout=5.0) as silent,
        socket.create_connection((ip, PORT), timeout=5.0) as waiting,
    ):
        waiting.sendall(b"GET /stuck HTTP/1.0\r\n\r\n")
        assert asked.wait(5.0)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 2.0
        assert silent.recv(1) == b""
        assert waiting.recv(1) == b""
        release.set()
    with pytest.raises(ConnectionRefusedError):
        ask(ip, "/stuck")
