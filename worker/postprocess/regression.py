"""Numbers -> ``{"value": x}`` or ``{"values": [x, ...]}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from worker.batch import Array
from worker.errors import Rejection
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.selection import vector_output, vectors
from worker.settings.members import Members
from worker.settings.section import Section


class RegressionSettings(Section):
    """One number or several."""


class Regression:
    """The first floating output (else the first): ``value`` if an item is one number, else ``values``."""

    settings: ClassVar[type[Section]] = RegressionSettings
    members: ClassVar[Members] = {"value": "any", "values": "list"}  # one of the two

    def __init__(
        self, settings: RegressionSettings, signature: Signature, labels: Sequence[str] | None
    ) -> None:
        self._output, _ = vector_output(signature, "postprocess.regression")

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        values = vectors(outputs[self._output], count)
        found: list[bytes | Rejection]
        if values.shape[1] == 1:
            found = [*rendering.items(values.reshape(-1), b'{"value":', b"}")]
        else:
            found = [*rendering.items(values, b'{"values":', b"}")]
        for item in rendering.non_finite_items(values):
            found[item] = rendering.non_finite(self._output, self)
        return found
