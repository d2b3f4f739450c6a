"""The last good state on disk: the node's MAC, its lease, the routes it believed.

With it the VTEP MAC stays the same for life, and a node that boots while etcd is down forwards on
the routes it had.

    state.msgpack   [magic, version, CRC-32 of the body, body]
    body            a map of State's fields, entries as [key, value, create, mod, lease]

A file that cannot be used is set aside, never overwritten: it may hold the only copy of a MAC.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from control.atomic_file import replace_file
from control.etcd_types import Entry

FILE_NAME = "state.msgpack"
ASIDE_NAME = "state.damaged"
FILE_MODE = 0o600

MAGIC = "loden-state"
VERSION = 1
MAC_LENGTH = 6

_LOCALLY_ADMINISTERED = 0x02
_MULTICAST = 0x01


class StateError(Exception):
    """The state on disk cannot be used or written; `retryable`: may trying again help?"""

    retryable = False


class StateDirError(StateError):
    """The state directory or the file in it cannot be read or written. Once there is space on the
    disk or a mode is mended, it can."""

    retryable = True

    def __init__(self, path: Path, action: str, error: OSError) -> None:
        super().__init__(f"state dir: cannot {action} {path}: {error.strerror or error}")
        self.path = path


class StateDamagedError(StateError):
    """What was there cannot be used, and lies aside now; there is no state any more."""

    def __init__(self, path: Path, aside: Path, reason: str) -> None:
        super().__init__(f"{path} cannot be used and was set aside as {aside.name}: {reason}")
        self.aside = aside
        """Where the file lies now."""
        self.reason = reason


@dataclass(frozen=True)
class State:
    """What a node knows that has to outlive it."""

    vtep_mac: bytes
    """6 bytes, as on the wire."""
    network_config: str | None = None
    """The JSON as it was in etcd; None: never seen."""
    lease: Entry | None = None
    """Our own lease's key and value; None: we never held one."""
    entries: tuple[Entry, ...] = ()
    """Leases and extension routes, as they were in etcd."""
    revision: int = 0
    """The store's, as of which `entries` hold."""
    cluster_id: int = 0
    """Of the cluster that `entries` and `revision` are from; 0: of none yet."""
    saved_at: float = 0.0
    """Unix time, in seconds."""

    def __post_init__(self) -> None:
        if len(self.vtep_mac) != MAC_LENGTH:
            raise ValueError(f"vtep_mac: {len(self.vtep_mac)} bytes, not {MAC_LENGTH}")


def new_vtep_mac() -> bytes:
    """A random unicast MAC, locally administered (IEEE 802, section 8.4), in wire order."""
    first, *rest = secrets.token_bytes(MAC_LENGTH)
    return bytes([(first | _LOCALLY_ADMINISTERED) & ~_MULTICAST, *rest])


class StateFile:
    """The state of the node whose state directory this is. One process writes it."""

    def __init__(self, state_dir: Path) -> None:
        self.path = Path(state_dir) / FILE_NAME

    def load(self) -> State | None:
        """The state as last saved, or None if there is none yet.

        Raises StateDamagedError once for a file that cannot be used: the next call gives None.
        Raises StateDirError where the file cannot be read or set aside.
        """
        try:
            contents = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateDirError(self.path, "read", error) from error
        try:
            return _decode(contents)
        except ValueError as error:
            raise StateDamagedError(self.path, self._set_aside(), str(error)) from error

    def save(self, state: State) -> None:
        """Replace what is on disk; returns when it is safe there. Raises StateDirError."""
        try:
            replace_file(self.path, _encode(state), FILE_MODE)
        except OSError as error:
            raise StateDirError(self.path, "write", error) from error

    def _set_aside(self) -> Path:
        names = (self.path.with_name(f"{ASIDE_NAME}-{number}") for number in itertools.count(1))
        try:
            for aside in names:
                # A link, unlike a rename, does not replace what has the name already.
                with contextlib.suppress(FileExistsError):
                    os.link(self.path, aside)
                    break
            self.path.unlink()
        except OSError as error:
            raise StateDirError(self.path, "set aside the damaged", error) from error
        return aside


def _encode(state: State) -> bytes:
    body: bytes = msgpack.packb(
        {
            "vtep_mac": state.vtep_mac,
            "network_config": state.network_config,
            "lease": state.lease and _fields_of(state.lease),
            "entries": [_fields_of(entry) for entry in state.entries],
            "revision": state.revision,
            "cluster_id": state.cluster_id,
            "saved_at": state.saved_at,
        }
    )
    envelope: bytes = msgpack.packb([MAGIC, VERSION, zlib.crc32(body), body])
    return envelope


def _fields_of(entry: Entry) -> tuple[str, bytes, int, int, int]:
    """In the order of its class. Ten times as fast as dataclasses.astuple: there may be 50,000."""
    return entry.key, entry.value, entry.create_revision, entry.mod_revision, entry.lease_id


def _decode(contents: bytes) -> State:
    """Raises ValueError with the reason, whatever the bytes are."""
    match _unpack(contents):
        case [str(magic), int(version), *_] if magic == MAGIC and version > VERSION:
            raise ValueError(f"its format is {version}, of a newer loden; allowed: up to {VERSION}")
        case [str(magic), int(version), int(checksum), bytes(body)] if (
            magic == MAGIC and version == VERSION
        ):
            if zlib.crc32(body) != checksum:
                raise ValueError("its checksum does not match")
            return _state_of(_unpack(body))
    raise ValueError("it is not a loden state file")


def _unpack(contents: bytes) -> Any:
    try:
        return msgpack.unpackb(contents)
    except Exception as error:  # besides its own types msgpack raises a dozen of Python's
        raise ValueError("it is cut off or not msgpack") from error


def _state_of(fields: Any) -> State:
    try:
        return State(
            vtep_mac=fields["vtep_mac"],
            network_config=fields["network_config"],
            lease=Entry(*fields["lease"]) if fields["lease"] else None,
            entries=tuple(Entry(*entry) for entry in fields["entries"]),
            revision=fields["revision"],
            cluster_id=fields["cluster_id"],
            saved_at=fields["saved_at"],
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"a field is missing or of the wrong kind: {error}") from error
