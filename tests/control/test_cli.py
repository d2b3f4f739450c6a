"""The command `loden`: help, `init` against a real etcd, `status` and `routes` of what runs not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from control.cli import main
from control.etcd import EtcdClient
from control.network_config import NetworkConfig
from tests.control.conftest import EtcdServer

COMMANDS = main.list_commands(click.Context(main))


def loden(*words: str) -> Result:
    return CliRunner().invoke(main, list(words), prog_name="loden")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_mentions_every_flag(name: str) -> None:
    command = main.get_command(click.Context(main), name)
    assert command is not None
    result = loden(name, "--help")
    assert result.exit_code == 0
    for parameter in command.params:
        for flag in parameter.opts:
            assert flag in result.output or not flag.startswith("-"), flag
    assert name in loden("--help").output


def test_version_is_told() -> None:
    assert loden("--version").output.startswith("loden, version ")


def test_unknown_command_is_named() -> None:
    result = loden("rum")
    assert result.exit_code == 2
    assert "rum" in result.output


# ---- init ---------------------------------------------------------------------------------------


@pytest.fixture
def init(shared_etcd: EtcdServer, prefix: str) -> Callable[..., Result]:
    """`loden init` below a prefix of its own."""
    return lambda *words: loden(
        "init", "--etcd-endpoints", shared_etcd.url, "--etcd-prefix", prefix, *words
    )


def written(client: EtcdClient) -> NetworkConfig:
    entry = client.get(f"{client.config.prefix}/config")
    assert entry is not None
    return NetworkConfig.parse(entry.value)


@pytest.mark.etcd
def test_init_writes_the_config(init: Callable[..., Result], client: EtcdClient) -> None:
    words = ["--network", "10.9.0.0/16", "--subnet-len", "26", "--vni", "42", "--port", "4789"]
    result = init(*words)
    assert (result.exit_code, result.output) == (0, f"{client.config.prefix}/config written\n")
    assert written(client) == NetworkConfig.build("10.9.0.0/16", 26, 42, 4789)


@pytest.mark.etcd
def test_init_takes_an_ipv6_network(init: Callable[..., Result], client: EtcdClient) -> None:
    assert init("-network=2001:db8::/48").exit_code == 0
    config = written(client)
    assert (config.ipv4, str(config.ipv6 and config.ipv6.network)) == (None, "2001:db8::/48")


@pytest.mark.etcd
def test_init_again_changes_nothing(init: Callable[..., Result], client: EtcdClient) -> None:
    init("--network", "10.9.0.0/16")
    before = client.get(f"{client.config.prefix}/config")
    result = init("--network", "10.9.0.0/16")
    assert (result.exit_code, result.output) == (
        0,
        f"{client.config.prefix}/config says so already\n",
    )
    assert client.get(f"{client.config.prefix}/config") == before


@pytest.mark.etcd
def test_init_replaces_another_config_only_by_force(
    init: Callable[..., Result], client: EtcdClient
) -> None:
    init("--network", "10.9.0.0/16")
    refused = init("--network", "10.8.0.0/16")
    assert refused.exit_code == 1
    assert "holds another config already (--force replaces it)" in refused.output
    assert "10.9.0.0/16" in refused.output
    assert written(client) == NetworkConfig.build("10.9.0.0/16")
    assert init("--network", "10.8.0.0/16", "--force").exit_code == 0
    assert written(client) == NetworkConfig.build("10.8.0.0/16")


@pytest.mark.etcd
def test_init_replaces_garbage_only_by_force(
    init: Callable[..., Result], client: EtcdClient
) -> None:
    client.create_if_absent(f"{client.config.prefix}/config", "{garbage")
    assert "{garbage" in init("--network", "10.9.0.0/16").output
    assert init("--network", "10.9.0.0/16", "--force").exit_code == 0
    assert written(client) == NetworkConfig.build("10.9.0.0/16")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Missing option '--network'"),
        (["--network", "10.5.0.0"], "Network is '10.5.0.0', allowed: a network such as"),
        (["--network", "10.5.0.0/29"], "Network is '10.5.0.0/29', allowed: a prefix of /28"),
        (
            ["--network", "10.5.0.0/16", "--subnet-len", "31"],
            "SubnetLen is '31', allowed: 18 to 30",
        ),
        (["--network", "10.5.0.0/16", "--vni", "16777216"], "VNI is '16777216', allowed"),
        (["--network", "10.5.0.0/16", "--port", "70000"], "Port is '70000', allowed"),
    ],
)
def test_init_refuses_what_nodes_would_refuse(words: list[str], sentence: str) -> None:
    result = loden("init", *words)
    assert result.exit_code == 2
    assert sentence in result.output


# ---- status, routes -----------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["status"], ["status", "--json"]])
def test_status_of_what_does_not_run_says_how_to_start_it(words: list[str], tmp_path: Path) -> None:
    result = loden(*words, "--run-dir", str(tmp_path))
    assert result.exit_code == 1
    assert result.output == (
        f"loden status: nothing runs in {tmp_path}: start 'loden run', or see --run-dir\n"
    )


def test_routes_of_what_does_not_run_says_so(tmp_path: Path) -> None:
    result = loden("routes", "--run-dir", str(tmp_path))
    assert result.exit_code == 1
    assert result.output == (
        f"loden routes: no forwarder is running in {tmp_path} (see --run-dir)\n"
    )


def test_routes_as_json_are_read_by_programs(idle_forwarder: Path) -> None:
    result = loden("routes", "--json", "--run-dir", str(idle_forwarder))
    assert (result.exit_code, json.loads(result.output)) == (0, [])


def test_status_of_half_a_node_says_which_half(idle_forwarder: Path) -> None:
    result = loden("status", "--interval", "0", "--run-dir", str(idle_forwarder))
    assert result.exit_code == 1
    assert "no loden control is running" in result.output
    assert "offloads" in result.output


def test_status_as_json_has_what_is_there(idle_forwarder: Path) -> None:
    result = loden("status", "--json", "--interval", "0", "--run-dir", str(idle_forwarder))
    status = json.loads(result.output)
    assert result.exit_code == 1
    assert not status["ready"]
    assert "no loden control is running" in status["not_ready_because"][0]
    assert status["workers"]
    assert "node" not in status
