"""The firewall's own programs, run to the end: nft, iptables-save and the like."""

from __future__ import annotations

import os
import subprocess

DIRECTORIES = "/usr/sbin:/sbin"
"""Where Debian has them, which is not on everybody's PATH."""
TIMEOUT_S = 10.0

_NOT_PERMITTED = ("Operation not permitted", "you must be root")


class FirewallError(Exception):
    """The rules cannot be read or set; `retryable`: may trying again help?"""

    retryable = True


class ToolMissingError(FirewallError):
    """The program is not on this host."""

    retryable = False


class ToolNotPermittedError(FirewallError):
    """CAP_NET_ADMIN is missing."""

    retryable = False


class ToolRefusedError(FirewallError):
    """Any other failure, with the program's own words in `said`."""

    def __init__(self, tool: str, said: str) -> None:
        first_line = next(iter(said.strip().splitlines()), "it gave no reason")
        super().__init__(f"firewall rules: {tool} failed: {first_line}")
        self.said = said


def run_tool(tool: str, *arguments: str, script: str = "") -> str:
    """What it printed. `script` is its standard input. Raises FirewallError."""
    path = f"{os.environ.get('PATH', os.defpath)}:{DIRECTORIES}"
    try:
        done = subprocess.run(
            [tool, *arguments],
            input=script,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**os.environ, "PATH": path, "LC_ALL": "C"},  # its errors in English
        )
    except FileNotFoundError as error:
        package = "nftables" if tool == "nft" else "iptables"
        raise ToolMissingError(
            f"firewall rules: there is no {tool} on this host: install the package {package}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ToolRefusedError(tool, f"no answer within {TIMEOUT_S:g} s") from error
    if done.returncode == 0:
        return done.stdout
    said = done.stderr or done.stdout
    if any(words in said for words in _NOT_PERMITTED):
        raise ToolNotPermittedError(f"firewall rules: {tool} needs root or CAP_NET_ADMIN")
    raise ToolRefusedError(tool, said)
