"""Traces: spans of sampled records, through the real loop and engine, read by OpenTelemetry's own classes."""

from __future__ import annotations

import gc
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import orjson
import pytest
from fakes import FakeTransactions, Message
from otlp_receiver import Receiver, attributes, receiver
from trace_support import BAD, FINE, SAMPLED, SPAN, TRACE, UNSAMPLED, Done, Traced
from world import Figures

from worker.errors import Retry
from worker.loop.exactly_once import ExactlyOnce
from worker.settings.tracing import WAITING_BYTES, TracingSettings, tracing_of
from worker.telemetry.span_exporter import QUEUE_RECORDS

CONSUMER, PRODUCER, INTERNAL, ERROR = 5, 4, 1, 2
STAGES = ["queue", "decode", "wait", "infer", "encode", "hold"]


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


def headers_of(message: Message) -> dict[str, bytes | None]:
    return dict(message.headers or ())


def kinds(spans: list[Any]) -> Counter[str]:
    """Spans by the first word of their name."""
    return Counter(span.name.split()[0] for span in spans)


# -- what is told ------------------------------------------------------------------------------------------------


def test_a_sampled_record_leaves_process_stages_and_send(collector: Receiver, tmp_path: Path) -> None:
    """The span `process` continues the record's trace, the stages and `send` are its children and lie inside it in order."""
    traced = Traced(tmp_path, collector)
    traced.append(FINE, SAMPLED, key=b"user-1", timestamp_ms=1)
    traced.answer()
    assert traced.close() == {"sent": 9, "failed": 0, "dropped_rate": 0, "dropped_full": 0}
    (process,), (send,) = collector.named("process"), collector.named("send")
    assert (process.name, process.kind) == ("process in", CONSUMER)
    assert (process.trace_id.hex(), process.parent_span_id.hex()) == (TRACE, SPAN)
    assert process.trace_state == "vendor=1"
    assert process.flags == 0x301
    """Sampled, and the parent is remote."""
    assert (send.name, send.kind, send.parent_span_id) == ("send results", PRODUCER, process.span_id)
    children = [span for span in collector.spans if span.parent_span_id == process.span_id]
    assert [span.name for span in children] == [*STAGES, "send results"]
    at_ns = process.start_time_unix_nano
    for child in children:
        assert child.trace_id == process.trace_id
        assert at_ns <= child.start_time_unix_nano <= child.end_time_unix_nano
        at_ns = child.start_time_unix_nano
    assert children[-1].end_time_unix_nano <= process.end_time_unix_nano
    assert len({span.span_id for span in collector.spans}) == 9


def test_spans_have_the_attributes_of_the_messaging_conventions(collector: Receiver, tmp_path: Path) -> None:
    """Topic, partition, offset, key, group, client, sizes and model stand in the spans under OpenTelemetry's names."""
    traced = Traced(tmp_path, collector)
    traced.append(FINE, UNSAMPLED)
    traced.append(FINE, SAMPLED, key=b"user-1")
    traced.answer()
    traced.close()
    (process,), (send,), (batch,) = (collector.named(name) for name in ("process", "send", "batch"))
    common = {
        "messaging.system": "kafka",
        "messaging.client.id": "client",
        "messaging.kafka.message.key": "user-1",
    }
    assert attributes(process) == {
        **common,
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.consumer.group.name": "group",
        "messaging.destination.name": "in",
        "messaging.destination.partition.id": "0",
        "messaging.kafka.offset": 1,
        "messaging.message.body.size": len(FINE),
        "streaminfer.pipeline": "worker",
        "streaminfer.model.name": "net",
        "streaminfer.model.version": "7",
    }
    assert attributes(send) == {
        **common,
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "results",
        "messaging.message.body.size": len(traced.kafka.landed[1].value or b""),
    }
    assert attributes(batch) == {
        "messaging.system": "kafka",
        "messaging.batch.message_count": 2,
        "streaminfer.pipeline": "worker",
        "streaminfer.model.name": "net",
        "streaminfer.model.version": "7",
        "streaminfer.batch.items": 2,
        "streaminfer.batch.runs": 1,
    }
    assert collector.resource == {"service.name": "worker"}


