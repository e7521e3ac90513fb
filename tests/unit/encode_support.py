"""Batches as the engine hands them to an encoder, made by hand: for the tests of results and schemas."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from decode_support import SchemasAtHand
from fakes import FakeRollout

from worker.batch import STAGES, Array, Batch, Columns, Feed, Headers, Item, Outcomes, Partition, Request, Run
from worker.encode import Encoder, encoder
from worker.model.signature import Shown, Signature, TensorSpec
from worker.schema_registry.opening import Registry
from worker.serving.envelope import Envelope
from worker.serving.route import route_of
from worker.settings import PipelineSettings, validate
from worker.settings.schema_registry import RegistrySettings

REGISTERED = ("avro", "protobuf", "json_schema")
"""Output formats that need a schema registry; here nothing is registered, and every schema has the id 0."""
ROLLOUT = FakeRollout()
TIMESTAMP_MS = 1_763_676_000_123


def pipeline(postprocess: Any = "raw", input_format: str = "json", **output: Any) -> PipelineSettings:
    document = {
        "name": "digits",
        "input": {"topics": ["digits"], "format": input_format},
        "model": {"path": "digits.onnx"},
        "postprocess": postprocess,
        "output": {"topic": "results", **output},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "digits"},
    }
    if output.get("format") in REGISTERED:
        document["registry"] = {"url": "http://localhost:1"}
    return validate(document, Path.cwd()).pipelines["digits"]


def signature(
    outputs: dict[str, tuple[str, Sequence[Any]]], batchable: bool = True, **shown: Any
) -> Signature:
    """Outputs by name as (ONNX element type, shape); a string dimension is free. ``shown``: fields of Shown."""
    given = TensorSpec.of("x", "tensor(float)", ["N", 4])
    specs = tuple(TensorSpec.of(name, f"tensor({kind})", shape) for name, (kind, shape) in outputs.items())
    return Signature((given,), specs, batchable, Shown(**shown))


def make_encoder(
    outputs: dict[str, tuple[str, Sequence[Any]]],
    labels: Sequence[str] | None = None,
    batchable: bool = True,
    **settings: Any,
) -> Encoder:
    wanted = pipeline(**settings)
    envelope = make_envelope(**settings)
    return encoder(wanted, signature(outputs, batchable), "digits", "3f9c2a71", labels, envelope)


def make_envelope(**settings: Any) -> Envelope:
    ids = settings.pop("ids", "prefix")
    registry = Registry(RegistrySettings(url="http://localhost:1", ids=ids), SchemasAtHand({}), None)
    return route_of("digits", pipeline(**settings), registry=registry).envelope


def batch_of(
    rows: int,
    headers: Sequence[Headers | None] | None = None,
    items: Sequence[Item | None] = (),
    values: Sequence[bytes] | None = None,
    partitions: Sequence[Partition] | None = None,
) -> Batch:
    """Records at offsets 1042, 1043, ... of partition digits/3 unless said otherwise."""
    columns = Columns(
        list(values) if values else [b""] * rows,
        [None] * rows,
        list(headers) if headers else [None] * rows,
        [TIMESTAMP_MS + i for i in range(rows)],
        [1042 + i for i in range(rows)],
        list(partitions) if partitions else [Partition("digits", 3)] * rows,
    )
    batch = Batch(None, range(rows), columns, ROLLOUT.route, ROLLOUT.choose(), 0, 0.0)
    batch.feed = Feed(None if items else {}, list(items), [None] * rows)
    batch.outcomes = Outcomes.empty(rows)
    return batch


def request_item(count: int = 1, single: bool = False, **request: Any) -> Item:
    return Item({}, count, single, Request(**request))


def encode(
    encoder: Encoder,
    batch: Batch,
    outputs: dict[str, Array],
    rows: Sequence[int] | None = None,
    alone: bool = False,
) -> Outcomes:
    """One run's outcomes; every stage takes 100 us, `broker` as many milliseconds as the row's number."""
    chosen = range(len(batch)) if rows is None else rows
    assert batch.feed is not None
    counts = [batch.feed.items[row].count for row in chosen] if batch.feed.items else None  # type: ignore[union-attr]
    run = Run(chosen, outputs, counts, alone)
    batch.runs.append(run)
    fragments = encoder.predict(batch, run)
    broker = np.array([1000 * row for row in chosen], np.int64)
    run.stages_us = dict.fromkeys(STAGES, 100)
    run.stages_us["broker"] = broker
    run.stages_us["total"] = broker + 500
    encoder.bodies(batch, run, fragments)
    assert batch.outcomes is not None
    return batch.outcomes
