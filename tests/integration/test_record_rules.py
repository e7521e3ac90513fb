"""What becomes of each kind of record: one worker with a pipeline per rule, records told apart by a header."""

from __future__ import annotations

import io
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import models
import numpy as np
import oip_client
import orjson
import pytest
from confluent_kafka import Message
from onnx import helper
from stream import Worker, create_topics, produce, read_all, unique, wait_for_outputs, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]

TRACE = [("traceparent", b"00-1-2-01"), ("tracestate", b"a=b")]
OWN_CODE = '''
import numpy as np
from worker import Reject

def celsius(value, headers):
    """A thermometer's line of text."""
    if value == b"broken":
        raise Reject("the thermometer is broken")
    offset = float(dict(headers).get("offset", b"0"))
    return {"x": np.full(4, float(value) + offset, np.float32)}

def spread(outputs):
    y = outputs["y"]
    if y[0] > 1000:
        raise Reject("too hot to be true")
    return {"low": y.min(), "high": y.max(), "count": len(y)}
'''


@dataclass
class Outcome:
    """All that one record, known by its key, became."""

    results: list[Message]
    letters: list[Message]

    @property
    def result(self) -> Any:
        (message,) = self.results
        assert not self.letters
        return orjson.loads(message.value())

    @property
    def refusal(self) -> dict[str, str]:
        """Headers of its only dead letter."""
        (letter,) = self.letters
        return {name: value.decode() for name, value in letter.headers()}


class Records:
    """One worker's input and what came of it."""

    def __init__(self, kafka: str, folder: Path, pipelines: dict[str, Any], **settings: Any) -> None:
        self.kafka = kafka
        self.source, self.other, self.letters = unique("in"), unique("in2"), unique("dead")
        self.outputs = sorted({pipeline["output"]["topic"] for pipeline in pipelines.values()})
        create_topics(kafka, {self.source: 3, self.other: 2, self.letters: 3})
        for name, pipeline in pipelines.items():
            pipeline["input"].setdefault("topics", [self.source])
            pipeline.setdefault("when", {"header": "x-model", "equals": name})
        self.config = {
            "name": "rules",
            "pipelines": pipelines,
            "dead_letter": {"topic": self.letters},
            "kafka": {"bootstrap.servers": kafka, "group.id": unique("rules")},
            **settings,
        }
        self.worker: Worker | None = None
        self.folder = folder

    def send(self, records: list[dict[str, Any]], outputs: int) -> dict[str, Outcome]:
        """Send to the first topic (``topic`` names another), and drain once ``outputs`` records came out."""
        self.worker = Worker.start(write_config(self.folder, self.config))
        self.worker.wait_ready()
        by_topic = defaultdict(list)
        for record in records:
            by_topic[record.pop("topic", self.source)].append(record)
        for topic, batch in by_topic.items():
            produce(self.kafka, topic, batch)
        wait_for_outputs(self.kafka, [*self.outputs, self.letters], outputs, [self.worker])
        code, _ = self.worker.stop()
        assert code == 0, self.worker.text()[-3000:]
        outcomes: dict[str, Outcome] = defaultdict(lambda: Outcome([], []))
        for topic in self.outputs:
            for message in read_all(self.kafka, topic):
                outcomes[message.key().decode()].results.append(message)
        for message in read_all(self.kafka, self.letters):
            outcomes[message.key().decode()].letters.append(message)
        return outcomes

    def close(self) -> None:
        if self.worker is not None:
            self.worker.kill()


@pytest.fixture
def started() -> Iterator[list[Records]]:
    made: list[Records] = []
    yield made
    for records in made:
        records.close()


def record(
    key: str, model: str, value: bytes | None, *headers: tuple[str, bytes], **more: Any
) -> dict[str, Any]:
    routed = [("x-model", model.encode()), *headers]
    return {"key": key.encode(), "value": value, "headers": routed, **more}


def features(*numbers: float) -> bytes:
    return orjson.dumps({"features": numbers})


def npy(array: Any, version: tuple[int, int] = (1, 0)) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version)
    return stream.getvalue()


