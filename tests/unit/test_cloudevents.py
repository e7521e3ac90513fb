"""CloudEvents: structured events are opened as the specification's own library reads them; results are events of their own."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import models
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary, to_binary, to_structured
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from fakes import FakeRollout
from hypothesis import given
from hypothesis import strategies as st
from payload_support import Stream, document, gz, prediction, record

from worker import settings
from worker.batch import Batch, Columns, Headers, Partition
from worker.errors import ConfigError, Reject
from worker.loop.admission import EVENT_BYTES_MAX, Admission
from worker.payload.opening import Opening
from worker.serving.engine import Engine

STRUCTURED = [("content-type", b"application/cloudevents+json")]
OPENING = Opening(None, 1 << 20)


def event(data: Any = None, **attributes: Any) -> dict[str, Any]:
    """An event whose data are a record unless said otherwise; None leaves an attribute out."""
    given = {
        "specversion": "1.0",
        "id": "e1",
        "source": "/sensors/7",
        "type": "com.example.reading",
        **attributes,
    }
    if data is None and not {"data", "data_base64"} & given.keys():
        data = {"features": [1, 2, 3, 4]}
    if data is not None:
        given["data"] = data
    return given


def structured(data: Any = None, **attributes: Any) -> tuple[bytes, Headers]:
    return json.dumps(event(data, **attributes)).encode(), [*STRUCTURED]


# -- in ------------------------------------------------------------------------------------------------------------


NAMES = st.from_regex(r"[a-z][a-z0-9]{2,18}", fullmatch=True).filter(
    lambda name: (
        name
        not in {"data", "time", "specversion", "source", "type", "subject", "dataschema", "datacontenttype"}
    )
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=30)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=10,
)


@given(
    st.dictionaries(NAMES, TEXTS | st.booleans() | st.integers(-(2**31), 2**31 - 1), max_size=4),
    TEXTS,
    st.one_of(
        st.tuples(st.just("application/json"), st.dictionaries(TEXTS, JSON, max_size=4)),
        st.tuples(st.just("text/plain"), TEXTS),
        st.tuples(st.sampled_from(["image/jpeg", None]), st.binary(min_size=1, max_size=60)),
    ),
)
def test_events_are_read_as_the_reference_library_reads_them(
    extensions: dict[str, Any], id_: str, content: tuple[str | None, Any]
) -> None:
    """An event that the library writes in structured mode opens to what the library writes in binary mode."""
    content_type, data = content
    attributes = {**extensions, "id": id_, "source": "/a", "type": "t", "specversion": "1.0"}
    attributes["time"] = datetime(2026, 11, 30, 12, 0, 1, tzinfo=UTC)
    if content_type:
        attributes["datacontenttype"] = content_type
    theirs = CloudEvent(attributes, data)
    message = to_structured(theirs, JSONFormat())
    headers = [(name, bytes(value)) for name, value in message.headers.items()]
    assert OPENING.applies(headers)
    value, found = OPENING.open(bytes(message.value or b""), headers, "in")
    binary = to_binary(theirs, JSONFormat())
    expected = {name: bytes(text) for name, text in binary.headers.items()}
    for name, item in extensions.items():  # the library writes Python's words for a truth value
        if isinstance(item, bool):
            expected[f"ce_{name}"] = json.dumps(item).encode()
    assert dict(found or []) == expected
    if content_type == "application/json":
        assert json.loads(value) == json.loads(bytes(binary.value or b""))
    else:
        assert value == bytes(binary.value or b"")


EXAMPLES = {
    "binary": ({"datacontenttype": "application/vnd.apache.thrift.binary", "data_base64": "YWJj"}, b"abc"),
    "object": (
        {
            "datacontenttype": "application/json",
            "data": {"appinfoA": "abc", "appinfoB": 123, "appinfoC": True},
        },
        b'{"appinfoA":"abc","appinfoB":123,"appinfoC":true}',
    ),
    "xml": ({"datacontenttype": "application/xml", "data": '<much wow="xml"/>'}, b'<much wow="xml"/>'),
    "number": ({"datacontenttype": "application/json", "data": 1.5}, b"1.5"),
    "text as JSON": (
        {"datacontenttype": "text/json; charset=utf-8", "data": "I'm just a string"},
        b'"I\'m just a string"',
    ),
    "a JSON suffix": ({"datacontenttype": "application/geo+json", "data": "x"}, b'"x"'),
    "no content type": ({"data": [1, 2]}, b"[1,2]"),
    "text without content type": ({"data": "plain"}, b"plain"),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_data_of_the_specifications_examples(name: str) -> None:
    """The examples of the JSON event format, section 3.2, give the bytes of binary mode; null attributes are absent."""
    given, expected = EXAMPLES[name]
    whole = {
        "specversion": "1.0",
        "type": "com.example.someevent",
        "source": "/mycontext",
        "subject": None,
        "id": "C234-1234-1234",
        "time": "2018-04-05T17:31:00Z",
        "comexampleextension1": "value",
        "comexampleothervalue": 5,
        **given,
    }
    value, headers = OPENING.open(json.dumps(whole).encode(), [*STRUCTURED], "in")
    assert value == expected
    found = dict(headers or [])
    assert found["ce_comexampleothervalue"] == b"5"
    assert "ce_subject" not in found
    assert found.get("content-type", b"").decode() == given.get("datacontenttype", "")


@pytest.mark.parametrize(
    "content_type",
    [
        b"application/cloudevents+json",
        b"Application/CloudEvents+JSON; charset=UTF-8",
        b" application/cloudevents+json ;a=b",
    ],
)
def test_a_structured_event_is_answered_under_its_id(tmp_path: Path, content_type: bytes) -> None:
    """The content type tells an event in any case and with parameters; the record is its data, the id its own."""
    value, _ = structured()
    outcomes = Stream(tmp_path).send((value, [("Content-Type", content_type), ("ce_id", b"of the header")]))
    assert prediction(outcomes.bodies[0]) == [1, 2, 3, 4]
    assert json.loads(outcomes.bodies[0] or b"")["id"] == "e1"


def test_events_in_batch_mode_are_another_thing(tmp_path: Path) -> None:
    """Kafka has no batch mode: its content type marks nothing, and the record is read as it is."""
    batch = [("content-type", b"application/cloudevents-batch+json")]
    assert Stream(tmp_path).numbers(record(1, 2, 3, 4), batch) == [1, 2, 3, 4]


@pytest.mark.parametrize("way", ["object", "text", "base64"])
def test_data_may_come_in_any_form(tmp_path: Path, way: str) -> None:
    """JSON data, a text that holds JSON, and base64 give the same record."""
    text = record(1, 2, 3, 4)
    made = {
        "object": lambda: structured(),
        "text": lambda: structured(text.decode()),
        "base64": lambda: structured(data_base64=base64.b64encode(text).decode()),
    }[way]()
    assert Stream(tmp_path).numbers(*made) == [1, 2, 3, 4]


def test_a_picture_in_an_event_is_a_picture(tmp_path: Path) -> None:
    """Whatever the input format reads may be in data_base64."""
    import cv2
    import numpy as np

    picture = cv2.imencode(".png", np.full((2, 2, 3), 7, np.uint8))[1].tobytes()
    stream = Stream(
        tmp_path,
        models.identity(np.float32, ("N", 2, 2, 3)),
        input={"format": "image"},
        preprocess={"image": {"layout": "nhwc"}},
    )
    outcomes = stream.send(
        structured(data_base64=base64.b64encode(picture).decode(), datacontenttype="image/png")
    )
    assert not outcomes.rejected
    assert json.loads(outcomes.bodies[0] or b"")["prediction"]["outputs"]["y"][0][0] == [7, 7, 7]


def test_a_wrapped_event_is_unwrapped_first(tmp_path: Path) -> None:
    """content-encoding is about the whole event."""
    value, headers = structured()
    outcomes = Stream(tmp_path).send((gz(value), [*headers, ("content-encoding", b"gzip")]))
    assert json.loads(outcomes.bodies[0] or b"")["id"] == "e1"


BROKEN: dict[str, tuple[bytes, str, str]] = {
    "not JSON": (b"{", "undecodable", "the event is not JSON: "),
    "nothing": (b"", "undecodable", "the event is not JSON: "),
    "a list": (b"[]", "undecodable", "the event is a list, expected a JSON object"),
    "no id": (
        structured(id=None)[0],
        "invalid",
        'the event has no attribute "id", expected text that is not empty',
    ),
    "an empty source": (structured(source="")[0], "invalid", 'the event has no attribute "source"'),
    "a type of another kind": (structured(type=7)[0], "invalid", 'the event has no attribute "type"'),
    "an old version": (
        structured(specversion="0.3")[0],
        "invalid",
        'the event\'s specversion is "0.3", expected "1.0"',
    ),
    "an attribute that is a list": (
        structured(kind=[1])[0],
        "invalid",
        'the event\'s attribute "kind" is a list',
    ),
    "an attribute that is a fraction": (
        structured(kind=1.5)[0],
        "invalid",
        'attribute "kind" is a number, expected text',
    ),
    "no data": (
        json.dumps(event(data_base64=None)).encode(),
        "invalid",
        "the event has no data, expected data or data_base64",
    ),
    "both data": (
        structured({"a": 1}, data_base64="YQ==")[0],
        "invalid",
        "the event has data and data_base64",
    ),
    "no base64": (structured(data_base64="*")[0], "undecodable", "the event's data_base64 is no base64"),
    "base64 of another kind": (
        structured(data_base64=[1])[0],
        "invalid",
        "the event's data_base64 is a list",
    ),
    "data of another format": (structured({"values": [1]})[0], "invalid", ""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_event_is_one_sentence(tmp_path: Path, name: str) -> None:
    """What is wrong with an event is told by its part; the dead letter is the event as it came."""
    value, reason, sentence = BROKEN[name]
    stream = Stream(tmp_path)
    found = stream.refusal(value, [*STRUCTURED])
    assert found[0] == reason, found
    assert sentence in found[1]
    assert stream.columns.values[1] == value
    assert stream.columns.headers[1] == STRUCTURED


def test_an_event_without_data_is_no_tombstone(tmp_path: Path) -> None:
    """Only a null value deletes; it passes whatever the content type says."""
    outcomes = Stream(tmp_path).send((None, [*STRUCTURED]))
    assert not outcomes.rejected
    assert outcomes.bodies == [None]


def admitted(*records: tuple[bytes, Headers], when: tuple[str, bytes] | None = None) -> Any:
    fakes = [FakeRollout("first", when=when), FakeRollout("rest")]
    for rollout in fakes:
        object.__setattr__(rollout.route, "opening", OPENING)
    rows = len(records)
    columns = Columns(
        [value for value, _ in records],
        [None] * rows,
        [headers for _, headers in records],
        [0] * rows,
        list(range(rows)),
        [Partition("in", 0)] * rows,
    )
    return Admission(fakes, None, "dead_letter", 1 << 30).admit(columns, 1e12)


def test_a_large_event_is_charged_for_what_is_in_it() -> None:
    """An event of one long text takes little more than its bytes; one of many small numbers takes many times as much."""
    text = structured(data_base64="QUJD" * 2_000_000)
    numbers = structured([0] * 500_000)
    for (value, headers), least, most in ((text, 2, 6), (numbers, 8, 40)):
        inside, unwrapping, event = OPENING.cost(value, headers)
        assert (inside, unwrapping) == (len(value), 0)
        assert least * len(value) <= event <= most * len(value)


def test_what_an_event_refers_to_is_decoded_in_its_place(tmp_path: Path) -> None:
    """A payload that was fetched for an event is unwrapped by the record's headers; the id is the event's."""
    stream = Stream(tmp_path)
    value = json.dumps(event(data_base64=None, dataref="s3://b/o")).encode()
    columns = Columns(
        [value], [None], [[*STRUCTURED, ("content-encoding", b"gzip")]], [0], [5], [Partition("in", 0)]
    )
    servable = stream.rollout.choose()
    batch = Batch(
        None, range(1), columns, stream.rollout.route, servable, 0, 0.0, payloads=[gz(record(1, 2, 3, 4))]
    )
    batch.to_open = {0}
    engine = Engine()
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    engine.infer(batch)
    engine.finish(batch)
    assert batch.outcomes is not None
    assert not batch.outcomes.rejected
    assert prediction(batch.outcomes.bodies[0]) == [1, 2, 3, 4]
    assert json.loads(batch.outcomes.bodies[0] or b"")["id"] == "e1"


def test_attributes_route_a_record() -> None:
    """`when` sees the attributes of structured events as it sees those of binary ones."""
    large = structured({"text": "x" * EVENT_BYTES_MAX})
    sent = [
        structured(),
        structured(type="com.example.other"),
        (b"{}", [("ce_type", b"com.example.reading")]),
        (b"{", [*STRUCTURED]),
        large,
        (large[0], [*STRUCTURED, ("ce_type", b"com.example.reading")]),
    ]
    found = admitted(*sent, when=("ce_type", b"com.example.reading"))
    assert [route.name for route in found.routes] == ["first", "rest", "first", "rest", "rest", "first"]


def test_attributes_expire_a_record() -> None:
    """expirytime inside a structured event is the record's deadline."""
    found = admitted(
        structured(expirytime="2001-01-01T00:00:00Z"), structured(expirytime="2999-01-01T00:00:00Z")
    )
    assert {row: why.reason for row, why in found.outcomes.rejected.items()} == {0: "expired"}
    assert list(found.deadlines_ms) == [1]


