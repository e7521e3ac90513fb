"""A vector -> ``{"embedding": [x, ...]}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from worker.batch import Array
from worker.errors import Rejection
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.pooling import Pooling, default_pooling, pooled, tokens_output
from worker.postprocess.selection import vector_output, vectors
from worker.settings.members import Members
from worker.settings.section import Section

_FIELD = "postprocess.embedding"


class EmbeddingSettings(Section):
    """A vector."""

    normalize: bool = False
    """Scale it to length 1."""
    pooling: Pooling | None = None
    """One vector from those of all tokens: the mean over them (by the attention mask), the first one (`cls`), or the largest values; none: the model gives one vector. Default: what `1_Pooling/config.json` in the model's folder says, else none."""


class Embedding:
    """One vector per item, of L2 length 1 when ``normalize``: the first floating output (else the first), or made of those of all tokens."""

    settings: ClassVar[type[Section]] = EmbeddingSettings
    members: ClassVar[Members] = {"embedding": "list"}
    reads_text = True

    def __init__(
        self, settings: EmbeddingSettings, signature: Signature, labels: Sequence[str] | None
    ) -> None:
        self._pooling: Pooling = settings.pooling or default_pooling(signature)
        pools = self._pooling != "none"
        self._output = (
            tokens_output(signature, f"{_FIELD}.pooling").name
            if pools
            else vector_output(signature, _FIELD)[0]
        )
        self.takes_items = self.takes_padding = pools
        """Pooling asks each item for its tokens, so that padding needs not be cut before."""
        self._normalize = settings.normalize

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        output = outputs[self._output]
        values = (
            vectors(output, count) if self._pooling == "none" else pooled(output, contexts, self._pooling)
        )
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
