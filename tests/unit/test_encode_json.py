"""JSON results: what a consumer of the output topic reads."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from encode_support import TIMESTAMP_MS, batch_of, encode, make_encoder, make_envelope, request_item
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from worker.batch import Item, Partition
from worker.errors import Rejection

pytestmark = pytest.mark.usefixtures("both_batch_paths")

Y = {"y": ("float", ["N", 2])}
SERVABLE: Any = SimpleNamespace(model_name="digits", model_version="3f9c2a71")


def results(outcomes: Any) -> list[Any]:
    return [None if body is None else json.loads(body) for body in outcomes.bodies]


def scores(*rows: list[float]) -> dict[str, Any]:
    return {"y": np.array(rows, np.float32)}


def test_a_result_has_the_keys_of_the_contract_in_its_order() -> None:
    """Id, source, model, prediction and latency stand in the documented order, with the documented values."""
    encoder = make_encoder(Y, ["no", "yes"], postprocess={"classification": {"top_k": 2}})
    [body] = encode(encoder, batch_of(1), scores([0.25, 0.75])).bodies
    assert body is not None
    assert json.dumps(json.loads(body)) == json.dumps(
        {
            "id": "digits/3/1042",
            "source": {"topic": "digits", "partition": 3, "offset": 1042, "timestamp_ms": TIMESTAMP_MS},
            "model": {"name": "digits", "version": "3f9c2a71"},
            "prediction": {
                "label": "yes",
                "score": 0.75,
                "top": [{"label": "yes", "score": 0.75}, {"label": "no", "score": 0.25}],
            },
            "latency_ms": {
                "broker": 0.0,
                "queue": 0.1,
                "decode": 0.1,
                "wait": 0.1,
                "infer": 0.1,
                "encode": 0.1,
                "total": 0.5,
            },
        }
    )


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.just(2)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_float32_is_the_shortest_decimal_that_reads_back(values: Any) -> None:
    """Every float32 reads back as the same number, and no shorter text would."""
    outcomes = encode(make_encoder(Y), batch_of(len(values)), {"y": values})
    for row, result in zip(values, results(outcomes), strict=True):
        written = result["prediction"]["outputs"]["y"]
        assert np.array(written, np.float32).tobytes() == row.tobytes()
        assert [float(np.format_float_scientific(v, unique=True)) for v in row] == written


def test_float64_and_integers_keep_every_digit() -> None:
    """A float64 is not cut to float32, and integers to the ends of 64 bits are exact."""
    encoder = make_encoder({"d": ("double", ["N"]), "i": ("int64", ["N"]), "u": ("uint64", ["N"])})
    outputs = {"d": np.array([0.1 + 0.2]), "i": np.array([-(2**63)]), "u": np.array([2**64 - 1], np.uint64)}
    [result] = results(encode(encoder, batch_of(1), outputs))
    assert result["prediction"]["outputs"] == {"d": 0.1 + 0.2, "i": -(2**63), "u": 2**64 - 1}


def test_latencies_have_at_most_three_decimals_and_add_up() -> None:
    """Each row has its own broker time; the total is the exact sum of what is shown."""
    outcomes = encode(make_encoder(Y), batch_of(3), scores([0, 1], [0, 1], [0, 1]))
    for row, result in enumerate(results(outcomes)):
        latency = result["latency_ms"]
        assert latency["broker"] == float(row)
        assert latency["total"] == round(sum(v for k, v in latency.items() if k != "total"), 3)


def test_rows_of_several_partitions_name_their_own_source() -> None:
    """Records of interleaved partitions and topics each name their own source."""
    partitions = [Partition("digits", 0), Partition("other", 7), Partition("digits", 0)]
    outcomes = encode(make_encoder(Y), batch_of(3, partitions=partitions), scores([0, 1], [0, 1], [0, 1]))
    assert [r["id"] for r in results(outcomes)] == ["digits/0/1042", "other/7/1043", "digits/0/1044"]
    assert [(r["source"]["topic"], r["source"]["partition"]) for r in results(outcomes)] == partitions


@pytest.mark.parametrize(
    ("headers", "id_"),
    [
        (None, "digits/3/1042"),
        ([], "digits/3/1042"),
        ([("ce_id", b"event-1"), ("x-request-id", b"request-1")], "event-1"),
        ([("x-request-id", b'say "hi" %d \xc3\xa9')], 'say "hi" %d é'),
        ([("ce_id", b"\xff\xfe"), ("x-request-id", b"request-1")], "request-1"),
        ([("ce_id", None)], "digits/3/1042"),
        ([("ce_id", b"")], "digits/3/1042"),
        ([("CE_ID", b"event-1")], "digits/3/1042"),
        ([("ce_id", b"old"), ("ce_id", b"new")], "new"),
    ],
)
def test_the_id_comes_from_the_headers_where_they_have_one(headers: Any, id_: str) -> None:
    """The id is `ce_id`, else `x-request-id`, by exact name, without empty and non-UTF-8 values; else the position."""
    outcomes = encode(make_encoder(Y), batch_of(2, headers=[headers, None]), scores([0, 1], [0, 1]))
    assert [r["id"] for r in results(outcomes)] == [id_, "digits/3/1043"]


def test_an_id_of_the_request_wins_over_headers() -> None:
    """The Open Inference Protocol id is the record's id, even an empty one."""
    batch = batch_of(
        3,
        headers=[[("ce_id", b"event-1")]] * 3,
        items=[request_item(id="request-1"), request_item(id=""), request_item()],
    )
    outcomes = encode(make_encoder(Y), batch, scores([0, 1], [0, 1], [0, 1]))
    assert [r["id"] for r in results(outcomes)] == ["request-1", "", "event-1"]


