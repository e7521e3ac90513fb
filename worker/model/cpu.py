"""Models on the processor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from worker.model.backend import Backend, Opened, Opening
from worker.model.opening import open_session
from worker.model.plain import PlainSession
from worker.model.providers import provider_options
from worker.model.signature import TensorSpec


class Cpu(Backend):
    """One session for all threads; each run uses the thread that asks for it."""

    name = "cpu"

    def open(self, opening: Opening) -> Opened:
        return _OpenedOnCpu(opening)

    def runs_at_once(self, threads: int) -> int:
        return max(1, threads)


class _OpenedOnCpu:
    """A session that keeps memory layouts if there is an end to them.

    If the runtime knows the memory layout of a batch size, a run takes its memory in one piece. Piece by piece, two
    threads hinder each other: a frame through a SqueezeNet takes 6.9 ms of CPU alone, beside another 8.6 singly and 8.0
    in batches of four; with layouts it takes 6.9 (medians of seven processes, onnxruntime 1.31.1). The runtime keeps a
    layout of some hundred bytes for every set of input shapes: one per batch size, or one per picture ever seen if
    items have any shape.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._session = self._open(layouts=True)
        if not opening.one_shape and any(
            not isinstance(length, int) for value in self._session.get_inputs() for length in value.shape[1:]
        ):
            self._session = None  # before the next one takes as much memory
            self._session = self._open(layouts=False)

    def _open(self, *, layouts: bool) -> Any:
        opening = self._opening
        options = provider_options(opening.providers)
        return open_session(opening.runtime, opening.path, opening.providers, options, layouts=layouts)

    @property
    def described(self) -> Any:
        return self._session

    def bind(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> PlainSession:
        fixed = self._opening.one_shape or all(spec.fixed for spec in inputs)
        session, self._session = self._session, None
        shrinks = not fixed and not self._opening.few_shapes
        return PlainSession(session, self._opening.runtime, outputs, shrinks=shrinks)

    def close(self) -> None:
        self._session = None
