"""Dead letters: the record as it was, and headers any Kafka Connect tool can read."""

from __future__ import annotations

import hashlib

import pytest
from fakes import columns_of

from worker.batch import Columns, Headers, Partition
from worker.dead_letters.compose import LETTER_BYTES, DeadLetter, compose
from worker.errors import Reject, Rejection
from worker.sizes import wire_bytes


class Decoder:
    pass


def letter(
    value: bytes | None = b"payload",
    headers: Headers | None = None,
    max_bytes: int = 1_000_000,
    message: str = "field `a` is missing",
    model: str | None = "digits@1",
    key: bytes | None = b"key",
    timestamp_ms: int = 0,
    keeps_time: bool = True,
    needs_key: bool = False,
) -> DeadLetter:
    columns = columns_of(Partition("digits", 3), [41, 42], [b"other", value])
    columns.keys, columns.headers, columns.timestamps_ms = [None, key], [None, headers], [0, timestamp_ms]
    rejection = Rejection.of(Reject(message), "decode", Decoder())
    return compose(
        columns,
        1,
        rejection,
        "pipeline",
        "client-1",
        model,
        max_bytes,
        lambda _timestamp_ms: keeps_time,
        needs_key,
    )


def test_the_record_is_unchanged_and_the_headers_say_where_why_and_who() -> None:
    """Topic, partition and offset of the original; stage, classes and message of the failure; model and attempts."""
    found = letter(headers=[("traceparent", b"1"), ("empty", None)])
    assert (found.key, found.value) == (b"key", b"payload")
    assert found.headers[:2] == [("traceparent", b"1"), ("empty", None)]
    here = f"{__name__}.Decoder"
    assert dict(found.headers[2:]) == {
        "__connect.errors.topic": b"digits",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"42",
        "__connect.errors.connector.name": b"pipeline",
        "__connect.errors.task.id": b"client-1",
        "__connect.errors.stage": b"decode",
        "__connect.errors.class.name": here.encode(),
        "__connect.errors.exception.class.name": b"worker.errors.Reject",
        "__connect.errors.exception.message": b"field `a` is missing",
        "streaminfer.error.reason": b"invalid",
        "streaminfer.error.attempts": b"1",
        "streaminfer.model": b"digits@1",
    }


def test_headers_of_an_earlier_failure_are_replaced() -> None:
    """A replayed record that fails again says why it failed this time, once."""
    first = letter()
    again = letter(headers=[("streaminfer.value.bytes", b"9"), *first.headers], message="another reason")
    names = [name for name, _ in again.headers]
    assert len(names) == len(set(names)) == len(first.headers)
    assert dict(again.headers)["__connect.errors.exception.message"] == b"another reason"


def test_an_original_that_does_not_fit_is_described_instead() -> None:
    """Null value, with the size and SHA-256 of what it was."""
    value = b"x" * 5_000
    found = letter(value=value, max_bytes=4_000)
    assert found.value is None
    headers = dict(found.headers)
    assert headers["streaminfer.value.bytes"] == b"5000"
    assert headers["streaminfer.value.sha256"] == hashlib.sha256(value).hexdigest().encode()
    assert letter(value=value, max_bytes=10_000).value == value


def test_what_does_not_fit_without_its_value_either_still_fits() -> None:
    """A letter its topic refuses would come back for ever: first the record's own headers go, then its key."""
    large, small = [("big", b"h" * 5_000), ("traceparent", b"00-1")], [("traceparent", b"00-1")]
    for key, headers, kept in (
        (b"k", large, (b"k", set())),
        (b"k" * 5_000, small, (None, set())),
        (b"k", small, (b"k", {"traceparent"})),
    ):
        found = letter(value=b"x" * 5_000, max_bytes=4_000, key=key, headers=headers)
        assert found.value is None
        names = {name for name, _ in found.headers}
        assert (found.key, names & {"big", "traceparent"}) == kept
        assert {"streaminfer.value.sha256", "__connect.errors.offset"} <= names


def test_a_tombstone_stays_a_tombstone() -> None:
    """There is nothing to describe, however small the topic's limit."""
    found = letter(value=None, max_bytes=1)
    assert found.value is None
    assert "streaminfer.value.bytes" not in dict(found.headers)