def test_a_record_with_a_batch_dimension_gives_predictions() -> None:
    """A record with a batch dimension of k gets a list of k predictions, also for k = 1; a record without one gets one prediction."""
    batch = batch_of(3, items=[request_item(count=2), Item({}), request_item(count=1)])
    encoder = make_encoder({"y": ("float", ["N", 1])}, postprocess="regression")
    found = results(encode(encoder, batch, scores([1], [2], [3], [4])))
    assert found[0]["predictions"] == [{"value": 1.0}, {"value": 2.0}]
    assert found[1]["prediction"] == {"value": 3.0}
    assert found[2]["predictions"] == [{"value": 4.0}]


def test_nan_costs_one_record() -> None:
    """NaN and infinity reject their own row as non_finite; the rows around it are answered."""
    outcomes = encode(make_encoder(Y), batch_of(4), scores([0, 1], [np.nan, 1], [1, 0], [0, -np.inf]))
    assert [r and r["id"] for r in results(outcomes)] == ["digits/3/1042", None, "digits/3/1044", None]
    assert {row: (r.reason, r.stage) for row, r in outcomes.rejected.items()} == {
        1: ("non_finite", "postprocess"),
        3: ("non_finite", "postprocess"),
    }


def test_raw_gives_the_outputs_a_request_asks_for() -> None:
    """A request that names outputs gets these in its order for each item, and NaN in another output rejects nothing."""
    model = {"y": ("float", ["N", 2]), "n": ("int64", ["N"])}
    outputs = {"y": np.float32([[1, 2], [3, np.nan], [5, 6]]), "n": np.arange(3)}
    items = [request_item(2, outputs=["n"]), request_item(outputs=["n", "y"])]
    found = results(encode(make_encoder(model), batch_of(2, items=items), outputs))
    assert [p["outputs"] for p in found[0]["predictions"]] == [{"n": 0}, {"n": 1}]
    assert list(found[1]["predictions"][0]["outputs"].items()) == [("n", 2), ("y", [5.0, 6.0])]


def test_nan_in_one_item_refuses_the_whole_record_and_names_the_item() -> None:
    """A record of which one item has no prediction is rejected whole."""
    batch = batch_of(2, items=[request_item(count=2), request_item(count=2)])
    outcomes = encode(make_encoder(Y), batch, scores([0, 1], [0, np.nan], [0, 1], [0, 1]))
    assert outcomes.bodies[0] is None
    assert outcomes.rejected[0].message.startswith("item 1: ")
    assert outcomes.bodies[1] is not None


def test_a_run_fills_only_its_own_rows() -> None:
    """Of a batch with rows refused before the run, each answer lands on its own record."""
    batch = batch_of(4)
    outcomes = encode(make_encoder({"y": ("float", ["N"])}), batch, {"y": np.float32([1, 3])}, rows=[1, 3])
    found = results(outcomes)
    assert [r and r["prediction"]["outputs"]["y"] for r in found] == [None, 1.0, None, 3.0]
    assert [r and r["source"]["offset"] for r in found] == [None, 1043, None, 1045]


