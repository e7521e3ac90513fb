"""Results whose schema is in a registry: what the output formats avro, protobuf and json_schema have in common.

A result is made as JSON first, with everything that the settings ask of it, and then written in the format.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, ClassVar

from worker.batch import Batch, Headers, Run
from worker.encode.json import JsonEncoder
from worker.errors import StartError
from worker.postprocess import Fragment
from worker.schema_registry.frame import HEADER, header_of, prefix_of
from worker.schema_registry.schema import Kind

if TYPE_CHECKING:
    from worker.model.signature import Signature
    from worker.schema_registry.opening import Registry
    from worker.serving.envelope import Envelope
    from worker.settings import PipelineSettings


class Writer:
    """Writes the values of one output topic: results, errors and expired records. Immutable; any thread may use it.

    Args:
        registry: its settings say whether ids stand in front of the values or in a header.
        topic: the schema's subject is ``<topic>-value``.

    Raises:
        StartError: the registry does not answer, refuses the schema, does not have it, or has no GUIDs.
    """

    kind: ClassVar[Kind]
    file: ClassVar[str]
    """The schema's file in ``schemas/``."""
    indexes: ClassVar[bytes] = b""

    def __init__(self, registry: Registry, topic: str) -> None:
        self.text = schema_text(self.file)
        number, guid = 0, "0" * 32
        if registry.client is not None and registry.registers:
            new = registry.settings.auto_register
            found = registry.client.register(f"{topic}-value", self.kind, self.text, new)
            number, guid = found.id, found.guid or ""
        self._prefix = prefix_of(number, self.indexes)
        self.headers: Headers = []
        """What every output that has a value carries."""
        if registry.settings.ids == "header":
            if not guid:
                raise StartError("registry.ids: this registry has no GUIDs; expected prefix")
            self._prefix, self.headers = b"", [(HEADER, header_of(guid, self.indexes))]

    def write(self, body: bytes) -> bytes:
        """A value for the topic.

        Args:
            body: the same as JSON.
        """
        return self._prefix + self.encoded(body)

    def read(self, value: bytes) -> Any:
        """A value as plain data again, for people; what is not set is left out."""
        return _without_nothing(self.decoded(value[len(self._prefix) :]))

    @abstractmethod
    def decoded(self, data: bytes) -> Any:
        """What :meth:`encoded` gave, as plain data."""

    @abstractmethod
    def encoded(self, body: bytes) -> bytes:
        """The JSON body in this format, without a frame."""


def _without_nothing(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nothing(held) for name, held in value.items() if held not in (None, [], {})}
    return [_without_nothing(held) for held in value] if isinstance(value, list) else value


def schema_text(file: str) -> str:
    """The text of one of the schemas that come with the worker."""
    return resources.files("worker.encode").joinpath("result_schemas", file).read_text(encoding="utf-8")


class RegisteredEncoder(JsonEncoder):
    """Makes results as JSON, and writes them with the writer of the route's envelope."""

    needs_schemas = True
    writer: ClassVar[type[Writer]]
    reserved = JsonEncoder.reserved | {HEADER}

    def __init__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        model_name: str,
        model_version: str,
        labels: Sequence[str] | None,
        envelope: Envelope,
    ) -> None:
        super().__init__(settings, signature, model_name, model_version, labels, envelope)
        self._write = envelope.write

    def bodies(self, batch: Batch, run: Run, fragments: Sequence[Fragment]) -> None:
        """See :meth:`worker.encode.Encoder.bodies`."""
        super().bodies(batch, run, fragments)
        assert batch.outcomes is not None
        for row in run.rows:
            body = batch.outcomes.bodies[row]
            if body is not None and row not in batch.outcomes.rejected:
                batch.outcomes.bodies[row] = self._write(body)
