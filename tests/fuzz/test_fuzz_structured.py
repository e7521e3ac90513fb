"""Inputs that are right in form and odd in content, where changed bytes rarely get: numbers, settings, strings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from fuzz_targets import RECORD, batch_of, check_json, encode, make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from thorough import cases

from worker.errors import ConfigError
from worker.settings import Settings, validate

BORDERS = [2**31, 2**53, 2**63, 2**64, 65504, 65520, 255, 127, 3.4028235e38, 3.5e38, 1e-45, 1e308, 0.1, -0.0]
numbers = st.one_of(
    st.integers(-3, 300),
    st.sampled_from(BORDERS).flatmap(lambda n: st.sampled_from([n, -n, n - 1, n + 1])),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(width=16, allow_nan=False, allow_infinity=False),
)
strange = st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.just([]), st.just({}))
lists = st.lists(st.one_of(numbers, numbers, numbers, strange), min_size=2, max_size=4)
fields = st.dictionaries(
    st.sampled_from(["features", "a", "b", "c", 'fea"tures', "features\\", "[", "{"]),
    st.one_of(lists, st.lists(lists, max_size=2), numbers, strange),
    max_size=3,
)
records = st.one_of(
    st.builds(lambda values: {"features": values}, st.lists(numbers, min_size=3, max_size=3)),
    st.builds(lambda values, more: {**more, "features": values}, lists, fields),
    fields,
).map(lambda record: json.dumps(record).encode())
SPELLINGS = [
    lambda text: text,
    lambda text: text.replace(b" ", b"\n\t"),
    lambda text: text.replace(b"features", b"feature\\u0073", 1),
    lambda text: text[:-1] + b', "features": 7}',
    lambda text: text[:-1] + b', "feature\\u0073": 7}',
    lambda text: text[:-1],
    lambda text: text + b"," + text,
]
spelled = st.builds(
    lambda text, spelling: SPELLINGS[spelling](text), records, st.sampled_from([0, 0, 0, 0, *range(1, 7)])
)


@settings(max_examples=cases(300), deadline=None)
@given(st.lists(spelled, min_size=1, max_size=6))
def test_one_parse_of_a_batch_agrees_with_a_look_at_each_record(batch: list[bytes]) -> None:
    """Whatever records stand together, each is taken or refused as if alone, with the same numbers and reason."""
    check_json(RECORD.join(batch))


BASE: dict[str, Any] = {
    "name": "n",
    "pipelines": {
        "p": {
            "input": {"topics": ["in"], "format": "json"},
            "model": {"path": "m.onnx"},
            "output": {"topic": "out"},
        }
    },
    "dead_letter": {"topic": "dead"},
    "kafka": {"bootstrap.servers": "h:1", "group.id": "g"},
}


def settings_of(
    schema: dict[str, Any], node: dict[str, Any], place: tuple[str, ...] = ()
) -> list[tuple[str, ...]]:
    """Every key there is, by its path from the top; a mapping of free names has one entry ``p``."""
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
    found = [place] if place else []
    for branch in node.get("anyOf", ()):
        found += settings_of(schema, branch, place)[bool(place) :]
    children = dict(node.get("properties", {}))
    if isinstance(node.get("additionalProperties"), dict):
        children["p"] = node["additionalProperties"]
    for name, child in children.items():
        found += settings_of(schema, child, (*place, name))
    return found


SCHEMA = Settings.model_json_schema()
KEYS = sorted(set(settings_of(SCHEMA, SCHEMA)))
scalars = st.one_of(
    st.none(),
    st.text(max_size=5),
    st.sampled_from(
        ["1", "-1", "0", "1e400", "nan", "inf", "1_0", "٣", "0x1", "true", "auto", "a:b", "1" * 5000]
    ),
    st.sampled_from(
        ["image", "json", "oip", "raw", "detection", "input", "exactly_once", "127.0.0.1:99999", "\0"]
    ),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("p"), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=cases(600), deadline=None)
@given(st.lists(st.tuples(st.sampled_from(KEYS), values), min_size=1, max_size=3))
def test_any_value_of_any_setting_is_taken_or_named(changes: list[tuple[tuple[str, ...], Any]]) -> None:
    """Any value anywhere gives settings, or one line that says what was expected."""
    document = json.loads(json.dumps(BASE))
    for key, value in changes:
        at = document
        for name in key[:-1]:
            if not isinstance(at.get(name), dict):
                at[name] = {}
            at = at[name]
        at[key[-1]] = value
    try:
        validate(document, Path.cwd())
    except ConfigError as refused:
        said = str(refused).splitlines()
        assert len(said) == 1


@settings(max_examples=cases(200), deadline=None)
@given(st.lists(st.text(max_size=6), min_size=4, max_size=4))
def test_any_string_a_model_gives_can_be_read_back(texts: list[str]) -> None:
    """Strings of a model come back from JSON and from the protocol as they were."""
    strings = np.array(texts, object).reshape(2, 2)
    for output_format, data in (("json", None), ("oip", "data")):
        encoder = make_encoder({"y": ("string", ["N", 2])}, format=output_format)
        outcomes = encode(encoder, batch_of(2), {"y": strings})
        for body, sent in zip(outcomes.bodies, strings.tolist(), strict=True):
            found = orjson.loads(body or b"")
            outputs = found["outputs"][0][data] if data else found["prediction"]["outputs"]["y"]
            assert outputs == sent
