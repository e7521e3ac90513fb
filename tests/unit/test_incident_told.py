"""A minute-long incident of two replicas in no time: somebody who has the log alone names what befell whom."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

import pytest
from log_reader import happenings, lines
from story_support import World, refuse

from worker.telemetry import logs
from worker.telemetry.letters_told import LettersTold
from worker.telemetry.story import Story
from worker.telemetry.tellers import story_of

MOST_LINES = 40


class Replica(World):
    """One of two, whose log lines go to the same stream."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.letters: LettersTold
        self.story: Story
        self.story, self.letters = story_of(logs.get("worker"), "kafka:9092", lambda: self.scene)
        self.scene = None  # type: ignore[assignment]
        super().__init__(self)  # type: ignore[arg-type]

    def look(self, scene: object) -> None:
        """As the loop of this replica does once a second."""
        logs.bind(replica=self.number)
        self.scene = scene  # type: ignore[assignment]
        self.story.look()

    def work(self, count: int, in_per_s: int, us: int) -> None:
        """So many seconds with this many records a second, and runs of one item of this duration."""
        for _ in self.seconds(count):
            self.end += in_per_s
            done = min(self.end - self.done, 1_000_000 // us) if self.brokers else 0
            self.done += done
            self.counts.taken += done
            self.counts.ok += done
            self.counts.batches += done
            self.counts.items += done
            for stage in ("infer", "decode", "encode", "total"):
                self.counts.stages_us[stage].add(us if stage in ("infer", "total") else 50, done)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    hook = sys.unraisablehook
    logs.configure((), stream, {"LOG_FORMAT": "json"})
    logs.bind(replica=0, pid=1, group="inc")
    yield stream
    logs.release()
    sys.unraisablehook = hook


def test_the_log_alone_names_every_event_of_an_incident(log: io.StringIO) -> None:
    """Broker away, poison, a model 100 times slower, lag, recovery, on two replicas: at most 40 lines that tell what, whose, until when."""
    replicas = [Replica(0), Replica(1)]
    for replica in replicas:
        replica.work(60, 20, 2_000)
    for replica in replicas:
        replica.brokers = False
        replica.work(35, 20, 2_000)
        replica.brokers = True
        replica.work(30, 20, 2_000)
    for offset in (612, 613, 614):
        refuse(replicas[1], replicas[1].letters, offset, "invalid" if offset == 612 else "undecodable")
    for replica in replicas:
        replica.work(20, 20, 2_000)
    replicas[0].work(40, 20, 200_000)
    replicas[0].work(90, 20, 2_000)

    told = lines(log.getvalue())
    assert len(told) <= MOST_LINES
    assert all([*line][:6] == ["timestamp", "level", "event", "replica", "pid", "group"] for line in told)
    seen = happenings(told)
    assert sorted((each.what, each.replica) for each in seen) == [
        ("broker lost", 0),
        ("broker lost", 1),
        ("dead letters", 1),
        ("falling behind", 0),
        ("model slow", 0),
    ]
    assert all(each.ended_s is not None for each in seen)
    ends = {line["event"]: line.get("after_s") for line in told}
    assert ends["broker back"] == 35
    assert 35 <= ends["model at speed again"] <= 45
    (letters,) = (line for line in told if line["event"] == "dead letters")
    assert (letters["invalid"], letters["undecodable"], letters["first"]) == (1, 2, "inc/0/612")


def test_a_reader_of_a_log_without_the_end_sees_that_it_goes_on(log: io.StringIO) -> None:
    """Without the line that the broker is back the reader says that the outage has no end: it does not guess."""
    replica = Replica(1)
    replica.work(10, 20, 2_000)
    replica.brokers = False
    replica.work(10, 20, 2_000)
    (outage,) = happenings(lines(log.getvalue()))
    assert (outage.what, outage.replica, outage.ended_s) == ("broker lost", 1, None)
