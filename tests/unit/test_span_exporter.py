"""Sending spans: what is tried again, what is dropped, what is counted; and the request in protobuf and in JSON."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog
from google.protobuf.json_format import MessageToDict
from hypothesis import given, settings
from hypothesis import strategies as st
from otlp_receiver import Receiver, attributes, read, receiver, trace_pb2
from secured import USER, make_certificates

from worker import native
from worker.errors import ConfigError
from worker.settings.tracing import TracingSettings, tracing_of
from worker.telemetry import otlp, span_exporter, spans
from worker.telemetry.collector import Collector
from worker.telemetry.span_exporter import QUEUE_RECORDS, SpanExporter, Unsent
from worker.telemetry.spans import Link, Span

TRACE, ID = bytes(range(16)), bytes(range(1, 9))
SPAN = Span(
    TRACE, ID, b"", "process in", spans.CONSUMER, 1_763_676_000_000_000_001, 1_763_676_000_000_000_002
)


@dataclass
class Parcel:
    count: int = 1
    size: int = 1

    def first(self, records: int) -> Parcel:
        each = self.count // self.size
        return Parcel(each * records, records)

    def spans(self) -> list[Span]:
        return [SPAN] * self.count


@pytest.fixture
def collector() -> Iterator[Receiver]:
    with receiver() as running:
        yield running


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a hundredth."""
    monkeypatch.setattr(span_exporter, "PAUSES_S", (0.01, 0.02, 0.04))


def sender(url: str, **environ: str) -> Collector:
    how = tracing_of(TracingSettings(otlp=url), environ)
    assert how is not None
    return Collector(how, [("service.name", "digits")])


def exporter(collector: Receiver, **environ: str) -> SpanExporter:
    return SpanExporter(sender(collector.url, **environ), collector.url, every_s=0.01)


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# -- what becomes of a request -----------------------------------------------------------------------------------


def test_a_request_is_tried_again_while_the_collector_is_busy(collector: Receiver) -> None:
    """Two answers 503 and 429, then 200: the spans are sent once, and the log says so in two lines."""
    collector.statuses = [503, 429]
    with structlog.testing.capture_logs() as lines:
        ours = exporter(collector)
        ours.offer(Parcel(3))
        wait_for(lambda: ours.counts()["sent"] == 3)
        ours.close(5.0)
    assert collector.asked == 3
    assert len(collector.spans) == 3
    assert [line["event"] for line in lines] == [
        "spans are not sent, records go on",
        "spans are sent again",
    ]


def test_a_request_that_is_refused_is_not_tried_again(collector: Receiver) -> None:
    """After 401 its spans have failed; later ones are tried."""
    collector.statuses = [401]
    ours = exporter(collector)
    ours.offer(Parcel(2))
    wait_for(lambda: ours.counts()["failed"] == 2)
    assert collector.asked == 1
    ours.offer(Parcel())
    ours.close(5.0)
    assert ours.counts() == {"sent": 1, "failed": 2, "dropped_rate": 0, "dropped_full": 0}


def test_spans_that_a_collector_refuses_count_as_failed(collector: Receiver) -> None:
    """A success that says that 300 of 301 spans were rejected counts one as sent."""
    collector.refuses = 300
    ours = exporter(collector)
    ours.offer(Parcel(301))
    ours.close(5.0)
    assert (ours.counts()["sent"], ours.counts()["failed"]) == (1, 300)


def test_a_collector_that_went_away_and_came_back_gets_the_next_spans() -> None:
    """A kept connection that was closed meanwhile costs no span."""
    with receiver() as first:
        ours = sender(first.url)
        ours.send([SPAN])
        port = int(first.url.rpartition(":")[2])
    with pytest.raises(Unsent, match="refused") as away:
        ours.send([SPAN])
    assert away.value.again
    with receiver(port) as second:
        ours.send([SPAN])
        assert len(second.spans) == 1
        ours.close()


def test_spans_beyond_the_queue_are_dropped_and_nothing_waits(collector: Receiver) -> None:
    """While the collector does not answer, offering takes no longer; what does not fit counts as dropped_full."""
    collector.hold.clear()
    ours = exporter(collector)
    ours.offer(Parcel(10))
    wait_for(lambda: collector.asked == 1)
    for _ in range(QUEUE_RECORDS + 100):
        ours.offer(Parcel(2))
    ours.offer(Parcel(60, 30))
    assert ours.counts()["dropped_full"] == 260
    collector.hold.set()
    ours.close(10.0)
    assert ours.counts()["sent"] == 10 + 2 * QUEUE_RECORDS == len(collector.spans)


