"""The published schemas agree with their examples and with what the worker really writes."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from contract_samples import POSTPROCESSES
from encode_support import batch_of, encode, make_encoder, make_envelope, request_item
from jsonschema import Draft202012Validator

from worker.batch import Partition
from worker.dead_letters.compose import compose
from worker.errors import Reject, Rejection
from worker.telemetry.meters import Meters, ModelLabel, PartitionState
from worker.telemetry.topic import WorkerInfo, metrics_record

pytestmark = pytest.mark.usefixtures("both_batch_paths")

SCHEMAS = Path(__file__).parents[2] / "schemas"
EXAMPLES = sorted((SCHEMAS / "examples").glob("*.json"))
OUTPUT = {"y": ("float", ["N", 2])}
SCORES = {"y": np.array([[0.25, 0.75], [1, 0]], np.float32)}


@cache
def schema(name: str) -> Any:
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text())


def check(name: str, value: Any, part: str | None = None) -> None:
    document = schema(name)
    if part is not None:
        document = {"$ref": f"#/$defs/{part}", "$defs": document["$defs"]}
    Draft202012Validator(document).validate(value)


@pytest.mark.parametrize("name", ["result", "oip-response", "dead-letter", "metrics", "quality"])
def test_a_schema_is_itself_valid_and_has_examples(name: str) -> None:
    """Each JSON Schema is valid and has at least one example."""
    Draft202012Validator.check_schema(schema(name))
    assert any(path.name.startswith(f"{name}.") for path in EXAMPLES)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid(path: Path) -> None:
    """Each example <schema>.<case>.json fits its schema."""
    check(path.name.split(".")[0], json.loads(path.read_text()))


@pytest.mark.parametrize(
    ("part", "postprocess"),
    [
        ("classification", {"classification": {"top_k": 2}}),
        ("classification", {"classification": {"threshold": 2}}),
        ("regression", "regression"),
        ("embedding", "embedding"),
        ("raw", "raw"),
    ],
)
def test_real_results_are_valid(part: str, postprocess: Any) -> None:
    """Results of the encoder fit the result schema, and their prediction fits the part for their postprocess."""
    for body in encode(make_encoder(OUTPUT, postprocess=postprocess), batch_of(2), SCORES).bodies:
        result = json.loads(body or b"")
        check("result", result)
        check("result", result["prediction"], part)


def test_real_boxes_are_valid() -> None:
    """Results with detected boxes fit the result schema."""
    encoder = make_encoder({"y": ("float", ["N", 1, 6])}, postprocess={"detection": {"layout": "xyxy"}})
    outcomes = encode(encoder, batch_of(1), {"y": np.float32([[[0, 0, 5, 5, 0.9, 1]]])})
    result = json.loads(outcomes.bodies[0] or b"")
    check("result", result)
    check("result", result["prediction"], "detection")


@pytest.mark.parametrize("name", POSTPROCESSES)
def test_what_a_postprocess_gives_is_in_the_schema(name: str) -> None:
    """The sample of the contract suite gives a prediction that fits the postprocess's part of the schema."""
    sample = POSTPROCESSES[name]
    outputs = sample.outputs(1)
    shapes = {key: ("float", ["N", *value.shape[1:]]) for key, value in outputs.items()}
    encoder = make_encoder(shapes, postprocess=sample.settings or name, input_format=sample.input_format)
    batch = batch_of(1)
    assert batch.feed is not None
    batch.feed.contexts = sample.contexts(1)
    result = json.loads(encode(encoder, batch, outputs).bodies[0] or b"")
    check("result", result)
    part = {"keypoints": "detection"}.get(name, name)
    if part in schema("result")["$defs"]:
        check("result", result["prediction"], part)


def test_real_predictions_errors_and_expiries_are_valid() -> None:
    """Lists of predictions, errors and expired records on the output topic fit the result schema."""
    batch = batch_of(1, items=[request_item(count=2, id="r")])
    encoder, envelope = make_encoder(OUTPUT), make_envelope()
    servable: Any = SimpleNamespace(model_name="digits", model_version="3f9c2a71")
    check("result", json.loads(encode(encoder, batch, SCORES).bodies[0] or b""))
    check("result", json.loads(envelope.expired(batch.columns, 0, "too old", servable)[0]))
    check("result", json.loads(envelope.error(batch.columns, 0, Rejection("invalid", "decode", "no"))[0]))


@pytest.mark.parametrize("binary", [False, True])
def test_real_oip_responses_are_valid(binary: bool) -> None:
    """JSON responses of the Open Inference Protocol, and the JSON part of binary ones, fit their schema."""
    batch = batch_of(1, items=[request_item(count=2, binary=binary)])
    outcomes = encode(make_encoder(OUTPUT, format="oip"), batch, SCORES)
    headers = dict((outcomes.headers or [])[0] or [])
    length = headers.get("inference-header-content-length")
    check("oip-response", json.loads((outcomes.bodies[0] or b"")[: int(length) if length else None]))


@pytest.mark.parametrize("max_bytes", [1_000_000, 1_000])
@pytest.mark.parametrize("keeps_time", [True, False])
def test_real_dead_letters_are_valid(max_bytes: int, keeps_time: bool) -> None:
    """Dead letters fit their schema, with the value and timestamp of the original and without those that the topic refuses."""
    columns = batch_of(1, headers=[[("traceparent", b"00-1")]], values=[b"x" * 800]).columns
    rejection = Rejection.of(Reject("not an image", "undecodable"), "decode", object())
    letter = compose(
        columns,
        0,
        rejection,
        "digits",
        "digits-host-1",
        "digits@3f9c2a71",
        max_bytes,
        lambda _timestamp_ms: keeps_time,
    )
    headers = {name: value and value.decode() for name, value in letter.headers}
    check("dead-letter", headers)
    assert (letter.value is None) == ("streaminfer.value.sha256" in headers) == (max_bytes < 1_000_000)
    assert (letter.timestamp_ms == 0) == ("streaminfer.timestamp_ms" in headers) == (not keeps_time)


def test_a_real_metrics_record_is_valid() -> None:
    """A metrics record of live counters fits its schema, after records, errors and an unroutable record."""
    meters = Meters({"digits": ModelLabel("digits", "3f9c2a71", "cpu")})
    batch = batch_of(2)
    encode(make_encoder(OUTPUT), batch, SCORES)
    meters.taken("digits", 3, 600)
    meters.batch("digits", batch)
    meters.counted("digits", ok=2, dead_letter=1)
    meters.error("digits", "undecodable", "decode")
    meters.taken("worker", 1, 10)
    meters.error("worker", "unroutable", "decode")
    partitions = {
        Partition("digits", 0): PartitionState(3, None, 9),
        Partition("digits", 1): PartitionState(None, None, None),
    }
    snapshot = meters.snapshot(partitions=partitions, bytes_in_flight=0)
    record = json.loads(metrics_record(snapshot, WorkerInfo("digits-host-1", "digits", "host", 1, "0.1.0")))
    check("metrics", record)
    known = schema("metrics")["$defs"]["pipeline"]["properties"]["latency_ms"]["properties"]
    assert record["pipelines"]["digits"]["latency_ms"].keys() == known.keys() - {"fetch"}
