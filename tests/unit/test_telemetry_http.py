"""The HTTP endpoint: what each path answers, what it refuses, and that it never waits on a stuck worker."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from fakes import FakeRollout
from prometheus_client.parser import text_string_to_metric_families

from worker.batch import Batch, Columns, Partition, Run
from worker.errors import ConfigError, StartError
from worker.telemetry import names
from worker.telemetry.exchange import SnapshotExchange
from worker.telemetry.http import MOST_READING, REQUEST_S, HttpServer, parse_address
from worker.telemetry.meters import Meters, ModelLabel, PartitionState, Snapshot
from worker.telemetry.routes import Health
from worker.telemetry.topic import WorkerInfo, metrics_record

ROLLOUT = FakeRollout()
WORKER = WorkerInfo("w", "g", "h", 1, "0")


class Provider:
    def __init__(self) -> None:
        self.meters = Meters({"digits": ModelLabel("digits", "3f9c2a71", "cpu")})
        self.now = Health(alive=True, ready=True, progressing=True)
        self.broken = False

    def health(self) -> Health:
        return self.now

    def snapshot(self) -> Snapshot:
        if self.broken:
            raise RuntimeError("no snapshot")
        return self.meters.snapshot(77, {Partition("digits", 3): PartitionState(1, 1, 5)})


@pytest.fixture
def provider() -> Provider:
    return Provider()


@pytest.fixture
def server(provider: Provider) -> Iterator[HttpServer]:
    server = HttpServer("127.0.0.1:0", provider, WORKER)
    yield server
    server.close()


def ask(
    server: HttpServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def samples(text: bytes) -> dict[tuple[str, frozenset[str]], float]:
    return {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def test_metrics_are_those_of_the_list_and_the_process(server: HttpServer) -> None:
    """/metrics serves every metric of telemetry/names.py with its type, and besides them only process_*."""
    _status, text = ask(server, "/metrics")
    kinds = dict(line.split()[2:4] for line in text.decode().splitlines() if line.startswith("# TYPE"))
    ours = {name: kind for name, kind in kinds.items() if not name.startswith("process_")}
    assert ours == {names.PREFIX + metric.name: metric.kind for metric in names.METRICS}
    assert "process_cpu_seconds_total" in kinds


def test_metrics_show_what_was_counted(server: HttpServer, provider: Provider) -> None:
    """/metrics shows the counters, gauges and histograms of the snapshot, latencies in seconds."""
    meters = provider.meters
    meters.taken("digits", 10)
    meters.counted("digits", ok=6, dead_letter=1, version="1")
    meters.counted("digits", dropped=1)
    meters.error("digits", "invalid", "decode", 1, "1")
    meters.batch(
        "digits",
        Batch(
            None,
            range(8),
            Columns(),
            ROLLOUT.route,
            ROLLOUT.choose(),
            0,
            0.0,
            runs=[Run(range(8), {}, stages_us={"infer": 1000})],
        ),
    )
    meters.rebalance()
    meters.transaction("committed")
    meters.rewind("aborted")
    status, text = ask(server, "/metrics")
    found = samples(text)
    expected = {
        ("streaminfer_records_in_total", ("digits",)): 10,
        ("streaminfer_records_total", ("digits", "ok", "1")): 6,
        ("streaminfer_records_total", ("digits", "dead_letter", "1")): 1,
        ("streaminfer_records_total", ("digits", "dropped", "")): 1,
        ("streaminfer_records_in_flight", ("digits",)): 2,
        ("streaminfer_errors_total", ("digits", "invalid", "decode", "1")): 1,
        ("streaminfer_items_total", ("digits", "1")): 8,
        ("streaminfer_batches_total", ("digits", "1")): 1,
        ("streaminfer_batch_size_bucket", ("digits", "4.0")): 0,
        ("streaminfer_batch_size_bucket", ("digits", "8.0")): 1,
        ("streaminfer_stage_duration_seconds_bucket", ("digits", "infer", "1", "0.0005")): 0,
        ("streaminfer_stage_duration_seconds_bucket", ("digits", "infer", "1", "0.001")): 8,
        ("streaminfer_stage_duration_seconds_bucket", ("digits", "infer", "1", "+Inf")): 8,
        ("streaminfer_stage_duration_seconds_sum", ("digits", "infer", "1")): 0.008,
        ("streaminfer_stage_duration_seconds_count", ("digits", "infer", "1")): 8,
        ("streaminfer_in_flight_bytes", ()): 77,
        ("streaminfer_consumer_lag_records", ("digits", "3")): 4,
        ("streaminfer_rebalances_total", ()): 1,
        ("streaminfer_transactions_total", ("committed",)): 1,
        ("streaminfer_rewinds_total", ("aborted",)): 1,
        ("streaminfer_model_info", ("digits", "digits", "3f9c2a71", "cpu")): 1,
    }
    assert status == 200
    assert {(name, labels): found.get((name, frozenset(labels))) for name, labels in expected} == expected


@pytest.mark.parametrize(
    ("path", "answers"),
    [
        ("/livez", (True, False, False)),
        ("/v2/health/live", (True, False, False)),
        ("/readyz", (False, True, False)),
        ("/v2/health/ready", (False, True, False)),
        ("/progressz", (False, False, True)),
    ],
)
def test_each_health_path_answers_its_own_question(
    server: HttpServer, provider: Provider, path: str, answers: tuple[bool, bool, bool]
) -> None:
    """A health path answers 200 if its own question has the answer yes, whatever the other answers are, else 503."""
    provider.now = Health(*answers)
    assert ask(server, path)[0] == 200
    provider.now = Health(*(not answer for answer in answers))
    assert ask(server, path)[0] == 503


def test_progress_tells_the_metrics_snapshot(server: HttpServer, provider: Provider) -> None:
    """The body of /progressz is the metrics record, with counters since the start."""
    provider.meters.taken("digits", 4)
    _status, body = ask(server, "/progressz")
    said = json.loads(body)
    assert said.keys() == json.loads(metrics_record(provider.snapshot(), WORKER)).keys()
    assert said["pipelines"]["digits"]["records"]["in"] == 4


def test_a_health_answer_gives_its_reason(server: HttpServer, provider: Provider) -> None:
    """The body of a health path contains the detail that the provider gives."""
    provider.now = Health(True, False, True, {"reason": "draining"})
    status, body = ask(server, "/readyz")
    assert (status, json.loads(body)) == (503, {"ready": False, "reason": "draining"})


def test_liveness_does_not_need_a_snapshot(server: HttpServer, provider: Provider) -> None:
    """With the snapshots broken, /metrics is an error and /livez still answers."""
    provider.broken = True
    assert ask(server, "/metrics")[0] == 500
    assert ask(server, "/livez")[0] == 200


def test_what_is_not_asked_for_is_refused(server: HttpServer) -> None:
    """Unknown paths, other methods and headers beyond the limit get an error, and the server goes on."""
    assert ask(server, "/")[0] == 404
    assert ask(server, "/metrics", "POST")[0] == 501
    assert ask(server, "/livez", headers={"x": "a" * 20_000})[0] == 431
    assert ask(server, "/livez?verbose")[0] == 200


def test_head_is_answered_as_get_without_a_body(server: HttpServer) -> None:
    """Status and length are those of GET, so a health check may ask for the head alone."""
    for path, status in (("/livez", 200), ("/metrics", 200), ("/nothing", 404)):
        assert ask(server, path, "HEAD") == (status, b"")
        assert ask(server, path)[0] == status


_HOST = b"Host: localhost\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /livez\r\n\r\n", b"200"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"505"),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", b"431"),
        (bytes(range(256)) * 10, b"400"),
        (b"GET / HTTP/" + b"9" * 5000 + b".1\r\n\r\n", b"400"),
        (b"GET /livez HTTP/1.1\r\n" + b"X: a\r\n" * 500 + b"\r\n", b"431"),
        ((b"GET /livez HTTP/1.1\r\n" + _HOST + b"\r\n") * 20, b"200"),
        (
            b"GET /livez HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            b"GET /metrics HTTP/1.1\r\n\r\n",
            b"200",
        ),
        (b"GET /metrics HTTP/1.1\r\n" + _HOST + b"Host: evil.example\r\n\r\n", b"421"),
        (b"GET /metrics HTTP/1.1\r\n" + _HOST + b" folded: evil.example\r\n\r\n", b"421"),
        (b"GET http://evil.example/metrics HTTP/1.1\r\n" + _HOST + b"\r\n", b"404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n" + _HOST + b"\r\n", b"404"),
        (b"GET /\x1b]0;x\x07<script> HTTP/1.1\r\n" + _HOST + b"\r\n", b"404"),
        (b"CONNECT evil.example:443 HTTP/1.1\r\n\r\n", b"501"),
    ],
    ids=lambda value: value.decode("latin-1")[:24].encode("unicode_escape").decode(),
)
def test_a_hostile_request_gets_one_answer_and_nothing_that_follows_it(
    server: HttpServer, request_bytes: bytes, status: bytes
) -> None:
    """Whatever comes, there is one answer with a status line, and the connection ends: a request behind another gets none."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(request_bytes)
        answer = b""
        with suppress(ConnectionResetError):  # what nobody read makes the end of the connection a reset
            while part := connection.recv(65536):
                answer += part
    assert answer.startswith(b"HTTP/1.0 " + status)
    assert answer.count(b"HTTP/1.") == 1
    assert b"\x1b" not in answer
    assert b"<script>" not in answer
    assert ask(server, "/livez")[0] == 200