def test_a_record_without_a_pipeline_names_no_model() -> None:
    """The header is there and empty."""
    assert dict(letter(model=None).headers)["streaminfer.model"] == b""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("could not convert string to float: 'SECRET'"), "could not convert string to float: [payload]"),
        (ValueError("got b'\\xff\\x00' and 'other'"), "got [payload] and 'other'"),
        (ValueError('SECRET and "more"\n of it'), "[payload]"),
        (KeyError("features"), "'features'"),
        (Reject("I do say 'SECRET'"), "I do say 'SECRET'"),
    ],
)  # fmt: skip
def test_what_other_peoples_exceptions_quote_of_the_record_stays_out(error: Exception, said: str) -> None:
    """The record is in the letter anyway; its message goes to logs and dashboards. A Reject says what it says."""
    value = b'{"a": SECRET and "more"\n of it \xff\x00}'
    why = Rejection.of(error, "decode", error)
    found = compose(
        Columns([value], [None], [None], [0], [0], [Partition("digits", 0)]), 0, why, "p", "t", None, 10_000
    )
    assert dict(found.headers)["__connect.errors.exception.message"] == said.encode()


def test_nothing_of_an_earlier_failure_is_left() -> None:
    """Kafka Connect writes a header that we do not: beside our own it would tell of another failure."""
    earlier = [("__connect.errors.exception.stacktrace", b"at Foo"), ("streaminfer.error.attempts", b"3")]
    found = letter(headers=[*earlier, ("mine", b"1")]).headers
    assert [pair for pair in found if pair in earlier] == []
    assert ("mine", b"1") in found


def test_a_timestamp_the_topic_would_not_keep_is_in_a_header() -> None:
    """The letter is then of the time it is sent, and says no other record's timestamp than its own."""
    kept, refused = letter(timestamp_ms=1_700), letter(timestamp_ms=1_700, keeps_time=False)
    assert kept.timestamp_ms == 1_700
    assert "streaminfer.timestamp_ms" not in dict(kept.headers)
    assert refused.timestamp_ms == 0
    assert dict(refused.headers)["streaminfer.timestamp_ms"] == b"1700"
    again = letter(timestamp_ms=1_800, headers=refused.headers)
    assert (again.timestamp_ms, "streaminfer.timestamp_ms" in dict(again.headers)) == (1_800, False)


def test_a_record_without_a_timestamp_gives_a_letter_without() -> None:
    """0 and below say that there is none."""
    for nothing in (0, -1):
        found = letter(timestamp_ms=nothing, keeps_time=False)
        assert (found.timestamp_ms, "streaminfer.timestamp_ms" in dict(found.headers)) == (0, False)


def test_a_letter_for_a_compacted_topic_has_a_key() -> None:
    """A record without a key gets one made of its source, and a header says so; a record's own key is kept."""
    made, kept, free = letter(key=None, needs_key=True), letter(needs_key=True), letter(key=None)
    assert (made.key, made.key_added) == (b"digits/3/42", True)
    assert dict(made.headers)["streaminfer.key.added"] == b"true"
    assert (kept.key, kept.key_added, "streaminfer.key.added" in dict(kept.headers)) == (b"key", False, False)
    assert (free.key, free.key_added, "streaminfer.key.added" in dict(free.headers)) == (None, False, False)


def test_a_key_that_does_not_fit_a_compacted_topic_is_replaced() -> None:
    """A letter without any key would be refused for ever, as one with a key that is too long would be."""
    found = letter(key=b"k" * 5_000, max_bytes=4_096, needs_key=True)
    assert (found.key, found.key_added) == (b"digits/3/42", True)


def test_a_letter_without_its_record_fits_the_smallest_limit() -> None:
    """Names as long as Kafka allows and a full message stay below the limit that is asked for at start."""
    columns = columns_of(Partition("t" * 249, 2**31 - 1), [2**63 - 1], [b"x" * 9_000])
    columns.keys, columns.headers = [b"k" * 9_000], [[("h" * 9_000, b"")]]
    why = Rejection("too_many_pixels", "postprocess", "m" * 5_000, "a" * 100, "b" * 100)
    found = compose(columns, 0, why, "p" * 100, "c" * 249, "m" * 100, LETTER_BYTES, needs_key=True)
    assert wire_bytes(found.key, found.value, found.headers) <= LETTER_BYTES
