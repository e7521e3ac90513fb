"""All replicas of a group as the metrics topic tells of them, and how a terminal shows them."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import orjson
import pytest
from page_support import WORKER, Told

from worker.batch import Partition
from worker.cli.top_view import lines
from worker.errors import StartError
from worker.telemetry.follower import Follower
from worker.telemetry.group import GroupView
from worker.telemetry.meters import PartitionState
from worker.telemetry.topic import WorkerInfo, metrics_record


class Replica:
    """A replica that writes its metrics record every ten seconds."""

    def __init__(self, number: int, *partitions: int, group: str = "digits") -> None:
        self.told = Told()
        self.info = replace(WORKER, id=f"digits-host-{number}", pid=number, group=group)
        self.numbers = partitions
        self.done = 0
        self.last = self.told.snapshot()

    def write(self, records: int, bad: int = 0, lag: int = 30) -> bytes:
        self.told.now_s += 10
        self.told.answers(records)
        for _ in range(bad):
            self.told.rejects("invalid", "decode")
        self.done += records
        self.told.partitions = {
            Partition("in", number): PartitionState(self.done, self.done, self.done + lag)
            for number in self.numbers
        }
        now = self.told.snapshot()
        interval, self.last = now.since(self.last), now
        return metrics_record(interval, self.info)


def view_of(*values: bytes) -> GroupView:
    view = GroupView("digits")
    for value in values:
        view.add(value)
    return view


def test_the_group_is_the_sum_of_its_replicas() -> None:
    """Rates and lag of the group are the sums over its replicas; each replica's numbers are those of its own record."""
    one, two = Replica(1, 0, 1), Replica(2, 2)
    view = view_of(one.write(100), one.write(200), two.write(0), two.write(50, bad=10))
    state = view.state(1_020_500)
    rows = {row["id"]: row for row in state["replicas"]}
    assert rows["digits-host-1"]["rates"]["out"] == 20
    assert rows["digits-host-2"]["rates"] == {"in": 6, "out": 5, "dead_letter": 1, "dropped": 0}
    assert state["totals"]["out"] == 25
    assert state["totals"]["lag"] == 90
    assert state["partitions"]["in/1"]["worker"] == "digits-host-1"
    assert state["partitions"]["in/1"]["seconds_to_drain"] == pytest.approx(30 / 20)
    assert rows["digits-host-1"]["age_s"] == 0.5


def test_a_replica_that_ends_becomes_silent_and_is_forgotten() -> None:
    """After three intervals without a record a replica is silent and counts no more; after ten it is gone."""
    view = view_of(Replica(1, 0).write(100))
    assert view.state(1_030_000)["totals"] == view.state(1_030_000)["totals"] | {"replicas": 1, "out": 10}
    silent = view.state(1_050_000)
    assert (silent["replicas"][0]["silent"], silent["totals"]["out"]) == (True, 0)
    assert view.state(1_200_000)["replicas"] == []


def test_a_partition_that_moved_is_shown_once() -> None:
    """The newest record that names a partition says where it is."""
    one, two = Replica(1, 0), Replica(2, 0)
    two.told.now_s += 1
    view = view_of(one.write(10), two.write(10))
    assert view.state(1_011_000)["partitions"]["in/0"]["worker"] == "digits-host-2"


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"[]",
        b"not json",
        b'{"type": "streaminfer.metrics"}',
        b'{"type": "streaminfer.quality", "worker": {"group": "digits"}}',
        Replica(9, 0, group="other").write(5),
        orjson.dumps({**orjson.loads(Replica(9, 0).write(5)), "partitions": {"x": None}}),
        orjson.dumps({**orjson.loads(Replica(9, 0).write(5)), "time_ms": "now"}),
        orjson.dumps({**orjson.loads(Replica(9, 0).write(5)), "pipelines": {"a": 1}}),
    ],
)
def test_what_is_no_record_of_the_group_is_left_out(value: bytes | None) -> None:
    """Other groups, other kinds of record and anything broken on the topic change nothing and end nothing."""
    view = view_of(Replica(1, 0).write(100))
    view.add(value)
    assert [row["id"] for row in view.state(1_010_000)["replicas"]] == ["digits-host-1"]


