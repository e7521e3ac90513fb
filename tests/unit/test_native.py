"""The compiled batch path: to the byte what Python gives, on any input, and never a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
import pytest
from decode_support import Decoding
from encode_support import batch_of, encode, make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from thorough import cases

from worker import native
from worker.batch import Array, Feed, Partition, largest_bytes, total_bytes
from worker.postprocess import rendering

records: Any = native.records
compiled = pytest.mark.skipif(records is None, reason=f"the batch path is {native.batch_path}")

any_float32 = st.floats(width=32)
dtypes = st.sampled_from([np.dtype(code) for code in "fde?bBhHiIlLqQ"])
any_array = dtypes.flatmap(lambda dtype: arrays(dtype, array_shapes(max_dims=4, max_side=4, min_side=0)))


def in_python(call: Any) -> Any:
    """What a call gives without the compiled path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "records", None)
        return call()


# -- the switch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"), [("0", "None python (STREAMINFER_NATIVE=0)"), ("", None), ("1", None)]
)
def test_the_environment_turns_it_off(value: str, expected: str | None) -> None:
    """STREAMINFER_NATIVE=0 turns the compiled batch path off; any other value changes nothing."""
    script = "from worker import native; print(native.records and 'module', native.batch_path)"
    environment = {**os.environ, native.SWITCH: value}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment
    )
    usual = f"{records and 'module'} {native.batch_path}"
    assert done.stdout.strip() == (expected or usual)


# -- numbers as text -----------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_written_as_python_does(dtype: Any) -> None:
    """The compiled writer gives floats of all magnitudes the same shortest text as Python."""
    random = np.random.default_rng(7)
    wide = random.integers(0, 256, 100_000 * np.dtype(dtype).itemsize, np.uint8).view(dtype)
    near = (random.random(100_000) * 10.0 ** random.integers(-12, 20, 100_000)).astype(dtype)
    borders = [
        sign * base * 10.0**power for power in range(-12, 25) for base in (1, 1.5, 9) for sign in (1, -1)
    ]
    special = [0.0, -0.0, np.nan, np.inf, -np.inf, np.finfo(dtype).tiny, np.finfo(dtype).max, 5e-324, 1e-45]
    values = np.concatenate([wide, near, np.array([*borders, *special], dtype)])
    assert rendering.items(values) == in_python(lambda: rendering.items(values))


@compiled
@settings(max_examples=cases(300), deadline=None)
@given(any_array, st.binary(max_size=3), st.binary(max_size=3))
def test_arrays_are_written_as_python_does(values: Array, before: bytes, after: bytes) -> None:
    """The compiled writer gives arrays of each dtype, shape and memory order the same text as Python."""
    for array in (values, values.T, values[::-1]):
        expected = in_python(lambda array=array: rendering.items(array, before, after))
        assert rendering.items(array, before, after) == expected


@compiled
@given(st.lists(st.one_of(st.none(), st.binary(max_size=9))))
def test_sizes_are_counted_as_python_does(column: list[bytes | None]) -> None:
    """The compiled code counts total and largest bytes of a column as Python does."""
    for count in (total_bytes, largest_bytes):
        assert count(column) == in_python(lambda count=count: count(column))
        assert count(tuple(column)) == count(column)


@compiled
@settings(deadline=None)
@given(any_array.filter(lambda a: a.size), st.binary(max_size=3))
def test_pieces_and_rows_are_the_arrays_own_bytes(values: Array, before: bytes) -> None:
    """An array is cut into its rows' own bytes and put together again from them; a row of another length stops the gathering."""
    values = np.ascontiguousarray(values)
    found = records.pieces(values, before)
    assert found == [before + row.tobytes() for row in values]
    again = np.zeros_like(values)
    bodies = [piece[len(before) :] for piece in found]
    assert records.gather(bodies, 0, len(values), again)
    assert again.tobytes() == values.tobytes()
    assert not records.gather([*bodies[:-1], bodies[-1] + b"x"], 0, len(values), again)
    assert not records.gather([*bodies[:-1], None], 0, len(values), again)


