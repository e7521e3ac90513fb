"""Payload filters: what is wrapped is opened, what is a bomb is refused from its header, results are wrapped in turn."""

from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import zstandard
from payload_support import Stream, peak_bytes, prediction, record

from worker import Reject, Retry, registry
from worker.batch import Headers
from worker.cli.main import main
from worker.errors import ConfigError
from worker.payload import NO_LIMIT, make_filter
from worker.payload.headers import encodings, marks
from worker.payload.keys import Keys
from worker.settings.encryption import EncryptionSettings

GZIP: Headers = [("Content-Encoding", b"gzip")]
ZSTD: Headers = [("content-encoding", b"zstd")]
KEY = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
ALL_FILTERS = [*registry.PAYLOAD_FILTERS, "custom"]
TOPIC = "in"


def backwards(value: bytes, headers: Headers | None = None) -> bytes:
    """Custom code for the suite: its own reverse."""
    if value.startswith(b"refuse"):
        raise Reject("not this one", "invalid")
    if value.startswith(b"secret"):
        raise ValueError(f"cannot read {value!r}")
    return value[::-1]


def keys() -> Keys:
    return Keys(EncryptionSettings(keys={"a": KEY}, use="a"))


def filter_of(name: str) -> Any:
    return make_filter("test_payload:backwards" if name == "custom" else name, "input.unwrap", keys())


def gz(value: bytes) -> bytes:
    return gzip.compress(value, mtime=0)


