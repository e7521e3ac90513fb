"""Sends load to the input topic on a schedule and collects every result and dead letter.

The sender is a separate process: one interpreter that both sends and parses results would do both late.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from worker.batch import CONTENT_LENGTH, STAGES, Headers
from worker.bench.trial import Answers, Sent, place_code
from worker.errors import ConfigError, StartError
from worker.kafka.headers import readable_headers
from worker.kafka.measuring import EndReader, LoadProducer
from worker.kafka.properties import producer_properties
from worker.kafka.topics import open_topics
from worker.topics import is_pattern

if TYPE_CHECKING:
    from confluent_kafka import Message

    from worker.settings import PipelineSettings, Settings

RUN_S = 0.002
"""How long the sender stays with one partition, as producers do with records without a key (KIP-794). A new partition
for each record would need one request per record, and the trial would measure the broker."""
SLEEP_S = 0.0001
"""Longest sleep between records; the client sends in the background meanwhile."""
PATIENCE_S = 10.0
"""Longest wait for the first result. After this long without any output, missing records count as lost."""
LISTEN_S = 1.0
"""For so long nothing is sent, to see whether others send to the topic."""
TIMES = (*STAGES, "total")


class Load:
    """Sends records through one pipeline of a running group and reads its outputs; a context manager.

    Args:
        settings: the group's own settings.
        pipeline: which of its pipelines.
        values: the records' values, sent in a cycle.

    Raises:
        ConfigError: results of this pipeline do not name their input record.
        StartError: the broker cannot be reached, or a topic is missing.
    """

    def __init__(self, settings: Settings, pipeline: PipelineSettings, values: Sequence[bytes]) -> None:
        output = pipeline.output
        if pipeline.input.window is not None:
            raise ConfigError(
                "input.window: bench waits for a result of each record, and most samples have none"
            )
        if (output.format in ("tensor", "npy") or output.body is not None) and output.headers == "none":
            kind = output.format if output.body is None else "output.body"
            raise ConfigError(
                f"output.headers: none leaves nothing in a {kind} result that says which record it is of; "
                "expected trace"
            )
        if output.kafka is not None:
            raise ConfigError("output.kafka: bench measures results on the cluster of kafka only")
        self._topic = pipeline.input.topics[0]
        if is_pattern(self._topic):
            raise ConfigError(
                f"input.topics: got '{self._topic}', expected the name of a topic first: bench sends records to it"
            )
        topics = open_topics(settings)
        self.partitions = topics.partitions[self._topic]
        """Of the topic that is sent to."""
        self._silence = (
            f"no result came on topic {output.topic} within {PATIENCE_S:.0f} s: is a worker of group "
            f"{settings.kafka['group.id']} running, and has it done what was waiting on {self._topic}?"
        )
        read = (output.topic, settings.dead_letter.topic)
        self._reader = _Reader(
            settings, topics.embedded, {name: topics.partitions[name] for name in read}, output, self._topic
        )
        headers: Headers | None = (
            [(pipeline.when.header, pipeline.when.equals.encode())] if pipeline.when else None
        )
        plan = SendPlan(
            producer_properties(settings, topics.limits),
            self._topic,
            topics.partitions[self._topic],
            list(values),
            headers,
        )
        # spawned, not forked: fork does not copy librdkafka's threads
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._sender = context.Process(target=send, args=(plan, theirs), name="sender", daemon=True)
        self._sender.start()
        theirs.close()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pipe.close()  # this ends the sender
        self._sender.join(5)
        if self._sender.is_alive():
            self._sender.terminate()
        self._reader.close()

    def of_others(self) -> tuple[int, int]:
        """How many records the input topic holds, and how many came within ``LISTEN_S`` although nothing was sent here."""
        held, before = self._reader.extent(self._topic, self.partitions)
        time.sleep(LISTEN_S)
        return held, self._reader.extent(self._topic, self.partitions)[1] - before

    @property
    def result_bytes(self) -> float:
        """Mean size of a result's value in bytes; 0 before the first one."""
        return self._reader.result_bytes

    @property
    def model(self) -> dict[str, str] | None:
        """``name`` and ``version`` of the model that gave the last result; None where results do not say."""
        return self._reader.model

    def probe(self) -> None:
        """Send one record and wait for its result, before many are sent.

        Raises:
            StartError: nothing came back.
        """
        sent, answers = self.run(1.0, 1)
        if not np.isin(sent.places, answers.places).any():
            raise StartError(self._silence)

    def run(self, per_s: float, count: int) -> tuple[Sent, Answers]:
        """Send ``count`` records at ``per_s``, and wait until all are answered or no output came for ``PATIENCE_S``.

        Raises:
            StartError: the sender cannot reach the broker.
        """
        self._reader.clear()
        self._pipe.send((per_s, count))
        sent: Sent | None = None
        quiet_since = time.monotonic()
        while sent is None or (
            self._reader.distinct < np.count_nonzero(sent.places >= 0)
            and time.monotonic() - quiet_since < PATIENCE_S
        ):
            if sent is None and self._pipe.poll():
                sent = self._received()
                quiet_since = time.monotonic()
            if self._reader.read():
                quiet_since = time.monotonic()
        return sent, self._reader.answers()

    def _received(self) -> Sent:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise StartError("the load generator ended before its last record was acknowledged") from None
        if isinstance(answer, str):
            raise StartError(answer)
        assert isinstance(answer, Sent)
        return answer