# -- results ---------------------------------------------------------------------------------------------

POSTPROCESS = st.one_of(
    st.builds(
        lambda top_k, threshold, activation: {
            "classification": {"top_k": top_k, "threshold": threshold, "activation": activation}
        },
        st.integers(1, 7),
        st.one_of(st.sampled_from([0.0, 0.25, 0.1, 1.0]), st.floats(0, 1)),
        st.sampled_from(["none", "softmax", "sigmoid"]),
    ),
    st.sampled_from(["regression", "raw", {"embedding": {"normalize": True}}, {"embedding": {}}]),
)
LABELS = st.one_of(st.none(), st.lists(st.text(max_size=4), min_size=5, max_size=5))
scores = st.sampled_from(["f", "d", "e", "i", "B"]).flatmap(
    lambda code: arrays(
        np.dtype(code),
        st.tuples(st.integers(1, 6), st.just(5)),
        elements=st.one_of(st.sampled_from([0.0, -0.0, 0.25, 0.5, 1.0, np.nan, np.inf]), st.floats(width=16))
        if code in "fde"
        else None,
    )
)
IDS = st.lists(
    st.one_of(
        st.none(),
        st.just([]),
        st.builds(
            lambda value: [("ce_id", value)], st.sampled_from([b"a", b'q"\\', b"\xff", b"", "ü".encode()])
        ),
    ),
    min_size=6,
    max_size=6,
)
PLACES = st.lists(
    st.builds(Partition, st.sampled_from(["digits", 'a"/ü']), st.integers(0, 3)), min_size=6, max_size=6
)
KINDS = {"f": "float", "d": "double", "e": "float16", "i": "int32", "B": "uint8"}


@compiled
@settings(max_examples=cases(400), deadline=None)
@given(scores, POSTPROCESS, LABELS, IDS, PLACES)
def test_results_are_written_as_python_does(
    values: Array, postprocess: Any, labels: Any, headers: Any, places: list[Partition]
) -> None:
    """The compiled path and Python write the same bodies, headers and rejections for each postprocess, whatever the scores, labels, ids and partitions."""
    rows = len(values)
    labels = labels if isinstance(postprocess, dict) and "classification" in postprocess else None
    encoder = make_encoder(
        {"y": (KINDS[values.dtype.char], ["N", 5])}, labels, postprocess=postprocess, headers="all"
    )

    def outcomes() -> Any:
        return encode(encoder, batch_of(rows, headers[:rows], partitions=places[:rows]), {"y": values})

    assert outcomes() == in_python(outcomes)


@compiled
@given(st.lists(st.integers(0, 2**53), min_size=1, max_size=5))
def test_latencies_are_written_as_python_does(broker_us: list[int]) -> None:
    """The compiled writer gives latencies from zero to three hundred years the same text as Python: milliseconds with at most three decimals."""
    rows = len(broker_us)
    stages = [(b',"latency_ms":{"broker":', np.array(broker_us)), (b',"queue":', broker_us[0])]
    ids = [b'"x"'] * rows
    place = Partition("t", 0)
    found = records.bodies(
        lambda _: (b"", b""), [place] * rows, [1] * rows, [2] * rows, ids, b"", [b""] * rows, stages
    )
    for body, us in zip(found, broker_us, strict=True):
        texts = (orjson.dumps(us / 1000), orjson.dumps(broker_us[0] / 1000))
        assert body.endswith(b'{"broker":%b,"queue":%b}}' % texts)


# -- records -----------------------------------------------------------------------------------------------

