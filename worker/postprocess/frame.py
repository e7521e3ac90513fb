"""The picture behind a model's answer: the size of the model's input, and how the picture was fitted to it."""

from __future__ import annotations

from typing import Any

from worker.model.signature import Signature
from worker.postprocess.boxes import Geometry, Unfitted
from worker.postprocess.item import InputItem
from worker.postprocess.layout import Size

_CHANNELS = (1, 3, 4)


class Frame:
    """Where a model's input has its height and width.

    Args:
        signature: of the model. The first input of four dimensions is the picture.
    """

    def __init__(self, signature: Signature) -> None:
        spec = next((spec for spec in signature.inputs if len(spec.shape) == 4), None)
        self._name = spec.name if spec is not None else None
        self._first = 0
        self.size: Size | None = None
        """Of every item; None if it is free, or the model takes no picture."""
        if spec is not None:
            self._first = 1 if spec.shape[1] in _CHANNELS or spec.shape[3] not in _CHANNELS else 0
            height, width = spec.shape[self._first + 1 : self._first + 3]
            self.size = None if height is None or width is None else (height, width)

    def of(self, context: Any) -> tuple[Geometry | None, Size | None]:
        """An item's geometry (None without a picture) and the size of the model's input (None if not known).

        Args:
            context: an :class:`InputItem`, a geometry, or None.
        """
        if not isinstance(context, InputItem):
            return context, self.size
        if self.size is not None or self._name is None:
            return context.geometry, self.size
        height, width = context.inputs[self._name].shape[-3:][self._first : self._first + 2]
        return context.geometry, (height, width)

    def fitted(self, context: Any, otherwise: Size) -> tuple[Geometry, Size]:
        """As :meth:`of`, with the model's input as the picture where there is none, and ``otherwise`` as its size."""
        geometry, size = self.of(context)
        size = size or otherwise
        return geometry or Unfitted(*size), size