def zst(value: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(value)


# -- every filter --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL_FILTERS)
@pytest.mark.parametrize("value", [b"", b"a", b"abc" * 1000, bytes(range(256)) * 40])
def test_what_is_wrapped_is_unwrapped(name: str, value: bytes) -> None:
    """A filter takes off exactly what it puts on, and the bound told before is never below what comes out."""
    one = filter_of(name)
    wrap, headers = one.wrapper(TOPIC)
    wrapped = wrap(value)
    assert one.unwrap(wrapped, headers, TOPIC, len(value)) == value
    assert len(value) <= one.bound(wrapped, NO_LIMIT) <= one.bound_of(len(wrapped))
    if one.exact:
        assert one.bound_of(len(wrapped)) == len(value)


@pytest.mark.parametrize("name", ALL_FILTERS)
def test_hostile_bytes_are_refused_and_nothing_else(name: str) -> None:
    """Whatever the bytes are, a filter raises nothing but a rejection, and gives no more than it was allowed."""
    one = filter_of(name)
    wrap, headers = one.wrapper(TOPIC)
    good = wrap(b'{"features": [1, 2, 3, 4]}' * 20)
    random = np.random.default_rng(5)
    tried = [good[:length] for length in range(0, len(good), max(1, len(good) // 40))] + [
        good + b"\0",
        good + good,
    ]
    for _ in range(200):
        damaged = bytearray(good)
        for place in random.integers(0, len(good), 1 + random.integers(0, 3)):
            damaged[place] = random.integers(0, 256)
        tried.append(bytes(damaged))
    refused, reasons = 0, set()
    for value in tried:
        try:
            bound = one.bound(value, 4096)
            found = one.unwrap(value, headers, TOPIC, bound)
            assert len(found) <= bound <= 4096
        except Reject as error:
            reasons.add(error.reason)
            refused += 1
    assert reasons <= {"undecodable", "too_large", "invalid"}
    assert refused > 100 or name == "custom"


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_result_reads_back_with_the_library(name: str) -> None:
    """What is written is what other programs read: gzip and zstd by their own libraries."""
    wrapped = filter_of(name).wrapper(TOPIC)[0](b"result" * 100)
    read = {"gzip": gzip.decompress, "zstd": zstandard.ZstdDecompressor().decompress}[name]
    assert read(wrapped) == b"result" * 100


# -- headers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([("content-encoding", b"gzip")], ["gzip"]),
        ([("CONTENT-ENCODING", b" X-GZIP ")], ["gzip"]),
        ([("content-encoding", b"identity")], []),
        ([("content-encoding", b"gzip, zstd")], ["gzip", "zstd"]),
        ([("content-encoding", b"br"), ("content-encoding", b"gzip")], ["gzip"]),
        ([("content-encoding", None)], []),
        ([], []),
    ],
)
def test_content_encoding_is_read_as_http_writes_it(headers: Headers, expected: list[str]) -> None:
    """The last header counts, in any case, with several codings in the order in which they were applied."""
    assert encodings(headers) == expected


def test_only_headers_about_the_value_mark_a_record() -> None:
    """A record with trace headers or another content type is not looked at twice."""
    assert not marks([("traceparent", b"x"), ("content-type", b"image/jpeg"), ("x-content-kind", b"1")])
    for header in (("Content-Encoding", b"gzip"), ("streaminfer.encryption", b"v1")):
        assert marks([("a", b"1"), header])
    assert marks([("Content-Type", b"Application/CloudEvents+JSON; charset=utf-8")])


@pytest.mark.parametrize("wrapped", [(gz, GZIP), (zst, ZSTD)])
def test_a_header_is_followed_without_a_setting(tmp_path: Path, wrapped: Any) -> None:
    """Records with header content-encoding are unwrapped, the others beside them are read as they are."""
    pack, headers = wrapped
    found = Stream(tmp_path).send((record(1, 2, 3, 4), None), (pack(record(5, 6, 7, 8)), headers))
    assert list(map(prediction, found.bodies)) == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_several_codings_are_undone_from_the_last(tmp_path: Path) -> None:
    """gzip, zstd means gzip inside zstd."""
    assert Stream(tmp_path).numbers(zst(gz(record(1, 2, 3, 4))), [("content-encoding", b"gzip, zstd")]) == [
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize("encoding", [b"br", b"gzip, br", b"gzip, gzip, gzip, gzip, gzip", b"aes-256-gcm"])
def test_a_coding_that_is_not_known_is_refused(tmp_path: Path, encoding: bytes) -> None:
    """A coding that nothing here undoes costs the record; the sentence names the header."""
    reason, message = Stream(tmp_path).refusal(record(1, 2, 3, 4), [("content-encoding", encoding)])
    assert reason in {"undecodable", "invalid"}
    assert message.startswith("header content-encoding ")


def test_with_the_setting_the_header_does_not_count(tmp_path: Path) -> None:
    """input.unwrap says what every record is wrapped in, whatever its headers say."""
    stream = Stream(tmp_path, input={"unwrap": ["gzip"]})
    stream.wrap = lambda value: (gz(value), None)  # type: ignore[method-assign]
    assert stream.numbers(gz(record(1, 2, 3, 4))) == [1, 2, 3, 4]
    assert stream.numbers(gz(record(1, 2, 3, 4)), ZSTD) == [1, 2, 3, 4]
    assert stream.refusal(record(1, 2, 3, 4)) == ("undecodable", "the record is not gzip")


@pytest.mark.parametrize("kind", ["image", "tensor", "npy", "oip"])
def test_any_format_can_be_wrapped(tmp_path: Path, kind: str) -> None:
    """The filters stand before the input format, whichever it is."""
    import cv2

    numbers = np.arange(12, dtype=np.float32)
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    values = {
        "image": cv2.imencode(".png", np.full((2, 2, 3), 7, np.uint8))[1].tobytes(),
        "tensor": numbers[:4].tobytes(),
        "npy": _npy(numbers[:4]),
        "oip": json.dumps(request).encode(),
    }
    model = models.identity(np.float32, ("N", 2, 2, 3)) if kind == "image" else models.identity()
    preprocess = {"image": {"layout": "nhwc"}} if kind == "image" else {}
    stream = Stream(tmp_path, model, input={"format": kind}, preprocess=preprocess)
    plain, wrapped = (stream.send((values[kind], None)), stream.send((gz(values[kind]), GZIP)))
    assert not plain.rejected
    assert not wrapped.rejected, wrapped.rejected
    assert _answer(wrapped.bodies[0]) == _answer(plain.bodies[0])


def _npy(array: Any) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _answer(body: bytes | None) -> Any:
    assert body is not None
    found = json.loads(body)
    return {key: found[key] for key in found if key.startswith("prediction")}


# -- the Open Inference Protocol, whose gzip bodies were read before ---------------------------------------------------


def oip(numbers: list[float], **more: Any) -> bytes:
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, len(numbers)], "data": numbers}
    return json.dumps({"inputs": [tensor], **more}).encode()


