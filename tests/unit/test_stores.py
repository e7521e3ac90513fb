"""Payloads by reference against a real web server with faults: what is read, waited for, refused, and never asked."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shop import Shop

from worker.errors import ConfigError, Reject
from worker.outside import Away, NotYet, Sized
from worker.registry import FETCHERS
from worker.settings import validate
from worker.settings.stores import ReferenceSettings
from worker.stores.references import SHA256, References

FRAME = os.urandom(40_000)


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop(objects={"/in/a": FRAME, "/frames/a": FRAME}) as shop:
        yield shop


MADE: list[References] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while MADE:
        MADE.pop().close()


def references(max_bytes: int = 1 << 20, **settings: Any) -> References:
    MADE.append(References(ReferenceSettings.model_validate({"timeout_s": 2.0, **settings}), max_bytes))
    return MADE[-1]


def of_web(shop: Shop, **settings: Any) -> References:
    return references(allow=[f"{shop.url}/in/"], **settings)


def of_s3(shop: Shop, **settings: Any) -> References:
    options = {
        "endpoint": shop.url,
        "region": "us-east-1",
        "access_key_id": "AKIAKEYKEYKEY",
        "secret_access_key": "SECRETSECRET",
        "session_token": "TOKENTOKEN",
    }
    return references(allow=["s3://frames/"], options=options, **settings)


def fetch(store: References, url: str, allowed: int = 1 << 20, **headers: str) -> bytes:
    """What a record with this reference gets."""
    sent = [("ce_dataref", url.encode()), *((name, text.encode()) for name, text in headers.items())]
    need = store.need(None, sent)
    assert need is not None
    found = store.ask(need, allowed)
    if isinstance(found, Sized):
        return found.read()
    assert isinstance(found, bytes)
    return found


KINDS = {"web": (of_web, "{}/in/a", "/in/a"), "s3": (of_s3, "s3://frames/a", "/frames/a")}
each_kind = pytest.mark.parametrize("kind", KINDS)


def case(shop: Shop, kind: str, **settings: Any) -> tuple[References, str, str]:
    make, url, path = KINDS[kind]
    return make(shop, **settings), url.format(shop.url), path


@each_kind
def test_the_object_is_the_payload(shop: Shop, kind: str) -> None:
    """Byte for byte, with one request, whether its length is told or not, and over one kept connection."""
    store, url, path = case(shop, kind)
    assert fetch(store, url) == FRAME
    shop.chunked.add(path)
    assert fetch(store, url) == FRAME
    assert shop.asked == {f"GET {path}": 2}


@each_kind
def test_its_size_is_known_before_it_is_read(shop: Shop, kind: str) -> None:
    """A payload above what is allowed at once says its size first; without a length it counts as the largest."""
    store, url, path = case(shop, kind)
    need = store.need(None, [("ce_dataref", url.encode())])
    assert need is not None
    found = store.ask(need, 1_000)
    assert isinstance(found, Sized)
    assert found.nbytes == len(FRAME)
    assert found.read() == FRAME
    shop.chunked.add(path)
    found = store.ask(need, 1_000)
    assert isinstance(found, Sized)
    assert found.nbytes == 1 << 20
    found.close()


def test_an_object_beyond_max_bytes_is_not_read(shop: Shop) -> None:
    """too_large, from the head alone; without a length after at most max_bytes."""
    store = references(max_bytes=1_000, allow=[f"{shop.url}/in/"])
    for _ in range(2):
        with pytest.raises(Reject, match=r"input\.max_bytes is 1000") as refused:
            fetch(store, f"{shop.url}/in/a")
        assert refused.value.reason == "too_large"
        shop.chunked.add("/in/a")


@each_kind
def test_an_object_that_is_not_there_may_still_appear(shop: Shop, kind: str) -> None:
    """404 is asked again within appear_s, then it is a reference_missing."""
    store, url, path = case(shop, kind, appear_s=3.0)
    shop.status[path] = [404]
    with pytest.raises(NotYet) as missing:
        fetch(store, url)
    assert (missing.value.reject.reason, missing.value.within_s) == ("reference_missing", 3.0)
    assert fetch(store, url) == FRAME


@each_kind
@pytest.mark.parametrize("status", [401, 403, 400])
def test_a_store_that_refuses_is_believed(shop: Shop, kind: str, status: int) -> None:
    """reference_denied; nothing of the credentials is in the sentence."""
    store, url, path = case(shop, kind)
    shop.status[path] = [status]
    with pytest.raises(Reject) as denied:
        fetch(store, url)
    assert denied.value.reason == "reference_denied"
    assert not any(word in str(denied.value) for word in ("AKIA", "SECRET", "TOKEN", "Signature"))


@each_kind
@pytest.mark.parametrize("status", [500, 502, 503, 504, 429])
def test_a_store_that_is_not_well_is_away(shop: Shop, kind: str, status: int) -> None:
    """5xx and "too many requests" are waited for: no record is to blame."""
    store, url, path = case(shop, kind)
    shop.status[path] = [status]
    with pytest.raises(Away):
        fetch(store, url)
    assert fetch(store, url) == FRAME


@each_kind
def test_a_transfer_that_breaks_off_is_away(shop: Shop, kind: str) -> None:
    """Cut in the middle, or shorter than its head says: half an object is never taken for one."""
    store, url, path = case(shop, kind)
    shop.cut[path] = 1
    with pytest.raises(Away):
        fetch(store, url)
    shop.claimed[path] = len(FRAME) + 7
    with pytest.raises(Away):
        fetch(store, url)
    del shop.claimed[path]
    assert fetch(store, url) == FRAME


@each_kind
def test_a_store_that_does_not_answer_in_time_is_away(shop: Shop, kind: str) -> None:
    """After timeout_s, and when nobody listens."""
    store, url, _ = case(shop, kind, timeout_s=0.2)
    shop.slow_s = 0.6
    with pytest.raises(Away, match="time-out"):
        fetch(store, url)
    shop.close()
    with pytest.raises(Away):
        fetch(store, url)


@each_kind
def test_the_digest_in_the_record_must_be_that_of_the_object(shop: Shop, kind: str) -> None:
    """A wrong one is read `attempts` times, in case the object was being written, then it is a reference_mismatch."""
    store, url, path = case(shop, kind, attempts=3)
    right = hashlib.sha256(FRAME).hexdigest()
    assert fetch(store, url, **{SHA256: right.upper()}) == FRAME
    shop.objects[path] = FRAME[:-1] + bytes([FRAME[-1] ^ 1])
    with pytest.raises(NotYet) as mismatch:
        fetch(store, url, **{SHA256: right})
    assert (mismatch.value.reject.reason, mismatch.value.tries) == ("reference_mismatch", 3)
    with pytest.raises(Reject, match="64 hexadecimal digits") as invalid:
        fetch(store, url, **{SHA256: "abc"})
    assert invalid.value.reason == "invalid"


def test_a_redirect_is_followed_only_under_the_allow_list(shop: Shop) -> None:
    """Inside it the object comes; outside, to another scheme, or in a circle, it does not, and nothing else is asked."""
    store = of_web(shop)
    for target in ("/in/a", f"{shop.url}/in/a", "a"):
        shop.location = {"/in/moved": target}
        assert fetch(store, f"{shop.url}/in/moved") == FRAME
    shop.objects["/out/secret"] = b"secret"
    shop.asked.clear()
    for target in (
        "/out/secret",
        "/in/../out/secret",
        f"http://localhost:{shop.port}/in/a",
        "//127.0.0.1:1/in/",
        "file:///in/a",
    ):
        shop.location = {"/in/moved": target}
        with pytest.raises(Reject) as refused:
            fetch(store, f"{shop.url}/in/moved")
        assert refused.value.reason == "reference_refused"
    assert set(shop.asked) == {"GET /in/moved"}
    shop.location = {"/in/moved": "/in/moved"}
    with pytest.raises(Reject, match="redirects more than") as denied:
        fetch(store, f"{shop.url}/in/moved")
    assert denied.value.reason == "reference_denied"


def test_a_redirect_of_an_s3_store_is_not_followed(shop: Shop) -> None:
    """Wherever it leads: the store's own client would go there."""
    shop.location = {"/frames/a": f"{shop.url}/frames/b"}
    shop.objects["/frames/b"] = b"elsewhere"
    with pytest.raises(Reject, match="redirects") as denied:
        fetch(of_s3(shop), "s3://frames/a")
    assert denied.value.reason == "reference_denied"
    assert "GET /frames/b" not in shop.asked


