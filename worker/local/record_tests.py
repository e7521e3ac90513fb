"""The tests of a configuration: each of its records goes through the pipelines, and the answer is compared."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from worker.errors import ConfigError
from worker.filesystem import RECORD_MAX, read_bytes
from worker.local.answers import Answer, Record
from worker.local.pipeline import Pipeline
from worker.serving.differences import differences, shown
from worker.settings import Settings
from worker.settings.record_tests import ExpectSettings, TestRecordSettings, TestSettings, from_base64


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one test found."""

    name: str
    answer: Answer
    faults: tuple[str, ...]
    """How the answer differs from what is expected; empty where the test passed."""

    @property
    def ok(self) -> bool:
        return not self.faults


def run_tests(settings: Settings, pipeline: Pipeline, tests: Sequence[TestSettings]) -> Iterator[Outcome]:
    """Answer the record of each test, one after the other.

    Raises:
        ConfigError: a file cannot be read.
        WorkerError: a model is sick, or a store or registry does not answer.
    """
    for test in tests:
        answer = pipeline.many([record_of(test.record, f"tests ({test.name})")])[0]
        yield Outcome(test.name, answer, tuple(faults(test.expect, answer, test.tolerance)))


def record_of(wanted: TestRecordSettings, place: str) -> Record:
    """The record of a test."""
    value: Any = wanted.value
    if wanted.file is not None:
        try:
            value = read_bytes(wanted.file, RECORD_MAX)
        except OSError as error:
            raise ConfigError(
                f"{place}.record.file: {wanted.file} cannot be read: {error.strerror}"
            ) from None
    elif wanted.base64 is not None:
        value = from_base64(wanted.base64, place)
    elif isinstance(value, bool | int | float):
        value = str(value).lower() if isinstance(value, bool) else str(value)
    return Record(value, wanted.key, wanted.headers, wanted.topic)


def faults(expect: ExpectSettings, answer: Answer, tolerance: float) -> Iterator[str]:
    """How the answer differs from what is expected, one sentence each."""
    if expect.pipeline is not None and answer.pipeline != expect.pipeline:
        yield f"pipeline is {answer.pipeline or 'none'}, expected {expect.pipeline}"
    if expect.dead_letter is not None:
        yield from _letter_faults(expect, answer)
        return
    if expect.dropped:
        if not answer.dropped:
            yield f"expected a dropped record, got {_got(answer)}"
        return
    given = expect.model_fields_set & {"prediction", "result", "label", "min_score"}
    if not given:
        return
    if answer.rejected is not None or answer.dropped:
        yield f"expected a result, got {_got(answer)}"
        return
    if "result" in given:
        yield from differences(expect.result, plain(answer.result), "result", tolerance)
    if "prediction" in given:
        yield from differences(expect.prediction, answer.prediction, "prediction", tolerance)
    fields = answer.prediction if isinstance(answer.prediction, dict) else {}
    if expect.label is not None and fields.get("label") != expect.label:
        yield f"label is {shown(fields.get('label'))}, expected {shown(expect.label)}"
    if expect.min_score is not None:
        score = fields.get("score")
        if not isinstance(score, int | float) or not score >= expect.min_score:
            yield f"score is {shown(score)}, expected at least {expect.min_score}"


def _letter_faults(expect: ExpectSettings, answer: Answer) -> Iterator[str]:
    wanted, found = expect.dead_letter, answer.rejected
    assert wanted is not None
    if found is None:
        yield f"expected a dead letter{f' {wanted.reason}' if wanted.reason else ''}, got {_got(answer)}"
        return
    for name in ("reason", "stage"):
        if (should := getattr(wanted, name)) is not None and getattr(found, name) != should:
            yield f"{name} is {getattr(found, name)}, expected {should} (message: {found.message})"
    if wanted.message is not None and wanted.message not in found.message:
        yield f"message is {shown(found.message)}, expected it to contain {shown(wanted.message)}"


def _got(answer: Answer) -> str:
    if answer.rejected is not None:
        return f"a dead letter {answer.rejected}"
    if answer.dropped:
        return "a dropped record"
    if answer.result is None:
        return "a record without a value"
    return f"a result: {shown(plain(answer.result))}"


def plain(result: Any) -> Any:
    """A result as plain data: bytes by their base64."""
    return {"base64": base64.b64encode(result).decode()} if isinstance(result, bytes) else result
