"""Where etcd is and how to speak to it, checked before anything is sent."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

DEFAULT_PREFIX = "/coreos.com/network"
DEFAULT_ENDPOINTS = ("http://127.0.0.1:2379",)
CLIENT_PORT = 2379


class EtcdConfigError(ValueError):
    """A setting of the etcd connection cannot be used. No use trying again unchanged."""

    retryable = False

    def __init__(self, field: str, value: object, allowed: str) -> None:
        super().__init__(f"etcd {field} is {value!r}, allowed: {allowed}")
        self.field = field
        self.value = value
        self.allowed = allowed
        self.others: tuple[EtcdConfigError, ...] = ()
        """Whatever else is wrong with the same configuration."""


@dataclass(frozen=True)
class Endpoint:
    """One member of the cluster, as clients reach it."""

    host: str
    """A name, an IPv4 address, or an IPv6 address in brackets."""
    port: int
    secure: bool
    """Whether to speak TLS."""

    def __str__(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.host}:{self.port}"


@dataclass(frozen=True)
class EtcdConfig:
    """How to reach etcd. Construction checks every field and raises EtcdConfigError."""

    urls: tuple[str, ...] = DEFAULT_ENDPOINTS
    """flannel's --etcd-endpoints: http://host:port or https://host:port of each member."""
    prefix: str = DEFAULT_PREFIX
    """The key below which the network lives; a slash at its end is dropped."""
    keyfile: str | None = None
    """PEM file of the client's private key; together with certfile."""
    certfile: str | None = None
    """PEM file of the client's certificate; together with keyfile."""
    cafile: str | None = None
    """PEM file of the authorities that sign the servers' certificates; the system's if absent."""
    username: str | None = None
    """etcd user; together with password."""
    password: str | None = None
    """The user's password; never written to a log."""
    request_timeout_s: float = 5.0
    """Longest wait for the answer to one request, in seconds, per endpoint tried."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prefix", self.prefix.rstrip("/"))
        problems = list(self._problems())
        if problems:
            problems[0].others = tuple(problems[1:])
            raise problems[0]

    def _problems(self) -> Iterator[EtcdConfigError]:
        if not self.prefix:
            yield EtcdConfigError("prefix", self.prefix, f"a key such as {DEFAULT_PREFIX}")
        if not self.request_timeout_s > 0:
            yield EtcdConfigError("request timeout", self.request_timeout_s, "more than 0 s")
        yield from self._missing_of_pair("keyfile", "certfile")
        yield from self._missing_of_pair("username", "password")
        for field in ("keyfile", "certfile", "cafile"):
            yield from self._unreadable(field)
        if not self.urls:
            yield EtcdConfigError("endpoints", "", "at least one URL")
        yield from self._wrong_endpoints()

    def _wrong_endpoints(self) -> Iterator[EtcdConfigError]:
        endpoints = []
        for url in self.urls:
            try:
                endpoints.append(_endpoint_of(url, self._has_tls_files))
            except EtcdConfigError as error:
                yield error
        for endpoint in endpoints:
            if self._has_tls_files and not endpoint.secure:
                allowed = "https://, because TLS files are given"
                yield EtcdConfigError("endpoint", str(endpoint), allowed)
        if any(endpoint.secure for endpoint in endpoints) and self.trusted_cas is None:
            yield EtcdConfigError("cafile", None, "a PEM file (the system has none of its own)")

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        return tuple(_endpoint_of(url, self._has_tls_files) for url in self.urls)

    @property
    def trusted_cas(self) -> str | None:
        """The file of trusted authorities: the one given, else the system's."""
        system = (ssl.get_default_verify_paths().cafile, "/etc/ssl/certs/ca-certificates.crt")
        candidates = [self.cafile] if self.cafile else [path for path in system if path]
        return next((path for path in candidates if Path(path).is_file()), None)

    def __repr__(self) -> str:
        return f"EtcdConfig({', '.join(self.urls)}, prefix={self.prefix})"

    @property
    def _has_tls_files(self) -> bool:
        return bool(self.cafile or self.certfile)

    def _missing_of_pair(self, one: str, other: str) -> Iterator[EtcdConfigError]:
        for given, missing in ((one, other), (other, one)):
            if getattr(self, given) is not None and getattr(self, missing) is None:
                yield EtcdConfigError(missing, None, f"required with the {given}")

    def _unreadable(self, field: str) -> Iterator[EtcdConfigError]:
        path = getattr(self, field)
        if path is None:
            return
        try:
            Path(path).read_bytes()
        except OSError as error:
            yield EtcdConfigError(field, path, f"a readable PEM file ({error.strerror})")


def _endpoint_of(url: str, secure_unless_said: bool) -> Endpoint:
    """Read one endpoint; like flannel's client, take a bare host:port too."""
    allowed = "http://host:port or https://host:port"
    scheme = "https" if secure_unless_said else "http"
    try:
        parts: SplitResult = urlsplit(url if "://" in url else f"{scheme}://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise EtcdConfigError("endpoint", url, allowed) from None
    if (
        not host
        or parts.scheme not in ("http", "https")
        or parts.path.strip("/")
        or parts.query
        or parts.fragment
        or parts.username
    ):
        raise EtcdConfigError("endpoint", url, allowed)
    return Endpoint(
        host=f"[{host}]" if ":" in host else host,
        port=CLIENT_PORT if port is None else port,
        secure=parts.scheme == "https",
    )