class Topic:
    """Gives a follower its records, or an error first."""

    def __init__(self, *values: bytes, failures: int = 0) -> None:
        self.values = [Value(value) for value in values]
        self.failures = failures
        self.opened = threading.Event()
        self.closed = threading.Event()

    def __call__(self, _since_ms: int) -> Topic:
        if self.failures:
            self.failures -= 1
            raise StartError("topic metrics does not exist on localhost:9092")
        self.opened.set()
        return self

    def read(self, _timeout_s: float) -> list[Value]:
        found, self.values = self.values, []
        return found

    def close(self) -> None:
        self.closed.set()


class Value:
    def __init__(self, value: bytes) -> None:
        self.value = value


def test_the_topic_is_read_only_while_somebody_looks() -> None:
    """Nothing is opened before the first look; some time after the last one the reader is closed, and a look opens it again."""
    now = {"s": 0.0}
    topic = Topic(Replica(1, 0).write(100))
    follower = Follower("digits", "metrics", topic, lambda: 1010.0, lambda: now["s"])
    assert not topic.opened.is_set()
    while not follower.state()["replicas"]:
        assert follower.state()["error"] is None
    now["s"] += 100
    assert topic.closed.wait(10)
    while follower._thread is not None:
        pass
    topic.opened.clear()
    follower.state()
    assert topic.opened.wait(10)
    follower.close()


def test_a_topic_that_cannot_be_read_is_a_sentence() -> None:
    """When the metrics topic is away, the state says why, and the page goes on."""
    topic = Topic(failures=1)
    follower = Follower("digits", "metrics", topic)
    while (error := follower.state()["error"]) is None:
        pass
    assert error == "topic metrics does not exist on localhost:9092"
    follower.close()


def shown(state: dict[str, Any], width: int = 100, colour: bool = False) -> list[str]:
    about = {"group": "digits", "topic": "metrics", "time_ms": 1_010_000, "interval_s": 10.0}
    return lines({**about, **state}, width, colour)


def test_a_terminal_shows_replicas_pipelines_and_partitions() -> None:
    """top shows each replica's rate, the pipelines with why records failed, and partitions with the most lag first."""
    view = view_of(Replica(1, 0).write(100, lag=5), Replica(2, 1).write(100, bad=2, lag=50))
    text = shown(view.state(1_010_000))
    assert text[0].startswith("digits  2 replicas  answered 20/s  dead letters 0.2/s  lag 55")
    assert [line.split()[:2] for line in text if line.startswith("digits-host-")] == [
        ["digits-host-1", "10"],
        ["digits-host-2", "10"],
    ]
    assert any(line.startswith("digits ") and line.endswith("2 invalid") for line in text)
    assert [line.split()[0] for line in text if line.startswith("in/")] == ["in/1", "in/0"]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    """Lines are cut to the width, colours not counted, and without colour there is no escape sequence."""
    view = view_of(Replica(1, 0).write(100, bad=1), Replica(2, 1).write(100))
    plain = shown(view.state(1_010_000), width)
    assert max(map(len, plain)) <= width
    assert not any("\x1b" in line for line in plain)
    painted = shown(view.state(1_010_000), width, True)
    assert [
        line.split("m", 1)[-1].replace("\x1b[0m", "") if line.startswith("\x1b") else line for line in painted
    ] == plain


def test_names_on_the_topic_cannot_steer_the_terminal() -> None:
    """A client id with an escape sequence is shown, not obeyed."""
    record = orjson.loads(Replica(1, 0).write(100))
    record["worker"]["id"] = "a\x1b[2Jb"
    view = view_of(orjson.dumps(record))
    assert not any("\x1b" in line for line in shown(view.state(1_010_000)))


def test_a_group_without_replicas_is_a_sentence() -> None:
    """With nothing on the topic top says so, and how often replicas write."""
    assert shown(GroupView("digits").state(0))[-1] == (
        "no replica wrote to metrics in the last minute; they write every 10 s"
    )


def test_worker_info_is_what_a_row_begins_with() -> None:
    """A row names its replica as the metrics record does."""
    row = view_of(Replica(1, 0).write(1)).state(1_010_000)["replicas"][0]
    assert (
        WorkerInfo(*(row[name] for name in ("id", "group", "host", "pid", "version"))).id == "digits-host-1"
    )
