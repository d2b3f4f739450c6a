"""etcd: does each member answer, how fast, with a certificate that holds; what is in it."""

from __future__ import annotations

import email.utils
import http.client
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from control.acquire import leases_in
from control.doctor.finding import Finding, failure, ok, unknown, warning
from control.etcd import EtcdClient
from control.etcd_config import Endpoint, EtcdConfig
from control.etcd_types import EtcdError
from control.lease import SUBNETS, Lease, config_key
from control.network_config import NetworkConfig, NetworkConfigError

ANSWER_S = 2.0
SLOW_S = 0.5
EXPIRY_DAYS = 30.0
_DAY_S = 86_400.0


@dataclass
class EtcdPicture:
    """What was found, and what the other checks need of it."""

    findings: list[Finding] = field(default_factory=list)
    skews: dict[str, float] = field(default_factory=dict)
    """Seconds that each member's clock is ahead."""
    config: NetworkConfig | None = None
    leases: list[Lease] = field(default_factory=list)


def check_etcd(config: EtcdConfig, is_running: bool) -> EtcdPicture:
    """`is_running`: a node on this host has its routes, whatever etcd says now."""
    picture = EtcdPicture()
    answering = [
        endpoint for endpoint in config.endpoints if check_member(endpoint, config, picture)
    ]
    if not answering:
        means = "packets flow on, changes are not seen" if is_running else "loden cannot start"
        says = f"no member of etcd answers: {means}"
        picture.findings.append(failure("etcd", says, "see each member above; --etcd-endpoints"))
        return picture
    client = EtcdClient(config)
    try:
        _read(client, picture)
    except EtcdError as error:
        says = f"etcd answers, but does not say what loden needs: {error}"
        mend = "--etcd-username, --etcd-password; the user's role on --etcd-prefix"
        picture.findings.append(failure("etcd", says, mend))
    finally:
        client.close()
    return picture


def check_member(endpoint: Endpoint, config: EtcdConfig, picture: EtcdPicture) -> bool:
    """Whether it answers; its findings and its clock go into `picture`."""
    check = f"etcd {endpoint}"
    begun = time.monotonic()
    try:
        date, expires_at = _ask(endpoint, config)
    except ssl.SSLError as error:
        says = f"TLS fails: {error.reason or error}"
        mend = "--etcd-cafile must have signed the member's certificate, which must name the host "
        mend += "as in --etcd-endpoints; the member may ask for --etcd-certfile and --etcd-keyfile"
        picture.findings.append(failure(check, says, mend))
        return False
    except (OSError, http.client.HTTPException) as error:
        says = f"it does not answer: {error}"
        mend = "is etcd running there, with http or https, and is the port open to this host?"
        picture.findings.append(failure(check, says, mend))
        return False
    latency_s = time.monotonic() - begun
    if date is not None:
        picture.skews[str(endpoint)] = date - time.time()
    picture.findings += _judge(check, latency_s, expires_at)
    return True


def _ask(endpoint: Endpoint, config: EtcdConfig) -> tuple[float | None, float | None]:
    """(Unix time by the member's clock, end of its certificate).  Raises OSError, HTTPException."""
    host = endpoint.host.strip("[]")
    connection: http.client.HTTPConnection
    if endpoint.secure:
        context = ssl.create_default_context(cafile=config.trusted_cas)
        if config.certfile is not None:
            context.load_cert_chain(config.certfile, config.keyfile)
        connection = http.client.HTTPSConnection(
            host, endpoint.port, timeout=ANSWER_S, context=context
        )
    else:
        connection = http.client.HTTPConnection(host, endpoint.port, timeout=ANSWER_S)
    try:
        connection.connect()
        expires_at = None
        if isinstance(connection.sock, ssl.SSLSocket):
            certificate = connection.sock.getpeercert() or {}
            expires_at = float(ssl.cert_time_to_seconds(str(certificate["notAfter"])))
        connection.request("GET", "/version")
        response = connection.getresponse()
        response.read()
        date = response.getheader("Date")
        return (email.utils.parsedate_to_datetime(date).timestamp() if date else None), expires_at
    finally:
        connection.close()


def _judge(check: str, latency_s: float, expires_at: float | None) -> Iterable[Finding]:
    days = None if expires_at is None else (expires_at - time.time()) / _DAY_S
    if days is not None and days < EXPIRY_DAYS:
        says = f"its certificate ends in {days:.0f} days: then nobody gets through to it"
        yield warning(check, says, "renew it")
    if latency_s > SLOW_S:
        says = f"it takes {latency_s * 1000:.0f} ms to answer: changes of routes come late"
        yield warning(
            check, says, "look at its disk (etcd's log tells of slow fdatasync) and at the way"
        )
    else:
        until = "" if days is None else f", its certificate holds for {days:.0f} days"
        yield ok(check, f"it answers in {latency_s * 1000:.0f} ms{until}")


def _read(client: EtcdClient, picture: EtcdPicture) -> None:
    """The network config and the leases.  Raises EtcdError."""
    prefix = client.config.prefix
    entry = client.get(config_key(prefix))
    if entry is None:
        says = f"there is no {config_key(prefix)}: nobody has said what the pods' network is"
        mend = (
            "loden init --network CIDR, once for all nodes; or is it under another --etcd-prefix?"
        )
        picture.findings.append(failure("network config", says, mend))
        return
    try:
        picture.config = NetworkConfig.parse(entry.value)
    except NetworkConfigError as error:
        says = f"{config_key(prefix)} cannot be used: {error}"
        picture.findings.append(failure("network config", says, "loden init --force"))
        return
    picture.leases = leases_in(prefix, client.list_prefix(f"{prefix}/{SUBNETS}").entries)
    pools = [str(p.network) for p in (picture.config.ipv4, picture.config.ipv6) if p]
    says = f"{' and '.join(pools)}, VNI {picture.config.vni}, {len(picture.leases)} leases"
    picture.findings.append(ok("network config", says))


def check_lease(etcd: dict[str, object]) -> Finding:
    """Of a running node: `etcd` as in its status."""
    if reason := etcd.get("lease_not_held_because"):
        mend = "until it is held again, another node may be given the subnet; look at etcd above"
        return warning("lease", str(reason), mend)
    if kept := etcd.get("retained"):
        says = f"{kept} leases and routes that etcd has lost are still followed"
        return warning("lease", says, "if they are gone indeed: loden route confirm-loss")
    if not isinstance(etcd.get("lease"), dict):
        return unknown("lease", "there is none yet")
    return ok("lease", "the subnet is this node's")
