"""Protobuf records: what their fields become, which message type is read, imports, and what is refused."""

from __future__ import annotations

import base64
import importlib
from pathlib import Path
from typing import Any

import google.type
import numpy as np
import pytest
from decode_support import Decoding, reasons
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from registry_server import serialised

from worker.errors import Reject
from worker.records.protobuf_schema import ProtobufSchema
from worker.schema_registry import proto_text
from worker.schema_registry.frame import HEADER, header_of
from worker.schema_registry.schema import Schema

GUID = "89791762-2336-4186-9674-299b90a802e2"
SENSOR = """
syntax = "proto3";
package plant.v1;  // the line's own
import "google/protobuf/timestamp.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/wrappers.proto";
import "units/unit.proto";
option java_package = "com.example";

/* several
   lines */
message Header { string name = 1; }
message Sensor {
  option deprecated = false;
  reserved 90 to 99, "old";
  message Cell { float volts = 1; Cell next = 2; }
  enum State { OFF = 0; ON = 1; BROKEN = -1 [deprecated = true]; }
  double speed = 1 [deprecated = true, json_name = "Speed"];
  sint64 count = 2;
  State state = 3;
  repeated int32 readings = 4 [packed = true];
  repeated Cell cells = 5;
  map<string, double> tags = 6;
  map<int32, Cell> cells_by_number = 7;
  optional float level = 8;
  oneof source { string hand = 9; Cell cell = 10; }
  bytes picture = 11;
  .google.protobuf.Timestamp at = 12;
  google.protobuf.Duration lasted = 13;
  google.protobuf.DoubleValue wrapped = 14;
  google.protobuf.Struct extra = 15;
  units.Unit unit = 16;
  uint64 big = 17;
  bool good = 18;
  Header header = 19;
}
"""
UNIT = 'syntax = "proto3"; package units; enum Unit { C = 0; F = 1; }'


def of(text: str, **references: Schema) -> Schema:
    return Schema("PROTOBUF", text, references)


SCHEMA = of(SENSOR, **{"units/unit.proto": of(UNIT)})


def message_class(name: str = "plant.v1.Sensor") -> Any:
    """The library's own class, from descriptors that the parser does not see: the test's oracle for reading."""
    pool = descriptor_pool.DescriptorPool()
    for module in (
        timestamp_pb2,
        struct_pb2,
        wrappers_pb2,
        importlib.import_module("google.protobuf.duration_pb2"),
    ):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    for text, file_name in ((UNIT, "units/unit.proto"), (SENSOR, "sensor.proto")):
        file = proto_text.parse(text)
        file.name = file_name
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def sensor(**fields: Any) -> Any:
    return message_class()(**fields)


def framed(message: Any, number: int = 1, indexes: bytes = b"\2\2") -> bytes:
    """A record as a client writes it; the message is the file's second one."""
    return number.to_bytes(5, "big") + indexes + message.SerializeToString()


def read(message: Any) -> dict[str, Any]:
    return ProtobufSchema(SCHEMA).reader((1,)).read(framed(message), 7)


def test_every_type_of_field_is_read() -> None:
    """Scalars, enums, lists, maps, nested messages, a oneof and well-known types become plain values."""
    message = sensor(
        speed=1.5, count=-7, state=1, readings=[3, -4], picture=b"\xff", big=(1 << 64) - 1, good=True
    )
    message.cells.add(volts=0.5).next.volts = 0.25
    message.tags["a"] = 2.5
    message.cells_by_number[3].volts = 9
    message.cell.volts = 4
    message.at.FromMilliseconds(1767323045678)
    message.lasted.FromMilliseconds(1500)
    message.wrapped.value = 8.5
    message.extra.update({"deep": {"list": [1, "two", None, True]}})
    message.unit = 1
    found = read(message)
    assert found == {
        "speed": 1.5,
        "count": -7,
        "state": 1,
        "readings": [3, -4],
        "cells": [{"volts": 0.5, "next": {"volts": 0.25, "next": None}}],
        "tags": {"a": 2.5},
        "cells_by_number": {3: {"volts": 9.0, "next": None}},
        "level": None,
        "hand": None,
        "cell": {"volts": 4.0, "next": None},
        "picture": b"\xff",
        "at": 1767323045678,
        "lasted": 1.5,
        "wrapped": 8.5,
        "extra": {"deep": {"list": [1, "two", None, True]}},
        "unit": 1,
        "big": (1 << 64) - 1,
        "good": True,
        "header": None,
    }


