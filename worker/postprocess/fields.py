"""Several outputs by names of one's own -> ``{"<name>": value}``."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import orjson
from pydantic import Field, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from worker.batch import Array
from worker.errors import ConfigError, Rejection
from worker.model.signature import Signature, TensorSpec
from worker.postprocess import rendering
from worker.settings.kinds import Text
from worker.settings.members import Members
from worker.settings.section import Section

_FIELD = "postprocess.fields"


class FieldsSettings(Section):
    """Fields of the prediction: the name of each, and the model's output that is its value."""

    outputs: dict[Text, Text] = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, data: Any) -> Any:
        return {"outputs": data} if isinstance(data, dict) else data

    @model_serializer
    def _plain(self) -> Any:
        return self.outputs

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        found = handler.resolve_ref_schema(handler(schema))
        return {**found["properties"]["outputs"], "description": cls.__doc__}


class Fields:
    """Several outputs under names of one's own: each as a scalar, a list, or a mapping if the model gives a score for each class by its name."""

    settings: ClassVar[type[Section]] = FieldsSettings

    @staticmethod
    def members_of(settings: FieldsSettings) -> Members:
        """The names of the prediction's members."""
        return dict.fromkeys(settings.outputs, "any")

    def __init__(self, settings: FieldsSettings, signature: Signature, labels: Sequence[str] | None) -> None:
        specs = {spec.name: spec for spec in signature.outputs}
        unknown = next(
            ((name, output) for name, output in settings.outputs.items() if output not in specs), None
        )
        if unknown is not None:
            raise ConfigError(
                f"{_FIELD}.{unknown[0]}: the model has no output {unknown[1]!r}; expected one of {', '.join(specs)}"
            )
        self._fields = [(name, specs[output]) for name, output in settings.outputs.items()]

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        columns = []
        for place, (name, spec) in enumerate(self._fields):
            before = (b"," if place else b"{") + orjson.dumps(name) + b":"
            columns.append(_texts(spec, outputs[spec.name], count, before))
        found: list[bytes | Rejection] = [b"".join(texts) + b"}" for texts in zip(*columns, strict=True)]
        for _, spec in self._fields:
            for item in rendering.non_finite_items(outputs[spec.name]):
                found[item] = rendering.non_finite(spec.name, self)
        return found


def _texts(spec: TensorSpec, values: Array, count: int, before: bytes) -> list[bytes]:
    """The JSON text of one output for each item."""
    if spec.keys:
        return rendering.mappings(values.reshape(count, -1), spec.keys, before)
    if prod(values.shape[1:]) == 1:
        values = values.reshape(count)
    return rendering.items(values, before)
