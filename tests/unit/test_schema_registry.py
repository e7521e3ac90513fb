"""Schemas by the id of a record: frames, the registry's client, what waits, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_server import RegistryServer, registry, wait_for

from worker.errors import ConfigError, Reject, StartError, Waiting
from worker.schema_registry import frame
from worker.schema_registry.book import Schemas, Shelf
from worker.schema_registry.client import Folder, RegistryClient, open_schemas
from worker.schema_registry.schema import Schema
from worker.settings import validate
from worker.settings.schema_registry import RegistrySettings

READING = {"type": "record", "name": "Reading", "fields": [{"name": "value", "type": "double"}]}
GUID = "89791762-2336-4186-9674-299b90a802e2"


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry() as found:
        yield found


def settings_of(**given: Any) -> RegistrySettings:
    return RegistrySettings.model_validate({key.replace("__", "."): value for key, value in given.items()})


OPENED: list[RegistryClient | Schemas] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Closes what a test has opened."""
    yield
    while OPENED:
        OPENED.pop().close()


def client_of(url: str, **given: Any) -> RegistryClient:
    client = RegistryClient(settings_of(url=url, **given))
    OPENED.append(client)
    return client


def book_of(url: str, timeout: float = 5, **given: Any) -> Schemas:
    client = client_of(url, timeout=timeout, **given)
    book = open_schemas(settings_of(url=url, **given), client)
    OPENED.append(book)
    return book


def shelf_of(book: Schemas, kind: Any = "AVRO") -> Shelf[Schema]:
    return book.shelf(kind, lambda schema: schema)


def reader(shelf: Shelf[Schema], key: int | str) -> Schema:
    """What the shelf gives in the end."""
    wait_for(lambda: asked(shelf, key))
    return shelf.reader(key)


def asked(shelf: Shelf[Schema], key: int | str) -> bool:
    try:
        shelf.reader(key)
    except Waiting:
        return False
    except Reject:
        return True
    return True


# -- frames ------------------------------------------------------------------------------------------------


def test_the_prefix_names_a_schema_by_number_or_guid() -> None:
    """A zero byte and four bytes are an id, a byte of 1 and sixteen bytes a GUID; the data follow."""
    assert frame.split(b"\0\0\0\1\2data", None) == (258, 5)
    assert frame.split(frame.header_of(GUID) + b"data", []) == (GUID, 17)


def test_the_header_counts_before_the_prefix() -> None:
    """With a header the whole value is data, whatever it begins with; the first header of that name counts."""
    headers = [("a", b""), (frame.HEADER, frame.header_of(GUID)), (frame.HEADER, frame.prefix_of(3))]
    assert frame.split(b"\0\0\0\1\2data", headers) == (GUID, 0)
    assert frame.split(b"data", [(frame.HEADER, frame.prefix_of(7))]) == (7, 0)
    assert frame.split(b"\0\0\0\1\2", [(frame.HEADER, None)]) == (258, 5)


@pytest.mark.parametrize("value", [b"", b"\0", b"\0\0\0\0", b"\1" * 16, b"\2\0\0\0\0", b'{"a": 1}'])
def test_a_record_that_names_no_schema_is_undecodable(value: bytes) -> None:
    """Bytes without a frame are refused with a sentence that says what was expected."""
    with pytest.raises(Reject, match="names no schema: expected a zero byte") as caught:
        frame.split(value, None)
    assert caught.value.reason == "undecodable"


def test_message_indexes_follow_the_id() -> None:
    """Protobuf's indexes are zigzag varints behind a count; a count of 0 is the first message."""
    assert frame.split_protobuf(b"\0\0\0\0\1\0data", None) == (1, (0,), 6)
    assert frame.split_protobuf(b"\0\0\0\0\1\4\2\0data", None) == (1, (1, 0), 8)
    assert frame.split_protobuf(b"data", [(frame.HEADER, frame.header_of(GUID, b"\2\4"))]) == (GUID, (2,), 0)
    for damaged in (b"\0\0\0\0\1", b"\0\0\0\0\1\4\2", b"\0\0\0\0\1\1", b"\0\0\0\0\1" + b"\xff" * 9):
        with pytest.raises(Reject):
            frame.split_protobuf(damaged, None)


# -- what is known, and what is waited for ------------------------------------------------------------------


def test_a_schema_is_asked_for_once(server: RegistryServer) -> None:
    """The first record waits, the schema is then there for ever, and two decoders have shelves of their own."""
    number = server.add(READING)
    book = book_of(server.url)
    shelf = shelf_of(book)
    with pytest.raises(Waiting):
        shelf.reader(number)
    assert reader(shelf, number).kind == "AVRO"
    for _ in range(100):
        shelf.reader(number)
    assert server.asked(f"/schemas/ids/{number}") == 1


def test_a_schema_is_found_by_its_guid(server: RegistryServer) -> None:
    """A GUID is asked for as such."""
    number = server.add(READING)
    book = book_of(server.url)
    assert "Reading" in reader(shelf_of(book), server.guid(number)).text


