"""Admission: which pipeline takes a record, and which records are decided before any model sees them."""

from __future__ import annotations

import pytest
from fakes import FakeRollout, columns_of

from worker.batch import RENAMED_HEADERS, UNREAD_RECORD, Columns, Headers, Partition
from worker.errors import Reject
from worker.loop.admission import Admission, Admitted

pytestmark = pytest.mark.usefixtures("both_batch_paths")

A = Partition("in", 0)
NOW_MS = 1_800_000_000_000.0
PAST, FUTURE = b"2020-01-01T00:00:00Z", b"2100-01-01T00:00:00+02:00"


def records(*values: bytes | None, headers: list[Headers | None] | None = None, topic: str = "in") -> Columns:
    columns = columns_of(Partition(topic, 0), range(len(values)), values)
    columns.headers = headers or [None] * len(values)
    return columns


def admit(
    columns: Columns, *routes: FakeRollout, max_age_ms: int | None = None, expired: str = "dead_letter"
) -> Admitted:
    return Admission(routes or [FakeRollout()], max_age_ms, expired, 10_000).admit(columns, NOW_MS)


def fates(admitted: Admitted) -> list[str]:
    """Per row: the pipeline it goes to, or what was decided."""
    found = []
    for row, route in enumerate(admitted.routes):
        if row in admitted.outcomes.rejected:
            found.append(admitted.outcomes.rejected[row].reason)
        elif row in admitted.outcomes.dropped:
            found.append("dropped")
        elif row in admitted.decided:
            found.append(str(admitted.outcomes.bodies[row]))
        else:
            assert route is not None
            found.append(route.name)
    return found


def test_ordinary_records_all_go_to_the_only_pipeline() -> None:
    """Ordinary records go to the only pipeline, each charged with its slot in the batch."""
    admitted = admit(records(b"x", b"y"))
    assert fates(admitted) == ["digits", "digits"]
    assert admitted.costs == [100, 100]
    assert not admitted.decided


@pytest.mark.parametrize(
    ("headers", "taker"),
    [
        ([("x-model", b"a")], "a"),
        ([("x-model", b"b")], "b"),
        ([("x-model", b"a"), ("x-model", b"b")], "b"),
        ([("x-model", b"A")], "rest"),
        ([("X-Model", b"a")], "a"),
        ([("x-model", b"a"), ("X-MODEL", b"b")], "b"),
        ([("x-model", None)], "rest"),
        (None, "rest"),
    ],
)
def test_the_first_pipeline_whose_header_matches_takes_the_record(
    headers: Headers | None, taker: str
) -> None:
    """Bytes against the last header of that name, whose case does not matter; a pipeline without `when` takes what is left."""
    when = {name: FakeRollout(name, when=("x-model", name.encode())) for name in "ab"}
    assert fates(admit(records(b"v", headers=[headers]), *when.values(), FakeRollout("rest"))) == [taker]


def test_a_pipeline_takes_only_its_own_topics() -> None:
    """A record that no pipeline takes is unroutable, also where the topics are shared otherwise."""
    routes = [FakeRollout("a", topics=frozenset({"in"})), FakeRollout("b", topics=frozenset({"more"}))]
    columns = records(b"x")
    columns.extend(records(b"x", topic="more"))
    columns.extend(records(b"x", topic="strange"))
    assert fates(admit(columns, *routes)) == ["a", "b", "unroutable"]


@pytest.mark.parametrize(("how", "fate"), [("pass", "None"), ("drop", "dropped"), ("reject", "invalid")])
def test_a_tombstone_passes_is_dropped_or_rejected(how: str, fate: str) -> None:
    """A tombstone is passed on, dropped or rejected as configured, and costs no slot."""
    admitted = admit(records(b"x", None), FakeRollout(tombstone=how))
    assert fates(admitted) == ["digits", fate]
    assert admitted.costs == [100, 0]


