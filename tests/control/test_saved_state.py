"""What a node keeps on disk, and what it makes of that at the next start."""

from __future__ import annotations

import shutil
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from control.etcd_types import Entry
from control.lease import NodeSubnet, subnet_key
from control.saved_state import SavedState
from control.state import StateError
from control.subnet_env import SubnetEnv, write_subnet_env
from tests.control.nodes import CONFIG, node

PREFIX = "/coreos.com/network"
SUBNET = NodeSubnet(IPv4Network("10.7.29.0/24"))
OWN = Entry(subnet_key(PREFIX, SUBNET), node(1).to_json().encode(), 3, 5, 7)
OTHER = Entry(
    subnet_key(PREFIX, NodeSubnet(IPv4Network("10.7.30.0/24"))), node(2).to_json().encode(), 4, 4, 8
)


def saved(directory: Path, config: str = CONFIG.to_json()) -> SavedState:
    """The state of a node that was running."""
    state = SavedState(directory, PREFIX)
    state.note_config(config)
    state.write(OWN.key, [OTHER, OWN], revision=9, cluster_id=11)
    return state


def test_mac_is_made_once_and_kept(tmp_path: Path) -> None:
    mac = SavedState(tmp_path / "state", PREFIX).vtep_mac
    assert SavedState(tmp_path / "state", PREFIX).vtep_mac == mac
    assert saved(tmp_path / "state").vtep_mac == mac
    assert SavedState(tmp_path / "another", PREFIX).vtep_mac != mac


def test_new_node_has_no_last_good_state(tmp_path: Path) -> None:
    assert SavedState(tmp_path, PREFIX).last_good() is None


def test_last_good_state_is_found_again(tmp_path: Path) -> None:
    saved(tmp_path)
    last = SavedState(tmp_path, PREFIX).last_good()
    assert last is not None
    assert (last.config, last.lease.key, last.lease.subnet) == (CONFIG, OWN.key, SUBNET)
    assert last.lease.attrs == node(1)
    assert (last.entries, last.revision) == ((OTHER, OWN), 9)


def test_own_lease_outlives_its_loss_in_etcd(tmp_path: Path) -> None:
    state = saved(tmp_path)
    state.write(OWN.key, [OTHER])
    last = SavedState(tmp_path, PREFIX).last_good()
    assert last is not None
    assert (last.lease.key, last.entries) == (OWN.key, (OTHER,))


def test_state_of_another_network_is_not_used(tmp_path: Path) -> None:
    saved(tmp_path)
    assert SavedState(tmp_path, "/coreos.org/network").last_good() is None


def test_config_that_this_version_refuses_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, config='{"Network": "10.7.0.0/16", "Backend": {"Type": "udp"}}')
    assert SavedState(tmp_path, PREFIX).last_good() is None
    assert "the saved state is of no use: network config: Backend.Type" in caplog.text


def test_damaged_file_is_set_aside_and_a_new_mac_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mac = saved(tmp_path).vtep_mac
    (tmp_path / "state.msgpack").write_bytes(b"garbage")
    assert SavedState(tmp_path, PREFIX).vtep_mac != mac
    assert "set aside" in caplog.text


def test_previous_subnet_is_subnet_envs_before_the_saved_one(tmp_path: Path) -> None:
    subnet_file, other = tmp_path / "subnet.env", NodeSubnet(IPv4Network("10.7.99.0/24"))
    state = saved(tmp_path)
    assert state.previous_subnet(subnet_file) == SUBNET
    write_subnet_env(SubnetEnv.of(CONFIG, other, 1450, False), subnet_file)
    assert state.previous_subnet(subnet_file) == other
    subnet_file.write_text("FLANNEL_SUBNET=nonsense\n")
    assert state.previous_subnet(subnet_file) == SUBNET
    assert SavedState(tmp_path / "new", PREFIX).previous_subnet(tmp_path / "none") is None


def test_disk_that_refuses_later_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = saved(tmp_path / "state")
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").touch()
    state.note_change()
    for _ in range(3):  # routes may change all the time
        state.write(OWN.key, [OWN])
    assert caplog.text.count("cannot write") == 1
    assert state.due_at is None


def test_disk_that_refuses_at_the_start_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(StateError, match="state dir"):
        SavedState(tmp_path / "state", PREFIX)


def test_changes_are_gathered_before_they_are_written(tmp_path: Path) -> None:
    state = SavedState(tmp_path, PREFIX)
    assert state.due_at is None
    state.note_change()
    due_at = state.due_at
    state.note_change()
    assert due_at is not None
    assert state.due_at == due_at
