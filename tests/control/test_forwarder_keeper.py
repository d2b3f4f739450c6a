"""Control's side of a forwarder that is not there, hangs, refuses, comes and goes.

The forwarder is a fake on the real socket: it answers as it is told.  With the real one,
tests/netns/test_nodes.py holds the same code to the routes it loads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from control import forwarder_keeper
from control.exits import ControlError
from control.forwarder_keeper import ForwarderKeeper
from control.loop import Loop
from forwarder import rpc
from forwarder.api import ForwarderError, socket_path
from forwarder.config import TunnelConfig

TUNNEL = TunnelConfig(mac=bytes.fromhex("0e0000000001"), addresses=(IPv4Address("192.0.2.1"),))


class FakeForwarder:
    """Says hello, and refuses to be configured."""

    def __init__(self, run_dir: Path, refusal: ForwarderError) -> None:
        self._refusal = refusal
        self._listener = rpc.listen(socket_path(run_dir), "forwarder")
        self._listener.setblocking(True)
        self.answers = True
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while self.answers:
            client, _ = self._listener.accept()
            while self.answers and rpc.serve_one(
                client, {"hello": lambda: ({}, []), "configure": self._configure}
            ):
                pass

    def _configure(self, config: dict[str, Any]) -> rpc.Reply:
        raise self._refusal


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def keeper(tmp_path: Path, loop: Loop) -> ForwarderKeeper:
    return ForwarderKeeper(tmp_path, loop)


def test_forwarder_that_does_not_run_is_tried_again(keeper: ForwarderKeeper) -> None:
    assert not keeper.reach(TUNNEL, {})
    assert keeper.error is not None
    assert "no forwarder is running" in keeper.error
    assert 0 < keeper.due_at - time.monotonic() <= forwarder_keeper.RETRY_S


def test_forwarder_that_still_compiles_does_not_hold_up_the_loop(
    keeper: ForwarderKeeper, tmp_path: Path
) -> None:
    with rpc.listen(socket_path(tmp_path), "forwarder"):  # connects, and nobody answers
        begun = time.monotonic()
        assert not keeper.reach(TUNNEL, {})
        assert time.monotonic() - begun < 2
    assert keeper.error is not None
    assert "does not answer" in keeper.error


def test_refusal_for_good_ends_control(keeper: ForwarderKeeper, tmp_path: Path) -> None:
    FakeForwarder(tmp_path, ForwarderError("port: UDP port 8472 is taken"))
    with pytest.raises(ControlError, match="UDP port 8472 is taken"):
        keeper.reach(TUNNEL, {})


def test_refusal_that_may_pass_is_tried_again(keeper: ForwarderKeeper, tmp_path: Path) -> None:
    FakeForwarder(tmp_path, ForwarderError("not now", retryable=True))
    assert not keeper.reach(TUNNEL, {})
    assert keeper.error == "not now"


def test_new_forwarder_may_meet_its_predecessors_device_for_a_while(
    keeper: ForwarderKeeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeForwarder(tmp_path, ForwarderError("the name is taken"))
    keeper._lose("the forwarder has gone")
    assert not keeper.reach(TUNNEL, {})
    monkeypatch.setattr(forwarder_keeper, "PATIENCE_S", 0.0)
    with pytest.raises(ControlError, match="the name is taken"):
        keeper.reach(TUNNEL, {})


def test_changes_without_a_forwarder_wait_for_the_next_one(keeper: ForwarderKeeper) -> None:
    keeper.apply({})
    keeper.reconfigure(TUNNEL)
    keeper.check()
    keeper.close()
    assert keeper.link is None
