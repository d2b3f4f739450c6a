"""/healthz and /readyz over HTTP: flanneld's --healthz-ip and --healthz-port, with true answers.

    /healthz   200 while the control loop turns, else 503: restart the process
    /readyz    200 when packets can flow, else 503 and a line for each reason: wait, or look

A page is a function that is asked at each request, in a thread of the server's. However slow a
client reads or writes, it holds up neither other clients nor the end of the process.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address, IPv6Address, ip_address
from socketserver import ThreadingTCPServer
from typing import Any

log = logging.getLogger(__name__)

LAST_PORT = 65_535
LARGEST_HEARTBEAT_AGE_S = 30.0
"""Well above any pause of a control loop that is in order."""
REQUEST_TIME_S = 5.0
"""From a connection's start to its end; then it is cut."""
MAX_CONNECTIONS = 64
"""One more, and the oldest is cut: those that hang must not keep others out."""


class HealthServerError(Exception):
    """The health server cannot listen; `retryable`: may trying again help?"""

    retryable = False


class HealthPortTakenError(HealthServerError):
    """Another program listens on the port."""

    retryable = True


@dataclass(frozen=True)
class Page:
    """An answer."""

    status: HTTPStatus
    text: str
    content_type: str = "text/plain; charset=utf-8"


Pages = Mapping[str, Callable[[], Page]]
"""By path."""


def health_pages(
    heartbeat: Callable[[], float],
    not_ready_reasons: Callable[[], list[str]],
    *,
    largest_heartbeat_age_s: float = LARGEST_HEARTBEAT_AGE_S,
) -> Pages:
    """/healthz and /readyz.

    `heartbeat`: when the control loop last turned, by time.monotonic(). `not_ready_reasons`: a
    line for each; none: ready. Both are called in other threads than the loop's.
    """

    def healthz() -> Page:
        age_s = time.monotonic() - heartbeat()
        if age_s <= largest_heartbeat_age_s:
            return Page(HTTPStatus.OK, "ok\n")
        reason = f"the control loop has not turned for {age_s:.0f} s"
        return Page(
            HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}; allowed: {largest_heartbeat_age_s:g} s\n"
        )

    def readyz() -> Page:
        reasons = not_ready_reasons()
        if not reasons:
            return Page(HTTPStatus.OK, "ok\n")
        return Page(HTTPStatus.SERVICE_UNAVAILABLE, "".join(f"{line}\n" for line in reasons))

    return {"/healthz": healthz, "/readyz": readyz}


class HealthServer:
    """Serves pages from the moment it is made until `stop`, in daemon threads."""

    def __init__(self, ip: str, port: int, pages: Pages) -> None:
        """`ip`, `port`: --healthz-ip and --healthz-port; with port 0 nothing listens.

        Raises HealthServerError.
        """
        self._server: _Server | None = None
        if port == 0:
            return
        if not 0 < port <= LAST_PORT:
            raise HealthServerError(f"healthz-port: {port}, allowed: 0 to {LAST_PORT}")
        try:
            self._server = _Server(ip_address(ip), port, pages)
        except ValueError as error:
            raise HealthServerError(f"healthz-ip: {ip}, allowed: an IP address") from error
        except OSError as error:
            raise _explained(ip, port, error) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="health", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Close the port and every connection; returns within a second. May be called again."""
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server.cut_connections(began_before=float("inf"))
            self._server = None


def _explained(ip: str, port: int, error: OSError) -> HealthServerError:
    if error.errno == errno.EADDRINUSE:
        return HealthPortTakenError(
            f"healthz-port: {port} on {ip} is taken by another program; "
            "allowed: a free port, or 0 for no health server"
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return HealthServerError(f"healthz-ip: {ip}, allowed: an address of this host")
    return HealthServerError(f"healthz-port: cannot listen on {port} of {ip}: {error.strerror}")


class _Server(ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False  # a thread may sit in a page or a client for as long as it likes
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, ip: IPv4Address | IPv6Address, port: int, pages: Pages) -> None:
        self.address_family = socket.AF_INET6 if ip.version == 6 else socket.AF_INET
        self.pages = pages
        self._connections: dict[socket.socket, float] = {}
        """Those open and not cut, the oldest first; when they began, by time.monotonic()."""
        self._connections_lock = threading.Lock()
        super().__init__((str(ip), port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._connections_lock:
            self._connections[request] = time.monotonic()
            if len(self._connections) > MAX_CONNECTIONS:
                self._cut(next(iter(self._connections)))
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Called by `serve_forever` at least twice a second."""
        self.cut_connections(began_before=time.monotonic() - REQUEST_TIME_S)

    def cut_connections(self, began_before: float) -> None:
        """`began_before` by time.monotonic()."""
        with self._connections_lock:
            for connection, began in list(self._connections.items()):
                if began < began_before:
                    self._cut(connection)

    def _cut(self, connection: socket.socket) -> None:
        """Whoever reads or writes there meets its end; the thread that serves it closes it."""
        del self._connections[connection]
        with contextlib.suppress(OSError):  # the client was faster
            connection.shutdown(socket.SHUT_RDWR)

    def shutdown_request(self, request: Any) -> None:
        with self._connections_lock:  # what is cut must not be closed, let alone another's
            self._connections.pop(request, None)
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("health: a client's connection broke", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "loden"
    sys_version = ""

    def do_GET(self) -> None:
        page = self._find_page()
        body = page.text.encode()
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name BaseHTTPRequestHandler looks for

    def _find_page(self) -> Page:
        path = self.path.partition("?")[0]
        make_page = self.server.pages.get(path)
        if make_page is None:
            there_are = ", ".join(sorted(self.server.pages))
            return Page(HTTPStatus.NOT_FOUND, f"no page {path}; there are: {there_are}\n")
        try:
            return make_page()
        except Exception:
            log.exception("health: %s has no answer", path)
            return Page(HTTPStatus.INTERNAL_SERVER_ERROR, "no answer: see the log\n")

    def log_message(self, format: str, *arguments: Any) -> None:
        log.debug("health: %s " + format, self.client_address[0], *arguments)
