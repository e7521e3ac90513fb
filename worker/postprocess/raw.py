"""Every output as it is -> ``{"outputs": {"<name>": nested list}}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import orjson

from worker.batch import Array
from worker.errors import Rejection
from worker.model.signature import JSON, Signature
from worker.postprocess import rendering
from worker.settings.members import Members
from worker.settings.section import Section


class RawSettings(Section):
    """The model's outputs as nested lists."""


class Raw:
    """All outputs in the model's order; integers exact, strings as strings, booleans as true and false, ZipMap's maps as objects.

    A batchable model's outputs leave out the batch dimension; another model's keep the shape it gave.
    """

    settings: ClassVar[type[Section]] = RawSettings
    members: ClassVar[Members] = {"outputs": "object"}

    def __init__(self, settings: RawSettings, signature: Signature, labels: Sequence[str] | None) -> None:
        self._names = [spec.name for spec in signature.outputs]
        self._keys = {spec.name: spec.keys for spec in signature.outputs if spec.keys}
        self._as_they_are = signature.outputs[0].datatype == JSON
        """Whether custom model code has made the predictions itself."""
        # the text before each output's values
        self._before = [b"," + orjson.dumps(name) + b":" for name in self._names]
        self._before[0] = b'{"outputs":{' + self._before[0][1:]

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        if self._as_they_are:
            return [*outputs[self._names[0]]]
        last = len(self._names) - 1
        texts = [
            self._items(name, outputs[name], before, b"}}" if index == last else b"")
            for index, (name, before) in enumerate(zip(self._names, self._before, strict=True))
        ]
        found: list[bytes | Rejection] = [*(map(b"".join, zip(*texts, strict=True)) if last else texts[0])]
        for name in self._names:
            for item in rendering.non_finite_items(outputs[name]):
                found[item] = rendering.non_finite(name, self)
        return found

    def _items(self, name: str, values: Array, before: bytes = b"", after: bytes = b"") -> list[bytes]:
        keys = self._keys.get(name)
        if keys is None:
            return rendering.items(values, before, after)
        return rendering.mappings(values.reshape(-1, len(keys)), keys, before, after)

    def chosen(self, outputs: dict[str, Array], item: int, names: Sequence[str]) -> bytes | Rejection:
        """One item's prediction with the outputs its request asked for, in the request's order."""
        texts = []
        for name in names:
            values = outputs[name][item : item + 1]
            if rendering.non_finite_items(values):
                return rendering.non_finite(name, self)
            texts.append(orjson.dumps(name) + b":" + self._items(name, values)[0])
        return b'{"outputs":{%b}}' % b",".join(texts)