def test_progress_says_what_it_waits_for(server: HttpServer, provider: Provider) -> None:
    """The body of /progressz names a partition that stands, or since when no broker can be reached."""
    provider.now = Health(True, True, True, waits="waiting for brokers since 2026-11-30T10:00:00Z")
    status, body = ask(server, "/progressz")
    assert (status, json.loads(body)["waits"]) == (200, "waiting for brokers since 2026-11-30T10:00:00Z")


def test_a_client_that_sends_a_byte_now_and_then_is_cut(server: HttpServer) -> None:
    """The time for a request counts from its first moment; bytes in between do not renew it."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as slow:
        started = time.monotonic()
        slow.settimeout(0.2)
        answered = None
        while answered is None and time.monotonic() - started < 20:
            with suppress(BrokenPipeError, ConnectionResetError):
                slow.sendall(b"G")
            try:
                answered = slow.recv(100)
            except TimeoutError:
                continue
            except ConnectionResetError:
                answered = b""
    assert answered == b""
    assert time.monotonic() - started < REQUEST_S + 5


def test_slow_clients_do_not_keep_a_probe_out(server: HttpServer) -> None:
    """However many connections hang with half a request, /livez is answered at once: the oldest of them are cut."""
    slow = []
    try:
        for _ in range(3 * MOST_READING):
            slow.append(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            slow[-1].sendall(b"GET /livez HTTP/1.1\r\nx: ")
        for _ in range(20):
            assert ask(server, "/livez")[0] == 200
        slow[0].settimeout(10)
        assert slow[0].recv(10) == b""
    finally:
        for connection in slow:
            connection.close()


def test_a_port_in_use_is_one_sentence_naming_the_setting(server: HttpServer, provider: Provider) -> None:
    """The second server on a port cannot start and says which setting to change."""
    with pytest.raises(
        StartError, match=rf"^metrics\.http: cannot listen on 127\.0\.0\.1:{server.port}: .*in use"
    ):
        HttpServer(f"127.0.0.1:{server.port}", provider, WORKER)


def test_a_replica_adds_its_index_to_the_port(provider: Provider) -> None:
    """The replica with index 1 listens on the given port + 1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = probe.getsockname()[1]
    server = HttpServer(f"127.0.0.1:{free - 1}", provider, WORKER, index=1)
    server.close()
    assert server.port == free


