"""A configuration as commented YAML, and the stub of custom code: text for people to read and change."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from worker.cli.init_guess import Guess, shape_of
from worker.model.signature import Signature

_PLAIN = re.compile(r"[A-Za-z_/.][\w./ -]*")


@dataclass(frozen=True, slots=True)
class Names:
    """What the configuration calls things."""

    name: str
    topic: str
    bootstrap: str
    model: str
    """As it stands in the file: relative to it."""
    schema: str
    """Path of the JSON Schema."""


def configuration(names: Names, guess: Guess, signature: Signature, test: dict[str, Any] | None) -> str:
    """The text of the file.

    Args:
        test: one of the file's own tests, if there is one.
    """
    takes = ", ".join(map(shape_of, signature.inputs))
    gives = ", ".join(map(shape_of, signature.outputs))
    lines = [
        f"# yaml-language-server: $schema={names.schema}",
        f"# The model takes {takes}",
        f"# and gives {gives}",
        f"name: {_flow(names.name)}",
        "input:",
        f"  topics: [{_flow(names.topic)}]",
        f"  format: {_flow(guess.format)}{_comment(guess.why.get('format'))}",
    ]
    if guess.fields:
        lines.append(f"  fields: {_flow(guess.fields)}")
    lines.append("  # start: latest     # where a new group begins; default: earliest")
    if guess.preprocess:
        lines += _section("preprocess", guess.preprocess, guess.why.get("preprocess"))
    lines.append(f"model: {{path: {_flow(names.model)}}} # relative to this file")
    lines.append("batching: {max_size: 64, max_wait_ms: 5} # max_size: auto measures it at start")
    if guess.postprocess is not None:
        lines += _section("postprocess", guess.postprocess, guess.why.get("postprocess"))
    elif guess.format not in ("oip", "npy", "tensor"):
        lines.append(f"# postprocess:{_comment(guess.why.get('postprocess'))}")
    lines += [
        f"output: {{topic: {_flow(f'{names.topic}.predictions')}}}",
        f"dead_letter: {{topic: {_flow(f'{names.topic}.dead-letter')}}} # records that cannot be answered, with the reason",
        f'metrics: {{topic: {_flow(f"{names.topic}.metrics")}, http: "127.0.0.1:9464"}} # page, Prometheus, health',
        "# delivery: exactly_once # default: at_least_once",
        "kafka:",
        f"  bootstrap.servers: {json.dumps(names.bootstrap)}",
        f"  group.id: {_flow(names.name)}",
    ]
    if test is not None:
        lines += ["tests: # streaminfer test runs them", f"  - name: {_flow(test['name'])}"]
        lines += [f"    {key}: {_flow(test[key])}" for key in ("record", "expect")]
    return "\n".join(lines) + "\n"


def _section(key: str, value: Any, why: str | None) -> list[str]:
    """One section; a choice with options has a line for each of them."""
    lines = [f"# {why}"] if why else []
    if isinstance(value, str):
        return [*lines, f"{key}: {_flow(value)}"]
    lines.append(f"{key}:")
    return lines + [f"  {name}: {_flow(options)}" for name, options in value.items()]


def _comment(text: str | None) -> str:
    return f" # {text}" if text else ""


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str) and _PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(str(name))}: {_flow(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def custom_code(signature: Signature) -> str:
    """The stub of a module with an input format and a postprocess for this model."""
    arrays = "\n".join(
        f'        "{spec.name}": np.asarray(record["{spec.name}"], {_dtype(spec.dtype)}),  # one item: {_item(spec.item_shape)}'
        for spec in signature.inputs
    )
    fields = ", ".join(spec.name for spec in signature.inputs)
    result = "\n".join(
        f'        "{spec.name}": outputs["{spec.name}"],  # one item: {_item(spec.item_shape)}'
        for spec in signature.outputs
    )
    return f'''"""Custom code of the worker. Change both functions, and try them: streaminfer test CONFIG."""

import json

import numpy as np
from streaminfer import Reject


def decode(value: bytes, headers: list[tuple[str, bytes | None]]) -> dict[str, np.ndarray]:
    """input.format: from a record to one item of each model input, without a batch dimension."""
    record = json.loads(value)
    missing = [name for name in {[spec.name for spec in signature.inputs]!r} if name not in record]
    if missing:
        raise Reject(f"the record lacks {{', '.join(missing)}}; expected {fields}")
    return {{
{arrays}
    }}


def postprocess(outputs: dict[str, np.ndarray]) -> object:
    """postprocess: from one item of the model's outputs to anything that JSON can hold."""
    return {{
{result}
    }}
'''


def _dtype(dtype: Any) -> str:
    return "str" if dtype.kind == "O" else f"np.{dtype.name}"


def _item(shape: tuple[int | None, ...]) -> str:
    return (
        f"[{', '.join('any' if side is None else str(side) for side in shape)}]"
        if shape
        else "a single value"
    )
