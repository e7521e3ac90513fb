"""Records with a schema registry, for the commands: JSON made into framed records, and framed records made readable."""

from __future__ import annotations

import argparse
import base64
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from worker.batch import Headers
from worker.errors import ConfigError, Reject, StartError, WorkerError
from worker.filesystem import is_file, read_text
from worker.registry import INPUT_FORMATS
from worker.schema_registry.book import UnknownSchema, one_line
from worker.schema_registry.client import RegistryClient, schema_in, sources
from worker.schema_registry.frame import SchemaKey, prefix_of, split, split_protobuf
from worker.schema_registry.schema import Schema
from worker.settings import Settings
from worker.settings.schema_registry import RegistrySettings

Written = Callable[[Any], bytes]


def add_registry_options(parser: argparse.ArgumentParser) -> None:
    """``--registry`` and ``--schema`` of a command that writes records."""
    parser.add_argument(
        "--registry",
        metavar="URL",
        help="write rows and lines of JSON with the newest schema of <topic>-value (default: the registry of --config)",
    )
    parser.add_argument(
        "--schema",
        type=Path,
        metavar="FILE",
        help="register this schema (.avsc, .proto or .json) under <topic>-value first, and write with it",
    )


def registry_settings(url: str | None, settings: Settings | None) -> RegistrySettings | None:
    """The registry that ``--registry`` or a configuration names; None if neither does.

    Raises:
        ConfigError: the address is none.
    """
    if url is None:
        return settings.registry if settings is not None else None
    try:
        return RegistrySettings(url=url)
    except ValueError:
        raise ConfigError(f"--registry: expected an http:// or https:// address, got {url}") from None


class Framer:
    """Makes framed records of JSON.

    Args:
        registry: its settings.
        topic: the schema is the newest one of the subject ``<topic>-value``.
        file: a schema to register under that subject and to use instead: ``.avsc``, ``.proto`` or ``.json``.

    Raises:
        ConfigError: the file is no schema. StartError: the registry does not answer or has no such subject.
    """

    def __init__(self, registry: RegistrySettings, topic: str, file: Path | None = None) -> None:
        client, subject = RegistryClient(registry), f"{topic}-value"
        try:
            if file is not None:
                schema = _schema_file(file)
                number = client.register(subject, schema.kind, schema.text, new=True).id  # type: ignore[arg-type]
            else:
                registered, schema = client.latest(subject, "AVRO")
                number = registered.id
        except UnknownSchema:
            raise StartError(
                f"--registry: the subject {subject} has no schema; expected --schema FILE"
            ) from None
        except WorkerError:
            raise
        except Exception as error:
            raise StartError(f"--registry: {registry.url} does not answer: {one_line(error)}") from None
        finally:
            client.close()
        try:
            self._write = _writer(schema)
        except Reject as error:
            raise ConfigError(f"the schema of {subject}: {error}") from None
        self._prefix = prefix_of(number, b"\0" if schema.kind == "PROTOBUF" else b"")

    def framed(self, value: bytes) -> bytes:
        """A record of the schema, from its JSON.

        Raises:
            ConfigError: it is no JSON, or does not fit the schema.
        """
        try:
            return self._prefix + self._write(orjson.loads(value))
        except orjson.JSONDecodeError as error:
            raise ConfigError(f"expected JSON to write with a schema, got something else: {error}") from None
        except Exception as error:
            raise ConfigError(f"a record does not fit the schema: {one_line(error)}") from None


def _schema_file(file: Path) -> Schema:
    if file.suffix == ".proto":
        try:
            return Schema("PROTOBUF", read_text(file))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--schema: {file} cannot be read: {one_line(error)}") from None
    if not is_file(file):
        raise ConfigError(f"--schema: {file} does not exist; expected a schema")
    return schema_in(file)


def _writer(schema: Schema) -> Written:
    """What writes plain values with a schema."""
    if schema.kind == "JSON":
        return orjson.dumps
    if schema.kind == "PROTOBUF":
        from google.protobuf import json_format

        from worker.records.protobuf_schema import ProtobufSchema

        message = ProtobufSchema(schema).message_class((0,))
        return lambda value: bytes(json_format.ParseDict(value, message()).SerializeToString())
    import fastavro

    parsed = fastavro.parse_schema(json.loads(schema.text))

    def write(value: Any) -> bytes:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, parsed, value)
        return stream.getvalue()

    return write


class Unframer:
    """Makes framed records readable. It asks the registry for each schema once, and waits for the answer."""

    def __init__(self, registry: RegistrySettings) -> None:
        self._client = RegistryClient(registry) if registry.url is not None else None
        self._source = sources(registry, self._client)
        self._schemas: dict[SchemaKey, Any] = {}
        self._told = False

    def close(self) -> None:
        if self._client is not None:
            self._client.close()

    def json(self, value: bytes | None, headers: Headers) -> bytes | None:
        """The record as JSON; as it is if it names no schema, or cannot be read."""
        if not value:
            return value
        try:
            key, start = split(value, headers)
            reader = self._reader(key)
            if isinstance(reader, Schema):
                return value[start:]
            if hasattr(reader, "reader"):
                _, indexes, start = split_protobuf(value, headers)
                reader = reader.reader(indexes)
            return orjson.dumps(_sayable(reader.read(value, start)))
        except (Reject, UnknownSchema, TypeError):  # TypeError: JSON cannot say it
            return value

    def _reader(self, key: SchemaKey) -> Any:
        if key not in self._schemas:
            try:
                schema = self._source.get(key, "AVRO")
                self._schemas[key] = _reader_of(schema)
            except (UnknownSchema, Reject):
                self._schemas[key] = None
            except Exception as error:
                if not self._told:
                    print(f"the schema registry does not answer: {one_line(error)}", file=sys.stderr)
                self._told = True
                raise UnknownSchema(str(key)) from None
        if self._schemas[key] is None:
            raise UnknownSchema(str(key))
        return self._schemas[key]


def _reader_of(schema: Schema) -> Any:
    if schema.kind == "AVRO":
        from worker.records.avro_schema import AvroSchema

        schema.check("AVRO")
        return AvroSchema(schema)
    if schema.kind == "PROTOBUF":
        from worker.records.protobuf_schema import ProtobufSchema

        schema.check("PROTOBUF")
        return ProtobufSchema(schema)
    return schema


def _sayable(value: Any) -> Any:
    """The value with bytes as base64, and the keys of maps as text."""
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, dict):
        return {str(key): _sayable(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_sayable(held) for held in value]
    return value


def expects_schemas(settings: Settings, topic: str) -> bool:
    """Whether a pipeline reads records of this topic that name their schema."""
    return any(
        topic in pipeline.input.names
        and getattr(INPUT_FORMATS.entry(pipeline.input.format), "needs_schemas", False)
        for pipeline in settings.pipelines.values()
    )
