"""The compiled producer by itself: what it takes, what it gives back, and what it lets go of."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import KafkaError

from worker import native
from worker.kafka.broker import EmbeddedBroker
from worker.kafka.library import library

pytestmark = pytest.mark.skipif(native.producer is None, reason=f"the producer is {native.producer_path}")

PATIENCE_S = 30.0


class Receipt:
    """What a send is known by; can be watched being let go."""


def start(bootstrap: str, **properties: str) -> Any:
    given = {"bootstrap.servers": bootstrap, "log.queue": "true", **properties}
    rdkafka = library()
    assert rdkafka is not None
    assert native.producer is not None
    return native.producer.Producer(rdkafka._handle, given)


@pytest.fixture
def producer(embedded_broker: EmbeddedBroker) -> Iterator[Any]:
    embedded_broker.create_topic("out", 3)
    made = start(embedded_broker.bootstrap)
    yield made
    made.close()


def told(producer: Any, rows: int) -> list[tuple[Any, int, int]]:
    """What is told of this many rows: (receipt, rows, code)."""
    found: list[tuple[Any, int, int]] = []
    deadline = time.monotonic() + PATIENCE_S
    while sum(count for _, count, _ in found) < rows:
        assert time.monotonic() < deadline, found
        found += [tuple(event[1:]) for event in producer.poll(100) if event[0] == "rows"]
    return found


def test_rows_are_acknowledged_in_numbers(producer: Any) -> None:
    """Each send's receipt comes back with as many rows as it had, and nothing is kept of it afterwards."""
    first, second = Receipt(), Receipt()
    assert producer.send("out", 0, False, [b"v"] * 700, [None] * 700, first) == (700, [])
    assert producer.send("out", 1, True, [b"w"] * 50, [b"k"] * 50, second) == (50, [])
    counts = {first: 0, second: 0}
    for receipt, rows, code in told(producer, 750):
        assert code == 0
        counts[receipt] += rows
    assert counts == {first: 700, second: 50}
    assert producer.waiting() == 0
    watch = weakref.ref(first)
    del first, receipt, counts
    gc.collect()
    assert watch() is None


def test_what_is_purged_is_told_and_let_go(embedded_broker: EmbeddedBroker) -> None:
    """Rows given up come back with the code of a purge."""
    embedded_broker.create_topic("out", 1)
    producer = start(embedded_broker.bootstrap, **{"linger.ms": "60000"})
    receipt = Receipt()
    assert producer.send("out", 0, False, [b"v"] * 10, [None] * 10, receipt)[0] == 10
    producer.purge()
    assert {code for _, _, code in told(producer, 10)} <= {
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
    }
    producer.close()
    watch = weakref.ref(receipt)
    del receipt
    assert watch() is None


def test_closing_with_rows_on_their_way_lets_go_of_them(embedded_broker: EmbeddedBroker) -> None:
    """A client that ends forgets its rows and their receipts; then every call says that it is closed."""
    embedded_broker.create_topic("out", 1)
    for closed in (True, False):
        producer = start(embedded_broker.bootstrap, **{"linger.ms": "60000"})
        receipt = Receipt()
        producer.send("out", 0, False, [b"v"] * 10, [None] * 10, receipt)
        if closed:
            producer.close()
            producer.close()
            with pytest.raises(RuntimeError, match="closed"):
                producer.poll(0)
        watch = weakref.ref(receipt)
        del producer, receipt
        gc.collect()
        assert watch() is None


def test_a_thread_in_a_call_keeps_the_client_open(producer: Any) -> None:
    """Closing is refused while another thread polls; sends and polls of two threads do not disturb each other."""
    polling = threading.Thread(target=producer.poll, args=(1500,))
    polling.start()
    time.sleep(0.3)  # there is nothing to see from outside
    with pytest.raises(RuntimeError, match="in use"):
        producer.close()
    polling.join()
    receipt, events = Receipt(), []
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            events.extend(producer.poll(1))

    threads = [threading.Thread(target=poll) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        assert producer.send("out", 0, False, [b"v"] * 100, [b"k"] * 100, receipt) == (100, [])
    deadline = time.monotonic() + PATIENCE_S
    while sum(event[2] for event in events if event[0] == "rows") < 5000:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join()
    assert producer.waiting() == 0


def test_errors_and_log_lines_are_events() -> None:
    """A broker that is not there is told as an error with its code, and in librdkafka's own words as a log line."""
    producer = start("127.0.0.1:1")
    deadline = time.monotonic() + PATIENCE_S
    events: list[Any] = []
    while {event[0] for event in events} != {"error", "log"}:
        assert time.monotonic() < deadline, events
        events += producer.poll(100)
    codes = {event[1] for event in events if event[0] == "error"}
    assert codes <= {KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN}
    assert producer.text(KafkaError._TRANSPORT) == KafkaError(KafkaError._TRANSPORT).str()
    assert producer.name().startswith("rdkafka#producer-")
    producer.close()


@pytest.mark.parametrize(
    "properties",
    [
        {"no.such.property": "1"},
        {"linger.ms": "many"},
        {"security.protocol": "ssl", "ssl.ca.location": "/no"},
    ],
)
def test_what_the_library_refuses_is_an_error(properties: dict[str, str]) -> None:
    """A property it does not know, a value it does not take, a file that is not there: its own sentence."""
    with pytest.raises(ValueError, match=r"."):
        start("127.0.0.1:1", **properties)


@pytest.mark.parametrize(
    "arguments",
    [
        ("out", 0, False, [b"v"], [], None),
        ("out", -1, False, [b"v"], [None], None),
        ("out", 0, False, ["v"], [None], None),
        ("out", 0, False, [b"v"], [3], None),
        (b"out", 0, False, [b"v"], [None], None),
        ("out", 0, False, (b"v",), [None], None),
        ("out", 0, False, [b"v"], [None]),
        ("out", 0, False, [b"v"], [None], [], 0, None),
        ("out", 0, False, [b"v"], [None], [[("a",)]], 0, None),
        ("out", 0, False, [b"v"], [None], [[(b"a", b"b")]], 0, None),
        ("out", 0, False, [b"v"], [None], [[("a", "b")]], 0, None),
        ("out", 0, False, [b"v"], [None], [None], "0", None),
    ],
)
def test_what_does_not_fit_raises_and_sends_nothing(producer: Any, arguments: tuple[Any, ...]) -> None:
    """A caller's mistake is an exception, and no row of it is on its way."""
    send = producer.send_headed if len(arguments) == 8 else producer.send
    with pytest.raises((TypeError, ValueError)):
        send(*arguments)
    assert producer.waiting() == 0


ENDS_DURING_A_CALL = """
import sys, threading, time
from worker import native
from worker.kafka.batch_producer import _handle

properties = {"bootstrap.servers": "127.0.0.1:1", "transactional.id": "t", "log.queue": "true"}
producer = native.producer.Producer(_handle(), properties)

class EndsSlowly:
    def __del__(self, sleep=time.sleep):
        sleep(1.5)

kept = EndsSlowly()
threading.Thread(target=producer.init_transactions, args=(700,), daemon=True).start()
time.sleep(0.2)
sys.exit(6)
"""


def test_a_call_that_comes_back_while_the_interpreter_ends_disturbs_nobody() -> None:
    """Python ends such a thread by unwinding its stack, which C++ would answer with a signal."""
    ended = subprocess.run(
        [sys.executable, "-c", ENDS_DURING_A_CALL], capture_output=True, text=True, timeout=30
    )
    assert (ended.returncode, ended.stderr) == (6, "")
