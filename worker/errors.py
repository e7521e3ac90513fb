"""Errors named for what the process does about them.

A :class:`Reject` costs one record, a :class:`Retry` time, a :class:`DeliveryFailed` a rewind. Every :class:`WorkerError` ends the
process with the exit code of its class and one sentence for the user; anything else is a bug (exit 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from worker import frames

Reason = Literal[
    "undecodable",
    "invalid",
    "too_large",
    "too_many_pixels",
    "model_error",
    "non_finite",
    "too_large_output",
    "unroutable",
    "expired",
    "crashed",
    "reference_missing",
    "reference_denied",
    "reference_refused",
    "reference_mismatch",
]
Stage = Literal["fetch", "decode", "preprocess", "infer", "postprocess", "encode", "publish"]


class Reject(Exception):
    """Refuse the record at hand: it becomes one dead letter, the rest of its batch goes on.

    Args:
        message: one sentence for the person who reads the dead letter; never the payload itself.
        reason: the machine-readable class; ``undecodable`` when the bytes are not of the format,
            ``invalid`` when they are but do not fit the model or the configured fields.
    """

    def __init__(self, message: str, reason: Reason = "invalid") -> None:
        super().__init__(message)
        self.reason: Reason = reason


class Retry(Exception):
    """Custom code raises it for a fault that will pass, such as a service that is away: the record is tried again.

    The record and the later ones of its partition wait meanwhile. After ``limits.retry_s`` the record becomes a dead letter of
    reason ``model_error``.

    Args:
        message: one sentence for the person who reads the log or the dead letter.
        after_s: seconds until the next try; each further wait is twice as long.
    """

    def __init__(self, message: str, after_s: float = 0.1) -> None:
        super().__init__(message)
        self.after_s = max(0.0, float(after_s))


class Waiting(Retry):
    """What the record needs is not known yet and is being asked for: the record is tried again until it is, however long.

    Whoever raises it has had it asked for. ``limits.retry_s`` does not count.
    """


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why one record became a dead letter: what the headers of contract section 4 say."""

    reason: Reason
    stage: Stage
    message: str
    class_name: str = ""
    """Qualified name of the Python class of the stage that refused."""
    exception_class_name: str = ""
    attempts: int = 1
    frames: tuple[str, ...] = field(default=(), compare=False)
    """Where custom code failed, innermost call last; see :mod:`worker.frames`. Not part of the dead letter."""

    @classmethod
    def of(cls, error: BaseException, stage: Stage, step: object, reason: Reason | None = None) -> Rejection:
        """The rejection an exception raised in ``step`` stands for; a :class:`Reject` names its own reason."""
        if reason is None:
            reason = error.reason if isinstance(error, Reject) else "model_error"
        return cls(
            reason, stage, str(error), class_path(step), class_path(error), frames=frames.marked(error)
        )


@dataclass(frozen=True, slots=True)
class Postponed:
    """A record that is tried again: what it becomes if the time for that is over."""

    rejection: Rejection
    after_s: float
    limited: bool = True
    """Whether there is an end to it: ``limits.retry_s``."""

    @classmethod
    def of(cls, error: Retry, stage: Stage, step: object) -> Postponed:
        limited = not isinstance(error, Waiting)
        return cls(Rejection.of(error, stage, step, "model_error"), error.after_s, limited)


def class_path(thing: object) -> str:
    """``module.Class`` of an object, or of a function by its own name."""
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{getattr(named, '__module__', '')}.{getattr(named, '__qualname__', '')}"


class DeliveryFailed(Exception):
    """An output can never be delivered, or a transaction was aborted: rewind.

    Args:
        cause: one word for the counter ``rewinds_total{cause}``.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class TransactionFailed(Exception):
    """A transaction was not committed, or nobody can say: give up and read again.

    Args:
        result: ``aborted``, ``fenced`` or ``unknown``, for the counter ``transactions_total{result}``.
    """

    def __init__(self, result: str, message: str) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True)
class Mistake:
    """One thing that a user must mend: a sentence, and where it is if that is known."""

    sentence: str
    """Names the setting, what was there and what was expected."""
    place: str = ""
    """For people: ``k.yaml:7:3``, ``k.yaml:7:12 ${SIZE}``, ``--set``, or the file alone."""
    file: str = ""
    line: int = 0
    """From 1 on; 0 = not known."""
    column: int = 0
    """From 1 on; 0 = not known."""

    def __str__(self) -> str:
        sentence = " ".join(self.sentence.split())
        return f"{self.place}: {sentence}" if self.place else sentence


class WorkerError(Exception):
    """Ends the process: one sentence for the user, or a list of mistakes, and an exit code.

    Args:
        message: the sentence.
        mistakes: what the message sums up, where there are several, or where the place is known.
    """

    exit_code = 1

    def __init__(self, message: str = "", mistakes: Sequence[Mistake] = ()) -> None:
        super().__init__(message)
        self.mistakes = tuple(mistakes) or (Mistake(message),)

    @classmethod
    def of(cls, mistakes: Sequence[Mistake], subject: str = "") -> Self:
        """One error for all of them.

        Args:
            mistakes: at least one.
            subject: what they are in, such as the file; it begins the message where there are several.
        """
        if len(mistakes) == 1:
            return cls(str(mistakes[0]), mistakes)
        listed = "; ".join(map(str, mistakes))
        return cls(f"{subject}: " * bool(subject) + f"{len(mistakes)} mistakes: {listed}", mistakes)

    @property
    def lines(self) -> list[str]:
        """What a terminal shows: the sentence, or what it begins with and a line for each mistake."""
        if len(self.mistakes) == 1:
            return [" ".join(str(self).split())]
        head = f"{len(self.mistakes)} mistakes"
        width = max(len(each.place) for each in self.mistakes)
        places = [f"  {each.place:<{width}}" if width else "" for each in self.mistakes]
        rows = [
            f"{place}  {replace(each, place='')}" for place, each in zip(places, self.mistakes, strict=True)
        ]
        return [str(self).partition(f"{head}: ")[0] + head, *rows]


class ConfigError(WorkerError):
    """Usage or configuration: everything `check --offline` can see except the model."""

    exit_code = 2


class StartError(WorkerError):
    """Cannot start: broker, topic, authorisation, model, provider, port, a limit of the system; or a command cannot write its output."""

    exit_code = 3


class NotReady(StartError):
    """Topics are missing on the broker, or rights to them."""


class DeadLetterLimit(WorkerError):
    """Too many records are bad: a bad deploy is not bad data."""

    exit_code = 4


class Stalled(WorkerError):
    """Stalled, stuck, or a drain over its budget."""

    exit_code = 5


class ClientFatal(WorkerError):
    """The Kafka client is fatal or fenced, or three rewinds in a row brought no commit."""

    exit_code = 6


class SickModel(WorkerError):
    """The warm-up input no longer gives its known output: nothing more is committed or dead-lettered."""

    exit_code = 7


class Recycled(WorkerError):
    """Drained because memory of old model versions was not given back: a fresh process goes on."""

    exit_code = 8
