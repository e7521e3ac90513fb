"""A vector -> ``{"embedding": [x, ...]}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from worker.batch import Array
from worker.errors import Rejection
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.selection import vector_output, vectors
from worker.settings.section import Section


class EmbeddingSettings(Section):
    """A vector."""

    normalize: bool = False
    """Scale it to length 1."""


class Embedding:
    """The first floating output (else the first) as one vector per item, of L2 length 1 when ``normalize``."""

    settings: ClassVar[type[Section]] = EmbeddingSettings

    def __init__(
        self, settings: EmbeddingSettings, signature: Signature, labels: Sequence[str] | None
    ) -> None:
        self._output, _ = vector_output(signature, "postprocess.embedding")
        self._normalize = settings.normalize

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        values = vectors(outputs[self._output], count)
        if self._normalize:
            values = normalized(values)
        found: list[bytes | Rejection] = [*rendering.items(values, b'{"embedding":', b"}")]
        for item in rendering.non_finite_items(values):
            found[item] = rendering.non_finite(self._output, self)
        return found


def normalized(values: Array) -> Array:
    """Vectors (count, size) at L2 length 1, in their own floating dtype; a zero vector stays zero.

    Lengths are taken in float64: squares of large float32 values would overflow.
    """
    dtype = values.dtype if values.dtype.kind == "f" else np.dtype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        exact = values.astype(np.float64)
        length = np.sqrt((exact * exact).sum(axis=1, keepdims=True))
        unit: Array = (exact / np.where(length == 0, 1, length)).astype(dtype)
    return unit