@pytest.fixture
def outcomes(kafka: str, tmp_path: Path, started: list[Records]) -> tuple[dict[str, Outcome], Records]:
    """Everything in one go: a worker's start is what costs."""
    models.write(tmp_path, models.two_outputs(), "two.onnx")
    models.write(tmp_path, models.identity(), "same.onnx")
    models.write(tmp_path, models.logarithm(), "log.onnx")
    models.write(tmp_path, models.image(size=16), "colours.onnx")
    models.write(tmp_path, one_box(), "box.onnx")
    models.write(tmp_path, models.fixed_batch(4), "four.onnx")
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    (tmp_path / "things.txt").write_text("cat\ndog\n")
    out = unique("out")
    create_topics(kafka, {out: 2})

    def pipeline(model: str = "same", format_: str = "json", **sections: Any) -> dict[str, Any]:
        made: dict[str, Any] = {
            "input": {"format": format_, **sections.pop("input", {})},
            "model": {"path": f"{model}.onnx"},
            "output": {"topic": out, **sections.pop("output", {})},
        }
        return {**made, **sections}

    second = unique("in2")
    create_topics(kafka, {second: 2})
    source_topics: list[str] = []
    pipelines = {
        "pass": pipeline(output={"headers": "all"}),
        "drop": pipeline(input={"tombstone": "drop"}, output={"headers": "none"}),
        "reject": pipeline(input={"tombstone": "reject"}, output={"headers": ["colour", "x-model"]}),
        "named": pipeline(model="two", postprocess="raw") | {"model": {"path": "two.onnx", "name": "deux", "version": "v7"}},
        "npy": pipeline("two", "npy", output={"format": "npy"}),
        "tensor": pipeline("two", "tensor", output={"format": "tensor"}),
        "plain-tensor": pipeline("two", "tensor", output={"format": "tensor", "headers": "none"}),
        "own": pipeline("same", "own_code:celsius", postprocess="own_code:spread"),
        "log": pipeline("log"),
        "log-npy": pipeline("log", "npy", output={"format": "npy"}),
        "small": pipeline(input={"max_bytes": 60}),
        "fields": pipeline(input={"fields": ["b", "a", "d", "c"]}),
        "scaled": pipeline(preprocess={"numeric": {"mean": [1, 2, 3, 4], "std": 2}}),
        "oip": pipeline("two", "oip", output={"format": "oip", "errors": True}),
        "oip-json": pipeline("same", "oip"),
        "four": pipeline("four"),
        "regression": pipeline("same", postprocess="regression"),
        "embedding": pipeline("same", postprocess={"embedding": {"normalize": True}}),
        "classes": pipeline("same", postprocess={"classification": {"top_k": 2, "activation": "softmax", "threshold": 0.3}}),
        "detection": pipeline(
            "box", "image", preprocess={"image": {"resize": "letterbox"}},
            postprocess={"detection": {"labels": "things.txt", "iou": 0.5, "score": 0.4}},
        ),
        "two-topics": pipeline(input={"topics": source_topics}),
    }  # fmt: skip
    records = Records(kafka, tmp_path, pipelines, limits={"max_age_ms": 3_600_000})
    source_topics += [records.source, second]
    started.append(records)
    now_ms = int(time.time() * 1000)
    past = datetime.fromtimestamp(time.time() - 5, UTC).isoformat().encode()
    future = datetime.fromtimestamp(time.time() + 500, UTC).isoformat().replace("+00:00", "Z").encode()
    plain = features(1, 2, 3, 4)
    four = np.array([1.5, -2, 3, 4], np.float32)
    picture = np.zeros((40, 20, 3), np.uint8)
    colour = ("colour", b"blue")
    sent = [
        record("pass", "pass", plain, *TRACE, colour, ("ce_id", b"event-1")),
        record("pass null", "pass", None, *TRACE),
        record("drop", "drop", plain, *TRACE, colour, ("x-request-id", b"request-1")),
        record("drop null", "drop", None),
        record("reject", "reject", plain, *TRACE, colour),
        record("reject null", "reject", None),
        record("named", "named", plain, *TRACE, colour, timestamp=now_ms - 1000),
        record("npy null", "npy", None, *TRACE),
        record("npy item", "npy", npy(four)),
        record("npy items", "npy", npy(np.stack([four, four * 2, four * 3]), (2, 0))),
        record("npy wrong", "npy", npy(np.zeros(5, np.float32))),
        record("npy pickle", "npy", npy_pickle()),
        record("tensor", "tensor", four.tobytes(), *TRACE),
        record("tensor short", "tensor", four.tobytes()[:-1]),
        record("plain tensor", "plain-tensor", four.tobytes(), *TRACE),
        record("own", "own", b"20.5", ("offset", b"2")),
        record("own broken", "own", b"broken"),
        record("own raises", "own", b"not a number"),
        record("own too hot", "own", b"2000"),
        record("log", "log", features(0, -1, 1, 1)),
        record("log npy", "log-npy", npy(np.array([0, -1, 1, 1], np.float32))),
        record("small", "small", plain),
        record("small not", "small", plain + b" " * 60),
        record("fields", "fields", b'{"a": 1, "b": 2, "c": 3, "d": 4, "e": "five"}'),
        record("fields missing", "fields", b'{"a": 1, "b": 2, "c": 3}'),
        record("fields text", "fields", b'{"a": 1, "b": "2", "c": 3, "d": 4}'),
        record("fields bool", "fields", b'{"a": 1, "b": true, "c": 3, "d": 4}'),
        record("fields cut", "fields", b'{"a": 1, "b": 2, "c": 3, "d":'),
        record("scaled", "scaled", features(1, 4, 7, 10)),
        record("oip", "oip", *oip_client.request({"x": np.stack([four, four])}, id_="mine")[:1]),
        record("oip wrong", "oip", *oip_client.request({"x": np.zeros((1, 5), np.float32)}, id_="wrong")[:1]),
        record("oip old", "oip", *oip_client.request({"x": np.stack([four])}, id_="old")[:1], *TRACE, ("ce_expirytime", past)),
        record("oip none", "oip", b"no JSON", ("x-request-id", b"request-2")),
        record("oip json", "oip-json", *oip_client.request({"x": np.stack([four, -four])})[:1]),
        record("four", "four", plain),
        record("regression", "regression", plain),
        record("embedding", "embedding", features(3, 0, 4, 0)),
        record("classes", "classes", features(1, 5, 5, 0)),
        record("classes none", "classes", features(1, 1, 1, 1)),
        record("detection", "detection", bytes(cv2.imencode(".png", picture)[1].tobytes())),
        record("two topics", "two-topics", plain, topic=second),
        record("nobody", "nobody", plain),
        record("last header", "nobody", plain, ("x-model", b"pass")),
        record("old", "pass", plain, timestamp=now_ms - 7_200_000),
        record("expired", "pass", plain, ("ce_expirytime", past)),
        record("fresh", "pass", plain, ("ce_expirytime", future)),
        record("null header", "pass", plain, ("empty", None)),
        {"key": b"headerless", "value": plain},
    ]  # fmt: skip
    return records.send(sent, len(sent) - 1 + 3), records