@pytest.mark.parametrize(
    "address", ["9464", "localhost", "localhost:", "localhost:x", "::1:9464", "h:70000", ""]
)
def test_an_address_that_is_none_is_a_configuration_error(address: str) -> None:
    """A malformed metrics.http is one sentence that names the setting, what was given and what was expected."""
    with pytest.raises(ConfigError, match=r"^metrics\.http: got .*, expected host:port"):
        parse_address(address)


def test_addresses_are_host_and_port() -> None:
    """metrics.http takes a host name, an IPv4 address, an IPv6 address in brackets, or an empty host for every interface."""
    assert parse_address("localhost:0") == ("localhost", 0)
    assert parse_address("[::1]:9464") == ("::1", 9464)
    assert parse_address(":9464") == ("", 9464)


def test_the_exchange_gives_a_snapshot_made_after_the_question() -> None:
    """A thread that asks for a snapshot gets one that the conductor made after the question."""
    meters = Meters({})
    exchange = SnapshotExchange(meters.snapshot(), patience_s=30)
    told: list[Snapshot] = []
    asking = threading.Thread(target=lambda: told.append(exchange.ask()))
    asking.start()
    while not exchange.wanted:
        assert asking.is_alive()
    answer = meters.snapshot()
    exchange.answer(answer)
    asking.join(10)
    assert told == [answer]
    assert told[0] is answer
    assert not exchange.wanted


def test_the_exchange_tells_the_last_snapshot_of_a_conductor_that_does_not_turn() -> None:
    """A thread that asks a stuck conductor for a snapshot gets the last one after its patience."""
    first = Meters({}).snapshot()
    assert SnapshotExchange(first, patience_s=0.01).ask() is first


def test_progress_tells_the_last_minute_beside_the_time_since_the_start(provider: Provider) -> None:
    """/progressz has the counters of the last minute, in the same form; what is a state and not counted is there once."""
    provider.meters.taken("digits", 4)
    while (before := provider.snapshot()).interval_s < 0.01:
        pass  # times are told in milliseconds, and one must have passed
    provider.meters.taken("digits", 3)
    server = HttpServer(
        "127.0.0.1:0", provider, WORKER, last_minute=lambda: provider.snapshot().since(before)
    )
    try:
        said = json.loads(ask(server, "/progressz")[1])
    finally:
        server.close()
    assert said["pipelines"]["digits"]["records"]["in"] == 7
    assert said["last_minute"]["pipelines"]["digits"]["records"]["in"] == 3
    assert said["last_minute"]["interval_s"] < said["interval_s"]
    assert "partitions" not in said["last_minute"]
