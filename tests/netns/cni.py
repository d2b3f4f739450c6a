"""A container runtime's part of CNI: the plugins of a configuration list, called in order.

https://www.cni.dev/docs/spec/, sections 2 and 3: a plugin is a program with its parameters in the
environment, its configuration on standard input and its result on standard output.
"""

from __future__ import annotations

import json
import subprocess
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from perf.topology import Host, Pod

PLUGINS = Path("/usr/lib/cni")
INTERFACE = "eth0"


class PluginFailed(RuntimeError):
    """A plugin refused; its words."""


class Runtime:
    """Adds pods to a host by one configuration list."""

    def __init__(self, host: Host, config: dict[str, Any], directory: Path) -> None:
        """`directory`: where addresses in use are written down, instead of /var/lib/cni."""
        self.host = host
        self._config = config
        self._directory = directory
        self._added: dict[str, tuple[Any, Any]] = {}  # by pod: result, port mappings

    def add(self, *port_mappings: dict[str, Any]) -> Pod:
        """A pod with the interface, addresses and routes that the plugins gave it."""
        pod = Pod(f"{self.host.name}-pod{len(self.host.pods)}", [])
        self.host.pods.append(pod)  # so that it goes with the host
        pod.create()
        pod.set_ipv6(True)
        result = None
        for plugin in self._config["plugins"]:
            result = self._call("ADD", pod, plugin, result, port_mappings)
        assert result is not None
        self._added[pod.name] = (result, port_mappings)
        pod.addresses += [ip_interface(one["address"]).ip for one in result["ips"]]
        return pod

    def delete(self, pod: Pod) -> None:
        """Takes the pod's interface and addresses back; its namespace stays."""
        for plugin in reversed(self._config["plugins"]):
            self._call("DEL", pod, plugin, *self._added[pod.name])

    def _call(
        self, command: str, pod: Pod, plugin: dict[str, Any], previous: Any, ports: Any
    ) -> Any:
        config = {"cniVersion": self._config["cniVersion"], "name": self._config["name"], **plugin}
        if "ipam" in config:
            config["ipam"] = {**config["ipam"], "dataDir": str(self._directory)}
        if previous is not None:
            config["prevResult"] = previous
        if plugin.get("capabilities", {}).get("portMappings"):
            config["runtimeConfig"] = {"portMappings": ports}
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": pod.name,
            "CNI_NETNS": str(pod.path),
            "CNI_IFNAME": INTERFACE,
            "CNI_PATH": str(PLUGINS),
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",  # for iptables
        }
        with self.host.entered():
            done = subprocess.run(
                [PLUGINS / plugin["type"]],
                input=json.dumps(config),
                capture_output=True,
                text=True,
                env=environment,
                timeout=30,
            )
        if done.returncode != 0:
            raise PluginFailed(f"{plugin['type']} {command}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout) if done.stdout else None