def test_the_id_of_a_refused_event_is_in_its_error(tmp_path: Path) -> None:
    """A record refused for its data, or expired, is told apart by the event's id."""
    stream = Stream(tmp_path, output={"errors": True})
    outcomes = stream.send(structured({"features": [1]}))
    body, _ = stream.rollout.route.envelope.error(stream.columns, 0, outcomes.rejected[0])
    assert json.loads(body)["id"] == "e1"


# -- out -----------------------------------------------------------------------------------------------------------


OUT = {"source": "/workers/readings", "type": "com.example.prediction"}


def read(body: bytes | None, headers: Headers | None) -> Any:
    """A result as the reference library reads it."""
    assert body is not None
    message = KafkaMessage(headers=dict(headers or []), key=None, value=body)  # type: ignore[arg-type]
    return from_binary(message, JSONFormat())


def test_results_are_events_of_their_own(tmp_path: Path) -> None:
    """Each result is a valid event in binary mode, with its own id, source, type and time, and names its request."""
    stream = Stream(tmp_path, output={"cloudevents": OUT, "headers": "all"})
    before = datetime.now(UTC).timestamp() - 0.001
    outcomes = stream.send(
        structured(subject="s", partitionkey="p"),
        (
            record(5, 6, 7, 8),
            [("ce_id", b"e2"), ("ce_source", b"/b"), ("ce_type", b"t"), ("ce_specversion", b"1.0")],
        ),
        (
            record(0, 0, 0, 0),
            [("x-request-id", b"r"), ("content-type", b"image/jpeg"), ("traceparent", b"tp")],
        ),
        (record(0, 0, 0, 0), None),
        (None, None),
    )
    headers = outcomes.headers or []
    events = [read(outcomes.bodies[row], headers[row]) for row in range(4)]
    assert [one.get_id() for one in events] == [f"in/0/{offset}" for offset in (7, 8, 9, 10)]
    assert {(one.get_source(), one.get_type(), one.get_datacontenttype()) for one in events} == {
        ("/workers/readings", "com.example.prediction", "application/json")
    }
    assert [one.get_extension("correlationid") for one in events] == ["e1", "e2", "r", "in/0/10"]
    assert all(before <= one.get_time().timestamp() <= datetime.now(UTC).timestamp() for one in events)
    assert events[0].get_extension("partitionkey") == "p"
    assert events[0].get_subject() is None
    assert ("traceparent", b"tp") in (headers[2] or [])
    assert outcomes.bodies[4] is None
    assert headers[4] is None
    for one in headers[:4]:
        names = [name for name, _ in one or []]
        assert len(names) == len(set(names)), "every attribute once"


