"""A runtime session that takes arrays of the processor's memory and gives such arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from worker.batch import Array
from worker.model.backend import Closed, Tensors
from worker.model.memory import KeptMemory
from worker.model.signature import TensorSpec


def _table(maps: Any, spec: TensorSpec) -> Array:
    """A sequence of maps as an array: one row per map, one column per key.

    Raises:
        ValueError: the maps have other keys.
    """
    if maps and [str(key) for key in maps[0]] != [*spec.keys]:
        raise ValueError(f"output {spec.name} has the keys {[*maps[0]][:8]}, expected {[*spec.keys][:8]}")
    return np.array([[*one.values()] for one in maps], spec.dtype).reshape(len(maps), len(spec.keys))


class PlainSession:
    """One session of ONNX Runtime behind ``run``.

    Args:
        session: of the runtime.
        runtime: the onnxruntime module.
        outputs: what a run answers, in this order.
        shrinks: a run of another item shape than the last gives back the memory that nothing uses. Items of many
            shapes leave the runtime's CPU arena at the sum of their peaks otherwise. Not after every run: the memory's
            pages would be made anew each time, 1.5 times the CPU for a SqueezeNet.
        on_close: gives back what the session was opened with.
    """

    lookahead = 0
    ahead = 1

    def __init__(
        self,
        session: Any,
        runtime: Any,
        outputs: Sequence[TensorSpec],
        *,
        shrinks: bool,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._session = session
        self._runtime = runtime
        self._output_names = [spec.name for spec in outputs]
        self._maps = [spec for spec in outputs if spec.keys]
        self._shrinks = shrinks
        self._on_close = on_close
        self._shapes: list[tuple[int, ...]] = []
        """Item shapes of the last run's inputs."""
        self._options, self._shrinking = self._run_options()
        self._memory = KeptMemory()

    def run(self, feeds: Tensors) -> Tensors:
        """See :meth:`worker.model.session.Model.run`."""
        session, options = self._session, self._options  # close() may take the session away meanwhile
        if session is None:
            raise Closed("the model is closed")
        if self._shrinks:
            shapes = [feed.shape[1:] for feed in feeds.values()]
            if shapes != self._shapes:
                options, self._shapes = self._shrinking, shapes
        outputs = session.run(self._output_names, feeds, options)
        answer: Tensors = dict(zip(self._output_names, outputs, strict=True))
        for spec in self._maps:
            answer[spec.name] = _table(answer[spec.name], spec)
        return answer

    def interrupt(self) -> None:
        stopped = self._options, self._shrinking
        self._options, self._shrinking = self._run_options()  # a flag that is set stays set
        for options in stopped:
            options.terminate = True

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self._memory.empty(shape, dtype)

    def warm(self, sizes: Sequence[int], sample: Callable[[int], Tensors], largest: int) -> None:
        for size in sizes:
            with suppress(Exception):  # a record that fails alike says why
                self.run(sample(size))

    def close(self) -> None:
        """Let the runtime's session go; a run in progress keeps it until it ends."""
        self._session = None
        self._memory.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def _run_options(self) -> tuple[Any, Any]:
        """Options of an ordinary run, and of one that gives back the arena's unused memory at its end."""
        options, shrinking = self._runtime.RunOptions(), self._runtime.RunOptions()
        shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        return options, shrinking