def test_of_more_records_than_there_is_room_for_the_first_are_kept(collector: Receiver) -> None:
    """One slab with more traced records than may wait is told in part."""
    ours = exporter(collector)
    ours.offer(Parcel(3 * (QUEUE_RECORDS + 5), QUEUE_RECORDS + 5))
    ours.close(10.0)
    assert ours.counts()["sent"] == 3 * QUEUE_RECORDS
    assert ours.counts()["dropped_full"] == 15


def test_closing_ends_in_its_budget_and_counts_what_is_left(collector: Receiver) -> None:
    """With a collector that never answers, close comes back, every span has failed, and stays so when it answers later."""
    collector.hold.clear()
    ours = exporter(collector)
    ours.offer(Parcel(10))
    wait_for(lambda: collector.asked == 1)
    ours.offer(Parcel(5))
    ours.close(0.05)
    wanted = {"sent": 0, "failed": 15, "dropped_rate": 0, "dropped_full": 0}
    assert ours.counts() == wanted
    collector.hold.set()
    wait_for(lambda: not any(thread.name == "spans" for thread in threading.enumerate()))
    assert ours.counts() == wanted
    ours.offer(Parcel())
    assert ours.counts()["dropped_full"] == 1


def test_closing_sends_what_waits(collector: Receiver) -> None:
    """Spans offered right before the end are sent."""
    ours = SpanExporter(sender(collector.url), collector.url, every_s=60.0)
    ours.offer(Parcel(7))
    ours.close(5.0)
    assert len(collector.spans) == 7


def test_a_fault_costs_spans_only() -> None:
    """If spans cannot be written, they have failed, the log says why, and later ones are sent."""

    class Faulty:
        sent = 0

        def send(self, given: Sequence[Span]) -> int:
            self.sent += 1
            if self.sent == 1:
                raise ZeroDivisionError("a bug")
            return 0

        def close(self) -> None: ...

    with structlog.testing.capture_logs() as lines:
        ours = SpanExporter(Faulty(), "nowhere", every_s=0.01)
        ours.offer(Parcel())
        wait_for(lambda: ours.counts()["failed"] == 1)
        ours.offer(Parcel())
        ours.close(5.0)
    assert ours.counts()["sent"] == 1
    assert lines[0]["why"] == "ZeroDivisionError: a bug"


# -- the request -------------------------------------------------------------------------------------------------


def test_a_request_is_what_the_environment_asks_for(collector: Receiver) -> None:
    """Headers, gzip and JSON are those of the OTEL_EXPORTER_OTLP_* variables; the path is /v1/traces."""
    ours = sender(
        collector.url + "/below/",
        OTEL_EXPORTER_OTLP_HEADERS="Authorization=Bearer%20secret,x-tenant=a",
        OTEL_EXPORTER_OTLP_COMPRESSION="gzip",
        OTEL_EXPORTER_OTLP_PROTOCOL="http/json",
    )
    ours.send([SPAN])
    ours.close()
    (headers,) = collector.headers
    assert collector.paths == ["/below/v1/traces"]
    assert headers["authorization"] == "Bearer secret"
    assert headers["x-tenant"] == "a"
    assert headers["content-type"] == "application/json"
    assert collector.spans[0].name == "process in"
    assert "secret" not in repr(tracing_of(TracingSettings(), {"OTEL_EXPORTER_OTLP_HEADERS": "a=secret"}))


def test_https_checks_the_collector_and_shows_the_clients_certificate(tmp_path: Path) -> None:
    """A collector of a known authority that asks for a certificate gets the spans; a stranger gets none; a key under a
    password is one sentence."""
    make_certificates(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=tmp_path / "ca.pem")
    server.verify_mode = ssl.CERT_REQUIRED
    server.load_cert_chain(tmp_path / "broker.pem")
    known = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "ca.pem")}
    own = {"OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(tmp_path / "broker.pem")}
    with receiver(tls=server) as collector:
        ours = sender(collector.url, **known, **own)
        ours.send([SPAN])
        ours.close()
        assert len(collector.spans) == 1
        strange = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(tmp_path / "strange-ca.pem")}
        stranger = sender(collector.url, **strange, **own)
        with pytest.raises(Unsent, match="certificate verify failed"):
            stranger.send([SPAN])
        stranger.close()
        locked = {
            "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE": str(tmp_path / f"{USER}.pem"),
            "OTEL_EXPORTER_OTLP_CLIENT_KEY": str(tmp_path / f"{USER}.key"),
        }
        with pytest.raises(ConfigError, match=r"^a certificate for https://.* cannot be used: "):
            sender(collector.url, **known, **locked)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
