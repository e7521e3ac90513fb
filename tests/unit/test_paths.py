"""Dotted paths: which field of a record a text names, defaults of absent fields, and constants."""

from __future__ import annotations

import base64
import json
from pathlib import Path as FilePath
from typing import Any

import cv2
import numpy as np
import pytest
from decode_support import Decoding
from hypothesis import given, settings
from hypothesis import strategies as st
from test_decode_missing import ways

from worker.cli.sources import opened
from worker.errors import ConfigError, Reject
from worker.records.paths import ABSENT, Path, written
from worker.settings import json_schema

pytestmark = pytest.mark.usefixtures("both_batch_paths")

RECORD = {
    "user": {"age": 41, "home": None, "tags": ["a", "b"]},
    "items": [{"price": 1.5}, {"price": 2.5, "unit.name": "kg"}],
    "flat.name": 7,
    "both": {"x": 1},
    "both.x": 2,
    "speed[m/s]": 3,
    'a"b': {"c": 4},
}


def model(kind: str = "float", shape: Any = ("N", 3), **given: Any) -> Decoding:
    return Decoding("json", {"x": (kind, shape)}, **given)


def record(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def listed(found: Any) -> list[Any]:
    return list(np.ravel(found).tolist())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("user.age", 41),
        ("items[0].price", 1.5),
        ("items[-1].price", 2.5),
        ("user.tags[1]", "b"),
        ('items[1]."unit.name"', "kg"),
        ('"items"[1]["price"', ABSENT),
        ("flat.name", 7),
        ('"flat.name"', 7),
        ("both.x", 2),
        ('"both".x', 1),
        ("speed[m/s]", 3),
        (r'"a\"b".c', 4),
        ("user.home", None),
        ("user.home.street", ABSENT),
        ("user.work", ABSENT),
        ("items[2].price", ABSENT),
        ("items[-3]", ABSENT),
        ("user..age", ABSENT),
        ("user.", ABSENT),
        ("[0]", ABSENT),
    ],
)
def test_a_path_names_one_value(text: str, value: Any) -> None:
    """Names follow dots, indices stand in brackets, quoted names may hold anything; the field of the whole text comes first."""
    assert Path.of(text).find(RECORD) == value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("user.age.years", 'the field "user.age.years": user.age is an integer, expected an object'),
        ("user[0]", 'the field "user[0]": user is an object, expected a list'),
        ("items.price", 'the field "items.price": items is a list, expected an object'),
        ("user.tags[0][0]", 'the field "user.tags[0][0]": user.tags[0] is a string, expected a list'),
    ],
)
def test_a_path_through_another_kind_of_value_is_refused(text: str, sentence: str) -> None:
    """A path that meets a value of another kind is a mistake, not an absent field, and the sentence says where."""
    with pytest.raises(Reject) as caught:
        Path.of(text).find(RECORD)
    assert str(caught.value) == sentence


STEPS = st.lists(st.text(min_size=1, max_size=6) | st.integers(-3, 3), min_size=1, max_size=5)


@given(STEPS)
@settings(max_examples=200, deadline=None)
def test_every_way_can_be_written(steps: list[str | int]) -> None:
    """Whatever the names, there is a text for every way into a record; it leads to the value."""
    steps = ["first" if isinstance(steps[0], int) else steps[0], *steps[1:]]
    assert Path.of(written(steps)).steps == tuple(steps)
    value: Any = 5
    for step in reversed(steps):
        value = [value] * 3 if isinstance(step, int) else {step: value}
    if all(-3 <= step < 3 for step in steps if isinstance(step, int)):
        assert Path.of(written(steps)).find(value) == 5


