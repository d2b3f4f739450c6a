"""What the commands have in common that turn subnet.env into another program's file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import click

from control.atomic_file import replace_file
from control.subnet_env import DEFAULT_PATH, SubnetEnv, SubnetEnvError, read_subnet_env

OUTPUT_MODE = 0o644

T = TypeVar("T")

subnet_file_option = click.option(
    "-f",
    "--subnet-file",
    type=click.Path(path_type=Path),
    default=DEFAULT_PATH,
    show_default=True,
    help="Where to read this node's subnet.",
)


def made_from(subnet_file: Path, make: Callable[[SubnetEnv], T]) -> T:
    """`make` of the file's contents. Raises ClickException, which names the file."""
    try:
        contents = read_subnet_env(subnet_file)
        if contents is None:
            raise click.ClickException(
                f"there is no {subnet_file}: `loden run` writes it once the node has its subnet"
            )
        return make(contents)
    except SubnetEnvError as error:
        raise click.ClickException(f"{error} (read from {subnet_file})") from error
    except OSError as error:
        raise click.ClickException(f"cannot read {subnet_file}: {error.strerror}") from error


def write_output(output: Path, text: str) -> None:
    """Put the file in place, whole. Raises ClickException."""
    try:
        if output.exists() and not output.is_file():
            output.write_text(text)  # /dev/stdout must not be replaced
        else:
            replace_file(output, text.encode(), OUTPUT_MODE)
    except OSError as error:
        raise click.ClickException(f"cannot write {output}: {error.strerror}") from error
