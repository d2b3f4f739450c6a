"""Import etcd3 0.12.0 on today's protobuf.

etcd3's generated modules were made in 2020, and protobuf has refused such modules since release 4
("Descriptors cannot be created directly"). What they describe is sound, though: each holds the
serialized description of its .proto file as a literal. Here those literals are read out of etcd3's
installed files, without running them, and today's protobuf makes the message classes from them.
The classes go where etcd3 looks for them before it is imported for the first time. The descriptor
pool is our own, so that another etcd library in the process does not clash with it.

    from control.etcd_messages import etcd3, rpc

`etcd3` is the library, `rpc` its messages and service stubs (`rpc.RangeRequest`, `rpc.WatchStub`).
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

GENERATED = ("kv", "auth", "rpc")
"""etcd3's generated modules, each after those it depends on."""

ADDED_FIELDS = {"WatchCreateRequest": ("fragment", 8), "WatchResponse": ("fragment", 7)}
"""Booleans of etcd's rpc.proto that are newer than etcd3: large watch responses in pieces."""


class EtcdLibraryError(ImportError):
    """etcd3 cannot be made to work here; the message says what to do. No use trying again."""

    retryable = False


def _provide_messages() -> None:
    """Put the message modules where `import etcd3` will find them. Raises EtcdLibraryError."""
    if "etcd3" in sys.modules:
        raise EtcdLibraryError(
            "etcd3 was imported before control.etcd_messages: import control.etcd_messages first, "
            "it prepares etcd3 for today's protobuf"
        )
    package = importlib.util.find_spec("etcd3")
    if package is None or package.origin is None:
        raise EtcdLibraryError("etcd3 is not installed: pip install etcd3==0.12.0")
    directory = Path(package.origin).parent / "etcdrpc"
    pool = DescriptorPool()
    for name in GENERATED:
        description = _description_in(directory / f"{name}_pb2.py")
        if name == "rpc":
            _add_newer_fields(description)
        pool.Add(description)
        file = pool.FindFileByName(description.name)
        sys.modules[f"etcd3.etcdrpc.{name}_pb2"] = _module_of(file, f"etcd3.etcdrpc.{name}_pb2")


def _description_in(path: Path) -> FileDescriptorProto:
    """The serialized .proto description that a generated module holds as `serialized_pb`."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError) as error:
        raise EtcdLibraryError(f"etcd3 is not the release 0.12.0 expected: {error}") from None
    for node in ast.walk(tree):
        # serialized_pb=_b('...'), where _b encodes to latin-1
        if (
            isinstance(node, ast.keyword)
            and node.arg == "serialized_pb"
            and isinstance(node.value, ast.Call)
            and isinstance(node.value.args[0], ast.Constant)
        ):
            literal = node.value.args[0].value
            assert isinstance(literal, str)
            return FileDescriptorProto.FromString(literal.encode("latin-1"))
    raise EtcdLibraryError(f"etcd3 is not the release 0.12.0 expected: no description in {path}")


def _add_newer_fields(description: FileDescriptorProto) -> None:
    for message in description.message_type:
        if message.name in ADDED_FIELDS:
            name, number = ADDED_FIELDS[message.name]
            message.field.add(
                name=name,
                number=number,
                type=FieldDescriptorProto.TYPE_BOOL,
                label=FieldDescriptorProto.LABEL_OPTIONAL,
            )


def _module_of(file: FileDescriptor, module_name: str) -> ModuleType:
    """What protobuf's compiler would generate for `file`: messages, enum values, the descriptor."""
    module = ModuleType(module_name)
    contents: dict[str, object] = {"DESCRIPTOR": file}
    for name, message in file.message_types_by_name.items():
        contents[name] = GetMessageClass(message)
    for enum in file.enum_types_by_name.values():
        contents |= {value.name: value.number for value in enum.values}
    module.__dict__.update(contents)
    return module


_provide_messages()

import etcd3  # noqa: E402  (only now does it find its messages)
from etcd3 import etcdrpc as rpc  # noqa: E402

__all__ = ["EtcdLibraryError", "etcd3", "rpc"]
