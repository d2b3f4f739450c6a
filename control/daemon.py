"""The control process: one loop that brings etcd, the forwarder and the host into step.

    etcd session ── messages ──┐
    forwarder gone ────────────┼──> loop ──> RIB ──> FIB (shared memory)
    links or routes changed ───┤         ├──> device, addresses, routes
    `loden status` asks ───────┘         └──> subnet.env, READY

Nothing here is in a packet's way: while this process or etcd is gone, the workers go on with the
routes they have.  A restarted control starts from the state on disk if etcd is silent.
"""

from __future__ import annotations

import gc
import logging
import queue
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import ip_address

from control import docker_service, node, own_lease, underlay
from control.etcd import EtcdClient
from control.etcd_types import Deletion, Event
from control.exits import ControlError, RestartWanted
from control.explanation import explain
from control.external_interface import ExternalInterface, ExternalInterfaceError
from control.forwarder_keeper import ForwarderKeeper
from control.health import HealthServer
from control.host_changes import FirewallChanges, HostChanges
from control.host_keeper import HostKeeper
from control.host_state import IPNetwork
from control.lease import Lease, LeaseAttrs, config_key
from control.loop import Loop
from control.network_config import NetworkConfig, NetworkConfigError
from control.options import ControlOptions
from control.pages import node_pages
from control.rib import Ignored, Own, Rib, Route
from control.saved_state import SavedState
from control.session import Acquired, EtcdSession, Failed, LeaseLost, Message, Waiting
from control.status import describe
from control.subnet_env import SubnetEnv, write_subnet_env
from control.systemd import Notifier
from control.watch import Events, Snapshot
from forwarder import rpc
from forwarder.config import ConfigError, TunnelConfig

log = logging.getLogger(__name__)

SOCKET_NAME = "control.sock"
TICK_S = 5.0
"""Links, routes and rules are looked at this often, also when nothing said they changed."""
HOST_SETTLE_S = 0.2
"""Changes of links and routes are gathered this long: some hosts have hundreds a second."""
FIREWALL_SETTLE_S = 1.0
"""Looking at the firewall's rules takes three programs."""
GC_THRESHOLDS = (50_000, 20, 1_000)
"""Collections are rare: each full one walks all that is known of 50,000 nodes, and takes as long
as hundreds of changes.  Reference counts free nearly everything; cycles are of young objects.
"""
SAVED_STATE_AFTER_S = 3.0
"""How long etcd may stay silent at the start before the state on disk is used."""


