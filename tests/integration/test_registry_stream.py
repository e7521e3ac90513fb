"""Records with a schema registry through workers on a real Kafka: each is read with its own schema, and a registry may be away."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
import models
import numpy as np
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from registry_server import registry
from stream import (
    Sent,
    Worker,
    create_topics,
    produce,
    read_all,
    unique,
    wait_for,
    wait_for_outputs,
    write_config,
)

from worker.records.protobuf_schema import ProtobufSchema
from worker.schema_registry.schema import Schema as OurSchema

sys.path.append(str(Path(__file__).parent.parent / "unit"))

from contract_samples import read_avro, read_protobuf

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]
PARTITIONS = 3
RECORDS = 20_000
FIELDS = ["a", "nested.b", "list[1]", "c"]


def version(number: int) -> dict[str, Any]:
    """Three versions of one record: fields move, change their type, and are added."""
    nested = {"type": "record", "name": "Nested", "fields": [{"name": "b", "type": "double"}]}
    numbers = {"type": "array", "items": ["int", "float", "double"][number]}
    fields = [
        {"name": "a", "type": ["double", ["null", "double"], "float"][number]},
        {"name": "nested", "type": nested},
        {"name": "list", "type": numbers},
        {"name": "c", "type": ["double", "long", "int"][number]},
        *([{"name": "note", "type": ["null", "string"], "default": None}] if number else []),
    ]
    return {"type": "record", "name": "Reading", "fields": fields if number < 2 else fields[::-1]}


def records(count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(version, record), with numbers that float32 holds exactly."""
    random = np.random.default_rng(5)
    for i in range(count):
        number = int(random.integers(0, 3))
        values = [float(v) for v in random.integers(-999, 999, 4)]
        listed = [0, int(values[2]) if number == 0 else values[2]]
        record = {"a": values[0], "nested": {"b": values[1]}, "list": listed, "c": int(values[3])}
        yield number, record | ({"note": f"note {i}"} if number else {})


class Stage:
    """Topics, a model and the workers of one test; every worker is dead when the test is."""

    def __init__(self, bootstrap: str, folder: Path) -> None:
        self.bootstrap, self.folder = bootstrap, folder
        self.input, self.output, self.letters = unique("in"), unique("out"), unique("dead")
        self.workers: list[Worker] = []
        create_topics(bootstrap, {self.input: PARTITIONS, self.output: PARTITIONS, self.letters: 1})
        (folder / "model.onnx").write_bytes(models.identity())

    def start(self, url: str, **more: Any) -> Worker:
        document = {
            "name": "stream",
            "input": {"topics": [self.input], "format": "avro", "fields": FIELDS},
            "model": {"path": "model.onnx", "threads": 1},
            "output": {"topic": self.output},
            "dead_letter": {"topic": self.letters},
            "registry": {"url": url, "timeout": 2},
            "kafka": {"bootstrap.servers": self.bootstrap, "group.id": unique("group")},
            **more,
        }
        worker = Worker.start(write_config(self.folder, document))
        self.workers.append(worker)
        return worker

    def send(self, values: list[bytes], **more: Any) -> list[Sent]:
        rows = [
            {"value": value, "key": b"%d" % i, "partition": i % PARTITIONS, **more}
            for i, value in enumerate(values)
        ]
        return produce(self.bootstrap, self.input, rows)

    def wait(self, count: int) -> None:
        """Until so many results and dead letters are there."""
        wait_for_outputs(self.bootstrap, [self.output, self.letters], count, self.workers)

    def results(self) -> dict[tuple[int, int], bytes]:
        """Result values by the place of their records; in the order of the input's partitions."""
        found: dict[tuple[int, int], bytes] = {}
        for message in read_all(self.bootstrap, self.output):
            body = message.value()
            result = json.loads(body) if body[:1] == b"{" else read_avro(body)
            source = result["source"]
            assert (source["partition"], source["offset"]) not in found
            found[source["partition"], source["offset"]] = result["prediction"]
        return found


@pytest.fixture
def stage(kafka: str, tmp_path: Path) -> Iterator[Stage]:
    made = Stage(kafka, tmp_path)
    yield made
    for worker in made.workers:
        worker.kill()


def written(number: int, schema: Any, record: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, schema, record)
    return number.to_bytes(5, "big") + stream.getvalue()


def plain(record: dict[str, Any]) -> list[float]:
    return [record["a"], record["nested"]["b"], record["list"][1], record["c"]]


