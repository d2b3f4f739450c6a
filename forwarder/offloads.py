"""The offloads: which are in use, and why the others are not."""

import logging
from dataclasses import fields

from forwarder.config import ForwarderOptions
from forwarder.selftest import Findings

log = logging.getLogger("loden.forwarder")

NAMES = ("tun_tso", "tun_uso", "coalesce_tcp", "coalesce_udp", "udp_gso", "udp_gro", "tunnel_gso")

ON = "on"
SWITCHED_OFF = "switched off"
NOT_TRIED = "not tried yet"
REFUSED = "refused by this kernel"

_SWITCHES = {
    "tun_tso": "tso",
    "tun_uso": "uso",
    "coalesce_tcp": "coalesce",
    "coalesce_udp": "coalesce",
}
"""The option that asks for an offload, where it has another name."""
assert {_SWITCHES.get(name, name) for name in NAMES} <= {f.name for f in fields(ForwarderOptions)}


class Offloads:
    """What has become of each offload so far: in use until something speaks against it."""

    def __init__(self, options: ForwarderOptions) -> None:
        self._states: dict[str, str] = {}
        for name in NAMES:
            asked = getattr(options, _SWITCHES.get(name, name))
            self._states[name] = ON if asked else SWITCHED_OFF
        if options.tunnel_gso:
            self._states["tunnel_gso"] = NOT_TRIED  # it takes a peer to try it with

    def __getitem__(self, name: str) -> bool:
        """Whether it is in use."""
        return self._states[name] == ON

    def refuse(self, name: str, why: str = REFUSED) -> None:
        """Switches off what was in use, and says so."""
        if self[name]:
            self._states[name] = why
            log.warning("%s is not used any more: %s", name, why)

    def say(self, name: str, state: str) -> None:
        """Replaces the state of one that is tried time and again."""
        self._states[name] = state

    def heed(self, findings: Findings) -> None:
        """Switches off what failed its test at the start."""
        if findings.untested is not None:
            log.info("offloads are used without a test: %s", findings.untested)
        for name in NAMES:
            if fault := findings.faults.get(name):
                self.refuse(name, f"failed its test: {fault}")

    def states(self) -> dict[str, str]:
        """Each with "on", or why it is not."""
        return dict(self._states)
