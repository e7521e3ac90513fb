"""How unusual an item is -> ``{"score", "anomaly"}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from worker.batch import Array
from worker.errors import ConfigError, Reject, Rejection
from worker.model.signature import Signature, TensorSpec
from worker.postprocess import rendering
from worker.postprocess.item import InputItem
from worker.postprocess.layout import item_shape
from worker.postprocess.selection import numeric_output, vector_output
from worker.settings.kinds import Text
from worker.settings.members import Members
from worker.settings.section import Section

_FIELD = "postprocess.anomaly"


class AnomalySettings(Section):
    """A score, and whether it is that of an anomaly."""

    of: Text | None = None
    """The output: the score itself, or a reconstruction of the input. Default: the first floating output."""
    against: Text | None = None
    """The model input that the output reconstructs: the score is then the mean of the squared differences."""
    threshold: float
    """An item that scores at least this is an anomaly."""


class Anomaly:
    """A score, and whether it is at least ``threshold``: an output of one number, or how far a reconstruction is off its input."""

    settings: ClassVar[type[Section]] = AnomalySettings
    members: ClassVar[Members] = {"score": "number", "anomaly": "truth"}

    def __init__(self, settings: AnomalySettings, signature: Signature, labels: Sequence[str] | None) -> None:
        output = _named(settings.of, signature)
        self._output, self._threshold = output.name, settings.threshold
        self._against = settings.against
        self.takes_items = self._against is not None
        if self._against is None:
            self._check_number(signature, output)
        else:
            _check_shapes(signature, output, self._against)

    def _check_number(self, signature: Signature, output: TensorSpec) -> None:
        only = Signature(signature.inputs, (output,), signature.batchable)
        _, numbers = vector_output(only, _FIELD)
        answered = [answer[output.name].size for answer in signature.shown.answers[:1]]
        if numbers not in (None, 1) or answered not in ([], [1]):
            raise ConfigError(
                f"{_FIELD}.of: the model's output {output.name!r} has {numbers or answered[0]} numbers per item, expected "
                f"one score; or {_FIELD}.against with the input that it reconstructs"
            )

    def predictions(
        self, outputs: dict[str, Array], count: int, contexts: Sequence[Any], alone: bool
    ) -> list[bytes | Rejection]:
        output = outputs[self._output]
        if self._against is None:
            values = output.reshape(count, -1)
            if values.shape[1] != 1:
                raise ValueError(f"expected one score per item, the model gave {values.shape[1]} numbers")
            scores = values[:, 0]
        else:
            scores = np.array([self._distance(output[item], contexts[item]) for item in range(count)])
        above = (scores >= self._threshold).tolist()
        found: list[bytes | Rejection] = [
            b'{"score":%b,"anomaly":%b}' % (score, b"true" if anomaly else b"false")
            for score, anomaly in zip(rendering.scalars(scores), above, strict=True)
        ]
        for item in {*rendering.non_finite_items(scores), *rendering.non_finite_items(output)}:
            found[item] = rendering.non_finite(self._output, self)
        return found

    def _distance(self, output: Array, item: InputItem) -> float:
        """The mean of the squared differences, in float64."""
        assert self._against is not None
        given = item.inputs[self._against]
        if _plain(given.shape) != _plain(output.shape):
            raise Reject(
                f"the output {self._output!r} has shape {list(output.shape)}, the input {self._against!r} "
                f"{list(given.shape)}",
                "model_error",
            )
        with np.errstate(over="ignore", invalid="ignore"):
            off = output.reshape(-1).astype(np.float64) - given.reshape(-1)
            return float(off @ off / max(1, off.size))


def _named(name: str | None, signature: Signature) -> TensorSpec:
    if name is None:
        return numeric_output(signature, _FIELD)
    found = next((spec for spec in signature.outputs if spec.name == name), None)
    if found is None:
        outputs = ", ".join(spec.name for spec in signature.outputs)
        raise ConfigError(f"{_FIELD}.of: the model has no output {name!r}; expected one of {outputs}")
    if found.dtype.kind not in "fiu":
        raise ConfigError(f"{_FIELD}.of: the model's output {name!r} is {found.datatype}; expected numbers")
    return found


def _check_shapes(signature: Signature, output: TensorSpec, against: str) -> None:
    """Refuse an input that the output cannot be a reconstruction of."""
    given = signature.input(against)
    if given is None:
        inputs = ", ".join(spec.name for spec in signature.inputs)
        raise ConfigError(f"{_FIELD}.against: the model has no input {against!r}; expected one of {inputs}")
    if given.dtype.kind not in "fiu":
        raise ConfigError(
            f"{_FIELD}.against: the model's input {against!r} is {given.datatype}; expected numbers"
        )
    taken = given.item_shape if signature.batchable else given.shape
    shape, taken = _plain(item_shape(signature, output)), _plain(taken)
    known = all(None not in pair for pair in (shape, taken))
    if len(shape) != len(taken) or (known and shape != taken):
        raise ConfigError(
            f"{_FIELD}.against: the model's input {against!r} has shape {list(given.shape)}, its output {output.name!r} "
            f"{list(output.shape)}; expected the shape of what is reconstructed"
        )


def _plain(shape: Sequence[int | None]) -> tuple[int | None, ...]:
    """A shape without dimensions of 1."""
    return tuple(length for length in shape if length != 1)