def test_a_model_that_is_not_batchable_keeps_its_own_shape_in_raw() -> None:
    """raw shows the outputs as the model gave them, batch dimension included; scalars too."""
    encoder = make_encoder({"y": ("float", [1, 2]), "n": ("int64", [])}, batchable=False)
    outputs = {"y": np.float32([[1, 2]]), "n": np.array(3)}
    [result] = results(encode(encoder, batch_of(1), outputs, alone=True))
    assert result["prediction"] == {"outputs": {"y": [[1.0, 2.0]], "n": 3}}


def test_outputs_of_an_unreadable_shape_reject_the_run_rows() -> None:
    """What postprocessing cannot read is a model_error of stage postprocess, not a crash."""
    encoder = make_encoder({"y": ("float", ["N", "H", "W"])}, postprocess="classification")
    outcomes = encode(encoder, batch_of(2), {"y": np.zeros((2, 3, 3), np.float32)})
    assert outcomes.bodies == [None, None]
    assert {(r.reason, r.stage) for r in outcomes.rejected.values()} == {("model_error", "postprocess")}


TRACED = [("traceparent", b"00-1"), ("tracestate", b"a=b"), ("x", b"1"), ("x", b"2"), ("nothing", None)]


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("none", None),
        ("trace", TRACED[:2]),
        ("all", TRACED),
        (["x"], TRACED[2:4]),
        (["absent"], None),
    ],
)
def test_headers_travel_as_configured(rule: Any, kept: Any) -> None:
    """`output.headers` copies none, the trace, all or the named headers, in order and with repetitions, for the rows that have some."""
    batch = batch_of(2, headers=[None, TRACED])
    outcomes = encode(make_encoder(Y, headers=rule), batch, scores([0, 1], [0, 1]))
    assert outcomes.headers == (None if kept is None else [None, kept])


def test_a_binary_requests_content_length_is_never_copied() -> None:
    """The content length of a request is never copied: it would make a reader cut the JSON result in two."""
    batch = batch_of(1, headers=[[("Inference-Header-Content-Length", b"10"), ("a", b"1")]])
    outcomes = encode(make_encoder(Y, headers="all"), batch, scores([0, 1]))
    assert outcomes.headers == [[("a", b"1")]]


def test_a_percent_sign_in_a_name_is_only_a_character() -> None:
    """Names from the configuration and the model never act as format directives."""
    encoder = make_encoder({"50%d": ("float", ["N"])})
    [result] = results(encode(encoder, batch_of(1), {"50%d": np.float32([1])}))
    assert result["prediction"]["outputs"] == {"50%d": 1.0}


def test_an_expired_record_can_be_published() -> None:
    """The expired body names the record and says why there is no prediction."""
    body, _ = make_envelope().expired(
        batch_of(1).columns, 0, "5200 ms old, limits.max_age_ms is 5000", SERVABLE
    )
    assert json.loads(body) == {
        "id": "digits/3/1042",
        "source": {"topic": "digits", "partition": 3, "offset": 1042, "timestamp_ms": TIMESTAMP_MS},
        "model": {"name": "digits", "version": "3f9c2a71"},
        "prediction": None,
        "error": "expired: 5200 ms old, limits.max_age_ms is 5000",
    }


@pytest.mark.parametrize(
    ("value", "headers", "id_"),
    [
        (b'{"id":"request-1","inputs":7}', None, "request-1"),
        (b'{"id":"request-1"}\x00\x01', [("inference-header-content-length", b"18")], "request-1"),
        (b'{"id":"request-1"}', [("inference-header-content-length", b"eighteen")], "digits/3/1042"),
        (b'{"id":5}', None, "digits/3/1042"),
        (b"not json", [("ce_id", b"event-1")], "event-1"),
        (b"[]", None, "digits/3/1042"),
    ],
)
def test_an_error_body_names_the_request(value: bytes, headers: Any, id_: str) -> None:
    """An error body has the id inside the refused request where it can be read, else the record's id."""
    batch = batch_of(1, headers=[headers], items=[None], values=[value])
    rejection = Rejection("invalid", "decode", "inputs: expected a list")
    body, _ = make_envelope(input_format="oip", errors=True).error(batch.columns, 0, rejection)
    assert json.loads(body) == {"id": id_, "error": "inputs: expected a list"}


def test_an_error_of_any_text_can_be_published() -> None:
    """An error message with characters that UTF-8 cannot encode is published with replacements."""
    rejection = Rejection("model_error", "infer", "bad \udcff name")
    assert json.loads(make_envelope().error(batch_of(1).columns, 0, rejection)[0])["error"] == "bad ? name"
