"""A real Docker on each host of a topology, with a process list and mounts of its own.

    host's network namespace
      unshare ── dockerd ─┬─ containerd
                          └─ container: busybox, in a network namespace that Docker makes

Where its first process ends, the kernel ends all the others and undoes the mounts: nothing
survives, however the tests end. There is no registry: the image is made of busybox.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

from control.docker_service import FILE_NAME
from perf.namespace import CommandError, Namespace, run_command
from perf.topology import Host
from perf.traffic import IPAddress
from tests.netns.nodes import wait_for

IMAGE = "busybox"
APPLETS = ("ping", "ip", "httpd", "wget", "sha256sum", "dd")
SERVE_FILES = ("httpd", "-f", "-p", "80", "-h", "/")
START_S = 60.0

# What the unit's drop-in makes of the options; shell and systemd split them the same way.
RUN_DOCKERD = """
mount -t tmpfs none /run || exit
. "$1"
shift
exec dockerd "$@" $DOCKER_OPT_BIP $DOCKER_OPT_IPMASQ $DOCKER_OPT_MTU
"""


class Container(Namespace):
    """A container's network, which is entered like a pod's, and what it executes."""

    def __init__(self, docker: Docker, name: str, address: IPAddress, path: Path) -> None:
        super().__init__(name)
        self.path = path
        self.address = address
        self._docker = docker

    def execute(self, *argv: str) -> str:
        """What the command prints, inside. Raises CommandError."""
        return self._docker.ask("exec", self.name, *argv)

    def pings(self, address: IPAddress) -> bool:
        """Whether one comes back."""
        try:
            self.execute("ping", "-c", "1", "-W", "1", str(address))
        except CommandError:
            return False
        return True


class Docker:
    """dockerd on a host, started with the options that loden wrote for it."""

    def __init__(self, host: Host, directory: Path) -> None:
        """`directory`: the node's, with its subnet file and Docker's options."""
        self.host = host
        self.options_file = directory / FILE_NAME
        self._directory = directory / "docker"
        self._socket = self._directory / "socket"
        self._log = directory / "docker.log"
        self._cgroup = f"/{host.name}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        self._directory.mkdir(exist_ok=True)
        (self._directory / "daemon.json").write_text("{}")  # not that of the machine
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        arguments = {
            "--config-file": self._directory / "daemon.json",
            "--data-root": self._directory / "data",
            "--exec-root": self._directory / "exec",
            "--pidfile": self._directory / "pid",
            "--host": f"unix://{self._socket}",
            "--storage-driver": "vfs",
            "--exec-opt": "native.cgroupdriver=cgroupfs",
            "--cgroup-parent": self._cgroup,
        }
        words = [str(word) for pair in arguments.items() for word in pair]
        with self._log.open("ab") as output:
            self._process = self.host.popen(
                [*namespaces, "sh", "-c", RUN_DOCKERD, "sh", str(self.options_file), *words],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        wait_for(self._answers_or_is_dead, "Docker answers", START_S)
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        if not self.ask("images", "--quiet", IMAGE):
            self._import_image()

    def _answers_or_is_dead(self) -> bool:
        assert self._process is not None
        argv = ["docker", "--host", f"unix://{self._socket}", "version"]
        return run_command(argv, check=False).returncode == 0 or self._process.poll() is not None

    def _import_image(self) -> None:
        tarball = self._directory / "root.tar"
        with tarfile.open(tarball, "w") as tar:
            busybox = shutil.which("busybox")
            assert busybox is not None
            tar.add(busybox, "bin/busybox")
            for applet in APPLETS:
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link, io.BytesIO())
        self.ask("import", str(tarball), IMAGE)

    def ask(self, *words: str) -> str:
        """What `docker WORDS...` prints. Raises CommandError."""
        return run_command(["docker", "--host", f"unix://{self._socket}", *words]).stdout.strip()

    def run(self, name: str) -> Container:
        """A container that serves its files by HTTP, and executes what it is told."""
        # To a container's first process a SIGTERM means nothing.
        self.ask("run", "--detach", "--stop-signal", "KILL", "--name", name, IMAGE, *SERVE_FILES)
        return self._container(name)

    def start_again(self, container: Container) -> Container:
        """One that ended with Docker."""
        self.ask("start", container.name)
        return self._container(container.name)

    def _container(self, name: str) -> Container:
        network = json.loads(self.ask("inspect", name))[0]["NetworkSettings"]
        # The path is one of Docker's mounts, which only its own processes see.
        path = Path(f"/proc/{self._dockerd_pid()}/root{network['SandboxKey']}")
        return Container(self, name, ip_address(network["IPAddress"]), path)

    def _dockerd_pid(self) -> int:
        assert self._process is not None
        pid = self._process.pid
        (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return int(child)

    def stop(self) -> None:
        """In order, as systemd does; its containers end with it."""
        if self._process is None or self._process.poll() is not None:
            return
        os.kill(self._dockerd_pid(), signal.SIGTERM)
        self._process.wait(20)

    def remove(self) -> None:
        """End it, in whatever state it is, and take its traces away."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        for group in Path("/sys/fs/cgroup").glob(f"**{self._cgroup}"):
            for directory, *_ in os.walk(group, topdown=False):
                wait_for(functools.partial(_is_removed, Path(directory)), f"{directory} is empty")
        shutil.rmtree(self._directory, ignore_errors=True)

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def _is_removed(cgroup: Path) -> bool:
    """A group can go once the last of its processes has gone."""
    with contextlib.suppress(OSError):
        cgroup.rmdir()
    return not cgroup.exists()


@contextlib.contextmanager
def docker_on(host: Host, directory: Path) -> Iterator[Docker]:
    """Not started yet; nothing of it is left afterwards."""
    docker = Docker(host, directory)
    try:
        yield docker
    finally:
        docker.remove()
