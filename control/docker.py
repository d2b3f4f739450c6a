"""Docker's options from subnet.env: `loden docker-opts`, in place of flannel's mk-docker-opts.sh.

    DOCKER_OPT_BIP="--bip=10.1.74.1/24"
    DOCKER_OPT_IPMASQ="--ip-masq=true"
    DOCKER_OPT_MTU="--mtu=1472"
    DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"

A systemd unit reads the file as its EnvironmentFile. Flags and output are the script's.
`loden run --docker` does the same by itself: control/docker_service.py.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from control.from_subnet_env import made_from, subnet_file_option, write_output
from control.subnet_env import SubnetEnv, SubnetEnvError

DEFAULT_OUTPUT = Path("/run/docker_opts.env")
DEFAULT_KEY = "DOCKER_OPTS"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def docker_options(contents: SubnetEnv, *, with_ip_masq: bool = True) -> dict[str, str]:
    """Docker's options by their names in the script's output: BIP, IPMASQ, MTU.

    Docker masquerades exactly if we do not. Raises SubnetEnvError if Docker's bridge cannot be
    set up from these contents.
    """
    if contents.subnet is None:
        raise SubnetEnvError(
            "subnet.env: FLANNEL_SUBNET is missing: Docker's bridge needs an IPv4 subnet"
        )
    if contents.mtu_bytes <= 0:
        raise SubnetEnvError("subnet.env: FLANNEL_MTU is missing or not above 0")
    options = {"BIP": f"--bip={contents.subnet}"}
    if with_ip_masq:
        options["IPMASQ"] = f"--ip-masq={str(not contents.ip_masq).lower()}"
    options["MTU"] = f"--mtu={contents.mtu_bytes}"
    return options


def docker_env(
    options: dict[str, str], *, individual: bool, combined: bool, key: str = DEFAULT_KEY
) -> str:
    """The environment file's text: a variable for each option, and one, `key`, for all."""
    lines = []
    if individual:
        lines += [f'DOCKER_OPT_{name}="{option}"\n' for name, option in options.items()]
    if combined:
        together = "".join(f" {option}" for option in options.values())
        lines.append(f'{key}="{together}"\n')
    return "".join(lines)


def _check_key(context: click.Context, parameter: click.Parameter, key: str) -> str:
    if not _VARIABLE.fullmatch(key):
        raise click.BadParameter(f"'{key}', allowed: letters, digits and _, no digit first")
    return key


@click.command("docker-opts")
@subnet_file_option
@click.option(
    "-d",
    "--output",
    type=click.Path(path_type=Path),
    default=DEFAULT_OUTPUT,
    show_default=True,
    help="Where to write the options.",
)
@click.option("-i", "individual", is_flag=True, help="Write only DOCKER_OPT_BIP and so on.")
@click.option("-c", "combined", is_flag=True, help="Write only the variable with all options.")
@click.option("-m", "no_ip_masq", is_flag=True, help="Leave --ip-masq out.")
@click.option(
    "-k",
    "--key",
    callback=_check_key,
    default=DEFAULT_KEY,
    show_default=True,
    help="Name of the variable with all options.",
)
def docker_opts_command(
    subnet_file: Path, output: Path, individual: bool, combined: bool, no_ip_masq: bool, key: str
) -> None:
    """Turn subnet.env into start options for Docker (as mk-docker-opts.sh does).

    Docker's unit reads the file (EnvironmentFile=/run/docker_opts.env) and has $DOCKER_OPTS in
    its ExecStart.  Without -i and -c both forms are written: one variable for each option, and
    one for all.  'loden run --docker' does all this, and restarts Docker too.
    """
    options = made_from(
        subnet_file, lambda contents: docker_options(contents, with_ip_masq=not no_ip_masq)
    )
    both = individual == combined
    text = docker_env(options, individual=individual or both, combined=combined or both, key=key)
    write_output(output, text)
