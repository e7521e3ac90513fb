"""Results as Avro, Protobuf and JSON Schema: what is registered, and that Confluent's own clients read them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient, dual_schema_id_deserializer
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from contract_samples import POSTPROCESSES, read_avro, read_protobuf
from encode_support import REGISTERED, batch_of, encode, make_encoder, make_envelope, pipeline, signature
from registry_server import RegistryServer, registry

from worker.encode import encoder
from worker.encode.protobuf import result_message
from worker.encode.registered import schema_text
from worker.encode.result_shape import shaped
from worker.errors import ConfigError, Rejection, StartError
from worker.records.protobuf_schema import ProtobufSchema
from worker.schema_registry.opening import Registry, open_registry
from worker.schema_registry.schema import Schema
from worker.serving.route import route_of
from worker.settings import validate

ROOT = Path(__file__).resolve().parents[2]
ALL = {
    "label": "a", "score": 0.5, "top": [{"label": "a", "score": 0.5}, {"label": None, "score": 1.0}],
    "boxes": [{"label": "b", "class_id": 3, "score": 0.25, "xyxy": [1.0, 2.0, 3.5, 4.0], "keypoints": [[1.0, 2.0, 0.5]], "rle": [1, 2]}],
    "value": 1.0, "values": [1.0, 2.0], "embedding": [0.1], "text": "hello", "anomaly": True,
    "entities": [{"label": "PER", "score": 0.5, "start": 0, "end": 4, "text": "Anna"}],
    "outputs": {"y": [[1.5, 2.0], [3.0, 4.0]], "n": [1, 2], "s": ["a"], "t": [[True]], "scalar": 7, "none": []},
    "start_s": 0.5, "end_s": 1.5, "time_s": 2.0, "size": [3, 4], "shares": {"road": 0.5},
}  # fmt: skip
RESULT: dict[str, Any] = {
    "id": "in/3/7",
    "source": {"topic": "in", "partition": 3, "offset": 7, "timestamp_ms": 1767323045678},
    "model": {"name": "m", "version": "1"},
    "prediction": ALL,
    "latency_ms": {"broker": 0.5, "total": 1.25},
}


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry() as found:
        yield found


@pytest.fixture
def opened(server: RegistryServer, tmp_path: Path) -> Iterator[Any]:
    """Opens a registry for a pipeline with this output format, as a worker does."""
    made: list[Registry] = []

    def make(form: str, **section: Any) -> tuple[Any, Registry]:
        document = {
            "input": {"topics": ["in"], "format": "json"},
            "model": {"path": "m.onnx"},
            "output": {"topic": "out", "format": form, "errors": True},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
            "registry": {"url": server.url, **section},
        }
        settings = validate(document, tmp_path)
        found = open_registry(settings)
        assert found is not None
        made.append(found)
        return settings.pipelines["m"], found

    yield make
    for one in made:
        one.close()


def oracle(form: str, client: SchemaRegistryClient, value: bytes, headers: Any) -> Any:
    """What Confluent's own client makes of a value."""
    context = SerializationContext("out", MessageField.VALUE, headers)
    conf = {"schema.id.deserializer": dual_schema_id_deserializer, "subject.name.strategy.type": "TOPIC"}
    if form == "avro":
        return AvroDeserializer(client, conf=conf)(value, context)
    if form == "json_schema":
        return JSONDeserializer(None, schema_registry_client=client, conf=conf)(value, context)
    found = ProtobufDeserializer(
        result_message(schema_text("result.proto")), conf, schema_registry_client=client
    )(value, context)
    reader = ProtobufSchema(Schema("PROTOBUF", schema_text("result.proto"))).reader((0,))
    return reader.read(found.SerializeToString(), 0)


@pytest.mark.parametrize("ids", ["prefix", "header"])
@pytest.mark.parametrize("form", REGISTERED)
def test_confluents_clients_read_the_results(
    server: RegistryServer, opened: Any, form: str, ids: str
) -> None:
    """The schema is registered at start under <topic>-value, and the registry's own client reads every value with it."""
    wanted, found = opened(form, ids=ids)
    client = SchemaRegistryClient({"url": server.url})
    try:
        check_values(wanted, found, server, form, client)
    finally:
        client.close()


def check_values(wanted: Any, found: Registry, server: RegistryServer, form: str, client: Any) -> None:
    route = route_of("m", wanted, registry=found)
    assert [*server.subjects] == ["out-value"]
    made = encoder(wanted, signature({"y": ("float", ["N", 2])}), "m", "1", None, route.envelope)
    outcomes = encode(made, batch_of(2), {"y": np.float32([[1, 2.5], [3, 4]])})
    column = outcomes.headers or [None, None]
    for row in (0, 1):
        result = oracle(form, client, outcomes.bodies[row] or b"", column[row])
        assert result["id"] == f"digits/3/{1042 + row}"
        assert result["source"]["offset"] == 1042 + row
        y = result["prediction"]["outputs"]["y"]
        numbers = y if form == "json_schema" else y["numbers"]
        assert numbers == [[1, 2.5], [3, 4]][row]
    columns = batch_of(1).columns
    error, headers = route.envelope.error(columns, 0, Rejection("invalid", "decode", "no such field"))
    read = oracle(form, client, error, headers)
    assert (read["id"], read["error"]) == ("digits/3/1042", "no such field")
    servable: Any = SimpleNamespace(model_name="m", model_version="1")
    expired, headers = route.envelope.expired(columns, 0, "too old", servable)
    read = oracle(form, client, expired, headers)
    assert (read["error"], read["prediction"]) == ("expired: too old", None)


