"""What an operator can get wrong: each has a message to act on, and an exit status.

2  a flag's value cannot be
3  starting it again cannot help before somebody mends the cause
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perf.nodes import LODEN, PACKAGES_DIR
from perf.topology import Host
from tests.netns.nodes import FIRST_START_S, Cluster, LodenNode, cluster_of, wait_for

pytestmark = [pytest.mark.netns, pytest.mark.etcd]

NOWHERE = "http://127.0.0.1:1"
PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One host, an etcd, a network config; the kernels are compiled."""
    with cluster_of(1, tmp_path_factory.mktemp("lonely")) as cluster:
        cluster.init()
        cluster.start(0)
        cluster.nodes[0].stop()
        yield cluster


@pytest.fixture
def host(lonely: Cluster) -> Host:
    return lonely.nodes[0].host


@pytest.fixture
def node(lonely: Cluster, tmp_path: Path) -> Iterator[LodenNode]:
    """Not started yet; its log is shown when the test fails."""
    node = LodenNode(lonely.nodes[0].host, tmp_path / "node", lonely.etcd.url)
    yield node
    node.kill_everything()
    print(node.log())


def ends_with(node: LodenNode, status: int, *sentences: str) -> None:
    """Asserts that it ends so, and says so."""
    assert node.process is not None
    try:
        node.process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        pytest.fail(f"it goes on:\n{node.log()}")
    log = node.log()
    assert node.process.returncode == status, log
    for sentence in sentences:
        assert sentence in log
    assert "Traceback" not in log


@contextlib.contextmanager
def link(host: Host, name: str, how: str) -> Iterator[None]:
    host.ip(f"{how.split()[0]} add {name} {how.partition(' ')[2]}")
    try:
        yield
    finally:
        host.ip(f"link del {name}")


# ---- flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--cpus", "0,99"], "cpus: 99 is not allowed; allowed: 0"),
        (["--cpus", "two"], "cpus: 'two' is no list of CPUs such as '0,2-5'"),
        (["--workers", "0"], "workers: 0 is not allowed; allowed: 1 to"),
        (["--workers", "1000"], "workers: 1000 is not allowed; allowed: 1 to"),
        (["--user", "ghost"], "user: 'ghost' does not exist on this host"),
        (["--user", "root"], "user: 'root' is root; the workers need an unprivileged user"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_value_that_cannot_be_ends_run_with_2(
    node: LodenNode, words: list[str], sentence: str
) -> None:
    node.start(*words)
    ends_with(node, 2, sentence)


def test_unknown_interface_is_named_with_those_there_are(node: LodenNode) -> None:
    words = [word if word != "eth0" else "eth8" for word in node.run_words()]
    node.launch([*words, "--iface", "eth9"])
    ends_with(node, 3, "--iface: no interface named 'eth8'; --iface: no interface named 'eth9'")
    assert "there are: lo" in node.log()
    assert "eth0 192.168.77.10" in node.log()


# ---- the host -----------------------------------------------------------------------------------


def test_without_tun_driver_it_says_how_to_get_it(node: LodenNode) -> None:
    empty = 'mount -t tmpfs none /dev/net && exec "$@"'
    node.launch(node.run_words(), before=["unshare", "--mount", "sh", "-c", empty, "sh"])
    ends_with(node, 3, "there is no /dev/net/tun: load the module with 'modprobe tun'")


def test_without_privilege_it_says_so(node: LodenNode) -> None:
    node.launch(
        node.run_words(), before=["capsh", "--drop=cap_net_admin", "--", "-c", 'exec "$@"', "sh"]
    )
    ends_with(node, 3, "no privilege to set up network devices: run as root")


@pytest.mark.parametrize("how", ["link type bridge", "tuntap mode tun"])
def test_taken_device_name_is_told(node: LodenNode, host: Host, how: str) -> None:
    with link(host, "loden0", how):
        node.start()
        ends_with(node, 3, "device: the name 'loden0' is taken by another network device")


def test_taken_port_is_told(node: LodenNode, host: Host) -> None:
    squatter = host.popen(["socat", "-u", "UDP-RECV:8472", "OPEN:/dev/null"])
    try:
        node.start()
        ends_with(node, 3, "port: UDP port 8472 on 192.168.77.10 is taken")
    finally:
        squatter.kill()
        squatter.wait()


def test_port_taken_by_kernel_vxlan_is_told(node: LodenNode, host: Host) -> None:
    with link(host, "flannel.1", "link type vxlan id 1 dstport 8472 dev eth0"):
        host.ip("link set flannel.1 up")
        node.start()
        ends_with(node, 3, "port: UDP port 8472 on 192.168.77.10 is taken", "vxlan")


def test_second_run_in_the_same_run_dir_is_refused(
    node: LodenNode, lonely: Cluster, tmp_path: Path
) -> None:
    second = LodenNode(node.host, tmp_path / "second", lonely.etcd.url)
    second.run_dir = node.run_dir
    node.start()
    node.wait_ready()
    second.start()
    ends_with(second, 3, f"run-dir: another 'loden run' uses {node.run_dir}", "--run-dir")
    assert node.is_ready()


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--run-dir", "run-dir: /proc/loden cannot be used: No such file or directory"),
        ("--state-dir", "state dir: cannot write /proc/loden"),
        ("--subnet-file", "subnet-file: /proc/loden cannot be written: "),
    ],
)
def test_unwritable_place_is_named(node: LodenNode, flag: str, sentence: str) -> None:
    node.start(flag, "/proc/loden")
    ends_with(node, 3, sentence)


