"""A record's way into a dead letter and back out of it, and the arguments of `dlq`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from worker.batch import Columns, Headers, Partition
from worker.cli import dlq
from worker.cli import main as cli
from worker.cli.text import json_value
from worker.dead_letters.compose import compose
from worker.dead_letters.read import Letter, Source, matcher, original
from worker.errors import ConfigError, Rejection, StartError

SOURCE = Source(Partition("digits", 3), 1042)


def dead_letter(
    value: bytes | None = b"\x89PNG",
    headers: Headers | None = None,
    max_bytes: int = 1_000_000,
    reason: str = "invalid",
) -> Letter:
    """What the worker makes of a record it rejects, as it is read back from the dead-letter topic."""
    columns = Columns([value], [b"key"], [headers], [1_763_676_000_123], [SOURCE.offset], [SOURCE.partition])
    rejection = Rejection(reason, "decode", "not what it should be", "worker.Decoder", "worker.Reject")  # type: ignore[arg-type]
    letter = compose(columns, 0, rejection, "digits", "client", "digits@1", max_bytes)
    return Letter(Partition("dead", 0), 7, 1_763_676_000_123, letter.key, letter.value, letter.headers)


def returned(letter: Letter) -> Letter:
    assert letter.source is not None
    return original(letter, letter.source)


def test_a_letter_knows_where_and_why() -> None:
    """Place, reason, stage and pipeline are read back from the headers the worker wrote."""
    letter = dead_letter()
    assert letter.source == SOURCE
    assert str(letter.source) == "digits/3/1042"
    assert (letter.reason, letter.stage, letter.pipeline) == ("invalid", "decode", "digits")
    assert not letter.trimmed


def test_a_record_comes_back_as_it_was() -> None:
    """Key, value, timestamp, headers and partition are the original's; one header counts the replay."""
    headers: Headers = [("trace", b"1"), ("trace", b"2"), ("empty", None), ("ce_id", b"order-7")]
    record = returned(dead_letter(headers=headers))
    assert (record.partition, record.key, record.value) == (SOURCE.partition, b"key", b"\x89PNG")
    assert record.timestamp_ms == 1_763_676_000_123
    assert record.headers == [*headers, ("streaminfer.replay", b"1")]


@pytest.mark.parametrize(
    ("stamp", "expected_ms"),
    [(b"1700", 1_700), (b"not a number", 1_763_676_000_123), (b"9" * 5_000, 1_763_676_000_123)],
)
def test_a_timestamp_the_topic_did_not_keep_comes_back_too(stamp: bytes, expected_ms: int) -> None:
    """From its header, which stays behind; one that is no number counts for nothing."""
    letter = dead_letter(headers=[("ce_id", b"order-7")])
    letter.headers.append(("streaminfer.timestamp_ms", stamp))
    record = returned(letter)
    assert record.timestamp_ms == expected_ms
    assert record.headers == [("ce_id", b"order-7"), ("streaminfer.replay", b"1")]


def test_each_replay_counts() -> None:
    """A record that fails again is a letter whose next replay is number two, with one such header."""
    once = returned(dead_letter(headers=[("ce_id", b"order-7")]))
    again = returned(dead_letter(headers=once.headers))
    assert [pair for pair in again.headers if pair[0] == "streaminfer.replay"] == [
        ("streaminfer.replay", b"2")
    ]


@pytest.mark.parametrize("name", ["ce_id", "x-request-id"])
def test_an_id_of_its_own_stays(name: str) -> None:
    """A record that carries an id gets no second one."""
    headers: Headers = [(name, b"order-7")]
    assert returned(dead_letter(headers=headers)).headers == [*headers, ("streaminfer.replay", b"1")]


def test_the_first_place_stays_the_id() -> None:
    """A record without an id carries the place it was first read at, however often it is replayed."""
    once = returned(dead_letter())
    assert ("x-request-id", b"digits/3/1042") in once.headers
    moved = Columns([b""], [None], [once.headers], [0], [5000], [Partition("digits", 3)])
    rejection = Rejection("invalid", "decode", "still not")
    failed_again = compose(moved, 0, rejection, "digits", "client", None, 1_000_000)
    letter = Letter(Partition("dead", 0), 8, 0, failed_again.key, failed_again.value, failed_again.headers)
    assert [value for name, value in returned(letter).headers if name == "x-request-id"] == [b"digits/3/1042"]


def test_a_value_that_was_cut_off_is_known() -> None:
    """A record too large for the dead-letter topic is told from one that never had a value."""
    assert dead_letter(b"x" * 5000, max_bytes=2000).trimmed
    assert not dead_letter(None).trimmed


def test_a_record_of_somebody_else_has_no_source() -> None:
    """Without the worker's headers nobody knows where a record belongs."""
    assert Letter(Partition("dead", 0), 0, 0, None, b"", []).source is None


def test_conditions_add_up_and_values_are_alternatives() -> None:
    """Different names must all hold, one name's values are a choice."""
    letter = dead_letter(reason="invalid")
    assert matcher(["reason=invalid", "stage=decode", "topic=digits", "pipeline=digits"])(letter)
    assert matcher(["reason=expired", "reason=invalid"])(letter)
    assert not matcher(["reason=invalid", "stage=infer"])(letter)
    assert matcher([])(letter)


