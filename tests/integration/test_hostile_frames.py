"""Pictures of all kinds with hostile ones among them: one dead letter each, and every good one the model's own answer."""

from __future__ import annotations

import hashlib
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import models
import numpy as np
import onnxruntime as ort
import orjson
import pytest
from onnx import TensorProto, helper
from stream import Worker, create_topics, place_of, produce, read_all, unique, wait_for_outputs, write_config

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

FRAMES = 640
HOSTILE_EVERY = 20
SIZE = 32
MAX_BYTES = 200_000
MEAN, STD, SCALE = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 1 / 255


@dataclass
class Frame:
    """One record; ``refusal`` is the (reason, stage) a hostile one must get."""

    value: bytes
    refusal: tuple[str, str] | None = None


def test_hostile_frames_cost_one_dead_letter_each(kafka: str, workers: list[Worker], tmp_path: Path) -> None:
    """Eight kinds of hostile frames are told apart, come back whole, and take nothing with them."""
    source, results, letters = (unique(name) for name in ("frames", "seen", "dead"))
    create_topics(kafka, {source: 4, results: 4}, **{"max.message.bytes": "2000000"})
    create_topics(kafka, {letters: 2}, **{"max.message.bytes": "2000000"})
    model = models.write(tmp_path, mean_colour(), "colours.onnx")
    worker = Worker.start(
        write_config(
            tmp_path,
            {
                "name": "frames",
                "input": {"topics": [source], "format": "image", "max_bytes": MAX_BYTES},
                "preprocess": {"image": {"scale": SCALE, "mean": MEAN, "std": STD}},
                "model": {"path": model.name, "threads": 2},
                "output": {"topic": results},
                "dead_letter": {"topic": letters},
                "kafka": {"bootstrap.servers": kafka, "group.id": unique("group"), "client.id": "camera-1"},
            },
        )
    )
    workers.append(worker)
    sent = list(frames())
    stamp = int(time.time() * 1000) - 3_600_000
    records = [
        {
            "key": b"frame-%d" % number,
            "value": frame.value,
            "headers": [("camera", b"%d" % number), ("__connect.errors.stage", b"an earlier failure")],
            "timestamp": stamp + number,
        }
        for number, frame in enumerate(sent)
    ]
    produce(kafka, source, records)
    wait_for_outputs(kafka, [results, letters], FRAMES, [worker])
    code, _ = worker.stop()
    assert code == 0, worker.text()[-3000:]
    assert [orjson.loads(line) for line in worker.text().splitlines()], "and nothing but JSON lines"

    refused = {int(m.key().partition(b"-")[2]): m for m in read_all(kafka, letters)}
    answered = {int(m.key().partition(b"-")[2]): m for m in read_all(kafka, results)}
    assert {n: frame.refusal for n, frame in enumerate(sent) if frame.refusal} == {
        n: _refusal(message) for n, message in refused.items()
    }
    assert len(refused) + len(answered) == FRAMES
    version = hashlib.sha256(model.read_bytes()).hexdigest()[:8]
    for number, letter in refused.items():
        assert letter.value() == sent[number].value
        assert letter.timestamp()[1] == stamp + number
        assert _unchanged_header(letter) == [("camera", b"%d" % number)]
        headers = {name: value.decode() for name, value in letter.headers()}
        assert headers["__connect.errors.topic"] == source
        assert headers["__connect.errors.connector.name"] == "frames"
        assert headers["__connect.errors.task.id"] == "camera-1"
        assert headers["__connect.errors.class.name"].startswith("worker.")
        assert "." in headers["__connect.errors.exception.class.name"]
        message = headers["__connect.errors.exception.message"]
        assert message
        assert "\n" not in message
        assert len(message.encode()) <= 1024
        assert headers["streaminfer.error.attempts"] == "1"
        assert headers["streaminfer.model"] == f"frames@{version}"
        assert len(letter.headers()) == 13, "one of each, an earlier failure's replaced"
    session = ort.InferenceSession(str(model))
    for number, message in answered.items():
        (expected,) = session.run(["y"], {"x": reference(sent[number].value)[np.newaxis]})
        prediction = orjson.loads(message.value())["prediction"]
        np.testing.assert_allclose(prediction["outputs"]["y"], expected[0], rtol=1e-4, atol=1e-5)
    places = {place_of(m) for m in (*refused.values(), *answered.values())}
    assert len(places) == FRAMES


@pytest.fixture
def workers() -> Iterator[list[Worker]]:
    started: list[Worker] = []
    yield started
    for worker in started:
        worker.kill()