def test_taken_health_port_is_told(node: LodenNode, host: Host) -> None:
    squatter = host.popen(["socat", "TCP-LISTEN:8473", "OPEN:/dev/null"])
    try:
        node.start("--healthz-port", "8473")
        ends_with(node, 3, "healthz-port: 8473 on 0.0.0.0 is taken by another program")
    finally:
        squatter.kill()
        squatter.wait()


def test_host_without_default_route_is_asked_for_an_interface(node: LodenNode, host: Host) -> None:
    words = node.run_words()
    at = words.index("--iface")
    del words[at : at + 2]
    host.ip("route del default")
    try:
        node.launch(words)
        wait_for(lambda: "name it with --iface (there are: lo" in node.log(), "it is said", 20)
        host.ip("route add default via 192.168.77.1")
        node.wait_ready()  # waiting was right: it is there now
    finally:
        host.ip("route replace default via 192.168.77.1")


# ---- etcd and the network config ----------------------------------------------------------------


def test_init_without_etcd_says_where_none_answers(host: Host) -> None:
    words = ["init", "--etcd-endpoints", NOWHERE, "--network", "10.5.0.0/16"]
    done = host.run([*LODEN, *words], cwd=PACKAGES_DIR, check=False)
    assert done.returncode == 1
    assert done.stderr == f"loden init: no etcd answers at {NOWHERE} (Connection refused)\n"


def test_run_without_etcd_says_so_once_and_keeps_trying(lonely: Cluster, tmp_path: Path) -> None:
    node = LodenNode(lonely.nodes[0].host, tmp_path / "node", NOWHERE)
    node.start()
    wait_for(lambda: f"no etcd answers at {NOWHERE}" in node.log(), "it is said", 20)
    used_before = node.cpu_seconds("control")
    time.sleep(2.5)  # several tries
    assert node.log().count(NOWHERE) == 1, node.log()
    assert node.cpu_seconds("control") - used_before < 0.5
    assert node.is_running()
    reasons = node.status()["not_ready_because"]
    assert f"no etcd answers at {NOWHERE} (Connection refused)" in reasons
    assert node.stop() == 0


