"""Model inputs that no record fills: constants, and the states of a recurrent model, which its outputs fill.

Behind :class:`WiredSessions` such a model looks like any other: it has neither these inputs nor the outputs that are only
states, so what holds for items of other models (whether they may share a run, warm-up, the canary) holds here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worker.batch import Array
from worker.errors import ConfigError
from worker.model.backend import Sessions, Tensors
from worker.model.compare import difference
from worker.model.signature import TensorSpec, with_wholes

Constants = Callable[[Sequence[TensorSpec]], Mapping[str, Array]]
"""From the model's inputs to those that are the same in every run, by name, as the model takes them."""


@dataclass(frozen=True)
class State:
    """One state: an input that gets what an output gave one item before; zeros for a record's first item."""

    input: str
    output: str
    shape: tuple[int, ...]
    """Of one record's state; 1 in the dimension that counts the records."""
    dtype: np.dtype[Any]
    axis: int | None
    """The dimension that counts the records; None = the model takes one record at a time."""

    def zeros(self, records: int) -> Array:
        """The states of so many records at their beginning.

        Raises:
            ValueError: the model takes one record at a time.
        """
        shape = list(self.shape)
        if self.axis is not None:
            shape[self.axis] = records
        elif records != 1:
            raise ValueError(f"the state {self.input} is that of one record, got {records} at once")
        return np.zeros(shape, self.dtype)

    def first(self, values: Array, records: int) -> Array:
        """The states of the first records."""
        if self.axis is None or values.shape[self.axis] == records:
            return values
        return np.ascontiguousarray(values.take(range(records), self.axis))


class WiredSessions:
    """Sessions that get their constants and states from here. Several threads use one at once.

    Args:
        sessions: what runs the model; closed with this.
        constants: by input.
        states: in any order.
    """

    def __init__(self, sessions: Sessions, constants: Mapping[str, Array], states: Sequence[State]) -> None:
        self._sessions = sessions
        self._constants = dict(constants)
        self._states = tuple(states)
        self.lookahead, self.ahead = sessions.lookahead, sessions.ahead

    def run(self, feeds: Tensors) -> Tensors:
        """Each item by itself, as the first and only one of a record."""
        outputs, _ = self._step(feeds, {state: state.zeros(_records(feeds)) for state in self._states})
        return outputs

    def run_in_order(self, feeds: Tensors, counts: Sequence[int]) -> Tensors:
        """The items of each record one after the other, records side by side.

        Args:
            feeds: by input; the first dimension counts the items of all records, record by record.
            counts: items per record.

        Returns:
            By output; the first dimension counts the items in the same order. Of a model that takes one record at a time,
            each item's outputs stand whole behind that dimension.

        Raises:
            Exception: whatever the runtime raises.
        """
        if any(state.axis is None for state in self._states):
            return _stacked([self._alone(feeds, start, count) for start, count in _spans(counts)])
        starts = np.cumsum([0, *counts[:-1]])
        order = np.argsort(
            -np.asarray(counts), kind="stable"
        )  # the longest first: those that go on stand in front
        lengths = np.asarray(counts)[order]
        answers: dict[str, Array] = {}
        states: dict[State, Array] | None = None
        for step in range(int(lengths[0])):
            going = int((lengths > step).sum())
            places = starts[order[:going]] + step
            part = {name: np.ascontiguousarray(array[places]) for name, array in feeds.items()}
            if states is None:
                states = {state: state.zeros(going) for state in self._states}
            states = {state: state.first(values, going) for state, values in states.items()}
            outputs, states = self._step(part, states)
            for name, values in outputs.items():
                if not values.ndim or len(values) != going:
                    raise ValueError(f"output {name} has shape {list(values.shape)} for {going} records")
                if name not in answers:
                    answers[name] = np.empty((int(lengths.sum()), *values.shape[1:]), values.dtype)
                answers[name][places] = values
        return answers

    def _alone(self, feeds: Tensors, start: int, count: int) -> list[Tensors]:
        """The outputs of each item of one record."""
        states = {state: state.zeros(1) for state in self._states}
        found = []
        for place in range(start, start + count):
            outputs, states = self._step(
                {name: array[place : place + 1] for name, array in feeds.items()}, states
            )
            found.append(outputs)
        return found

    def _step(self, feeds: Tensors, states: Mapping[State, Array]) -> tuple[Tensors, dict[State, Array]]:
        """(the outputs that are answers, the states after this step)."""
        fed = {**feeds, **self._constants, **{state.input: values for state, values in states.items()}}
        outputs = self._sessions.run(fed)
        after = {state: outputs[state.output] for state in states}
        for state in states:
            outputs.pop(state.output, None)
        return outputs, after

    def interrupt(self) -> None:
        self._sessions.interrupt()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self._sessions.empty(shape, dtype)

    def warm(self, sizes: Sequence[int], sample: Callable[[int], Tensors], largest: int) -> None:
        def wired(size: int) -> Tensors:
            states = {state.input: state.zeros(size) for state in self._states}
            return {**sample(size), **self._constants, **states}

        self._sessions.warm(sizes, wired, largest)

    def close(self) -> None:
        self._sessions.close()


