"""Docker's options from subnet.env: `loden docker-opts`, in place of flannel's mk-docker-opts.sh.

    DOCKER_OPT_BIP="--bip=10.1.74.1/24"
    DOCKER_OPT_IPMASQ="--ip-masq=true"
    DOCKER_OPT_MTU="--mtu=1472"
    DOCKER_OPTS=" --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"

A systemd unit reads the file as its EnvironmentFile. Flags and output are the script's.
"""

from __future__ import annotations

import re
from pathlib import Path

import click

from control.atomic_file import replace_file
from control.subnet_env import DEFAULT_PATH, SubnetEnv, SubnetEnvError, read_subnet_env

DEFAULT_OUTPUT = Path("/run/docker_opts.env")
DEFAULT_KEY = "DOCKER_OPTS"
OUTPUT_MODE = 0o644

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
@click.option(
    "-f",
    "--subnet-file",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    help="Where to read this node's subnet.",
)
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

    Without -i and -c it writes both forms.
    """
    options = _options_from(subnet_file, with_ip_masq=not no_ip_masq)
    both = individual == combined
    text = docker_env(options, individual=individual or both, combined=combined or both, key=key)
    try:
        _write(output, text)
    except OSError as error:
        raise click.ClickException(f"cannot write {output}: {error.strerror}") from error


def _options_from(subnet_file: Path, *, with_ip_masq: bool) -> dict[str, str]:
    try:
        contents = read_subnet_env(subnet_file)
        if contents is None:
            raise click.ClickException(
                f"there is no {subnet_file}: `loden run` writes it once the node has its subnet"
            )
        return docker_options(contents, with_ip_masq=with_ip_masq)
    except SubnetEnvError as error:
        raise click.ClickException(f"{error} (read from {subnet_file})") from error
    except OSError as error:
        raise click.ClickException(f"cannot read {subnet_file}: {error.strerror}") from error


def _write(output: Path, text: str) -> None:
    if output.exists() and not output.is_file():
        output.write_text(text)  # /dev/stdout must not be replaced
    else:
        replace_file(output, text.encode(), OUTPUT_MODE)
