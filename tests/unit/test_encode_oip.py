"""Open Inference Protocol responses, read back as a client would."""

from __future__ import annotations

import json
import struct
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from encode_support import batch_of, encode, make_encoder, make_envelope, request_item

from worker.batch import Outcomes

pytestmark = pytest.mark.usefixtures("both_batch_paths")

MODEL = {
    "y": ("float", ["N", 2]),
    "half": ("float16", ["N", 2]),
    "big": ("uint64", ["N"]),
    "flag": ("bool", ["N"]),
    "word": ("string", ["N"]),
}
OUTPUTS = {
    "y": np.array([[0.1, 2], [3, 4]], np.float32),
    "half": np.array([[0.5, 1], [1.5, 2]], np.float16),
    "big": np.array([2**64 - 1, 0], np.uint64),
    "flag": np.array([True, False]),
    "word": np.array(["ja", "né"], object),
}


def answer(batch: Any, outputs: Any = OUTPUTS, model: Any = MODEL, **settings: Any) -> Outcomes:
    batchable = settings.pop("batchable", True)
    encoder = make_encoder(model, batchable=batchable, format="oip", **settings)
    return encode(encoder, batch, outputs, alone=not batchable)


def headers_of(outcomes: Outcomes, row: int) -> dict[str, bytes | None]:
    assert outcomes.headers is not None
    found = outcomes.headers[row] or []
    assert len(dict(found)) == len(found), "no header twice"
    return dict(found)


def response(outcomes: Outcomes, row: int) -> tuple[Any, bytes]:
    """The JSON part and the bytes behind it, split by the header where there is one."""
    body = outcomes.bodies[row]
    assert body is not None
    length = headers_of(outcomes, row).get("inference-header-content-length")
    cut = int(length) if length else len(body)
    return json.loads(body[:cut]), body[cut:]


def test_a_json_response_names_the_model_the_request_and_the_source() -> None:
    """Keys, order, flat data and content type are as the protocol and the contract say."""
    model = {"y": MODEL["y"], "flag": MODEL["flag"], "word": MODEL["word"], "big": MODEL["big"]}
    outcomes = answer(batch_of(1, items=[request_item(count=2, id="r-1")]), model=model)
    found, rest = response(outcomes, 0)
    assert json.dumps(found) == json.dumps(
        {
            "model_name": "digits",
            "model_version": "3f9c2a71",
            "id": "r-1",
            "outputs": [
                {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [0.1, 2.0, 3.0, 4.0]},
                {"name": "flag", "datatype": "BOOL", "shape": [2], "data": [True, False]},
                {"name": "word", "datatype": "BYTES", "shape": [2], "data": ["ja", "né"]},
                {"name": "big", "datatype": "UINT64", "shape": [2], "data": [2**64 - 1, 0]},
            ],
            "parameters": {"source": "digits/3/1042"},
        }
    )
    assert rest == b""
    assert headers_of(outcomes, 0) == {"content-type": b"application/json"}


def test_records_of_different_counts_get_their_own_items() -> None:
    """The outputs of one run are divided among its records by their item counts."""
    batch = batch_of(2, items=[request_item(count=1), request_item(count=2)])
    y = np.arange(6, dtype=np.float32).reshape(3, 2)
    outcomes = answer(batch, {"y": y}, {"y": MODEL["y"]})
    assert [response(outcomes, row)[0]["outputs"][0]["shape"] for row in (0, 1)] == [[1, 2], [2, 2]]
    assert [response(outcomes, row)[0]["outputs"][0]["data"] for row in (0, 1)] == [[0, 1], [2, 3, 4, 5]]


def test_a_binary_response_carries_the_tensors_behind_the_json() -> None:
    """Binary outputs are little-endian with their sizes, strings have 4-byte lengths, and a header gives the length of the JSON part."""
    outcomes = answer(batch_of(1, items=[request_item(count=2, binary=True)]))
    found, rest = response(outcomes, 0)
    sizes = [output["parameters"]["binary_data_size"] for output in found["outputs"]]
    assert not any("data" in output for output in found["outputs"])
    assert sum(sizes) == len(rest)
    word = struct.pack("<I", 2) + b"ja" + struct.pack("<I", 3) + "né".encode()
    expected = [OUTPUTS[name].tobytes() for name in ("y", "half", "big", "flag")] + [word]
    assert rest == b"".join(expected)
    assert sizes == [len(part) for part in expected]
    assert headers_of(outcomes, 0)["content-type"] == b"application/octet-stream"


