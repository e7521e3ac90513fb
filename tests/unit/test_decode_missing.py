"""Numbers that are not there, and JSON as other programs write it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from decode_support import Decoding
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import ConfigError
from worker.settings import PipelineSettings

pytestmark = pytest.mark.usefixtures("both_batch_paths")

NAN = math.nan


def model(kind: str = "float", shape: Any = ("N", 3), **given: Any) -> Decoding:
    return Decoding("json", {"x": (kind, shape)}, **given)


def request(data: str, datatype: str = "FP32") -> bytes:
    tensor = f'{{"name": "x", "datatype": "{datatype}", "shape": [1, 3], "data": {data}}}'
    return f'{{"inputs": [{tensor}]}}'.encode()


def oip(kind: str = "float", **given: Any) -> Decoding:
    return Decoding("oip", {"x": (kind, ("N", 3))}, **given)


def same(found: Any, expected: list[float]) -> bool:
    return bool(np.array_equal(np.ravel(found), np.float32(expected), equal_nan=True))


@pytest.mark.parametrize(
    "data", ["[1, null, 3]", "[1, NaN, 3]", "[1, null, Infinity]", "[-Infinity, NaN, null]"]
)
def test_missing_nan_takes_what_tree_models_take(data: str) -> None:
    """With `missing: nan` null and NaN are NaN and infinities are themselves, in features and in OIP data."""
    expected = [NAN if e is None else e for e in json.loads(data)]
    assert same(model(missing="nan").item(b'{"features": %b}' % data.encode()), expected)
    assert same(oip(missing="nan").item(request(data)), expected)


def test_missing_may_be_a_number() -> None:
    """With a number null and NaN are that number, in integer inputs too; infinities are still refused."""
    assert same(model(missing=-1).item(b'{"features": [1, null, NaN]}'), [1, -1, -1])
    assert same(oip(missing="-1").item(request("[1, null, NaN]")), [1, -1, -1])
    assert same(model("int64", missing=-1).item(b'{"features": [1, null, 3]}'), [1, -1, 3])
    assert model(missing=0).refusal(b'{"features": [1, null, Infinity]}')[0] == "invalid"


def test_a_named_field_may_be_absent() -> None:
    """A named field that is not there counts as missing, and so does a field of one number; a whole list does not."""
    named = model(fields=["a", "b", "c"], missing="nan")
    assert same(named.item(b'{"a": 1, "c": null}'), [1, NAN, NAN])
    assert same(named.item(b"{}"), [NAN, NAN, NAN])
    two = Decoding("json", {"x": ("float", ("N", 1)), "y": ("float", ("N", 1))}, missing=7)
    assert two.item(b'{"y": 1}', name="x").ravel().tolist() == [7]
    assert model(missing="nan").refusal(b"{}") == ("invalid", 'the field "features" is missing')
    assert model(missing="nan").refusal(b'{"features": null}')[0] == "invalid"


def test_scaling_comes_after_filling() -> None:
    """A number that stands for a missing one is scaled as the others are."""
    scaled = model(missing=2, preprocess={"numeric": {"mean": 1, "std": 2}})
    assert same(scaled.item(b'{"features": [1, null, 3]}'), [0, 0.5, 1])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("[1, null, 3]", "input.missing"),
        ("[1, NaN, 3]", "input.missing: nan"),
        ("[1, Infinity, 3]", "input.missing: nan"),
    ],
)
def test_the_message_says_how_to_take_missing_numbers(data: str, words: str) -> None:
    """By default a missing number is refused, with a sentence that names input.missing."""
    assert words in model().refusal(b'{"features": %b}' % data.encode())[1]
    assert words in oip().refusal(request(data))[1]


def test_missing_does_not_hide_other_mistakes() -> None:
    """Texts, booleans, numbers beyond the dtype and broken JSON are refused whatever `missing` says."""
    for bad in ('[1, "NaN", 3]', "[1, true, 3]", "[1, 1e39, 3]", "[1, NaN]", "[1, nan, 3]", "[NaN, 1, 3"):
        assert model(missing="nan").refusal(b'{"features": %b}' % bad.encode())
        assert oip(missing="nan").refusal(request(bad))


@pytest.mark.parametrize(
    ("kind", "missing"), [("int64", "nan"), ("int64", 0.5), ("uint8", 300), ("string", 0), ("bool", "nan")]
)
def test_a_model_that_cannot_hold_it_is_refused_at_start(kind: str, missing: Any) -> None:
    """`missing` with a value that no input can hold is a configuration error."""
    with pytest.raises(ConfigError, match=r"input\.missing: got .* expected reject"):
        model(kind, missing=missing)
    with pytest.raises(ConfigError, match=r"input\.missing: got .* expected reject"):
        oip(kind, missing=missing)


@pytest.mark.parametrize("written", ["nan", "NaN", ".nan", ".NaN"])
def test_nan_may_be_written_as_yaml_writes_it(written: str) -> None:
    """`missing` takes NaN in every spelling of YAML and of Python."""
    document = {"input": {"topics": ["in"], "format": "json", "missing": written}}
    document |= {"model": {"path": "m.onnx"}, "output": {"topic": "out"}}
    assert PipelineSettings.model_validate(document).input.missing == "nan"


def test_a_byte_order_mark_is_passed_over() -> None:
    """A byte order mark in front of JSON does not matter."""
    assert same(model().item(b'\xef\xbb\xbf{"features": [1, 2, 3]}'), [1, 2, 3])
    assert same(oip().item(b"\xef\xbb\xbf" + request("[1, 2, 3]")), [1, 2, 3])


def test_a_registrys_frame_is_named() -> None:
    """The frame that a schema registry's client puts in front of JSON is named in the message, with its schema."""
    for decoding, value in ((model(), b'{"features": [1, 2, 3]}'), (oip(), request("[1, 2, 3]"))):
        reason, message = decoding.refusal(b"\0\0\0\x01\x02" + value)
        assert reason == "undecodable"
        assert "schema registry (schema 258)" in message


