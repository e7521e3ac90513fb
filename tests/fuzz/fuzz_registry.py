"""Records with a schema registry under fuzz: Avro and Protobuf data under awkward schemas, and the schemas themselves."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from contract_samples import FORMATS, SCHEMAS
from decode_support import Decoding

from worker.batch import Feed
from worker.errors import Reject
from worker.records.avro_schema import AvroSchema
from worker.records.protobuf_schema import ProtobufSchema
from worker.schema_registry.schema import Schema

MEANT = "worker.errors.Reject"
NUMBERS = {"x": ("double", ["N", 2])}
ANY_LENGTH = {"x": ("float", ["N", None])}
AVRO = [
    Decoding("avro", NUMBERS, fields=["features[0]", "features[1]"], schemas=SCHEMAS),
    Decoding("avro", ANY_LENGTH, schemas=SCHEMAS),
    Decoding("avro", {"x": ("string", ["N", 1])}, fields=["names[0]"], schemas=SCHEMAS),
]
PROTOBUF = [
    Decoding("protobuf", NUMBERS, fields=["features[0]", "items[0].features[0]"], schemas=SCHEMAS),
    Decoding("protobuf", ANY_LENGTH, schemas=SCHEMAS),
]
LARGEST_COST = 1 << 28


def check(decodings: list[Decoding], data: bytes) -> None:
    """Any bytes are an item or a meant rejection, the same alone and beside others, and what they cost is a number."""
    for decoding in decodings:
        try:
            assert 0 <= decoding.decoder.cost(data) <= LARGEST_COST
        except Reject:
            continue
        one, two = decoding.decode(data), decoding.decode(data, data)
        for feed in (one, two):
            for rejection in feed.rejected.values():
                assert rejection.exception_class_name == MEANT, rejection
                assert rejection.reason in ("undecodable", "invalid"), rejection
        assert (0 in one.rejected) == (0 in two.rejected) == (1 in two.rejected)
        if not one.rejected:
            np.testing.assert_array_equal(item(one, 0), item(two, 1))


def item(feed: Feed, row: int) -> Any:
    if feed.arrays is not None:
        return feed.arrays["x"][row]
    found = feed.items[row]
    assert found is not None
    return found.arrays["x"]


def check_avro(data: bytes) -> None:
    """See :func:`check`."""
    check(AVRO, data)


def check_protobuf(data: bytes) -> None:
    """See :func:`check`."""
    check(PROTOBUF, data)


def check_schema(data: bytes) -> None:
    """Any text as a schema makes a reader or a meant refusal, and a reader takes any data or refuses them."""
    text = data.decode("utf-8", "replace")
    for kind in (AvroSchema, ProtobufSchema):
        schema = Schema("AVRO" if kind is AvroSchema else "PROTOBUF", text)
        try:
            schema.check("AVRO" if kind is AvroSchema else "PROTOBUF")
            made: Any = kind(schema)
            reader = made if kind is AvroSchema else made.reader((0,))
            for record in (b"", b"\0" * 40, b"\2\4\6" * 20, bytes(range(200))):
                if reader.estimate(record, 0) < LARGEST_COST:
                    reader.read(record, 0)
        except Reject:
            pass


def avro_seeds() -> list[bytes]:
    found = [value for _, value in FORMATS["avro"].memory().values() if len(value) < 5000]
    whole = FORMATS["avro"].write(np.array([1.5, 2.0]))
    return [whole, b"\0\0\0\0\2\0\0\0", b"\0\0\0\0\3\4\2\6\0", whole[:5] + b"\3\x80\4\4\4\6", *found]


def protobuf_seeds() -> list[bytes]:
    frame = b"\0\0\0\0\5\0"
    whole = FORMATS["protobuf"].write(np.array([1.5, 2.0]))
    return [
        whole,
        frame + b"\x1a\2\x1a\0\x12\1a",
        frame + b"\x0a\x08" + b"\0" * 8,
        frame[:5] + b"\2\2\x0a\1a",
    ]


def schema_seeds() -> list[bytes]:
    found = [schema.text.encode() for schema in SCHEMAS.values()]
    return [
        *found,
        b'{"type":"record","name":"R","fields":[{"name":"a","type":["null","R",{"type":"map","values":"R"}]}]}',
    ]


AVRO_TOKENS = [
    b"\0\0\0\0\1",
    b"\0\0\0\0\2",
    b"\0\0\0\0\3",
    b"\1" * 17,
    b"\xff" * 9 + b"\1",
    b"\x01",
    b"\x02" * 200,
    b"\0",
]
PROTOBUF_TOKENS = [
    b"\0\0\0\0\5\0",
    b"\0\0\0\0\5\2\2",
    b"\x0a",
    b"\x12\0",
    b"\x1a\0",
    b"\xff" * 9 + b"\1",
    b"\x1b",
    b"\x7a",
]
SCHEMA_TOKENS = [
    *(json.dumps(word).encode() for word in ("record", "array", "map", "null", "R", "fixed", "size", "items", "union")),
    b'"logicalType":"decimal","scale":99999', b"message A {", b"map<int32, A> m = 2;", b"oneof o {", b"enum E { A = 0; }",
    b"}", b"repeated", b"optional", b'import "google/protobuf/any.proto";', b"= 1;", b"[", b"]",
]  # fmt: skip
