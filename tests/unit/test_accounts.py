"""The judge of counters, on counters and topics that do not agree."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from accounts import Counted, Topics, add_up, agree, counted

SAID = [
    Counted("a", taken=10, ok=7, dead_letter=1, dropped=2),
    Counted("b", taken=5, ok=5),
]
THERE = Topics(results=12, dead_letters=1, read=13)


def test_counters_that_agree_pass() -> None:
    """Counters that agree with the topics pass, also if one process gave records back that another answered."""
    assert add_up(SAID) == []
    assert agree(SAID, THERE, once=True, drops=False) == []


@pytest.mark.parametrize("field", ["taken", "ok", "dead_letter", "dropped", "in_flight"])
def test_a_count_that_is_off_by_one_is_found(field: str) -> None:
    """A count that is off by one is found in each counter of each process."""
    wrong = replace(SAID[1], **{field: getattr(SAID[1], field) + 1})
    assert add_up([SAID[0], wrong]) == [f"does not add up: {wrong}"]


@pytest.mark.parametrize("field", ["results", "dead_letters", "read"])
@pytest.mark.parametrize("more", [1, -1])
def test_topics_that_hold_another_number_are_found(field: str, more: int) -> None:
    """A topic with one record too many or too few is found; if records may be answered twice, only too few is."""
    there = replace(THERE, **{field: getattr(THERE, field) + more})
    assert len(agree(SAID, there, once=True, drops=False)) == 1
    assert len(agree(SAID, there, once=False, drops=False)) == (more < 0 and field != "read")


def test_dropped_records_count_as_answered_where_they_may_be_dropped() -> None:
    """Dropped records count as answered if the configuration drops records; else they were given back."""
    dropping = [Counted("a", taken=10, ok=7, dropped=3)]
    there = Topics(results=7, dead_letters=0, read=10)
    assert agree(dropping, there, once=True, drops=True) == []
    assert agree(dropping, there, once=True, drops=False) == ["counted 7 as answered, 10 inputs were read"]


def test_last_words_are_read_from_either_kind_of_log(tmp_path: Path) -> None:
    """The counts in the last log lines are read from JSON and from readable logs, also of several processes in one log."""
    log = tmp_path / "log"
    log.write_text(
        '{"client_id": "edge-0", "taken": 3, "ok": 1, "dead_letter": 1, "dropped": 1, "in_flight": 0, "event": "counted"}\n'
        "2026-01-01T00:00:00Z [info     ] counted  client_id=edge-1 dead_letter=0 dropped=0 in_flight=2 ok=4 taken=6\n"
        '{"event": "drained"}\n'
    )
    first, second = counted(log)
    assert first == Counted("edge-0", taken=3, ok=1, dead_letter=1, dropped=1)
    assert second == Counted("edge-1", taken=6, ok=4, in_flight=2)
    assert (first.difference, second.difference) == (0, 2)