def test_a_name_that_resolves_to_an_inner_address_is_never_asked(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it resolves to a public address at first: what counts is the address that is connected to."""
    store = references(allow=[f"http://media.example:{shop.port}/in/"])
    answers = [["93.184.216.34", "127.0.0.1"], ["127.0.0.1"], ["::1"], ["169.254.169.254"]]

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        assert host == "media.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in answers.pop(0)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    while answers:
        with pytest.raises(Reject, match="private address") as refused:
            fetch(store, f"http://media.example:{shop.port}/in/a")
        assert refused.value.reason == "reference_refused"
    assert not shop.asked


def test_the_connection_goes_to_the_address_that_was_looked_at(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is resolved once for each connection: a second answer has nothing to change."""
    store = references(allow=[f"http://media.example:{shop.port}/in/"])
    resolved = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        resolved.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr("worker.stores.allow.is_public", lambda _address: True)
    assert fetch(store, f"http://media.example:{shop.port}/in/a") == FRAME
    assert resolved.count("media.example") == 1


def test_many_threads_share_the_connections(shop: Shop) -> None:
    """Sixteen at once, each with its own object, and no more than sixteen connections in all."""
    store = of_web(shop)
    shop.objects |= {f"/in/{n}": b"%d" % n * 1000 for n in range(64)}
    failed: list[BaseException] = []

    def work(start: int) -> None:
        try:
            for n in range(start, 64, 16):
                assert fetch(store, f"{shop.url}/in/{n}") == b"%d" % n * 1000
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failed


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"hello\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000 + b"\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"a" * 200_000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
    ],
)
def test_an_answer_that_is_no_http_is_away(answer: bytes) -> None:
    """Garbage, endless heads, chunks of less than nothing: waited for as any store that is not well."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            for _ in range(2):
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/in/"
        store = references(allow=[url])
        for _ in range(2):
            with pytest.raises(Away):
                fetch(store, f"{url}a")


def test_an_interim_answer_is_passed_over() -> None:
    """100 Continue before the answer; a body without a length ends with the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(
                    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"
                )

        threading.Thread(target=serve, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/in/"
        assert fetch(references(allow=[url]), f"{url}a") == b"hello"


def test_files_under_a_folder(tmp_path: Path) -> None:
    """A file is a payload; a link out of the folder is refused, a folder denied, nothing is missing."""
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (inside / "a b").write_bytes(FRAME)
    (outside / "secret").write_bytes(b"secret")
    (inside / "link").symlink_to(outside / "secret")
    (inside / "door").symlink_to(outside)
    store = references(allow=[f"file://{inside}/"])
    assert fetch(store, f"file://{inside}/a%20b") == FRAME
    for name in ("link", "door/secret"):
        with pytest.raises(Reject) as refused:
            fetch(store, f"file://{inside}/{name}")
        assert refused.value.reason == "reference_refused"
    with pytest.raises(NotYet):
        fetch(store, f"file://{inside}/nothing")
    (inside / "folder").mkdir()
    with pytest.raises(Reject) as denied:
        fetch(store, f"file://{inside}/folder")
    assert denied.value.reason == "reference_denied"


def test_a_share_that_is_not_mounted_is_away(tmp_path: Path) -> None:
    """The folder itself is gone: that says nothing of the file."""
    store = references(allow=[f"file://{tmp_path}/share/"])
    with pytest.raises(Away):
        fetch(store, f"file://{tmp_path}/share/a")


def test_where_a_record_names_its_object(shop: Shop) -> None:
    """A header whatever its case, the last one of its name; a field by its path; an attribute of a structured CloudEvent."""
    url = f"{shop.url}/in/a".encode()
    by_header = of_web(shop)
    assert by_header.need(b"x", [("CE_DataRef", b"s3://other/a"), ("ce_dataref", url)])
    assert by_header.need(b"the payload itself", None) is None
    event = b'{"specversion": "1.0", "dataref": "%b"}' % url
    assert by_header.need(event, [("content-type", b"application/cloudevents+json; charset=utf-8")])
    by_field = of_web(shop, **{"from": "image.url"})
    assert by_field.need(b'{"image": {"url": "%b"}}' % url, None)
    for value, reason in (
        (b'{"image": {}}', "invalid"),
        (b'{"image": {"url": 7}}', "invalid"),
        (b"[]", "invalid"),
        (b"not json", "undecodable"),
        (b'{"image": {"url": "s3://other/a"}}', "reference_refused"),
    ):
        with pytest.raises(Reject) as refused:
            by_field.need(value, None)
        assert refused.value.reason == reason
    with pytest.raises(Reject):
        by_header.need(None, [("ce_dataref", b"\xff")])
    assert not shop.asked


@pytest.mark.parametrize("scheme", [*FETCHERS])
def test_every_entry_is_made_from_what_all_are_told(scheme: str) -> None:
    """Each scheme has a store whose methods are those of the protocol, made without asking anybody."""
    allow = {"file": "file:///tmp/"}.get(scheme, f"{scheme}://some-bucket/")
    options = {"az": {"account_name": "a", "account_key": "c2VjcmV0"}, "gs": {"skip_signature": "true"}}.get(
        scheme, {}
    )
    store = references(allow=[allow], options=options)._stores[scheme]
    for name in ("open", "size", "put"):
        assert callable(getattr(store, name))


def test_an_option_that_is_not_known_is_a_mistake(shop: Shop) -> None:
    """At start, with its name and without its value."""
    with pytest.raises(ConfigError, match="regoin") as wrong:
        references(allow=["s3://frames/"], options={"regoin": "hidden-value"})
    assert "hidden-value" not in str(wrong.value)


def test_credentials_are_never_shown(tmp_path: Path) -> None:
    """Settings fit for a log have the region and no key; every key is among the words that a log line must not hold."""
    options = {"region": "eu", "secret_access_key": "SECRETSECRET", "s3": {"access_key_id": "AKIAKEYKEY"}}
    document = {
        "input": {
            "topics": ["in"],
            "format": "json",
            "reference": {"allow": ["s3://b1/"], "options": options},
        },
        "model": {"path": "m.onnx"},
        "output": {"topic": "out", "offload": {"to": "s3://b2/", "options": {"sas_token": "TOKENTOKEN"}}},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
    }
    settings = validate(document, tmp_path)
    shown = str(settings.redacted())
    assert "'region': 'eu'" in shown
    assert not any(word in shown for word in ("SECRETSECRET", "AKIAKEYKEY", "TOKENTOKEN"))
    assert {"SECRETSECRET", "AKIAKEYKEY", "TOKENTOKEN"} <= set(settings.secrets())
    document["input"]["reference"]["allow"] = ["https://user:PASSWORD@host/"]  # type: ignore[index]
    with pytest.raises(ConfigError) as wrong:
        validate(document, tmp_path)
    assert "PASSWORD" not in str(wrong.value)
