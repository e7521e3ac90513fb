"""What becomes of a record: a result, a refusal, or nothing at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from worker.batch import Headers, Outcomes, Route
from worker.dead_letters.compose import without_payload
from worker.errors import Reason, Rejection, Stage
from worker.local.outside import opened_body
from worker.serving.route import Route as ServingRoute
from worker.text import one_line

Json: TypeAlias = Any
"""What JSON can hold: texts, numbers, true, false, None, and lists and dicts of these."""
Prediction: TypeAlias = Json
"""What a postprocess makes of the model's outputs, and what stands under ``prediction`` in a result."""
HeadersLike: TypeAlias = Mapping[str, str | bytes | None] | Sequence[tuple[str, str | bytes | None]]
"""Headers of a record: a mapping, or pairs where a name occurs several times."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record, as it would be read from a topic."""

    value: bytes | str | dict[str, Any] | list[Any] | None
    """The value: bytes, text (UTF-8), or a dict or list that is sent as JSON; None is a tombstone."""
    key: bytes | str | None = None
    headers: HeadersLike | None = None
    topic: str | None = None
    """Which input topic it is on; None: the first one of the configuration."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why a record would become a dead letter; as its headers would say."""

    reason: Reason
    """Such as ``invalid``; the header ``streaminfer.error.reason``."""
    stage: Stage
    """Where it was refused: ``fetch``, ``decode``, ``preprocess``, ``infer``, ``postprocess`` or ``encode``."""
    message: str
    """One sentence, as in the header ``__connect.errors.exception.message``."""

    def __str__(self) -> str:
        return f"{self.reason} in {self.stage}: {self.message}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the worker would have done with one record."""

    pipeline: str | None
    """The pipeline that took the record; None if none did."""
    result: Any = None
    """What would be published: parsed where it is JSON, else bytes. None for a refused, dropped or empty record."""
    headers: tuple[tuple[str, bytes | None], ...] = ()
    """The headers of the result."""
    rejected: Rejected | None = None
    """Why the record would become a dead letter; None where it would not."""
    dropped: bool = False
    """The configuration has the record left out: a tombstone with ``input.tombstone: drop``, an expired record."""

    @property
    def prediction(self) -> Prediction:
        """``prediction`` of the result, or its list ``predictions`` where the record has several items.

        None where there is no such part: the record was refused, or the result has another form (see ``result``).
        """
        if not isinstance(self.result, dict):
            return None
        return self.result.get("prediction", self.result.get("predictions"))

    def __str__(self) -> str:
        if self.rejected is not None:
            return f"rejected: {self.rejected}"
        return "dropped" if self.dropped else str(self.result)


def answer_of(route: Route | None, outcomes: Outcomes, row: int, value: bytes | None) -> Answer:
    """The answer to one row.

    Args:
        route: who took the record; None if no route did.
        value: of the record, from which no message may quote.
    """
    pipeline = route.name if route is not None else None
    if (rejection := outcomes.rejected.get(row)) is not None:
        return Answer(pipeline, rejected=rejected_of(rejection, value))
    if row in outcomes.dropped:
        return Answer(pipeline, dropped=True)
    headers: Headers = (outcomes.headers[row] if outcomes.headers is not None else None) or []
    body = outcomes.bodies[row]
    if body is None:
        return Answer(pipeline, headers=tuple(headers))
    assert isinstance(route, ServingRoute)
    return Answer(pipeline, opened_body(route, body, headers or None), tuple(headers))


def rejected_of(rejection: Rejection, value: bytes | None) -> Rejected:
    """A rejection with its message as a dead letter has it."""
    return Rejected(rejection.reason, rejection.stage, one_line(without_payload(rejection, value)))
