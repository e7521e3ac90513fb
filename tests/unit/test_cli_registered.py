"""Records with a schema registry on the command line: JSON made into framed records, and framed records shown as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registry_server import RegistryServer, registry

from worker.cli.main import main
from worker.cli.registered import Framer, Unframer, expects_schemas, registry_settings
from worker.encode.registered import schema_text
from worker.errors import ConfigError, StartError
from worker.schema_registry.frame import HEADER, header_of
from worker.settings import validate
from worker.settings.schema_registry import RegistrySettings

ROOT = Path(__file__).resolve().parents[2]
READING = {
    "type": "record",
    "name": "Reading",
    "fields": [
        {"name": "value", "type": "double"},
        {"name": "raw", "type": ["null", "bytes"], "default": None},
    ],
}
PROTO = 'syntax = "proto3"; message Reading { double value = 1; map<int32, string> names = 2; }'


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry() as found:
        yield found


@pytest.fixture
def shown(server: RegistryServer) -> Iterator[Any]:
    """What ``tail`` and ``dlq show`` make of a value."""
    unframer = Unframer(RegistrySettings(url=server.url))
    yield lambda value, headers=(): unframer.json(value, [*headers])
    unframer.close()


def test_json_becomes_a_record_of_the_newest_schema(server: RegistryServer, shown: Any) -> None:
    """Rows are written with the newest schema of the topic's subject, and read back as they were."""
    server.add({**READING, "doc": "older"})
    newest = server.add(READING)
    framer = Framer(RegistrySettings(url=server.url), "readings")
    value = framer.framed(b'{"value": 1.5}')
    assert int.from_bytes(value[:5], "big") == newest
    assert json.loads(shown(value)) == {"value": 1.5, "raw": None}


@pytest.mark.parametrize(
    ("ending", "text"), [(".avsc", json.dumps(READING)), (".proto", PROTO), (".json", "{}")]
)
def test_a_schema_file_is_registered_first(
    server: RegistryServer, shown: Any, tmp_path: Path, ending: str, text: str
) -> None:
    """A file of each kind is registered under <topic>-value, and used."""
    file = tmp_path / f"reading{ending}"
    file.write_text(text)
    value = Framer(RegistrySettings(url=server.url), "readings", file).framed(b'{"value": 2.5}')
    assert server.subjects == {"readings-value": [1]}
    assert json.loads(shown(value))["value"] == 2.5


def test_mistakes_are_one_sentence(server: RegistryServer, tmp_path: Path) -> None:
    """A subject without a schema, a file that is none, a row that does not fit and an address that is none are told."""
    section = RegistrySettings(url=server.url)
    with pytest.raises(StartError, match="the subject readings-value has no schema; expected --schema FILE"):
        Framer(section, "readings")
    with pytest.raises(ConfigError, match="does not exist; expected a schema"):
        Framer(section, "readings", tmp_path / "nothing.avsc")
    server.add(READING)
    framer = Framer(section, "readings")
    with pytest.raises(ConfigError, match="a record does not fit the schema"):
        framer.framed(b'{"value": "high"}')
    with pytest.raises(ConfigError, match="expected JSON to write with a schema"):
        framer.framed(b"1.5;2")
    with pytest.raises(ConfigError, match="--registry: expected an http"):
        registry_settings("localhost", None)
    with pytest.raises(StartError, match="does not answer"):
        Framer(RegistrySettings(url="http://127.0.0.1:9"), "readings")


def test_what_cannot_be_read_is_shown_as_it_is(server: RegistryServer, shown: Any) -> None:
    """Values without a frame, of unknown schemas and damaged ones are left alone; an unknown one is asked for once."""
    server.add(READING)
    for value in (b"text", b"", None, b"\0\0\0\0\7abc", b"\0\0\0\0\1\1"):
        assert shown(value) == value
    shown(b"\0\0\0\0\7abc")
    assert server.asked("/schemas/ids/7") == 1
    server.fault = "500"
    assert shown(b"\0\0\0\0\1x") == b"\0\0\0\0\1x"


def test_values_that_json_cannot_say_are_said(server: RegistryServer, shown: Any) -> None:
    """Bytes are base64, the keys of maps texts; an id in the header counts."""
    server.add(READING)
    number = server.add(PROTO, "PROTOBUF", "other-value")
    avro = Framer(RegistrySettings(url=server.url), "readings").framed(b'{"value": 1, "raw": null}')[:-1]
    assert json.loads(shown(avro + b"\2\4\xff\xfe"))["raw"] == {"base64": "//4="}
    protobuf = Framer(RegistrySettings(url=server.url), "other").framed(b'{"value": 1, "names": {"7": "a"}}')
    assert json.loads(shown(protobuf)) == {"value": 1.0, "names": {"7": "a"}}
    headers = [(HEADER, header_of(server.guid(number), b"\0"))]
    assert json.loads(shown(protobuf[6:], headers))["value"] == 1.0


def test_results_are_shown(server: RegistryServer, shown: Any) -> None:
    """A result as Avro is shown like a JSON result."""
    framer_schema = json.loads(schema_text("result.avsc"))
    server.add(framer_schema, subject="out-value")
    value = Framer(RegistrySettings(url=server.url), "out").framed(b'{"id": "in/0/1", "error": "no"}')
    assert json.loads(shown(value))["id"] == "in/0/1"


def test_the_topics_of_a_configuration_decide(tmp_path: Path) -> None:
    """Only what goes to the input topic of such a format is framed."""
    document = {
        "input": {"topics": ["in"], "format": "avro"},
        "model": {"path": "m.onnx"},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
        "registry": {"url": "http://registry"},
    }
    settings = validate(document, tmp_path)
    assert expects_schemas(settings, "in")
    assert not expects_schemas(settings, "other")
    assert registry_settings(None, settings) is settings.registry
    assert registry_settings(None, None) is None


def test_the_example_answers_its_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """The command in the first line of examples/avro.yaml answers from its folder of schemas, and shows the Avro result."""
    line = (ROOT / "examples" / "avro.yaml").read_text(encoding="utf-8").splitlines()[0]
    command = shlex.split(line.partition("Try it: streaminfer ")[2])
    assert main([part.replace("examples/", f"{ROOT}/examples/") for part in command]) == 0
    printed = capsys.readouterr().out
    assert '"label": "7"' in printed
    assert 'inputs      avro: image from the field "pages[0].picture"' in printed


def test_rows_go_out_framed_and_come_back_as_json(
    server: RegistryServer, embedded_broker: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """produce writes the rows of a table with a schema, and tail shows them again, each with its own schema."""
    embedded_broker.create_topic("readings", 1)
    (tmp_path / "rows.csv").write_text("value\n1.5\n2.5\n")
    (tmp_path / "reading.avsc").write_text(json.dumps(READING))
    place = ["--topic", "readings", "--bootstrap", embedded_broker.bootstrap, "--registry", server.url]
    assert (
        main(["produce", str(tmp_path / "rows.csv"), *place, "--schema", str(tmp_path / "reading.avsc")]) == 0
    )
    assert main(["produce", str(tmp_path / "rows.csv"), *place, "--count", "1"]) == 0
    capsys.readouterr()
    assert main(["tail", *place, "--count", "3", "--timeout", "20", "--json"]) == 0
    shown = [json.loads(line)["value"] for line in capsys.readouterr().out.splitlines()]
    assert shown == [{"value": value, "raw": None} for value in (1.5, 2.5, 1.5)]