def test_a_batch_has_one_span_with_links_to_its_traced_records(collector: Receiver, tmp_path: Path) -> None:
    """Two of three records in a batch are sampled: one span of a trace of its own has two links, which lead back."""
    traced = Traced(tmp_path, collector)
    for headers in (SAMPLED, UNSAMPLED, SAMPLED):
        traced.append(FINE, headers)
    traced.answer()
    traced.close()
    (batch,), processes = collector.named("batch worker"), collector.named("process")
    assert [(link.trace_id, link.span_id) for link in batch.links] == [
        (process.trace_id, process.span_id) for process in processes
    ]
    assert len(processes) == 2
    assert batch.trace_id.hex() != TRACE
    assert batch.parent_span_id == b""
    for process in processes:
        assert [(link.trace_id, link.span_id) for link in process.links] == [(batch.trace_id, batch.span_id)]


def test_an_unsampled_record_leaves_no_span_and_keeps_its_headers(
    collector: Receiver, tmp_path: Path
) -> None:
    """Records without the sampled flag, without a traceparent or with a broken one have no span; results carry what
    came, byte for byte."""
    broken = [("traceparent", b"00-zz-01"), ("tracestate", b"a=b")]
    shouted = [("traceparent", f"00-{TRACE.upper()}-{SPAN}-01".encode())]
    given = [UNSAMPLED, None, broken, shouted, [("traceparent", None)]]
    traced = Traced(tmp_path, collector)
    for headers in given:
        traced.append(FINE, headers)
    assert [message.headers for message in traced.answer()] == given
    assert not any(traced.close().values())
    assert collector.asked == 0


# -- what results carry ------------------------------------------------------------------------------------------


def test_a_result_carries_the_context_of_its_send_span(collector: Receiver, tmp_path: Path) -> None:
    """`traceparent` of the result is the send span's, in the record's trace; `tracestate` is kept."""
    traced = Traced(tmp_path, collector)
    traced.append(FINE, [("traceparent", b"00-not-the-last"), *SAMPLED])
    (message,) = traced.answer()
    traced.close()
    (send,) = collector.named("send")
    assert message.headers == [
        ("tracestate", b"vendor=1"),
        ("traceparent", f"00-{TRACE}-{send.span_id.hex()}-01".encode()),
    ]


@pytest.mark.parametrize(
    ("headers", "carried"), [("none", False), (["x-other"], False), ("all", True), (["traceparent"], True)]
)
def test_only_results_that_carry_the_trace_get_the_new_context(
    collector: Receiver, tmp_path: Path, headers: Any, carried: bool
) -> None:
    """A result has a traceparent if `output.headers` copies it; the spans are there in any case."""
    traced = Traced(tmp_path, collector, output={"topic": "results", "headers": headers})
    traced.append(FINE, SAMPLED)
    (message,) = traced.answer()
    traced.close()
    (send,) = collector.named("send")
    wanted = f"00-{TRACE}-{send.span_id.hex()}-01".encode() if carried else None
    assert headers_of(message).get("traceparent") == wanted


def test_a_tombstone_that_is_passed_on_is_traced(collector: Receiver, tmp_path: Path) -> None:
    """A null value that no model sees has the spans process and send, and its output the new context."""
    traced = Traced(tmp_path, collector)
    traced.append(None, SAMPLED, key=b"gone")
    (message,) = traced.answer()
    assert traced.close()["sent"] == 2
    (process,), (send,) = collector.named("process"), collector.named("send")
    assert attributes(process)["messaging.kafka.message.tombstone"] is True
    assert not process.links
    assert headers_of(message)["traceparent"] == f"00-{TRACE}-{send.span_id.hex()}-01".encode()


def test_a_dropped_record_leaves_one_span(collector: Receiver, tmp_path: Path) -> None:
    """A tombstone that `input.tombstone: drop` leaves out has the span process alone, for it has no output."""
    wanted = {"topics": ["in"], "format": "json", "tombstone": "drop"}
    traced = Traced(tmp_path, collector, input=wanted)
    traced.append(None, SAMPLED)
    assert traced.answer() == []
    assert traced.close()["sent"] == 1
    assert [span.name for span in collector.spans] == ["process in"]


def test_a_dead_letter_has_the_error_in_its_span(collector: Receiver, tmp_path: Path) -> None:
    """A refused record's span has the status error with reason and stage; its dead letter keeps the headers it came with."""
    traced = Traced(tmp_path, collector)
    traced.append(BAD, SAMPLED)
    traced.append(b"[", SAMPLED)
    messages = traced.answer()
    assert traced.close()["sent"] == 5
    processes = collector.named("process")
    assert [attributes(each)["error.type"] for each in processes] == ["invalid", "undecodable"]
    assert {attributes(each)["streaminfer.stage"] for each in processes} == {"decode"}
    assert all(each.status.code == ERROR and each.status.message for each in processes)
    assert processes[0].status.message.endswith("expected 4 elements, got 1")
    assert [each.name for each in collector.named("send")] == ["send dead-letters"] * 2
    assert all(headers_of(each)["traceparent"] == SAMPLED[0][1] for each in messages)


