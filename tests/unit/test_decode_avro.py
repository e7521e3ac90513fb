"""Avro and JSON Schema records: what their fields become, which schema reads them, and what is refused."""

from __future__ import annotations

import datetime
import io
import json
import uuid
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import cv2
import fastavro
import models
import numpy as np
import pytest
from decode_support import Decoding, reasons
from fakes import columns_of
from registry_server import registry, wait_for

from worker.batch import Batch, Partition
from worker.errors import Reject
from worker.loop.pool import InlinePool, Mailbox
from worker.records.avro_schema import AvroSchema
from worker.schema_registry.frame import HEADER, header_of
from worker.schema_registry.opening import open_registry
from worker.schema_registry.schema import Schema
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.settings import validate

GUID = "89791762-2336-4186-9674-299b90a802e2"
SENSOR = {
    "type": "record",
    "name": "Sensor",
    "namespace": "plant",
    "fields": [
        {"name": "speed", "type": ["null", "double"], "default": None},
        {"name": "count", "type": "long"},
        {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["ON", "OFF"]}},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "tags", "type": {"type": "map", "values": "float"}},
        {
            "name": "engine",
            "type": {
                "type": "record",
                "name": "Engine",
                "fields": [{"name": "cells", "type": {"type": "array", "items": ["null", "int"]}}],
            },
        },
        {"name": "picture", "type": ["bytes", "null"]},
        {"name": "code", "type": {"type": "fixed", "name": "Code", "size": 2}},
        {"name": "spare", "type": ["null", "Engine"]},
    ],
}
AT = datetime.datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=datetime.UTC)
RECORD: dict[str, Any] = {
    "speed": 1.5,
    "count": 1 << 40,
    "state": "OFF",
    "price": Decimal("-12.34"),
    "at": AT,
    "day": datetime.date(2026, 1, 2),
    "id": uuid.UUID(GUID),
    "tags": {"a": 0.5, "b": 2.0},
    "engine": {"cells": [3, None, 5]},
    "picture": None,
    "code": b"xy",
    "spare": {"cells": [7]},
}
READ = {
    **RECORD,
    "price": -12.34,
    "at": 1767323045678,
    "day": 20455,
    "id": GUID,
}


def written(schema: Any, record: Any, number: int = 1) -> bytes:
    """A record as a client writes it."""
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), record)
    return number.to_bytes(5, "big") + stream.getvalue()


def of(schema: Any, **references: Schema) -> Schema:
    return Schema("AVRO", json.dumps(schema), references)


def flat(*names: str, kind: Any = "double", name: str = "R") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": n, "type": kind} for n in names]}


def test_every_type_of_field_is_read() -> None:
    """Unions, enums, maps, nested records, arrays and fixed as fastavro reads them; times as integers, decimals as floats."""
    value = written(SENSOR, RECORD)
    found = AvroSchema(of(SENSOR)).read(value, 5)
    assert found == READ
    theirs = fastavro.schemaless_reader(io.BytesIO(value[5:]), fastavro.parse_schema(SENSOR), None)
    same = [name for name in RECORD if name not in ("price", "at", "day", "id")]
    assert {name: found[name] for name in same} == {name: theirs[name] for name in same}


def test_fields_are_named_by_paths() -> None:
    """Nested records, maps, array elements and nullable fields fill a model input by dotted paths, null by input.missing."""
    fields = ["speed", "price", "tags.b", "engine.cells[0]", "engine.cells[1]", "spare.cells[0]"]
    one = Decoding("avro", {"x": ("float", ("N", 6))}, fields=fields, missing="nan", schemas={1: of(SENSOR)})
    expected = np.array([1.5, -12.34, 2.0, 3, np.nan, 7], np.float32)
    assert np.array_equal(one.item(written(SENSOR, RECORD)), expected, equal_nan=True)
    without = {**RECORD, "speed": None, "spare": None}
    found = one.item(written(SENSOR, without))
    assert np.isnan(found[[0, 4, 5]]).all()


def test_a_missing_or_wrong_field_is_named() -> None:
    """What does not fit is invalid, and the message names the field."""
    one = Decoding("avro", {"x": ("float", ("N", 2))}, fields=["count", "state"], schemas={1: of(SENSOR)})
    assert one.refusal(written(SENSOR, RECORD)) == (
        "invalid",
        'the field "state": it is a string, expected a number',
    )
    one = Decoding("avro", {"x": ("float", ("N", 1))}, fields=["code"], schemas={1: of(SENSOR)})
    assert one.refusal(written(SENSOR, RECORD)) == (
        "invalid",
        'the field "code": it is bytes, expected a number',
    )
    one = Decoding("avro", {"x": ("float", ("N", 1))}, fields=["nothing"], schemas={1: of(SENSOR)})
    assert one.refusal(written(SENSOR, RECORD)) == ("invalid", 'the field "nothing" is missing')


