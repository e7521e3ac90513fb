"""Tensors -> predictions: one rendered JSON fragment per item.

A postprocess renders the ``prediction`` value itself, because a batch of arrays becomes text in one C call where
a dict per item would cost ten times as much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from worker.batch import Array
from worker.errors import Rejection
from worker.model.signature import Signature

if TYPE_CHECKING:
    from worker.settings import PostprocessSettings


class Postprocess(Protocol):
    """Turns what the model gave into the ``prediction`` of each item."""

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        """One fragment of JSON text (UTF-8), or why there is none, per item.

        Args:
            outputs: by name; the first dimension is ``count``.
            count: how many items.
            contexts: per item what the decoder knows of the input (an image's geometry), else None.
            alone: the model is not batchable; ``count`` is 1 and item 0 is the model's whole output.

        Raises:
            Exception: the outputs do not have the shape this postprocess reads; no item has a prediction.
        """
        ...


def postprocess(
    settings: PostprocessSettings, signature: Signature, labels: Sequence[str] | None
) -> Postprocess:
    """The postprocess a pipeline's settings ask for; ``raw`` where they ask for none.

    Raises:
        ConfigError: the model's outputs cannot be read so (class count, strings), or own code cannot be imported.
    """
    # Imported here so that a worker pays only for the one it uses.
    if settings.classification is not None:
        from worker.postprocess.classification import Classification

        return Classification(settings.classification, signature, labels)
    if settings.detection is not None:
        from worker.postprocess.detection import Detection

        return Detection(settings.detection, signature, labels)
    if settings.regression is not None:
        from worker.postprocess.regression import Regression

        return Regression(signature)
    if settings.embedding is not None:
        from worker.postprocess.embedding import Embedding

        return Embedding(settings.embedding, signature)
    if settings.own is not None:
        from worker.postprocess.own import OwnPostprocess

        return OwnPostprocess(settings.own)
    from worker.postprocess.raw import Raw

    return Raw(signature)
