"""A real systemd on a host of a topology, with one service, as a machine would run it.

    unshare: mounts ── a cgroup of its own ── unshare: pids, cgroups
                                                └─ systemd ── loden.service

It sees this machine's files, but for /etc (a copy), /run, /var/lib and /var/cache (empty but for
the compiled kernels).  What it changes ends with it.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from forwarder.jit import CACHE_FOLDER
from perf.topology import Host
from tests.netns.nodes import wait_for

ROOT = Path(__file__).parents[2]
UNIT = "loden.service"
BOOT_S = 20.0

OUTER = """
set -e
mount --make-rprivate /
umount --recursive /run/netns || true # other tests' namespaces, which must be free to go
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir "$1/cgroup/$2"
echo $$ >"$1/cgroup/$2/cgroup.procs"
[ -z "$3" ] || mount --bind "$3" "$1/cache/${3##*/}"
exec unshare --cgroup --pid --ipc --uts --fork --kill-child sh -c "$4" - "$1"
"""
INNER = """
set -e
umount "$1/cgroup"
mount -t proc proc /proc
mount --bind "$1/etc" /etc
for folder in /run /var/lib /var/cache; do mount -t tmpfs -o mode=755 tmpfs $folder; done
mkdir -p /var/cache/loden /run/systemd/system
mount --rbind "$1/cache" /var/cache/loden
mount -t cgroup2 cgroup2 /sys/fs/cgroup
export container=loden-test
exec /lib/systemd/systemd --system --unit=nothing.target --log-target=console --show-status=no
"""
CLEAN_UP = """
mount --make-rprivate /
mount -t cgroup2 cgroup2 "$1/cgroup" || exit 0
[ ! -d "$1/cgroup/$2" ] || find "$1/cgroup/$2" -depth -type d -exec rmdir {} +
"""

NOTHING = "[Unit]\nDefaultDependencies=no\nAllowIsolate=yes\n"
DROP_IN = """
[Unit]
# Nothing else of this machine is started here.
DefaultDependencies=no
[Service]
# Where the sources of the tests may be, and they are what is run.
ProtectHome=read-only
WorkingDirectory={sources}
StandardOutput=append:{log}
StandardError=inherit
WatchdogSec={watchdog_s}
"""


class CannotBoot(Exception):
    """This machine does not let a second systemd run; the message has its last words."""


class BootedSystemd:
    """What `systemctl` says and does there."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log_path = log

    @property
    def pid(self) -> int:
        """Of systemd itself, as seen from here; 0: there is none."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError, ValueError):
            return int(children.read_text())
        return 0

    def path(self, path: str) -> Path:
        """As systemd sees it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def systemctl(self, *words: str) -> str:
        argv = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "systemctl", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{words}: {done.stderr}{self.log()}"
        return done.stdout

    def show(self, name: str) -> str:
        """A property of the service."""
        return self.systemctl("show", UNIT, f"--property={name}", "--value").strip()

    def pids(self) -> list[int]:
        """Of the service's processes, the main one first, as seen from here."""
        group = self.path("/sys/fs/cgroup/system.slice/loden.service/cgroup.procs")
        return sorted(map(int, group.read_text().split()))

    def log(self) -> str:
        return self.log_path.read_text() if self.log_path.exists() else ""


@contextlib.contextmanager
def booted_systemd(
    host: Host, directory: Path, unit: str, config: str, watchdog_s: float
) -> Iterator[BootedSystemd]:
    """A systemd that knows `unit`, loden's, with `config` for its settings; it is not started.

    `unit` as rendered for this Python.  Raises CannotBoot.
    """
    _lay_out(directory, config)
    log, own_log = directory / "log", directory / "systemd.log"
    cgroup = f"loden-test-{host.name}"
    words = [str(directory), cgroup, str(CACHE_FOLDER or ""), INNER]
    argv = ["unshare", "--mount", "sh", "-c", OUTER, "-", *words]
    with own_log.open("wb") as output:
        systemd = BootedSystemd(
            host.popen(argv, stdout=output, stderr=subprocess.STDOUT), directory / "log"
        )
    try:
        with contextlib.suppress(AssertionError):
            wait_for(
                lambda: systemd.process.poll() is not None or _is_up(systemd), "systemd", BOOT_S
            )
        if not _is_up(systemd):
            raise CannotBoot(own_log.read_text().strip())
        drop_in = DROP_IN.format(sources=ROOT, log=log, watchdog_s=watchdog_s)
        units = systemd.path("/run/systemd/system")
        (units / UNIT).write_text(unit)
        (units / f"{UNIT}.d").mkdir()
        (units / f"{UNIT}.d" / "test.conf").write_text(drop_in)
        (units / "network-online.target").symlink_to("/dev/null")
        systemd.systemctl("daemon-reload")
        yield systemd
    finally:
        systemd.process.kill()
        systemd.process.wait()
        clean_up = ["unshare", "--mount", "sh", "-c", CLEAN_UP, "-", str(directory), cgroup]
        wait_for(
            lambda: subprocess.run(clean_up, capture_output=True).returncode == 0,
            "its processes have gone, and their cgroups",
        )


def _lay_out(directory: Path, config: str) -> None:
    """What is put in place of the machine's own folders."""
    for name in ("cgroup", "cache"):
        (directory / name).mkdir()
    if CACHE_FOLDER is not None:
        (directory / "cache" / CACHE_FOLDER.name).mkdir()
    shutil.copytree("/etc", directory / "etc", symlinks=True)
    units = directory / "etc/systemd/system"
    (units / "nothing.target").write_text(NOTHING)
    settings = directory / "etc/loden/loden.toml"
    settings.parent.mkdir(exist_ok=True)
    settings.write_text(config)
    settings.chmod(0o600)


def _is_up(systemd: BootedSystemd) -> bool:
    return systemd.pid != 0 and systemd.path("/run/systemd/private").exists()
