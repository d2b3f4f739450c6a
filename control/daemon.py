"""The control process: one loop that brings etcd, the forwarder and the host into step.

    etcd session ── messages ──┐
    forwarder gone ────────────┼──> loop ──> RIB ──> FIB (shared memory)
    links or routes changed ───┤         ├──> device, addresses, routes
    `loden status` asks ───────┘         └──> subnet.env, READY

Nothing here is in a packet's way: while this process or etcd is gone, the workers go on with the
routes they have.  A restarted control starts from the state on disk if etcd is silent.
"""

from __future__ import annotations

import logging
import os
import queue
import selectors
import signal
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from control import node
from control.acquire import leases_in
from control.etcd import EtcdClient
from control.etcd_types import Deletion, Event
from control.external_interface import (
    ExternalInterface,
    ExternalInterfaceError,
    find_external_interface,
)
from control.fib_link import FibLink
from control.health import HealthServer, health_pages
from control.host_keeper import HostKeeper
from control.host_state import IPNetwork, LinkError
from control.lease import Lease, LeaseAttrs, NodeSubnet, config_key
from control.link import HostChanges
from control.masquerade import MasqueradeError
from control.network_config import NetworkConfig, NetworkConfigError
from control.options import ControlOptions
from control.rib import Ignored, Own, Rib, Route
from control.session import Acquired, EtcdSession, Failed, LeaseLost, Message, Waiting
from control.state import State, StateDamagedError, StateError, StateFile, new_vtep_mac
from control.status import describe
from control.subnet_env import SubnetEnv, SubnetEnvError, read_subnet_env, write_subnet_env
from control.systemd import Notifier
from control.watch import Events, Snapshot
from forwarder import rpc
from forwarder.api import ForwarderError
from forwarder.config import ConfigError
from forwarder.fib.writer import FibFull

log = logging.getLogger(__name__)

SOCKET_NAME = "control.sock"
TICK_S = 5.0
"""Links, routes and rules are looked at this often, also when nothing said they changed."""
SAVED_STATE_AFTER_S = 3.0
"""How long etcd may stay silent at the start before the state on disk is used."""
SAVE_DELAY_S = 2.0
"""Changes are gathered this long before they are written to disk."""
FORWARDER_RETRY_S = 0.1
FORWARDER_PATIENCE_S = 10.0
"""A new forwarder may meet its predecessor's device or port this long; then it is an error."""


class ControlError(Exception):
    """The control process must end.

    `final`: starting it again cannot help before somebody mends the cause.
    """

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


