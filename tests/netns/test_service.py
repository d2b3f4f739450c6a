"""loden.service under a real systemd, on the host of a node: what the unit promises."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.subnet_env import read_subnet_env
from forwarder.capabilities import OF_FORWARDER, Capability, to_read
from perf.topology import UNDERLAY_DEVICE
from tests.netns.booted_systemd import ROOT, BootedSystemd, CannotBoot, booted_systemd
from tests.netns.nodes import FIRST_START_S, Cluster, cluster_of, reaches, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd, pytest.mark.systemd]

WATCHDOG_S = 6
SETTINGS = f"""
etcd-endpoints = ["{{etcd_url}}"]
iface = "{UNDERLAY_DEVICE}"
ip-masq = true
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A host for systemd, one for another node, and an etcd without a network config."""
    with cluster_of(2, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def service(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedSystemd]:
    render = [str(ROOT / "systemd/service"), "unit"]
    environ = {**os.environ, "PYTHON": sys.executable, "PREFIX": sys.prefix}
    unit = subprocess.run(render, env=environ, check=True, capture_output=True, text=True).stdout
    settings = SETTINGS.format(etcd_url=cluster.etcd.url)
    directory = tmp_path_factory.mktemp("systemd")
    host = cluster.nodes[0].host
    try:
        with booted_systemd(host, directory, unit, settings, WATCHDOG_S) as systemd:
            yield systemd
            print(systemd.log())
    except CannotBoot as error:
        pytest.skip(f"no second systemd can run on this machine: {error}")


@pytest.fixture
def running(cluster: Cluster, service: BootedSystemd) -> BootedSystemd:
    """The service, active."""
    if service.show("ActiveState") != "active":
        cluster.init()
        service.systemctl("start", "--no-block", "loden")
        wait_active(service)
    return service


def wait_active(service: BootedSystemd) -> None:
    wait_for(lambda: service.show("ActiveState") == "active", "the service", FIRST_START_S)


def test_service_is_ready_when_packets_can_flow_and_says_what_it_waits_for(
    cluster: Cluster, service: BootedSystemd
) -> None:
    service.systemctl("start", "--no-block", "loden")
    wait_for(
        lambda: "there is no network config in etcd" in service.show("StatusText"),
        "what it waits for",
        FIRST_START_S,
    )
    assert service.show("ActiveState") == "activating"
    cluster.init()
    wait_active(service)
    assert service.show("StatusText").startswith("subnet 10.5.")
    subnet_env = read_subnet_env(service.path("/run/flannel/subnet.env"))
    assert subnet_env is not None
    assert subnet_env.subnet is not None

    other = cluster.nodes[1]
    other.start()
    other.wait_ready()
    pod = cluster.nodes[0].host.add_pod(subnet_env.subnet.network, mtu_bytes=1450)
    wait_for(lambda: reaches(pod, other.pod()), "the way to another node")
    wait_for(lambda: reaches(other.pod(), pod), "the way back")


def status_of(pid: int) -> dict[str, str]:
    """proc_pid_status(5)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


def names_and_pids(service: BootedSystemd) -> dict[str, int]:
    """Of run, forwarder, control, and of one worker; not of what they start for a moment."""
    found = {}
    for pid in service.pids():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if status_of(pid)["Name"] == "loden-worker":
                found["worker"] = pid
            elif words[1:3] == ["-m", "forwarder"]:
                found["forwarder"] = pid
            elif words[1:3] == ["-m", "control"]:
                found[words[3]] = pid
    return found


