"""Open Inference Protocol requests -> arrays."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
import structlog
from decode_support import Decoding, reasons
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

DATATYPES = {
    "float": ("FP32", "float32"),
    "double": ("FP64", "float64"),
    "float16": ("FP16", "float16"),
    "bool": ("BOOL", "bool"),
} | {
    f"{sign}int{bits}": (f"{sign}int{bits}".upper(), f"{sign}int{bits}")
    for sign in ("", "u")
    for bits in (8, 16, 32, 64)
}


def model(kind: str = "float", shape: Any = ("N", 2), **settings: Any) -> Decoding:
    return Decoding("oip", {"x": (kind, shape)}, **settings)


def tensor(
    data: Any = (1, 2), shape: Any = (1, 2), datatype: Any = "FP32", name: Any = "x", **more: Any
) -> Any:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data, **more}


def request(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": inputs or [tensor()], **more}).encode()


def binary(body: Any, *blobs: bytes, header: str = "inference-header-content-length") -> tuple[bytes, Any]:
    """(value, headers) of a request with binary tensors behind its JSON."""
    text = json.dumps(body).encode()
    return text + b"".join(blobs), [(header, str(len(text)).encode())]


def blob(size: Any, shape: Any = (1, 2), datatype: str = "FP32", name: str = "x") -> Any:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def test_a_json_request_holds_its_items() -> None:
    """Data may be flat or nested, row-major; the first dimension is the number of items."""
    decoding = model()
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        item = decoding.decode(request(tensor(data, (2, 2)))).items[0]
        assert item.arrays["x"].tolist() == [[1, 2], [3, 4]]
        assert (item.count, item.single) == (2, False)


def test_a_parameter_without_effect_is_told_once() -> None:
    """The log names each such parameter once, however many requests have it; the requests are answered."""
    decoding = model()
    with structlog.testing.capture_logs() as logs:
        for parameters in ({"priority": 1, "mine": 2}, {"priority": 2, "timeout": 3}, {"timeout": 1}):
            assert decoding.decode(request(parameters=parameters)).items[0] is not None
    assert [entry["parameter"] for entry in logs] == ["priority", "timeout"]


@pytest.mark.parametrize("kind", DATATYPES)
@given(data=st.data())
def test_binary_tensors_round_trip(kind: str, data: Any) -> None:
    """Every datatype arrives bit for bit from the binary part."""
    datatype, dtype = DATATYPES[kind]
    array = data.draw(arrays_of.arrays(dtype, (2, 3)))
    raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
    value, headers = binary({"inputs": [blob(len(raw), (2, 3), datatype)]}, raw)
    item = model(kind, ("N", 3)).item(value, headers)
    assert item.dtype == array.dtype
    assert item.flags.aligned
    assert item.tobytes() == array.tobytes()


@pytest.mark.parametrize("kind", [kind for kind in DATATYPES if kind != "float16"])
@given(data=st.data())
def test_json_tensors_round_trip(kind: str, data: Any) -> None:
    """Every datatype but FP16 arrives exactly from JSON, 64-bit integers included."""
    datatype, dtype = DATATYPES[kind]
    finite = {"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else {}
    array = data.draw(arrays_of.arrays(dtype, (2, 3), elements=finite))
    item = model(kind, ("N", 3)).item(request(tensor(array.tolist(), (2, 3), datatype)))
    assert np.array_equal(item, array)


@given(st.lists(st.text(), min_size=2, max_size=2))
def test_strings_round_trip_both_ways(strings: list[str]) -> None:
    """BYTES are strings in JSON, and 4-byte little-endian length and UTF-8 in binary."""
    strings = [s.encode("utf-8", "replace").decode() for s in strings]
    decoding = model("string")
    assert decoding.item(request(tensor(strings, datatype="BYTES"))).tolist() == [strings]
    raw = b"".join(struct.pack("<I", len(s.encode())) + s.encode() for s in strings)
    value, headers = binary({"inputs": [blob(len(raw), datatype="BYTES")]}, raw)
    assert decoding.item(value, headers).tolist() == [strings]


def test_several_inputs_come_in_the_requests_order() -> None:
    """Binary tensors follow in the request's order, mixed with JSON ones; arrays come in the model's."""
    decoding = Decoding("oip", {"a": ("float", ("N", 2)), "b": ("int64", ("N", 1)), "c": ("bool", ("N",))})
    value, headers = binary(
        {"inputs": [blob(8, (1, 1), "INT64", "b"), tensor([True], [1], "BOOL", "c"), blob(8, name="a")]},
        np.int64(7).tobytes(),
        np.array([1, 2], np.float32).tobytes(),
        header="Inference-Header-Content-Length",
    )
    item = decoding.decode(value, headers=[headers]).items[0]
    assert list(item.arrays) == ["a", "b", "c"]
    assert {name: array.tolist() for name, array in item.arrays.items()} == {
        "a": [[1, 2]],
        "b": [[7]],
        "c": [True],
    }


def test_a_model_that_is_not_batchable_gets_the_requests_own_shapes() -> None:
    """There the first dimension is no number of items, and inputs need not share it."""
    decoding = Decoding("oip", {"a": ("float", (3, "T")), "b": ("float", ())}, batchable=False)
    item = decoding.decode(request(tensor([1, 2, 3], [3, 1], name="a"), tensor([5], [], name="b"))).items[0]
    assert item.count == 1
    assert item.arrays["a"].shape == (3, 1)
    assert item.arrays["b"].shape == ()


def test_what_the_request_asks_of_its_answer_is_kept() -> None:
    """id, the selection and order of outputs, and which of them go out binary."""
    decoding = model(outputs=("y", "z"))
    outputs = [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}]
    value = request(id=" ü1 ", outputs=outputs, parameters={"binary_data_output": True, "other": 1})
    asked = decoding.decode(value).items[0].request
    assert (asked.id, asked.outputs, asked.binary) == (" ü1 ", ["z", "y"], True)
    assert asked.binary_outputs == {"z": False}
    plain = decoding.decode(request()).items[0].request
    assert (plain.id, plain.outputs, plain.binary) == (None, None, False)


TWO = {"a": ("float", ("N", 1)), "b": ("float", ("N", 1))}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "undecodable"),
        (b"nonsense", "undecodable"),
        (request() + b"\0\0\0\0", "undecodable"),
        (b"[" * 100_000, "undecodable"),
        (b"[]", "invalid"),
        (b"{}", "invalid"),
        (b'{"inputs": {}}', "invalid"),
        (b'{"inputs": []}', "invalid"),
        (request(5), "invalid"),
        (request({}), "invalid"),
        (request(tensor(name="z")), "invalid"),
        (request(tensor(), tensor()), "invalid"),
        (request(tensor(), tensor(name="z")), "invalid"),
        (request(tensor(datatype="FP64")), "invalid"),
        (request(tensor(datatype=None)), "invalid"),
        (request(tensor(shape=None)), "invalid"),
        (request(tensor(shape=(2,))), "invalid"),
        (request(tensor(shape=(1, 3))), "invalid"),
        (request(tensor(shape=(-1, 2))), "invalid"),
        (request(tensor(shape=(1, 2.0))), "invalid"),
        (request(tensor(shape=(True, 2))), "invalid"),
        (request(tensor(shape=(2, 2))), "invalid"),
        (request(tensor([], (0, 2))), "invalid"),
        (request(tensor(shape=(10**18, 2))), "invalid"),
        (request(tensor([1])), "invalid"),
        (request(tensor([1, 2, 3])), "invalid"),
        (request(tensor([1, True])), "invalid"),
        (request(tensor([1, "2"])), "invalid"),
        (request(tensor([1, None])), "invalid"),
        (request(tensor([1, 1e39])), "invalid"),
        (request(tensor([[1], [2]])), "invalid"),
        (request(tensor([[1, 2, 3], [4]], (2, 2))), "invalid"),
        (request(tensor("12")), "invalid"),
        (request({"name": "x", "datatype": "FP32", "shape": [1, 2]}), "invalid"),
        (request(blob(8)), "invalid"),
        (request(tensor(parameters=[])), "invalid"),
        (request(id=5), "invalid"),
        (request(parameters=[]), "invalid"),
        (request(parameters={"binary_data_output": 1}), "invalid"),
        (request(outputs={}), "invalid"),
        (request(outputs=[{"name": "z"}]), "invalid"),
        (request(outputs=[{"name": "y"}, {"name": "y"}]), "invalid"),
        (request(outputs=[{"name": "y", "parameters": {"binary_data": 1}}]), "invalid"),
    ],
)
def test_a_bad_request_is_refused_alone(value: bytes, reason: str) -> None:
    """What is not JSON is undecodable, what does not fit the model is invalid, and only that record pays."""
    assert reasons(model().decode(request(), value, request())) == {1: reason}


def test_all_inputs_share_the_number_of_items() -> None:
    """Different first dimensions for a batchable model, or a missing input, are invalid."""
    decoding = Decoding("oip", TWO)
    a, b = tensor([1], (1, 1), name="a"), tensor([1, 2], (2, 1), name="b")
    assert decoding.refusal(request(a, b))[0] == "invalid"
    assert '"b"' in decoding.refusal(request(a))[1]


@pytest.mark.parametrize("datatype", ["INT8", "UINT64", "INT64"])
def test_json_integers_are_never_wrapped_or_cut(datatype: str) -> None:
    """One beyond the range and fractions are invalid; a JSON number for a BOOL too."""
    limits = np.iinfo(datatype.lower())
    decoding = model(datatype.lower())
    for bad in (limits.min - 1, limits.max + 1, 1.5, True):
        assert decoding.refusal(request(tensor([0, bad], datatype=datatype)))[0] == "invalid"
    assert model("bool").refusal(request(tensor([0, 1], datatype="BOOL")))[0] == "invalid"


def test_half_floats_are_binary_only() -> None:
    """FP16 has no JSON form."""
    assert model("float16").refusal(request(tensor(datatype="FP16")))[0] == "invalid"


DATA = np.array([1, 2], np.float32).tobytes()


@pytest.mark.parametrize(
    ("size", "data"),
    [
        (8, DATA + b"\0"),
        (8, DATA[:7]),
        (9, DATA + b"\0"),
        (4, DATA[:4]),
        (-1, DATA),
        ("8", DATA),
        (True, DATA),
        (0, b""),
    ],
)
def test_binary_sizes_end_exactly_at_the_records_end(size: Any, data: bytes) -> None:
    """Each size is the tensor's own, and together they are the rest of the record."""
    value, headers = binary({"inputs": [blob(size)]}, data)
    assert model().refusal(value, headers)[0] == "invalid"