def test_a_picture_is_read_from_a_field_of_bytes() -> None:
    """A field of type bytes holds a picture, and its header's size is charged before it is decoded."""
    pixels = np.random.default_rng(1).integers(0, 255, (4, 5, 3), np.uint8)
    png = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    preprocess = {"inputs": {"x": {"from": "picture", "image": {"resize": "none", "layout": "nhwc"}}}}
    one = Decoding("avro", {"x": ("uint8", ("N", 4, 5, 3))}, preprocess=preprocess, schemas={1: of(SENSOR)})
    assert np.array_equal(one.item(written(SENSOR, {**RECORD, "picture": png})), pixels)
    large = cv2.imencode(".png", np.zeros((3000, 3000, 3), np.uint8))[1].tobytes()
    assert one.decoder.cost(written(SENSOR, {**RECORD, "picture": large})) > 3000 * 3000 * 3
    limits = {"image_pixels": 1000}
    one = Decoding(
        "avro",
        {"x": ("uint8", ("N", 4, 5, 3))},
        preprocess=preprocess,
        limits=limits,
        schemas={1: of(SENSOR)},
    )
    with pytest.raises(Reject, match="pixels"):
        one.decoder.cost(written(SENSOR, {**RECORD, "picture": large}))


def test_each_record_is_read_with_its_own_schema() -> None:
    """Records of three versions in one batch: fields move, change their type and are added; each gives its own numbers."""
    first = flat("a", "b")
    second = flat("b", "a", kind="int")
    third = flat("c", "a", "b", kind=["null", "float", "long"])
    schemas: dict[int | str, Schema] = {1: of(first), 2: of(second), GUID: of(third)}
    one = Decoding("avro", {"x": ("float", ("N", 2))}, fields=["a", "b"], schemas=schemas)
    values = [
        written(first, {"a": 1.5, "b": 2.5}),
        written(second, {"a": 3, "b": 4}, 2),
        written(third, {"a": 5.5, "b": 6, "c": None})[5:],
    ]
    headers = [None, [("other", b"x")], [(HEADER, header_of(GUID))]]
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        feed = one.decode(*[values[i] for i in order], headers=[headers[i] for i in order])
        assert feed.arrays is not None
        assert feed.arrays["x"].tolist() == [[[1.5, 2.5], [3, 4], [5.5, 6]][i] for i in order]


def test_named_types_of_other_schemas_are_found() -> None:
    """A schema may use types of the schemas that it refers to, and those of theirs."""
    unit = {"type": "enum", "name": "plant.Unit", "symbols": ["C", "F"]}
    inner = {"type": "record", "name": "plant.Inner", "fields": [{"name": "unit", "type": "plant.Unit"}]}
    outer = {"type": "record", "name": "plant.Outer", "fields": [{"name": "inner", "type": "plant.Inner"}]}
    schema = of(outer, **{"plant.Inner": of(inner, **{"plant.Unit": of(unit)})})
    assert AvroSchema(schema).read(b"\2", 0) == {"inner": {"unit": "F"}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "array", "items": "null"}, "an array whose items take no bytes"),
        ({"type": "array", "items": flat("n", kind="null", name="E")}, "an array whose items take no bytes"),
        ({"type": "array", "items": {"type": "fixed", "name": "F", "size": 0}}, "items take no bytes"),
        ({"type": "array", "items": flat(*(f"n{i}" for i in range(900)), kind="null", name="E") | {"fields": [
            {"name": "b", "type": "boolean"}, *({"name": f"n{i}", "type": "null"} for i in range(900))]}},
         "times its bytes in memory"),
    ],
)  # fmt: skip
def test_schemas_whose_records_have_no_bound_are_refused(schema: Any, said: str) -> None:
    """A few bytes that stand for gigabytes are refused with their schema, before any record is read."""
    with pytest.raises(Reject, match=said):
        AvroSchema(of({"type": "record", "name": "R", "fields": [{"name": "a", "type": schema}]}))


def test_a_record_of_nested_empty_records_is_refused() -> None:
    """Records that double at each level would be large although they hold nothing."""
    inner: Any = flat("n", kind="null", name="R0")
    for level in range(1, 40):
        inner = {
            "type": "record",
            "name": f"R{level}",
            "fields": [{"name": "a", "type": inner}, {"name": "b", "type": f"R{level - 1}"}],
        }
    with pytest.raises(Reject, match="bytes of memory even if it holds nothing"):
        AvroSchema(of(inner))


@pytest.mark.parametrize("text", ["{", "{}", '"string"', '{"type": "record"}', '{"type": "record", "name": "R", "fields": [{"name": "a", "type": "Nothing"}]}', "[]", "7", "null"])  # fmt: skip
def test_a_text_that_is_no_schema_of_a_record_is_refused(text: str) -> None:
    """Whatever stands in the registry, its records alone are refused."""
    with pytest.raises(Reject):
        AvroSchema(Schema("AVRO", text))


def test_a_deep_record_is_refused_before_it_ends_the_process() -> None:
    """fastavro's stack does not hold a list of 100,000 links; 100 levels are read, more are undecodable."""
    chain = {"type": "record", "name": "Link", "fields": [{"name": "next", "type": ["null", "Link"]}]}
    schema = AvroSchema(of(chain))
    assert schema.read(b"\2" * 40 + b"\0", 0)["next"] is not None
    with pytest.raises(Reject, match="nested deeper than 100 levels") as caught:
        schema.read(b"\2" * 100_000 + b"\0", 0)
    assert caught.value.reason == "undecodable"


