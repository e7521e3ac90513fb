"""JSON records -> arrays."""

from __future__ import annotations

import base64
import json
from typing import Any

import cv2
import numpy as np
import pytest
from decode_support import Decoding, reasons
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import ConfigError

pytestmark = pytest.mark.usefixtures("both_batch_paths")


def features(*values: Any) -> bytes:
    return json.dumps({"features": values}).encode()


def model(kind: str = "float", shape: Any = ("N", 2), **settings: Any) -> Decoding:
    return Decoding("json", {"x": (kind, shape)}, **settings)


BAD = [
    (b"", "undecodable"),
    (b"nonsense", "undecodable"),
    (b'{"features": [1, 2]', "undecodable"),
    (b'{"features": [1, 2]} {"features": [1, 2]}', "undecodable"),
    (b'{"features": [1, 2]},{"features": [1, 2]}', "undecodable"),
    (b'{"features": [NaN, 2]}', "undecodable"),
    (b'{"features": [1, 2,]}', "undecodable"),
    (b'{"features": [1, 2], "a": "\xff"}', "undecodable"),
    (b'{"features": [1, 2]}\0', "undecodable"),
    (b"[" * 100_000, "undecodable"),
    (b'{"features": ' * 2000 + b"1" + b"}" * 2000, "undecodable"),
    (b"[1, 2]", "invalid"),
    (b"null", "invalid"),
    (b"{}", "invalid"),
    (b'{"features": null}', "invalid"),
    (b'{"features": 1}', "invalid"),
    (b'{"features": "12"}', "invalid"),
    (b'{"features": {"0": 1, "1": 2}}', "invalid"),
    (b'{"features": []}', "invalid"),
    (b'{"features": [1]}', "invalid"),
    (b'{"features": [1, 2, 3]}', "invalid"),
    (b'{"features": [1, true]}', "invalid"),
    (b'{"features": [1, null]}', "invalid"),
    (b'{"features": [1, "2"]}', "invalid"),
    (b'{"features": [1, [2]]}', "invalid"),
    (b'{"features": [[1], [2]]}', "invalid"),
    (b'{"features": [1, {}]}', "invalid"),
    (b'{"features": [1, 1e39]}', "invalid"),
    (b'{"features": [1, 1e400]}', "invalid"),
    (b'{"features": [1, 2], "features": 5}', "invalid"),
    (b'{"features": [1, 2], "fea\\u0074ures": 5}', "invalid"),
]


@pytest.mark.parametrize(("value", "reason"), BAD)
def test_a_bad_record_is_refused_alone_and_its_neighbours_are_not(value: bytes, reason: str) -> None:
    """What is not JSON is undecodable, what does not fit is invalid, and only that record pays."""
    feed = model().decode(features(1, 2), value, features(3, 4))
    assert reasons(feed) == {1: reason}
    assert feed.arrays["x"][[0, 2]].tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "values",
    [
        [b'{"features": [1', b"2]}", b'{"features": [3, 4]},{"features": [5, 6]}'],
        [b'{"features":[1,2],"a":"}', b'{","b":2}', b'{"features":[3,4]},{"features":[5,6]}'],
        [b'{"features":[1,2],"a":[{}', b"{}]}", b'{"features":[3,4]},{"features":[5,6]}'],
        [b'{"features":[1,2],"a":{"b":1', b'{"c":1}}', b'{"features":[3,4]},{"features":[5,6]}'],
    ],
)
def test_records_that_only_parse_side_by_side_are_all_refused(values: list[bytes]) -> None:
    """Each record must be one JSON object by itself, whatever its neighbours would complete it to."""
    assert reasons(model().decode(*values)) == dict.fromkeys(range(3), "undecodable")


def test_records_of_different_lengths_do_not_share_elements() -> None:
    """One element short and one too many in the next record are two bad records, not two good ones."""
    assert reasons(model().decode(features(1), features(2, 3, 4))) == {0: "invalid", 1: "invalid"}


def test_the_last_of_two_equal_names_counts_whatever_the_batch() -> None:
    """A record with a name twice gives the same numbers next to good and next to bad records."""
    twice = b'{"features": [1, 2], "features": [3, 4]}'
    for others in ([features(0, 0)], [b"nonsense"], []):
        feed = model().decode(twice, *others)
        assert feed.arrays["x"][0].tolist() == [3, 4]