def test_three_versions_on_one_topic(stage: Stage, schema_registry: str) -> None:
    """20,000 Avro records of three schema versions in a real registry are answered as fastavro reads them, in order, as Avro."""
    client = SchemaRegistryClient({"url": schema_registry})
    subject = f"{stage.input}-value"
    ids = [client.register_schema(subject, Schema(json.dumps(version(0)), "AVRO"))]
    client.set_compatibility(subject, "NONE")
    ids += [client.register_schema(subject, Schema(json.dumps(version(number)), "AVRO")) for number in (1, 2)]
    client.close()
    parsed = [fastavro.parse_schema(version(number)) for number in range(3)]
    values, expected = [], {}
    for number, record in records(RECORDS):
        values.append(written(ids[number], parsed[number], record))
    sent = stage.send(values)
    for each in sent:
        assert each.value is not None
        number = ids.index(int.from_bytes(each.value[:5], "big"))
        record = fastavro.schemaless_reader(io.BytesIO(each.value[5:]), parsed[number], None)
        expected[each.partition, each.offset] = plain(record)
    stage.start(schema_registry, output={"topic": stage.output, "format": "avro", "partition": "input"})
    stage.wait(RECORDS)
    found = stage.results()
    assert len(found) == RECORDS
    assert {place: result["outputs"]["y"]["numbers"] for place, result in found.items()} == expected
    for partition in range(PARTITIONS):
        offsets = [offset for its, offset in found if its == partition]
        assert offsets == sorted(offsets)
    assert read_all(stage.bootstrap, stage.letters) == []


@pytest.mark.slow
def test_protobuf_and_json_schema_from_a_real_registry(stage: Stage, schema_registry: str) -> None:
    """Protobuf schemas that a registry gives as text, and JSON Schema, are read; results go out as Protobuf."""
    client = SchemaRegistryClient({"url": schema_registry})
    text = 'syntax = "proto3"; message R { double a = 1; N nested = 2; repeated double list = 3; sint32 c = 4; } message N { double b = 1; }'
    number = client.register_schema(f"{stage.input}-value", Schema(text, "PROTOBUF"))
    client.close()
    message = ProtobufSchema(OurSchema("PROTOBUF", text)).message_class((0,))
    values = [
        number.to_bytes(5, "big")
        + b"\0"
        + message(a=i, nested={"b": 2}, list=[0, 3.5], c=-i).SerializeToString()
        for i in range(300)
    ]
    sent = stage.send(values)
    stage.start(
        schema_registry,
        input={"topics": [stage.input], "format": "protobuf", "fields": FIELDS},
        output={"topic": stage.output, "format": "protobuf"},
    )
    stage.wait(300)
    found = {
        (result["source"]["partition"], result["source"]["offset"]): result["prediction"]["outputs"]["y"][
            "numbers"
        ]
        for result in (read_protobuf(message.value()) for message in read_all(stage.bootstrap, stage.output))
    }
    assert found == {
        (each.partition, each.offset): [int(each.key or 0), 2, 3.5, -int(each.key or 0)] for each in sent
    }


@pytest.mark.slow
def test_a_registry_that_is_away_is_waited_for(stage: Stage) -> None:
    """While the registry is away the records wait: none is dead-lettered or lost; an unknown id is the record's fault alone."""
    schema = version(0)
    with registry() as server:
        number = server.add(schema)
        server.fault = "500"
        parsed = fastavro.parse_schema(schema)
        record = {"a": 1.0, "nested": {"b": 2.0}, "list": [0, 3], "c": 4.0}
        stage.send([written(number, parsed, record)] * 600)
        worker = stage.start(server.url)
        wait_for(
            lambda: "the schema registry does not answer" in worker.text() or '"away"' in worker.text(),
            "the worker to say so",
        )
        wait_for(lambda: server.asked(f"/schemas/ids/{number}") > 3, "several requests")
        assert read_all(stage.bootstrap, stage.output) == read_all(stage.bootstrap, stage.letters) == []
        server.fault = ""
        stage.wait(600)
        stage.send(
            [
                written(number, parsed, record),
                written(77, parsed, record),
                b"text",
                written(number, parsed, record),
            ]
        )
        stage.wait(604)
        reasons = sorted(
            dict(letter.headers())["streaminfer.error.reason"]
            for letter in read_all(stage.bootstrap, stage.letters)
        )
        assert reasons == [b"invalid", b"undecodable"]
        assert len(stage.results()) == 602


@pytest.mark.slow
def test_other_partitions_go_on_while_a_registry_is_away(stage: Stage) -> None:
    """A record of an unknown schema holds its own partition; records of known schemas in the others are answered meanwhile."""
    with registry() as server:
        known, unknown = server.add(version(0)), server.add({**version(0), "doc": "another"})
        parsed = fastavro.parse_schema(version(0))
        record = {"a": 1.0, "nested": {"b": 2.0}, "list": [0, 3], "c": 4.0}
        stage.start(server.url)
        stage.send([written(known, parsed, record)] * PARTITIONS)
        stage.wait(PARTITIONS)
        server.fault = "500"
        stage.send([written(unknown, parsed, record)])  # goes to partition 0
        wait_for(lambda: server.asked(f"/schemas/ids/{unknown}") > 1, "the registry to be asked")
        stage.send([written(known, parsed, record)] * 300)
        stage.wait(PARTITIONS + 200)
        assert {partition for partition, _ in stage.results()} == set(range(PARTITIONS))
        assert len(stage.results()) == PARTITIONS + 200
        server.fault = ""
        stage.wait(PARTITIONS + 301)
        assert read_all(stage.bootstrap, stage.letters) == []