def test_a_result_that_its_topic_refuses_ends_in_an_error_span(collector: Receiver, tmp_path: Path) -> None:
    """A result too large for its topic becomes a dead letter after its spans were begun: they tell of the dead letter."""
    traced = Traced(tmp_path, collector)
    traced.sink.limits["results"] = 64
    traced.append(FINE, SAMPLED)
    (letter,) = traced.answer()
    traced.close()
    (process,), (send,) = collector.named("process"), collector.named("send")
    assert attributes(process)["error.type"] == "too_large_output"
    assert (send.name, letter.topic) == ("send dead-letters", "dead-letters")
    assert headers_of(letter)["traceparent"] == SAMPLED[0][1]


# -- which records -----------------------------------------------------------------------------------------------


def test_a_share_of_the_records_without_a_traceparent_begin_traces(
    collector: Receiver, tmp_path: Path
) -> None:
    """With `sample: 0.1` a tenth of the records without a traceparent begin a trace; one that is not sampled never is."""
    traced = Traced(tmp_path, collector, {"sample": 0.1, "max_per_s": 10_000})
    for number in range(2000):
        traced.append(FINE, UNSAMPLED if number % 2 else None)
    messages = traced.answer()
    traced.close()
    processes = collector.named("process")
    assert 70 < len(processes) < 130  # 100 are expected, the standard deviation is 9.5
    assert {attributes(each)["messaging.kafka.offset"] % 2 for each in processes} == {0}
    assert all(each.parent_span_id == b"" and each.flags == 0x101 for each in processes)
    assert len({each.trace_id for each in processes}) == len(processes)
    begun = {f"00-{each.trace_id.hex()}-{each.span_id.hex()}-01".encode() for each in collector.named("send")}
    rootless = [headers_of(message).get("traceparent") for message in messages[::2]]
    assert {each for each in rootless if each} == begun
    assert all(message.headers == UNSAMPLED for message in messages[1::2])


def test_a_broken_traceparent_begins_a_new_trace_without_its_state(
    collector: Receiver, tmp_path: Path
) -> None:
    """A record whose traceparent is broken counts as one without; the result gets neither of its headers."""
    traced = Traced(tmp_path, collector, {"sample": 1.0})
    traced.append(FINE, [("traceparent", b"00-0-0-01"), ("tracestate", b"a=b")])
    (message,) = traced.answer()
    traced.close()
    (send,) = collector.named("send")
    context = f"00-{send.trace_id.hex()}-{send.span_id.hex()}-01".encode()
    assert message.headers == [("traceparent", context)]


def test_records_over_the_rate_have_no_spans_and_are_counted(collector: Receiver, tmp_path: Path) -> None:
    """Of 50 sampled records in one moment 20 are traced at `max_per_s: 20`; the spans of the others are counted, and
    their results carry the trace context as it came."""
    traced = Traced(tmp_path, collector, {"max_per_s": 20})
    for number in range(50):
        traced.append(BAD if number % 10 == 3 else FINE, SAMPLED)
    messages = traced.answer()
    counts = traced.close()
    assert len(collector.named("process")) == 20
    batches = len(collector.named("batch"))
    assert counts["sent"] == len(collector.spans) == 18 * 8 + 2 * 2 + batches
    assert counts["dropped_rate"] == 27 * 8 + 3 * 2
    later = [message for message in messages if message.topic == "results"][18:]
    assert [message.headers for message in later] == [SAMPLED] * 27


@pytest.mark.slow
def test_what_waits_for_the_collector_fits_into_what_check_says(collector: Receiver, tmp_path: Path) -> None:
    """While the collector does not answer, records with the longest keys, states and reasons that are told wait, as many
    as may: they take less than the memory sum has for them, and the spans of all others are dropped."""
    collector.hold.clear()
    traced = Traced(tmp_path, collector, {"max_per_s": 1_000_000})
    state = ("tracestate", b"vendor=" + b"x" * 1000)
    traced.append(FINE, SAMPLED)
    traced.answer()
    while not collector.asked:
        time.sleep(0.005)
    records = QUEUE_RECORDS + 100
    for number in range(records):
        traced.append(b'{"features": ["%s"]}' % (b"n" * 2000), [SAMPLED[0], state], key=b"%0256d" % number)
    tracemalloc.start()
    traced.answer(5000)
    traced.kafka.landed.clear()
    gc.collect()
    with_spans = tracemalloc.get_traced_memory()[0]
    assert traced.exporter.counts()["dropped_full"] == 2 * 100 + 1  # the last batch has only such
    traced.exporter.close(0.01)
    gc.collect()
    waited = with_spans - tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert QUEUE_RECORDS * 1000 < waited < WAITING_BYTES
    assert traced.exporter.counts()["failed"] == 9 + 2 * QUEUE_RECORDS + 1
    collector.hold.set()
    while any(thread.name == "spans" for thread in threading.enumerate()):
        time.sleep(0.005)