def test_an_answer_that_is_none_is_an_event_of_another_type(tmp_path: Path) -> None:
    """Errors and expired records on the output topic are events whose type ends in .error."""
    stream = Stream(tmp_path, output={"cloudevents": OUT, "errors": True}, limits={"expired": "publish"})
    outcomes = stream.send(
        structured({"a": 1}), (record(1, 2, 3, 4), [("ce_expirytime", b"2001-01-01T00:00:00Z")])
    )
    error = read(*stream.rollout.route.envelope.error(stream.columns, 0, outcomes.rejected[0]))
    expired = read(outcomes.bodies[1], (outcomes.headers or [])[1])
    assert [one.get_type() for one in (error, expired)] == ["com.example.prediction.error"] * 2
    assert error.get_extension("correlationid") == "e1"


@pytest.mark.parametrize(
    ("kind", "content_type"), [("tensor", "application/octet-stream"), ("oip", "application/json")]
)
def test_the_content_type_is_that_of_the_body(tmp_path: Path, kind: str, content_type: str) -> None:
    """An event names what its body is, once, whatever the output format."""
    stream = Stream(tmp_path, output={"cloudevents": OUT, "format": kind})
    outcomes = stream.send((record(1, 2, 3, 4), None))
    named = [value for name, value in (outcomes.headers or [])[0] or [] if name == "content-type"]
    assert named == [content_type.encode()]