def _refusal(letter: Any) -> tuple[str, str]:
    headers = dict(letter.headers())
    return headers["streaminfer.error.reason"].decode(), headers["__connect.errors.stage"].decode()


def _unchanged_header(letter: Any) -> list[tuple[str, bytes]]:
    return [(n, v) for n, v in letter.headers() if not n.startswith(("__connect.errors.", "streaminfer."))]


# -- what the model is and what it must have seen -----------------------------------------------------------


def mean_colour() -> bytes:
    """float32 (N, 3, SIZE, SIZE) -> (N, 3): each channel's mean. Pure white makes the whole run fail."""
    white = [(1 - m) / s for m, s in zip(MEAN, STD, strict=True)]
    return models.build(
        [
            helper.make_node("ReduceMean", ["x", "axes"], ["y"], keepdims=0),
            helper.make_node("Sub", ["y", "white"], ["distance"]),
            helper.make_node("Abs", ["distance"], ["absolute"]),
            helper.make_node("ReduceMax", ["absolute", "last"], ["farthest"], keepdims=0),
            helper.make_node("Less", ["farthest", "little"], ["is_white"]),
            helper.make_node("Cast", ["is_white"], ["row"], to=TensorProto.INT64),
            helper.make_node("Mul", ["row", "far"], ["beyond"]),
            helper.make_node("Gather", ["table", "beyond"], ["unused"]),
            helper.make_node("Unsqueeze", ["unused", "last"], ["zeros"]),
            helper.make_node("Add", ["y", "zeros"], ["z"]),
        ],
        [models.tensor("x", np.float32, ["N", 3, SIZE, SIZE])],
        [models.tensor("y", np.float32, ["N", 3]), models.tensor("z", np.float32, ["N", 3])],
        {
            "axes": np.array([2, 3]),
            "last": np.array([1]),
            "white": np.array(white, np.float32),
            "little": np.float32(1e-4),
            "far": np.array(100),
            "table": np.zeros(1, np.float32),
        },
    )


def reference(value: bytes) -> Any:
    """The documented preprocessing, step by step: RGB, stretched with linear interpolation, normalised, planes."""
    pixels = cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    fitted = cv2.resize(np.ascontiguousarray(pixels), (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    normal = (fitted.astype(np.float64) * SCALE - MEAN) / STD
    return normal.transpose(2, 0, 1).astype(np.float32)


# -- the frames ---------------------------------------------------------------------------------------------


def frames() -> Iterator[Frame]:
    rng = np.random.default_rng(3)
    hostile = _hostile(rng)
    for number in range(FRAMES):
        yield next(hostile) if number % HOSTILE_EVERY == HOSTILE_EVERY - 1 else Frame(_good(rng))


def _good(rng: np.random.Generator, extension: str = "") -> bytes:
    """A picture of 1 to 300 pixels a side: smooth or noisy, colour or gray, in one of the formats."""
    height, width = (int(v) for v in rng.integers(1, 300, size=2))
    coarse = rng.integers(0, 256, (2 + height // 16, 2 + width // 16, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.2:
        pixels = pixels[..., :1]
    return _file(extension or str(rng.choice([".jpg", ".png", ".webp"])), pixels)


def _file(extension: str, pixels: Any) -> bytes:
    return bytes(cv2.imencode(extension, pixels)[1].tobytes())


def _hostile(rng: np.random.Generator) -> Iterator[Frame]:
    """The eight ways in turn, each different every time."""
    undecodable, formats = ("undecodable", "decode"), (".jpg", ".png", ".webp")
    turn = 0
    while True:
        whole = _good(rng, formats[turn % 3])
        yield Frame(whole[: int(len(whole) * rng.uniform(0.05, 0.95))], undecodable)
        yield Frame(b'{"features": [%d]}' % turn, undecodable)
        yield Frame(b"", undecodable)
        yield Frame(_bomb(), ("too_many_pixels", "decode"))
        yield Frame(_good(rng) + rng.bytes(MAX_BYTES), ("too_large", "decode"))
        yield Frame(
            _file(formats[turn % 2], np.full((40 + turn, 50, 3), 255, np.uint8)), ("model_error", "infer")
        )
        yield Frame(rng.bytes(int(rng.integers(1, 5000))), undecodable)
        jpeg = _good(rng, ".jpg")
        header = jpeg[: int(rng.choice([4, 20, jpeg.index(b"\xff\xda") + 14]))]
        yield Frame(header + rng.bytes(int(rng.integers(3000, 50_000))), undecodable)
        turn += 1


def _bomb() -> bytes:
    """A PNG of 60,000 x 60,000 pixels in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1 << 16))) + chunk(b"IEND", b"")