def npy_pickle() -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.array([{"a": 1}], object), allow_pickle=True)
    return stream.getvalue()


def one_box() -> bytes:
    """uint8 pictures (N, 3, 32, 32) -> yolov8 candidates (N, 6, 3): a cat, the same again a little off, a dog."""
    candidates = np.array(
        [[16, 16, 8, 16, 0.9, 0.1], [16.5, 16, 8, 16, 0.8, 0.1], [14, 6, 4, 4, 0.2, 0.7]], np.float32
    ).T
    return models.build(
        [
            helper.make_node("Cast", ["x"], ["floats"], to=1),
            helper.make_node("ReduceMin", ["floats", "axes"], ["least"], keepdims=1),
            helper.make_node("Squeeze", ["least", "last"], ["one"]),
            helper.make_node("Mul", ["one", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "candidates"], ["y"]),
        ],
        [models.tensor("x", np.uint8, ["N", 3, 32, 32])],
        [models.tensor("y", np.float32, ["N", 6, 3])],
        {
            "axes": np.array([1, 2, 3]),
            "last": np.array([3]),
            "zero": np.float32(0),
            "candidates": candidates[np.newaxis],
        },
    )


def test_each_kind_of_record_becomes_what_the_rules_say(outcomes: tuple[dict[str, Outcome], Records]) -> None:
    """Tombstones, headers, formats, own code, deadlines and routes: one outcome per record, exactly the promised one."""
    by_key, records = outcomes
    _tombstones_and_headers(by_key, records)
    _formats(by_key, records)
    _refusals(by_key, records)


