"""One number per window of a record -> ``{"segments": [{"start_s", "end_s", "score"}, ...]}``: where the sound has something."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
import orjson
from pydantic import Field

from worker.batch import Array
from worker.errors import ConfigError, Rejection
from worker.model.signature import Signature
from worker.postprocess import rendering
from worker.postprocess.selection import vector_output, vectors
from worker.settings.members import Members
from worker.settings.section import Section

_ROUNDING_S = 1e-9
"""Far below a sample, far above what the subtraction of two times may be off."""


class SegmentsSettings(Section):
    """Stretches of a sound whose windows have a high score."""

    threshold: float = 0.5
    """Windows with this score or a higher one belong to a segment."""
    join_s: Annotated[float, Field(ge=0)] = 0.0
    """Segments that are at most this far apart become one."""
    min_s: Annotated[float, Field(ge=0)] = 0.0
    """Shorter segments are left out, after joining."""


class Segments:
    """Windows of sound with one score each, as stretches of time: each with the mean score of its windows above the threshold."""

    settings: ClassVar[type[Section]] = SegmentsSettings
    members: ClassVar[Members] = {"segments": "list"}
    needs_windows = True

    def __init__(
        self, settings: SegmentsSettings, signature: Signature, labels: Sequence[str] | None
    ) -> None:
        self._output, size = vector_output(signature, "postprocess.segments")
        if size not in (None, 1):
            raise ConfigError(
                f"postprocess.segments: needs one number per window, the model's output {self._output!r} has {size}"
            )
        self._settings = settings

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        """See :class:`worker.postprocess.Postprocess`: items that are no windows are each one without a time."""
        return self.of_records(outputs, [(item, item + 1) for item in range(count)], [None] * count)

    def of_records(
        self,
        outputs: dict[str, Array],
        spans: Sequence[tuple[int, int]],
        marks: Sequence[Mapping[str, Array] | None],
    ) -> list[bytes | Rejection]:
        """See :class:`worker.postprocess.OfRecords`."""
        output = outputs[self._output]
        values = vectors(output, len(output))
        if values.shape[1] != 1:
            raise ValueError(f"expected one number per window, the model gave {values.shape[1]}")
        scores = values[:, 0]
        return [
            self._record(scores[start:stop], times) for (start, stop), times in zip(spans, marks, strict=True)
        ]

    def _record(self, scores: Array, times: Mapping[str, Array] | None) -> bytes | Rejection:
        if not np.isfinite(scores).all():
            return rendering.non_finite(self._output, self)
        above = np.flatnonzero(scores >= self._settings.threshold)
        if times is None or not len(above):
            found = [{"score": float(score)} for score in scores[above]]
            return orjson.dumps({"segments": found})
        starts, ends = times["start_s"][above], times["end_s"][above]
        apart = starts[1:] - ends[:-1] > self._settings.join_s + _ROUNDING_S
        first = np.flatnonzero(np.concatenate([[True], apart]))
        last = np.append(first[1:], len(above)) - 1
        means = np.add.reduceat(scores[above].astype(np.float64), first) / (last - first + 1)
        found = [
            {"start_s": float(start), "end_s": float(end), "score": float(score)}
            for start, end, score in zip(starts[first], ends[last], means, strict=True)
            if end - start >= self._settings.min_s - _ROUNDING_S
        ]
        return orjson.dumps({"segments": found})