def test_outputs_are_chosen_ordered_and_encoded_one_by_one() -> None:
    """`outputs` of a request selects and orders the outputs; `binary_data` of an output wins over the request's."""
    item = request_item(count=2, outputs=["flag", "y"], binary=True, binary_outputs={"flag": False})
    found, rest = response(answer(batch_of(1, items=[item])), 0)
    assert [(o["name"], "data" in o) for o in found["outputs"]] == [("flag", True), ("y", False)]
    assert rest == OUTPUTS["y"].tobytes()


def test_fp16_is_binary_even_in_a_json_answer() -> None:
    """An FP16 output is always binary, because the protocol has no JSON form of it; the others stay JSON."""
    found, rest = response(answer(batch_of(1, items=[request_item(count=2)])), 0)
    assert [o["name"] for o in found["outputs"] if "data" not in o] == ["half"]
    assert rest == OUTPUTS["half"].tobytes()


def test_nan_is_refused_in_json_and_carried_in_binary() -> None:
    """Only an output that goes out as JSON can be non_finite, and only its own record is."""
    y = np.array([[np.nan, 1], [np.nan, 1], [1, 1]], np.float32)
    batch = batch_of(3, items=[request_item(), request_item(binary=True), request_item()])
    outcomes = answer(batch, {"y": y}, {"y": MODEL["y"]})
    assert {row: r.reason for row, r in outcomes.rejected.items()} == {0: "non_finite"}
    assert outcomes.bodies[0] is None
    assert response(outcomes, 1)[1] == y[1].tobytes()
    assert response(outcomes, 2)[0]["outputs"][0]["data"] == [1.0, 1.0]


def test_nan_in_an_output_nobody_asked_for_harms_nothing() -> None:
    """NaN in an output that is not sent rejects nothing."""
    outputs = {"y": np.float32([[np.nan, 1]]), "big": np.array([7], np.uint64)}
    batch = batch_of(1, items=[request_item(outputs=["big"])])
    outcomes = answer(batch, outputs, {"y": MODEL["y"], "big": MODEL["big"]})
    assert response(outcomes, 0)[0]["outputs"][0]["data"] == [7]


def test_a_model_that_is_not_batchable_keeps_its_shapes() -> None:
    """The response of a model that is not batchable has the model's own shapes, rank 0 included."""
    batch = batch_of(1, items=[request_item()])
    outputs = {"y": np.float32([[1, 2], [3, 4]]), "n": np.array(5)}
    outcomes = answer(batch, outputs, {"y": MODEL["y"], "n": ("int64", [])}, batchable=False)
    found = response(outcomes, 0)[0]["outputs"]
    assert [(o["shape"], o["data"]) for o in found] == [([2, 2], [1, 2, 3, 4]), ([], [5])]


def test_a_record_that_is_no_request_gets_every_output_and_its_position_as_id() -> None:
    """A record of another input format is answered in the protocol too."""
    found, _ = response(answer(batch_of(2)), 1)
    assert (found["id"], len(found["outputs"])) == ("digits/3/1043", len(MODEL))
    assert found["outputs"][0]["shape"] == [1, 2]


@pytest.mark.parametrize("rule", ["none", "all", ["content-type", "a"]])
def test_own_headers_appear_once(rule: Any) -> None:
    """The request's body headers are not copied beside the response's own."""
    given = [
        ("Content-Type", b"x"),
        ("content-type", b"y"),
        ("inference-header-content-length", b"9"),
        ("a", b"1"),
    ]
    batch = batch_of(1, headers=[given], items=[request_item()])
    found = headers_of(answer(batch, {"y": OUTPUTS["y"][:1]}, {"y": MODEL["y"]}, headers=rule), 0)
    assert found.pop("content-type") == b"application/json"
    assert found == ({} if rule == "none" else {"a": b"1"})


def test_an_expired_record_is_answered_as_a_refused_one() -> None:
    """An expired record of an output in the protocol's form is its id and an error, which every client understands."""
    envelope = make_envelope(input_format="oip", format="oip")
    columns = batch_of(1, values=[b'{"id": "seven"}']).columns
    servable = SimpleNamespace(model_name="digits", model_version="3f9c2a71")
    body = json.loads(envelope.expired(columns, 0, "5200 ms late", servable)[0])
    assert body == {"id": "seven", "error": "expired: 5200 ms late"}


def test_what_the_request_says_of_its_own_body_is_not_copied() -> None:
    """`headers: all` does not copy the encoding of the request's body, which the result's body does not have."""
    envelope = make_envelope(format="json", headers="all")
    columns = batch_of(1, headers=[[("Content-Encoding", b"gzip"), ("a", b"1")]]).columns
    assert envelope.headers(columns, 0) == [("a", b"1")]