@pytest.mark.parametrize(
    "length", [b"", b"abc", b"-1", b"1e1", b" 9", "٣".encode(), b"9" * 5000, b"999", None]
)
def test_a_length_header_that_makes_no_sense_is_invalid(length: bytes | None) -> None:
    """Not a decimal number, or beyond the record."""
    assert model().refusal(request(), [("inference-header-content-length", length)])[0] == "invalid"


def test_a_length_that_cuts_the_json_is_undecodable() -> None:
    """The part that should be JSON is not."""
    assert model().refusal(request(), [("inference-header-content-length", b"5")])[0] == "undecodable"


@pytest.mark.parametrize(
    ("kind", "datatype", "raw"),
    [
        ("bool", "BOOL", b"\0\2"),
        ("string", "BYTES", b"\1\0\0\0a"),
        ("string", "BYTES", b"\1\0\0\0a\5\0\0\0b"),
        ("string", "BYTES", b"\1\0\0\0a\1\0\0"),
        ("string", "BYTES", b"\1\0\0\0a\1\0\0\0\xff"),
        ("string", "BYTES", b"\0\0\0\0" * 3),
    ],
)
def test_binary_content_that_is_not_of_its_datatype_is_invalid(kind: str, datatype: str, raw: bytes) -> None:
    """Booleans other than 0 and 1, strings cut short, too many or not UTF-8."""
    value, headers = binary({"inputs": [blob(len(raw), datatype=datatype)]}, raw)
    assert model(kind).refusal(value, headers)[0] == "invalid"