def test_each_process_has_the_capabilities_of_its_trade_alone(running: BootedSystemd) -> None:
    pids = names_and_pids(running)
    assert pids.keys() == {"run", "forwarder", "control", "worker"}
    expected = {
        "forwarder": OF_FORWARDER | to_read(),
        "control": {Capability.NET_ADMIN} | to_read(),
        "worker": set(),
    }
    for name, capabilities in expected.items():
        mask = sum(1 << capability for capability in capabilities)
        for task in os.listdir(f"/proc/{pids[name]}/task"):
            status = status_of(int(task))
            sets = [int(status[which], 16) for which in ("CapPrm", "CapEff", "CapInh", "CapAmb")]
            assert sets == [mask, mask, 0, 0], (name, status)
            assert status["NoNewPrivs"] == "1"
            assert status["Seccomp"] == "2"  # of the unit; the workers' own comes besides
    assert int(status_of(pids["control"])["CapBnd"], 16) == 1 << Capability.NET_ADMIN


def test_firewall_rules_are_set_from_within_the_sandbox(
    running: BootedSystemd, cluster: Cluster
) -> None:
    def has_rules() -> bool:
        return "random" in cluster.nodes[0].host.run(["nft", "list", "ruleset"]).stdout

    wait_for(has_rules, "masquerading")


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        ("/run/loden", 0o40755),
        ("/run/loden/forwarder.sock", 0o140600),
        ("/run/loden/control.sock", 0o140600),
        ("/run/flannel", 0o40755),
        ("/run/flannel/subnet.env", 0o100644),
        ("/var/lib/loden", 0o40700),
        ("/var/lib/loden/state.msgpack", 0o100600),
        ("/etc/loden/loden.toml", 0o100600),
    ],
)
def test_files_and_sockets_are_roots_and_open_to_whom_they_are_for(
    running: BootedSystemd, path: str, mode: int
) -> None:
    wait_for(lambda: running.path(path).exists(), path)
    status = running.path(path).stat()
    assert (status.st_uid, status.st_gid) == (0, 0)
    assert oct(status.st_mode) == oct(mode)


def test_control_that_dies_does_not_end_the_service(running: BootedSystemd) -> None:
    before = names_and_pids(running)
    os.kill(before["control"], signal.SIGKILL)
    wait_for(
        lambda: names_and_pids(running).get("control", before["control"]) != before["control"],
        "another control",
    )
    assert running.show("ActiveState") == "active"
    assert running.show("NRestarts") == "0"
    assert names_and_pids(running)["forwarder"] == before["forwarder"]


def test_control_that_hangs_has_the_service_started_anew(running: BootedSystemd) -> None:
    """The signs of life that systemd waits for are control's."""
    first = running.show("WatchdogTimestampMonotonic")
    wait_for(lambda: running.show("WatchdogTimestampMonotonic") != first, "a sign of life")
    before = names_and_pids(running)
    os.kill(before["control"], signal.SIGSTOP)
    wait_for(lambda: running.show("NRestarts") == "1", "the watchdog's restart", 60)
    wait_active(running)
    assert not names_and_pids(running).items() & before.items()


def test_stopped_service_leaves_subnet_env_and_state_alone(
    running: BootedSystemd, cluster: Cluster
) -> None:
    running.systemctl("stop", "loden")
    assert (running.show("ActiveState"), running.show("Result")) == ("inactive", "success")
    links = cluster.nodes[0].host.run(["ip", "-o", "link"]).stdout
    assert "loden0" not in links
    assert running.path("/run/flannel/subnet.env").exists()
    assert running.path("/var/lib/loden/state.msgpack").exists()
    assert not running.path("/run/loden/control.sock").exists()


def test_settings_that_cannot_be_are_not_tried_again(service: BootedSystemd) -> None:
    service.systemctl("stop", "loden")
    settings = service.path("/etc/loden/loden.toml")
    good = settings.read_text()
    settings.write_text("lease-ttl = 1")
    service.systemctl("start", "--no-block", "loden")
    wait_for(lambda: service.show("ActiveState") == "failed", "the end of it")
    assert service.show("ExecMainStatus") == "2"
    assert "/etc/loden/loden.toml: lease-ttl: 1 is not in the range" in service.log()
    settings.write_text(good)
    service.systemctl("reset-failed", "loden")