@pytest.fixture(scope="module")
def waiting(lonely: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LodenNode]:
    """A node below a prefix of its own, where there is no network config yet."""
    node = LodenNode(
        lonely.nodes[0].host, tmp_path_factory.mktemp("waiting") / "node", lonely.etcd.url
    )
    node.start("--etcd-prefix", "/elsewhere")
    yield node
    node.kill_everything()


def test_run_without_network_config_says_how_to_write_one(waiting: LodenNode) -> None:
    sentence = "there is no network config in etcd at /elsewhere/config; write one with 'loden init"
    wait_for(lambda: sentence in waiting.log(), "it is said", FIRST_START_S)
    time.sleep(2)  # several tries
    assert waiting.log().count(sentence) == 1


def config(**fields: Any) -> str:
    """A network config that is right but for these fields; None takes one out."""
    whole = {"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan"}, **fields}
    return json.dumps({name: value for name, value in whole.items() if value is not None})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "the whole is '{', allowed: a JSON object"),
        ("[]", "the whole is '[]', allowed: a JSON object"),
        (config(Network=None), "Network is absent, allowed: a network such as 10.5.0.0/16"),
        (config(Network="10.5.0.0"), "Network is '10.5.0.0', allowed: a network such as"),
        (config(Network="10.5.0.0/29"), "Network is '10.5.0.0/29', allowed: a prefix of /28"),
        (config(SubnetLen=31), "SubnetLen is '31', allowed: 18 to 30"),
        (config(SubnetLen=17), "SubnetLen is '17', allowed: 18 to 30"),
        (config(SubnetMin="10.6.0.0"), "SubnetMin is '10.6.0.0', allowed: an address inside"),
        (config(SubnetMax="10.5.3.1"), "SubnetMax is '10.5.3.1', allowed: an address inside"),
        (
            config(SubnetMin="10.5.9.0", SubnetMax="10.5.8.0"),
            "SubnetMax is '10.5.8.0', allowed: SubnetMin (10.5.9.0) or higher",
        ),
        (config(EnableIPv4=False), "EnableIPv4 is 'false', allowed: true, or EnableIPv6 true"),
        (config(EnableIPv4="yes"), "EnableIPv4 is 'yes', allowed: true or false"),
        (config(EnableIPv6=True), "IPv6Network is absent, allowed: a network such as"),
        (
            config(EnableIPv6=True, IPv6Network="2001:db8::/125"),
            "IPv6Network is '2001:db8::/125', allowed: a prefix of /124",
        ),
        (
            config(EnableIPv6=True, IPv6Network="2001:db8::/56", IPv6SubnetLen=57),
            "IPv6SubnetLen is '57', allowed: 58 to 126",
        ),
        (config(Backend=None), "Backend is 'absent, which means udp', allowed: vxlan"),
        (config(Backend={"Type": "udp"}), "Backend.Type is 'udp', allowed: vxlan"),
        (config(Backend={"Type": "vxlan", "VNI": 1 << 24}), "Backend.VNI is '16777216', allowed"),
        (config(Backend={"Type": "vxlan", "Port": 70_000}), "Backend.Port is '70000', allowed"),
        (config(Backend={"Type": "vxlan", "MTU": 60}), "Backend.MTU is '60', allowed"),
        (config(Backend={"Type": "vxlan", "GBP": True}), "Backend.GBP is 'true', allowed: false"),
        (config(EnableIPv6=True, IPv6Network="fd00::/48"), "'eth0' has no IPv6 address"),
    ],
)
def test_rule_of_the_network_config_reaches_the_operator(
    lonely: Cluster, waiting: LodenNode, text: str, sentence: str
) -> None:
    wait_for(lambda: "no network config" in waiting.log(), "it waits for one", FIRST_START_S)
    lonely.etcd.put("/config", text, prefix="/elsewhere")
    wait_for(lambda: sentence in waiting.log(), sentence, 5)
    assert waiting.is_running()
    assert any(sentence in reason for reason in waiting.status()["not_ready_because"])
