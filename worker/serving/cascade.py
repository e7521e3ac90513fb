"""Several models for one record: a servable made of servables. Pool, lanes, budget and order see the one.

Its decoder is that of the first step, so records are decoded as ever. Its answer runs one step after the other over the whole
batch: :mod:`worker.serving.cascade_run`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worker.batch import Array, Batch, Feed
from worker.model.signature import Signature
from worker.records.paths import Path
from worker.serving.cascade_run import CascadeRun
from worker.serving.condition import Condition
from worker.serving.servable import Answers, Model, Servable
from worker.settings.sections import TurnSettings
from worker.settings.steps import Scope

BOX_BYTES = 1024
"""About what one box takes while later steps look at it: its part of the prediction, parsed."""
BOXES_MAX = 1000
"""Most boxes of one item; custom code could give any number."""
RESERVE_SHARE = 4
"""At most one of so many parts of ``limits.in_flight_bytes`` is kept for the runs of later steps over boxes."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One model of a cascade."""

    name: str
    servable: Servable
    source: str | None
    """The earlier step that it is given something of; None = the record."""
    path: Path | None
    """The field of that step's prediction that is its input; None = crops of its boxes, or the record."""
    over_boxes: bool
    scope: Scope
    """What its items are; see :mod:`worker.settings.steps`."""
    boxes: str | None
    """The member of its predictions that holds boxes, where a later step looks at them."""
    most_boxes: int
    """Most boxes of one prediction that are looked at; one with more is refused."""
    conditions: Sequence[Condition]
    turn: TurnSettings | None
    gate: threading.BoundedSemaphore | None
    """Keeps its runs to its own instances, where the cascade may have more batches in progress."""

    @contextmanager
    def turn_taken(self) -> Iterator[None]:
        """Wait for one of the step's instances."""
        if self.gate is None:
            yield
            return
        with self.gate:
            yield


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Cascade(Servable):
    """See the module. The fields that it has of :class:`Servable` are those of its first step, where nothing else is said.

    Args:
        model: a :class:`CascadeModel`.
        encoder: a :class:`worker.encode.steps.StepsEncoder`.
    """

    steps: Sequence[Step] = field(kw_only=True)
    room: Room = field(kw_only=True)
    keeps_pictures: bool = field(kw_only=True)
    """Whether the decoded picture of a record stays until the record is answered."""

    def __post_init__(self) -> None:
        # dataclasses with slots have another class than the one that super() would name here
        nbytes = sum(step.servable.item_nbytes for step in self.steps if not step.scope)
        nbytes += sum(step.most_boxes * BOX_BYTES for step in self.steps if step.boxes is not None)
        object.__setattr__(self, "item_nbytes", nbytes)
        object.__setattr__(self, "run_limit", self.steps[0].servable.run_limit)

    @property
    def reserve_bytes(self) -> int:
        """See :class:`Servable`."""
        return self.room.nbytes

    def prepare(self, feed: Feed, rows: int) -> None:
        """See :class:`Servable`."""
        if self.keeps_pictures:
            feed.opened = [{} for _ in range(rows)]

    def answer(self, batch: Batch, engine: Answers) -> None:
        """See :class:`Servable`."""
        CascadeRun(self, batch, engine).run()


class Room:
    """The memory of the runs of later steps: a part for each of the runs at once, and one for a single large item.

    Args:
        nbytes: all of it.
        runs: most batches of the cascade in progress at once.
    """

    def __init__(self, nbytes: int, runs: int) -> None:
        self.nbytes = nbytes
        self.largest = nbytes // 2
        """Bytes of the largest item; a larger one is refused."""
        self.each = max(1, self.largest // runs)
        """Bytes of the items of one run."""
        self.alone = threading.Lock()
        """Held while an item that takes more than ``each`` is worked on."""


class CascadeModel:
    """The models of a cascade as one: its name is the pipeline's, its version stands for all of theirs.

    What is asked of the model that a batch's records are decoded for, the first step answers.
    """

    needs_canary = False

    def __init__(self, name: str, steps: Sequence[tuple[str, Model]]) -> None:
        self.name = name
        self.steps = {step: f"{model.name}@{model.version}" for step, model in steps}
        """Per step ``name@version`` of its model."""
        text = "\n".join(f"{step}={label}" for step, label in self.steps.items())
        self.version = hashlib.sha256(text.encode()).hexdigest()[:8]
        self._models = [model for _, model in steps]
        self._names = [step for step, _ in steps]
        self._first = self._models[0]

    @property
    def provider(self) -> str:
        """``cpu`` if all are on it, else that of the first one that is not."""
        return next((m.provider for m in self._models if m.provider != "cpu"), "cpu")

    @property
    def signature(self) -> Signature:
        return self._first.signature

    @property
    def fixed_batch(self) -> int | None:
        return self._first.fixed_batch

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        return self._first.run(feeds)

    def run_in_order(self, feeds: dict[str, Array], counts: Sequence[int]) -> dict[str, Array]:
        return self._first.run_in_order(feeds, counts)

    def sickness(self) -> str | None:
        """What is wrong with the first sick one; None if all are well."""
        for name, model in zip(self._names, self._models, strict=True):
            if (why := model.sickness()) is not None:
                return f"step {name}: {why}"
        return None

    def interrupt(self) -> None:
        for model in self._models:
            model.interrupt()

    def beside_others(self, feeds: dict[str, Array]) -> str:
        return self._first.beside_others(feeds)

    def adopt_canary(self, feeds: dict[str, Array], outputs: dict[str, Array]) -> None:
        """The first step's model has a canary of its own."""

    def close(self) -> None:
        for model in self._models:
            model.close()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return self._first.empty(shape, dtype)
