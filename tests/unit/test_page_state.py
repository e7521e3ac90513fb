"""What ``/state`` and ``/events`` tell, and how many may read."""

from __future__ import annotations

import math
import socket
import threading
import time

import orjson
import pytest
from page_support import ABOUT, WORKER, EventReader, Told, batch_of

from worker.batch import Outcomes, Partition
from worker.errors import Rejection
from worker.telemetry import http as server_module
from worker.telemetry.drain import DrainRates, drain_fields
from worker.telemetry.events import MOST_READERS
from worker.telemetry.history import POINTS, History, LastMinute, point
from worker.telemetry.http import HttpServer
from worker.telemetry.last_seen import LETTERS, LastLetters, LastResults, Picture
from worker.telemetry.recorder import Recorder
from worker.telemetry.routes import Health
from worker.telemetry.topic import metrics_record

P = Partition("in", 3)


class Shown:
    """A recorder that a test lets look, with its server."""

    def __init__(self, results: LastResults | None = None) -> None:
        self.told = Told()
        self.letters = LastLetters(lambda: self.told.now_s)
        self.recorder = Recorder(ABOUT, self.told, self.letters, results)
        self.server = HttpServer("127.0.0.1:0", self.told, WORKER, pages=self.recorder.routes())

    def second(self, records: int = 0) -> None:
        self.told.now_s += 1
        if records:
            self.told.answers(records)
        self.recorder.second()

    def state(self) -> dict[str, object]:
        return orjson.loads(self.recorder.json())

    def close(self) -> None:
        self.recorder.close()
        self.server.close()

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def test_the_last_second_is_a_metrics_record() -> None:
    """The counts of the last second in /state are those a metrics record of the same interval has, field by field."""
    with Shown() as shown:
        shown.second(5)
        before = shown.told.snapshot()
        shown.told.rejects("invalid", "decode")
        shown.second(7)
        record = orjson.loads(metrics_record(shown.told.snapshot().since(before), WORKER))
        state = shown.state()
    assert state["last_second"]["pipelines"] == record["pipelines"]
    assert state["last_second"]["pipelines"]["digits"]["records"]["out"] == 7
    whole = state["since_start"]["pipelines"]["digits"]
    assert (whole["records"]["in"], whole["records"]["out"], whole["records"]["dead_letter"]) == (13, 12, 1)
    assert whole["failures"] == [{"reason": "invalid", "stage": "decode", "records": 1}]
    assert whole["batch_sizes"] == {"8": 2}
    assert state["partitions"] == {
        "in/3": {"position": 6, "committed": 4, "end": 10, "lag": 6, "seconds_to_drain": 3.0, "moving": True}
    }


def test_the_last_minute_forgets_what_is_older() -> None:
    """Records of 80 seconds ago count since the start, and not in the last minute."""
    with Shown() as shown:
        shown.second(100)
        for _ in range(80):
            shown.second(1)
        state = shown.state()
    assert state["since_start"]["pipelines"]["digits"]["records"]["out"] == 180
    assert 60 <= state["last_minute"]["pipelines"]["digits"]["records"]["out"] <= 66
    assert state["last_minute"]["latency_ms"]["infer"]["count"] <= 66


def test_a_rollout_stands_beside_its_model() -> None:
    """While a candidate is on trial, /state says so beside the pipeline's model; afterwards it says nothing."""
    with Shown() as shown:
        trial = {"state": "running", "mode": "canary", "share": 0.1, "candidate": "2", "id": "r1"}
        shown.recorder.trials = lambda: {"digits": trial}
        assert shown.state()["models"]["digits"] == {
            "name": "digits",
            "version": "3f9c2a71",
            "provider": "cpu",
            "swaps": 0,
            "refused": {},
            "rollouts": {},
            "rollout": trial,
        }
        shown.recorder.trials = dict
        assert "rollout" not in shown.state()["models"]["digits"]


