"""A node's session with a real etcd: what it waits for, and what it reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from control.acquire import acquire
from control.etcd import EtcdClient
from control.lease import LeaseAttrs, NodeSubnet, config_key
from control.network_config import NetworkConfig
from control.session import Acquired, EtcdSession, Failed, LeaseLost, Message, Waiting
from control.watch import Phase, Snapshot
from tests.control.conftest import EtcdServer, wait_for
from tests.control.nodes import CONFIG, held_by, node, put_lease

pytestmark = pytest.mark.etcd

TWO = NetworkConfig.parse(
    '{"Network":"10.7.0.0/16","SubnetMin":"10.7.4.0","SubnetMax":"10.7.5.0",'
    '"Backend":{"Type":"vxlan"}}'
)


class Session:
    """A session of one simulated node, and all it has reported."""

    def __init__(
        self,
        client: EtcdClient,
        number: int = 1,
        previous: NodeSubnet | None = None,
        attrs_for: Callable[[NetworkConfig], LeaseAttrs] | None = None,
    ) -> None:
        self.messages: list[Message] = []
        attrs = attrs_for or (lambda config: node(number))
        self.session = EtcdSession(client, attrs, previous, 60, 10, self.messages.append)
        self.session.start()

    def reported(self, kind: type[Message]) -> list[Message]:
        return [message for message in self.messages if isinstance(message, kind)]

    def waits_for(self, words: str) -> bool:
        return any(
            words in message.reason for message in self.messages if isinstance(message, Waiting)
        )

    def acquired(self, timeout_s: float = 10.0) -> Acquired:
        wait_for(lambda: self.reported(Acquired), timeout_s)
        (message,) = self.reported(Acquired)
        assert isinstance(message, Acquired)
        return message


Start = Callable[..., Session]


@pytest.fixture
def start() -> Iterator[Start]:
    sessions: list[Session] = []

    def begin(client: EtcdClient, *arguments: object, **more: object) -> Session:
        sessions.append(Session(client, *arguments, **more))  # type: ignore[arg-type]  # passed on
        return sessions[-1]

    yield begin
    for session in sessions:
        session.session.stop()


def test_waits_for_a_config_and_says_which_key_it_wants(client: EtcdClient, start: Start) -> None:
    session = start(client)
    key = config_key(client.config.prefix)
    wait_for(lambda: session.waits_for(key))
    client.put(key, "{}")
    wait_for(lambda: session.waits_for("Network is absent"))
    client.put(key, CONFIG.to_json())
    assert session.acquired().lease.subnet.fits(CONFIG)


def test_a_full_pool_says_so_and_waits_for_a_subnet(
    shared_etcd: EtcdServer, connect: Callable[..., EtcdClient], prefix: str, start: Start
) -> None:
    operator = connect(shared_etcd, prefix)
    operator.put(config_key(prefix), TWO.to_json())
    leaving, _ = acquire(operator, TWO, node(1)), acquire(operator, TWO, node(2))
    session = start(connect(shared_etcd, prefix), 3)
    wait_for(lambda: session.waits_for("all 2 subnets from 10.7.4.0/24 to 10.7.5.0/24 are taken"))
    assert session.reported(Acquired) == []
    operator.revoke_lease(leaving.lease_id)
    assert session.acquired().lease.subnet == leaving.subnet
    assert held_by(operator, leaving) == node(3)


def test_etcd_down_at_the_start_is_waited_for(
    own_etcd: EtcdServer, connect: Callable[..., EtcdClient], start: Start
) -> None:
    operator = connect(own_etcd)
    operator.put(config_key(operator.config.prefix), CONFIG.to_json())
    own_etcd.kill()
    session = start(connect(own_etcd))
    wait_for(lambda: session.waits_for("no etcd answers"))
    own_etcd.restart()
    assert session.acquired(timeout_s=20).lease.subnet.fits(CONFIG)


def test_routes_follow_the_subnet(client: EtcdClient, start: Start) -> None:
    client.put(config_key(client.config.prefix), CONFIG.to_json())
    put_lease(client, "10.7.9.0-24", node(9))
    session = start(client)
    wait_for(lambda: Phase.IN_SYNC in session.messages)
    kinds = [type(message) for message in session.messages]
    assert kinds.index(Acquired) < kinds.index(Snapshot)


def test_a_lost_subnet_is_reported_with_its_holder(
    shared_etcd: EtcdServer, connect: Callable[..., EtcdClient], prefix: str, start: Start
) -> None:
    operator = connect(shared_etcd, prefix)
    operator.put(config_key(prefix), CONFIG.to_json())
    session = start(connect(shared_etcd, prefix))
    lease = session.acquired().lease
    put_lease(operator, lease.subnet.name, node(2))
    wait_for(lambda: session.session.keeper is not None)
    assert session.session.keeper is not None
    session.session.keeper.check()
    wait_for(lambda: session.reported(LeaseLost))
    (lost,) = session.reported(LeaseLost)
    assert isinstance(lost, LeaseLost)
    assert "192.0.2.2" in lost.reason
    assert held_by(operator, lease) == node(2)


def test_what_no_waiting_mends_is_reported_as_such(client: EtcdClient, start: Start) -> None:
    def refuse(config: NetworkConfig) -> LeaseAttrs:
        raise ValueError("--iface eth7: there is none")

    client.put(config_key(client.config.prefix), CONFIG.to_json())
    session = start(client, attrs_for=refuse)
    wait_for(lambda: session.reported(Failed))
    assert session.messages == [Failed("--iface eth7: there is none")]


def test_stopping_is_prompt_while_etcd_hangs(
    own_etcd: EtcdServer, connect: Callable[..., EtcdClient]
) -> None:
    client = connect(own_etcd, request_timeout_s=30.0)
    before = threading.active_count()
    client.put(config_key(client.config.prefix), CONFIG.to_json())
    session = Session(client)
    wait_for(lambda: Phase.IN_SYNC in session.messages)
    own_etcd.suspend()
    assert session.session.keeper is not None
    session.session.keeper.check()
    begun = time.monotonic()
    session.session.stop()
    assert time.monotonic() - begun < 3
    wait_for(lambda: threading.active_count() <= before + 1)
