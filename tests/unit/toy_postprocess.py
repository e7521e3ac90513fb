"""A toy postprocess, as the one new file that a postprocess costs: how many numbers are above a level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from worker.batch import Array
from worker.errors import Rejection
from worker.model.signature import Signature
from worker.settings.section import Section


class AboveSettings(Section):
    """How many numbers are above a level."""

    level: float = 0.5
    """Numbers above this count."""


class Above:
    """How many numbers of the first output are above a level."""

    settings: ClassVar[type[Section]] = AboveSettings

    def __init__(self, settings: AboveSettings, signature: Signature, labels: Sequence[str] | None) -> None:
        self._level = settings.level
        self._output = signature.outputs[0].name

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        values = outputs[self._output].reshape(count, -1)
        return [b'{"above":%d}' % number for number in (values > self._level).sum(axis=1)]
