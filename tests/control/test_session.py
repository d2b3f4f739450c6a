"""A node's relations with etcd, against a real one."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import pytest

from control.acquire import acquire
from control.etcd import EtcdClient
from control.lease import LeaseAttrs, config_key
from control.network_config import NetworkConfig
from control.session import Acquired, EtcdSession, Failed, LeaseLost, Message, Waiting
from control.watch import Events, Snapshot
from tests.control.conftest import EtcdServer, wait_for
from tests.control.nodes import CONFIG, held_by, node

pytestmark = pytest.mark.etcd

MessageT = TypeVar("MessageT")

TWO = NetworkConfig.parse(
    '{"Network":"10.7.0.0/16","SubnetMin":"10.7.4.0","SubnetMax":"10.7.5.0",'
    '"Backend":{"Type":"vxlan"}}'
)
"""A network of two subnets."""


class Node:
    """A session, and what it delivered."""

    def __init__(
        self, client: EtcdClient, attrs_for: Callable[[NetworkConfig], LeaseAttrs]
    ) -> None:
        self.messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.session = EtcdSession(client, attrs_for, None, 60, 10, self.messages.put)
        self.session.start()

    def next(self, kind: type[MessageT]) -> MessageT:
        """The next message of this kind; those of other kinds are passed over."""
        while True:
            message = self.messages.get(timeout=10)
            if isinstance(message, kind):
                return message


@pytest.fixture
def begin(
    shared_etcd: EtcdServer, connect: Callable[..., EtcdClient], prefix: str
) -> Iterator[Callable[..., Node]]:
    """Starts node 1; another way to its attributes may be given."""
    nodes: list[Node] = []

    def start(attrs_for: Callable[[NetworkConfig], LeaseAttrs] = lambda _: node(1)) -> Node:
        nodes.append(Node(connect(shared_etcd, prefix), attrs_for))
        return nodes[-1]

    yield start
    for one in nodes:
        one.session.stop()


def put_config(client: EtcdClient, text: str = CONFIG.to_json()) -> None:
    client.put(config_key(client.config.prefix), text)


def test_lease_comes_before_all_there_is_and_that_before_changes(
    begin: Callable[..., Node], client: EtcdClient
) -> None:
    put_config(client)
    session = begin()
    first = session.messages.get(timeout=10)
    assert isinstance(first, Acquired)
    assert first.config == CONFIG
    assert held_by(client, first.lease) == node(1)
    listed = session.next(Snapshot)
    assert first.lease.key in [entry.key for entry in listed.entries]
    put_config(client, "{}")
    assert [event.key for event in session.next(Events).events] == [
        config_key(client.config.prefix)
    ]


def test_no_config_and_a_wrong_one_are_each_said_once_and_waited_for(
    begin: Callable[..., Node], client: EtcdClient, caplog: pytest.LogCaptureFixture
) -> None:
    session = begin()
    for _ in range(2):
        assert "there is no network config in etcd at" in session.next(Waiting).reason
    put_config(client, "{}")
    while "there is no" in (reason := session.next(Waiting).reason):
        pass
    assert reason.startswith("network config: Backend is") or "Network is absent" in reason
    put_config(client)
    assert session.next(Acquired).config == CONFIG
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == len(set(said)) == 2


def test_what_waiting_may_mend_is_waited_for_and_what_not_ends_it(
    begin: Callable[..., Node], client: EtcdClient
) -> None:
    class DownError(Exception):
        retryable = True

    errors: list[Exception] = [DownError("eth0 is down"), ValueError("eth9 is unknown")]

    def attrs_for(_: NetworkConfig) -> LeaseAttrs:
        raise errors.pop(0)

    put_config(client)
    session = begin(attrs_for)
    assert session.next(Waiting).reason == "eth0 is down"
    assert session.next(Failed).reason == "eth9 is unknown"


def test_stopping_leaves_the_lease_and_is_prompt_and_quiet(
    begin: Callable[..., Node], client: EtcdClient, caplog: pytest.LogCaptureFixture
) -> None:
    put_config(client)
    session = begin()
    lease = session.next(Acquired).lease
    session.next(Snapshot)
    caplog.clear()
    session.session.stop()
    assert held_by(client, lease) == node(1)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_lease_that_another_takes_is_lost(begin: Callable[..., Node], client: EtcdClient) -> None:
    put_config(client)
    session = begin()
    lease = session.next(Acquired).lease
    client.put(lease.key, node(2).to_json())
    assert session.session.keeper is not None
    session.session.keeper.check()
    assert "is held by another node" in session.next(LeaseLost).reason


def test_moved_node_publishes_its_new_address(
    begin: Callable[..., Node], client: EtcdClient
) -> None:
    put_config(client)
    session = begin()
    lease = session.next(Acquired).lease
    session.next(Snapshot)
    moved = replace(node(1), public_ip=node(9).public_ip)
    session.session.move(moved)
    wait_for(lambda: held_by(client, lease) == moved)
    assert [event.key for event in session.next(Events).events] == [lease.key]


def test_full_pool_is_said_once_and_waited_for_until_a_subnet_is_free(
    begin: Callable[..., Node],
    client: EtcdClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("control.session.CONFIG_RETRY_S", 0.01)
    put_config(client, TWO.to_json())
    leaving, _ = (acquire(client, TWO, node(number)) for number in (1, 2))
    session = begin(lambda _: node(3))
    for _ in range(5):
        assert "all 2 subnets from 10.7.4.0/24 to 10.7.5.0/24" in session.next(Waiting).reason
    assert len(caplog.records) == 1
    client.revoke_lease(leaving.lease_id)
    assert session.next(Acquired).lease.subnet == leaving.subnet
    assert held_by(client, leaving) == node(3)


def test_etcd_down_at_the_start_is_waited_for(
    own_etcd: EtcdServer, connect: Callable[..., EtcdClient]
) -> None:
    put_config(connect(own_etcd))
    own_etcd.kill()
    session = Node(connect(own_etcd), lambda _: node(1))
    try:
        assert "no etcd answers" in session.next(Waiting).reason
        own_etcd.restart()
        assert session.next(Acquired).lease.subnet.fits(CONFIG)
    finally:
        session.session.stop()
