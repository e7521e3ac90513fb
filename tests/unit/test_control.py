"""The records of the control topic, and what they say together."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from worker.serving.control import Book, Decision, Pin, Record, Seen, Stable, decoded, encoded
from worker.serving.rollout import Arm, Figures

RUNNING = Decision("p", "abc-1", "1", "2", "canary", 0.1, "running", "a new version", "r1", 5)
PROMOTED = replace(RUNNING, state="promoted", reason="", by="r2", time_ms=9)
ROLLED_BACK = replace(RUNNING, state="rolled_back", reason="errors", by="r3", time_ms=8)
FIRST = Stable("p", "1", "r1", 1)
SEEN = Seen("p", "abc-1", Figures(Arm(9, 1, 2.5), Arm(1, 0, 3.0), 1, 0), "x", "r1", 6)


def book(*records: Record) -> Book:
    found = Book()
    for record in records:
        found.take(record)
    return found


def test_a_decision_is_written_as_it_is_documented() -> None:
    """The record has exactly the fields that readers of the topic rely on."""
    assert json.loads(encoded(RUNNING)) == {
        "type": "streaminfer.rollout",
        "schema": 1,
        "pipeline": "p",
        "id": "abc-1",
        "stable": "1",
        "candidate": "2",
        "mode": "canary",
        "share": 0.1,
        "state": "running",
        "reason": "a new version",
        "by": "r1",
        "time_ms": 5,
    }


@pytest.mark.parametrize(
    "record", [RUNNING, FIRST, SEEN, Pin("p", None, "3", "cli:a@b", 4), Pin("p", "3", None, "x", 4)]
)
def test_every_record_can_be_read_back(record: Record) -> None:
    """What one replica writes, another one understands."""
    assert decoded(encoded(record)) == record


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"\xff",
        b"[]",
        b'{"type":"streaminfer.rollout","schema":1}',
        encoded(RUNNING).replace(b'"schema": 1', b'"schema": 2'),
        encoded(RUNNING).replace(b"canary", b"other"),
        encoded(RUNNING).replace(b"0.1", b"7"),
        encoded(RUNNING).replace(b"0.1", b"NaN"),
        encoded(SEEN).replace(b'"candidate"', b'"other"'),
    ],
)
def test_a_record_that_is_not_understood_is_passed_over(value: bytes | None) -> None:
    """Whatever else is in the topic, such as records of a later schema, changes nothing."""
    assert decoded(value) is None


def test_the_first_decision_counts() -> None:
    """Of a promotion and a rollback the one that is first in the topic counts, and the later one changes nothing."""
    assert book(FIRST, RUNNING, PROMOTED, ROLLED_BACK).stable == "2"
    assert book(FIRST, RUNNING, ROLLED_BACK, PROMOTED).stable == "1"
    assert book(FIRST, RUNNING, ROLLED_BACK, PROMOTED).decided["abc-1"] == ROLLED_BACK


def test_a_rollout_that_was_decided_does_not_run_again() -> None:
    """The record that it runs may come a second time, or after the decision: it stays decided."""
    assert book(FIRST, RUNNING, ROLLED_BACK, RUNNING).running is None
    assert book(FIRST, ROLLED_BACK, RUNNING).running is None


def test_of_two_starts_the_first_one_counts() -> None:
    """While one rollout runs, another one does not begin."""
    other = replace(RUNNING, id="def-1", candidate="3")
    assert book(FIRST, RUNNING, other).running == RUNNING


def test_a_share_only_grows() -> None:
    """A later record of the same rollout may give the candidate more keys, never fewer."""
    more, less = replace(RUNNING, share=0.5), replace(RUNNING, share=0.05)
    assert book(FIRST, RUNNING, more, less).running == more


def test_a_rollout_by_somebody_who_did_not_know_what_answers_is_none() -> None:
    """Its stable version is not the one that answers by then."""
    assert book(FIRST, RUNNING, PROMOTED, replace(RUNNING, id="x-1", candidate="3")).running is None


def test_what_was_rolled_back_is_only_started_again_by_a_person() -> None:
    """The same files of a version are not tried twice by replicas; other files, or a person's start, are."""
    told = (FIRST, RUNNING, ROLLED_BACK)
    assert book(*told, replace(RUNNING, id="abc-2")).running is None
    assert book(*told, replace(RUNNING, id="abd-1")).running is not None
    assert book(*told, replace(RUNNING, id="abc-2", by="cli:me@here")).running is not None


def test_a_pin_ends_the_rollout_that_runs() -> None:
    """While a version is pinned it answers, nothing is on trial, and no rollout begins; afterwards it goes on answering."""
    pinned = book(FIRST, RUNNING, Pin("p", "7", None, "cli:me@here", 7))
    assert (pinned.stable, pinned.running, pinned.decided["abc-1"].state) == ("7", None, "aborted")
    pinned.take(replace(RUNNING, id="new-1", stable="7"))
    assert pinned.running is None
    pinned.take(Pin("p", None, "7", "cli:me@here", 8))
    assert (pinned.pin, pinned.stable) == (None, "7")


def test_the_first_version_that_was_written_answers() -> None:
    """Two replicas that start at once with different files agree on the first one's."""
    assert book(FIRST, Stable("p", "2", "r2", 1)).stable == "1"


def test_compaction_changes_nothing() -> None:
    """Of a thousand random histories each says the same after compaction kept only the newest record of every key."""
    for seed in range(1000):
        rng = random.Random(seed)
        history = [rng.choice(_SOME) for _ in range(12)]
        keyed = [(record.key(str(number)), record) for number, record in enumerate(history)]
        newest = {key: number for number, (key, _) in enumerate(keyed)}
        kept = [record for number, (key, record) in enumerate(keyed) if newest[key] == number]
        whole, compacted = book(*history), book(*kept)
        assert (whole.stable, whole.running, whole.decided) == (
            compacted.stable,
            compacted.running,
            compacted.decided,
        ), seed


_SOME: list[Record] = [
    FIRST,
    RUNNING,
    PROMOTED,
    ROLLED_BACK,
    SEEN,
    replace(RUNNING, share=0.5),
    replace(RUNNING, id="abc-2", by="cli:me@here"),
    replace(ROLLED_BACK, id="abc-2"),
    replace(RUNNING, id="def-1", candidate="3"),
    replace(PROMOTED, id="def-1", candidate="3"),
    Pin("p", "5", None, "cli:me@here", 1),
    Pin("p", None, "5", "cli:me@here", 1),
    Stable("p", "2", "r2", 1),
]