def test_an_unknown_id_is_refused(server: RegistryServer) -> None:
    """An id the registry does not know costs the record, and the registry is not asked again at once."""
    book = book_of(server.url)
    shelf = shelf_of(book)
    with pytest.raises(
        Reject, match="the schema 77 is not known to the registry: Schema not found"
    ) as caught:
        reader(shelf, 77)
    assert caught.value.reason == "invalid"
    for _ in range(5):
        asked(shelf, 77)
    assert server.asked("/schemas/ids/77") == 1


@pytest.mark.parametrize("fault", ["500", "404", "nonsense", "cut", "slow"])
def test_a_registry_that_does_not_answer_is_waited_for(server: RegistryServer, fault: str) -> None:
    """Whatever is no answer about the schema is no reason to refuse a record: it is asked for until it is there."""
    number = server.add(READING)
    server.fault = fault
    book = book_of(server.url, timeout=0.3)
    shelf = shelf_of(book)
    assert not asked(shelf, number)
    wait_for(lambda: book.away() is not None)
    assert str(book.away()).startswith("waiting for the schema registry since 2")
    assert not asked(shelf, number)
    server.fault = ""
    server.resume.set()
    assert reader(shelf, number).kind == "AVRO"
    wait_for(lambda: book.away() is None)


def test_a_registry_that_is_not_there_is_waited_for(server: RegistryServer) -> None:
    """Nobody listens: the record waits. The second address is asked if the first is not there."""
    number = server.add(READING)
    book = book_of("http://127.0.0.1:9")
    assert not asked(shelf_of(book), number)
    wait_for(lambda: book.away() is not None)
    book = book_of(f"http://127.0.0.1:9,{server.url}")
    assert reader(shelf_of(book), number).kind == "AVRO"


def test_asking_never_blocks_the_asker(server: RegistryServer) -> None:
    """While the registry is slow, a thread that asks goes on at once."""
    server.fault = "slow"
    book = book_of(server.url)
    shelf = shelf_of(book)
    done = threading.Event()
    threading.Thread(target=lambda: ([asked(shelf, i) for i in range(50)], done.set()), daemon=True).start()
    assert done.wait(2)
    server.resume.set()


def test_the_folder_is_looked_into_first(server: RegistryServer, tmp_path: Path) -> None:
    """A schema in the folder needs no registry, and one that is not there is asked for."""
    (tmp_path / "7.avsc").write_text('{"type": "record", "name": "Local", "fields": []}')
    number = server.add(READING)
    book = book_of(server.url, folder=tmp_path)
    assert "Local" in reader(shelf_of(book), 7).text
    assert server.requests == []
    assert "Reading" in reader(shelf_of(book), number).text
    with pytest.raises(ConfigError, match=r"registry\.folder: .* is no folder"):
        Folder(tmp_path / "nothing")


def test_references_are_fetched_with_the_schema(server: RegistryServer) -> None:
    """What a schema refers to comes with it, by name, at any depth, and each once."""
    unit = server.add({"type": "enum", "name": "Unit", "symbols": ["C"]}, subject="unit")
    inner = server.add(
        {"type": "record", "name": "Inner", "fields": [{"name": "unit", "type": "Unit"}]},
        subject="inner",
        references=[{"name": "Unit", "subject": "unit", "version": 1}],
    )
    outer = server.add(
        READING,
        references=[
            {"name": "Inner", "subject": "inner", "version": 1},
            {"name": "Unit", "subject": "unit", "version": 1},
        ],
    )
    book = book_of(server.url)
    found = reader(shelf_of(book), outer)
    assert [*found.references] == ["Inner", "Unit"]
    assert [*found.references["Inner"].references] == ["Unit"]
    assert (server.asked("/subjects/unit/versions/1"), unit, inner) == (1, 1, 2)


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"domainRules": [{"name": "e", "type": "ENCRYPT", "kind": "TRANSFORM"}]}, "encryption rules"),
        (
            {"encodingRules": [{"name": "e", "type": "ENCRYPT_PAYLOAD", "kind": "TRANSFORM"}]},
            "encryption rules",
        ),
        ({"migrationRules": [{"name": "m", "type": "JSONATA", "kind": "TRANSFORM"}]}, "migration rules"),
    ],
)
def test_rules_that_change_the_data_are_refused(server: RegistryServer, rules: Any, words: str) -> None:
    """Records of a schema with encryption or migration rules are refused with one sentence; a condition is not."""
    server.add(READING, rules={"domainRules": [{"name": "c", "type": "CEL", "kind": "CONDITION"}]})
    number = server.add(READING, rules=rules)
    book = book_of(server.url)
    assert reader(shelf_of(book), 1).rules == ""
    with pytest.raises(Reject, match=f"the schema {number}: it has {words}, which the worker does not run"):
        reader(shelf_of(book), number)