@pytest.mark.parametrize(
    ("value", "headers", "reason"),
    [
        (oip([1, 2, 3, 4]), GZIP, "undecodable"),
        (gz(oip([1, 2, 3, 4]))[:-9], GZIP, "undecodable"),
        (gz(oip([1, 2, 3, 4]))[:-4] + b"\1\0\0\0", GZIP, "undecodable"),
        (gz(oip([1, 2, 3, 4])) + gz(b"{}"), GZIP, "undecodable"),
        (gz(oip([1, 2, 3, 4])), [("content-encoding", b"br")], "undecodable"),
        (gz(oip([1, 2, 3, 4])), None, "undecodable"),
        (gz(b"0" * (33 << 20)), GZIP, "too_large"),
    ],
)
def test_a_request_that_cannot_be_unwrapped_is_refused(
    tmp_path: Path, value: bytes, headers: Any, reason: str
) -> None:
    """A body that is not gzip, is broken, of another encoding, or unpacks to more than four times input.max_bytes."""
    stream = Stream(tmp_path, input={"format": "oip"})
    stream.wrap = lambda _: (oip([0, 0, 0, 0]), None)  # type: ignore[method-assign]
    assert stream.refusal(value, headers)[0] == reason


def test_a_binary_request_is_unwrapped(tmp_path: Path) -> None:
    """The header with the length of the JSON part is about the body inside."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "parameters": {"binary_data_size": 16}}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = [*GZIP, ("inference-header-content-length", str(len(text)).encode())]
    found = Stream(tmp_path, input={"format": "oip"}).send(
        (gz(text + struct.pack("<4f", 1, 2, 3, 4)), headers)
    )
    assert not found.rejected
    assert json.loads(found.bodies[0] or b"")["predictions"][0]["outputs"]["y"] == [1, 2, 3, 4]


def test_the_id_of_a_wrapped_request_is_in_its_error(tmp_path: Path) -> None:
    """A refused request that was wrapped is told apart by its own id."""
    stream = Stream(tmp_path, input={"format": "oip"}, output={"errors": True, "format": "oip"})
    outcomes = stream.send((gz(oip([1, 2], id="mine")), GZIP))
    body, _ = stream.rollout.route.envelope.error(stream.columns, 0, outcomes.rejected[0])
    assert json.loads(body)["id"] == "mine"


# -- bounds --------------------------------------------------------------------------------------------------------


def frames(value: bytes) -> list[bytes]:
    """The same content as zstd writes it in different ways."""
    stream = zstandard.ZstdCompressor(write_content_size=False)
    half = len(value) // 2
    skippable = struct.pack("<II", 0x184D2A55, 3) + b"any"
    return [
        zst(value),
        zst(value, write_checksum=True),
        stream.compress(value),
        zst(value[:half]) + zst(value[half:]),
        skippable + zst(value[:half]) + skippable + stream.compress(value[half:]),
        zst(value, level=19),
    ]


@pytest.mark.parametrize("way", range(6))
@pytest.mark.parametrize("content", [b"", b"x" * 300, b"ab" * 200_000, bytes(range(256)) * 2000])
def test_zstd_frames_of_any_form_are_read(way: int, content: bytes) -> None:
    """Stated lengths or none, checksums, several frames and skippable ones: the same bytes, within the bound told before."""
    one, value = filter_of("zstd"), frames(content)[way]
    bound = one.bound(value, NO_LIMIT)
    assert len(content) <= bound <= len(content) + 2 * (128 << 10)
    assert one.unwrap(value, [], TOPIC, bound) == content
    if content:
        with pytest.raises(Reject) as refused:
            one.unwrap(value, [], TOPIC, len(content) - 1)
        assert refused.value.reason == "too_large"


def test_a_gzip_value_of_several_parts_is_read(tmp_path: Path) -> None:
    """Parts written one after the other are one body, as gzip says."""
    whole = record(1, 2, 3, 4)
    assert Stream(tmp_path).numbers(gz(whole[:9]) + gz(whole[9:]), GZIP) == [1, 2, 3, 4]


BOMBS = {
    "gzip": lambda: (gz(bytes(40 << 20)), GZIP),
    "gzip, states little": lambda: (gz(bytes(40 << 20))[:-4] + struct.pack("<I", 100), GZIP),
    "gzip, two parts": lambda: (gz(bytes(20 << 20)) + gz(bytes(20 << 20)), GZIP),
    "gzip in gzip": lambda: (gz(gz(bytes(200 << 20))), [("content-encoding", b"gzip, gzip")]),
    "zstd": lambda: (zst(bytes(400 << 20)), ZSTD),
    "zstd, states nothing": lambda: (zst(bytes(400 << 20), write_content_size=False), ZSTD),
    "zstd, two frames": lambda: (zst(bytes(20 << 20)) * 2, ZSTD),
    "zstd in gzip": lambda: (gz(zst(bytes(400 << 20))), [("content-encoding", b"zstd, gzip")]),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_within_what_it_was_charged(tmp_path: Path, name: str) -> None:
    """A small value with far too much inside is too_large, and takes no more memory than the bound allows."""
    stream = Stream(tmp_path, input={"max_unwrapped_bytes": 32 << 20})
    value, headers = BOMBS[name]()
    stream.send((record(0, 0, 0, 0), None))
    with peak_bytes() as peak:
        outcomes = stream.send((value, headers))
    assert outcomes.rejected[0].reason == "too_large", outcomes.rejected[0]
    assert "33554432" in outcomes.rejected[0].message
    # zlib's output is joined at the end, so for a moment it is there twice
    assert peak[0] <= max(stream.cost_bytes, 8 << 20)


def test_a_bomb_is_refused_from_its_header(tmp_path: Path) -> None:
    """What the value states of itself is enough: it is refused before anything is unpacked, and charged nothing."""
    stream = Stream(tmp_path)
    for value, headers in (BOMBS["gzip"](), BOMBS["zstd"]()):
        with peak_bytes() as peak:
            assert stream.send((value, headers)).rejected[0].reason == "too_large"
        assert peak[0] < 1 << 20
        assert stream.cost_bytes == 0


def test_what_is_inside_is_charged_before(tmp_path: Path) -> None:
    """A wrapped record is charged for what is inside, for the step to it, and for reading it."""
    stream = Stream(tmp_path, models.identity(np.float32, ("N", 100_000)))
    text = json.dumps({"features": [0.5] * 100_000}).encode()
    stream.send((text, None))
    plain = stream.cost_bytes
    stream.send((gz(text), GZIP))
    assert stream.cost_bytes >= plain + len(text)


def test_large_payloads_are_not_kept(tmp_path: Path) -> None:
    """What is inside large records does not add up over a batch: each is decoded and let go before the next."""
    size = 1 << 20
    stream = Stream(tmp_path, models.mlp(size // 4, hidden=1), input={"format": "tensor", "unwrap": ["gzip"]})
    values = [gz(np.full(size // 4, number, np.float32).tobytes()) for number in range(8)]
    stream.send(*((value, None) for value in values))
    with peak_bytes() as peak:
        outcomes = stream.send(*((value, None) for value in values))
    assert not outcomes.rejected
    slots = 8 * size
    assert peak[0] < slots + 4 * size


def test_a_record_beyond_the_budget_is_refused(tmp_path: Path) -> None:
    """A value that could never be unpacked within limits.in_flight_bytes is too_large."""
    limits = {"in_flight_bytes": 40 << 20}
    stream = Stream(tmp_path, input={"max_bytes": 20 << 20}, limits=limits)
    reason, message = stream.refusal(gz(bytes(39 << 20)), GZIP)
    assert reason == "too_large"
    assert "limits.in_flight_bytes is 41943040" in message


def test_an_unwrapped_size_that_cannot_fit_is_a_mistake(tmp_path: Path) -> None:
    """input.max_unwrapped_bytes must leave room in the budget."""
    with pytest.raises(
        ConfigError, match=r"input\.max_unwrapped_bytes: got 300000000, expected at most 251658240"
    ):
        Stream(tmp_path, input={"unwrap": ["gzip"], "max_unwrapped_bytes": 300_000_000})


def test_many_tiny_parts_take_no_long_time() -> None:
    """A value of very many parts is refused, not worked on for minutes."""
    one = filter_of("gzip")
    with pytest.raises(Reject, match="more than 256 parts"):
        one.unwrap(gz(b"") * 100_000, [], TOPIC, 1 << 20)
    with pytest.raises(Reject, match="frames and blocks"):
        filter_of("zstd").bound(zst(b"") * 100_000, 1 << 20)


# -- custom code ---------------------------------------------------------------------------------------------------


def test_custom_code_unwraps_and_wraps(tmp_path: Path) -> None:
    """A function of one's own stands among the filters; what it refuses is refused for its reason."""
    code = "test_payload:backwards"
    stream = Stream(tmp_path, input={"unwrap": ["gzip", code]}, output={"wrap": [code, "zstd"]})
    stream.wrap = lambda value: (gz(value[::-1]), None)  # type: ignore[method-assign]
    outcomes = stream.send(stream.wrap(record(1, 2, 3, 4)))
    assert outcomes.headers == [[("content-encoding", b"zstd")]]
    body = zstandard.ZstdDecompressor().decompress(outcomes.bodies[0] or b"")[::-1]
    assert prediction(body) == [1, 2, 3, 4]
    assert stream.refusal(gz(b"refuse this")) == ("invalid", "not this one")


