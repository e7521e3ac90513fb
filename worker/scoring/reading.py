"""Results and labels as they are on the topics, read into what is joined: an id, and what is compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import orjson

from worker.records.paths import ABSENT, Path
from worker.scoring.compare import Answer, Comparer

LONGEST_ID = 64
"""Bytes of an id that is kept as it is; of a longer one its BLAKE2b digest of 16 bytes is kept."""
HEADER = "header:"


class Unreadable(Exception):
    """The record has no id, or nothing that could be compared.

    Args:
        what: the counter of such records.
        why: one phrase for the log.
    """

    def __init__(self, what: str, why: str) -> None:
        super().__init__(why)
        self.what = what


class Result(NamedTuple):
    """One result."""

    key: bytes
    pipeline: str
    version: str
    answer: Answer


class Label(NamedTuple):
    """One label."""

    key: bytes
    truth: Any


@dataclass(frozen=True)
class Rules:
    """How results and labels find each other: the settings, as far as reading needs them."""

    results: Mapping[str, Mapping[str, str]]
    """Results topic -> (name of a model in its results -> pipeline); "" stands for every name."""
    labels: str
    """The topic of labels."""
    id: str
    """``labels.id``"""
    label: str
    """``labels.label``"""


class Reader:
    """Reads the records of both kinds of topics."""

    def __init__(self, rules: Rules, comparer: Comparer) -> None:
        self._rules = rules
        self._comparer = comparer
        self._by_key = rules.id == "key"
        self._header = rules.id.removeprefix(HEADER) if rules.id.startswith(HEADER) else None
        self._id = Path.of(rules.id)
        self._label = Path.of(rules.label)
        self._versions: dict[str, str] = {}

    def result(self, topic: str, key: bytes | None, value: bytes | None) -> Result:
        """One record of an output topic.

        Raises:
            Unreadable: it is no result, says only why there is none, or is of a pipeline that is not scored.
        """
        document = _object(value, "results_unreadable")
        if "predictions" in document:
            several = document["predictions"]
            if not isinstance(several, list):
                raise Unreadable("results_unreadable", "predictions is no list")
            answers = [self._comparer.answer(each) for each in several]
            answer: Answer = answers if None not in answers else None
        elif document.get("prediction") is not None:
            answer = self._comparer.answer(document["prediction"])
        else:
            raise Unreadable("results_unanswered", "it has no prediction")
        model = document.get("model")
        if not isinstance(model, dict):
            raise Unreadable("results_unreadable", "it names no model")
        names = self._rules.results[topic]
        pipeline = names.get("") or names.get(str(model.get("name")))
        if pipeline is None:
            raise Unreadable("results_other", "it is of a pipeline that is not scored")
        if key is None or not self._by_key:
            id_ = document.get("id")
            if not isinstance(id_, str):
                raise Unreadable("results_unreadable", "it has no id")
            key = id_.encode()
        version = str(model.get("version"))
        return Result(short(key), pipeline, self._versions.setdefault(version, version), answer)

    def label(
        self, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]] | None
    ) -> Label:
        """One record of the labels topic.

        Raises:
            Unreadable: it has no id, or no label.
        """
        document = _object(value, "labels_invalid")
        if self._header is not None:
            found = [held for name, held in headers or () if name == self._header]
            key = found[-1] if found else None
            if key is None:
                raise Unreadable("labels_invalid", f"it has no header {self._header}")
        elif not self._by_key:
            key = _as_id(self._id.find(document))
            if key is None:
                raise Unreadable("labels_invalid", f"it has no field {self._rules.id}")
        elif key is None:
            raise Unreadable("labels_invalid", "it has no key")
        truth = self._label.find(document)
        if truth is ABSENT or truth is None:
            raise Unreadable("labels_invalid", f"it has no field {self._rules.label}")
        return Label(short(key), self._comparer.truth(truth))


def short(key: bytes) -> bytes:
    """An id in few bytes: two ids that differ stay so."""
    return key if len(key) <= LONGEST_ID else hashlib.blake2b(key, digest_size=16).digest()


def _object(value: bytes | None, what: str) -> dict[str, Any]:
    if value is None:
        raise Unreadable("results_unanswered" if what.startswith("results") else what, "it has no value")
    try:
        document = orjson.loads(value)
    except orjson.JSONDecodeError:
        raise Unreadable(what, "it is not JSON") from None
    if not isinstance(document, dict):
        raise Unreadable(what, "it is no JSON object")
    return document


def _as_id(value: Any) -> bytes | None:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value).encode()
    return None
