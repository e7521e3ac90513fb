"""Raw tensors, .npy files and own formats -> arrays."""

from __future__ import annotations

import io
import struct
import sys
from typing import Any

import numpy as np
import pytest
from decode_support import Decoding, reasons
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from worker.errors import ConfigError, Reject

pytestmark = pytest.mark.usefixtures("both_batch_paths")

KINDS = {"float": "float32", "double": "float64", "float16": "float16"}
NUMBERS = [
    "float",
    "double",
    "float16",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
]


def npy(array: Any, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asanyarray(array), version)
    return file.getvalue()


def header(text: str, data: bytes = b"", version: int = 1) -> bytes:
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + data


# -- tensor


@pytest.mark.parametrize("kind", NUMBERS)
def test_tensor_bytes_are_the_item(kind: str) -> None:
    """Little-endian C-order bytes arrive as they are, in a batch and alone, small and large."""
    dtype = np.dtype(KINDS.get(kind, kind))
    for width in (3, 20_000):
        items = np.random.default_rng(0).integers(0, 100, (4, 2, width)).astype(dtype)
        decoding = Decoding("tensor", {"x": (kind, ("N", 2, width))})
        values = [item.astype(dtype.newbyteorder("<")).tobytes() for item in items]
        assert np.array_equal(decoding.decode(*values).arrays["x"], items)
        assert np.array_equal(decoding.item(values[0]), items[0])


def test_tensor_of_another_length_is_invalid_alone() -> None:
    """Exact length or invalid, the empty record included; the neighbours are answered."""
    decoding = Decoding("tensor", {"x": ("float", ("N", 2))})
    feed = decoding.decode(b"\0" * 8, b"\0" * 7, b"", b"\0" * 16, b"\0" * 8)
    assert reasons(feed) == {1: "invalid", 2: "invalid", 3: "invalid"}
    assert (feed.arrays["x"][[0, 4]] == 0).all()


def test_tensor_booleans_are_zero_or_one() -> None:
    """Any other byte is invalid."""
    decoding = Decoding("tensor", {"x": ("bool", ("N", 2))})
    assert decoding.item(b"\0\1").tolist() == [False, True]
    assert decoding.refusal(b"\0\2")[0] == "invalid"


@pytest.mark.parametrize("inputs", [{"x": ("float", ("N", "T"))}, {"x": ("string", ("N", 2))}])
def test_tensor_needs_a_known_number_of_bytes(inputs: Any) -> None:
    """Free dimensions and strings are refused at start."""
    with pytest.raises(ConfigError, match=r"^input\.format"):
        Decoding("tensor", inputs)


@pytest.mark.parametrize("name", ["tensor", "npy"])
def test_one_array_feeds_one_input(name: str) -> None:
    """A model with two inputs, or with none, is refused at start."""
    with pytest.raises(ConfigError, match=r"^input\.format"):
        Decoding(name, {"a": ("float", ("N", 2)), "b": ("float", ("N", 2))})
    with pytest.raises(
        ConfigError, match=rf"^input\.format: {name} feeds one model input, the model has none"
    ):
        Decoding(name, {})


# -- npy


@given(
    arrays_of.arrays(
        st.sampled_from(["<f4", ">f4"]),
        st.tuples(st.integers(1, 3), st.integers(1, 3)),
    ),
    st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    st.booleans(),
)
def test_npy_round_trip(array: Any, version: tuple[int, int], fortran: bool) -> None:
    """Versions 1 to 3, both byte orders and both memory orders give the array that was saved."""
    decoding = Decoding("npy", {"x": ("float", ("N", "H", "W"))})
    item = decoding.item(npy(np.asfortranarray(array) if fortran else array, version))
    assert item.dtype == np.float32
    assert item.flags.c_contiguous
    assert item.flags.aligned
    assert np.array_equal(item, array[None].astype(np.float32), equal_nan=True)


def test_npy_is_an_item_or_several() -> None:
    """With the item's shape it is one item, with the model's full rank as many as its first dimension says."""
    decoding = Decoding("npy", {"x": ("int64", ("N", 3))})
    feed = decoding.decode(
        npy(np.arange(3)), npy(np.arange(6).reshape(2, 3)), npy(np.arange(3).reshape(1, 3))
    )
    assert [(item.count, item.single, item.arrays["x"].shape) for item in feed.items] == [
        (1, True, (1, 3)),
        (2, False, (2, 3)),
        (1, False, (1, 3)),
    ]
    alone = Decoding("npy", {"x": ("int64", (2, 3))}, batchable=False)
    assert alone.decode(npy(np.arange(6).reshape(2, 3))).items[0].count == 1
    assert alone.refusal(npy(np.arange(9).reshape(3, 3)))[0] == "invalid"