def test_a_record_over_the_limit_is_too_large() -> None:
    """A record one byte over the limit is too large; one at the limit is not."""
    admitted = admit(records(b"x" * 10, b"x" * 11), FakeRollout(max_bytes=10))
    assert fates(admitted) == ["digits", "too_large"]
    assert "11 bytes" in admitted.outcomes.rejected[1].message


@pytest.mark.parametrize(
    ("expired", "fate"), [("dead_letter", "expired"), ("drop", "dropped"), ("publish", "b'0 expired'")]
)
def test_an_expired_record_is_decided_as_configured(expired: str, fate: str) -> None:
    """A record past its `ce_expirytime` is decided before decode, as `limits.expired` says."""
    columns = records(b"x", b"x", headers=[[("ce_expirytime", PAST)], [("ce_expirytime", FUTURE)]])
    assert fates(admit(columns, expired=expired)) == [fate, "digits"]


@pytest.mark.parametrize("unreadable", [b"soon", b"\xff", b"", None, b"2020-01-01T00:00:00"])
def test_an_expiry_that_cannot_be_read_does_not_count(unreadable: bytes | None) -> None:
    """An expiry that cannot be read, or that has no offset from UTC, does not count."""
    assert fates(admit(records(b"x", headers=[[("ce_expirytime", unreadable)]]))) == ["digits"]


def test_records_age_from_their_timestamp() -> None:
    """A record without one has no age; the earlier of two deadlines counts."""
    columns = records(b"x", b"x", b"x", b"x")
    columns.timestamps_ms = [int(NOW_MS) - 101, int(NOW_MS) - 99, 0, int(NOW_MS) - 50]
    columns.headers = [[("ce_expirytime", FUTURE)], None, None, [("ce_expirytime", PAST)]]
    assert fates(admit(columns, max_age_ms=100)) == ["expired", "digits", "digits", "expired"]


def test_header_names_that_are_not_utf_8_make_a_record_invalid() -> None:
    """The source's mark counts; a header of the same name that somebody sent does not."""
    sent = RENAMED_HEADERS.encode().decode()
    assert sent is not RENAMED_HEADERS
    marked: Headers = [(RENAMED_HEADERS, b"1,3"), ("caf\ufffd", b"x"), ("a", b""), ("\ufffd", None)]
    for value in (b"x", None):
        admitted = admit(records(value, b"y", headers=[marked, [(sent, b"1")]]))
        assert fates(admitted) == ["invalid", "digits"]
        rejection = admitted.outcomes.rejected[0]
        assert rejection.stage == "decode"
        assert rejection.message == "expected header names in UTF-8, other bytes in header 1,3"


def test_a_record_that_could_not_be_taken_is_crashed_whatever_its_route() -> None:
    """It has no headers to be routed by, and no value that could be a tombstone."""
    unread: Headers = [(UNREAD_RECORD, b"")]
    routed = FakeRollout(when=("x-model", b"a"))
    for admitted in (
        admit(records(None, b"y", headers=[unread, None])),
        admit(records(None, headers=[unread]), routed),
    ):
        assert fates(admitted)[0] == "crashed"
        assert "it is still in its topic" in admitted.outcomes.rejected[0].message


def test_costly_decodes_are_weighed_before_they_begin() -> None:
    """A decode beyond the whole budget can never be; one whose header already says why is not tried."""

    def scratch(value: bytes) -> int:
        if value == b"broken":
            raise Reject("no image", "undecodable")
        return int(value)

    columns = records(b"0", b"900", b"9900", b"broken")
    admitted = admit(columns, FakeRollout(costly=True, scratch=scratch))
    assert fates(admitted) == ["digits", "digits", "too_many_pixels", "undecodable"]
    assert admitted.costs == [100, 1_000, 0, 0]


def test_rejections_before_decode_say_so() -> None:
    """A rejection before decode has stage `decode`, and its sentence names the limit."""
    admitted = admit(records(b"xx"), FakeRollout(max_bytes=1))
    why = admitted.outcomes.rejected[0]
    assert why.stage == "decode"
    assert why.message == "the record has 2 bytes, input.max_bytes is 1"