def wired(
    sessions: Sessions,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    constants: Constants | None,
    state: Mapping[str, str],
) -> tuple[Sessions, tuple[TensorSpec, ...], tuple[TensorSpec, ...], tuple[str, ...]]:
    """The sessions with what is fed from here, the inputs and outputs that are left, and the names of the constants.

    Raises:
        ConfigError: ``model.state`` does not fit the model.
    """
    fixed = dict(constants(inputs)) if constants is not None else {}
    if len(fixed) + len(state) >= len(inputs):
        fixed = {}  # records must feed something
    if not fixed and not state:
        return sessions, inputs, outputs, ()
    states = _states(inputs, outputs, state)
    hidden = {each.output for each in states}
    left = tuple(spec for spec in inputs if spec.name not in fixed and spec.name not in state)
    answers = tuple(spec for spec in outputs if spec.name not in hidden)
    if not left or not answers:
        raise ConfigError("model.state: expected an input and an output beside the states")
    plain = tuple(TensorSpec(s.name, s.dtype, s.datatype, s.shape, s.names) for s in left)
    return WiredSessions(sessions, fixed, states), with_wholes(plain), answers, tuple(fixed)


def _states(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], state: Mapping[str, str]
) -> list[State]:
    found = []
    for name, output in state.items():
        spec = next((each for each in inputs if each.name == name), None)
        given = next((each for each in outputs if each.name == output), None)
        if spec is None:
            names = ", ".join(each.name for each in inputs)
            raise ConfigError(f"model.state.{name}: the model has no such input; expected one of {names}")
        if given is None:
            names = ", ".join(each.name for each in outputs)
            raise ConfigError(
                f"model.state.{name}: the model has no output {output}; expected one of {names}"
            )
        if given.dtype != spec.dtype:
            raise ConfigError(
                f"model.state.{name}: the output {output} holds {given.datatype}, the input {spec.datatype}"
            )
        axis = _axis(spec, given, [each for each in inputs if each.name not in state])
        shape = tuple(1 if place == axis else length for place, length in enumerate(spec.shape))
        if None in shape:
            text = str(list(spec.shape)).replace("None", "?")
            raise ConfigError(
                f"model.state.{name}: its shape is {text}; expected known lengths but for the dimension that counts records"
            )
        found.append(State(name, output, tuple(length or 1 for length in shape), spec.dtype, axis))
    return found


def _axis(spec: TensorSpec, output: TensorSpec, others: Sequence[TensorSpec]) -> int | None:
    """The dimension of a state that counts records: the free one. Of several, the one that is called as another input's first
    dimension or a batch."""
    free = [axis for axis, length in enumerate(spec.shape) if length is None]
    if len(free) < 2:
        return free[0] if free else None
    firsts = {each.names[0] for each in others if each.names} - {""}
    named = [axis for axis in free if spec.names[axis] in firsts or "batch" in spec.names[axis].lower()]
    return (named or free)[0]


def why_apart(sessions: WiredSessions, item: Tensors, tolerance: float) -> str:
    """Why records may not run side by side although single items may, found with made-up records; empty if they may."""
    other = {
        name: np.asarray(array * 0.5, array.dtype) if array.dtype.kind == "f" else array
        for name, array in item.items()
    }
    records = [[item, other], [other, item, item]]
    try:
        apart = [sessions.run_in_order(_joined(record), [len(record)]) for record in records]
        beside = sessions.run_in_order(_joined([*records[0], *records[1]]), [2, 3])
    except Exception as error:
        return f"it refuses two records side by side: {' '.join(str(error).split())[:200]}"
    return difference(beside, _joined(apart), tolerance).reason or ""


def _joined(items: Sequence[Tensors]) -> Tensors:
    return {name: np.concatenate([item[name] for item in items]) for name in items[0]}


def _records(feeds: Tensors) -> int:
    return next((len(array) for array in feeds.values() if array.ndim), 1)


def _spans(counts: Sequence[int]) -> list[tuple[int, int]]:
    starts = np.cumsum([0, *counts[:-1]]).tolist()
    return list(zip(starts, counts, strict=True))


def _stacked(records: Sequence[list[Tensors]]) -> Tensors:
    items = [item for record in records for item in record]
    return {name: np.stack([item[name] for item in items]) for name in items[0]}
