"""The state on disk: what is saved comes back, and what is damaged is neither used nor lost."""

from __future__ import annotations

import stat
import zlib
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from control.etcd_types import Entry
from control.state import (
    FILE_NAME,
    MAGIC,
    VERSION,
    State,
    StateDamagedError,
    StateDirError,
    StateError,
    StateFile,
    new_vtep_mac,
)

MAC = bytes.fromhex("ee2da95ceb08")
OWN = Entry("/coreos.com/network/subnets/10.7.29.0-24", b'{"PublicIP":"192.168.77.12"}', 7, 9, -3)
ROUTE = Entry("/coreos.com/network/routes/10.7.3.4-32", b"\xff not text", 8, 8)
STATE = State(
    vtep_mac=MAC,
    network_config='{"Network":"10.7.0.0/16"}',
    lease=OWN,
    entries=(OWN, ROUTE),
    revision=2**63 - 1,
    cluster_id=2**64 - 1,
    saved_at=1_790_000_000.25,
)


@pytest.fixture
def file(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "state")


def contents_of(body: object, version: int = VERSION) -> bytes:
    packed = msgpack.packb(body)
    envelope: bytes = msgpack.packb([MAGIC, version, zlib.crc32(packed), packed])
    return envelope


def put(file: StateFile, contents: bytes) -> None:
    file.path.parent.mkdir(exist_ok=True)
    file.path.write_bytes(contents)


def test_there_is_no_state_at_first(file: StateFile) -> None:
    assert file.load() is None


@pytest.mark.parametrize("state", [STATE, State(MAC)], ids=["full", "just the MAC"])
def test_what_is_saved_is_loaded(file: StateFile, state: State) -> None:
    file.save(state)
    assert StateFile(file.path.parent).load() == state


def test_a_new_state_replaces_the_old_one(file: StateFile) -> None:
    file.save(STATE)
    file.save(replace(STATE, entries=(), revision=5))
    assert file.load() == replace(STATE, entries=(), revision=5)
    assert [path.name for path in file.path.parent.iterdir()] == [FILE_NAME]


def test_only_the_owner_reads_the_file_but_anyone_finds_it(file: StateFile) -> None:
    file.save(STATE)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o755


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        (b"", "cut off"),
        (b"\xc1", "cut off"),
        (b"VNI=1\n", "cut off|not a loden"),
        (msgpack.packb(["something", "else"]), "not a loden state file"),
        (contents_of({"vtep_mac": MAC}), "missing"),
        (contents_of([1, 2]), "wrong kind"),
        (contents_of({"vtep_mac": MAC, "network_config": None, "lease": [1]}), "wrong kind"),
        (contents_of({}, VERSION + 1), f"format is {VERSION + 1}, of a newer loden"),
        (msgpack.packb([MAGIC, VERSION + 7, "whatever it will be"]), "of a newer loden"),
    ],
)
def test_an_unusable_file_is_set_aside_and_reported_once(
    file: StateFile, contents: bytes, reason: str
) -> None:
    put(file, contents)
    with pytest.raises(StateDamagedError, match=reason) as raised:
        file.load()
    assert raised.value.aside.read_bytes() == contents
    assert str(file.path) in str(raised.value)
    assert file.load() is None


def test_each_damaged_file_is_kept(file: StateFile) -> None:
    for number in (1, 2, 3):
        put(file, b"damage %d" % number)
        with pytest.raises(StateDamagedError, match=f"set aside as state.damaged-{number}"):
            file.load()
    file.save(STATE)
    kept = sorted(file.path.parent.glob("state.damaged-*"))
    assert [path.read_bytes() for path in kept] == [b"damage 1", b"damage 2", b"damage 3"]
    assert file.load() == STATE


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_flipped_bit_and_no_cut_goes_unnoticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    file = StateFile(tmp_path_factory.mktemp("state"))
    file.save(STATE)
    contents = bytearray(file.path.read_bytes())
    if data.draw(st.booleans(), label="cut, not flipped"):
        del contents[data.draw(st.integers(0, len(contents) - 1), label="length") :]
    else:
        bit = data.draw(st.integers(0, 8 * len(contents) - 1), label="bit")
        contents[bit // 8] ^= 1 << bit % 8
    file.path.write_bytes(contents)
    with pytest.raises(StateDamagedError):
        file.load()


def test_a_state_dir_that_is_a_file_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("in the way")
    file = StateFile(blocked)
    with pytest.raises(StateDirError, match=f"cannot write {file.path}"):
        file.save(STATE)
    with pytest.raises(StateDirError, match=f"cannot read {file.path}"):
        file.load()


def test_a_state_dir_nobody_may_write_to_is_named() -> None:
    file = StateFile(Path("/proc/loden"))  # refuses even root
    with pytest.raises(StateError, match=r"cannot write /proc/loden/state\.msgpack"):
        file.save(STATE)


def test_new_macs_are_random_unicast_and_locally_administered() -> None:
    macs = {new_vtep_mac() for _ in range(100)}
    assert len(macs) == 100
    assert {len(mac) for mac in macs} == {6}
    assert {mac[0] & 0b11 for mac in macs} == {0b10}


def test_a_mac_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="vtep_mac: 5 bytes, not 6"):
        State(MAC[:5])