# -- all ways to read a batch say the same ---------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.sampled_from(
        ["null", "NaN", "Infinity", "1e400", "true", '"1"', "[1]", "01", "1.", "-0", "1e2", " 7 "]
    ),
)
RECORDS = st.one_of(
    st.lists(NUMBERS, min_size=2, max_size=4).map(lambda cells: f'{{"features": [{", ".join(cells)}]}}'),
    st.lists(NUMBERS, min_size=3, max_size=3).map(
        lambda cells: f'{{"b": 1, "features": [{",".join(cells)}]}}'
    ),
    st.sampled_from(
        [
            "{}",
            "",
            "[]",
            '{"features": [1, 2, 3]',
            '{"features": [1, 2, 3], "features": [4, 5, 6]}',
            '{"\\u0066eatures": [1, 2, 3]}',
            '{"features": [1, 2, 3]} {}',
            '\ufeff{"features": [1, 2, 3]}',
            '{"features": [[1], [2], [3]]}',
        ]
    ),
)


def ways(decoding: Decoding) -> list[Decoding]:
    """The same decoder with fewer and fewer of its short cuts."""
    decoder: Any = decoding.decoder
    shortcuts = [{}, {"reader": None}, {"reader": None, "joined": None}]
    shortcuts.append({"reader": None, "joined": None, "together": False})
    found = []
    for without in shortcuts:
        copy = object.__new__(Decoding)
        copy.signature = decoding.signature
        copy.decoder = object.__new__(type(decoder))
        copy.decoder.__dict__.update(decoder.__dict__ | without)
        found.append(copy)
    return found


@given(
    st.lists(RECORDS, min_size=1, max_size=6),
    st.sampled_from(["reject", "nan", 3]),
    st.sampled_from(["float", "double", "int64", "uint8"]),
)
@settings(max_examples=200, deadline=None)
def test_all_ways_to_read_a_batch_accept_the_same_records(
    records: list[str], missing: Any, kind: str
) -> None:
    """The compiled reader, the joined parse, the common conversion and one record at a time give the same."""
    if missing == "nan" and kind in ("int64", "uint8"):
        missing = "reject"
    values = [record.encode() for record in records]
    seen = []
    for way in ways(model(kind, missing=missing)):
        feed = way.decode(*values)
        assert feed.arrays is not None
        refused = {row: (why.reason, why.message) for row, why in feed.rejected.items()}
        rows = {row: feed.arrays["x"][row].tobytes() for row in range(len(values)) if row not in refused}
        seen.append((refused, rows))
    assert all(way == seen[0] for way in seen)