@pytest.mark.parametrize("events", [None, OUT])
def test_a_result_is_never_the_event_of_its_request(tmp_path: Path, events: Any) -> None:
    """With output.headers: all nothing that says what the request is as an event goes out with the result."""
    output = {"headers": "all", **({"cloudevents": events} if events else {})}
    stream = Stream(tmp_path, output=output)
    theirs = [
        ("ce_source", b"/theirs"),
        ("ce_type", b"theirs"),
        ("ce_id", b"e"),
        ("ce_specversion", b"1.0"),
        ("a", b"1"),
    ]
    outcomes = stream.send(
        (record(1, 2, 3, 4), theirs), structured(source="/theirs", type="theirs"), (None, theirs)
    )
    for row, headers in enumerate(outcomes.headers or []):
        found = dict(headers or [])
        assert found.get("ce_source") in (None, b"/workers/readings")
        assert found.get("ce_type") in (None, b"com.example.prediction")
        assert ("a" in found) == (row != 1)
        assert found.get("content-type") in (None, b"application/json")


@pytest.mark.parametrize(
    ("headers", "events", "sentence"),
    [
        (["ce_type"], None, r"output\.headers: got 'ce_type', expected none of ce_source, ce_type: a result"),
        (["CE_Source"], OUT, r"output\.headers: got 'CE_Source'"),
        (["ce_id"], OUT, r"output\.headers: got 'ce_id', expected none of ce_source, ce_type, ce_id"),
        ("all", {"source": "/a"}, r"output\.cloudevents\.type is required"),
        ("all", {"source": "", "type": "t"}, r"output\.cloudevents\.source: .*not empty"),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path: Path, headers: Any, events: Any, sentence: str) -> None:
    """Headers that would make the result its request's event, and an event without source or type, are refused."""
    output = {"headers": headers, **({"cloudevents": events} if events else {})}
    with pytest.raises(ConfigError, match=sentence):
        settings.validate(document(output=output), tmp_path)


def test_hostile_events_raise_nothing_but_rejections() -> None:
    """Damaged bytes of an event are opened or refused, with a known reason."""
    import numpy as np

    good, headers = structured()
    random = np.random.default_rng(2)
    reasons = set()
    for _ in range(500):
        damaged = bytearray(good)
        for place in random.integers(0, len(good), 3):
            damaged[place] = random.integers(0, 256)
        try:
            OPENING.open(bytes(damaged), headers, "in")
        except Reject as error:
            reasons.add(error.reason)
    assert reasons == {"undecodable", "invalid"}