def test_what_is_not_set_is_absent_where_that_can_be_told() -> None:
    """Plain fields have their defaults; messages, members of a oneof and optional fields are null."""
    found = read(sensor())
    assert (found["speed"], found["readings"], found["tags"], found["picture"]) == (0.0, [], {}, b"")
    assert {name for name, value in found.items() if value is None} == {
        "level", "hand", "cell", "at", "lasted", "wrapped", "extra", "header"}  # fmt: skip
    assert read(sensor(level=0.0))["level"] == 0.0


def test_a_time_with_nanoseconds_keeps_them() -> None:
    """A time that is not whole milliseconds is a float of milliseconds, also before 1970."""
    message = sensor()
    message.at.seconds, message.at.nanos = -1, 500_250_000
    assert read(message)["at"] == -499.75


def test_fields_are_named_by_paths() -> None:
    """Nested messages, maps and lists fill a model input by dotted paths, an absent one by its default."""
    fields: list[Any] = ["speed", "cells[0].next.volts", "tags.a", {"from": "level", "default": 7}, "state"]
    one = Decoding("protobuf", {"x": ("float", ("N", 5))}, fields=fields, schemas={1: SCHEMA})
    message = sensor(speed=1.5, state=1, tags={"a": 2.5})
    message.cells.add().next.volts = 0.25
    assert one.item(framed(message)).tolist() == [1.5, 0.25, 2.5, 7, 1]


def test_the_indexes_choose_the_message() -> None:
    """The indexes name the message type of a file, nested ones too, in the prefix or behind the header's GUID."""
    one = Decoding(
        "protobuf", {"x": ("float", ("N", 1))}, fields=["volts"], schemas={1: SCHEMA, GUID: SCHEMA}
    )
    cell = message_class("plant.v1.Sensor.Cell")(volts=2.5)
    feed = one.decode(
        framed(cell, indexes=b"\4\2\0"),
        cell.SerializeToString(),
        framed(cell, indexes=b"\2\x20"),
        framed(cell, number=9),
        headers=[None, [(HEADER, header_of(GUID, b"\4\2\0"))], None, None],
    )
    assert feed.arrays is not None
    assert feed.arrays["x"][:2].tolist() == [[2.5], [2.5]]
    assert reasons(feed) == {2: "invalid", 3: "invalid"}
    assert feed.rejected[2].message == "the schema has no message type [16]"


def test_serialised_descriptors_are_read_as_well() -> None:
    """Registries that give descriptors instead of text give the same reader."""
    unit, file = proto_text.parse(UNIT), proto_text.parse(SENSOR)
    schema = of(serialised(file), **{"units/unit.proto": of(serialised(unit))})
    message = sensor(speed=2.5)
    assert ProtobufSchema(schema).reader((1,)).read(framed(message), 7)["speed"] == 2.5


def test_text_is_read_as_protoc_reads_it() -> None:
    """For the .proto files that come with Google's common types the parser gives what protoc gave for them."""
    folder = Path(google.type.__path__[0]).parent
    compared = 0
    for path in sorted(
        [*folder.glob("type/*.proto"), *folder.glob("api/*.proto"), *folder.glob("rpc/**/*.proto")]
    ):
        name = path.relative_to(folder.parent)
        module = importlib.import_module(".".join(name.with_suffix("").parts) + "_pb2")
        theirs = descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb)
        assert shape(proto_text.parse(path.read_text())) == shape(theirs), name
        compared += 1
    assert compared > 30


def shape(file: Any) -> Any:
    """What of a file says how records are read."""

    def message(one: Any) -> Any:
        fields = [
            (f.name, f.number, f.label, 0 if f.type_name else f.type, f.type_name.split(".")[-1],
             f.oneof_index if f.HasField("oneof_index") else None, f.proto3_optional)
            for f in one.field
        ]  # fmt: skip
        oneofs = [oneof.name for oneof in one.oneof_decl]
        nested = [message(inner) for inner in one.nested_type]
        return one.name, fields, oneofs, nested, [*map(enum, one.enum_type)], one.options.map_entry

    def enum(one: Any) -> Any:
        return one.name, [(value.name, value.number) for value in one.value]

    return file.package, [*file.dependency], [*map(message, file.message_type)], [*map(enum, file.enum_type)]


