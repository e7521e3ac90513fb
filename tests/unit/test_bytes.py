"""Bytes as integers."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from decode_support import Decoding

from worker.errors import ConfigError

pytestmark = pytest.mark.usefixtures("both_batch_paths")


def model(kind: str = "int32", shape: Any = ("N", 8), name: str = "bytes", **options: Any) -> Decoding:
    return Decoding(name, {"x": (kind, shape)}, preprocess={"bytes": options})


def listed(found: Any) -> list[Any]:
    return list(np.ravel(found).tolist())


@pytest.mark.parametrize(
    ("options", "value", "expected"),
    [
        ({}, b"abc", [97, 98, 99, 0, 0, 0, 0, 0]),
        ({"pad": 256}, b"", [256] * 8),
        ({}, b"abcdefghij", list(b"abcdefgh")),
        ({"head_tail": True, "pad": -1}, b"abcdefghij", list(b"abcdghij")),
        ({"head_tail": True, "pad": -1}, b"ab", [97, 98, -1, -1, -1, -1, 97, 98]),
        ({"head_tail": True, "pad": 256, "strip": True}, b" \n ab \t", [*b"ab \t", *b"\n ab"]),
        ({"strip": True, "block": 8}, b"    abcdefgh", [97, 98, 99, 100, 0, 0, 0, 0]),
        ({"length": 8}, bytes(range(250, 256)), [250, 251, 252, 253, 254, 255, 0, 0]),
    ],
)
def test_bytes_are_cut_and_padded(options: Any, value: bytes, expected: list[int]) -> None:
    """The beginning, or the beginning and the end, of a file as integers; what is missing is `pad`."""
    assert listed(model(**options).item(value)) == expected


def test_the_item_has_the_models_type_and_shape() -> None:
    """Bytes fill items of any number type, of a free length that is configured, and of several dimensions."""
    assert model("float").item(b"\xff").dtype == np.float32
    assert listed(model("uint8", pad=255).item(b"\x80"))[:2] == [128, 255]
    assert listed(model(shape=("N", None), length=3).item(b"ab")) == [97, 98, 0]
    assert model(shape=("N", 2, 2)).item(b"abcd").tolist() == [[97, 98], [99, 100]]


def test_a_json_field_holds_bytes_as_base64() -> None:
    """In JSON the bytes are base64 text, at the end of a path; other text is undecodable."""
    one = Decoding(
        "json",
        {"x": ("int32", ("N", 4))},
        preprocess={"inputs": {"x": {"from": "file.content", "bytes": {"pad": 256}}}},
    )
    text = base64.b64encode(b"\x00\xff").decode()
    assert listed(one.item(json.dumps({"file": {"content": text}}).encode())) == [0, 255, 256, 256]
    assert one.refusal(b'{"file": {"content": "?"}}') == (
        "undecodable",
        'the field "file.content" is not base64',
    )


def test_a_file_may_be_too_short() -> None:
    """A file below `min_bytes` is invalid, with its length in the message."""
    assert model(min_bytes=3).refusal(b"ab") == ("invalid", "the record: got 2 bytes, expected at least 3")


@pytest.mark.parametrize(
    ("kind", "shape", "options", "sentence"),
    [
        ("int8", ("N", 8), {}, "preprocess.bytes: the model's input x is INT8"),
        ("string", ("N", 8), {}, "expected numbers that hold every byte"),
        ("int32", ("N", None), {}, "preprocess.bytes.length is required"),
        ("int32", ("N", None, 3), {"length": 6}, "of one dimension or of a known shape"),
        ("int32", ("N", 8), {"length": 9}, "preprocess.bytes.length: got 9, expected 8"),
        ("uint8", ("N", 8), {"pad": 256}, "preprocess.bytes.pad: got 256: it is out of range for uint8"),
        ("int32", ("N", 7), {"head_tail": True}, "expected an even number with head_tail"),
        ("int32", ("N", 8), {"block": 7}, "preprocess.bytes.block: got 7, expected at least 8"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(
    kind: str, shape: Any, options: Any, sentence: str
) -> None:
    """What the model's input cannot take is one sentence at start."""
    with pytest.raises(ConfigError) as caught:
        model(kind, shape, **options)
    assert sentence in str(caught.value)