def _tombstones_and_headers(by_key: dict[str, Outcome], records: Records) -> None:
    assert by_key["pass"].results[0].headers() == [
        ("x-model", b"pass"),
        *TRACE,
        ("colour", b"blue"),
        ("ce_id", b"event-1"),
    ]
    assert by_key["pass"].result["id"] == "event-1"
    assert ("empty", None) in by_key["null header"].results[0].headers()
    (tombstone,) = by_key["pass null"].results
    assert tombstone.value() is None
    assert tombstone.headers() == [("x-model", b"pass"), *TRACE]
    (tombstone,) = by_key["npy null"].results
    assert tombstone.value() is None
    assert dict(tombstone.headers()).pop("streaminfer.source").startswith(records.source.encode() + b"/")
    assert tombstone.headers()[1:] == TRACE
    assert by_key["drop"].results[0].headers() is None
    assert by_key["drop"].result["id"] == "request-1"
    assert "drop null" not in by_key
    assert by_key["reject"].results[0].headers() == [("x-model", b"reject"), ("colour", b"blue")]
    assert by_key["reject null"].refusal["streaminfer.error.reason"] == "invalid"
    assert by_key["reject null"].letters[0].value() is None
    named = by_key["named"]
    assert named.results[0].headers() == TRACE
    assert list(named.result) == ["id", "source", "model", "prediction", "latency_ms"]
    assert named.result["model"] == {"name": "deux", "version": "v7"}
    assert named.result["prediction"]["outputs"] == {"double": [2, 4, 6, 8], "negative": [-1, -2, -3, -4]}
    source = named.result["source"]
    assert named.result["id"] == f"{records.source}/{source['partition']}/{source['offset']}"
    assert 1000 <= named.results[0].timestamp()[1] - source["timestamp_ms"] < 60_000
    latency = named.result["latency_ms"]
    assert list(latency) == ["broker", "queue", "decode", "wait", "infer", "encode", "total"]
    assert round(sum(latency.values()) - latency["total"], 3) == latency["total"]
    assert latency["broker"] >= 1000


def _formats(by_key: dict[str, Outcome], records: Records) -> None:
    four = np.array([1.5, -2, 3, 4], np.float32)
    npy_item = np.load(io.BytesIO(by_key["npy item"].results[0].value()))
    assert npy_item.dtype == np.float32
    assert npy_item.tolist() == (four * 2).tolist()
    npy_items = np.load(io.BytesIO(by_key["npy items"].results[0].value()))
    assert npy_items.tolist() == [(four * n).tolist() for n in (2, 4, 6)]
    (tensor,) = by_key["tensor"].results
    assert tensor.value() == (four * 2).tobytes()
    headers = dict(tensor.headers())
    assert headers.pop("streaminfer.source").startswith(records.source.encode() + b"/")
    assert headers == dict(TRACE)
    assert by_key["plain tensor"].results[0].headers() is None
    assert by_key["own"].result["prediction"] == {"low": 22.5, "high": 22.5, "count": 4}
    log = np.load(io.BytesIO(by_key["log npy"].results[0].value()))
    assert log[0] == -np.inf
    assert np.isnan(log[1])
    assert by_key["fields"].result["prediction"]["outputs"]["y"] == [2, 1, 4, 3]
    assert by_key["scaled"].result["prediction"]["outputs"]["y"] == [0, 1, 2, 3]
    assert by_key["four"].result["prediction"]["outputs"]["y"] == [[2, 4, 6, 8]]
    assert by_key["regression"].result["prediction"] == {"values": [1, 2, 3, 4]}
    assert by_key["embedding"].result["prediction"]["embedding"] == pytest.approx([0.6, 0, 0.8, 0])
    top = by_key["classes"].result["prediction"]
    assert [entry["label"] for entry in top["top"]] == ["1", "2"]
    assert top["label"] == "1"
    assert by_key["classes none"].result["prediction"] == {"label": None, "score": None, "top": []}
    body, outputs = oip_client.answer(by_key["oip"].results[0])
    assert body["id"] == "mine"
    assert outputs["double"].tolist() == [(four * 2).tolist()] * 2
    assert body["parameters"]["source"].startswith(records.source)
    oip_json = by_key["oip json"].result
    assert [item["outputs"]["y"] for item in oip_json["predictions"]] == [four.tolist(), (-four).tolist()]
    boxes = by_key["detection"].result["prediction"]["boxes"]
    assert [(box["label"], box["class_id"]) for box in boxes] == [("cat", 0), ("dog", 1)]
    assert boxes[0]["score"] == pytest.approx(0.9)
    # 40 x 20 pixels (height x width) are letterboxed to 32 x 16 in the middle of 32 x 32: scale 0.8, 8 to the left
    assert boxes[0]["xyxy"] == pytest.approx([5, 10, 15, 30])
    assert boxes[1]["xyxy"] == pytest.approx([5, 5, 10, 10])
    assert by_key["two topics"].result["source"]["topic"] != records.source