def test_the_rate_comes_back_with_time(collector: Receiver, tmp_path: Path) -> None:
    """A second later as many records are traced again."""
    traced = Traced(tmp_path, collector, {"max_per_s": 3})
    for _ in range(2):
        for _ in range(10):
            traced.append(FINE, SAMPLED)
        traced.answer()
        traced.clock.advance(1.0)
    traced.close()
    assert len(collector.named("process")) == 6


def test_the_choice_of_records_changes_while_they_come(collector: Receiver, tmp_path: Path) -> None:
    """Other figures count from the next record on: none of the first ten is traced, then two a second of those without a trace."""
    traced = Traced(tmp_path, collector, {"sample": 0.0})
    for tracing in (None, {"sample": 1.0, "max_per_s": 2}):
        if tracing is not None:
            how = tracing_of(TracingSettings.model_validate(tracing), {})
            assert how is not None
            traced.tracer.follow(how)
        for _ in range(10):
            traced.append(FINE)
        traced.answer()
    traced.close()
    assert [attributes(each)["messaging.kafka.offset"] for each in collector.named("process")] == [10, 11]


# -- every way through the loop ----------------------------------------------------------------------------------


def test_batches_that_leave_before_their_turn_are_traced_once(collector: Receiver, tmp_path: Path) -> None:
    """With `order: none` every sampled record has one process span and its result the context of its one send span."""
    figures = Figures(ordered=False, limit_bytes=256 << 20)
    traced = Traced(tmp_path, collector, figures=figures, batching={"max_size": 4, "max_wait_ms": 1})
    for number in range(24):
        traced.append(FINE if number % 5 else BAD, SAMPLED if number % 2 else None)
    messages = traced.answer()
    traced.close()
    offsets = [attributes(each)["messaging.kafka.offset"] for each in collector.named("process")]
    assert sorted(offsets) == list(range(1, 24, 2))
    carried = [
        headers_of(each)["traceparent"] for each in messages if each.topic == "results" and each.headers
    ]
    sent = [f"00-{TRACE}-{each.span_id.hex()}-01".encode() for each in collector.named("send results")]
    assert sorted(carried) == sorted(sent)
    linked = [link.span_id for each in collector.named("batch") for link in each.links]
    assert sorted(linked) == sorted(each.span_id for each in collector.named("process"))