def test_a_schema_that_must_be_there_is_not_registered(server: RegistryServer, opened: Any) -> None:
    """With auto_register false a missing schema ends the start with exit 3; one that is there is used."""
    wanted, found = opened("avro", auto_register=False)
    with pytest.raises(StartError, match="auto_register is false"):
        route_of("m", wanted, registry=found)
    assert server.subjects == {}
    server.add(schema_text("result.avsc"), subject="out-value")
    assert route_of("m", wanted, registry=found).envelope.write(b'{"id":"a"}')[:5] == b"\0\0\0\0\1"


def test_a_format_without_a_registry_is_a_mistake() -> None:
    """A route of such a format needs the registry, and says so."""
    with pytest.raises(ConfigError, match=r"output\.format: avro needs registry"):
        route_of("m", pipeline(format="avro"))


def test_every_member_of_a_prediction_is_carried() -> None:
    """Avro and Protobuf carry all members that the schemas know in their own types, and the others as JSON text."""
    body = json.dumps(RESULT).encode()
    avro = read_avro(make_envelope(format="avro").write(body))
    protobuf = read_protobuf(make_envelope(format="protobuf").write(body))
    for result in (avro, protobuf):
        assert {name: result[name] for name in ("id", "source", "model", "latency_ms")} == {
            name: RESULT[name] for name in ("id", "source", "model", "latency_ms")
        }
        found = result["prediction"]
        for name in (
            "label",
            "score",
            "top",
            "value",
            "values",
            "text",
            "anomaly",
            "entities",
            "start_s",
            "time_s",
        ):
            assert found[name] == ALL[name], name
        (box,) = found["boxes"]
        assert (box["xyxy"], box["class_id"], json.loads(box["more"])) == ([1, 2, 3.5, 4], 3, {"rle": [1, 2]})
        assert json.loads(found["more"]) == {"size": [3, 4], "shares": {"road": 0.5}}
        tensors = found["outputs"]
        assert (tensors["y"]["shape"], tensors["y"]["numbers"]) == ([2, 2], [1.5, 2, 3, 4])
        assert (tensors["n"]["integers"], tensors["s"]["texts"]) == ([1, 2], ["a"])
        assert (tensors["t"]["truths"], tensors["scalar"]["shape"]) == ([True], [])
        assert (tensors["scalar"]["integers"], tensors["none"]["shape"]) == ([7], [0])
    assert avro["prediction"]["boxes"][0]["keypoints"] == [[1, 2, 0.5]]
    assert protobuf["prediction"]["boxes"][0]["keypoints"] == [{"values": [1, 2, 0.5]}]


@pytest.mark.parametrize(
    "prediction",
    [
        "text", 7, [1, 2], {}, {"label": 7}, {"score": "high"}, {"top": {"a": 1}}, {"top": [{"label": "a", "rank": 1}]},
        {"boxes": [1]}, {"boxes": [{"xyxy": "none", "mask": None}]}, {"outputs": [1]}, {"outputs": {"y": [[1], [2, 3]]}},
        {"outputs": {"y": [1, "a", None]}}, {"value": 1 << 60}, {"value": True}, {"more": "theirs"}, {"outputs": {"y": [1 << 63]}},
    ],
)  # fmt: skip
def test_a_prediction_of_any_kind_is_carried(prediction: Any) -> None:
    """What custom code gives fits no schema: it is carried as JSON text, and nothing of it is lost."""
    body = json.dumps({**RESULT, "prediction": prediction}).encode()
    for found in (
        read_avro(make_envelope(format="avro").write(body))["prediction"],
        read_protobuf(make_envelope(format="protobuf").write(body))["prediction"],
    ):
        members = prediction if isinstance(prediction, dict) else {"prediction": prediction}
        kept = json.loads(found["more"] or "{}")
        for name, value in members.items():
            boxes = found["boxes"] if name == "boxes" and name not in kept else None
            assert kept.get(name) == value or json.loads(boxes[0]["more"]) == {"xyxy": "none", "mask": None}


@pytest.mark.parametrize("form", REGISTERED)
@pytest.mark.parametrize("name", [*POSTPROCESSES])
def test_the_results_of_every_postprocess_fit_their_schema(name: str, form: str) -> None:
    """Whatever the postprocess, its results can be written with the one schema, and are read back with their id."""
    sample = POSTPROCESSES[name]
    outputs = sample.outputs(2)
    shapes = {key: ("float", ["N", *value.shape[1:]]) for key, value in outputs.items()}
    made = make_encoder(
        shapes, postprocess=sample.settings or name, input_format=sample.input_format, format=form
    )
    batch = batch_of(2)
    assert batch.feed is not None
    batch.feed.contexts = [*sample.contexts(2)]
    outcomes = encode(made, batch, outputs)
    assert not outcomes.rejected
    for body in outcomes.bodies:
        assert body is not None
        read = {"avro": read_avro, "protobuf": read_protobuf, "json_schema": lambda b: json.loads(b[5:])}[
            form
        ]
        assert read(body)["id"].startswith("digits/3/")
        assert read(body)["prediction"] is not None


def test_numbers_stay_what_they_are() -> None:
    """A float32 is carried exactly, as the float64 that reads back as it."""
    value = float(np.float32(0.1))
    found = shaped({"id": "a", "prediction": {"score": json.loads(json.dumps(value))}})
    assert found["prediction"]["score"] == value


def test_the_schemas_of_the_package_are_those_of_the_folder() -> None:
    """The schemas that a worker registers are the files in schemas/."""
    for name in ("result.avsc", "result.proto", "result.schema.json"):
        assert schema_text(name) == (ROOT / "schemas" / name).read_text(encoding="utf-8")
