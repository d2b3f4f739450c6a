"""Docker's own unit, with our drop-in, and loden.service with `docker = true`: a real systemd."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Interface

import pytest

from control.subnet_env import read_subnet_env
from perf.nodes import init_network
from perf.topology import BRIDGE_DEVICE, UNDERLAY_DEVICE
from tests.netns.booted_systemd import ROOT, BootedSystemd, CannotBoot, booted_systemd
from tests.netns.nodes import FIRST_START_S, Cluster, cluster_of, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.docker, pytest.mark.systemd]

DROP_IN = ROOT / "systemd/docker.service.d/loden.conf"
SETTINGS = f"""
etcd-endpoints = ["{{etcd_url}}"]
iface = "{UNDERLAY_DEVICE}"
ip-masq = true
docker = true
"""
WATCHDOG_S = 60.0
ALONE = "[Unit]\nDefaultDependencies=no\n"
"""Of Docker's units: nothing else of this machine is started."""


@dataclass
class Machine:
    cluster: Cluster
    systemd: BootedSystemd

    def state_of(self, unit: str) -> str:
        return self.systemd.systemctl("show", unit, "--property=ActiveState", "--value").strip()

    def bridge(self) -> str:
        """The address of Docker's bridge; "" when there is none."""
        shown = self.cluster.nodes[0].host.run(["ip", "-br", "address"]).stdout
        lines = (line.split() for line in shown.splitlines())
        return next((words[2] for words in lines if words[0] == BRIDGE_DEVICE), "")

    def subnet(self) -> IPv4Interface | None:
        """The node's, with the address that the bridge shall have."""
        contents = read_subnet_env(self.systemd.path("/run/flannel/subnet.env"))
        return contents.subnet if contents else None


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """With both services installed and none started, and no network config in etcd."""
    render = [str(ROOT / "systemd/service"), "unit"]
    environ = {**os.environ, "PYTHON": sys.executable, "PREFIX": sys.prefix}
    unit = subprocess.run(render, env=environ, check=True, capture_output=True, text=True).stdout
    directory = tmp_path_factory.mktemp("systemd")
    with cluster_of(1, tmp_path_factory.mktemp("cluster")) as cluster:
        settings, host = SETTINGS.format(etcd_url=cluster.etcd.url), cluster.nodes[0].host
        try:
            with booted_systemd(host, directory, unit, settings, WATCHDOG_S) as systemd:
                install_docker(systemd)
                yield Machine(cluster, systemd)
                print(systemd.log())
        except CannotBoot as error:
            pytest.skip(f"no second systemd can run on this machine: {error}")


def install_docker(systemd: BootedSystemd) -> None:
    """Debian's package has; what is left is the drop-in."""
    for unit in ("docker.service", "docker.socket", "containerd.service"):
        folder = systemd.path(f"/etc/systemd/system/{unit}.d")
        folder.mkdir(exist_ok=True)
        (folder / "alone.conf").write_text(ALONE)
    drop_in = systemd.path("/etc/systemd/system/docker.service.d/loden.conf")
    drop_in.write_text(DROP_IN.read_text())
    systemd.systemctl("daemon-reload")


def test_docker_waits_for_loden_and_starts_on_its_bridge(machine: Machine) -> None:
    machine.systemd.systemctl("start", "--no-block", "docker")
    wait_for(
        lambda: "there is no network config" in machine.systemd.show("StatusText"),
        "loden, which Docker has started, waits itself",
        FIRST_START_S,
    )
    assert machine.state_of("docker") == "inactive"
    machine.cluster.init()
    wait_for(lambda: machine.state_of("docker") == "active", "Docker has started", FIRST_START_S)
    assert machine.bridge() == str(machine.subnet())


def test_docker_is_restarted_onto_another_subnet(machine: Machine) -> None:
    etcd = machine.cluster.etcd
    init_network(etcd.host, etcd.url, "10.6.0.0/16", "--force")
    wait_for(lambda: machine.bridge().startswith("10.6."), "the bridge has moved", 30)
    assert machine.bridge() == str(machine.subnet())
    wait_for(lambda: machine.state_of("docker") == "active", "Docker runs again", 30)


def test_docker_that_failed_for_lack_of_options_is_started_when_they_are_there(
    machine: Machine,
) -> None:
    machine.systemd.systemctl("stop", "docker.service", "docker.socket", "loden.service")
    machine.systemd.path("/run/flannel/docker_opts.env").unlink()
    settings = machine.systemd.path("/etc/loden/loden.toml")
    good = settings.read_text()
    settings.write_text("lease-ttl = 1")
    machine.systemd.systemctl("start", "--no-block", "docker")
    wait_for(lambda: machine.state_of("docker") == "failed", "Docker without loden", 30)
    settings.write_text(good)
    machine.systemd.systemctl("start", "loden")
    wait_for(lambda: machine.state_of("docker") == "active", "Docker with loden", 30)
    assert machine.bridge() == str(machine.subnet())
