"""`loden run`: starts the forwarder and control, and keeps them running.

    loden run ─┬─ [etcd]          --embedded-etcd
               ├─ forwarder       first: control waits for it anyway
               └─ control         tells systemd READY when packets can flow

What dies is started again, with a growing delay while it keeps dying; what ends because
something must be mended ends everything, with its message.  No child outlives this process.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from control.embedded_etcd import EmbeddedEtcd, EmbeddedEtcdError, die_with_parent
from control.exits import EXIT_FINAL, EXIT_RESTART, EXIT_USAGE
from control.systemd import Notifier, environment_of_others, environment_of_speaker

log = logging.getLogger(__name__)

STOP_WAIT_S = 10.0
"""How long a child may take to end before it is killed."""
RESTART_MIN_S, RESTART_MAX_S = 0.1, 10.0
"""The first restart is immediate, the next ones are delayed by this, each twice the last."""
SETTLED_S = 30.0
"""A child that lived this long before it died counts as one that never died."""
LOCK_WAIT_S = 2.0
"""The children of a run that was killed may take this long to end."""
TICK_S = 1.0
ETCD_RETRY_S = 5.0


class RunDirError(Exception):
    """The run dir cannot be used, or another `loden run`, or what is left of one, holds it."""


@dataclass
class Child:
    """One process to be kept running."""

    name: str
    argv: Sequence[str]
    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    delay_s: float = 0.0
    due_at: float = 0.0

    def start(self, lock_fd: int) -> None:
        """The child holds the run dir's lock as long as it lives."""
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            self.argv,
            env=self.environ,
            pass_fds=(lock_fd,),
            # A session of its own: a terminal's Ctrl-C reaches us alone, and we end it in order.
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        log.debug("%s started, pid %d", self.name, self.process.pid)

    def note_end(self, status: int) -> None:
        """Settles when it is started again."""
        if status == EXIT_RESTART:
            self.process, self.due_at = None, 0.0
            return  # it has said why
        now = time.monotonic()
        if now - self.started_at > SETTLED_S:
            self.delay_s = 0.0
        cause = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        when = f"in {self.delay_s:.1f} s" if self.delay_s else "at once"
        log.warning("%s ended (%s): started again %s", self.name, cause, when)
        self.process, self.due_at = None, now + self.delay_s
        self.delay_s = min(max(2 * self.delay_s, RESTART_MIN_S), RESTART_MAX_S)

    def stop(self) -> None:
        """Asks it to end, and waits for that."""
        if self.process is None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_WAIT_S)
        except subprocess.TimeoutExpired:
            log.warning("%s does not end: killed", self.name)
            self.process.kill()
            self.process.wait()
        self.process = None


@dataclass
class Run:
    """The processes of one node."""

    run_dir: Path
    forwarder_argv: Sequence[str]
    control_argv: Sequence[str]
    etcd: EmbeddedEtcd | None = None
    _stopping: bool = False
    _children: list[Child] = field(default_factory=list)
    _etcd_due_at: float = 0.0

    def run(self) -> int:
        """Runs until SIGTERM or SIGINT; the exit status.

        Raises RunDirError, EmbeddedEtcdError, OSError.
        """
        lock_fd = self._lock()
        signals, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._children = [
            Child("forwarder", self.forwarder_argv, environment_of_others(os.environ)),
            Child("control", self.control_argv, environment_of_speaker(os.environ)),
        ]
        try:
            if self.etcd is not None:
                self.etcd.start()
            return self._keep_running(signals, lock_fd)
        finally:
            Notifier().stopping()
            for child in reversed(self._children):  # control first: it cleans up the host
                child.stop()
            if self.etcd is not None:
                self.etcd.stop()
            os.close(lock_fd)
            signal.set_wakeup_fd(-1)

    def _on_stop(self, *_: object) -> None:
        self._stopping = True

    def _lock(self) -> int:
        """Locks the run dir itself: nothing is left in it, whatever ends us."""
        try:
            self.run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            fd = os.open(self.run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise RunDirError(
                f"run-dir: {self.run_dir} cannot be used: {error.strerror}"
            ) from error
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return fd
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                os.close(fd)
                raise RunDirError(
                    f"run-dir: another 'loden run' uses {self.run_dir}; stop it, or choose "
                    "another --run-dir for a second node on this machine"
                ) from None

    def _keep_running(self, signals: socket.socket, lock_fd: int) -> int:
        """Starts what is due and notices what ended, until told to stop."""
        while not self._stopping:
            for child in self._children:
                status = child.process.poll() if child.process else None
                if status in (EXIT_FINAL, EXIT_USAGE):
                    child.process = None
                    return status  # it has said why
                if status is not None:
                    child.note_end(status)
                if child.process is None and child.due_at <= time.monotonic():
                    child.start(lock_fd)
            self._restart_etcd()
            signals.settimeout(self._seconds_to_next_start())
            try:
                signals.recv(4096)
            except TimeoutError:
                continue
        return 0

    def _restart_etcd(self) -> None:
        """The private etcd may not come back at once; packets flow on meanwhile."""
        if self.etcd is None or self.etcd.pid is not None or self._etcd_due_at > time.monotonic():
            return
        log.warning("the private etcd has ended: starting it again")
        self._etcd_due_at = time.monotonic() + ETCD_RETRY_S
        try:
            self.etcd.start()
        except (EmbeddedEtcdError, OSError) as error:
            log.error("%s", error)

    def _seconds_to_next_start(self) -> float:
        now = time.monotonic()
        due = [child.due_at - now for child in self._children if child.process is None]
        return max(0.01, min([TICK_S, *due]))


def forwarder_command(arguments: Sequence[str]) -> list[str]:
    """`loden forwarder`, without loading the rest of loden first."""
    return [sys.executable, "-m", "forwarder", *arguments]


def control_command(arguments: Sequence[str]) -> list[str]:
    """`loden control`, with what we have read of the configuration file, not what it says later."""
    return [sys.executable, "-m", "control", "control", "--config", os.devnull, *arguments]