REFUSALS = {
    "npy wrong": ("invalid", "decode", "npy"),
    "npy pickle": ("invalid", "decode", "npy"),
    "tensor short": ("invalid", "decode", "tensor"),
    "own broken": ("invalid", "decode", "own"),
    "own raises": ("undecodable", "decode", "own"),
    "own too hot": ("invalid", "postprocess", "own"),
    "log": ("non_finite", "postprocess", "log"),
    "small not": ("too_large", "decode", "small"),
    "fields missing": ("invalid", "decode", "fields"),
    "fields text": ("invalid", "decode", "fields"),
    "fields bool": ("invalid", "decode", "fields"),
    "fields cut": ("undecodable", "decode", "fields"),
    "nobody": ("unroutable", "decode", "rules"),
    "headerless": ("unroutable", "decode", "rules"),
    "old": ("expired", "decode", "pass"),
    "expired": ("expired", "decode", "pass"),
}


def _refusals(by_key: dict[str, Outcome], records: Records) -> None:
    found = {key: by_key[key].refusal for key in REFUSALS}
    assert {
        key: (
            headers["streaminfer.error.reason"],
            headers["__connect.errors.stage"],
            headers["__connect.errors.connector.name"],
        )
        for key, headers in found.items()
    } == REFUSALS
    assert not [key for key in REFUSALS if by_key[key].results]
    assert found["own too hot"]["__connect.errors.exception.message"] == "too hot to be true"
    assert by_key["last header"].result
    assert by_key["fresh"].result
    for key, id_ in (("oip wrong", "wrong"), ("oip none", "request-2"), ("oip old", "old")):
        outcome = by_key[key]
        (answer,) = (orjson.loads(message.value()) for message in outcome.results)
        assert answer["id"] == id_
        assert outcome.results[0].headers() == (TRACE if key == "oip old" else None)
        assert answer["error"] == outcome.refusal["__connect.errors.exception.message"]


@pytest.mark.parametrize("expired", ["drop", "publish"])
def test_an_expired_record_is_dropped_or_published_as_such(
    expired: str, kafka: str, tmp_path: Path, started: list[Records]
) -> None:
    """`limits.expired` decides; nothing goes to the dead letters, and the fresh record is answered."""
    models.write(tmp_path, models.identity(), "same.onnx")
    out = unique("made")
    pipelines = {
        "only": {
            "input": {"format": "json"},
            "model": {"path": "same.onnx"},
            "output": {"topic": out, "partition": "input", "create": {"partitions": 5, "replication": 1}},
        }
    }
    records = Records(kafka, tmp_path, pipelines, limits={"expired": expired, "max_age_ms": 60_000})
    started.append(records)
    stale_ms = int(time.time() * 1000) - 120_000
    sent = [
        record("stale", "only", features(1, 2, 3, 4), timestamp=stale_ms, partition=2),
        record("fresh", "only", features(1, 2, 3, 4), partition=2),
    ]
    by_key = records.send(sent, 2 if expired == "publish" else 1)
    assert by_key["fresh"].result["prediction"]["outputs"] == {"y": [1, 2, 3, 4]}
    assert by_key["fresh"].results[0].partition() == 2
    assert not by_key["stale"].letters
    if expired == "publish":
        assert by_key["stale"].result["prediction"] is None
        assert "expired" in by_key["stale"].result["error"]
    else:
        assert not by_key["stale"].results
