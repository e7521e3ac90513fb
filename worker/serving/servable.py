"""What answers a record: a decoder, a model and an encoder made for one another, with the figures measured for them.

A servable is the unit of version: a batch pins one from admission to its answers. It does not change once it is warm; what
its runs teach (how many items fit its memory, whether it is still healthy) lies in objects of its own beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from worker.batch import Array, Batch, Feed, Headers, Lane, Run
from worker.encode import Encoder
from worker.model.signature import Signature
from worker.records import Decoder
from worker.records.memory import WORST_FACTOR
from worker.serving.cache import Cache
from worker.serving.checkup import Checkup
from worker.serving.gauge import Gauge
from worker.serving.offload import Offload
from worker.serving.ragged import Ragged
from worker.serving.run_limit import RunLimit


class SickServable(Exception):
    """A model no longer gives its known output: ends the batch, and nothing of it is any record's fault."""


class Model(Protocol):
    """A warm model; see :mod:`worker.model`. Safe to use from several threads at once."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def provider(self) -> str:
        """``cpu``, ``cuda`` or ``tensorrt``."""

    @property
    def signature(self) -> Signature: ...

    @property
    def fixed_batch(self) -> int | None:
        """The first dimension B > 1 that every input is fixed to; else None."""

    @property
    def needs_canary(self) -> bool:
        """No item with a known answer is at hand yet."""

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]: ...

    def run_in_order(self, feeds: dict[str, Array], counts: Sequence[int]) -> dict[str, Array]:
        """Of a recurrent model: the items of each record one after the other."""

    def sickness(self) -> str | None:
        """Run the item with the known answer; what is wrong with its answer, or None. Never raises."""

    def interrupt(self) -> None:
        """Make the runs in progress fail soon."""

    def beside_others(self, feeds: dict[str, Array]) -> str:
        """Why this item may not share a run with others, although made-up ones may; empty if it may."""

    def adopt_canary(self, feeds: dict[str, Array], outputs: dict[str, Array]) -> None: ...

    def close(self) -> None:
        """Give back sessions and device memory, after the runs in progress."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array for feeds; where a GPU runs the model, in page-locked memory."""


class Answers(Protocol):
    """The engine's steps, for a servable that runs them itself: see :class:`worker.serving.engine.Engine`."""

    def shards(self, batch: Batch) -> list[tuple[int, int]]: ...

    def decode(self, batch: Batch, start: int, stop: int) -> None: ...

    def answers(self, batch: Batch, servable: Servable) -> list[Run]:
        """The answers of one model to the decoded rows; what is wrong with a row is in ``batch.outcomes.rejected``.

        Raises:
            SickServable: the model is sick.
        """

    def now_ns(self) -> int:
        """Monotonic clock."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Servable:
    """See the module, and :class:`worker.batch.Servable` for what the loop knows of it."""

    decoder: Decoder
    model: Model
    encoder: Encoder
    max_size: int
    """Most items in one model run."""
    batch_records: int
    """Most records in one batch: ``max_size``, or more where several runs are decoded and encoded as one."""
    slab_records: int
    """Most records in one slab."""
    lane: Lane
    threads: int
    """Threads of the pool that it was measured with; 0 = it runs on the loop's own thread."""
    ragged: Ragged | None = None
    """How records of unlike length share a run; None = only those of one shape do."""
    offload: Offload | None = None
    """Where large results go."""
    gauge: Gauge | None = None
    """What measures some of the records; None where nobody compares them with a profile."""
    cache: Cache | None = None
    """Answers to payloads that came before; None where the pipeline has no cache."""
    reading: object = None
    """What decides how records are decoded beside the model's inputs, to be compared with that of another version; None: not known."""
    run_limit: RunLimit = field(init=False)
    checkup: Checkup = field(init=False, default_factory=Checkup)
    item_nbytes: int = field(init=False)

    def __post_init__(self) -> None:
        inputs, outputs = self.model.signature.inputs, self.model.signature.outputs
        # Where shapes are not fixed, an item's own array exists beside the batch that is made of it. An output exists
        # beside the body that is made of it.
        copies = 1 if self.decoder.fixed else 2
        nbytes = copies * sum(spec.item_nbytes for spec in inputs) + 2 * sum(s.item_nbytes for s in outputs)
        object.__setattr__(self, "item_nbytes", nbytes)
        object.__setattr__(self, "run_limit", RunLimit(self.label, self.max_size))

    @property
    def model_name(self) -> str:
        return self.model.name

    @property
    def model_version(self) -> str:
        return self.model.version

    @property
    def label(self) -> str:
        """``name@version``."""
        return f"{self.model.name}@{self.model.version}"

    @property
    def run_items(self) -> int:
        return self.run_limit.items

    @property
    def reserve_bytes(self) -> int:
        """Bytes of ``limits.in_flight_bytes`` that its runs need beyond what is charged for records."""
        return 0

    def prepare(self, feed: Feed, rows: int) -> None:
        """Add to the feed of a batch what its decoder shall keep; called before any row is decoded."""

    def answer(self, batch: Batch, engine: Answers) -> None:
        """Fill ``batch.runs`` with the answers to the decoded rows.

        Raises:
            SickServable: a model is sick.
        """
        batch.runs = engine.answers(batch, self)
        self.run_limit.good()

    @property
    def free_bytes(self) -> int:
        return self.decoder.free_bytes

    def cost(self, value: bytes) -> int:
        return self.decoder.cost(value)

    def cost_of_length(self, nbytes: int) -> int:
        """See :class:`worker.batch.Servable`."""
        if nbytes <= self.decoder.free_bytes:
            return 0
        stated = getattr(self.decoder, "cost_of_length", None)
        return int(stated(nbytes)) if stated is not None else WORST_FACTOR * nbytes

    def fields(self, payload: bytes, headers: Headers | None = None) -> Mapping[str, Any] | None:
        if not getattr(self.decoder, "has_fields", False):
            return None
        if getattr(self.decoder, "needs_schemas", False):  # the header may name the schema
            record: Mapping[str, Any] = self.decoder.open_record(payload, headers)  # type: ignore[attr-defined]
            return record
        fields: Mapping[str, Any] = self.decoder.open(payload)  # type: ignore[attr-defined]
        return fields

    def reads_like(self, other: Servable) -> bool:
        """Whether what another version has decoded is what this one would decode."""
        return (
            self.reading is not None
            and self.reading == other.reading
            and self.model.signature.inputs == other.model.signature.inputs
            and self.decoder.fixed == other.decoder.fixed
        )

    def interrupt(self) -> None:
        self.model.interrupt()

    def close(self) -> None:
        """Give everything back: sessions, streams, events, device and page-locked memory. Later runs fail.

        No batch may be pinned to it any more. A second call does nothing.
        """
        self.model.close()