INPUTS = [
    Decoding("json", {"x": (kind, ["N", 2])}) for kind in ("float", "double", "int64", "uint64", "int8")
]
NUMBERS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda f: str(np.float32(f))),
    st.integers(-(2**70), 2**70).map(str),
    st.integers(-130, 300).map(str),
    st.decimals(allow_nan=False, allow_infinity=False, places=25).map(lambda d: f"{d:f}"),
    st.builds(
        lambda sign, whole, fraction, power: f"{sign}{whole}{fraction}{power}",
        st.sampled_from(["", "-", "+"]),
        st.from_regex(r"\A[0-9]{0,25}\Z"),
        st.one_of(st.just(""), st.from_regex(r"\A\.[0-9]{0,25}\Z")),
        st.one_of(st.just(""), st.from_regex(r"\A[eE][+-]?[0-9]{0,4}\Z")),
    ),
    st.sampled_from(
        ["NaN", "Infinity", "-Infinity", "0x10", "1_0", "-", "", "true", "null", '"1"', "[1]", "-0"]
    ),
)


def same_as_alone(decoding: Decoding, values: Sequence[bytes]) -> Feed:
    """What the compiled reader takes is bit by bit what Python makes of each record, and so is what it does not."""
    decoder: Any = decoding.decoder
    together = decoding.decode(*values)
    reader, joined = decoder.reader, decoder.joined
    decoder.reader = decoder.joined = None
    try:
        alone = [decoding.decode(value) for value in values]
    finally:
        decoder.reader, decoder.joined = reader, joined
    for row, feed in enumerate(alone):
        assert together.rejected.get(row) == feed.rejected.get(0)
        if not feed.rejected:
            for name, array in (feed.arrays or {}).items():
                assert (together.arrays or {})[name][row].tobytes() == array[0].tobytes(), values[row]
    return together


@compiled
@settings(max_examples=cases(1000), deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=4))
def test_numbers_are_read_to_the_last_bit(pairs: list[tuple[str, str]]) -> None:
    """The compiled reader makes of any spelling of a number what Python's parser and NumPy make of it, or refuses it as they do."""
    for decoding in INPUTS:
        same_as_alone(decoding, [f'{{"features": [{a},{b}]}}'.encode() for a, b in pairs])


@compiled
def test_floats_of_every_magnitude_are_read_to_the_last_bit() -> None:
    """The compiled reader reads a hundred thousand doubles of random bits in three spellings to the last bit."""
    random = np.random.default_rng(3)
    values = random.integers(0, 256, 8 * 100_000, np.uint8).view(np.float64)
    values = values[np.isfinite(values)]
    values = values[: len(values) // 2 * 2].reshape(-1, 2)
    decoding = INPUTS[1]
    for spelling in ("{!r}", "{:.20e}", "{:.16e}"):
        bodies = [
            f'{{"features":[{spelling.format(a)},{spelling.format(b)}]}}'.encode() for a, b in values.tolist()
        ]
        feed = decoding.decode(*bodies)
        assert not feed.rejected
        assert (feed.arrays or {})["x"].tobytes() == np.array(
            [json.loads(b)["features"] for b in bodies]
        ).tobytes()


WHITE = st.sampled_from(["", " ", "\n", "\t\r ", "\f", "\0"])
KEYS = st.one_of(
    st.sampled_from(
        ["features", "a", "", "feature\\u0073", "ü", "\\ud83d\\ude00", "\\ud800", '\\"', "\\x", "\x01"]
    ),
    st.text(max_size=3).map(lambda text: json.dumps(text, ensure_ascii=False)[1:-1]),
)
VALUES = st.recursive(
    st.one_of(
        NUMBERS,
        st.sampled_from(["true", "tru", "false", "null", "nul", "[1,2]", "[1.5, -2]", "{}", "[]", "1e999"]),
        KEYS.map(lambda text: f'"{text}"'),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]"),
        st.lists(st.tuples(KEYS, inner), max_size=2).map(
            lambda parts: "{" + ",".join(f'"{k}":{v}' for k, v in parts) + "}"
        ),
    ),
    max_leaves=5,
)
OBJECTS = st.builds(
    lambda fields, whites: (
        whites[0]
        + "{"
        + ",".join(f'{whites[1]}"{key}"{whites[2]}:{whites[3]}{value}{whites[4]}' for key, value in fields)
        + "}"
        + whites[5]
    ),
    st.lists(
        st.one_of(st.just(("features", "[1,2]")), st.tuples(KEYS, VALUES)),
        min_size=1,
        max_size=4,
        unique_by=str,
    ),
    st.lists(st.one_of(st.just(""), WHITE), min_size=6, max_size=6),
)
CUTS = st.one_of(st.just(None), st.integers(0, 60))


