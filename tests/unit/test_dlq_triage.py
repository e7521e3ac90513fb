"""Dead letters in groups, which of them are meant, and what comes back of a replay."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from worker.batch import Headers, Partition
from worker.cli import dlq_wait
from worker.cli.dlq_list import as_object, grouped, table
from worker.cli.dlq_wait import Back
from worker.cli.letter_text import in_full
from worker.dead_letters.read import Letter, Source, matcher
from worker.errors import ConfigError
from worker.kafka.tools import Record
from worker.settings import validate

STAMP = 1_763_676_000_000
HOUR = 3_600_000


def letter(
    offset: int,
    reason: str = "invalid",
    message: str = "",
    key: bytes | None = b"k",
    at: int = STAMP,
    **headers: str,
) -> Letter:
    given = {
        "__connect.errors.topic": "in",
        "__connect.errors.partition": "3",
        "__connect.errors.offset": str(offset),
        "__connect.errors.stage": "decode",
        "__connect.errors.connector.name": "p",
        "__connect.errors.exception.message": message,
        "streaminfer.error.reason": reason,
        **{name.replace("__", "."): value for name, value in headers.items()},
    }
    return Letter(
        Partition("dead", 0), offset, at, key, b"v", [(name, text.encode()) for name, text in given.items()]
    )


def test_letters_of_one_record_are_one_record() -> None:
    """A record that was replayed twice and failed again is three letters, one record, and two replays."""
    letters = [
        letter(1, **{"x-request-id": "in/3/1"}),
        letter(50, **{"x-request-id": "in/3/1", "streaminfer.replay": "1"}),
        letter(90, at=STAMP + 5, **{"x-request-id": "in/3/1", "streaminfer.replay": "2"}),
        letter(2),
    ]
    [(names, group)] = grouped(letters, "reason")
    found = as_object("reason", names, group)
    assert found == {
        "pipeline": "p",
        "reason": "invalid",
        "stage": "decode",
        "count": 4,
        "records": 2,
        "replayed": 2,
        "first_ms": STAMP,
        "last_ms": STAMP + 5,
        "example": {"source": "in/3/90", "message": ""},
    }


def test_a_replayed_record_without_an_id_is_the_one_it_was() -> None:
    """The first letter has its place, the later ones have that place as their id."""
    letters = [letter(1), letter(50, **{"x-request-id": "in/3/1", "streaminfer.replay": "1"})]
    [(_, group)] = grouped(letters, "reason")
    assert (group.count, len(group.records)) == (2, 1)


def test_one_cause_is_one_row() -> None:
    """By message, numbers and what is quoted do not count; the largest group comes first."""
    letters = [letter(n, message=f'the field "f{n}" is {n}.5, expected a number') for n in range(3)]
    letters.append(letter(9, message="not JSON"))
    found = grouped(letters, "message")
    assert [(names, group.count) for names, group in found] == [
        (("invalid", "the field '...' is N, expected a number"), 3),
        (("invalid", "not JSON"), 1),
    ]


def test_other_groups() -> None:
    """By key, by partition, and by hour in the order of time."""
    letters = [
        letter(1, key=None, at=STAMP + HOUR),
        letter(2, key=b"\xff"),
        letter(3, key=b"a", at=STAMP + HOUR),
    ]
    assert {names for names, _ in grouped(letters, "key")} == {("none",), ("0xff",), ("a",)}
    assert [names for names, _ in grouped(letters, "partition")] == [("in/3",)]
    assert [group.count for _, group in grouped(letters, "hour")] == [1, 2]


def test_the_table_has_first_last_and_an_example() -> None:
    """Columns line up, times are short, and nothing of a record steers the terminal."""
    letters = [letter(1, message="bad\x1b[2J" + "x" * 200), letter(2, "undecodable", at=STAMP + 1000)]
    heading, first, second = table("reason", grouped(letters, "reason"), UTC)
    assert heading.split() == [
        "pipeline",
        "reason",
        "stage",
        "count",
        "records",
        "replayed",
        "first",
        "last",
        "example",
    ]
    assert "11-20 22:00:00" in first
    assert first.endswith("...")
    assert "\x1b" not in first
    assert second.index("in/3/2") == heading.index("example")


@pytest.mark.parametrize(
    ("conditions", "offsets"),
    [
        (["reason=undecodable"], [2]),
        (["key=a"], [3]),
        (["partition=3"], [1, 2, 3]),
        (["partition=4"], []),
        (["message=PICTURE"], [2]),
        (["message=picture", "message=json"], [1, 2]),
        (["message=picture", "reason=invalid"], []),
    ],
)
def test_conditions_choose(conditions: list[str], offsets: list[int]) -> None:
    """Values of one name are alternatives, names are conditions; a message is met by a part of it, in any case."""
    letters = [letter(1, message="not JSON"), letter(2, "undecodable", "no picture"), letter(3, key=b"a")]
    matches = matcher(conditions)
    assert [each.offset for each in letters if matches(each)] == offsets


def test_times_choose() -> None:
    """since is the first moment that counts, until the first that does not any more."""
    matches = matcher([], STAMP, STAMP + 10)
    assert [matches(letter(1, at=STAMP + n)) for n in (-1, 0, 9, 10)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("condition", "sentence"),
    [
        ("reason=bogus", "there is no reason bogus; expected one of undecodable, invalid, "),
        ("reason=model_eror", "there is no reason model_eror; did you mean model_error?"),
        ("stage=decod", "there is no stage decod; did you mean decode?"),
        ("colour=red", "expected reason=..., stage=..., pipeline=..., "),
    ],
)
def test_a_condition_that_none_can_meet_is_refused(condition: str, sentence: str) -> None:
    """An unknown reason, stage or name is a mistake, not an empty answer."""
    with pytest.raises(ConfigError) as caught:
        matcher([condition])
    assert sentence in str(caught.value)


def test_show_says_each_thing_once() -> None:
    """Place, reason and message stand in lines of their own and not again as headers; a long value is cut at 2 KiB."""
    shown = in_full(replace(letter(1, message="why", trace="t"), value=b"x" * 5000))
    assert shown.count("why") == shown.count("invalid") == 1
    assert "header trace: t" in shown
    assert "__connect" not in shown
    assert "x" * 2048 + " ... (--out FILE writes all of it)" in shown
    assert "x" * 2049 not in shown


# --- replay --wait


CONFIG: dict[str, Any] = {
    "input": {"topics": ["in"], "format": "json"},
    "model": {"path": "m.onnx"},
    "output": {"topic": "out"},
    "dead_letter": {"topic": "dead"},
    "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g", "client.id": "worker"},
}


class Scripted:
    """A reader whose records are given."""

    def __init__(self, records: list[Record]) -> None:
        self.records, self.closed = records, False

    def read(self, timeout_s: float) -> list[Record]:
        taken, self.records = self.records[:1], self.records[1:]
        return taken

    def close(self) -> None:
        self.closed = True


def result(offset: int, headers: Headers = (), body: Any = None) -> Record:
    source = {"topic": "in", "partition": 3, "offset": offset, "timestamp_ms": STAMP}
    value = json.dumps({"id": "a", "source": source} if body is None else body).encode()
    return Record("out", 0, offset, STAMP, None, value, headers)


def back_of(monkeypatch: pytest.MonkeyPatch, records: list[Record]) -> tuple[Back, Scripted]:
    reader = Scripted(records)
    monkeypatch.setattr(dlq_wait, "TopicReader", lambda client, topics, start: reader)
    return Back(validate(CONFIG, Path("/"))), reader


def expect(back: Back, *offsets: int) -> None:
    for offset in offsets:
        back.expect(Source(Partition("in", 3), offset))


def test_what_came_back_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers and new dead letters are matched by the place that the record was sent back to; others do not count."""
    again = letter(12)
    records = [
        result(10),
        result(99),
        result(0, [("streaminfer.source", b"in/3/11")], "binary"),
        Record("dead", 0, 5, STAMP, None, b"", again.headers),
        result(0, [("streaminfer.source", b"nonsense")]),
        result(0, body=["no result"]),
    ]
    back, reader = back_of(monkeypatch, records)
    expect(back, 10, 11, 12)
    back.wait(30)
    assert back.as_object() == {"answered": 2, "dead_letters": {"invalid": 1}, "missing": 0}
    assert back.describe(30) == "came back: 2 answered, 1 dead letter again (1 invalid)"
    assert reader.closed


def test_what_does_not_come_back_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the time is up, records that nobody answered are counted."""
    back, _ = back_of(monkeypatch, [result(10)])
    expect(back, 10, 11)
    back.wait(0.05)
    assert "1 answered, 1 not seen within 0.05 s" in back.describe(0.05)


@pytest.mark.parametrize(
    "output",
    [
        {"topic": "out", "body": {"a": "prediction.label"}},
        {"topic": "out", "format": "npy", "headers": "none"},
    ],
)
def test_results_that_do_not_name_their_record_cannot_be_waited_for(
    output: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body of one's own, and binary results without headers, are refused before anything is sent."""
    monkeypatch.setattr(dlq_wait, "TopicReader", lambda *_: None)
    with pytest.raises(ConfigError, match="do not say which record they are of"):
        Back(validate(CONFIG | {"output": output}, Path("/")))
    elsewhere = {"topic": "out", "kafka": {"bootstrap.servers": "elsewhere:9092"}}
    with pytest.raises(ConfigError, match="are on another cluster"):
        Back(validate(CONFIG | {"output": elsewhere}, Path("/")))