# -- results ---------------------------------------------------------------------------------------------


class _Reader:
    """Reads new results and dead letters, and finds the input record of each."""

    def __init__(
        self, settings: Settings, embedded: bool, topics: dict[str, int], output: Any, input_topic: str
    ) -> None:
        self._messages = EndReader(settings, embedded, topics, PATIENCE_S)
        self._dead_letters = settings.dead_letter.topic
        self._input = input_topic
        by_format = {"json": _find_json, "oip": _find_oip}
        self._find = by_format.get(output.format, _find_header) if output.body is None else _find_header
        self._results = self._result_bytes = 0
        self._last: Message | None = None
        self.clear()

    def extent(self, topic: str, partitions: int) -> tuple[int, int]:
        """See :meth:`EndReader.extent`."""
        return self._messages.extent(topic, partitions, PATIENCE_S)

    @property
    def result_bytes(self) -> float:
        """Mean size of all results' values since the start."""
        return self._result_bytes / self._results if self._results else 0.0

    @property
    def model(self) -> dict[str, str] | None:
        """Of the last result, where it says."""
        try:
            model = orjson.loads(self._last.value() or b"")["model"] if self._last is not None else None
            return {"name": model["name"], "version": model["version"]} if model else None
        except (KeyError, TypeError, ValueError):
            return None

    def clear(self) -> None:
        """Forget all outputs read so far."""
        self._places: list[int] = []
        self._times: list[int] = []
        self._dead: list[bool] = []
        self._stages: list[tuple[float, ...]] = []
        self._seen: set[int] = set()

    @property
    def distinct(self) -> int:
        """Number of different records that were answered."""
        return len(self._seen)

    def read(self) -> int:
        """Read the outputs that have arrived; wait 5 ms for the first. Returns how many belong to our input topic."""
        messages = self._messages.read(0.005, 10_000)
        now_ns = time.monotonic_ns()
        before = len(self._places)
        for message in messages:
            self._add(message)
        self._times += [now_ns] * (len(self._places) - before)
        self._seen.update(self._places[before:])
        return len(self._places) - before

    def answers(self) -> Answers:
        """Everything since :meth:`clear`."""
        table = np.array(self._stages, np.float64).reshape(len(self._stages), len(TIMES))
        return Answers(
            np.array(self._places, np.int64),
            np.array(self._times, np.int64),
            np.array(self._dead, bool),
            {stage: table[:, i] for i, stage in enumerate(TIMES)},
        )

    def close(self) -> None:
        self._messages.close()

    def _add(self, message: Message) -> None:
        dead = message.topic() == self._dead_letters
        try:
            topic, partition, offset, times = (_find_dead if dead else self._find)(message)
        except (KeyError, ValueError, TypeError):
            return  # not an output of a worker, or one that does not name its record
        if topic == self._input:
            if not dead:
                self._last = message
                self._results += 1
                self._result_bytes += len(message.value() or b"")
            self._places.append(place_code(partition, offset))
            self._dead.append(dead)
            self._stages.append(times)