@pytest.mark.parametrize("condition", ["reason", "colour=red", "=invalid"])
def test_an_unknown_condition_names_the_known_ones(condition: str) -> None:
    """A condition of another form is refused with what may be asked for."""
    with pytest.raises(ConfigError, match=r"expected reason=\.\.\., stage="):
        matcher([condition])


class SlowClock:
    """Time that passes only while somebody waits for it; also what a replay sends to and reads from."""

    def __init__(self) -> None:
        self.now = 100.0
        self.sent: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += seconds / 2  # as a real wait may: it ends early when a delivery is reported

    def send(self, record: Letter, keep_time: bool, arrived: Callable[[], None]) -> None:
        self.sent.append(self.now)
        arrived()

    def settle(self) -> None:
        pass

    def progress(self) -> dict[int, int]:
        return {}

    def keep_progress(self, offsets: dict[int, int]) -> None:
        pass


def test_records_go_out_at_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --rate 4 a record leaves every quarter of a second, whatever a wait really takes."""
    clock = SlowClock()
    monkeypatch.setattr(dlq, "time", clock)
    replay = dlq.Replay(
        clock,  # type: ignore[arg-type]
        clock,  # type: ignore[arg-type]
        topics={"digits"},
        rate=4,
        keep_time=True,
        keep_progress=True,
    )
    for _ in range(9):
        replay.handle(dead_letter(), wanted=True)
    assert clock.sent == pytest.approx([100 + number / 4 for number in range(9)])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list"], "required: CONFIG"),
        (["list", "missing.yaml"], "missing.yaml"),
        (["replay", "missing.yaml", "--rate", "0"], "--rate: expected a number above 0"),
        (["show", "missing.yaml", "--at", "digits/7"], "--at: expected TOPIC/PARTITION/OFFSET, got digits/7"),
        (["show", "missing.yaml", "--where", "why=x"], "--where: got why=x"),
        ([], "required: ACTION"),
    ],
)
def test_a_wrong_argument_is_one_sentence(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each mistake is exit 2 and names what was expected."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["dlq", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("count", [b"9" * 5_000, b"many", "\u0663".encode(), b"-1", b""])
def test_a_replay_count_that_is_no_number_counts_from_one(count: bytes) -> None:
    """Anyone can write the header ``streaminfer.replay``; the replayed record has one such header, which says 1."""
    record = returned(dead_letter(headers=[("ce_id", b"order-7"), ("streaminfer.replay", count)]))
    assert record.headers == [("ce_id", b"order-7"), ("streaminfer.replay", b"1")]


@pytest.mark.parametrize("offset", [b"9" * 5_000, "\u0663".encode()])
def test_a_place_that_is_no_number_is_no_source(offset: bytes) -> None:
    """A letter whose offset is no number of Kafka's was not written by a worker."""
    headers: Headers = [
        ("__connect.errors.topic", b"digits"),
        ("__connect.errors.partition", b"3"),
        ("__connect.errors.offset", offset),
    ]
    assert Letter(Partition("dead", 0), 0, 0, None, b"", headers).source is None


@pytest.mark.parametrize("depth", [300, 1_020])
def test_a_deeply_nested_value_is_shown_as_json(depth: int) -> None:
    """A value nested deeper than any serializer goes is one line of JSON, as it came."""
    value = b"[\n" * depth + b"1.10" + b"]" * depth
    line = orjson.dumps({"value": json_value(value)})
    assert b"\n" not in line
    assert line.count(b"[") == depth
    assert b"1.10" in line


class Desk:
    """What a replay reads from and sends to: the record of the letter at ``refused`` does not arrive."""

    def __init__(self, refused: int | None) -> None:
        self.kept: dict[int, int] = {}
        self.sent: list[int] = []
        self._refused = refused

    def send(self, record: Letter, keep_time: bool, arrived: Callable[[], None]) -> None:
        self.sent.append(len(self.sent) + self.kept.get(0, 0))
        if self.sent[-1] != self._refused:
            arrived()

    def settle(self) -> None:
        if self._refused in self.sent:
            raise StartError("dlq replay: topic digits did not take a record")

    def progress(self) -> dict[int, int]:
        return dict(self.kept)

    def keep_progress(self, offsets: dict[int, int]) -> None:
        self.kept |= offsets


def test_a_replay_that_fails_keeps_the_progress_before_the_failure() -> None:
    """When a record does not arrive, the next run begins with that one: those before it are not sent again."""
    desk = Desk(refused=3)
    replay = dlq.Replay(
        desk,  # type: ignore[arg-type]
        desk,  # type: ignore[arg-type]
        topics={"digits"},
        rate=None,
        keep_time=True,
        keep_progress=True,
    )
    for offset in range(6):
        replay.handle(replace(dead_letter(), offset=offset), wanted=True)
    with pytest.raises(StartError):
        replay.settle()
    assert desk.kept == {0: 3}


def test_a_key_made_for_the_dead_letter_does_not_come_back() -> None:
    """A record without a key is replayed without one."""
    columns = Columns([b"x"], [None], [[("ce_id", b"1")]], [0], [SOURCE.offset], [SOURCE.partition])
    made = compose(columns, 0, Rejection("invalid", "decode", "no"), "p", "c", None, 10_000, needs_key=True)
    record = returned(Letter(Partition("dead", 0), 7, 0, made.key, made.value, made.headers))
    assert (record.key, record.headers) == (None, [("ce_id", b"1"), ("streaminfer.replay", b"1")])