def test_a_tensor_is_given_once() -> None:
    """data and binary_data_size together are invalid."""
    both = tensor(parameters={"binary_data_size": 8})
    value, headers = binary({"inputs": [both]}, DATA)
    assert model().refusal(value, headers)[0] == "invalid"


# -- bodies without JSON ---------------------------------------------------------------------------------


def raw(value: bytes, kind: str = "float", shape: Any = ("N", 2), **more: Any) -> Any:
    return model(kind, shape, **more).decode(value, headers=[[("Inference-Header-Content-Length", b"0")]])


@pytest.mark.parametrize(
    ("shape", "batchable", "expected"),
    [
        (("N", 2), True, (3, 2)),
        (("N", "T"), True, (1, 6)),
        (("N", 3, "T"), True, (1, 3, 2)),
        ((2, "T"), False, (2, 3)),
        ((2, 3), False, (2, 3)),
    ],
)
def test_a_value_without_json_is_the_models_only_input(shape: Any, batchable: bool, expected: Any) -> None:
    """With a JSON length of 0 the value is the only input; items of a known shape may be several, or one length free."""
    feed = raw(struct.pack("<6f", *range(6)), shape=shape, batchable=batchable)
    item = feed.items[0]
    assert item.arrays["x"].shape == expected
    assert item.arrays["x"].ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert item.count == (expected[0] if batchable else 1)
    assert item.request.binary