def test_lengths_that_lie_are_undecodable() -> None:
    """A length beyond the record, of a string or of an array, costs neither memory nor the other records."""
    schema = {"type": "record", "name": "R", "fields": [
        {"name": "s", "type": "string"}, {"name": "a", "type": {"type": "array", "items": "double"}}]}  # fmt: skip
    one = Decoding("avro", {"x": ("double", ("N", 1))}, fields=["a[0]"], schemas={1: of(schema)})
    good = written(schema, {"s": "x", "a": [2.5]})
    huge = b"\xfe\xff\xff\xff\xff\xff\x7f"
    feed = one.decode(good, good[:5] + huge, good[:7] + huge + b"\0" * 8, good[:-3], good)
    assert reasons(feed) == {1: "undecodable", 2: "undecodable", 3: "undecodable"}
    assert feed.arrays is not None
    assert feed.arrays["x"][[0, 4]].tolist() == [[2.5], [2.5]]
    assert one.decoder.cost(good[:7] + huge) < 1 << 20


def test_a_decimal_of_any_scale_is_the_nearest_float() -> None:
    """Decimals in bytes and in fixed, negative and of 30 digits, are the float64 nearest to them."""
    kinds: list[Any] = [
        {"type": "bytes", "logicalType": "decimal", "precision": 40, "scale": 12},
        {"type": "fixed", "name": "D", "size": 16, "logicalType": "decimal", "precision": 38, "scale": 3},
    ]
    for kind, text in zip(
        kinds, ("-123456789012345678.123456789012", "98765432109876543210.125"), strict=True
    ):
        schema = flat("d", kind=kind)
        found = AvroSchema(of(schema)).read(written(schema, {"d": Decimal(text)}), 5)
        assert found["d"] == float(Decimal(text))


# -- JSON Schema -------------------------------------------------------------------------------------------


def test_json_behind_a_frame_is_read_as_json() -> None:
    """The frame is cut off, an id in the header leaves the value whole, and JSON without a frame is refused."""
    schemas: dict[int | str, Schema] = {4: Schema("JSON", "{}"), GUID: Schema("JSON", "{}")}
    one = Decoding("json_schema", {"x": ("float", ("N", 2))}, fields=["a", "b.c"], schemas=schemas)
    text = b'{"a": 1, "b": {"c": 2.5}}'
    framed = b"\0\0\0\0\4" + text
    feed = one.decode(framed, text, framed, text, b"\0\0\0\0\5" + text, framed, headers=[
        None, [(HEADER, header_of(GUID))], None, None, None, None])  # fmt: skip
    assert reasons(feed) == {3: "undecodable", 4: "invalid"}
    assert feed.arrays is not None
    assert feed.arrays["x"][[0, 1, 2, 5]].tolist() == [[1, 2.5]] * 4
    assert feed.rejected[4].message == "the schema 5 is not known to the registry: not found"


# -- waiting -----------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path: Path) -> Callable[..., Any]:
    """Makes a warm pipeline of Avro records."""

    def make(**given: Any) -> Any:
        (tmp_path / "identity.onnx").write_bytes(models.identity())
        document = {
            "input": {"topics": ["in"], "format": "avro", "fields": ["a", "b", "c", "d"]},
            "model": {"path": "identity.onnx", "threads": 0},
            "batching": {"max_size": 8},
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
            **given,
        }
        settings = validate(document, tmp_path)
        registry = open_registry(settings)
        assert registry is not None
        return load(settings, registry=registry)["identity"], registry

    return make


def test_a_record_waits_for_its_schema_however_long(pipeline: Callable[..., Any]) -> None:
    """While the registry is away a record of an unknown schema is neither answered nor refused, and retry_s does not count."""
    schema = flat("a", "b", "c", "d")
    with registry() as server:
        known, unknown = server.add(schema), server.add(schema | {"doc": "other"})
        rollout, opened = pipeline(registry={"url": server.url, "timeout": 1}, limits={"retry_s": 0.05})
        servable = rollout.choose()
        book = opened.schemas
        book.look_up(servable.decoder.shelf, known)
        server.fault = "500"
        record = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
        values = [written(schema, record, number) for number in (known, unknown, known)]
        batch = Batch(
            None, range(3), columns_of(Partition("in", 0), range(3), values), rollout.route, servable, 0, 0.0
        )
        pool = InlinePool(Engine(retry_s=0.05), Mailbox())
        pool.submit(batch)
        wait_for(lambda: book.away() is not None)
        for _ in range(30):
            assert pool.collect() == []
        server.fault = ""
        wait_for(pool.collect)
        assert batch.outcomes is not None
        assert not batch.outcomes.rejected
        bodies = [json.loads(body or b"")["prediction"] for body in batch.outcomes.bodies]
        assert bodies == [{"outputs": {"y": [1, 2, 3, 4]}}] * 3
        opened.close()
        rollout.choose().close()