TRIES: list[bytes] = []


def at_the_second_try(value: bytes, headers: Headers | None) -> bytes:
    """Custom code that cannot be asked at once, as one that asks a service."""
    TRIES.append(value)
    if len(TRIES) == 1:
        raise Retry("the service is away", after_s=0.0)
    return value


def test_custom_code_may_have_a_record_tried_again(tmp_path: Path) -> None:
    """A Retry in input.unwrap has the record unwrapped again, and it is answered."""
    TRIES.clear()
    stream = Stream(tmp_path, input={"unwrap": ["test_payload:at_the_second_try"]})
    assert stream.numbers(record(1, 2, 3, 4)) == [1, 2, 3, 4]
    assert [record(1, 2, 3, 4)] * 2 == TRIES


def test_what_custom_code_says_of_the_content_is_not_told(tmp_path: Path) -> None:
    """An exception of custom code may quote what it was given: only its class is told."""
    stream = Stream(tmp_path, input={"unwrap": ["test_payload:backwards"]})
    stream.wrap = lambda value: (value[::-1], None)  # type: ignore[method-assign]
    reason, message = stream.refusal(b"secret plan")
    assert (reason, message) == ("undecodable", "custom code test_payload:backwards raised ValueError")


def test_a_filter_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    """An unknown name, custom code that is missing and encryption without keys are each one sentence."""
    for unwrap, sentence in (
        (["lz4"], r"input\.unwrap\.0: got 'lz4', expected gzip, zstd, aes-256-gcm or custom code"),
        (["nowhere:f"], r"input\.unwrap: custom code nowhere:f: the module cannot be imported"),
        (["aes-256-gcm"], r"input\.unwrap: aes-256-gcm needs encryption\.keys"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            Stream(tmp_path, input={"unwrap": unwrap})


def test_a_library_that_is_missing_is_named() -> None:
    """Without zstandard a pipeline that asks for zstd is refused with what to install; a record's header costs the record."""
    script = """
import sys
sys.modules["zstandard"] = None
from worker.payload import Making
from worker.payload.opening import Opening
from worker.registry import PAYLOAD_FILTERS
from worker.errors import ConfigError, Reject
try:
    PAYLOAD_FILTERS.entry("zstd")(Making("zstd", "input.unwrap"))
except ConfigError as error:
    print(error)
try:
    Opening(None, 100).open(b"x", [("content-encoding", b"zstd")], "in")
except Reject as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == "input.unwrap: zstd needs zstandard: pip install 'streaminfer[zstd]'"
    assert second == "header content-encoding: zstd needs zstandard: pip install 'streaminfer[zstd]'"


# -- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "encoding", "read"),
    [
        (["gzip"], b"gzip", gzip.decompress),
        (["zstd"], b"zstd", zstandard.ZstdDecompressor().decompress),
        (
            ["gzip", "zstd"],
            b"gzip, zstd",
            lambda value: gzip.decompress(zstandard.ZstdDecompressor().decompress(value)),
        ),
    ],
)
def test_results_are_wrapped_and_say_so(tmp_path: Path, wrap: list[str], encoding: bytes, read: Any) -> None:
    """Every body goes out wrapped, in the order given, with header content-encoding; tombstones stay null."""
    stream = Stream(tmp_path, output={"wrap": wrap, "headers": "all"})
    outcomes = stream.send(
        (record(1, 2, 3, 4), [("a", b"1")]),
        (None, [("a", b"2")]),
        (b"nonsense", None),
        (gz(record(5, 6, 7, 8)), GZIP),
    )
    assert prediction(read(outcomes.bodies[0])) == [1, 2, 3, 4]
    assert prediction(read(outcomes.bodies[3])) == [5, 6, 7, 8]
    says = ("content-encoding", encoding)
    assert outcomes.headers == [[("a", b"1"), says], [("a", b"2")], None, [says]]
    assert outcomes.bodies[1] is None
    body, headers = stream.rollout.route.envelope.error(stream.columns, 2, outcomes.rejected[2])
    assert json.loads(read(body))["id"] == "in/0/9"
    assert headers == [says]


def test_an_expired_record_that_is_published_is_wrapped_too(tmp_path: Path) -> None:
    """Whatever goes to the output topic goes wrapped."""
    stream = Stream(tmp_path, output={"wrap": ["gzip"]}, limits={"expired": "publish"})
    outcomes = stream.send(
        (record(1, 2, 3, 4), [("ce_expirytime", b"2020-01-01T00:00:00Z"), ("ce_id", b"e")])
    )
    said = json.loads(gzip.decompress(outcomes.bodies[0] or b""))
    assert (said["id"], said["prediction"]) == ("e", None)
    assert outcomes.headers == [[("content-encoding", b"gzip")]]


def test_a_wrap_that_fails_costs_the_record(tmp_path: Path) -> None:
    """Where custom code cannot wrap a result, the record is a dead letter of stage encode; nothing goes out unwrapped."""
    stream = Stream(tmp_path, output={"wrap": ["test_payload:refuses"]})
    outcomes = stream.send((record(1, 2, 3, 4), None))
    assert (outcomes.rejected[0].stage, outcomes.rejected[0].reason) == ("encode", "undecodable")
    assert outcomes.bodies == [None]


def test_an_error_that_cannot_be_wrapped_stays_out(tmp_path: Path) -> None:
    """Where custom code cannot wrap the body that says why, nothing goes out in its place; the record is a dead letter."""
    output = {"wrap": ["test_payload:refuses"], "errors": True}
    stream = Stream(tmp_path, output=output, limits={"expired": "publish"})
    outcomes = stream.send(
        (record(1, 2, 3, 4), [("ce_expirytime", b"2020-01-01T00:00:00Z")]), (b"nonsense", None)
    )
    assert (outcomes.rejected[0].stage, outcomes.bodies) == ("encode", [None, None])
    with pytest.raises(Reject, match="the error cannot be wrapped"):
        stream.rollout.route.envelope.error(stream.columns, 1, outcomes.rejected[1])


def refuses(value: bytes) -> bytes:
    raise KeyError("no")


def test_bench_does_not_measure_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """bench sends plain values and reads plain results: a wrapped pipeline is refused in one sentence."""
    Stream(tmp_path, output={"wrap": ["gzip"]})
    sample = tmp_path / "sample.json"
    sample.write_bytes(record(1, 2, 3, 4))
    code = main(["bench", str(tmp_path / "worker.yaml"), "--rate", "1", "--source", str(sample)])
    assert code == 2
    assert "expected neither input.unwrap nor output.wrap" in capsys.readouterr().err


def test_every_filter_stands_in_the_schema_and_the_table() -> None:
    """Every filter has a sentence for the documentation and stands in the JSON Schema and in error messages."""
    from worker.settings import json_schema

    schema = json.dumps(json_schema())
    for name in registry.PAYLOAD_FILTERS:
        assert f"| `{name}` | " in registry.PAYLOAD_FILTERS.table()
        assert f'"{name}"' in schema


def test_deflate_cannot_beat_the_ratio_that_is_assumed() -> None:
    """The most that deflate can make of a byte is below the factor that a hidden gzip body is charged."""
    packed = zlib.compress(bytes(64 << 20), 9, 31)
    assert (64 << 20) / len(packed) <= filter_of("gzip").bound_of(1)
