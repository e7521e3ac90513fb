"""What custom code looks like to a type checker; the worker itself calls whatever the configuration names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from worker.batch import Array, Headers
from worker.local.answers import Prediction
from worker.postprocess.item import InputItem


class Decoder(Protocol):
    """Custom code for ``input.format``: from a record to one item of each model input."""

    def __call__(self, value: bytes, headers: Headers) -> Mapping[str, Array]:
        """One array by the name of each input, without the batch dimension.

        Raises:
            Reject: the record becomes a dead letter of this reason. Any other exception: ``undecodable``.
            Retry: the record is tried again.
        """


class Postprocess(Protocol):
    """Custom code for ``postprocess``: from one item of the model's outputs to a prediction."""

    def __call__(self, outputs: dict[str, Array], /) -> Prediction:
        """What JSON can hold; ``outputs`` has each output's array without the batch dimension.

        Raises:
            Reject: the record becomes a dead letter of this reason. Any other exception: ``model_error``.
            Retry: the record is tried again.
        """


class ItemPostprocess(Protocol):
    """Custom code for ``postprocess`` that also looks at the record."""

    def __call__(self, outputs: dict[str, Array], item: InputItem, /) -> Prediction:
        """As :class:`Postprocess`."""


class BatchedPostprocess(Protocol):
    """Custom code for ``postprocess`` marked with :func:`worker.batched`: one call for each model run."""

    def __call__(self, outputs: dict[str, Array], items: Sequence[InputItem], /) -> Sequence[Prediction]:
        """One prediction, ``Reject`` or ``Retry`` for each item; the first dimension of each output counts the items."""


class ModelCode(Protocol):
    """Custom code for ``model.code``: a class that is called without arguments."""

    def load(self, path: Path) -> None:
        """Read the version's file or folder; called once."""

    def forward(self, items: list[Any]) -> Sequence[Any]:
        """One result for each item, in the same order."""
