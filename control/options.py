"""What the operator told this node: the command line's values, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from control.acquire import DEFAULT_TTL_S
from control.etcd_config import EtcdConfig
from control.lease_keeper import DEFAULT_RENEW_MARGIN_S
from control.subnet_env import DEFAULT_PATH

DEFAULT_RUN_DIR = Path("/run/loden")
DEFAULT_STATE_DIR = Path("/var/lib/loden")
DEFAULT_DEVICE = "loden0"


@dataclass(frozen=True)
class ControlOptions:
    """The settings of the control process."""

    etcd: EtcdConfig
    ifaces: tuple[str, ...] = ()
    """--iface: names or addresses, the first that matches is the underlay's interface."""
    iface_regexes: tuple[str, ...] = ()
    iface_can_reach: IPv4Address | IPv6Address | None = None
    public_ip: IPv4Address | None = None
    """Published instead of the interface's own address."""
    public_ipv6: IPv6Address | None = None
    subnet_file: Path = DEFAULT_PATH
    ip_masq: bool = False
    """Masquerade what leaves the cluster."""
    forward_rules: bool = True
    """Have the firewall accept what is forwarded from and to the cluster."""
    docker: bool = False
    """Keep Docker's options beside the subnet file, and restart Docker when they change."""
    lease_ttl_s: int = DEFAULT_TTL_S
    renew_margin_s: float = DEFAULT_RENEW_MARGIN_S
    healthz_ip: str = "0.0.0.0"
    healthz_port: int = 0
    """0: no health server."""
    metrics_peers: bool = True
    """Whether /metrics tells of every peer."""
    run_dir: Path = DEFAULT_RUN_DIR
    """Sockets: one run dir per node of a machine."""
    state_dir: Path = DEFAULT_STATE_DIR
    """What outlives a reboot: our MAC, the last good routes."""
    device: str = DEFAULT_DEVICE
    lanes: int = 8
    """Source ports that flows are spread over."""
