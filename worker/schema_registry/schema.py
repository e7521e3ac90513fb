"""A schema as a registry gives it, with all schemas that it refers to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from worker.errors import Reject

Kind = Literal["AVRO", "PROTOBUF", "JSON"]
LONGEST_TEXT = 1 << 20
"""Characters of one schema; the largest real ones have some hundred thousand."""
DEEPEST = 100
"""Brackets inside one another in the text of a schema."""
MOST_REFERENCES = 200
"""Schemas that one schema may refer to, directly or through others."""


@dataclass(frozen=True)
class Schema:
    """One schema.

    ``text`` is Avro or JSON Schema as JSON; for Protobuf a ``FileDescriptorProto`` in base64, as registries give it for
    ``format=serialized``, or the text of a ``.proto`` file.
    """

    kind: str
    text: str
    references: Mapping[str, Schema] = field(default_factory=dict)
    """The schemas it refers to, each by the name that stands in the text, such as a Protobuf file's path."""
    rules: str = ""
    """What a reader would have to do besides reading, such as ``encryption``; empty if nothing."""

    def check(self, expected: Kind) -> None:
        """Refuse a schema that the worker does not read.

        Raises:
            Reject: ``invalid``: it is of another kind, or has rules that change the data.
        """
        if self.kind != expected:
            raise Reject(f"it is of type {self.kind}, expected {expected}")
        if self.rules:
            raise Reject(f"it has {self.rules} rules, which the worker does not run")
        check_text(self.text)
        for reference in self.references.values():
            reference.check(expected)


def check_text(text: str) -> None:
    """Refuse a text that costs too much to parse.

    Raises:
        Reject: ``invalid``: too long or nested too deeply.
    """
    if len(text) > LONGEST_TEXT:
        raise Reject(f"it has {len(text)} characters, expected at most {LONGEST_TEXT}")
    depth = deepest = 0
    for sign in text:
        if sign in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif sign in "}]":
            depth -= 1
    if deepest > DEEPEST:
        raise Reject(f"it is nested {deepest} levels deep, expected at most {DEEPEST}")


def rules_of(rule_set: Any) -> str:
    """What the rules of a schema would do to the data, in words; empty where nothing.

    Args:
        rule_set: ``ruleSet`` of the registry's answer, as plain data or None.
    """
    if not isinstance(rule_set, dict):
        return ""
    found = ["migration"] if rule_set.get("migrationRules") else []
    rules = [*(rule_set.get("domainRules") or []), *(rule_set.get("encodingRules") or [])]
    kinds = {str(rule.get("type", "")).upper() for rule in rules if not rule.get("disabled")}
    if any("ENCRYPT" in kind for kind in kinds):
        found.insert(0, "encryption")
    # a condition (CEL) was checked by the writer and changes nothing
    others = sorted(kind for kind in kinds if "ENCRYPT" not in kind and kind != "CEL")
    return " and ".join(found + others)
