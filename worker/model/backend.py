"""What a model can run on. A backend opens the file and knows what is different there from elsewhere.

There is one for each name in ``model.providers``: :class:`worker.model.cpu.Cpu`, :class:`worker.model.gpu.Cuda` and
:class:`worker.model.tensorrt.TensorRt`. Nothing else compares provider names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from worker.batch import Array
from worker.model.signature import TensorSpec

Tensors = dict[str, Array]
"""Tensors by the model's own names."""


class Closed(RuntimeError):
    """The model was closed: it has given back what it ran with."""


class Sessions(Protocol):
    """What runs a model: tensors in, tensors out. Safe to use from several threads."""

    lookahead: int
    """Runs worth handing over beyond ``model.instances``."""
    ahead: int
    """Batches worth decoding beyond those."""

    def run(self, feeds: Tensors) -> Tensors: ...

    def interrupt(self) -> None: ...

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array: ...

    def warm(self, sizes: Sequence[int], sample: Callable[[int], Tensors], largest: int) -> None: ...

    def close(self) -> None:
        """Give everything back, after the runs in progress. A second call does nothing; later runs raise Closed."""
        ...


class Opened(Protocol):
    """A model file that the runtime has opened."""

    @property
    def described(self) -> Any:
        """A runtime session to ask for inputs, outputs and providers."""
        ...

    def bind(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Sessions:
        """Make it ready for runs; called once."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Opening:
    """What a model file is opened with."""

    runtime: Any
    """The onnxruntime module."""
    path: Path
    providers: Sequence[str]
    """``model.providers``."""
    sha256: str
    """Of the model file and its external data."""
    instances: int
    """Runs at once on a GPU."""
    max_size: int
    """Items in the largest batch."""
    one_shape: bool
    """Items will have one shape even if the model takes any."""
    few_shapes: bool = False
    """Items will have few shapes, so that the memory of one run need not be given back before the next."""
    device: int = 0
    """Number of the GPU among those that ``CUDA_VISIBLE_DEVICES`` leaves visible."""


class Backend(ABC):
    """One of the things a model can run on."""

    name: str
    """As in ``model.providers``."""
    tolerance: float = 0.0
    """What two runs of one item may differ by besides the contract's tolerance, as a share of the largest value."""
    plans_each_size = False
    """Whether the first run of a batch size costs far more than the next ones of that size."""

    @abstractmethod
    def open(self, opening: Opening) -> Opened:
        """Open the file.

        Raises:
            StartError: it cannot be loaded, or not on what it is to run on.
        """

    @abstractmethod
    def runs_at_once(self, threads: int) -> int:
        """What ``model.instances: auto`` means for a pool of ``threads`` threads (0 = the loop's own)."""

    def refuses_the_model(self, refusal: str) -> bool:
        """Whether the error of a run says that this backend cannot run the model, whatever the item."""
        return False

    def sizes_to_warm(self, max_size: int) -> list[int]:
        """Batch sizes to run before the first record, in items, the largest first so that memory is claimed once.

        Where each size is planned, these are all powers of two up to ``max_size``.
        """
        if not self.plans_each_size:
            return sorted({1, min(2, max_size), max_size}, reverse=True)
        return sorted({1 << power for power in range(max_size.bit_length())} | {max_size}, reverse=True)
