"""The section ``tests``: records, and what the configuration is expected to make of them. ``run`` does not look at it."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated, Any, get_args

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from worker.errors import ConfigError, Reason, Stage
from worker.filesystem import instead_of_file, is_file
from worker.settings.kinds import File, Text
from worker.settings.plain import AnyValue
from worker.settings.section import Section
from worker.topics import Topics

if TYPE_CHECKING:
    from worker.settings.sections import Settings

_KINDS = ("value", "file", "base64")
_ANSWERS = ("prediction", "result", "label", "min_score")


class TestRecordSettings(Section):
    """The record that goes in: exactly one of value, file and base64."""

    __test__ = False  # no class of tests, whatever its name

    value: AnyValue = None
    """A mapping or a list is sent as JSON, a text as it is, a number as its text; null is a record without a value."""
    file: File | None = None
    """A file whose bytes are the value; relative to the configuration file."""
    base64: str | None = None
    """The value's bytes in base64."""
    key: str | None = None
    """The record's key."""
    headers: dict[Text, str] = Field(default={})
    """The record's headers."""
    topic: Text | None = None
    """The input topic it is on; default: the first one of the configuration."""

    @model_validator(mode="after")
    def _one_value(self) -> TestRecordSettings:
        if sum(kind in self.model_fields_set for kind in _KINDS) != 1:
            raise ValueError(f"expected exactly one of {', '.join(_KINDS)}")
        return self


def _named_reason(value: Any) -> Any:
    return {"reason": value} if isinstance(value, str) else value


def _one_of(words: tuple[str, ...]) -> Any:
    def check(value: Any) -> Any:
        if value is not None and value not in words:
            raise ValueError(f"expected one of {', '.join(words)}")
        return value

    return Annotated[str | None, BeforeValidator(check), WithJsonSchema({"type": "string", "enum": [*words]})]


class ExpectedLetterSettings(Section):
    """A refusal; a plain word is its reason."""

    reason: _one_of(get_args(Reason)) = None  # type: ignore[valid-type]
    """As in the header `streaminfer.error.reason`."""
    stage: _one_of(get_args(Stage)) = None  # type: ignore[valid-type]
    """Where the record is refused."""
    message: str | None = None
    """A text that the message contains."""


class ExpectSettings(Section):
    """What is expected of the answer; all that is given must hold."""

    pipeline: Text | None = None
    """The pipeline that takes the record."""
    prediction: AnyValue = None
    """Parts of `prediction` (or of the list `predictions`): names that are not given here may have any value; lists have the same length."""
    result: AnyValue = None
    """Parts of the whole result, for results of another form; null: a record without a value goes out."""
    label: str | None = None
    """The prediction's `label`."""
    min_score: float | None = None
    """The prediction's `score` is at least this."""
    dead_letter: Annotated[ExpectedLetterSettings | None, BeforeValidator(_named_reason)] = None
    """The record is refused: a reason such as `invalid`, or a mapping of reason, stage and message."""
    dropped: bool = False
    """The record is left out: a tombstone with `input.tombstone: drop`, an expired record."""

    @model_validator(mode="after")
    def _one_outcome(self) -> ExpectSettings:
        given = [name for name in _ANSWERS if name in self.model_fields_set]
        outcomes = [
            *given[:1],
            *(["dead_letter"] if self.dead_letter else []),
            *(["dropped"] if self.dropped else []),
        ]
        if len(outcomes) > 1:
            raise ValueError(f"expected only one of {' and '.join(outcomes)}: a record has one outcome")
        if not outcomes and self.pipeline is None:
            raise ValueError(
                f"expected at least one of {', '.join((*_ANSWERS, 'dead_letter', 'dropped', 'pipeline'))}"
            )
        return self


class TestSettings(Section):
    """One record and what becomes of it."""

    __test__ = False

    name: Text
    """What the test is called in reports."""
    record: TestRecordSettings
    expect: ExpectSettings
    tolerance: Annotated[float, Field(ge=0)] = 1e-3
    """Largest difference between a number of the answer and the expected one."""


def check_tests(settings: Settings) -> None:
    """Refuse tests that could never pass: no file, no such topic or pipeline, bytes that are none.

    Raises:
        ConfigError: names the first of them.
    """
    topics = Topics(topic for pipeline in settings.pipelines.values() for topic in pipeline.input.topics)
    names: set[str] = set()
    for index, test in enumerate(settings.tests):
        place = f"tests.{index} ({test.name})"
        if test.name in names:
            raise ConfigError(f"{place}.name: another test has this name; expected a name of its own")
        names.add(test.name)
        file = test.record.file
        if file is not None and not is_file(file):
            raise ConfigError(
                f"{place}.record.file: {file} {instead_of_file(file)}; expected a file with one record"
            )
        if test.record.topic is not None and test.record.topic not in topics:
            raise ConfigError(
                f"{place}.record.topic: got '{test.record.topic}', expected one of {', '.join(sorted(topics))}"
            )
        if test.expect.pipeline is not None and test.expect.pipeline not in settings.pipelines:
            raise ConfigError(
                f"{place}.expect.pipeline: got '{test.expect.pipeline}', expected one of {', '.join(settings.pipelines)}"
            )
        if test.record.base64 is not None:
            from_base64(test.record.base64, place)


def from_base64(text: str, place: str) -> bytes:
    """The bytes of a record in base64.

    Raises:
        ConfigError: it is no base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError(f"{place}.record.base64: expected base64 text") from None