class Daemon:
    """All that control knows.  Every method runs in the loop's thread, but where it says so."""

    def __init__(self, options: ControlOptions) -> None:
        self.options = options
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopping = False
        self._started_at = self.beat_at = time.monotonic()
        self._notifier = Notifier()
        self._state_file = StateFile(options.state_dir)
        self._save_at: float | None = None
        self._host_due_at = 0.0
        # What is believed.
        self.state = self._load_state()
        self.interface: ExternalInterface | None = None
        self.config: NetworkConfig | None = None
        self.lease: Lease | None = None
        self.rib: Rib | None = None
        self.has_routes = False
        self.uses_saved_state = False
        self._ignored_said: set[Ignored] = set()
        # What has been made of it.
        self.session: EtcdSession | None = None
        self.link: FibLink | None = None
        self._link_due_at = 0.0
        self._link_lost_at: float | None = None
        self.host: HostKeeper | None = None
        self.subnet_env: SubnetEnv | None = None
        # Why it is not ready, for `status`; None: no such reason.
        self.waiting: str | None = None
        self.forwarder_error: str | None = "the forwarder has not been reached yet"
        self.host_error: str | None = "the overlay device is not set up yet"

    # ---- the life of the process ----------------------------------------------------------------

    def run(self) -> None:
        """Runs until SIGTERM or SIGINT.  Raises ControlError, RpcError, HealthServerError."""
        self._check_interface()
        listener = rpc.listen(self.options.run_dir / SOCKET_NAME, "loden control")
        changes = HostChanges()
        signals, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        pages = health_pages(lambda: self.beat_at, self.not_ready_because)
        health = HealthServer(self.options.healthz_ip, self.options.healthz_port, pages)
        try:
            self._start_session()
            self._loop(listener, signals, changes)
        finally:
            self._notifier.stopping()
            if self.session is not None:
                self.session.stop()
            if self._stopping and self.host is not None:
                self.host.leave()
            if self._save_at is not None:
                self._save_state()
            health.stop()
            listener.close()
            (self.options.run_dir / SOCKET_NAME).unlink(missing_ok=True)
            signal.set_wakeup_fd(-1)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True

    def _loop(self, listener: socket.socket, signals: socket.socket, changes: HostChanges) -> None:
        handlers: rpc.Handlers = {
            "status": lambda: (describe(self), []),
            "confirm_loss": self._confirm_loss,
        }
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(signals, selectors.EVENT_READ)
        selector.register(changes, selectors.EVENT_READ)
        selector.register(self._wake_fd, selectors.EVENT_READ)
        while not self._stopping:
            for key, _ in selector.select(self._seconds_to_next_task()):
                source = key.fileobj
                if source is listener:
                    client, _ = listener.accept()
                    client.settimeout(1.0)  # who asks and does not read shall not hold us up
                    selector.register(client, selectors.EVENT_READ)
                elif source is signals:
                    signals.recv(4096)
                elif source is changes:
                    changes.drain()
                    self._host_due_at = 0.0
                elif source == self._wake_fd:
                    os.eventfd_read(self._wake_fd)
                elif isinstance(source, socket.socket) and not rpc.serve_one(source, handlers):
                    selector.unregister(source)
                    source.close()
            self.beat_at = time.monotonic()
            self._handle_messages()
            self._do_due_tasks()

    def _seconds_to_next_task(self) -> float:
        now = time.monotonic()
        due = [now + TICK_S, self._host_due_at]
        if self._save_at is not None:
            due.append(self._save_at)
        if self.link is None and self.has_routes:
            due.append(self._link_due_at)
        if self.config is None and self.state.lease is not None:
            due.append(self._started_at + SAVED_STATE_AFTER_S)
        return max(0.0, min(due) - now)

    def _do_due_tasks(self) -> None:
        now = time.monotonic()
        if self.config is None and now >= self._started_at + SAVED_STATE_AFTER_S:
            self._use_saved_state()
        if self.link is not None and self.link.is_gone:
            self._lose_forwarder("the forwarder has gone")
        if self.link is None and self.has_routes and now >= self._link_due_at:
            self._reach_forwarder()
        if now >= self._host_due_at:
            self._host_due_at = now + TICK_S
            self._follow_interface()
            self._reconcile_host()
            self._notifier.watchdog()
        if self._save_at is not None and now >= self._save_at:
            self._save_state()
        self._become_ready()

    # ---- etcd: config, lease, routes ------------------------------------------------------------

    def _start_session(self) -> None:
        self.session = EtcdSession(
            EtcdClient(self.options.etcd),
            self._attrs_for,
            self._previous_subnet(),
            self.options.lease_ttl_s,
            self.options.renew_margin_s,
            self._deliver,
        )
        self.session.start()

    def _attrs_for(self, config: NetworkConfig) -> LeaseAttrs:
        """What to publish under `config`.  Called in the session's thread."""
        choice = node.interface_choice(
            self.options, config.ipv4 is not None, config.ipv6 is not None
        )
        self.interface = find_external_interface(choice)
        return node.lease_attrs(config, self.interface, self.state.vtep_mac)

    def _deliver(self, message: Message) -> None:
        """Called in the session's threads."""
        self._messages.put(message)
        os.eventfd_write(self._wake_fd, 1)

    def _handle_messages(self) -> None:
        """Routes that change many times in one go reach the FIB once."""
        changed: dict[IPNetwork, Route | None] = {}
        while not self._messages.empty():
            changed |= self._handle(self._messages.get())
        if changed:
            self._follow_routes(changed)

    def _handle(self, message: Message) -> dict[IPNetwork, Route | None]:
        """Believes one message; returns the routes that changed by it."""
        if isinstance(message, Waiting):
            self.waiting = message.reason
        elif isinstance(message, Failed):
            raise ControlError(message.reason, final=True)
        elif isinstance(message, LeaseLost):
            raise ControlError(f"the lease is lost: {message.reason}", final=True)
        elif isinstance(message, Acquired):
            self.waiting = None
            self.uses_saved_state = False
            self.state = replace(self.state, network_config=message.config_json)
            return self._adopt(message.config, message.lease)
        elif isinstance(message, Snapshot):
            assert self.rib is not None
            changes = self.rib.apply_snapshot(message.entries, message.revision)
            self.has_routes = True
            self._check_config(message.entries)
            return changes.routes
        elif isinstance(message, Events):
            assert self.rib is not None
            self._check_own_key(message.events)
            self._check_config(message.events)
            return self.rib.apply_events(message.events).routes
        return {}

    def _adopt(self, config: NetworkConfig, lease: Lease) -> dict[IPNetwork, Route | None]:
        """Becomes the holder of `lease` under `config`."""
        own = Own(lease.key, lease.attrs.public_ip, lease.attrs.public_ipv6)
        if self.host is None or self.host.config != config:
            self.host = HostKeeper(self.options, config)
        self.host.subnet = lease.subnet
        self.config, self.lease = config, lease
        if self.rib is None:
            self.rib = Rib(self.options.etcd.prefix, config.vni, own)
            return {}
        return self.rib.configure(config.vni, own).routes

    def _check_own_key(self, events: Iterable[Event]) -> None:
        """Has the keeper look when somebody touched our lease."""
        assert self.session is not None
        keeper = self.session.keeper
        for event in events:
            if self.lease is None or keeper is None or event.key != self.lease.key:
                continue
            ours = keeper.lease.attrs.to_json().encode()
            if isinstance(event, Deletion) or event.value != ours:
                keeper.check()

    def _check_config(self, events: Iterable[Event]) -> None:
        """A changed network config is taken up by a restart of this process; packets flow on."""
        key = config_key(self.options.etcd.prefix)
        for event in events:
            if event.key != key or isinstance(event, Deletion):
                continue
            try:
                changed = NetworkConfig.parse(event.value) != self.config
            except NetworkConfigError as error:
                log.error("%s; the old one stays in use", error)
                continue
            if changed:
                raise ControlError("the network config has changed: starting anew", final=False)

    def _follow_routes(self, changed: Mapping[IPNetwork, Route | None]) -> None:
        """Brings FIB and host into step with routes that changed in the RIB."""
        assert self.host is not None
        if self.host.follow_routes(changed):
            self._host_due_at = 0.0
        self._say_ignored()
        self._save_at = self._save_at or time.monotonic() + SAVE_DELAY_S
        if self.link is not None:
            try:
                self.link.apply(changed)
            except FibFull as error:
                log.error("%s", error)

    def _say_ignored(self) -> None:
        """Logs each entry that makes no route once, until it changes."""
        assert self.rib is not None
        ignored = set(self.rib.ignored)
        for item in sorted(ignored - self._ignored_said, key=str):
            log.warning("ignored: %s", item)
        self._ignored_said = ignored

    def _confirm_loss(self) -> rpc.Reply:
        """An operator says that what a restored etcd lacks is gone indeed."""
        if self.session is None or self.session.watch is None:
            raise rpc.RpcError("nothing is known of etcd yet", retryable=True)
        self.session.watch.confirm_loss()
        return {}, []

    # ---- the forwarder --------------------------------------------------------------------------

    def _reach_forwarder(self) -> None:
        """Configures the forwarder that runs now, and gives it all routes."""
        assert self.config is not None
        assert self.rib is not None
        assert self.interface is not None
        now = time.monotonic()
        self._link_due_at = now + FORWARDER_RETRY_S
        try:
            wanted = node.tunnel_config(
                self.options, self.config, self.interface, self.state.vtep_mac
            )
            self.link = FibLink(self.options.run_dir, wanted)
            self.link.load(self.rib.routes)
        except ConfigError as error:
            raise ControlError(str(error), final=True) from error
        except ForwarderError as error:
            if self.link is not None:
                self.link.close()
                self.link = None
            self.forwarder_error = str(error)
            is_restart = self._link_lost_at is not None
            patience = (self._link_lost_at or 0) + FORWARDER_PATIENCE_S if is_restart else 0.0
            if not error.retryable and now > patience:
                raise ControlError(str(error), final=True) from error
            return
        log.info("the forwarder has %d routes; offloads: %s", len(self.rib.routes), _shown(self))
        self.forwarder_error = None
        self._link_lost_at = None
        self._host_due_at = 0.0

    def _lose_forwarder(self, reason: str) -> None:
        assert self.link is not None
        log.warning("%s; waiting for the next one", reason)
        self.link.close()
        self.link, self._link_lost_at = None, time.monotonic()
        self.forwarder_error = reason

    # ---- the host -------------------------------------------------------------------------------

    def _check_interface(self) -> None:
        """Says at once what no waiting will mend: an interface that the flags get wrong."""
        try:
            find_external_interface(node.interface_choice(self.options))
        except ExternalInterfaceError as error:
            if not error.retryable:
                raise ControlError(str(error), final=True) from error

    def _follow_interface(self) -> None:
        """The underlay's address or MTU may change: then sockets and lease follow."""
        if self.config is None or self.lease is None or self.interface is None:
            return
        before = self.interface
        try:
            attrs = self._attrs_for(self.config)
        except ExternalInterfaceError as error:
            self.interface = before
            if self.host_error != str(error):
                log.warning("%s; going on as before", error)
            self.host_error = str(error)
            return
        if self.interface == before:
            return
        log.warning("the underlay has changed: %s, before %s", self.interface, before)
        self.lease = replace(self.lease, attrs=attrs)
        if self.session is not None and self.session.keeper is not None:
            self.session.keeper.publish(attrs)
        if self.rib is not None:
            own = Own(self.lease.key, attrs.public_ip, attrs.public_ipv6)
            self._follow_routes(self.rib.configure(self.config.vni, own).routes)
        if self.link is not None:
            self._reconfigure_forwarder()

    def _reconfigure_forwarder(self) -> None:
        assert self.link is not None
        assert self.config is not None
        assert self.interface is not None
        try:
            self.link.reconfigure(
                node.tunnel_config(self.options, self.config, self.interface, self.state.vtep_mac)
            )
        except ForwarderError as error:
            self._lose_forwarder(str(error))

    def _reconcile_host(self) -> None:
        """Device, addresses, routes, rules: whatever somebody removed is put back."""
        if self.link is None or self.host is None:
            return
        try:
            self.host.reconcile(self.link.config.mtu_bytes)
        except (LinkError, MasqueradeError) as error:
            if not error.retryable:
                raise ControlError(str(error), final=True) from error
            if self.host_error != str(error):
                log.warning("host: %s", error)
            self.host_error = str(error)
        else:
            self.host_error = None

    # ---- ready ----------------------------------------------------------------------------------

    def not_ready_because(self) -> list[str]:
        """Why packets cannot flow yet, each a sentence; empty: they can."""
        reasons = (
            self.waiting if self.lease is None else None,
            None if self.has_routes else "no routes have been read from etcd yet",
            self.forwarder_error,
            self.host_error,
        )
        return [reason for reason in reasons if reason is not None]

    def _become_ready(self) -> None:
        """Packets can flow: subnet.env is written, last of all, and systemd is told."""
        if self.link is None or self.not_ready_because():
            return
        assert self.config is not None
        assert self.lease is not None
        contents = SubnetEnv.of(
            self.config, self.lease.subnet, self.link.config.mtu_bytes, self.options.ip_masq
        )
        if contents == self.subnet_env and self.options.subnet_file.exists():
            return
        try:
            write_subnet_env(contents, self.options.subnet_file)
        except OSError as error:
            raise ControlError(
                f"subnet-file: {self.options.subnet_file} cannot be written: {error.strerror}",
                final=True,
            ) from error
        self.subnet_env = contents
        log.info("ready: subnet %s, %d routes", self.lease.subnet, self.link.route_count)
        self._notifier.ready(f"subnet {self.lease.subnet}")

    # ---- state on disk --------------------------------------------------------------------------

    def _load_state(self) -> State:
        state = None
        try:
            state = self._state_file.load()
        except StateDamagedError as error:
            log.error("%s", error)
        if state is None:
            state = State(vtep_mac=new_vtep_mac())
            self._state_file.save(state)
        return state

    def _use_saved_state(self) -> None:
        """etcd is silent: forward on the last good routes until it answers."""
        saved = self.state
        if self.config is not None or saved.lease is None or saved.network_config is None:
            return
        config = NetworkConfig.parse(saved.network_config)
        try:
            self._attrs_for(config)
        except ExternalInterfaceError as error:
            self.waiting = str(error)
            return
        log.warning("etcd is silent: forwarding on the routes saved %s", _date(saved.saved_at))
        (lease,) = leases_in(self.options.etcd.prefix, [saved.lease])
        self.uses_saved_state = True
        self._adopt(config, lease)
        assert self.rib is not None
        changes = self.rib.apply_snapshot(saved.entries, saved.revision)
        self.has_routes = True
        self._follow_routes(changes.routes)

    def _save_state(self) -> None:
        self._save_at = None
        if self.uses_saved_state or self.lease is None or self.rib is None:
            return
        entries = tuple(self.rib.entries)
        watch = self.session.watch.status() if self.session and self.session.watch else None
        own = [entry for entry in entries if entry.key == self.lease.key]
        self.state = replace(
            self.state,
            lease=own[0] if own else self.state.lease,
            entries=entries,
            revision=watch.revision if watch else 0,
            cluster_id=watch.cluster_id if watch else 0,
            saved_at=time.time(),
        )
        try:
            self._state_file.save(self.state)
        except StateError as error:
            log.error("%s", error)

    def _previous_subnet(self) -> NodeSubnet | None:
        """The subnet to ask for again: subnet.env's, as flannel does, else the saved one."""
        try:
            env = read_subnet_env(self.options.subnet_file)
        except (SubnetEnvError, OSError) as error:
            log.warning("%s", error)
            env = None
        if env is not None:
            return env.node_subnet
        if self.state.lease is None:
            return None
        (lease,) = leases_in(self.options.etcd.prefix, [self.state.lease])
        return lease.subnet


def _shown(daemon: Daemon) -> str:
    assert daemon.link is not None
    return ", ".join(f"{name} {state}" for name, state in daemon.link.offloads.items())


def _date(timestamp: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(timestamp))
