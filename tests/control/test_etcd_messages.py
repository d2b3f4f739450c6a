"""etcd3's messages on today's protobuf."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from control.etcd_messages import EtcdLibraryError, _description_in, etcd3, rpc


def test_messages_and_enum_values_are_where_etcd3_looks_for_them() -> None:
    request = rpc.RangeRequest(key=b"a", limit=7)
    assert rpc.RangeRequest.FromString(request.SerializeToString()).limit == 7
    assert rpc.Compare.EQUAL == 0
    assert rpc.NOSPACE == 1
    assert etcd3.etcdrpc is rpc


def test_fields_newer_than_etcd3_have_etcds_numbers() -> None:
    # Field 8 and field 7 as varints (protobuf encoding: number << 3), both true.
    assert rpc.WatchCreateRequest(fragment=True).SerializeToString() == bytes([8 << 3, 1])
    assert rpc.WatchResponse(fragment=True).SerializeToString() == bytes([7 << 3, 1])


def test_another_library_may_define_etcds_messages_too() -> None:
    in_the_default_pool = (
        "from control.etcd_messages import rpc\n"
        "from google.protobuf import descriptor_pool, descriptor_pb2\n"
        "other = descriptor_pb2.FileDescriptorProto(name='rpc.proto', package='etcdserverpb')\n"
        "other.message_type.add(name='RangeRequest')\n"
        "descriptor_pool.Default().Add(other)\n"
    )
    subprocess.run([sys.executable, "-c", in_the_default_pool], check=True)


def test_importing_etcd3_first_is_refused_with_the_way_out() -> None:
    broken = "import sys; sys.modules['etcd3'] = sys; import control.etcd_messages"
    done = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True)
    assert "import control.etcd_messages first" in done.stderr


@pytest.mark.parametrize("contents", [None, "x = 1", "not python ("])
def test_another_release_of_etcd3_is_named(tmp_path: Path, contents: str | None) -> None:
    module = tmp_path / "rpc_pb2.py"
    if contents is not None:
        module.write_text(contents)
    with pytest.raises(EtcdLibraryError, match=r"not the release 0\.12\.0"):
        _description_in(module)