def test_npy_strings_become_python_strings() -> None:
    """A string model takes unicode arrays."""
    item = Decoding("npy", {"x": ("string", ("N", 2))}).item(npy(np.array(["a", "üü"])))
    assert item.dtype == object
    assert item.tolist() == [["a", "üü"]]


GOOD = npy(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "undecodable"),
        (b"\x93NUMPY", "undecodable"),
        (b"nonsense" * 20, "undecodable"),
        (GOOD[:6] + b"\4" + GOOD[7:], "undecodable"),
        (GOOD[:60], "undecodable"),
        (GOOD[:-1], "undecodable"),
        (GOOD + b"\0", "undecodable"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}", b"\0"), "undecodable"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"), "undecodable"),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}", b"\0" * 4), "undecodable"),
        (header("{'descr': '<f4', 'shape': (3,)}", b"\0" * 12), "undecodable"),
        (header("__import__('os').abort()"), "undecodable"),
        (header("(" * 5000), "undecodable"),
        (header("9" * 9000), "undecodable"),
        (header(" " * 20_000, version=2), "undecodable"),
        (header("{'descr': '<U0', 'fortran_order': False, 'shape': (1000000000000,)}"), "invalid"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", b"\x80\x04N."), "invalid"),
        (header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (3,)}", b"\0" * 12), "invalid"),
        (npy(np.zeros(3, np.float64)), "invalid"),
        (npy(np.zeros(3, np.int32)), "invalid"),
        (npy(np.zeros(4, np.float32)), "invalid"),
        (npy(np.zeros((0, 3), np.float32)), "invalid"),
        (npy(np.zeros((1, 1, 3), np.float32)), "invalid"),
        (npy(np.float32(1)), "invalid"),
    ],
)
def test_npy_that_is_broken_or_does_not_fit_is_refused(value: bytes, reason: str) -> None:
    """Nothing is unpickled or allocated on a header's word; only that record pays."""
    feed = Decoding("npy", {"x": ("float", ("N", 3))}).decode(GOOD, value, GOOD)
    assert reasons(feed) == {1: reason}


def test_npy_booleans_are_zero_or_one() -> None:
    """As in a raw tensor, in C and in Fortran order."""
    decoding = Decoding("npy", {"x": ("bool", ("N", 2))})
    good = npy(np.asfortranarray([[True, False], [False, False]]))
    assert decoding.item(good).tolist() == [[True, False], [False, False]]
    assert decoding.refusal(good[:-1] + b"\2")[0] == "invalid"


# -- own code


def own(monkeypatch: pytest.MonkeyPatch, function: Any, **inputs: Any) -> Decoding:
    monkeypatch.setattr(sys.modules[__name__], "own_format", function, raising=False)
    return Decoding(f"{__name__}:own_format", inputs or {"x": ("float", ("N", 2))})


def test_own_code_makes_an_item_per_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets value and headers; lists and narrower numbers become the model's dtype."""

    def function(value: bytes, headers: Any) -> Any:
        return {"x": [len(value), float(dict(headers)["n"])]}

    assert own(monkeypatch, function).item(b"abc", [("n", b"7")]).tolist() == [3, 7]
    free = own(
        monkeypatch, lambda value, headers: {"x": np.frombuffer(value, np.uint8)}, x=("float", ("N", "T"))
    )
    assert free.item(b"\1\2\3").tolist() == [[1, 2, 3]]


def test_own_code_says_why_or_is_undecodable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Reject keeps its reason and its words; any other exception means the bytes could not be read."""

    def function(value: bytes, headers: Any) -> Any:
        if value == b"bad":
            raise Reject("I do not like it")
        return {"x": [1 / len(value), 0]}

    feed = own(monkeypatch, function).decode(b"bad", b"", b"a")
    assert reasons(feed) == {0: "invalid", 1: "undecodable"}
    assert feed.rejected[0].message == "I do not like it"
    assert feed.rejected[0].class_name.endswith("function")


@pytest.mark.parametrize(
    "result",
    [
        None,
        [1, 2],
        {},
        {"y": [1, 2]},
        {"x": [1, 2], "y": 1},
        {"x": [1, 2, 3]},
        {"x": [[1, 2]]},
        {"x": ["a", "b"]},
    ],
)
def test_own_code_that_does_not_fit_the_model_is_invalid(
    monkeypatch: pytest.MonkeyPatch, result: Any
) -> None:
    """Names, shapes and dtypes must be the model's."""
    assert own(monkeypatch, lambda value, headers: result).refusal(b"")[0] == "invalid"


def test_own_integers_never_wrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """An integer out of the model's range is invalid, a float for an integer model too."""
    for values in ([300, 0], [-1, 0], [0.5, 0]):
        decoding = own(monkeypatch, lambda value, headers, v=values: {"x": v}, x=("uint8", ("N", 2)))
        assert decoding.refusal(b"")[0] == "invalid"