@compiled
@settings(max_examples=cases(1500), deadline=None)
@given(st.lists(st.tuples(OBJECTS, CUTS, st.sampled_from([b"", b"\xff", b"\xc3", b",", b"}"])), max_size=4))
def test_any_record_is_taken_or_refused_as_in_python(parts: list[tuple[str, int | None, bytes]]) -> None:
    """The compiled reader and Python give the same answer to a record with any keys, values, white space, escapes and depth, cut short or with something behind it."""
    values = [
        b'{"features":[3,4]}',
        *(text.encode(errors="replace")[:cut] + tail for text, cut, tail in parts),
    ]
    feed = same_as_alone(INPUTS[0], values)
    assert 0 not in feed.rejected


@compiled
@given(st.binary(max_size=40), st.integers(0, 45))
def test_any_bytes_in_a_record_are_taken_or_refused_as_in_python(noise: bytes, place: int) -> None:
    """The compiled reader and Python give the same answer to broken UTF-8 and control characters anywhere in a record."""
    good = '{"features":[1,2],"n":"ü","text":"\U0001f600 €"}'.encode()
    same_as_alone(INPUTS[0], [good[:place] + noise + good[place:], good[:place] + noise, good])


@compiled
def test_the_reader_takes_all_that_is_plain() -> None:
    """The compiled reader leaves nothing to Python for any key order, other fields, spaces and spellings of numbers."""
    reader = INPUTS[0].decoder.reader  # type: ignore[attr-defined]
    values = [
        b'{"features":[1,2]}',
        b' {"a": {"b": [1, "x\\n\\"", {}, []]}, "features" : [ 1.0 , 2e0 ] , "c": null} ',
        '{"ü":"€","features":[1,20e-1]}'.encode(),
    ]
    slot = np.zeros((3, 2), np.float32)
    assert reader.read(values, 0, 3, [slot]) == []
    assert slot.tolist() == [[1, 2]] * 3


@compiled
def test_a_record_that_is_left_over_leaves_nothing_behind() -> None:
    """The compiled reader leaves zeros in the row of a record that it leaves to Python."""
    reader = INPUTS[0].decoder.reader  # type: ignore[attr-defined]
    slot = np.full((4, 2), np.nan, np.float32)
    assert reader.read([b"{}", b'{"features":[5,6', None, b'{"features":[7,8]}'], 0, 4, [slot]) == [0, 1, 2]
    assert slot.tolist() == [[0, 0]] * 3 + [[7, 8]]


