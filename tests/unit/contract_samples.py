"""One sample for each entry of the registries: what the contract suite needs to know of it.

A new component adds a sample here; the suite fails for an entry without one.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import fastavro
import numpy as np
import sounds
from clips import write_clip
from google.protobuf import descriptor_pool, message_factory

from worker.batch import Array, Headers
from worker.encode.registered import schema_text
from worker.features.text_context import TextContext
from worker.records.protobuf_schema import ProtobufSchema
from worker.schema_registry import proto_text
from worker.schema_registry.schema import Schema

ITEM = (2, 3, 3)
"""Shape of one item: a picture of 2 x 3 pixels, or as many numbers."""


@dataclass(frozen=True)
class FormatSample:
    """How a record of an input format is written."""

    write: Callable[[Array], bytes]
    """An item, of small integers in any dtype or of texts, as one record."""
    kinds: frozenset[str]
    """ONNX element types it must be able to carry; the others may be refused at start, or as ``invalid``."""
    memory: Callable[[], dict[str, tuple[tuple[Any, ...], bytes]]] = dict
    """Large records (shape of the model's input, the record's bytes) whose reading takes much memory; made when asked."""
    name: Any = ""
    """``input.format``, where it is not the entry's name."""
    shape: tuple[int, ...] = ITEM
    """Of one item."""
    kind: str = "uint8"
    """ONNX element type for the tests that do not try all of them."""
    read: Callable[[Array], Array] = np.asarray
    """What an item is once it is read."""
    preprocess: dict[str, Any] | None = None
    refuses: int = 40
    """At least as many of the suite's hostile records must be refused."""
    schemas: dict[int | str, Schema] | None = None
    """What a schema registry knows, where the format needs one."""


INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
FLOATS = frozenset(("float16", "float", "double"))
SIZE = 2_000_000
"""Bytes of the records for measuring memory."""


def _plain(item: Array) -> Any:
    return item.astype(object).tolist() if item.dtype.kind != "f" else item.astype(float).tolist()


def _png(item: Array) -> bytes:
    return cv2.imencode(".png", item.astype(np.uint8)[..., ::-1])[1].tobytes()


def _npy(item: Array) -> bytes:
    file = io.BytesIO()
    np.save(file, item.astype("U8") if item.dtype == object else item)
    return file.getvalue()


def _clip(item: Array) -> bytes:
    """One picture, coded without loss."""
    picture = np.ascontiguousarray(item.astype(np.uint8))
    return write_clip([picture], "matroska", "libx264rgb", 1, {"crf": "0", "preset": "ultrafast"})


def _video_memory() -> Memory:
    large = [np.full((1080, 1920, 3), shade, np.uint8) for shade in (40, 200)]
    many = [np.full((720, 1280, 3), shade, np.uint8) for shade in range(40, 240, 20)]
    quick, deep = {"preset": "ultrafast"}, {"preset": "ultrafast", "refs": "8", "bf": "4"}
    return {
        "1080p, one size": (("N", 1080, 1920, 3), write_clip(large, "mp4", "libx264", 1, quick)),
        "720p, its own size": (("N", None, None, 3), write_clip(many, "mp4", "libx264", 2, deep)),
    }


DATATYPES = {
    "float32": "FP32",
    "float64": "FP64",
    "bool": "BOOL",
    "object": "BYTES",
    **{kind: kind.upper() for kind in INTEGERS},
}


def _oip(item: Array) -> bytes:
    tensor = {"name": "x", "datatype": DATATYPES.get(item.dtype.name, "FP16"), "shape": [1, *item.shape]}
    return json.dumps({"inputs": [{**tensor, "data": _plain(item.ravel())}]}).encode()


def custom_format(value: bytes, headers: Headers) -> dict[str, Any]:
    """Custom code for the suite: what it is given is JSON."""
    return {"x": json.loads(value)}


