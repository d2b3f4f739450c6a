"""An agent does as it is asked, says why not, and ends with whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from perf.agent import AgentClient, AgentError, connect_agent, start_agent
from perf.nodes import NodeFailed
from perf.topology import Host, Topology

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Topology(hosts=1, default_route=False) as topology:
        yield topology.hosts[0]


def connect(host: Host, directory: Path) -> AgentClient:
    return connect_agent(host, start_agent(host, directory / "agent"), directory / "agent")


def test_agent_sends_in_its_own_namespace_and_ends_with_its_client(
    host: Host, tmp_path: Path
) -> None:
    agent = connect(host, tmp_path)
    process = host.processes[-1]
    end = {"address": str(host.address), "port": 7900}

    agent.ask("echo", **end)
    assert len(agent.ask("ping_pong", **end, count=5)["times_ns"]) == 5
    agent.close()

    assert process.wait(timeout=10) == 0


def test_refusals_come_back_with_their_reason(host: Host, tmp_path: Path) -> None:
    agent = connect(host, tmp_path)
    receive = {"address": "0.0.0.0", "port": 7900, "flows": 1, "trial": 1, "most": 10}

    with pytest.raises(AgentError, match="ping_pong: Network is unreachable"):
        agent.ask("ping_pong", address="10.0.0.1", port=7900, count=1)
    send = {"rate_pps": 0.0, "seconds": 0.1, "spread": 0}
    with pytest.raises(AgentError, match="payload_bytes: 9999 is not allowed"):
        agent.ask("send", **receive, **send, payload_bytes=9999)
    with pytest.raises(AgentError, match="'dance' is unknown"):
        agent.ask("dance")
    agent.ask("receive", **receive, payload_bytes=64)  # it is still there
    agent.close()


def test_agent_that_cannot_start_is_reported_with_its_log(host: Host, tmp_path: Path) -> None:
    (tmp_path / "agent.sock").mkdir()

    with pytest.raises(NodeFailed, match=f"the agent in {host.name} ended with 1"):
        connect(host, tmp_path)