@given(st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_every_text_is_a_path(text: str) -> None:
    """No text is refused, and the field whose name is the whole text is always found."""
    assert Path.of(text).find({text: 5}) == 5


def test_named_fields_may_be_paths() -> None:
    """`input.fields` takes paths and plain names side by side."""
    one = model(fields=["user.age", "items[0].price", "weight"])
    feed = one.decode(
        record(user={"age": 41}, items=[{"price": 1.5}], weight=70),
        record(weight=1, items=[{"price": 2}, {}], user={"age": 3, "x": [{}]}),
    )
    assert not feed.rejected
    assert feed.arrays is not None
    assert feed.arrays["x"].tolist() == [[41, 1.5, 70], [3, 2, 1]]


def test_a_path_that_leads_nowhere_is_named() -> None:
    """A dead letter names the path as it is configured."""
    one = model(fields=["user.age", "items[0].price", "weight"])
    good = {"user": {"age": 1}, "items": [{"price": 1}], "weight": 1}
    assert one.refusal(record(**good | {"user": {}})) == ("invalid", 'the field "user.age" is missing')
    assert one.refusal(record(**good | {"items": []}))[1] == 'the field "items[0].price" is missing'
    assert one.refusal(record(**good | {"user": "ann"}))[1] == (
        'the field "user.age": user is a string, expected an object'
    )
    assert one.refusal(record(**good | {"user": {"age": "old"}}))[1] == (
        'the field "user.age": it is a string, expected a number'
    )
    assert one.refusal(record(**good | {"items": [{"price": None}]}))[1].startswith(
        'the field "items[0].price": it is null, expected a number (or input.missing'
    )


def test_missing_numbers_are_filled_at_the_end_of_a_path() -> None:
    """`input.missing` holds for paths: absent or null at the end or on the way counts as missing, another kind does not."""
    one = model(fields=["user.age", "items[0].price", "weight"], missing=-1)
    for value in ({}, {"user": None}, {"user": {"age": None}}, {"items": []}, {"items": [{}]}):
        assert listed(one.item(record(**{"weight": 5, **value})))[:2] == [-1, -1]
    assert one.refusal(record(user=3))[1] == 'the field "user.age": user is an integer, expected an object'


def test_from_takes_a_path_for_every_content() -> None:
    """`from` is a path for lists, for single numbers and for pictures."""
    picture = np.random.default_rng(0).integers(0, 255, (6, 5, 3), np.uint8)
    encoded = base64.b64encode(cv2.imencode(".png", picture)[1].tobytes()).decode()
    one = Decoding(
        "json",
        {"x": ("float", ("N", 2)), "y": ("float", ("N", 1)), "z": ("uint8", ("N", 6, 5, 3))},
        preprocess={
            "inputs": {
                "x": {"from": "reading.values"},
                "y": {"from": "reading.unit[0].scale", "numeric": {"mean": 1, "std": 2}},
                "z": {"from": "camera.frames[1]", "image": {"color": "bgr", "resize": "none"}},
            }
        },
    )
    value = record(
        reading={"values": [1, 2], "unit": [{"scale": 5}]}, camera={"frames": ["no picture", encoded]}
    )
    assert listed(one.item(value)) == [1, 2]
    assert listed(one.item(value, name="y")) == [2]
    assert np.array_equal(one.item(value, name="z"), picture)
    assert one.refusal(record(reading={"values": [1, 2], "unit": [{"scale": 5}]}, camera={}))[1] == (
        'the field "camera.frames[1]" is missing'
    )


@pytest.mark.parametrize("field", ["picture", "camera.picture", "camera.frames[0]", '"a.b".picture'])
def test_a_picture_at_the_end_of_a_path_states_what_its_decode_takes(field: str) -> None:
    """The memory of a large picture is charged before it is decoded, wherever in the record it is."""
    large = base64.b64encode(cv2.imencode(".png", np.zeros((1800, 1700, 3), np.uint8))[1].tobytes()).decode()
    one = Decoding(
        "json",
        {"x": ("uint8", ("N", 8, 8, 3))},
        preprocess={"inputs": {"x": {"from": field, "image": {"size": [8, 8]}}}},
    )
    for way in (
        {"picture": large, "camera": {"picture": large, "frames": [large]}, "a.b": {"picture": large}},
        {field: large},
    ):
        assert one.decoder.cost(json.dumps(way).encode()) >= 1700 * 1800 * 6


VALUES = st.sampled_from(
    ["1", "2.5", "-3e2", "null", "true", '"7"', "[1]", "[]", "{}", '{"b": 4}', "1e400", " 5 "]
)
OBJECTS = st.lists(st.tuples(st.sampled_from(["b", "c", "x", "a.b"]), VALUES), max_size=3).map(
    lambda pairs: "{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}"
)
LISTS = st.lists(OBJECTS | VALUES, max_size=3).map(lambda parts: "[" + ",".join(parts) + "]")
NESTED = st.lists(
    st.tuples(st.sampled_from(["a", "a", "l", "l", "a.b", "p", "\\u0061"]), OBJECTS | LISTS | VALUES),
    min_size=2,
    max_size=5,
).map(lambda pairs: "{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}")


@given(
    st.lists(NESTED, min_size=1, max_size=5),
    st.sampled_from(["reject", 3]),
    st.sampled_from(["float", "int64"]),
)
@settings(max_examples=300, deadline=None)
def test_all_ways_to_read_paths_accept_the_same_records(records: list[str], missing: Any, kind: str) -> None:
    """The compiled reader finds at the end of a path what the reader of one record finds, or leaves the record to it."""
    records = [*records, '{"a": {"b": 1}, "l": [{"b": 2}, 3], "p": 4}']
    one = Decoding("json", {"x": (kind, ("N", 4))}, fields=["a.b", "l[0].b", "l[1]", "p"], missing=missing)
    values = [record.encode() for record in records]
    seen = []
    for way in ways(one):
        feed = way.decode(*values)
        assert feed.arrays is not None
        refused = {row: (why.reason, why.message) for row, why in feed.rejected.items()}
        rows = {row: feed.arrays["x"][row].tobytes() for row in range(len(values)) if row not in refused}
        seen.append((refused, rows))
    assert all(way == seen[0] for way in seen)
    assert len(values) - 1 in seen[0][1]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["a.b", "a"], "the field"),
        (["a.b", '"a.b"'], [[2, 2]]),
        (["a[-1].b", "p"], "the field"),
        (["l[-1].b", "p"], [[9, 4]]),
        (['"a"."b"', "a.b"], [[1, 2]]),
        (["l[0].b", "l.b"], "the field"),
    ],
)
def test_paths_that_cross_are_read_one_by_one(fields: list[str], expected: Any) -> None:
    """Fields that lie inside one another, or count from the end, are read as a single record is."""
    one = model(shape=("N", 2), fields=fields)
    value = b'{"a": {"b": 1}, "a.b": 2, "l": [{"b": 8}, {"b": 9}], "p": 4}'
    feed = one.decode(value)
    if isinstance(expected, str):
        assert expected in feed.rejected[0].message
    else:
        assert feed.arrays is not None
        assert feed.arrays["x"].tolist() == expected


