"""An agent does as it is asked, says why not, and ends with whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perf.agent_client import AgentClient, AgentError
from perf.topology import Host, Topology

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def host() -> Iterator[Host]:
    with Topology(hosts=1, default_route=False) as topology:
        yield topology.hosts[0]


@pytest.fixture
def agent(host: Host, tmp_path: Path) -> Iterator[AgentClient]:
    agent = AgentClient(host, tmp_path / "log")
    agent.wait_until_ready()
    yield agent
    agent.close()
    assert agent.process.wait(timeout=10) == 0, (tmp_path / "log").read_text()


def test_agent_sends_in_its_own_namespace(host: Host, agent: AgentClient) -> None:
    end: dict[str, Any] = {"address": str(host.address), "port": 7900}
    agent.ask("echo", **end)
    answers = agent.ask("ping_pong", **end, count=5, seconds=10.0)

    assert answers["asked"] == len(answers["times_ns"]) == 5


def test_refusals_come_back_with_their_reason(agent: AgentClient) -> None:
    receive: dict[str, Any] = {"address": "0.0.0.0", "port": 7900, "flows": 1}
    receive |= {"trial": 1, "most": 10}

    with pytest.raises(AgentError, match="ping_pong: Network is unreachable"):
        agent.ask("ping_pong", address="10.0.0.1", port=7900, count=1, seconds=1.0)
    send: dict[str, Any] = {"rate_pps": 0.0, "seconds": 0.1, "spread": 0}
    with pytest.raises(AgentError, match="sizes: 9999 is not allowed"):
        agent.ask("send", **receive, **send, sizes=[64, 9999])
    with pytest.raises(AgentError, match="'dance' is unknown"):
        agent.ask("dance")
    agent.ask("receive", **receive, sizes=[64])  # it is still there


def test_agent_that_has_ended_is_reported_with_its_log(host: Host, tmp_path: Path) -> None:
    argv = ["sh", "-c", "echo no room >&2; exit 1"]
    agent = AgentClient(host, tmp_path / "log", argv)
    with pytest.raises(AgentError, match=f"the agent in {host.name} has ended:\n *no room"):
        agent.wait_until_ready()


def test_agent_that_does_not_answer_is_given_up(host: Host, tmp_path: Path) -> None:
    agent = AgentClient(host, tmp_path / "log", ["sleep", "60"])
    with pytest.raises(AgentError, match=r"did not answer in 0\.1 s: ready"):
        agent.ask("ready", timeout_s=0.1)
    assert agent.process.wait(timeout=10) != 0