class Daemon:
    """All that control knows.  Every method runs in the loop's thread, but where it says so."""

    def __init__(self, options: ControlOptions) -> None:
        """Raises StateError where the state dir cannot be used."""
        self.options = options
        self.saved = SavedState(options.state_dir, options.etcd.prefix)
        self._loop = Loop()
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._notifier = Notifier()
        self.started_at = self.beat_at = time.monotonic()
        self._host_due_at = 0.0
        self._saved_state_due_at: float | None = self.beat_at + SAVED_STATE_AFTER_S
        # What is believed.
        self.interface: ExternalInterface | None = None
        self.tunnel: TunnelConfig | None = None
        self.config: NetworkConfig | None = None
        self.lease: Lease | None = None
        self.rib: Rib | None = None
        self.has_routes = False
        self.uses_saved_state = False
        self._ignored_said: set[Ignored] = set()
        # What has been made of it.
        self.session: EtcdSession | None = None
        self.forwarder = ForwarderKeeper(options.run_dir, self._loop)
        self.host: HostKeeper | None = None
        self.subnet_env: SubnetEnv | None = None
        # Why it is not ready; None: no such reason.
        self.waiting: str | None = None
        self.underlay_error: str | None = None

    # ---- the life of the process ----------------------------------------------------------------

    def run(self) -> None:
        """Until SIGTERM, SIGINT. Raises ControlError, RestartWanted, RpcError, HealthServerError"""
        gc.set_threshold(*GC_THRESHOLDS)
        underlay.check_flags(self.options)
        socket_path = self.options.run_dir / SOCKET_NAME
        listener = rpc.listen(socket_path, "loden control")
        self._loop.serve(
            listener,
            {
                "status": lambda: (describe(self), []),
                "explain": lambda address: (explain(self.rib, ip_address(address)), []),
                "confirm_loss": self._confirm_loss,
            },
        )
        changes = HostChanges()
        self._loop.watch(changes, lambda: self._note_host_change(changes))
        self._watch_firewall()
        pages = node_pages(self)
        health = HealthServer(self.options.healthz_ip, self.options.healthz_port, pages)
        is_last = False
        try:
            self._start_session()
            while not self._loop.stopping:
                self._loop.turn(self._seconds_to_next_task())
                self.beat_at = time.monotonic()
                self._handle_messages()
                self._do_due_tasks()
            is_last = True
        except ControlError:
            is_last = True
            raise
        finally:
            self._leave(is_last)
            health.stop()
            listener.close()
            socket_path.unlink(missing_ok=True)
            self._loop.close()

    def _leave(self, is_last: bool) -> None:
        """`is_last`: no other control process takes over from this one."""
        if self.session is not None:
            self.session.stop()
        if is_last and self.host is not None:
            self.host.leave()
        if self.saved.due_at is not None:
            self._save_state()

    def _note_host_change(self, changes: HostChanges) -> None:
        changes.drain()
        self._host_due_at = min(self._host_due_at, time.monotonic() + HOST_SETTLE_S)

    def _watch_firewall(self) -> None:
        try:
            changes = FirewallChanges()
        except OSError as error:  # a kernel without nftables
            log.warning("changes of firewall rules go unnoticed: %s", error.strerror)
            return
        self._loop.watch(changes, lambda: self._note_firewall_change(changes))

    def _note_firewall_change(self, changes: FirewallChanges) -> None:
        changes.drain()
        if self.host is not None:
            self.host.note_firewall_change()
            self.forwarder.note_firewall_change()
            self._host_due_at = min(self._host_due_at, time.monotonic() + FIREWALL_SETTLE_S)

    def _seconds_to_next_task(self) -> float:
        due = [self._host_due_at, self._saved_state_due_at, self.saved.due_at]
        if self._wants_forwarder():
            due.append(self.forwarder.due_at)
        soonest = min(at for at in due if at is not None)
        return max(0.0, soonest - time.monotonic())

    def _do_due_tasks(self) -> None:
        now = time.monotonic()
        if self._saved_state_due_at is not None and now >= self._saved_state_due_at:
            self._use_saved_state()
        if now >= self._host_due_at:
            self._host_due_at = now + min(TICK_S, self._notifier.watchdog_interval_s or TICK_S)
            self._notifier.watchdog()
            self._follow_interface()
            self._reconcile_host()
        if self._wants_forwarder() and now >= self.forwarder.due_at:
            self._reach_forwarder()
        if self.saved.due_at is not None and now >= self.saved.due_at:
            self._save_state()
        self._become_ready()

    # ---- etcd: config, lease, routes ------------------------------------------------------------

    def _start_session(self) -> None:
        self.session = EtcdSession(
            EtcdClient(self.options.etcd),
            lambda config: self._attrs(config, underlay.find_underlay(self.options, config)),
            self.saved.previous_subnet(self.options.subnet_file),
            self.options.lease_ttl_s,
            self.options.renew_margin_s,
            self._deliver,
            self.saved.known(self.options.lease_ttl_s),
        )
        self.session.start()

    def _deliver(self, message: Message) -> None:
        """Called in the session's threads."""
        self._messages.put(message)
        self._loop.wake()

    def _handle_messages(self) -> None:
        """Routes that change many times in one go reach the FIB once."""
        changed: dict[IPNetwork, Route | None] = {}
        while not self._messages.empty():
            changed |= self._handle(self._messages.get())
        if changed:
            self._follow_routes(changed)

    def _handle(self, message: Message) -> Mapping[IPNetwork, Route | None]:
        """Believes one message; returns the routes that changed by it."""
        match message:
            case Waiting(reason):
                self.waiting = reason
            case Failed(reason):
                raise ControlError(reason)
            case LeaseLost(reason):
                raise ControlError(f"the lease is lost: {reason}")
            case Acquired(config, config_json, lease):
                self.waiting = None
                self.saved.note_config(config_json)
                if self.uses_saved_state and config != self.config:
                    raise RestartWanted("the network config has changed")
                self.uses_saved_state = False
                return self._adopt(config, lease)
            case Snapshot(entries, revision):
                assert self.rib is not None
                assert self.lease is not None
                self._check_config(entries)
                if not own_lease.is_among(self.lease, entries):
                    self._check_lease()
                self.has_routes = True
                believed_entries = own_lease.with_it(self.lease, entries)
                return self.rib.apply_snapshot(believed_entries, revision).routes
            case Events(events):
                assert self.rib is not None
                assert self.lease is not None
                self._check_config(events)
                if own_lease.is_touched(self.lease, events):
                    self._check_lease()
                believed = own_lease.without_its_end(self.lease, events)
                return self.rib.apply_events(believed).routes
        return {}

    def _adopt(self, config: NetworkConfig, lease: Lease) -> Mapping[IPNetwork, Route | None]:
        """Becomes the holder of `lease` under `config`; returns the routes to follow."""
        self.config, self.lease = config, lease
        self._saved_state_due_at = None
        own = Own(lease.key, lease.attrs.public_ip, lease.attrs.public_ipv6)
        if self.rib is None:
            self.rib = Rib(self.options.etcd.prefix, config.vni)
        gone = self.rib.configure(config.vni, own).routes
        if self.host is not None:
            self.host.close()
        self.host = HostKeeper(self.options, config, lease.subnet)
        self._host_due_at = 0.0
        return {**gone, **self.rib.routes}

    def _use_saved_state(self) -> None:
        """etcd is silent: forward on the last good routes until it answers."""
        self._saved_state_due_at = None
        if (saved := self.saved.last_good()) is None:
            return
        log.warning("no answer from etcd yet: forwarding on the routes saved %s", saved.saved_on)
        self.uses_saved_state = True
        self._adopt(saved.config, saved.lease)
        assert self.rib is not None
        self.rib.apply_snapshot(saved.entries, saved.revision)
        self.has_routes = True
        self._follow_routes(self.rib.routes)

    def _check_lease(self) -> None:
        """Has the keeper look: somebody touched our lease, or etcd has lost it."""
        if self.session is not None and self.session.keeper is not None:
            self.session.keeper.check()

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
                raise RestartWanted("the network config has changed")

    def _follow_routes(self, changed: Mapping[IPNetwork, Route | None]) -> None:
        """Brings FIB and host into step with routes that changed in the RIB."""
        assert self.host is not None
        self.forwarder.apply(changed)
        if self.host.follow_routes(changed):
            self._host_due_at = 0.0
        self._say_ignored()
        self.saved.note_change()

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

    def _save_state(self) -> None:
        """Not while the state on disk is all we know."""
        self.saved.due_at = None
        if self.uses_saved_state or self.lease is None or self.rib is None or not self.has_routes:
            return
        watch = self.session.watch.status() if self.session and self.session.watch else None
        self.saved.write(
            self.lease.key,
            self.rib.entries,
            revision=watch.revision if watch else 0,
            cluster_id=watch.cluster_id if watch else 0,
        )

    # ---- the underlay, the forwarder, the host --------------------------------------------------

    def _attrs(self, config: NetworkConfig, interface: ExternalInterface) -> LeaseAttrs:
        """What to publish.  Called in the session's thread, too."""
        return node.lease_attrs(config, interface, self.saved.vtep_mac)

    def _follow_interface(self) -> None:
        """The underlay's address or MTU may change: then lease and sockets follow."""
        if self.config is None:
            return
        try:
            interface = underlay.find_underlay(self.options, self.config)
            tunnel = node.tunnel_config(self.options, self.config, interface, self.saved.vtep_mac)
        except (ExternalInterfaceError, ConfigError) as error:
            if self.underlay_error != str(error):
                log.warning("underlay: %s", error)
            self.underlay_error = str(error)
            return
        self.underlay_error = None
        if interface == self.interface:
            return
        if self.interface is not None:
            log.warning("the underlay is now %s", underlay.in_words(interface))
        self.interface, self.tunnel = interface, tunnel
        self._publish(self._attrs(self.config, interface))
        self.forwarder.reconfigure(tunnel)

    def _publish(self, attrs: LeaseAttrs) -> None:
        """Has our lease say where we are now."""
        assert self.config is not None
        assert self.lease is not None
        assert self.rib is not None
        if attrs == self.lease.attrs:
            return
        self.lease = replace(self.lease, attrs=attrs)
        if self.session is not None:
            self.session.move(attrs)
        own = Own(self.lease.key, attrs.public_ip, attrs.public_ipv6)
        gone = self.rib.configure(self.config.vni, own).routes
        # All: who is on our link may be another matter now.
        self._follow_routes({**gone, **self.rib.routes})

    def _wants_forwarder(self) -> bool:
        return self.forwarder.link is None and self.has_routes and self.tunnel is not None

    def _reach_forwarder(self) -> None:
        assert self.rib is not None
        assert self.tunnel is not None
        if self.forwarder.reach(self.tunnel, self.rib.routes):
            self._reconcile_host()

    def _reconcile_host(self) -> None:
        """Device, addresses, routes, rules: whatever somebody removed is put back."""
        if self.forwarder.link is None or self.host is None:
            return
        self.host.reconcile(self.forwarder.link.config.mtu_bytes)
        if self.host.error is None and self.interface is not None and self.rib is not None:
            own = self.host.subnet.ipv4
            address, routes = own.network_address if own else None, self.rib.routes.values()
            self.forwarder.keep_superpackets(self.interface.name, address, routes)

    # ---- ready ----------------------------------------------------------------------------------

    def not_ready_because(self) -> list[str]:
        """Why packets cannot flow yet, each a sentence; empty: they can."""
        reasons = (
            self.waiting if self.lease is None else None,
            None if self.has_routes else "no routes have been read from etcd yet",
            self.underlay_error,
            self.forwarder.error or self.forwarder.silence(),
            self.host.error if self.host else None,
        )
        return [reason for reason in reasons if reason is not None]

    def _become_ready(self) -> None:
        """Packets can flow: subnet.env is written, last of all, and systemd may start Docker."""
        reasons = self.not_ready_because()
        if self.forwarder.link is None or reasons:
            self._notifier.status("; ".join(reasons) or "starting")
            return
        assert self.config is not None
        assert self.lease is not None
        mtu_bytes = self.forwarder.link.config.mtu_bytes
        contents = SubnetEnv.of(self.config, self.lease.subnet, mtu_bytes, self.options.ip_masq)
        if contents != self.subnet_env or not self.options.subnet_file.exists():
            self._write_subnet_env(contents)
            count = self.forwarder.link.route_count
            log.info("ready: subnet %s, %d routes", self.lease.subnet, count)
        self._notifier.ready(f"subnet {self.lease.subnet}")

    def _write_subnet_env(self, contents: SubnetEnv) -> None:
        path = self.options.subnet_file
        try:
            write_subnet_env(contents, path)
        except OSError as error:
            raise ControlError(
                f"subnet-file: {path} cannot be written: {error.strerror}"
            ) from error
        self.subnet_env = contents
        if self.options.docker:
            docker_service.follow_subnet(contents, path)