# -- defaults ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape", "default", "expected"),
    [
        ("float", ("N", 3), "0.5", [0.5, 0.5, 0.5]),
        ("float", ("N", 3), ["1", "2", "3"], [1, 2, 3]),
        ("float", ("N", 1), 2, [2]),
        ("int64", ("N", 1), str(2**62 + 1), [2**62 + 1]),
        ("uint8", ("N", 2), "255", [255, 255]),
        ("bool", ("N", 1), "true", [True]),
        ("string", ("N", 1), "none", ["none"]),
        ("string", ("N", 2), "0", ["0", "0"]),
        ("float", ("N", None), ["1", "2"], [1, 2]),
    ],
)
def test_a_default_counts_for_an_absent_or_null_field(
    kind: str, shape: Any, default: Any, expected: list[Any]
) -> None:
    """`default` stands for a field that is absent or null, in the model's own type; a field that is there counts."""
    one = model(kind, shape, preprocess={"inputs": {"x": {"from": "a.b", "default": default}}})
    for value in ({}, {"a": None}, {"a": {}}, {"a": {"b": None}}):
        assert listed(one.item(record(**value))) == expected
    own = {"bool": False, "string": "own"}.get(kind, 7)
    assert listed(one.item(record(a={"b": [own] * len(expected)}))) == [own] * len(expected)
    assert one.refusal(record(a={"b": {}}))[0] == "invalid"


def test_a_named_field_may_have_a_default() -> None:
    """In `input.fields` one field may have a default; `input.missing` fills the others, the default comes first."""
    fields: Any = ["a", {"from": "user.age", "default": "18"}, "c"]
    one = model(fields=fields)
    assert listed(one.item(b'{"a": 1, "c": 3}')) == [1, 18, 3]
    assert listed(one.item(b'{"a": 1, "user": {"age": 40}, "c": 3}')) == [1, 40, 3]
    assert one.refusal(b'{"a": 1}')[1] == 'the field "c" is missing'
    filled = model(fields=fields, missing="nan")
    assert listed(filled.item(b'{"a": 1}'))[:2] == [1, 18]
    assert np.isnan(listed(filled.item(b'{"a": 1}'))[2])


def test_a_default_is_scaled_as_a_value_is() -> None:
    """`numeric` scales a default as it scales what a record holds."""
    inputs = {"x": {"from": "a", "default": 5, "numeric": {"mean": 1, "std": 2}}}
    assert listed(model(shape=("N", 2), preprocess={"inputs": inputs}).item(b"{}")) == [2, 2]


@pytest.mark.parametrize(
    ("kind", "shape", "default", "sentence"),
    [
        ("float", ("N", 3), "much", "got 'much', expected a number, because the model's input x is FP32"),
        ("float", ("N", 3), [1, 2], "got 2 values, expected one, or 3"),
        ("int64", ("N", 1), "0.5", "it is no integer that fits int64"),
        ("uint8", ("N", 1), 300, "it is out of range for uint8"),
        ("bool", ("N", 1), "0", "expected true or false"),
        ("float", ("N", None, 3), 0, "whose size is not known; expected a list"),
    ],
)
def test_a_default_that_the_model_cannot_hold_is_refused_at_start(
    kind: str, shape: Any, default: Any, sentence: str
) -> None:
    """A default of another type, range or length is one sentence that names the setting."""
    with pytest.raises(ConfigError, match=r"^preprocess\.inputs\.x\.default: ") as caught:
        model(kind, shape, preprocess={"inputs": {"x": {"from": "a", "default": default}}})
    assert sentence in str(caught.value)


