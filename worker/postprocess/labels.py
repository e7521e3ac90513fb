"""Names of classes: from a file or a list in the settings, from the model's own output, or from the model file."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from worker.errors import ConfigError
from worker.model.signature import Signature, TensorSpec
from worker.settings.kinds import File, Label, Text
from worker.settings.section import Section

_SHOWN = 8
"""Most names that a message quotes."""


class LabelsFrom(Section):
    """Labels that the model itself gives."""

    from_: Text = Field(alias="from")
    """The output that holds each item's label; needs `top_k: 1`."""


Labels = File | list[Label] | LabelsFrom


def own_names(signature: Signature) -> list[str] | None:
    """The names that the model file gives to its classes, in their order; None if it gives none.

    Ultralytics writes ``names``, a Python dict by class number; PaddleOCR writes ``character``, one name per line;
    converters of scikit-learn and the like write the names into the classifier's operator.
    """
    metadata = signature.shown.metadata
    if "names" in metadata:
        try:
            found = ast.literal_eval(metadata["names"])
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        if isinstance(found, dict) and set(found) == set(range(len(found))):
            return [str(found[number]) for number in range(len(found))]
        return [str(name) for name in found] if isinstance(found, list | tuple) else None
    if "character" in metadata:
        return metadata["character"].splitlines()
    return list(signature.shown.class_names) or None


def default_names(signature: Signature, classes: int | None) -> list[str] | None:
    """The model file's own names as default labels, if there are as many as classes."""
    found = own_names(signature)
    return found if found is not None and len(found) == classes else None


def check_order(labels: Sequence[str], signature: Signature, scores: str, key: str) -> None:
    """Refuse labels that are the model's own names in another order: each answer would have a wrong name.

    Args:
        labels: as configured.
        scores: the output with a score for each class.
        key: the setting's name, for the error.

    Raises:
        ConfigError: the model file, or an answer to a made-up item, shows another order.
    """
    names = own_names(signature)
    if names is not None and list(labels) != names and sorted(labels) == sorted(names):
        raise ConfigError(
            f"{key}: the order is {_quoted(labels)}, but the model's own order is {_quoted(names)}"
        )
    output = label_output(signature)
    for answer in signature.shown.answers if output is not None else ():
        assert output is not None
        best, said = _best(answer[scores]), str(answer[output.name].reshape(-1)[0])
        if best is None or best >= len(labels) or labels[best] == said or said not in labels:
            continue
        raise ConfigError(
            f"{key}: class {best} is {labels[best]!r} there, but the model's output {output.name!r} says {said!r} "
            f"for it; expected the model's own order, or {{from: {output.name}}}"
        )


def label_output(signature: Signature) -> TensorSpec | None:
    """The output that names the best class of each item, one string or integer per item; None if there is none."""
    answers = signature.shown.answers
    for spec in signature.outputs:
        if spec.dtype.kind in "Oiu" and answers and all(answer[spec.name].size == 1 for answer in answers):
            return spec
    return None


def check_label_output(name: str, signature: Signature, key: str) -> None:
    """Whether an output holds one label for each item.

    Raises:
        ConfigError: there is no such output, or it holds floats.
    """
    spec = next((spec for spec in signature.outputs if spec.name == name), None)
    if spec is None:
        outputs = ", ".join(spec.name for spec in signature.outputs)
        raise ConfigError(f"{key}.from: the model has no output {name!r}; expected one of {outputs}")
    if spec.dtype.kind not in "Oiub":
        raise ConfigError(
            f"{key}.from: the model's output {name!r} is {spec.datatype}; expected strings or integers, "
            "one label for each item"
        )


def _best(scores: Any) -> int | None:
    """The class with the one highest score of an answer to one item; None on a tie."""
    flat = np.asarray(scores).reshape(-1)
    if not flat.size or flat.dtype.kind not in "fiu" or np.isnan(flat).any():
        return None
    return int(flat.argmax()) if (flat == flat.max()).sum() == 1 else None


def _quoted(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