def test_a_schema_of_another_type_is_refused(server: RegistryServer) -> None:
    """The id of a JSON Schema in an Avro record is the record's fault."""
    number = server.add({"type": "object"}, "JSON")
    book = book_of(server.url)
    with pytest.raises(Reject, match=f"the schema {number}: it is of type JSON, expected AVRO"):
        reader(shelf_of(book), number)


def test_schemas_that_cost_too_much_to_parse_are_refused(server: RegistryServer) -> None:
    """A schema nested hundreds of levels deep, or of megabytes, is not parsed."""
    deep = server.add("[" * 200 + "]" * 200)
    long = server.add('"' + "a" * (1 << 20) + '"')
    book = book_of(server.url)
    for number, said in ((deep, "nested 200 levels deep"), (long, "1048578 characters")):
        with pytest.raises(Reject, match=said):
            reader(shelf_of(book), number)


# -- registering -------------------------------------------------------------------------------------------


def test_a_schema_of_results_is_registered_or_must_be_there(server: RegistryServer) -> None:
    """Registering twice gives the same id. Without leave to register, a missing schema ends the start."""
    client = client_of(server.url)
    with pytest.raises(StartError, match="auto_register is false, and the subject out-value does not have"):
        client.register("out-value", "AVRO", "{}", new=False)
    first = client.register("out-value", "AVRO", "{}", new=True)
    assert (first.id, first.guid) == (1, server.guid(1))
    again = client_of(server.url).register("out-value", "AVRO", "{}", new=False)
    assert again == first
    server.fault = "refuse"
    with pytest.raises(StartError, match="the subject out-value refuses the schema of the results"):
        client.register("out-value", "AVRO", '{"a": 1}', new=True)
    server.fault = "500"
    with pytest.raises(StartError, match="out-value cannot be looked up: store error"):
        client.register("out-value", "AVRO", '{"a": 2}', new=True)


# -- settings ----------------------------------------------------------------------------------------------


def checked(**given: Any) -> Any:
    document = {
        "input": {"topics": ["in"], "format": "avro"},
        "model": {"path": "m.onnx"},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
        **given,
    }
    return validate(document, Path("/config"))


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (None, "input.format: 'avro' needs a schema registry; expected registry: {url: http://...}"),
        ({"auto_register": False}, "registry: expected url, the address of a schema registry, or folder"),
        ({"url": "localhost:8081"}, "registry.url: expected http:// or https:// addresses"),
        ({"url": "mock://x"}, "registry.url: expected http:// or https:// addresses"),
        ({"url": "http://r", "basic.auth.user": "x"}, "unknown key registry.basic.auth.user; the nearest known key is registry.basic.auth.user.info"),
        ({"url": "http://r", "basic.auth.user.info": "hush"}, "registry.basic.auth.user.info: expected user:password"),
        ({"url": "http://r", "timeout": "-1"}, "registry.timeout: expected a number above 0"),
        ({"url": "http://r", "ssl.key.location": "key.pem"}, "registry: expected ssl.certificate.location beside"),
        ({"url": "http://a:b@r", "basic.auth.user.info": "u:p"}, "registry: expected basic.auth.user.info or a user in url"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_section_is_one_sentence(section: Any, sentence: str) -> None:
    """Each mistake names the key and what was expected, never what was there: it may be a secret."""
    with pytest.raises(ConfigError) as caught:
        checked(registry=section)
    assert sentence in str(caught.value)
    assert "hush" not in str(caught.value)


def test_the_client_says_what_it_needs() -> None:
    """What only the client knows to be wrong is a configuration error as well."""
    with pytest.raises(ConfigError, match=r"^registry: .*bearer\.auth"):
        RegistryClient(settings_of(url="http://r", bearer__auth__credentials__source="STATIC_TOKEN"))


def test_secrets_of_the_registry_are_never_shown() -> None:
    """Passwords and tokens are redacted, also inside addresses, and the log knows them all."""
    settings = checked(
        registry={
            "url": "https://reader:hush1@registry:8081,http://other",
            "ssl.key.password": "hush2",
            "ssl.certificate.location": "cert.pem",
            "bearer.auth.token": "hush3",
            "bearer.auth.client.secret": "hush4",
            "proxy": "http://p:hush5@proxy",
        }
    )
    shown = str(settings.redacted())
    assert "hush" not in shown
    assert "https://[redacted]@registry:8081,http://other" in shown
    assert {f"hush{i}" for i in range(1, 6)} <= set(settings.secrets())
    assert settings.registry.properties()["ssl.certificate.location"] == "/config/cert.pem"


def test_credentials_are_sent(server: RegistryServer) -> None:
    """The user and the password go to the registry as basic authentication."""
    number = server.add(READING)
    book = book_of(server.url, basic__auth__user__info="reader:secret")
    reader(shelf_of(book), number)
    assert server.headers[0]["authorization"] == "Basic cmVhZGVyOnNlY3JldA=="
