"""The contenders that loden is compared with: none, the kernel, and two that encrypt.

Each makes the pods of two hosts reachable from each other, with the best settings that its
documentation has for that; loden itself is in `perf/loden_contender.py`.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from perf.measure import NotHere
from perf.namespace import run_command
from perf.nodes import wait_for
from perf.pair import MTU_BYTES, SUBNETS
from perf.peers import KernelVxlan
from perf.topology import Host, Topology

START_S = 15.0
WIREGUARD_PORT = 51820
WIREGUARD_SOCKETS = Path("/var/run/wireguard")
NEBULA_NETWORK = IPv4Network("10.8.0.0/24")
NEBULA_PORT = 4242
SOCKET_BUFFER_BYTES = 10 << 20

_device_numbers = itertools.count()


def connect_bare(topology: Topology, directory: Path) -> dict[str, Any]:
    """No overlay: the hosts route to each other's pods."""
    for host, other, subnet in crosswise(topology):
        host.ip(f"route add {subnet} via {other.address}")
    return {}


def connect_kernel(topology: Topology, directory: Path) -> dict[str, Any]:
    """The kernel's vxlan, as flannel sets it up."""
    ends = [
        KernelVxlan(host, subnet, mtu_bytes=MTU_BYTES)
        for host, subnet in zip(topology.hosts, SUBNETS, strict=True)
    ]
    for end, other in (ends, reversed(ends)):
        end.add_peer(other.subnet, other.public_ip, other.mac)
    return {}


def crosswise(topology: Topology) -> Iterator[tuple[Host, Host, IPv4Network]]:
    near, far = topology.hosts
    yield near, far, SUBNETS[1]
    yield far, near, SUBNETS[0]


def connect_wireguard_go(topology: Topology, directory: Path) -> dict[str, Any]:
    """WireGuard in user space.  Encrypts (ChaCha20-Poly1305).  Raises NotHere, NodeFailed."""
    version = required_version("wireguard-go", "--version")
    required_version("wg", "--version", package="wireguard-tools")
    # Its control sockets stand in one folder, whatever the namespace.
    prefix = f"wg{os.getpid()}n{next(_device_numbers)}"
    devices = {host.name: f"{prefix}{number}" for number, host in enumerate(topology.hosts)}
    keys = {host.name: _wireguard_keys(directory / f"{host.name}.key") for host in topology.hosts}
    for host, other, subnet in crosswise(topology):
        device, log_path = devices[host.name], directory / f"{host.name}.log"
        with log_path.open("wb") as log:
            argv = ["wireguard-go", "--foreground", device]
            process = host.popen(argv, stdout=log, stderr=subprocess.STDOUT)
        socket_path = WIREGUARD_SOCKETS / f"{device}.sock"
        wait_for(socket_path.exists, process, f"wireguard-go on {host.name}", log_path, START_S)
        peer = ["peer", keys[other.name][1], "allowed-ips", str(subnet)]
        peer += ["endpoint", f"{other.address}:{WIREGUARD_PORT}"]
        own = ["listen-port", str(WIREGUARD_PORT), "private-key", str(keys[host.name][0])]
        host.run(["wg", "set", device, *own, *peer])
        host.ip(f"link set {device} mtu {MTU_BYTES} up", f"route add {subnet} dev {device}")
    return {"version": version, "encrypts": "ChaCha20-Poly1305"}


def _wireguard_keys(path: Path) -> tuple[Path, str]:
    """The file with the private key, and the public one."""
    private = run_command(["wg", "genkey"]).stdout
    path.touch(mode=0o600)
    path.write_text(private)
    return path, run_command(["wg", "pubkey"], script=private).stdout.strip()


def connect_nebula(topology: Topology, directory: Path) -> dict[str, Any]:
    """nebula, a thread pair per two CPUs.  Encrypts (AES-256-GCM).  Raises NotHere, NodeFailed."""
    version = required_version("nebula", "-version")
    required_version("nebula-cert", "-version", package="nebula")
    run_command(["nebula-cert", "ca", "-name", "benchmark"], cwd=directory)
    for number, subnet in enumerate(SUBNETS):
        network = f"{NEBULA_NETWORK[1 + number]}/{NEBULA_NETWORK.prefixlen}"
        names = ["-name", f"host{number}", "-ip", network, "-subnets", str(subnet)]
        run_command(["nebula-cert", "sign", *names], cwd=directory)
    near, far = topology.hosts
    _start_nebula(near, directory / "host0", nebula_config(directory, 0, far))
    _start_nebula(far, directory / "host1", nebula_config(directory, 1, near))
    return {"version": version, "encrypts": "AES-256-GCM"}


def _start_nebula(host: Host, path: Path, config: dict[str, Any]) -> None:
    """`path`: of its files, which get suffixes."""
    config_path, log_path = path.with_suffix(".yml"), path.with_suffix(".log")
    config_path.write_text(json.dumps(config))  # JSON is YAML
    with log_path.open("wb") as log:
        argv = ["nebula", "-config", str(config_path)]
        process = host.popen(argv, stdout=log, stderr=subprocess.STDOUT)

    def has_device() -> bool:
        return config["tun"]["dev"] in host.run(["ip", "-o", "link"]).stdout

    wait_for(has_device, process, f"nebula on {host.name}", log_path, START_S)


def nebula_config(directory: Path, number: int, other: Host) -> dict[str, Any]:
    """Of the host with that number: no lighthouse, since both know where the other is."""
    everything = [{"port": "any", "proto": "any", "host": "any"}]
    far_ip = str(NEBULA_NETWORK[2 - number])
    return {
        "pki": {
            "ca": str(directory / "ca.crt"),
            "cert": str(directory / f"host{number}.crt"),
            "key": str(directory / f"host{number}.key"),
        },
        "static_host_map": {far_ip: [f"{other.address}:{NEBULA_PORT}"]},
        "lighthouse": {"am_lighthouse": False},
        "listen": {
            "host": "0.0.0.0",
            "port": NEBULA_PORT,
            "read_buffer": SOCKET_BUFFER_BYTES,
            "write_buffer": SOCKET_BUFFER_BYTES,
        },
        "cipher": "aes",
        "routines": max(1, (os.cpu_count() or 1) // 2),
        "tun": {
            "dev": "nebula0",
            "mtu": MTU_BYTES,
            "tx_queue": 5000,
            "unsafe_routes": [{"route": str(SUBNETS[1 - number]), "via": far_ip}],
        },
        "firewall": {"outbound": everything, "inbound": everything},
    }


def required_version(program: str, *options: str, package: str | None = None) -> str:
    """What it says its version is.  Raises NotHere when it is not installed."""
    if shutil.which(program) is None:
        name = package or program
        raise NotHere(f"{program} is not installed (Debian's package: {name})")
    return run_command([program, *options]).stdout.splitlines()[0]
