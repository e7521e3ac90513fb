"""The compute limit of each workload: decode, batched run and encode by hand, without Kafka and without the worker.

Every step is the quickest known way to the very same result, with no check a worker needs: what a record would cost
if messaging, validation, isolation and bookkeeping were free.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
import orjson
import simdjson
from workloads import AVRO_SCHEMA, CLASSES, FEATURES, IMAGE, Workload

Batch = Callable[[list[bytes], int], list[bytes]]
"""(values, offset of the first) -> bodies."""


def session(path: str) -> Any:
    """One thread per run and no spinning: what scales best with one run per thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def by_hand(workload: Workload, topic: str = "in") -> Batch:
    """The workload's batch function; it owns a session and a parser."""
    return _MAKERS[workload.name](workload, topic)


def measure(workload: Workload, topic: str = "in") -> float:
    """CPU microseconds per record of this process, batch after batch over about ``workload.records`` records."""
    batch = by_hand(workload, topic)
    values = (workload.values * (workload.batch // len(workload.values) + 2))[: len(workload.values) * 2]
    starts = range(0, len(values) - workload.batch + 1, workload.batch)
    rounds = max(1, workload.records // (len(starts) * workload.batch))
    for start in starts:
        batch(values[start : start + workload.batch], start)
    began = time.process_time()
    for _ in range(rounds):
        for start in starts:
            batch(values[start : start + workload.batch], start)
    return (time.process_time() - began) * 1e6 / (rounds * len(starts) * workload.batch)


def _json(workload: Workload, topic: str) -> Batch:
    run = session(workload.settings["model"]["path"]).run
    parser = simdjson.Parser()
    labels = [orjson.dumps(str(i)) for i in range(CLASSES)]

    def batch(values: list[bytes], first_offset: int) -> list[bytes]:
        records = parser.parse(b"[" + b",".join(values) + b"]")
        buffers = [record["features"].as_buffer(of_type="d") for record in records]
        x = np.frombuffer(b"".join(buffers)).astype(np.float32).reshape(len(values), FEATURES)
        (y,) = run(None, {"x": x})
        return list(
            map(
                _template(topic, 3).__mod__,
                _top3_rows(y, labels, first_offset, len(values)),
            )
        )

    return batch


def _avro(workload: Workload, topic: str) -> Batch:
    """fastavro record by record: of the decoders that are kept for Python it is the quickest."""
    import io
    from operator import itemgetter

    import fastavro

    run = session(workload.settings["model"]["path"]).run
    schema, read = fastavro.parse_schema(AVRO_SCHEMA), fastavro.schemaless_reader
    pick = itemgetter(*(f"f{i}" for i in range(FEATURES)))
    labels = [orjson.dumps(str(i)) for i in range(CLASSES)]

    def batch(values: list[bytes], first_offset: int) -> list[bytes]:
        x = np.array([pick(read(io.BytesIO(value[5:]), schema, None)) for value in values], np.float32)
        (y,) = run(None, {"x": x})
        rows = _top3_rows(y, labels, first_offset, len(values))
        return list(map(_template(topic, 3).__mod__, rows))

    return batch


def _template(topic: str, partition: int) -> bytes:
    """A result's text: what differs by record is a field, the batch's own stage times are text already."""
    name = topic.encode()
    return (
        b'{"id":"%b/%d/%%d","source":{"topic":"%b","partition":%d,"offset":%%d,"timestamp_ms":%%d},'
        b'"model":{"name":"mlp","version":"3f9c2a71"},'
        b'"prediction":{"label":%%b,"score":%%b,"top":[{"label":%%b,"score":%%b},{"label":%%b,"score":%%b},'
        b'{"label":%%b,"score":%%b}]},"latency_ms":{"broker":%%b,"queue":0.412,"decode":0.213,"wait":0.104,'
        b'"infer":0.901,"encode":0.113,"total":%%b}}'
    ) % (name, partition, name, partition)


def _top3_rows(y: Any, labels: list[bytes], first_offset: int, count: int) -> Any:
    best = np.argpartition(-y, 2, axis=1)[:, :3]
    rows = np.arange(count)[:, np.newaxis]
    best = best[rows, np.argsort(-y[rows, best], axis=1, kind="stable")]
    scores = iter(_texts(y[rows, best]))
    stamps = np.full(count, 1763676000123)
    broker_us = np.arange(count) + 1800  # differs by record, as it does in the worker
    names = [[labels[c] for c in column] for column in best.T.tolist()]
    first, second, third = zip(*zip(scores, scores, scores, strict=True), strict=True)
    offsets = range(first_offset, first_offset + count)
    times = _texts(broker_us / 1000), _texts((broker_us + 1743) / 1000)
    return zip(offsets, offsets, stamps.tolist(), names[0], first, names[0], first, names[1], second,
               names[2], third, *times, strict=True)  # fmt: skip


def _texts(values: Any) -> list[bytes]:
    return orjson.dumps(np.ravel(values), option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")


def _raw(workload: Workload, topic: str) -> Batch:
    run = session(workload.settings["model"]["path"]).run
    size = CLASSES * 4

    def batch(values: list[bytes], first_offset: int) -> list[bytes]:
        x = np.frombuffer(b"".join(values), np.float32).reshape(len(values), FEATURES)
        joined = run(None, {"x": x})[0].tobytes()
        return [joined[start : start + size] for start in range(0, len(joined), size)]

    return batch


def _frames(workload: Workload, topic: str) -> Batch:
    run = session(workload.settings["model"]["path"]).run

    def batch(values: list[bytes], first_offset: int) -> list[bytes]:
        x = np.frombuffer(b"".join(values), np.uint8).reshape(len(values), 224, 224, 3)
        return [row.tobytes() for row in run(None, {"x": x})[0]]

    return batch


def _text(workload: Workload, topic: str) -> Batch:
    """Tokens of a batch by one call, texts of like length in one run, the mean over each one's tokens."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(workload.settings["preprocess"]["text"]["tokenizer"])
    tokenizer.no_padding()
    tokenizer.enable_truncation(workload.settings["preprocess"]["text"]["max_length"])
    run = session(workload.settings["model"]["path"]).run

    def batch(values: list[bytes], first_offset: int) -> list[bytes]:
        ids = [found.ids for found in tokenizer.encode_batch_fast([value.decode() for value in values])]
        bodies: list[bytes] = [b""] * len(values)
        for rows in _like_lengths([len(each) for each in ids]):
            x = np.zeros((len(rows), -(-len(ids[rows[0]]) // 8) * 8), np.int64)
            mask = np.zeros_like(x)
            for slot, row in enumerate(rows):
                x[slot, : len(ids[row])] = ids[row]
                mask[slot, : len(ids[row])] = 1
            feeds = {"input_ids": x, "attention_mask": mask, "token_type_ids": np.zeros_like(x)}
            (hidden,) = run(None, feeds)
            for slot, row in enumerate(rows):
                mean = hidden[slot, : len(ids[row])].mean(axis=0)
                unit = mean / np.linalg.norm(mean)
                text = orjson.dumps(unit, option=orjson.OPT_SERIALIZE_NUMPY)
                bodies[row] = b'{"id":"%b/3/%d","prediction":{"embedding":%b}}' % (
                    topic.encode(),
                    first_offset + row,
                    text,
                )
        return bodies

    return batch


def _jpeg(workload: Workload, topic: str) -> Batch:
    cv2.setNumThreads(1)
    run = session(workload.settings["model"]["path"]).run
    height, width = IMAGE["size"]
    x = np.empty((workload.batch, 3, height, width), np.float32)
    tables = [
        ((np.arange(256) * IMAGE["scale"] - mean) / std).astype(np.float32)
        for mean, std in zip(IMAGE["mean"], IMAGE["std"], strict=True)
    ]

    def batch(values: list[bytes], first_offset: int) -> list[bytes]:
        for slot, value in zip(x, values, strict=False):
            picture = cv2.imdecode(np.frombuffer(value, np.uint8), cv2.IMREAD_COLOR_RGB)
            if picture.shape[:2] != (height, width):
                picture = cv2.resize(picture, (width, height))
            for plane, channel, table in zip(slot, cv2.split(picture), tables, strict=True):
                cv2.LUT(channel, table, dst=plane)
        (y,) = run(None, {"x": x[: len(values)]})
        best = y.argmax(axis=1).tolist()
        return [b'{"id":"%b/3/%d","prediction":{"label":"%d"}}' % (topic.encode(), first_offset + i, c)
                for i, c in enumerate(best)]  # fmt: skip

    return batch


def _video(workload: Workload, topic: str) -> Batch:
    import av

    run = session(workload.settings["model"]["path"]).run
    height, width = IMAGE["size"]
    tables = [
        ((np.arange(256) * IMAGE["scale"] - mean) / std).astype(np.float32)
        for mean, std in zip(IMAGE["mean"], IMAGE["std"], strict=True)
    ]

    def batch(values: list[bytes], first_offset: int) -> list[bytes]:
        bodies = []
        for value in values:
            items, due = [], 0.0
            with av.open(io.BytesIO(value), format="mov") as container:
                stream = container.streams.video[0]
                stream.thread_type = "NONE"
                for frame in container.decode(stream):
                    if frame.time < due:
                        continue
                    due += 1
                    picture = cv2.resize(frame.to_ndarray(format="rgb24"), (width, height))
                    item = np.empty((3, height, width), np.float32)
                    for plane, channel, table in zip(item, cv2.split(picture), tables, strict=True):
                        cv2.LUT(channel, table, dst=plane)
                    items.append(item)
            best = run(None, {"x": np.stack(items)})[0].argmax(axis=1).tolist()
            bodies.append(b'{"predictions":%b}' % orjson.dumps(best))
        return bodies

    return batch


def _audio(workload: Workload, topic: str) -> Batch:
    from sound_work import limit

    return limit(session(workload.settings["model"]["path"]).run, topic)


def _like_lengths(lengths: list[int]) -> list[list[int]]:
    """Places in runs, longest first, each padded to at most 1.5 times its own positions."""
    runs: list[list[int]] = []
    total = 0
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if runs and (len(runs[-1]) + 1) * lengths[runs[-1][0]] <= 1.5 * (total + lengths[place]):
            runs[-1].append(place)
            total += lengths[place]
        else:
            runs.append([place])
            total = lengths[place]
    return runs


_MAKERS: dict[str, Callable[[Workload, str], Batch]] = {
    "audio": _audio,
    "json": _json,
    "raw": _raw,
    "avro": _avro,
    "frames": _frames,
    "jpeg": _jpeg,
    "resnet": _jpeg,
    "video": _video,
    "text": _text,
}
