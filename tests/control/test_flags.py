"""The command line's flags: flanneld's spelling, the environment, what cannot be."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from control.cli import control_command, main, run_command
from control.etcd_config import EtcdConfigError
from control.flags import (
    RUN_OPTIONS,
    NodeCommand,
    as_flanneld_writes,
    control_options,
    log_level,
    to_arguments,
)
from forwarder.flags import with_options


def parse(*words: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The values of `loden run WORDS`."""
    parsed: dict[str, Any] = {}

    @click.command(cls=NodeCommand)
    @with_options(*RUN_OPTIONS)
    def command(**values: Any) -> None:
        parsed.update(values)

    result = CliRunner().invoke(command, list(words), env=env)
    assert result.exit_code == 0, result.output
    return parsed


def test_defaults_are_flannels() -> None:
    options = control_options(parse())
    assert options.etcd.urls == ("http://127.0.0.1:2379",)
    assert options.etcd.prefix == "/coreos.com/network"
    assert options.subnet_file == Path("/run/flannel/subnet.env")
    assert options.renew_margin_s == 3600
    assert options.lease_ttl_s == 24 * 3600
    assert not options.ip_masq
    assert options.healthz_port == 0


@pytest.mark.parametrize(
    "words",
    [
        ["--iface", "eth1", "--ip-masq", "--public-ip", "192.0.2.1"],
        ["-iface", "eth1", "-ip-masq", "-public-ip", "192.0.2.1"],
        ["-iface=eth1", "-ip-masq=true", "-public-ip=192.0.2.1"],
        ["--iface=eth1", "--ip-masq=1", "--public-ip=192.0.2.1"],
    ],
    ids=" ".join,
)
def test_flags_may_be_written_as_go_does(words: list[str]) -> None:
    options = control_options(parse(*words))
    assert options.ifaces == ("eth1",)
    assert options.ip_masq
    assert options.public_ip == IPv4Address("192.0.2.1")


def test_environment_stands_in_for_flags() -> None:
    env = {
        "FLANNELD_ETCD_ENDPOINTS": "http://192.0.2.5:2379, http://192.0.2.6:2379",
        "FLANNELD_ETCD_PREFIX": "/other/",
        "FLANNELD_IFACE": "eth7",
        "FLANNELD_IP_MASQ": "true",
        "FLANNELD_SUBNET_LEASE_RENEW_MARGIN": "30",
    }
    options = control_options(parse(env=env))
    assert options.etcd.urls == ("http://192.0.2.5:2379", "http://192.0.2.6:2379")
    assert options.etcd.prefix == "/other"
    assert options.ifaces == ("eth7",)
    assert options.ip_masq
    assert options.renew_margin_s == 1800


@pytest.mark.parametrize("word", ["--ip-masq=false", "-ip-masq=0", "--no-ip-masq"])
def test_command_line_wins_over_environment(word: str) -> None:
    assert not parse(word, env={"FLANNELD_IP_MASQ": "true"})["ip_masq"]


def test_every_flag_of_run_has_an_environment_form() -> None:
    lacking = [
        parameter.opts
        for parameter in run_command.params
        if isinstance(parameter, click.Option) and not parameter.envvar
    ]
    assert lacking == []


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--public-ip", "fd77::1"], "'fd77::1' is no IPv4 address"),
        (["--public-ipv6", "192.0.2.1"], "'192.0.2.1' is no IPv6 address"),
        (["--iface-can-reach", "nobody"], "'nobody' is no IP address"),
        (["--device", "a-name-too-long-for-it"], "1 to 15 characters"),
        (["--device", "a/b"], "without '/'"),
        (["--source-ports", "0"], "0 is not in the range 1<=x<=64"),
        (["--lease-ttl", "1"], "1 is not in the range x>=10"),
        (["--healthz-port", "70000"], "70000 is not in the range 0<=x<=65535"),
        (["--ip-masq=perhaps"], "--ip-masq: 'perhaps' is not allowed; allowed: true, false"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--etcd-endpoints", "ftp://here"], "etcd endpoint is 'ftp://here', allowed: http://"),
        (["--etcd-endpoints", ""], "etcd endpoints is '', allowed: at least one URL"),
        (["--etcd-cafile", "/no/such.pem"], "etcd cafile is '/no/such.pem', allowed: a readable"),
        (["--etcd-username", "loden"], "etcd password is None"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
@pytest.mark.parametrize("command", ["run", "control"])
def test_value_that_cannot_be_is_named_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, command: str, words: list[str], sentence: str
) -> None:
    monkeypatch.setattr("control.cli.require_net_admin", lambda command: None)
    result = CliRunner().invoke(main, [command, *words])
    assert result.exit_code == 2
    assert sentence in result.output


def test_arguments_give_a_child_the_same_values() -> None:
    values = parse("--iface", "eth1", "--iface", "eth2", "-ip-masq", "--no-tso", "--cpus", "0,1")
    arguments = to_arguments(control_command, values)
    assert control_options(parse(*arguments)) == control_options(values)
    assert "--cpus" not in arguments
    assert arguments.count("--iface") == 2


def test_child_is_told_no_where_its_environment_says_yes() -> None:
    arguments = to_arguments(control_command, parse("--no-ip-masq"))
    assert not parse(*arguments, env={"FLANNELD_IP_MASQ": "true"})["ip_masq"]


def test_password_is_not_put_on_a_command_line() -> None:
    values = parse("--etcd-username", "loden", env={"FLANNELD_ETCD_PASSWORD": "secret"})
    assert values["etcd_password"] == "secret"
    assert "secret" not in to_arguments(control_command, values)


def test_words_that_are_no_flags_stay_as_they_are() -> None:
    words = ["-h", "--network=10.5.0.0/16", "value", "-unknown", "--etcd-prefix=/a=b"]
    assert as_flanneld_writes(words, run_command) == words


@pytest.mark.parametrize("words", [["--log-level", "debug"], ["-v=4"], ["--v", "1"], ["-v", "2"]])
def test_verbosity_may_be_said_in_flannels_way(words: list[str]) -> None:
    assert log_level(parse(*words)) == "debug"
    assert log_level(parse("-v=0")) == "info"


def test_prefix_that_cannot_be_is_refused() -> None:
    with pytest.raises(EtcdConfigError, match="prefix"):
        control_options({**parse(), "etcd_prefix": "/"})


@pytest.mark.parametrize("text", ["64", "ef"])
def test_dscp_that_is_none_is_refused(text: str) -> None:
    result = CliRunner().invoke(run_command, ["--dscp", text])
    assert result.exit_code == 2
    assert f"{text!r} is not allowed; allowed: 0 to 63, or 'copy'" in result.output