def test_a_minute_keeps_a_dozen_snapshots_and_history_ten_minutes() -> None:
    """However long a worker runs, what is kept for the page stays the same."""
    told, minute, history = Told(), LastMinute(), History()
    for _ in range(2 * POINTS):
        told.now_s += 1
        minute.add(told.snapshot())
        history.add(point(told.snapshot().since(told.snapshot())))
    assert len(minute._kept) <= 14
    assert len({id(each.pipelines["digits"]) for each in minute._kept}) == 1, "an idle pipeline is kept once"
    assert len(orjson.loads(history.json())["points"]) == POINTS


@pytest.mark.parametrize(
    ("health", "word"),
    [
        (Health(True, True, True), "ready"),
        (Health(True, True, True, waits="waiting for brokers"), "waiting"),
        (Health(True, True, False, waits="in/3 stands"), "stalled"),
        (Health(True, False, True, {"reason": "warming up"}), "warming up"),
        (Health(True, False, True, {"reason": "draining", "draining": True}), "draining"),
        (Health(True, False, True, {"reason": "brokers unreachable"}), "not ready"),
        (Health(False, False, False, {"reason": "the loop does not turn"}), "stuck"),
    ],
)
def test_health_is_one_word(health: Health, word: str) -> None:
    """The headline of the page is one word for the worst that is true."""
    with Shown() as shown:
        shown.told.now = health
        assert shown.state()["health"]["state"] == word


def test_a_reader_gets_history_first_and_then_each_second() -> None:
    """The first event holds the state with its history; each further one the state and one point, the same for all readers."""
    with Shown() as shown:
        shown.second(3)
        with EventReader(shown.server.port) as one, EventReader(shown.server.port) as two:
            assert one.headers["content-type"] == "text/event-stream"
            name, first = one.event()
            assert (name, first["history"]["points"][-1][2]) == ("state", 3.0)
            assert two.event()[0] == "state"
            shown.second(9)
            events = one.event(), two.event()
        assert events[0] == events[1]
        name, second = events[0]
        assert (name, second["point"][2]) == ("second", 9.0)
        assert "history" not in second
        assert second["point"] == shown.state()["history"]["points"][-1]


def test_there_are_sixteen_readers_and_probes_have_room_beside_them() -> None:
    """The 17th reader gets 503 with a sentence; with all 16 there every other connection is as free as before; one leaves, one may come."""
    with Shown() as shown:
        readers = [EventReader(shown.server.port) for _ in range(MOST_READERS)]
        for reader in readers:
            reader.event()
        with EventReader(shown.server.port) as further:
            assert further.status == 503
            assert b"16 readers" in further.rest()
        deadline = time.monotonic() + 10  # the 17th gives its place back when its thread ends
        while shown.server._server._free._value < server_module.MOST_CONNECTIONS:
            assert time.monotonic() < deadline
        readers.pop().close()
        while shown.recorder.events.readers == MOST_READERS:  # its thread sees that at the next event
            shown.second()
        with EventReader(shown.server.port) as next_one:
            assert next_one.status == 200
        for reader in readers:
            reader.close()


def test_a_reader_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes nothing for longer than an answer may take is dropped, and the others get their events."""
    monkeypatch.setattr(server_module, "ANSWER_S", 1.0)
    monkeypatch.setattr(server_module, "STREAM_BUFFER_BYTES", 4096)
    with Shown() as shown:
        for _ in range(POINTS):
            shown.second(1)
        with EventReader(shown.server.port) as slow, EventReader(shown.server.port) as quick:
            slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            quick.event()
            done = threading.Event()

            def feed() -> None:
                while not done.is_set():
                    shown.recorder.events.publish(b'event: second\ndata: "' + b"1" * 100_000 + b'"\n\n')
                    done.wait(0.02)

            feeding = threading.Thread(target=feed)
            feeding.start()
            try:
                while shown.recorder.events.readers > 1:
                    assert quick.event()[0] == "second"
            finally:
                done.set()
                feeding.join()


def test_the_end_of_the_worker_ends_the_streams() -> None:
    """When the worker closes, a reader's stream ends at once."""
    shown = Shown()
    with EventReader(shown.server.port) as reader:
        reader.event()
        shown.close()
        with pytest.raises(EOFError):
            reader.event()


