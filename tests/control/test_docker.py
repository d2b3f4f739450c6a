"""`loden docker-opts` against mk-docker-opts.sh's flags and output."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from control.docker import docker_opts_command

SUBNET_ENV = """\
FLANNEL_NETWORK=10.1.0.0/16
FLANNEL_SUBNET=10.1.74.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
"""
INDIVIDUAL = """\
DOCKER_OPT_BIP="--bip=10.1.74.1/24"
DOCKER_OPT_IPMASQ="--ip-masq=true"
DOCKER_OPT_MTU="--mtu=1472"
"""
COMBINED = 'DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"\n'


@pytest.fixture
def subnet_env(tmp_path: Path) -> Path:
    path = tmp_path / "subnet.env"
    path.write_text(SUBNET_ENV)
    return path


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "made" / "docker_opts.env"


def docker_opts(subnet_env: Path, output: Path, *flags: str) -> Result:
    return CliRunner().invoke(
        docker_opts_command, ["-f", str(subnet_env), "-d", str(output), *flags]
    )


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ([], INDIVIDUAL + COMBINED),
        (["-i"], INDIVIDUAL),
        (["-c"], COMBINED),
        (["-i", "-c"], INDIVIDUAL + COMBINED),
        (["-c", "-k", "DOCKER_NETWORK_OPTIONS"], COMBINED.replace("OPTS", "NETWORK_OPTIONS")),
        (["-c", "-m"], 'DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1472"\n'),
        (["-i", "-m"], "".join(INDIVIDUAL.splitlines(keepends=True)[::2])),
    ],
)
def test_output_is_the_scripts(subnet_env: Path, output: Path, flags: list[str], text: str) -> None:
    result = docker_opts(subnet_env, output, *flags)
    assert (result.exit_code, result.output) == (0, "")
    assert output.read_text() == text


def test_docker_masquerades_unless_we_do(subnet_env: Path, output: Path) -> None:
    subnet_env.write_text(SUBNET_ENV.replace("IPMASQ=false", "IPMASQ=true"))
    assert docker_opts(subnet_env, output, "-c").exit_code == 0
    assert "--ip-masq=false" in output.read_text()


def test_a_shell_reads_what_is_written(subnet_env: Path, output: Path) -> None:
    assert docker_opts(subnet_env, output).exit_code == 0
    shell = subprocess.run(
        ["sh", "-c", f". {output}; echo $DOCKER_OPTS; echo $DOCKER_OPT_MTU"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shell.stdout == "--bip=10.1.74.1/24 --ip-masq=true --mtu=1472\n--mtu=1472\n"


def test_anyone_may_read_it_and_it_replaces_the_last_one(subnet_env: Path, output: Path) -> None:
    docker_opts(subnet_env, output)
    docker_opts(subnet_env, output, "-c")
    assert output.read_text() == COMBINED
    assert stat.S_IMODE(output.stat().st_mode) == 0o644
    assert os.listdir(output.parent) == [output.name]


def test_it_can_be_written_to_a_pipe(subnet_env: Path) -> None:
    code = "from control.docker import docker_opts_command; docker_opts_command()"
    done = subprocess.run(
        [sys.executable, "-c", code, "-f", str(subnet_env), "-d", "/dev/stdout", "-c"],
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr, done.returncode) == (COMBINED, "", 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("FLANNEL_SUBNET=10.1.74\nFLANNEL_MTU=1472\n", "FLANNEL_SUBNET is '10.1.74'"),
        ("FLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=big\n", "FLANNEL_MTU is 'big'"),
        ("FLANNEL_SUBNET=10.1.74.1/24\n", "FLANNEL_MTU is missing"),
        ("FLANNEL_MTU=1472\n", "FLANNEL_SUBNET is missing"),
        ("", "FLANNEL_SUBNET is missing"),
    ],
)
def test_a_malformed_subnet_env_is_one_clear_line(
    subnet_env: Path, output: Path, text: str, message: str
) -> None:
    subnet_env.write_text(text)
    result = docker_opts(subnet_env, output)
    assert result.exit_code == 1
    assert result.output.startswith(f"Error: subnet.env: {message}")
    assert result.output.endswith(f"(read from {subnet_env})\n")
    assert result.output.count("\n") == 1
    assert not output.exists()


def test_a_missing_subnet_env_says_who_writes_it(tmp_path: Path, output: Path) -> None:
    result = docker_opts(tmp_path / "absent", output)
    assert result.exit_code == 1
    assert result.output == (
        f"Error: there is no {tmp_path}/absent: "
        "`loden run` writes it once the node has its subnet\n"
    )


def test_files_that_cannot_be_read_or_written_are_named(subnet_env: Path, tmp_path: Path) -> None:
    unreadable = docker_opts(tmp_path, tmp_path / "out")
    assert unreadable.output == f"Error: cannot read {tmp_path}: Is a directory\n"
    unwritable = docker_opts(subnet_env, Path("/proc/loden.env"))
    assert unwritable.exit_code == 1
    assert unwritable.output.startswith("Error: cannot write /proc/loden.env: ")


def test_a_key_no_shell_would_take_is_refused(subnet_env: Path, output: Path) -> None:
    result = docker_opts(subnet_env, output, "-k", "2nd OPTS")
    assert result.exit_code == 2
    assert "'2nd OPTS', allowed: letters, digits and _" in result.output
