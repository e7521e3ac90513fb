"""Schemas from a registry over HTTP, by confluent-kafka's client, and from a folder.

The client is used for its transport alone: addresses, certificates, passwords, tokens. It is asked from the thread of
:mod:`worker.schema_registry.book`, or at start.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker import extras
from worker.errors import ConfigError, StartError
from worker.filesystem import is_dir, is_file, read_bytes, read_text
from worker.schema_registry.book import Schemas, Source, UnknownSchema, one_line
from worker.schema_registry.frame import SchemaKey
from worker.schema_registry.schema import MOST_REFERENCES, Kind, Schema, rules_of

if TYPE_CHECKING:
    from worker.settings.schema_registry import RegistrySettings

_NO_SUCH = frozenset({40401, 40402, 40403})
"""Codes of a registry's 404: subject, version or schema not found."""
_ENDINGS = {".avsc": "AVRO", ".json": "JSON", ".desc": "PROTOBUF"}
TRIES = 3
"""Requests at start that a registry may leave unanswered."""


@dataclass(frozen=True)
class Registered:
    """A schema of results, as the registry knows it."""

    id: int
    guid: str | None
    """None where the registry has no GUIDs."""


class RegistryClient:
    """One registry.

    Raises:
        ConfigError: the client refuses its configuration, or is not installed.
    """

    def __init__(self, settings: RegistrySettings) -> None:
        self._library = library = extras.load(
            "confluent_kafka.schema_registry", extra="registry", why="registry"
        )
        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every address, with its password
        try:
            self._client = library.SchemaRegistryClient(settings.properties())
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise ConfigError(f"registry: {one_line(error)}") from None

    def close(self) -> None:
        self._client.close()

    def get(self, key: SchemaKey, kind: Kind) -> Schema:
        """See :class:`worker.schema_registry.book.Source`."""
        form = "serialized" if kind == "PROTOBUF" else None
        found = self._asked(
            lambda: (
                self._client.get_schema(key, fmt=form)
                if isinstance(key, int)
                else self._client.get_schema_by_guid(key, fmt=form)
            )
        )
        return self._with_references(found, form, {})

    def latest(self, subject: str, kind: Kind) -> tuple[Registered, Schema]:
        """The newest schema of a subject.

        Raises:
            UnknownSchema: the subject has none.
        """
        form = "serialized" if kind == "PROTOBUF" else None
        found = self._asked(lambda: self._client.get_latest_version(subject, fmt=form))
        return Registered(found.schema_id, found.guid), self._with_references(found.schema, form, {})

    def register(self, subject: str, kind: Kind, text: str, new: bool) -> Registered:
        """The id of a schema under a subject.

        Args:
            new: register it if it is not there.

        Raises:
            StartError: the registry does not answer, refuses the schema, or does not have it.
        """
        schema = self._library.Schema(text, kind)
        for left in reversed(range(TRIES)):
            try:
                if new:
                    found = self._client.register_schema_full_response(subject, schema)
                else:
                    found = self._client.lookup_schema(subject, schema)
                return Registered(found.schema_id, found.guid)
            except self._library.error.SchemaRegistryError as error:
                if error.http_status_code == 404 and not new:
                    raise StartError(
                        f"registry.auto_register is false, and the subject {subject} does not have the schema of the results; "
                        "expected it to be registered before"
                    ) from None
                if error.http_status_code in (409, 422):
                    raise StartError(
                        f"registry: the subject {subject} refuses the schema of the results: {one_line(error)}"
                    ) from None
                failure: Exception = error
            except Exception as error:
                failure = error
            if not left:
                raise StartError(f"registry: {subject} cannot be looked up: {one_line(failure)}") from None
        raise AssertionError("unreachable")

    def _asked(self, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except self._library.error.SchemaRegistryError as error:
            if error.http_status_code == 404 and error.error_code in _NO_SUCH:
                raise UnknownSchema(error.error_message or "not found") from None
            raise

    def _with_references(self, found: Any, form: str | None, seen: dict[tuple[str, int], Schema]) -> Schema:
        references = {}
        for reference in found.references or ():
            place = (reference.subject, reference.version)
            if place not in seen:
                if len(seen) >= MOST_REFERENCES:
                    raise UnknownSchema(f"it refers to more than {MOST_REFERENCES} others")
                inner = self._asked(partial(self._client.get_version, *place, True, form))
                seen[place] = Schema("", "")  # a circle of references ends here
                seen[place] = self._with_references(inner.schema, form, seen)
            references[reference.name] = seen[place]
        rules = found.rule_set.to_dict() if found.rule_set is not None else None
        return Schema(found.schema_type or "AVRO", found.schema_str or "", references, rules_of(rules))


class Folder:
    """Schemas in files: ``<id>.avsc``, ``<id>.json``, ``<id>.desc``; a GUID may stand for the id.

    Raises:
        ConfigError: no such folder.
    """

    def __init__(self, folder: Path) -> None:
        if not is_dir(folder):
            raise ConfigError(f"registry.folder: {folder} is no folder")
        self._folder = folder

    def get(self, key: SchemaKey, kind: Kind) -> Schema:
        """See :class:`worker.schema_registry.book.Source`."""
        for ending in _ENDINGS:
            path = self._folder / f"{key}{ending}"
            if is_file(path):
                return schema_in(path)
        raise UnknownSchema(f"{self._folder} has no file {key}.*")


def schema_in(path: Path) -> Schema:
    """The schema in a file, of the type that its ending says.

    Raises:
        ConfigError: another ending, or the file cannot be read.
    """
    kind = _ENDINGS.get(path.suffix)
    if kind is None:
        raise ConfigError(f"{path}: expected a file that ends in {', '.join(_ENDINGS)}")
    try:
        if kind != "PROTOBUF":
            return Schema(kind, read_text(path))
        return _descriptor_set(read_bytes(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(error)}") from None


def _descriptor_set(data: bytes) -> Schema:
    """The last file of a ``FileDescriptorSet``, as ``protoc --include_imports --descriptor_set_out`` writes it."""
    import base64

    from google.protobuf import descriptor_pb2

    found = descriptor_pb2.FileDescriptorSet()
    try:
        found.ParseFromString(data)
    except Exception as error:
        raise OSError(f"it is no descriptor set: {one_line(error)}") from None
    if not found.file:
        raise OSError("it is a descriptor set without files")
    schemas: dict[str, Schema] = {}
    for file in found.file:
        text = base64.standard_b64encode(file.SerializeToString()).decode()
        references = {name: schemas[name] for name in file.dependency if name in schemas}
        schemas[file.name] = Schema("PROTOBUF", text, references)
    return schemas[found.file[-1].name]


class _InTurn:
    """A folder first, then a registry, as far as there are any."""

    def __init__(self, *sources: Source | None) -> None:
        self._sources = [source for source in sources if source is not None]

    def get(self, key: SchemaKey, kind: Kind) -> Schema:
        """See :class:`worker.schema_registry.book.Source`."""
        why = "no registry is asked, and there is no registry.folder"
        for source in self._sources:
            try:
                return source.get(key, kind)
            except UnknownSchema as error:
                why = str(error)
        raise UnknownSchema(why)


def open_schemas(settings: RegistrySettings, client: RegistryClient | None) -> Schemas:
    """What is known of schemas, from the sources of a configuration.

    Args:
        client: of ``settings.url``; None: only the folder is looked into.

    Raises:
        ConfigError: no such folder.
    """
    return Schemas(sources(settings, client))


def sources(settings: RegistrySettings, client: RegistryClient | None) -> Source:
    """Where schemas come from by a configuration; see :func:`open_schemas`."""
    return _InTurn(Folder(settings.folder) if settings.folder is not None else None, client)
