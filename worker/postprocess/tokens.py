"""Scores for each token of a text -> ``{"entities": [{"label", "score", "start", "end", "text"}]}``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import orjson

from worker.batch import Array
from worker.errors import ConfigError, Rejection
from worker.features.text_context import TextContext
from worker.model.signature import Signature, TensorSpec
from worker.postprocess import rendering
from worker.postprocess.classification import activate
from worker.postprocess.labels import default_names
from worker.settings.kinds import File, Label
from worker.settings.members import Members
from worker.settings.section import Section

_FIELD = "postprocess.tokens"
_PREFIX = re.compile(r"([BILUESM])[-_](?=.)")
"""Before a label: beginning, inside, last, unit; or beginning, middle, end, single."""
_OUTSIDE = "O"
_BEGINS, _ENDS = frozenset("BUS"), frozenset("LUES")


class TokensSettings(Section):
    """What each token of a text is, such as part of a name."""

    labels: File | list[Label] | None = None
    """Text file with one label per line, relative to the configuration file, or a list of labels. Default: the model's own, such as those of config.json in its folder, else class indices."""
    aggregation: Literal["simple", "none"] = "simple"
    """simple: neighbouring tokens of one label are one entity, and prefixes such as B- and I- say where it begins; none: one entity for each token."""


class _Entity(NamedTuple):
    label: str
    scores: list[Any]
    start: int
    end: int
    closed: bool
    """No further token belongs to it, because its last one said so."""


class Tokens:
    """Entities in the text: for each token the class of the highest softmax score; `O` is none.

    ``start`` and ``end`` count characters of the text. An entity of several tokens has the mean of their scores.
    """

    settings: ClassVar[type[Section]] = TokensSettings
    members: ClassVar[Members] = {"entities": "list"}
    reads_text = True
    needs_content = "text"
    takes_padding = True

    def __init__(self, settings: TokensSettings, signature: Signature, labels: Sequence[str] | None) -> None:
        spec = _scores(signature)
        self._output = spec.name
        classes = spec.shape[-1]
        if labels is None:
            labels = default_names(signature, classes)
        if labels is not None and classes is not None and classes != len(labels):
            raise ConfigError(
                f"{_FIELD}.labels names {len(labels)} classes, but the model's output {spec.name!r} has {classes}"
            )
        self._labels = list(labels) if labels is not None else None
        named = [label for label in self._labels or () if label != _OUTSIDE]
        self._prefixed = bool(named) and all(_PREFIX.match(label) for label in named)
        self._simple = settings.aggregation == "simple"

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        values = outputs[self._output]
        return [self._entities(_matrix(values[item]), contexts[item]) for item in range(count)]

    def _entities(self, scores: Array, context: Any) -> bytes | Rejection:
        """The fragment of one item: scores (tokens, classes), padding included."""
        if not isinstance(context, TextContext) or context.offsets is None:
            raise ValueError("expected text as the content that fills the model's inputs")
        own = scores[-context.tokens :] if context.before else scores[: context.tokens]
        if len(own) != len(context.offsets):
            raise ValueError(f"expected scores for {context.tokens} tokens, the model gave {len(scores)}")
        if rendering.non_finite_items(own):
            return rendering.non_finite(self._output, self)
        shares = activate(own, "softmax")
        classes = shares.argmax(axis=1)
        names = self._names(shares.shape[1])
        found: list[_Entity] = []
        broken = True
        for place, (number, (start, end)) in enumerate(zip(classes.tolist(), context.offsets, strict=True)):
            if start == end:
                continue  # a special token
            name = names[number]
            if name == _OUTSIDE:
                broken = True
                continue
            self._add(found, name, shares[place, number], start, end, broken)
            broken = False
        return _rendered(found, context.text)

    def _names(self, classes: int) -> list[str]:
        names = self._labels if self._labels is not None else [str(number) for number in range(classes)]
        if len(names) != classes:
            raise ValueError(f"the model gave {classes} classes, {_FIELD}.labels names {len(names)}")
        return names

    def _add(self, found: list[_Entity], name: str, score: Any, start: int, end: int, broken: bool) -> None:
        """One more token: a part of the last entity, or a new one.

        Args:
            broken: a token that is in no entity, or nothing, stands before it.
        """
        if not self._simple:
            found.append(_Entity(name, [score], start, end, True))
            return
        sign, label = (name[0], name[2:]) if self._prefixed else ("I", name)
        closed = sign in _ENDS
        last = found[-1] if found and not broken else None
        if last is None or last.closed or last.label != label or sign in _BEGINS:
            found.append(_Entity(label, [score], start, end, closed))
        else:
            found[-1] = _Entity(label, [*last.scores, score], last.start, end, closed)


def _scores(signature: Signature) -> TensorSpec:
    """The first floating output whose items are matrices.

    Raises:
        ConfigError: there is none.
    """
    wanted = 2 + signature.batchable
    for spec in signature.outputs:
        if spec.dtype.kind == "f" and len(spec.shape) in (wanted, 3):
            return spec
    shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in signature.outputs).replace("None", "any")
    raise ConfigError(
        f"{_FIELD} needs scores of [items, tokens, classes], but the model's outputs are {shapes}"
    )


def _matrix(values: Array) -> Array:
    """One item's scores (tokens, classes); a model that runs records alone may keep a first dimension of 1."""
    matrix = values[0] if values.ndim == 3 and len(values) == 1 else values
    if matrix.ndim != 2:
        raise ValueError(
            f"expected scores for each token, the model gave an item of shape {list(values.shape)}"
        )
    return matrix


def _rendered(found: Sequence[_Entity], text: str) -> bytes:
    means = np.array([np.mean(entity.scores, dtype=np.float32) for entity in found], np.float32)
    parts = [
        b'{"label":%b,"score":%b,"start":%d,"end":%d,"text":%b}'
        % (
            orjson.dumps(entity.label),
            score,
            entity.start,
            entity.end,
            orjson.dumps(text[entity.start : entity.end]),
        )
        for entity, score in zip(found, rendering.scalars(means), strict=True)
    ]
    return b'{"entities":[%b]}' % b",".join(parts)