def test_a_conductor_that_is_stuck_does_not_stop_the_page() -> None:
    """When every snapshot is the same one, seconds go on with zeros, and the state says what is wrong."""
    with Shown() as shown:
        shown.second(3)
        same = shown.told.snapshot()
        shown.told.snapshot = lambda: same  # type: ignore[method-assign]
        shown.recorder.second()
        shown.recorder.second()
        assert shown.state()["history"]["points"][-1][1:4] == [0.0, 0.0, 0.0]


def test_seconds_to_drain_are_lag_by_the_rate_of_the_last_minute() -> None:
    """300 records at 5 a second are 60 seconds; what was quick before the last minute does not count."""
    rates = DrainRates()
    offset = 0
    for second in range(200):
        offset += 50 if second < 100 else 5
        rates.look(second, [(P, offset)])
    assert rates.seconds(P, 300) == pytest.approx(60, rel=0.02)
    assert rates.seconds(P, 0) == 0
    assert len(rates._seen[P]) <= 15


def test_a_rate_is_not_made_of_nothing() -> None:
    """Without a second of history nothing is said; where nothing moved it is infinite; a position that goes back begins again."""
    rates = DrainRates()
    rates.look(0, [(P, 10)])
    assert rates.seconds(P, 5) is None
    rates.look(2, [(P, 10)])
    assert rates.seconds(P, 5) == math.inf
    rates.look(4, [(P, 3)])
    assert rates.seconds(P, 5) is None
    rates.look(5, [])
    rates.look(9, [(P, 100)])
    assert rates.seconds(P, 5) is None
    assert rates.seconds(P, None) is None


def test_json_says_infinity_in_other_words() -> None:
    """A partition that does not move has no number in JSON, and says that it does not move."""
    assert drain_fields(math.inf) == {"seconds_to_drain": None, "moving": False}
    assert drain_fields(None) == {"seconds_to_drain": None, "moving": None}
    assert drain_fields(1.23456) == {"seconds_to_drain": 1.235, "moving": True}


def test_the_last_dead_letters_are_told_newest_first() -> None:
    """/state has the last 20 dead letters with place, reason, stage and message."""
    with Shown() as shown:
        for offset in range(LETTERS + 5):
            shown.letters.add(
                "digits", "digits@1", P, offset, Rejection("invalid", "decode", f"message {offset}")
            )
        letters = shown.state()["dead_letters"]
    assert [letter["offset"] for letter in letters] == list(range(LETTERS + 4, 4, -1))
    assert letters[0] == {
        "time_ms": 1_000_000,
        "pipeline": "digits",
        "model": "digits@1",
        "topic": "in",
        "partition": 3,
        "offset": 24,
        "reason": "invalid",
        "stage": "decode",
        "message": "message 24",
    }


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_samples_are_the_last_results_two_a_second_at_most() -> None:
    """However many batches there are, two results a second are kept, each with its record's place; rejected rows never."""
    clock = Clock()
    results = LastResults(3, lambda file: Picture(file, "image/png", 8, 9), clock)
    for _ in range(100):
        clock.now_s += 0.125
        outcomes = Outcomes(
            [b'{"prediction": {"value": 1}}', None], rejected={1: Rejection("invalid", "infer", "")}
        )
        results.batch("digits", batch_of(2, outcomes=outcomes))
        results.make()
    samples = results.state()
    assert [sample["number"] for sample in samples] == [25, 24, 23]
    assert {sample["offset"] for sample in samples} == {0}
    assert samples[0]["result"] == {"prediction": {"value": 1}}
    assert samples[0]["picture"] == {"file": "dmFsdWU=", "mime": "image/png", "width": 8, "height": 9}
    assert results.state(after=24) == samples[:1]


def test_a_sample_never_ends_the_worker() -> None:
    """Whatever a result or a picture is, the loop goes on: what cannot be shown is shown without its picture, or not at all."""
    clock = Clock()

    def broken(file: bytes) -> Picture:
        raise ValueError(file)

    results = LastResults(3, broken, clock)
    results.batch("digits", batch_of(1, outcomes=Outcomes([b"\x00not json"])))
    clock.now_s += 1
    results.batch("digits", batch_of(2, outcomes=Outcomes([])))
    samples = results.state()
    assert [(sample["result"], sample["picture"]) for sample in samples] == [(None, None)]
