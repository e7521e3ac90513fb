"""The ways a worker is compared with, each a process of its own: `python loops.py JOB.json`.

- ``bare``: consume -> produce in batches with acknowledged outputs and stored offsets, no compute: Kafka's own price;
- ``one_by_one``: what tutorials show: poll one, parse, run one, produce, flush, commit;
- ``improved``: the same, the usual next step: consume many, run each, no flush, commit in the background.

The client properties are the worker's own for ``bare`` and the library's defaults, acknowledged by all, for the others.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime as ort
from confluent_kafka import Consumer, Message, Producer
from limits import by_hand
from workloads import FEATURES, IMAGE, WORKLOADS, Workload

from worker.kafka.properties import consumer_properties, producer_properties
from worker.settings import load


def main(job_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    workload = WORKLOADS[job["workload"]](Path(job["folder"]))
    running = Running()
    if job["way"] == "bare":
        bare(job, workload, running)
    else:
        simple(job, workload, running, one_by_one=job["way"] == "one_by_one")


class Running:
    """True until SIGTERM."""

    def __init__(self) -> None:
        self._stopped = False
        signal.signal(signal.SIGTERM, self._stop)

    def __bool__(self) -> bool:
        return not self._stopped

    def _stop(self, *_: object) -> None:
        self._stopped = True


def bare(job: dict[str, Any], workload: Workload, running: Running) -> None:
    """Batches in, as many real results out; offsets are stored when a batch's outputs are acknowledged."""
    settings = load(Path(job["config"]), [])
    embedded = job["broker"] == "embedded"
    properties = consumer_properties(settings, embedded) | {"enable.auto.commit": True}
    properties["auto.offset.reset"] = "earliest"
    consumer = Consumer(properties)
    producer = Producer(producer_properties(settings))
    consumer.subscribe([job["input"]], on_assign=_announce)
    fetch = fetched_by(workload) if workload.name == "references" else None
    bodies = [bytes(40)] * 10_000 if fetch else by_hand(workload)(workload.values[:100], 1000) * 100
    poll, consume, send = consumer.poll, consumer.consume, producer.produce_batch
    number: Callable[[Message], Any] = Message.partition
    while running:
        first = poll(0.1)
        if first is None:
            producer.poll(0)
            continue
        messages = [first, *consume(job["batch"] * 8 - 1, 0)]
        messages.sort(key=number)
        values = list(map(Message.value, messages))
        if fetch is not None:
            fetch(values)
        for partition, run in groupby(messages, number):
            part = list(run)
            acknowledged = _Countdown(consumer, part)
            rows = [{"value": body} for body in bodies[: len(part)]]
            sent = 0
            while True:
                sent += send(job["output"], rows[sent:], partition=partition % job["outputs"],
                             on_delivery=acknowledged)  # fmt: skip
                if sent == len(rows):
                    break
                producer.poll(0.01)
        producer.poll(0)
    producer.flush()
    consumer.close()


def fetched_by(workload: Workload) -> Callable[[list[Any]], list[Any]]:
    """What a client by hand does: 32 threads, each asks for an object by the store's own kept client."""
    from concurrent.futures import ThreadPoolExecutor

    import obstore
    from obstore.store import S3Store

    options = workload.settings["input"]["reference"]["options"]
    store = S3Store("frames", config=options, client_options={"allow_http": True})
    threads = ThreadPoolExecutor(32)

    def one(value: bytes) -> bytes:
        return obstore.get(store, json.loads(value)["url"].rpartition("/")[2]).bytes().to_bytes()

    return lambda values: list(threads.map(one, values))


class _Countdown:
    """Delivery callback of one batch: when the last output is acknowledged, the batch's offset is stored."""

    def __init__(self, consumer: Consumer, messages: list[Message]) -> None:
        self._left = len(messages)
        self._consumer = consumer
        self._last = messages[-1]

    def __call__(self, error: Any, _message: Message) -> None:
        if error is not None:
            raise RuntimeError(str(error))
        self._left -= 1
        if not self._left:
            self._consumer.store_offsets(message=self._last)


