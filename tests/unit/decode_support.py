"""Decoders made and asked by hand, as the engine does it: for the tests of input formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from worker.batch import Columns, Feed, Headers
from worker.model.signature import Signature, TensorSpec
from worker.records import Decoder, decoder
from worker.schema_registry.book import Schemas, Shelf, UnknownSchema
from worker.schema_registry.schema import Schema
from worker.settings import LimitsSettings, PipelineSettings


class SchemasAtHand(Schemas):
    """A schema registry that answers at once."""

    def __init__(self, schemas: Mapping[int | str, Schema]) -> None:
        super().__init__(self)
        self.held = schemas

    def get(self, key: int | str, kind: str) -> Schema:
        if key not in self.held:
            raise UnknownSchema("not found")
        return self.held[key]

    def ask(self, shelf: Shelf[Any], key: int | str) -> None:
        self.look_up(shelf, key)


class Decoding:
    """One pipeline's decoder with the signature it was made for.

    Args:
        input_format: ``input.format``.
        inputs: per model input (ONNX element type, shape); a string dimension is free.
        settings: further sections of the pipeline; ``fields`` and ``missing`` go into ``input``, ``limits`` stands for itself.
        schemas: what the schema registry knows; it answers at once.
    """

    def __init__(
        self,
        input_format: Any,
        inputs: dict[str, tuple[str, Sequence[Any]]],
        batchable: bool = True,
        outputs: Sequence[str] = ("y",),
        limits: dict[str, int] | None = None,
        fields: list[str] | None = None,
        preprocess: dict[str, Any] | None = None,
        missing: Any = "reject",
        schemas: Mapping[int | str, Schema] | None = None,
    ) -> None:
        specs = tuple(TensorSpec.of(name, f"tensor({kind})", shape) for name, (kind, shape) in inputs.items())
        made = tuple(TensorSpec.of(name, "tensor(float)", ["N", 1]) for name in outputs)
        self.signature = Signature(specs, made, batchable)
        document = {
            "input": {"topics": ["in"], "format": input_format, "fields": fields, "missing": missing},
            "preprocess": preprocess,
            "model": {"path": "model.onnx"},
            "output": {"topic": "out"},
        }
        settings = PipelineSettings.model_validate(document)
        known = SchemasAtHand(schemas) if schemas is not None else None
        self.decoder: Decoder = decoder(settings, self.signature, LimitsSettings(**(limits or {})), known)

    def decode(self, *values: bytes | None, headers: Sequence[Headers | None] | None = None) -> Feed:
        """The batch's input side after these records."""
        rows = len(values)
        arrays = None
        if self.decoder.fixed:
            arrays = {
                spec.name: np.full(
                    (rows, *(d or 0 for d in spec.item_shape)), "" if spec.dtype == object else 77, spec.dtype
                )
                for spec in self.signature.inputs
            }
        feed = Feed(arrays, [] if arrays is not None else [None] * rows, [None] * rows)
        columns = Columns(values=list(values), headers=list(headers or [None] * rows))
        step = self.decoder.shard_rows or rows
        for start in range(0, rows, step):
            self.decoder.decode(columns.values, columns, feed, start, min(start + step, rows))
        return feed

    def item(self, value: bytes, headers: Headers | None = None, name: str = "x") -> Any:
        """The one item in a record that must be good."""
        feed = self.decode(value, headers=[headers])
        assert not feed.rejected, feed.rejected
        if feed.arrays is not None:
            return feed.arrays[name][0]
        item = feed.items[0]
        assert item is not None
        return item.arrays[name]

    def refusal(self, value: bytes, headers: Headers | None = None) -> tuple[str, str]:
        """(reason, message) of a record that must be bad."""
        rejection = self.decode(value, headers=[headers]).rejected[0]
        return rejection.reason, rejection.message


def reasons(feed: Feed) -> dict[int, str]:
    return {row: rejection.reason for row, rejection in feed.rejected.items()}