def test_a_text_without_json_is_one_element() -> None:
    """With a JSON length of 0 the value of a model of texts is one text."""
    assert raw("é".encode(), "string", ("N", 1)).items[0].arrays["x"].tolist() == [["é"]]
    assert raw(b"a", "string", ("N",)).items[0].arrays["x"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("value", "kind", "shape"),
    [
        (b"", "float", ("N", 2)),
        (b"\0" * 7, "float", ("N", 2)),
        (b"\0" * 12, "float", ("N", 2)),
        (b"\0" * 8, "float", ("N", "T", "S")),
        (b"\2\0", "bool", ("N", 2)),
        (b"\xff", "string", ("N", 1)),
        (b"a", "string", ("N", 2)),
    ],
)
def test_a_value_without_json_of_another_length_is_invalid(value: bytes, kind: str, shape: Any) -> None:
    """A value that fits no shape of the model's only input is invalid."""
    assert reasons(raw(value, kind, shape)) == {0: "invalid"}


def test_a_value_without_json_needs_a_model_of_one_input() -> None:
    """A value without JSON cannot feed a model of several inputs."""
    two = Decoding("oip", {"x": ("float", ("N", 2)), "y": ("float", ("N", 2))})
    feed = two.decode(b"\0" * 16, headers=[[("inference-header-content-length", b"0")]])
    assert "one model input, the model has 2" in feed.rejected[0].message


def test_a_wish_for_classes_is_refused_not_ignored() -> None:
    """A request that asks for classes instead of an output's tensor is refused with a sentence."""
    value = request(outputs=[{"name": "y", "parameters": {"classification": 3}}])
    reason, message = model().refusal(value)
    assert (reason, "classification" in message) == ("invalid", True)


def test_a_tensor_of_no_elements_cannot_stand_for_many_items() -> None:
    """A shape with a zero and a large dimension is invalid: its answers would take memory that no byte pays for."""
    assert model(shape=("N", "T")).refusal(request(tensor([], (10**9, 0))))[0] == "invalid"