def test_proto2_and_editions_are_read() -> None:
    """In proto2 and in the editions a field that is not set is absent."""
    old = "message A { required int32 a = 1; optional double b = 2 [default = 1.5]; extensions 100 to max; }"
    new = 'edition = "2023"; message A { int32 a = 1; double b = 2; }'
    for text in (old, new):
        found = ProtobufSchema(of(text)).reader((0,)).read(b"\x08\x05", 0)
        assert found == {"a": 5, "b": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it has no message|no message type"),
        ("message", "ends too early"),
        ("message A { int32 a = 1 }", "line 1 of the .proto text: got '}', expected ;"),
        ('syntax = "proto4";', "syntax 'proto4' is not known"),
        ('import "private.proto"; message A {}', "it imports private.proto, which the registry does not give"),
        ('import "google/protobuf/../../os.proto"; message A {}', "which the registry does not give"),
        ("message A { Nothing a = 1; }", "it is no Protobuf schema"),
        ("message A { int32 a = 1; int32 b = 1; }", "it is no Protobuf schema"),
        ("message " + "A { message " * 80 + "A {" + "}" * 81, "nested deeper than 50"),
        ("message A { group B = 1 { } }", "groups are not read"),
        ("\0", "of the .proto text: got"),
        (base64.b64encode(b"\x0a\x01a\x22\x05\x0a\x03").decode(), "of the .proto text|no Protobuf schema|the .proto text"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_schema_is_refused(text: str, said: str) -> None:
    """Whatever stands in the registry, its records alone are refused, with a sentence."""
    with pytest.raises(Reject, match=said):
        ProtobufSchema(of(text))


def test_damaged_messages_are_undecodable() -> None:
    """Bytes that are no message, and messages nested beyond the library's bound, cost their own row."""
    one = Decoding("protobuf", {"x": ("float", ("N", 1))}, fields=["speed"], schemas={1: SCHEMA})
    good = framed(sensor(speed=2.5))
    deep = b""
    for _ in range(300):
        deep = b"\x12" + varint(len(deep)) + deep
    feed = one.decode(
        good, good[:-1], good[:7] + b"\xff" * 30, good[:7] + b"\x2a" + varint(len(deep)) + deep, good
    )
    assert reasons(feed) == {1: "undecodable", 2: "undecodable", 3: "undecodable"}
    assert feed.arrays is not None
    assert feed.arrays["x"][[0, 4]].tolist() == [[2.5], [2.5]]


def varint(value: int) -> bytes:
    found = b""
    while value > 0x7F:
        found += bytes([value & 0x7F | 0x80])
        value >>= 7
    return found + bytes([value])


def test_messages_that_grow_are_charged_before_they_are_read() -> None:
    """Two bytes for a message of many fields are charged as what they become, and refused beyond the budget."""
    wide = (
        "message A { repeated B many = 1; } message B {"
        + "".join(f"double f{i} = {i + 1};" for i in range(200))
        + "}"
    )
    value = b"\0\0\0\0\1\0" + b"\x0a\0" * 4000
    schemas: dict[int | str, Schema] = {1: of('syntax = "proto3";' + wide)}
    one = Decoding("protobuf", {"x": ("float", ("N", 1))}, fields=["many[0].f1"], schemas=schemas)
    one.item(value[:8])
    assert len(value) > one.decoder.free_bytes
    assert one.decoder.cost(value) > 4000 * 200 * 40
    one = Decoding(
        "protobuf", {"x": ("float", ("N", 1))}, fields=["many[0].f1"], schemas=schemas, limits={"in_flight_bytes": 1 << 24}
    )  # fmt: skip
    with pytest.raises(Reject, match="reading the record needs"):
        one.decoder.cost(value)


def test_a_picture_is_read_from_a_field_of_bytes() -> None:
    """A field of type bytes holds a picture."""
    import cv2

    pixels = np.random.default_rng(1).integers(0, 255, (4, 5, 3), np.uint8)
    png = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    preprocess = {"inputs": {"x": {"from": "picture", "image": {"resize": "none", "layout": "nhwc"}}}}
    one = Decoding("protobuf", {"x": ("uint8", ("N", 4, 5, 3))}, preprocess=preprocess, schemas={1: SCHEMA})
    assert np.array_equal(one.item(framed(sensor(picture=png))), pixels)
