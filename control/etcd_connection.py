"""One connection to one etcd member: etcd3's client on a channel that notices when nobody answers.

Login, and login again when a token has expired, happen in the course of a call. Whatever gRPC and
etcd3 raise comes out as one of etcd_types' errors.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

import grpc

from control.etcd_config import Endpoint, EtcdConfig
from control.etcd_messages import etcd3, rpc
from control.etcd_types import (
    EtcdCompactedError,
    EtcdError,
    EtcdLeaseGoneError,
    EtcdRefusedError,
    EtcdUnavailableError,
)

log = logging.getLogger(__name__)

CHANNEL_OPTIONS = {
    # A member that hangs or a black hole: noticed after 15 s. etcd answers pings that come more
    # often than each 5 s with GOAWAY. Unlimited pings without data, or they stop after two.
    "grpc.keepalive_time_ms": 10_000,
    "grpc.keepalive_timeout_ms": 5_000,
    "grpc.http2.ping_timeout_ms": 5_000,
    "grpc.http2.max_pings_without_data": 0,
    # A new connection shall be new, not the broken one out of the process-wide pool.
    "grpc.use_local_subchannel_pool": 1,
    # Below 2 s, gRPC gives up connections that only take their time.
    "grpc.min_reconnect_backoff_ms": 2_000,
    "grpc.max_receive_message_length": 64 << 20,
    # http_proxy in the environment is meant for browsers, not for the cluster's own traffic.
    "grpc.enable_http_proxy": 0,
}

T = TypeVar("T")


class Connection:
    """etcd3's client, logged in as needed. `client` and `watchstub` are for `call`'s requests."""

    def __init__(self, endpoint: Endpoint, config: EtcdConfig) -> None:
        self.endpoint = endpoint
        self.config = config
        self._needs_login = config.username is not None
        self._closed = False
        self.was_used = False
        """Whether a request was ever made on it that did not fail."""
        try:
            # No user and password here: etcd3's constructor would log in, without a deadline.
            self.client = etcd3.Etcd3Client(
                host=endpoint.host,
                port=endpoint.port,
                ca_cert=config.trusted_cas if endpoint.secure else None,
                cert_key=config.keyfile if endpoint.secure else None,
                cert_cert=config.certfile if endpoint.secure else None,
                timeout=config.request_timeout_s,
                grpc_options=list(CHANNEL_OPTIONS.items()),
            )
        except OSError as error:  # a TLS file that was there when the config was checked
            raise EtcdUnavailableError(f"{error.filename}: {error.strerror}") from error
        self.watchstub = rpc.WatchStub(self.client.channel)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What to send along with a request: the token, once there is one."""
        return self.client.metadata or ()

    def call(self, request: Callable[[Connection], T]) -> T:
        """Carry out `request`, logging in before it and once more if the token has expired.

        Raises EtcdError's subclasses.
        """
        for attempt in ("with the token at hand", "with a new one"):
            if self._needs_login:
                self._log_in()
            try:
                response = request(self)
                self.was_used = True
                return response
            except (grpc.RpcError, etcd3.Etcd3Exception, ValueError) as error:
                typed = self.typed(error)
                if not isinstance(typed, _TokenExpiredError) or attempt == "with a new one":
                    raise typed from error
                self.forget_token()
        raise AssertionError("both attempts return or raise")

    def forget_token(self) -> None:
        """Log in again before the next request."""
        self._needs_login = self.config.username is not None

    def _log_in(self) -> None:
        request = rpc.AuthenticateRequest(name=self.config.username, password=self.config.password)
        stub = rpc.AuthStub(self.client.channel)
        try:
            token = stub.Authenticate(request, timeout=self.config.request_timeout_s).token
            self.client.metadata = (("token", token),)
        except (grpc.RpcError, ValueError) as error:
            typed = self.typed(error)
            if "authentication is not enabled" not in str(typed):
                raise typed from error
            log.warning("etcd asks for no password; user %s is not used", self.config.username)
        self._needs_login = False

    def close(self) -> None:
        """Close the channel; calls and streams under way in other threads end at once."""
        self._closed = True
        self.client.close()

    def typed(self, error: Exception) -> EtcdError:
        """The error of ours that says what etcd or gRPC meant."""
        if isinstance(error, etcd3.Etcd3Exception):
            error = error.__context__ or error  # etcd3 raises its own in place of gRPC's
        if not isinstance(error, grpc.RpcError):
            if self._closed:
                return EtcdUnavailableError("the connection was given up")
            raise error
        code, details = error.code(), error.details() or ""
        if code == grpc.StatusCode.DEADLINE_EXCEEDED:
            return EtcdUnavailableError(f"no answer within {self.client.timeout:g} s")
        if code in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
            grpc.StatusCode.INTERNAL,
            grpc.StatusCode.UNKNOWN,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        ):
            # "failed to connect to all addresses; last error: ... : Connection refused"
            return EtcdUnavailableError(details.rpartition("remote host: ")[2] or code.name.lower())
        if code == grpc.StatusCode.UNAUTHENTICATED or "auth store is old" in details:
            return _TokenExpiredError(details)
        if code == grpc.StatusCode.OUT_OF_RANGE:
            return EtcdCompactedError(details)
        if code == grpc.StatusCode.NOT_FOUND and "lease" in details:
            return EtcdLeaseGoneError(details)
        hint = "; give a user name and password" if "user name is empty" in details else ""
        return EtcdRefusedError(f"{self.endpoint} refused: {details}{hint}")


class _TokenExpiredError(EtcdRefusedError):
    """Log in and try again."""