def _repeated(before: bytes, cell: bytes, after: bytes, size: int = SIZE) -> bytes:
    return before + (cell * (size // len(cell)))[: -len(b",")] + after


def _oip_of(cell: bytes, count: int | None = None) -> bytes:
    elements = SIZE // len(cell) if count is None else count
    head = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,%d],"data":[' % elements
    return _repeated(head, cell, b"]}]}")


CELLS = {
    "numbers": b"0.5,",
    "integers": b"0,",
    "larger integers": b"999,",
    "long numbers": b"0.123456789,",
    "empty lists": b"[],",
    "lists": b"[0.5],",
    "texts": b'"a",',
    "objects": b'{"a":0},',
    "empty texts": b'"",',
    "nothing": b"null,",
}
Memory = dict[str, tuple[tuple[Any, ...], bytes]]

AVRO_ITEM: dict[str, Any] = {
    "type": "record",
    "name": "Reading",
    "fields": [
        {"name": "features", "type": {"type": "array", "items": ["boolean", "long", "double", "string"]}}
    ],
}
AVRO_LISTS: dict[str, Any] = {
    "type": "record",
    "name": "Lists",
    "fields": [
        {"name": "features", "type": {"type": "array", "items": {"type": "array", "items": "int"}}},
        {"name": "names", "type": {"type": "array", "items": "string"}},
        {"name": "more", "type": {"type": "map", "values": "boolean"}},
    ],
}
AVRO_TREE: dict[str, Any] = {
    "type": "record",
    "name": "Tree",
    "fields": [{"name": "features", "type": "int"}, {"name": "left", "type": ["null", "Tree"]}],
}
SCHEMAS: dict[int | str, Schema] = {
    1: Schema("AVRO", json.dumps(AVRO_ITEM)),
    2: Schema("AVRO", json.dumps(AVRO_LISTS)),
    3: Schema("AVRO", json.dumps(AVRO_TREE)),
    4: Schema("JSON", json.dumps({"type": "object"})),
    5: Schema(
        "PROTOBUF",
        """
        syntax = "proto3";
        message Item { repeated double features = 1; repeated string texts = 2; repeated Item items = 3; }
        message Texts { repeated string features = 1; }
        message Integers { repeated uint64 features = 1; }
        message Truths { repeated bool features = 1; }
        """,
    ),
}
PROTOBUF_KINDS = {"f": (0, "Item"), "O": (1, "Texts"), "b": (3, "Truths")}


def _protobuf(item: Array) -> bytes:
    file = proto_text.parse(SCHEMAS[5].text)
    file.name = "items.proto"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    index, name = PROTOBUF_KINDS.get(item.dtype.kind, (2, "Integers"))
    message = message_factory.GetMessageClass(pool.FindMessageTypeByName(name))
    values = message(features=_plain(item.ravel())).SerializeToString()
    return b"\0\0\0\0\5" + (bytes([2, 2 * index]) if index else b"\0") + values


def _protobuf_memory() -> Memory:
    frame = b"\0\0\0\0\5\0"
    packed = bytes([0x0A, SIZE & 0x7F | 0x80, SIZE >> 7 & 0x7F | 0x80, SIZE >> 14])
    return {
        "numbers": (("N", None), _protobuf(np.full(SIZE // 8, 0.5))),
        "damaged numbers": (("N", None), frame + packed + b"\x01" * SIZE),
        "empty texts": (("N", None), frame + b"\x12\0" * (SIZE // 2)),
        "texts": (("N", None), frame + b"\x12\1a" * (SIZE // 3)),
        "empty messages": (("N", None), frame + b"\x1a\0" * (SIZE // 8)),
        "unknown fields": (("N", None), frame + b"\x7a\1a" * (SIZE // 3)),
    }


def _avro(number: int, schema: Any, record: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), record)
    return number.to_bytes(5, "big") + stream.getvalue()


def _avro_memory() -> Memory:
    empty: dict[str, Any] = {"features": [], "names": [], "more": {}}
    return {
        "numbers": (("N", None), _avro(1, AVRO_ITEM, {"features": [1000] * (SIZE // 3)})),
        "texts": (("N", None), _avro(1, AVRO_ITEM, {"features": ["a"] * (SIZE // 3)})),
        "empty lists": (("N", None), _avro(2, AVRO_LISTS, empty | {"features": [[]] * SIZE})),
        "wide texts": (("N", None), _avro(2, AVRO_LISTS, empty | {"names": ["a" * SIZE + "\U0001f600"]})),
        "a map": (
            ("N", None),
            _avro(2, AVRO_LISTS, empty | {"more": {f"{i:x}": True for i in range(SIZE // 8)}}),
        ),
        "a deep tree": (("N", None), _avro(3, AVRO_TREE, {"features": 1, "left": None}) + b"\2" * SIZE),
    }


def _json_memory() -> Memory:
    found: Memory = {
        f"{name}, {kind}": (shape, _repeated(b'{"features":[', cell, b"]}"))
        for name, cell in CELLS.items()
        for kind, shape in {"free": ("N", None), "fixed": ("N", 4)}.items()
    }
    keys = b'{"features":[0]' + b"".join(b',"%06x":0.5' % i for i in range(SIZE // 13)) + b"}"
    found["keys"] = (("N", None), keys)
    found["fixed and right"] = (("N", SIZE // 4), _repeated(b'{"features":[', b"0.5,", b"]}"))
    return found


def _image_memory() -> Memory:
    pixels = cv2.resize(np.random.default_rng(0).integers(0, 255, (20, 25, 3), np.uint8), (1500, 1200))
    files = {
        extension: cv2.imencode(extension, pixels)[1].tobytes() for extension in (".png", ".jpg", ".webp")
    }
    shapes = {"its own": ("N", None, None, 3), "one": ("N", 1200, 1500, 3)}
    return {
        f"{extension} of {kind} size": (shape, file)
        for extension, file in files.items()
        for kind, shape in shapes.items()
    }


def _npy_memory() -> Memory:
    return {
        "one item": (("N", None), _npy(np.zeros(1_000_000, np.float32))),
        "many items": (("N", 4), _npy(np.zeros((250_000, 4), np.float32))),
        "the other order": (("N", None, None), _npy(np.asfortranarray(np.zeros((1000, 1000), np.float32)))),
    }


def _sound_memory() -> Memory:
    noise = np.random.default_rng(0).standard_normal((1_000_000, 1)).astype(np.float32) * 0.1
    silence = np.zeros((10_000_000, 2), np.float32)
    return {
        "WAV": (("N", None), sounds.file(noise, 16_000)),
        "WAV at another rate": (("N", None), sounds.file(noise, 44_100, "wav 24 bit")),
        "many channels": (("N", None), sounds.file(noise[:500_000].repeat(24, axis=1), 48_000)),
        "silence in FLAC": (("N", None), sounds.file(silence, 48_000, "flac")),
        "MP3": (("N", None), sounds.file(noise, 48_000, "mp3")),
        "Opus": (("N", None), sounds.file(noise, 48_000, "opus")),
    }


FORMATS: dict[str, FormatSample] = {
    "audio": FormatSample(
        lambda item: sounds.file(item.astype(np.float32), 16_000, "wav float"),
        FLOATS,
        _sound_memory,
        shape=(40,),
        kind="float",
    ),
    "pcm16": FormatSample(
        lambda item: item.astype("<i2").tobytes(),
        FLOATS,
        lambda: {"samples": (("N", None), bytes(4_000_000))},
        name={"pcm16": {"rate": 16_000}},
        shape=(40,),
        kind="float",
        read=lambda item: item / 32_768,
    ),
    "image": FormatSample(
        _png,
        FLOATS | INTEGERS - {"int8"},
        _image_memory,
        preprocess={"image": {"resize": "none"}},
    ),
    # a picture, because the suite's item has several elements, which text as a content cannot fill
    "text": FormatSample(
        lambda item: base64.b64encode(_png(item)),
        FLOATS | INTEGERS - {"int8"},
        lambda: {name: (shape, base64.b64encode(file)) for name, (shape, file) in _image_memory().items()},
        preprocess={"image": {"resize": "none"}},
    ),
    "json": FormatSample(
        lambda item: json.dumps({"features": _plain(item)}).encode(),
        FLOATS | INTEGERS | {"bool", "string"},
        _json_memory,
    ),
    "video": FormatSample(
        _clip,
        FLOATS | INTEGERS - {"int8"},
        _video_memory,
        preprocess={"video": {"fps": 1}, "image": {"resize": "none"}},
    ),
    "bytes": FormatSample(
        lambda item: item.astype(np.uint8).tobytes(),
        FLOATS | INTEGERS - {"int8"},
        lambda: {"one file": (("N", 1_000_000), b"\0" * 4_000_000)},
        preprocess={"bytes": {"min_bytes": 18}},
        refuses=25,
    ),
    "tensor": FormatSample(
        lambda item: item.tobytes(),
        FLOATS | INTEGERS | {"bool"},
        lambda: {"one item": (("N", 1_000_000), b"\0" * 4_000_000)},
    ),
    "npy": FormatSample(
        _npy,
        FLOATS | INTEGERS | {"bool", "string"},
        _npy_memory,
    ),
    "oip": FormatSample(
        _oip,
        FLOATS - {"float16"} | INTEGERS | {"bool", "string"},
        lambda: {name: (("N", None), _oip_of(cell)) for name, cell in CELLS.items()},
    ),
    "avro": FormatSample(
        lambda item: _avro(1, AVRO_ITEM, {"features": _plain(item.ravel())}),
        FLOATS | INTEGERS | {"bool", "string"},
        _avro_memory,
        schemas=SCHEMAS,
    ),
    "protobuf": FormatSample(
        _protobuf,
        FLOATS | INTEGERS | {"bool", "string"},
        _protobuf_memory,
        schemas=SCHEMAS,
    ),
    "json_schema": FormatSample(
        lambda item: b"\0\0\0\0\4" + json.dumps({"features": _plain(item)}).encode(),
        FLOATS | INTEGERS | {"bool", "string"},
        lambda: {name: (shape, b"\0\0\0\0\4" + text) for name, (shape, text) in _json_memory().items()},
        schemas=SCHEMAS,
    ),
    "custom": FormatSample(
        lambda item: json.dumps(_plain(item)).encode(),
        FLOATS | INTEGERS | {"bool", "string"},
        lambda: {"numbers": (("N", None), _repeated(b"[", b"0.5,", b"]"))},
        name="contract_samples:custom_format",
    ),
}


@dataclass(frozen=True)
class PostprocessSample:
    """Outputs that a postprocess reads."""

    outputs: Callable[[int], dict[str, Array]]
    """Of so many items."""
    settings: Any = None
    """``postprocess``, where it is not the entry's name alone."""
    non_finite: bool = True
    """Whether a NaN anywhere in an item's output is in its prediction."""
    contexts: Callable[[int], list[Any]] = lambda count: [None] * count
    """What it is told of the inputs of so many items."""
    input_format: str = "json"


_PLACES = [(place, place + 1) for place in range(4)]


def _candidates(items: int) -> dict[str, Any]:
    """Boxes of layout yolov8: four sides and the scores of two classes, within 0 and 1."""
    return {"y": np.random.default_rng(1).random((items, 6, 20), np.float32)}


def _random(*item: int) -> Callable[[int], dict[str, Array]]:
    return lambda count: {"y": np.random.default_rng(7).random((count, *item), np.float32) * 9}


def _shares(*item: int) -> Callable[[int], dict[str, Array]]:
    """Numbers within 0 and 1."""
    return lambda count: {"y": np.random.default_rng(5).random((count, *item), np.float32)}


def _people(items: int) -> dict[str, Any]:
    """Boxes of one class with two points, within a picture of 30 x 30 pixels."""
    head = np.random.default_rng(3).random((items, 4 + 1 + 2 * 3, 20), np.float32)
    head[:, :4] *= 30
    return {"y": head}


def _marks(items: int) -> dict[str, Any]:
    """Score maps with a bar in each."""
    maps = np.zeros((items, 1, 24, 40), np.float32)
    for item, each in enumerate(maps):
        each[0, 4 + item : 12 + item, 5:30] = 0.9
    return {"y": maps}


def custom_postprocess(outputs: dict[str, Array]) -> Any:
    """Custom code for the suite."""
    return {"sum": float(outputs["y"].sum())}


POSTPROCESSES: dict[str, PostprocessSample] = {
    "classification": PostprocessSample(_random(5), {"classification": {"top_k": 3}}),
    "detection": PostprocessSample(
        _candidates, {"detection": {"layout": "yolov8", "score": 0.5, "iou": 0.5}}
    ),
    "keypoints": PostprocessSample(_people, {"keypoints": {"score": 0.5}}),
    "segmentation": PostprocessSample(_random(3, 6, 5)),
    "regions": PostprocessSample(_marks),
    "ctc": PostprocessSample(_shares(12, 4), {"ctc": {"alphabet": ["a", "b", "c"]}}),
    "anomaly": PostprocessSample(_shares(1), {"anomaly": {"threshold": 0.5}}),
    "regression": PostprocessSample(_random(3)),
    "embedding": PostprocessSample(_random(8), {"embedding": {"normalize": True}}),
    "tokens": PostprocessSample(
        _random(4, 3),
        contexts=lambda count: [TextContext("abcd", 4, False, _PLACES)] * count,
        input_format="text",
    ),
    "fields": PostprocessSample(_random(3), {"fields": {"a": "y", "b": "y"}}),
    "raw": PostprocessSample(_random(2, 3)),
    "segments": PostprocessSample(_random(1), {"segments": {"threshold": 0.0}}),
    "custom": PostprocessSample(_random(4), "contract_samples:custom_postprocess"),
}


def _read_oip(body: bytes) -> Any:
    answer = json.loads(body)
    output = answer["outputs"][0]
    return np.array(output["data"], np.float32).reshape(output["shape"])[0]


def read_avro(body: bytes) -> Any:
    """A result, without the frame of its schema."""
    schema = fastavro.parse_schema(json.loads(schema_text("result.avsc")))
    return fastavro.schemaless_reader(io.BytesIO(body[5:]), schema, None)


def read_protobuf(body: bytes) -> Any:
    """A result, without the frame of its schema."""
    schema = Schema("PROTOBUF", schema_text("result.proto"))
    return ProtobufSchema(schema).reader((0,)).read(body, 6)


def _tensor(tensor: Any) -> Any:
    return np.float32(tensor["numbers"]).reshape(tensor["shape"])


OUTPUT_FORMATS: dict[str, Callable[[bytes], Any]] = {
    "json": lambda body: np.float32(json.loads(body)["prediction"]["outputs"]["y"]),
    "oip": _read_oip,
    "tensor": lambda body: np.frombuffer(body, "<f4").reshape(2, 3),
    "npy": lambda body: np.load(io.BytesIO(body), allow_pickle=False),
    "avro": lambda body: _tensor(read_avro(body)["prediction"]["outputs"]["y"]),
    "protobuf": lambda body: _tensor(read_protobuf(body)["prediction"]["outputs"]["y"]),
    "json_schema": lambda body: np.float32(json.loads(body[5:])["prediction"]["outputs"]["y"]),
}
"""How a body's first output is read back."""
