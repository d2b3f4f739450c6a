"""The configuration file: who wins over whom, every problem at once, and a sample that is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from control import config_file
from control.cli import main
from control.flags import RUN_OPTIONS, NodeCommand, run_flags
from forwarder.flags import with_options


def parse(file: Path, *words: str, env: dict[str, str] | None = None) -> dict[str, Any]:
    """The values of `loden run --config FILE WORDS`."""
    parsed: dict[str, Any] = {}

    @click.command(cls=NodeCommand)
    @with_options(*RUN_OPTIONS)
    def command(**values: Any) -> None:
        parsed.update(values)

    result = CliRunner().invoke(command, ["--config", str(file), *words], env=env)
    assert result.exit_code == 0, result.output
    return parsed


def check(*words: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["config", "check", *words], env=env)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "loden.toml"


def test_command_line_wins_over_environment_and_that_over_the_file(file: Path) -> None:
    file.write_text("lease-ttl = 30\nsource-ports = 3\nhealthz-port = 8471\nip-masq = true")
    env = {"FLANNELD_LEASE_TTL": "20", "FLANNELD_SOURCE_PORTS": "2"}
    values = parse(file, "--lease-ttl", "10", env=env)
    assert (values["lease_ttl"], values["source_ports"], values["healthz_port"]) == (10, 2, 8471)
    assert values["ip_masq"]
    assert not parse(file, "--ip-masq=false")["ip_masq"]


def test_values_are_written_as_toml_has_them(file: Path) -> None:
    file.write_text(
        """
        etcd-endpoints = ["http://192.0.2.1:2379", "http://192.0.2.2:2379"]
        iface = "eth1"                 # one, where several may be
        iface-regex = ["eth.*", "en.*"]
        public-ip = "192.0.2.7"
        tso = false
        dscp = 46                      # a number, where a text may be
        """
    )
    values = parse(file)
    assert values["etcd_endpoints"] == "http://192.0.2.1:2379,http://192.0.2.2:2379"
    assert (values["iface"], values["iface_regex"]) == (("eth1",), ("eth.*", "en.*"))
    assert (str(values["public_ip"]), values["tso"], values["dscp"]) == ("192.0.2.7", False, "46")


def test_file_may_be_named_in_the_environment(file: Path) -> None:
    file.write_text("lease-ttl = 30")
    result = check(env={"FLANNELD_CONFIG": str(file)})
    assert f"lease-ttl = 30  ({file}: lease-ttl)" in result.output


def test_default_file_is_read_where_there_is_one(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config_file, "DEFAULT_FILE", file)
    monkeypatch.delenv("FLANNELD_CONFIG")
    assert check().exit_code == 0
    file.write_text("lease-tll = 30")
    assert "did you mean lease-ttl?" in check().output


def test_all_problems_are_told_at_once_each_with_its_place(file: Path) -> None:
    file.write_text(
        """
        etcd_endpoints = "http://192.0.2.1:2379"
        lease-ttl = 5
        source-ports = "8"
        ip-masq = "yes"
        iface = [1.5]
        device = "a/b"
        cpus = "0,x"
        etcd-cafile = "/no/such.pem"
        etcd-certfile = "/no/such.pem"
        [etcd]
        prefix = "/here"
        """
    )
    result = check("--config", str(file), "--workers", "0", env={"FLANNELD_PUBLIC_IP": "fd77::1"})
    assert result.exit_code == 2
    for sentence in (
        f"{file}: etcd_endpoints: there is no such setting; did you mean etcd-endpoints?",
        f"{file}: lease-ttl: 5 is not in the range x>=10",
        f"{file}: source-ports: '8' is not allowed; allowed: a whole number",
        f"{file}: ip-masq: 'yes' is not allowed; allowed: true, false",
        f"{file}: iface: [1.5] is not allowed; allowed: a text, or a list of texts",
        f"{file}: device: 'a/b' is not allowed; allowed: 1 to 15 characters",
        f"{file}: cpus: '0,x' is no list of CPUs such as '0,2-5'",
        f"{file}: etcd-cafile: etcd cafile is '/no/such.pem', allowed: a readable PEM file",
        f"{file}: etcd-certfile: etcd certfile is '/no/such.pem', allowed: a readable PEM file",
        "--etcd-keyfile: etcd keyfile is None, allowed: required with the certfile",
        f"{file}: etcd: there are no tables here",
        "FLANNELD_PUBLIC_IP in the environment: 'fd77::1' is no IPv4 address",
        "--workers: 0 is not allowed; allowed: 1 to",
    ):
        assert sentence in result.output
    assert result.output.count("allowed: a whole number") == 1


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b"lease-ttl = ", "no TOML: Invalid value (at"),
        (b'iface = "\xff"', "no TOML: 'utf-8' codec can't decode"),
        (b"= 3", "no TOML:"),
    ],
)
def test_file_that_is_no_toml_is_refused(file: Path, contents: bytes, sentence: str) -> None:
    file.write_bytes(contents)
    result = check("--config", str(file))
    assert result.exit_code == 2
    assert f"{file}: {sentence}" in result.output


def test_file_that_is_not_there_is_refused(file: Path) -> None:
    result = check("--config", str(file))
    assert f"{file}: cannot be read: No such file or directory" in result.output
    assert result.exit_code == 2


def test_password_is_kept_from_others(file: Path) -> None:
    file.write_text('etcd-username = "loden"\netcd-password = "secret"')
    file.chmod(0o644)
    result = check("--config", str(file))
    assert f"{file}: etcd-password: the file's mode is 0644, allowed: 0600" in result.output
    file.chmod(0o600)
    result = check("--config", str(file))
    assert result.exit_code == 0
    assert "etcd-password = (not shown)" in result.output
    assert "secret" not in result.output


def test_check_finds_an_interface_that_cannot_be(file: Path) -> None:
    file.write_text('iface-regex = ["["]')
    result = check("--config", str(file))
    assert result.exit_code != 0
    assert "'['" in result.output


def test_run_refuses_what_check_refuses(file: Path) -> None:
    file.write_text("lease-ttl = 5")
    result = CliRunner().invoke(main, ["run", "--config", str(file)])
    assert result.exit_code == 2
    assert f"{file}: lease-ttl: 5 is not in the range" in result.output


def test_commands_that_ask_a_node_find_it_by_the_file(file: Path, tmp_path: Path) -> None:
    file.write_text(f'run-dir = "{tmp_path}/there"\nlease-ttl = 30')
    result = CliRunner().invoke(main, ["status", "--config", str(file)])
    assert f"nothing runs in {tmp_path}/there" in result.output


# ---- the sample ---------------------------------------------------------------------------------


def sample() -> str:
    result = CliRunner().invoke(main, ["config", "sample"])
    assert result.exit_code == 0
    return result.output


def test_sample_is_of_every_flag_of_run_with_its_help() -> None:
    text = sample()
    keys = re.findall(r"^#([a-z][a-z0-9-]*) = ", text, re.MULTILINE)
    assert keys == [config_file.key_of(flag) for flag in run_flags()]
    unwrapped = " ".join(text.replace("\n# ", " ").split())
    for flag in run_flags():
        assert flag.help is not None
        assert " ".join(flag.help.split()) in unwrapped


def test_sample_changes_nothing(file: Path) -> None:
    file.write_text(sample())
    assert check("--config", str(file)).output == "the configuration can be used\n"


def test_sample_states_the_defaults(file: Path) -> None:
    """Uncommented, what has a default says just that."""
    text = sample()
    for flag in run_flags():
        if flag.multiple or not isinstance(flag.default, str | int | Path):
            text = re.sub(rf"^#{config_file.key_of(flag)} = .*$", "", text, flags=re.MULTILINE)
    file.write_text(re.sub(r"^#([a-z][a-z0-9-]* = )", r"\1", text, flags=re.MULTILINE))
    nothing = file.with_name("nothing.toml")
    nothing.touch()
    assert parse(file) == parse(nothing)
