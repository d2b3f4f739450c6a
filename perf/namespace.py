"""A network namespace with a name, and the processes in it.

Namespaces are the kernel's named ones (`ip netns`, /run/netns), so that a person can look inside:
`ip netns exec NAME ip route`. Processes are forked by a thread that has entered the namespace, so
that they are in it from their first moment; unlike with `ip netns exec`, /sys and the cgroups
stay as they are.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

NETNS_DIR = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_KILL_TIMEOUT_S = 5.0

Output = int | IO[bytes] | None
"""Where a stream goes: subprocess.PIPE, DEVNULL, an open file, or None (where ours goes)."""


class CommandError(RuntimeError):
    """A command failed; the message holds what it said itself."""

    def __init__(self, argv: Sequence[str], status: int, said: str) -> None:
        super().__init__(f"`{' '.join(argv)}` failed ({status}): {said.strip() or 'no output'}")
        self.status = status
        self.said = said


def run_command(
    argv: Sequence[str],
    *,
    script: str | None = None,
    cwd: str | Path | None = None,
    timeout_s: float = 30.0,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run to the end, output captured. `script` is its standard input.

    Raises CommandError if it is not installed, takes too long, or (with `check`) fails.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=script or "",
            capture_output=True,
            text=True,
            cwd=cwd,
            timeout=timeout_s,
        )
    except FileNotFoundError as error:
        raise CommandError(argv, 127, f"{argv[0]} is not installed") from error
    except subprocess.TimeoutExpired as error:
        raise CommandError(argv, 124, f"no end after {timeout_s:g} s") from error
    if check and done.returncode != 0:
        raise CommandError(argv, done.returncode, done.stderr or done.stdout)
    return done


class Namespace:
    """Made by `create`, gone after `remove_namespaces`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = NETNS_DIR / name
        self.processes: list[subprocess.Popen[bytes]] = []
        """Those started by `popen`, in order; `remove_namespaces` ends them."""

    def create(self) -> None:
        run_command(["ip", "netns", "add", self.name])
        self.ip("link set lo up")

    def ip(self, *lines: str) -> None:
        """Several `ip` commands at the cost of one process: `ip("link set eth0 up", ...)`."""
        run_command(["ip", "-n", self.name, "-batch", "-"], script="\n".join(lines) + "\n")

    def set_sysctl(self, name: str, value: int | str) -> None:
        """`name` as a path: net/ipv4/ip_forward (device names may contain dots)."""
        with self.entered():
            Path("/proc/sys", name).write_text(str(value))

    def set_ipv6(self, enabled: bool) -> None:
        """To be called before there are interfaces. Off, the kernel sends nothing of its own."""
        self.set_sysctl("net/ipv6/conf/all/disable_ipv6", int(not enabled))
        # Without this no address could be used for its first second (RFC 4862 §5.4).
        self.set_sysctl("net/ipv6/conf/default/accept_dad", 0)

    def run(
        self,
        argv: Sequence[str],
        *,
        cwd: str | Path | None = None,
        timeout_s: float = 30.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end in here. Raises CommandError."""
        with self.entered():
            return run_command(argv, cwd=cwd, timeout_s=timeout_s, check=check)

    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = subprocess.DEVNULL,
        stdout: Output = subprocess.DEVNULL,
        stderr: Output = subprocess.DEVNULL,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start in here; it is ended with the namespace at the latest.

        It gets a session of its own: a terminal's Ctrl-C does not reach it, so that it is ended
        in order, by SIGTERM. Raises CommandError if the program is not installed.
        """
        with self.entered():
            try:
                process = subprocess.Popen(
                    list(argv),
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    env=env,
                    cwd=cwd,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise CommandError(argv, 127, f"{argv[0]} is not installed") from error
        self.processes.append(process)
        return process

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in here meanwhile: its sockets, /proc/sys/net and children."""
        with open("/proc/thread-self/ns/net") as home, open(self.path) as there:
            _setns(there.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def pids(self) -> list[int]:
        """All processes in here, whoever started them, but for the caller."""
        try:
            ours = self.path.stat()
        except FileNotFoundError:
            return []
        found = []
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != os.getpid():
                with contextlib.suppress(OSError):  # it ended meanwhile, or is a zombie
                    theirs = os.stat(f"/proc/{entry}/ns/net")
                    if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
                        found.append(int(entry))
        return found


def _setns(namespace_fd: int) -> None:
    # os.setns exists from Python 3.12 on.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace_fd, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"cannot enter a network namespace: {os.strerror(code)}")


def list_namespaces(prefix: str) -> list[Namespace]:
    """Those whose names begin so."""
    if not NETNS_DIR.is_dir():
        return []
    names = sorted(entry.name for entry in NETNS_DIR.iterdir())
    return [Namespace(name) for name in names if name.startswith(prefix)]


def remove_namespaces(namespaces: Sequence[Namespace], *, grace_s: float = 5.0) -> None:
    """End all processes in them, then delete them.

    The leader of each session (what `popen` started) is asked by SIGTERM, the last started
    first, and has `grace_s` seconds to end in order with its children. The rest is killed.
    """
    leaders = {pid for namespace in namespaces for pid in namespace.pids() if _leads_session(pid)}
    started = {process.pid for n in namespaces for process in n.processes if process.poll() is None}
    for pid in sorted(leaders | started, reverse=True):
        end_process(pid, grace_s)
    for namespace in namespaces:
        for pid in namespace.pids():
            end_process(pid, grace_s=0.0)
    for process in (process for namespace in namespaces for process in namespace.processes):
        process.wait()
        _close_pipes((process.stdin, process.stdout, process.stderr))
    for namespace in namespaces:
        if namespace.path.exists():
            done = run_command(["ip", "netns", "delete", namespace.name], check=False)
            # Two sweeps may meet over the same leftovers; either may be the one that succeeds.
            if namespace.path.exists():
                raise CommandError(done.args, done.returncode, done.stderr)


def _leads_session(pid: int) -> bool:
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:
        return False


def end_process(pid: int, grace_s: float) -> None:
    """SIGTERM unless there is no grace, then SIGKILL. A pidfd cannot hit a reused pid."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        ended = select.poll()
        ended.register(pidfd, select.POLLIN)
        if grace_s > 0:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            if ended.poll(grace_s * 1000):
                return
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        ended.poll(_KILL_TIMEOUT_S * 1000)
    except ProcessLookupError:
        pass  # it ended, and somebody else reaped it
    finally:
        os.close(pidfd)


def _close_pipes(pipes: Iterable[IO[bytes] | None]) -> None:
    for pipe in pipes:
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):  # what was not read goes nowhere
                pipe.close()