def test_a_name_elsewhere_in_the_record_is_no_second_name() -> None:
    """Strings and inner objects that mention "features" do not disturb the list."""
    value = b' {"kind": "features", "inner": {"features": [9]}, "list": ["[", "]"], "features": [1, 2]}'
    assert model().item(value).tolist() == [1, 2]


@given(
    st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
        min_size=1,
        max_size=20,
    )
)
def test_floats_arrive_as_the_nearest_float32(rows: list[list[float]]) -> None:
    """Every float32 written as JSON is read back as itself, in a batch and alone."""
    decoding = model(shape=("N", 3))
    expected = np.array(rows, np.float32)
    assert np.array_equal(decoding.decode(*(features(*row) for row in rows)).arrays["x"], expected)
    assert np.array_equal(decoding.item(b" " + features(*rows[0])), expected[0])


@pytest.mark.parametrize("kind", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_integers_are_exact_and_never_wrap(kind: str) -> None:
    """Both ends of the range arrive as they are; one beyond, or a fraction, is invalid; 1.0 is 1."""
    limits, decoding = np.iinfo(kind), model(kind)
    assert decoding.item(features(limits.min, limits.max)).tolist() == [limits.min, limits.max]
    assert decoding.item(b" " + features(limits.min, limits.max)).tolist() == [limits.min, limits.max]
    assert decoding.item(b'{"features": [1.0, 2]}').tolist() == [1, 2]
    for bad in (limits.min - 1, limits.max + 1, 0.5, 1e300, True):
        assert decoding.refusal(features(0, bad))[0] == "invalid"


def test_a_large_integer_is_a_fine_float() -> None:
    """Integers beyond 64 bits are numbers like any other to a floating model."""
    assert model().item(features(2**70, -(2**70))).tolist() == [2.0**70, -(2.0**70)]


def test_booleans_and_strings_go_to_models_that_take_them() -> None:
    """A bool model takes true and false only, a string model strings only."""
    assert model("bool").item(features(True, False)).tolist() == [True, False]
    assert model("bool").refusal(features(1, 0))[0] == "invalid"
    assert model("string").item(features("a", "ü")).tolist() == ["a", "ü"]
    assert model("string").refusal(features("a", 1))[0] == "invalid"


def test_lists_may_be_flat_or_nested() -> None:
    """An item of several dimensions comes as one flat list or nested exactly as its shape; ragged is invalid."""
    decoding = model(shape=("N", 2, 3))
    flat, nested = features(*range(6)), features([0, 1, 2], [3, 4, 5])
    for values in ([flat], [nested], [nested, nested], [flat, nested]):
        for item in decoding.decode(*values).arrays["x"]:
            assert item.tolist() == [[0, 1, 2], [3, 4, 5]]
    for bad in (
        features([0, 1], [2, 3, 4, 5]),
        features([0, 1], [2, 3], [4, 5]),
        features([[0, 1, 2, 3, 4, 5]]),
    ):
        assert decoding.refusal(bad)[0] == "invalid"


def test_free_dimensions_come_from_the_record() -> None:
    """A nested list has the shape it has, a flat one fills the one free dimension; fixed ones must agree."""
    decoding = model(shape=("N", "T", 2))
    assert decoding.item(features([1, 2], [3, 4], [5, 6])).shape == (1, 3, 2)
    assert decoding.item(features(1, 2, 3, 4)).tolist() == [[[1, 2], [3, 4]]]
    for bad in (features(1, 2, 3), features([1], [2]), features([1, 2], [3]), features([])):
        assert decoding.refusal(bad)[0] == "invalid"


def test_a_model_of_scalars_takes_one_number() -> None:
    """An input of shape [N] has rank-0 items."""
    decoding = model(shape=("N",))
    assert decoding.decode(features(3), features(4)).arrays["x"].tolist() == [3, 4]
    assert decoding.item(b'{"features": 3}') == 3
    assert decoding.refusal(features(1, 2))[0] == "invalid"


def test_named_fields_come_in_their_order() -> None:
    """input.fields are read in the order of the configuration, and each must be one number."""
    decoding = model(shape=("N", 3), fields=["a", "b", "c"])
    assert decoding.decode(b'{"c": 3, "a": 1, "b": 2, "d": true}', b'{"b":5,"a":4,"c":6}').arrays[
        "x"
    ].tolist() == [
        [1, 2, 3],
        [4, 5, 6],
    ]
    for bad, named in (
        (b'{"a": 1, "b": 2}', "c"),
        (b'{"a": 1, "b": true, "c": 3}', "b"),
        (b'{"a": 1, "b": 2, "c": [3]}', "c"),
        (b'{"a": null, "b": 2, "c": 3}', "a"),
    ):
        feed = decoding.decode(b'{"a":1,"b":2,"c":3}', bad)
        assert reasons(feed) == {1: "invalid"}
        assert f'"{named}"' in feed.rejected[1].message
    assert model(shape=("N", 1), fields=["a"]).item(b'{"a": 7}').tolist() == [7]


def test_each_input_of_several_is_the_field_of_its_own_name() -> None:
    """Without preprocess.inputs a model with several inputs reads one JSON field for each."""
    decoding = Decoding("json", {"a": ("float", ("N", 2)), "b": ("int64", ("N", 1))})
    feed = decoding.decode(b'{"a": [1, 2], "b": [3]}', b'{"b": 6, "a": [4, 5]}')
    assert feed.arrays["a"].tolist() == [[1, 2], [4, 5]]
    assert feed.arrays["b"].tolist() == [[3], [6]]
    assert '"b"' in decoding.refusal(b'{"a": [1, 2]}')[1]


def test_numeric_scales_each_feature_in_the_models_dtype() -> None:
    """x = (feature - mean) / std in float32, for a batch and for a record alone."""
    scaling = {"numeric": {"mean": [0.1, 10], "std": [3, 0.7]}}
    decoding = model(preprocess=scaling)
    x = np.array([[1, 2], [3, 4]], np.float32)
    expected = (x - np.array([0.1, 10], np.float32)) / np.array([3, 0.7], np.float32)
    assert np.array_equal(decoding.decode(features(1, 2), features(3, 4)).arrays["x"], expected)
    assert np.array_equal(decoding.item(b" " + features(1, 2)), expected[0])


def test_several_inputs_may_mix_numbers_and_a_picture() -> None:
    """preprocess.inputs says where each input comes from; a picture is base64 text in the JSON."""
    decoding = Decoding(
        "json",
        {"photo": ("uint8", ("N", 2, 3, 3)), "x": ("float", ("N", 2))},
        preprocess={
            "inputs": {
                "photo": {"from": "picture", "image": {"color": "rgb"}},
                "x": {"from": "value", "numeric": {"mean": 1}},
            }
        },
    )
    pixels = np.arange(18, dtype=np.uint8).reshape(2, 3, 3)
    png = cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()
    record = {"picture": base64.b64encode(png).decode(), "features": [1, 2]}
    feed = decoding.decode(
        *(
            json.dumps(value).encode()
            for value in (
                record,
                record | {"picture": "###"},
                record | {"picture": base64.b64encode(png[:50]).decode()},
                record | {"picture": 5},
                {"features": [1, 2]},
                record | {"features": [1]},
            )
        )
    )
    assert np.array_equal(feed.arrays["photo"][0], pixels)
    assert feed.arrays["x"][0].tolist() == [0, 1]
    assert feed.contexts[0].height == 2
    assert reasons(feed) == {1: "undecodable", 2: "undecodable", 3: "invalid", 4: "invalid", 5: "invalid"}


def with_picture() -> Decoding:
    """A model whose one input is a picture of 3 x 2 pixels, in the JSON field "picture"."""
    return Decoding(
        "json",
        {"photo": ("uint8", ("N", 2, 3, 3))},
        preprocess={"inputs": {"photo": {"from": "picture", "image": {}}}},
    )


def png_text(height: int, width: int) -> str:
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return base64.b64encode(cv2.imencode(".png", pixels)[1].tobytes()).decode()


@pytest.mark.parametrize(
    "written",
    [
        lambda text: "\n".join(text[i : i + 76] for i in range(0, len(text), 76)),
        lambda text: text.replace("+", "-").replace("/", "_"),
        lambda text: text.rstrip("="),
        lambda text: "data:image/png;base64," + text,
    ],
)
def test_base64_may_be_written_as_other_languages_do(written: Any) -> None:
    """A picture in JSON may be base64 with line breaks, URL-safe, without padding, or a data URI."""
    text = next(t for t in (png_text(height, 40) for height in range(40, 50)) if t.endswith("=") and "+" in t)
    values = [json.dumps({"picture": form}).encode() for form in (text, written(text))]
    feed = with_picture().decode(*values)
    assert not feed.rejected
    assert np.array_equal(feed.arrays["photo"][0], feed.arrays["photo"][1])


LARGE = png_text(1700, 1800)
TEXTS = {"LARGE": LARGE, "ESCAPED": LARGE.replace("/", "\\/"), "SMALL": png_text(2, 3)}


@pytest.mark.parametrize(
    "record",
    [
        '{"picture": "LARGE"',
        '{"picture":"ESCAPED"}',
        '{"picture": "", "picture" : "LARGE"}',
        '{"before": {"picture": "SMALL"}, "picture": "LARGE"}',
        '{"picture": "SMALL", "\\u0070icture": "LARGE"}',
        '{"picture": "data:image/png;base64,LARGE"}',
    ],
)
def test_a_picture_in_json_states_what_its_decode_takes(record: str) -> None:
    """The cost of a JSON record is that of its picture's decode, however the text is written, broken or not."""
    for name, text in TEXTS.items():
        record = record.replace(name, text)
    assert with_picture().decoder.cost(record.encode()) >= 1700 * 1800 * 6


def test_many_large_records_are_decoded_like_few_small_ones() -> None:
    """Records beyond the size that is parsed together keep their order and their neighbours."""
    wide = 20_000
    rows = np.random.default_rng(0).normal(size=(12, wide)).round(6)
    values = [json.dumps({"features": row.tolist()}).encode() for row in rows]
    values[5] = b"nonsense"
    feed = model(shape=("N", wide)).decode(*values)
    good = [row for row in range(12) if row != 5]
    assert reasons(feed) == {5: "undecodable"}
    assert np.array_equal(feed.arrays["x"][good], rows[good].astype(np.float32))


def test_messages_never_hold_the_payload() -> None:
    """A dead letter's message says what and where, not the record's content."""
    secret = b'{"features": ["hunter2", 2]} hunter2'
    assert "hunter2" not in model().refusal(secret)[1]
    assert "hunter2" not in model().refusal(b'{"features": ["hunter2", 2]}')[1]


@pytest.mark.parametrize(
    ("inputs", "settings", "key"),
    [
        ({"x": ("float", ("N", 3))}, {"fields": ["a", "b"]}, "input.fields"),
        ({"x": ("float", ("N", 3))}, {"preprocess": {"image": {}}}, "preprocess.image"),
        (
            {"x": ("float", ("N", 3))},
            {"preprocess": {"numeric": {"mean": [1, 2]}}},
            "preprocess.numeric.mean",
        ),
        ({"x": ("int64", ("N", 3))}, {"preprocess": {"numeric": {"mean": 1}}}, "preprocess.numeric"),
        (
            {"x": ("float", ("N", 3))},
            {"preprocess": {"inputs": {"z": {"from": "value"}}}},
            "preprocess.inputs",
        ),
        (
            {"a": ("float", ("N", 1)), "b": ("float", ("N", 1))},
            {"fields": ["a", "b"]},
            "input.fields",
        ),
        (
            {"a": ("float", ("N", 1)), "b": ("float", ("N", 1))},
            {"preprocess": {"numeric": {"mean": 1}}},
            "preprocess.numeric",
        ),
        (
            {"x": ("float", ("N", 3, 8, 8))},
            {"preprocess": {"inputs": {"x": {"from": "value", "image": {}}}}},
            "preprocess.inputs.x.from",
        ),
    ],
)
def test_settings_that_cannot_fill_the_model_are_refused(inputs: Any, settings: Any, key: str) -> None:
    """A mismatch between configuration and model is one sentence that names the setting."""
    with pytest.raises(ConfigError, match=f"^{key}"):
        Decoding("json", inputs, **settings)