values = st.one_of(
    texts, st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
)
told = st.lists(st.tuples(texts, values), max_size=4)
ids, traces = st.binary(min_size=8, max_size=8), st.binary(min_size=16, max_size=16)
times = st.integers(0, 2**64 - 1)
any_span = st.builds(
    Span, traces, ids, st.one_of(st.just(b""), ids), texts, st.sampled_from([1, 4, 5]), times, times, told,
    st.lists(st.builds(Link, traces, ids), max_size=3), st.one_of(st.none(), texts), st.integers(0, 3),
    st.booleans(), texts,
)  # fmt: skip


@settings(max_examples=30)
@given(st.lists(any_span, max_size=3), told)
def test_protobuf_and_json_say_what_the_spans_say(given_spans: list[Span], resource: Any) -> None:
    """OpenTelemetry's classes read every field back, of both forms alike."""
    scope = ("streaminfer", "1")
    binary = read(otlp.protobuf(resource, scope, given_spans), "application/x-protobuf")
    text = read(otlp.json(resource, scope, given_spans), "application/json")
    assert MessageToDict(text) == MessageToDict(binary)
    (one,) = binary.resource_spans
    assert attributes(one.resource) == dict(resource)
    (group,) = one.scope_spans
    assert (group.scope.name, group.scope.version) == scope
    assert len(group.spans) == len(given_spans)
    for found, span in zip(group.spans, given_spans, strict=True):
        assert (found.trace_id, found.span_id, found.parent_span_id) == span[:3]
        assert (found.name, found.kind, found.trace_state) == (span.name, span.kind, span.state)
        assert (found.start_time_unix_nano, found.end_time_unix_nano) == (span.start_ns, span.end_ns)
        assert [
            (each.key, getattr(each.value, each.value.WhichOneof("value"))) for each in found.attributes
        ] == [*span.attributes]
        assert [(link.trace_id, link.span_id) for link in found.links] == [*span.links]
        assert found.flags & 0xFF == span.flags
        assert bool(found.flags & trace_pb2.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK) == span.remote
        assert found.status.code == (trace_pb2.Status.STATUS_CODE_ERROR if span.error is not None else 0)
        assert found.status.message == (span.error or "")


# -- trace context -----------------------------------------------------------------------------------------------

GOOD = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (GOOD, 2),
        (GOOD[:-1] + b"0", 1),
        (GOOD[:-1] + b"f", 2),
        (b"cc" + GOOD[2:], 2),
        (b"cc" + GOOD[2:] + b"-what", 2),
        (b"cc" + GOOD[2:] + b".what", 0),
        (GOOD + b"-what", 0),
        (b"ff" + GOOD[2:], 0),
        (GOOD.upper(), 0),
        (GOOD.replace(b"0af7651916cd43dd8448eb211c80319c", b"0" * 32), 0),
        (GOOD.replace(b"b7ad6b7169203331", b"0" * 16), 0),
        (GOOD[:-1], 0),
        (GOOD[:54] + b"g", 0),
        (GOOD.replace(b"-", b"_"), 0),
        (b"", 0),
        (None, 0),
    ],
)
@pytest.mark.usefixtures("both_batch_paths")
def test_a_traceparent_counts_by_the_rules_of_the_standard(value: bytes | None, code: int) -> None:
    """W3C Trace Context: lower case, no zeros for ids, version ff never, more behind the flags in later versions only."""
    assert spans.sampling([[("x", b"1"), ("traceparent", value)], None, []]) == bytes([code, 0, 0])


@pytest.mark.usefixtures("both_batch_paths")
def test_the_last_traceparent_counts() -> None:
    """Of two headers of this name the last one does, whatever it is; other names do not."""
    rows: Any = [
        [("traceparent", b""), ("traceparent", GOOD)],
        [("traceparent", GOOD), ("traceparent", b"")],
        [("Traceparent", GOOD), ("tracepärent", GOOD)],
    ]
    assert spans.sampling(rows) == b"\2\0\0"


near = st.one_of(
    st.binary(max_size=60),
    st.builds(lambda at, byte: GOOD[:at] + byte + GOOD[at + 1 :], st.integers(0, 56), st.binary(max_size=2)),
)


@pytest.mark.skipif(native.records is None, reason=f"the batch path is {native.batch_path}")
@settings(max_examples=50)
@given(st.lists(st.one_of(st.none(), st.lists(st.tuples(st.sampled_from(["traceparent", "x"]), near)))))
def test_the_compiled_path_judges_as_python_does(rows: Any) -> None:
    """Whatever the headers are, both say the same of every row."""
    with pytest.MonkeyPatch.context() as patch:
        compiled = spans.sampling(rows)
        patch.setattr(native, "records", None)
        assert spans.sampling(rows) == compiled
