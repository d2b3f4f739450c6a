"""`--docker`: Docker's options, kept beside subnet.env, and Docker restarted when they change.

    subnet, MTU ──> docker_opts.env ──> systemctl restart docker.service

Docker sets up its bridge when it starts, and then only. Its unit reads the file if
systemd/docker.service.d/loden.conf is installed. Nothing here stops packets: what cannot be done
is said, with what to do instead.
"""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

from control.atomic_file import replace_file
from control.docker import docker_env, docker_options
from control.from_subnet_env import OUTPUT_MODE
from control.subnet_env import SubnetEnv, SubnetEnvError

log = logging.getLogger(__name__)

FILE_NAME = "docker_opts.env"
UNIT = "docker.service"
SYSTEMCTL_TIMEOUT_S = 5.0


class SystemctlError(Exception):
    """systemctl cannot do what it was asked; the message is its own."""


def follow_subnet(contents: SubnetEnv, subnet_file: Path) -> None:
    """Have the options beside `subnet_file` say the same, and Docker, if it runs, use them."""
    path = subnet_file.with_name(FILE_NAME)
    try:
        options = docker_options(contents)
        text = docker_env(options, individual=True, combined=False).encode()
        if path.exists() and path.read_bytes() == text:
            return
        replace_file(path, text, OUTPUT_MODE)
    except SubnetEnvError as error:
        log.error("docker: there are no options for this node: %s", error)
        return
    except OSError as error:
        log.error("docker: %s cannot be written: %s", path, error.strerror)
        return
    try:
        log.info("docker: %s has changed; %s", path, _apply(path))
    except SystemctlError as error:
        log.warning(
            "docker: %s has changed, and a running Docker must be restarted with these options; "
            "systemctl cannot: %s",
            path,
            error,
        )


def _apply(path: Path) -> str:
    """Restarts Docker where that helps; what was done, in words. Raises SystemctlError."""
    unit = _properties("LoadState", "ActiveState", "EnvironmentFiles")
    (state,) = unit["ActiveState"]
    if unit["LoadState"] != ["loaded"]:
        return f"there is no {UNIT}: start Docker with these options"
    if not any(entry.split(" (")[0] == str(path) for entry in unit["EnvironmentFiles"]):
        return f"{UNIT} does not read it: install systemd/docker.service.d/loden.conf"
    if state == "inactive":
        return f"{UNIT} reads it when it starts"
    if state == "failed":  # for lack of this file, perhaps, and too often to be started again
        _systemctl("reset-failed", UNIT)
    # It may have to wait for us to be ready: we must not wait for it.
    _systemctl("--no-block", "restart", UNIT)
    return f"{UNIT} is restarted"


def _properties(*names: str) -> dict[str, list[str]]:
    """Of Docker's unit; a property may have several values, or none."""
    found: dict[str, list[str]] = {name: [] for name in names}
    for line in _systemctl("show", f"--property={','.join(names)}", UNIT).splitlines():
        name, _, value = line.partition("=")
        found.setdefault(name, []).append(value)
    return found


def _systemctl(*arguments: str) -> str:
    """What it printed. Raises SystemctlError."""
    try:
        done = subprocess.run(
            ["systemctl", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SYSTEMCTL_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise SystemctlError("there is none on this host") from None
    except subprocess.TimeoutExpired:
        raise SystemctlError(f"no answer within {SYSTEMCTL_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise SystemctlError(said[0] if said else f"exit status {done.returncode}")
    return done.stdout