_UNTIMED = (float("nan"),) * len(TIMES)
_Found = tuple[str, int, int, tuple[float, ...]]


def _find_json(message: Message) -> _Found:
    result = orjson.loads(message.value() or b"")
    source, times = result["source"], result.get("latency_ms")
    timed = tuple(times[stage] for stage in TIMES) if times else _UNTIMED
    return source["topic"], source["partition"], source["offset"], timed


def _find_oip(message: Message) -> _Found:
    value, headers = message.value() or b"", _headers(message)
    length = headers.get(CONTENT_LENGTH)
    response = orjson.loads(value[: int(length)] if length else value)
    return _place(response["parameters"]["source"])


def _find_header(message: Message) -> _Found:
    return _place(_headers(message)["streaminfer.source"].decode())


def _find_dead(message: Message) -> _Found:
    headers = _headers(message)
    topic, partition, offset = (
        headers[f"__connect.errors.{name}"] for name in ("topic", "partition", "offset")
    )
    return topic.decode(), int(partition), int(offset), _UNTIMED


def _place(text: str) -> _Found:
    topic, partition, offset = text.rsplit("/", 2)
    return topic, int(partition), int(offset), _UNTIMED


def _headers(message: Message) -> dict[str, bytes]:
    return {
        name.lower() if name.startswith("i") else name: value or b""
        for name, value in readable_headers(message)
    }


# -- the sender's process --------------------------------------------------------------------------------


@dataclass
class SendPlan:
    """The sender's task: where to send, and what."""

    properties: dict[str, Any]
    topic: str
    partitions: int
    values: list[bytes]
    headers: Headers | None

    def __post_init__(self) -> None:
        self.properties.pop("logger", None)  # a logger stays in its process
        self.properties |= {"linger.ms": 0.5, "message.timeout.ms": 30_000, "log_level": 2}


@dataclass
class _Progress:
    """One trial as the sender sees it; aligned by record."""

    sent_ns: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


def send(plan: SendPlan, pipe: Connection) -> None:
    """Serve trials until the other end closes: (per_s, count) in, :class:`Sent` or a sentence out."""
    producer = LoadProducer(plan.properties, plan.topic)
    number = 0
    while True:
        try:
            per_s, count = pipe.recv()
            pipe.send(_send_trial(plan, producer, per_s, count, number))
        except (EOFError, BrokenPipeError, KeyboardInterrupt):
            return
        number += count


def _send_trial(plan: SendPlan, producer: LoadProducer, per_s: float, count: int, number: int) -> Sent:
    """Send each record as close to its due time as possible, in short runs to each partition in turn.

    Returns when the broker has acknowledged all of them.

    Args:
        number: number of the first record over all trials, so that a trial continues with the next value.
    """
    progress = _Progress([0] * count, [-1] * count)
    run = max(1, round(per_s * RUN_S))
    start_ns = time.monotonic_ns() + 1_000_000
    due_ns = start_ns + (np.arange(count) * (1e9 / per_s)).astype(np.int64)
    sent = 0
    while sent < count:
        now_ns = time.monotonic_ns()
        due = min(int((now_ns - start_ns) * per_s / 1e9) + 1, count) if now_ns >= start_ns else 0
        for row in range(sent, due):
            _produce(plan, producer, progress, row, number + row, (number + row) // run % plan.partitions)
        producer.poll()
        sent = max(sent, due)
        if sent < count:
            time.sleep(max(0.0, min(SLEEP_S, (int(due_ns[sent]) - time.monotonic_ns()) / 1e9)))
    producer.flush(60)
    return Sent(due_ns, np.array(progress.sent_ns, np.int64), np.array(progress.places, np.int64))


def _produce(
    plan: SendPlan, producer: LoadProducer, progress: _Progress, row: int, number: int, partition: int
) -> None:
    def placed(partition: int, offset: int) -> None:
        progress.places[row] = place_code(partition, offset)

    producer.send(plan.values[number % len(plan.values)], partition, plan.headers, placed)
    progress.sent_ns[row] = time.monotonic_ns()