def simple(job: dict[str, Any], workload: Workload, running: Running, one_by_one: bool) -> None:
    """One record at a time through the library's default session."""
    session = ort.InferenceSession(workload.settings["model"]["path"], providers=["CPUExecutionProvider"])
    predict = _PREDICT[workload.name]
    fetch_wait = {"fetch.wait.max.ms": 5} if job["broker"] == "embedded" else {}
    common = {"bootstrap.servers": job["bootstrap"]}
    consumer = Consumer(
        {**common, "group.id": job["group"], "auto.offset.reset": "earliest", **fetch_wait}
        | {"enable.auto.commit": not one_by_one, "session.timeout.ms": 45_000}
    )
    producer = Producer({**common, "acks": "all"})
    consumer.subscribe([job["input"]], on_assign=_announce)
    while running:
        if one_by_one:
            message = consumer.poll(0.1)
            messages = [message] if message is not None else []
        else:
            messages = consumer.consume(500, 0.1)
        for message in messages:
            body = predict(session, message)
            while True:
                try:
                    producer.produce(job["output"], body, key=message.key())
                    break
                except BufferError:
                    producer.poll(0.1)
            if one_by_one:
                producer.flush()
                consumer.commit(message, asynchronous=False)
        producer.poll(0)
    producer.flush()
    consumer.close()


def _announce(_consumer: Consumer, _partitions: Any) -> None:
    """The same word by which the worker tells that it has its partitions."""
    print('"assigned"', file=sys.stderr, flush=True)


def _predict_json(session: Any, message: Message) -> bytes:
    x = np.array([json.loads(message.value() or b"")["features"]], np.float32)
    (y,) = session.run(None, {"x": x})
    return _result(message, y[0])


def _predict_raw(session: Any, message: Message) -> bytes:
    x = np.frombuffer(message.value() or b"", np.float32).reshape(1, FEATURES)
    return session.run(None, {"x": x})[0][0].tobytes()


def _predict_jpeg(session: Any, message: Message) -> bytes:
    picture = cv2.imdecode(np.frombuffer(message.value() or b"", np.uint8), cv2.IMREAD_COLOR)
    picture = cv2.cvtColor(cv2.resize(picture, IMAGE["size"]), cv2.COLOR_BGR2RGB)
    x = (picture.astype(np.float32) * IMAGE["scale"] - np.array(IMAGE["mean"])) / np.array(IMAGE["std"])
    (y,) = session.run(None, {"x": x.transpose(2, 0, 1)[np.newaxis].astype(np.float32)})
    return _result(message, y[0])


def _predict_text(session: Any, message: Message) -> bytes:
    found = _tokenizer().encode((message.value() or b"").decode())
    tensors = {
        "input_ids": found.ids,
        "attention_mask": found.attention_mask,
        "token_type_ids": found.type_ids,
    }
    (hidden,) = session.run(None, {name: np.array([each], np.int64) for name, each in tensors.items()})
    mean = hidden[0].mean(axis=0)
    source = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
    embedding = (mean / np.linalg.norm(mean)).tolist()
    return json.dumps({"source": source, "prediction": {"embedding": embedding}}).encode()


@cache
def _tokenizer() -> Any:
    import tokenizers
    from text_models import minilm

    made = tokenizers.Tokenizer.from_file(str(minilm()[1]))
    made.no_padding()
    made.enable_truncation(512)
    return made


def _result(message: Message, scores: Any) -> bytes:
    best = np.argsort(-scores)[:3]
    top = [{"label": str(c), "score": float(scores[c])} for c in best]
    source = {"topic": message.topic(), "partition": message.partition(), "offset": message.offset()}
    return json.dumps({"source": source, "prediction": {**top[0], "top": top}}).encode()


_PREDICT: dict[str, Callable[[Any, Message], bytes]] = {
    "json": _predict_json,
    "raw": _predict_raw,
    "jpeg": _predict_jpeg,
    "resnet": _predict_jpeg,
    "text": _predict_text,
}

if __name__ == "__main__":
    main(sys.argv[1])