def test_a_picture_has_no_default() -> None:
    """A default beside a content that cannot be made of one is refused at start."""
    inputs = {"x": {"from": "a", "default": "0", "image": {"size": [8, 8]}}}
    with pytest.raises(ConfigError, match=r"preprocess\.inputs\.x\.default: does not go with image"):
        model("uint8", ("N", 8, 8, 3), preprocess={"inputs": inputs})


@pytest.mark.parametrize(
    ("key", "line", "expected"),
    [
        ("customer.id", b'{"customer": {"id": "ann"}}', b"ann"),
        ("items[0]", b'{"items": [7]}', b"7"),
        ("a.b", b'{"a.b": null, "a": {"b": 1}}', None),
    ],
)
def test_produce_takes_the_key_at_the_end_of_a_path(
    tmp_path: FilePath, key: str, line: bytes, expected: bytes | None
) -> None:
    """`produce --key` names a field of a JSON line by its path."""
    (tmp_path / "records.jsonl").write_bytes(line + b"\n")
    assert [item.key for item in opened(str(tmp_path / "records.jsonl"), key).read()] == [expected]
    with pytest.raises(ConfigError, match=r"line 1: expected a JSON object with the field other\.id"):
        list(opened(str(tmp_path / "records.jsonl"), "other.id").read())


# -- constants -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "shape", "constant", "expected"),
    [
        ("int64", (), "16000", 16000),
        ("float", ("N", 1), 0.5, [0.5]),
        ("float", ("N", 2, 2), ["1", "2", "3", "4"], [[1, 2], [3, 4]]),
        ("int32", ("N", 3), 7, [7, 7, 7]),
        ("string", ("N", 1), "en", ["en"]),
        ("bool", (), "true", True),
    ],
)
def test_a_constant_fills_its_input_for_every_record(
    kind: str, shape: Any, constant: Any, expected: Any
) -> None:
    """An input with `constant` is the same for every record, in the model's type and shape, with any format that has contents."""
    inputs = {"x": ("uint8", ("N", 2)), "c": (kind, shape)}
    one = Decoding("json", inputs, preprocess={"inputs": {"x": {"from": "a"}, "c": {"constant": constant}}})
    feed = one.decode(b'{"a": [1, 2]}', b"nonsense", b'{"a": [3, 4]}')
    assert feed.arrays is not None
    assert list(feed.rejected) == [1]
    assert feed.arrays["x"][[0, 2]].tolist() == [[1, 2], [3, 4]]
    assert [feed.arrays["c"][row].tolist() for row in (0, 2)] == [expected, expected]


def test_a_constant_goes_beside_a_picture() -> None:
    """A picture for one input and a constant for the other need no fields in the record."""
    one = Decoding(
        "image",
        {"x": ("uint8", ("N", 4, 4, 3)), "c": ("float", ("N", 2))},
        preprocess={"inputs": {"x": {"from": "value", "image": {}}, "c": {"constant": 0.25}}},
    )
    png = cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    assert listed(one.item(png, name="c")) == [0.25, 0.25]


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ({"constant": "fast"}, "preprocess.inputs.x.constant: got 'fast', expected an integer"),
        ({"constant": [1, 2]}, "preprocess.inputs.x.constant: got 2 values, expected one, or 1"),
        ({"constant": 300}, "it is out of range for uint8"),
    ],
)
def test_a_constant_that_does_not_fit_is_refused(source: Any, sentence: str) -> None:
    """A constant of another type or size is one sentence that names the setting."""
    with pytest.raises(ConfigError) as caught:
        model("uint8", ("N", 1), preprocess={"inputs": {"x": source}})
    assert sentence in str(caught.value)


def test_the_schema_knows_sources_without_a_place() -> None:
    """The JSON Schema takes a source that is a constant alone, and asks every other one for `from`."""
    schema = json_schema()
    from jsonschema import Draft202012Validator

    source = Draft202012Validator({"$ref": "#/$defs/TensorInput", "$defs": schema["$defs"]})
    assert source.is_valid({"constant": 16000})
    assert source.is_valid({"constant": [1, 2.5]})
    assert source.is_valid({"from": "user.age", "default": 0})
    assert not source.is_valid({"numeric": {}})
    assert not source.is_valid({})