@compiled
def test_rows_are_read_side_by_side() -> None:
    """Threads that read different rows of one batch with the compiled reader do not disturb each other."""
    values = [b'{"features":[%d,%d]}' % (row, -row) for row in range(4000)]
    slot = np.zeros((4000, 2), np.float32)
    reader = INPUTS[0].decoder.reader  # type: ignore[attr-defined]
    threads = [
        threading.Thread(target=reader.read, args=(values, start, start + 500, [slot]))
        for start in range(0, 4000, 500)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slot.tolist() == [[row, -row] for row in range(4000)]


# -- misuse ------------------------------------------------------------------------------------------------


@compiled
@pytest.mark.parametrize(
    "call",
    [
        lambda r: r.Reader([(b"x", 0, 0, 3, True, False)], [("f", 4, 2)]),
        lambda r: r.Reader([(b"x", 1, 0, 1, True, False)], [("f", 4, 2)]),
        lambda r: r.Reader([(b"x", 0, -1, 1, True, False)], [("f", 4, 2)]),
        lambda r: r.Reader([(b"x", 0, 0, 2, True, True)], [("f", 4, 2)]),
        lambda r: r.Reader([(b"x", 0, 0, 2, True, False)], [("f", 4, 2)], [(0, b"x")]),
        lambda r: r.Reader([(b"x", 0, 0, 2, True, False)], [("f", 4, 2)], [(b"x", -1)]),
        lambda r: r.Reader([(b"x", 0, 0, 2, True, False)], [("f", 4, 2)], [b"x"]),
        lambda r: r.Reader([(b"x", 0, 0, 2, True, False)], [("f", 4, 2)], ()),
        lambda r: reader(r).read([b"{}"], 0, 2, [np.zeros((2, 2), np.float32)]),
        lambda r: reader(r).read([b"{}"], -1, 1, [np.zeros((2, 2), np.float32)]),
        lambda r: reader(r).read([b"{}"], 0, 1, [np.zeros((1, 1), np.float32)]),
        lambda r: reader(r).read([b"{}"], 0, 1, [np.zeros((1, 2), np.float64)]),
        lambda r: reader(r).read([b"{}"], 0, 1, [np.zeros((2, 2), np.float32).T[:1]]),
        lambda r: reader(r).read([b"{}"], 0, 1, []),
        lambda r: reader(r).read((b"{}",), 0, 1, [np.zeros((1, 2), np.float32)]),
        lambda r: r.items(np.zeros(2, ">f4"), b"", b""),
        lambda r: r.items(np.zeros(2, "M8[s]"), b"", b""),
        lambda r: r.items(np.zeros((), np.float32), b"", b""),
        lambda r: r.items(np.zeros(2, np.float32), "", b""),
        lambda r: r.top(np.zeros((2, 3), np.float32), [b""] * 2, 1, 0.0),
        lambda r: r.top(np.zeros((2, 3), np.float32), [b""] * 3, 4, 0.0),
        lambda r: r.top(np.zeros((2, 3), np.float32), [b""] * 3, 0, 0.0),
        lambda r: r.top(np.zeros((2, 3), np.int32), [b""] * 3, 1, 0.0),
        lambda r: r.top(np.zeros((2, 3), np.float32), ["a"] * 3, 1, 0.0),
        lambda r: r.extent((b"a",)),
        lambda r: r.extent([3]),
        lambda r: r.pieces(np.zeros(()), b""),
        lambda r: r.pieces(np.zeros((2, 2)).T[:1], b""),
        lambda r: r.gather([b"1234"], 0, 2, np.zeros(2, np.float32)),
        lambda r: r.gather([b"1234"] * 3, 0, 3, np.zeros(2, np.float32)),
        lambda r: r.gather([b"1234"], -1, 1, np.zeros(2, np.float32)),
        lambda r: body(r, offsets=[]),
        lambda r: body(r, offsets=[2**63]),
        lambda r: body(r, offsets=["1"]),
        lambda r: body(r, stages=[(b"x", np.zeros(2, np.int64))]),
        lambda r: body(r, stages=[(b"x", np.zeros(1, np.float64))]),
        lambda r: body(r, stages=[(b"x", None)]),
        lambda r: body(r, ids=[3]),
        lambda r: body(r, head=lambda _: (b"",)),
        lambda r: body(r, head=lambda _: ("", "")),
        lambda r: r.bodies(),
    ],
)
def test_what_does_not_fit_raises(call: Any) -> None:
    """A caller's mistake is an exception of the compiled code, never a read or write beside an array."""
    with pytest.raises((TypeError, ValueError, IndexError, OverflowError)):
        call(records)


def reader(compiled_records: Any) -> Any:
    return compiled_records.Reader([(b"x", 0, 0, 2, True, False)], [("f", 4, 2)])


def body(compiled_records: Any, **changed: Any) -> Any:
    usual: dict[str, Any] = {
        "head": lambda _: (b"", b""),
        "partitions": [Partition("t", 0)],
        "offsets": [1],
        "timestamps_ms": [2],
        "ids": None,
        "model": b"",
        "predictions": [b"1"],
        "stages": [],
    }
    return compiled_records.bodies(*{**usual, **changed}.values())