def durations(spans: list[Any], process: Any) -> dict[str, float]:
    """Milliseconds of the stages of a record."""
    return {
        span.name: (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6
        for span in spans
        if span.parent_span_id == process.span_id and span.name in STAGES
    }


def test_stages_last_as_long_as_the_result_says(collector: Receiver, tmp_path: Path) -> None:
    """Whether a record was run, answered from memory or equal to another one, its spans have the stages of its result."""
    traced = Traced(tmp_path, collector, cache={}, batching={"max_size": 4, "max_wait_ms": 1})
    for number in range(24):
        traced.append(b'{"features": [%d, 2, 3, 4]}' % (number % 5), SAMPLED)
    messages = traced.answer()
    traced.close()
    results = {
        result["source"]["offset"]: result for result in (orjson.loads(m.value or b"") for m in messages)
    }
    assert {"cached" in result for result in results.values()} == {True, False}
    assert len(collector.named("process")) == 24
    for process in collector.named("process"):
        told = durations(collector.spans, process)
        said = results[attributes(process)["messaging.kafka.offset"]]["latency_ms"]
        assert told.pop("hold") >= 0
        assert told == pytest.approx({stage: said[stage] for stage in told})
        assert list(told) == STAGES[:-1]


def test_the_span_of_a_record_begins_when_it_was_taken_itself(collector: Receiver, tmp_path: Path) -> None:
    """Of two records that run together the second was taken 30 ms later: so much later its span begins."""
    traced = Traced(tmp_path, collector, batching={"max_size": 64, "max_wait_ms": 1000})
    conductor, opened = traced.world.conductor, traced.world.intakes[0].open
    conductor.turn()  # joins the group
    for records in (1, 2):
        traced.append(FINE, SAMPLED)
        conductor.take()
        assert len(opened) == records
        traced.clock.advance(0.03)
    later_ms = (traced.clock() - opened.first_ns) / 1e6
    traced.answer()
    traced.close()
    first, second = collector.named("process")
    apart_ms = (second.start_time_unix_nano - first.start_time_unix_nano) / 1e6
    assert 30 <= apart_ms <= later_ms
    assert len(collector.named("batch")) == 1


def test_a_record_that_is_tried_again_has_the_stages_of_its_last_try(
    collector: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Custom code wants the second of three records again: each has one process span, with the stages of its own result."""
    asked: list[bytes] = []

    def decode(value: bytes, headers: Any) -> dict[str, Any]:
        asked.append(value)
        if value == b"later" and asked.count(value) == 1:
            raise Retry("away", 1.0)
        return {"x": np.zeros(4, np.float32)}

    module: Any = ModuleType("users_code")
    module.decode = decode
    monkeypatch.setitem(sys.modules, "users_code", module)
    traced = Traced(tmp_path, collector, input={"topics": ["in"], "format": "users_code:decode"})
    for value in (b"now", b"later", b"now"):
        traced.append(value, SAMPLED)
    messages = traced.answer(5000)
    assert traced.close()["sent"] == 3 * 8 + 1
    assert asked.count(b"later") == 2
    results = {
        result["source"]["offset"]: result for result in (orjson.loads(m.value or b"") for m in messages)
    }
    for process in collector.named("process"):
        offset = attributes(process)["messaging.kafka.offset"]
        told = durations(collector.spans, process)
        del told["hold"]
        assert told == pytest.approx({stage: results[offset]["latency_ms"][stage] for stage in told})
        assert (told["queue"] > 900) == (offset == 1)


def test_the_batch_says_what_each_step_did(collector: Receiver, tmp_path: Path) -> None:
    """With two steps the span of the batch has items, runs and time of both, which sum to the stage infer."""
    steps = [{"name": name, "model": {"path": "model.onnx", "threads": 0}} for name in ("first", "second")]
    traced = Traced(tmp_path, collector, steps=steps)
    for _ in range(3):
        traced.append(FINE, SAMPLED)
    traced.answer()
    traced.close()
    (batch,) = collector.named("batch")
    its = attributes(batch)
    for name in ("first", "second"):
        assert (its[f"streaminfer.step.{name}.items"], its[f"streaminfer.step.{name}.runs"]) == (3, 1)
    told = durations(collector.spans, collector.named("process")[0])
    both = its["streaminfer.step.first.ms"] + its["streaminfer.step.second.ms"]
    assert both == pytest.approx(told["infer"])
    assert both > 0


def test_a_transaction_ends_the_spans_of_its_records(collector: Receiver, tmp_path: Path) -> None:
    """With exactly once a record whose transaction is aborted and made again has the spans of the one that was committed."""

    def delivery(kafka: Any, source: Any, sink: Any, clock: Any) -> ExactlyOnce:
        transactions = FakeTransactions(kafka, source, sink)
        return ExactlyOnce(transactions, 0.01, 1000, 1.0, clock, lambda _result: None, Done)

    traced = Traced(tmp_path, collector, delivery=delivery)
    traced.sink.refuse = 1
    for _ in range(3):
        traced.append(FINE, SAMPLED)
    messages = traced.answer()
    traced.close()
    assert len(messages) == 3
    offsets = [attributes(each)["messaging.kafka.offset"] for each in collector.named("process")]
    assert offsets == [0, 1, 2]
    sent = [f"00-{TRACE}-{each.span_id.hex()}-01".encode() for each in collector.named("send")]
    assert [headers_of(message)["traceparent"] for message in messages] == sent


def test_the_loop_goes_on_without_a_collector(collector: Receiver, tmp_path: Path) -> None:
    """While nobody takes spans records are answered as ever, and their spans count as failed."""
    collector.statuses = [503] * 1000
    traced = Traced(tmp_path, collector)
    for _ in range(10):
        traced.append(FINE, SAMPLED)
    assert len(traced.answer()) == 10
    counts = traced.close()
    assert (counts["sent"], counts["failed"]) == (0, 10 * 8 + 1)
