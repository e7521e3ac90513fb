"""The values that travel: columns, not record objects, because per-record Python work is what costs.

A *slab* is what one take from Kafka produced: per partition a contiguous run of records. It is split into
*batches* (one route, one servable, at most ``batch_records`` records each); the engine fills a batch's feed, runs and
outcomes. The protocols say what travels with a batch and is made elsewhere: its route, its servable, its slab.

This file is long because values that refer to one another are explained in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from worker import native
from worker.errors import Postponed, Rejection

Headers = list[tuple[str, bytes | None]]
Array = NDArray[Any]
T = TypeVar("T")

CONTENT_LENGTH = "inference-header-content-length"
"""Record header of a binary Open Inference Protocol body: the length of its JSON part in ASCII decimal."""

PAYLOAD_HEADERS = frozenset({"content-encoding", "content-type", "streaminfer.encryption"})
"""Names (lower case) of the headers that may say that a value is wrapped, or a structured event."""

RENAMED_HEADERS = "streaminfer.headers.renamed"
"""Name of a header that the source puts before those of a record whose header names are not all UTF-8. It counts only
as this very object (compare with ``is``): anyone can send a header of the same name."""

LENT_OFTEN = "streaminfer.deliveries"
"""Header that a source puts first where a record of a share group was lent too often; its value is how often."""
COUNTED = 1 << 62
"""Positions from here on number the records of a share group as they come: their offsets are in no order."""
UNREAD_RECORD = "streaminfer.record.unread"
"""Name of the only header of a record that cannot be taken: fetching it ends the process. It has no key and no value.
Like the one above it counts only as this very object."""

SKIPPED_RECORD = "streaminfer.record.skipped"
"""Name of a header before those of a record that ``input.keep`` leaves out, where the position needs a record to move.
Like the ones above it counts only as this very object."""

STAGES = ("broker", "queue", "decode", "wait", "infer", "encode")
"""Stages of one result in order; their sum is ``total`` (contract section 3)."""
FETCH = "fetch"
"""A further stage, behind ``queue``, of records for which something was asked outside (contract section 7)."""


class Partition(NamedTuple):
    """One partition of one topic; the unit of order, of epochs and of commits."""

    topic: str
    number: int


@dataclass(slots=True)
class Span:
    """Rows ``start..stop`` of a slab: consecutive records of one partition, all of one epoch."""

    partition: Partition
    start: int
    stop: int
    next_offset: int
    """What to commit once these rows and all before them are done: last offset + 1 (offsets have gaps)."""
    epoch: int = 0


def pick(column: list[T], rows: Sequence[int]) -> list[T]:
    """These rows of a column; the very same list when ``rows`` is everything."""
    if len(rows) == len(column):
        return column
    if isinstance(rows, range):
        return column[rows.start : rows.stop : rows.step]
    if len(rows) > 1:
        return list(itemgetter(*rows)(column))  # half the time of a comprehension
    return [column[row] for row in rows]


def total_bytes(column: Sequence[bytes | None]) -> int:
    """Length of all values together; None has none."""
    if native.records is not None:
        return int(native.records.extent(column if isinstance(column, list) else [*column])[0])
    return sum(_lengths(column))


def largest_bytes(column: Sequence[bytes | None]) -> int:
    """Length of the largest value; 0 where there is none."""
    if native.records is not None:
        return int(native.records.extent(column if isinstance(column, list) else [*column])[1])
    return max(_lengths(column), default=0)


def _lengths(column: Sequence[bytes | None]) -> Iterable[int]:
    missing = column.count(None)
    if missing == len(column):
        return ()
    # a filter costs as much again as the lengths
    return map(len, filter(None, column) if missing else column)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Fetched:
    """What became of a record that may have needed something from outside."""

    taken_ns: int
    """Monotonic clock when the record was taken from Kafka."""
    fetch_us: int = 0
    """Microseconds for which it waited for the outside."""
    payload: bytes | None = None
    """What the decoder reads in place of the record's value; None: the value itself."""
    rejection: Rejection | None = None
    """Why it could not be had."""


@dataclass(slots=True)
class Columns:
    """Records as aligned columns.

    ``values`` holds None for a tombstone, ``headers`` None where a record has none. ``timestamps_ms`` is the
    broker's record timestamp in Unix milliseconds (0 when unknown).
    """

    values: list[bytes | None] = field(default_factory=list)
    keys: list[bytes | None] = field(default_factory=list)
    headers: list[Headers | None] = field(default_factory=list)
    timestamps_ms: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    partitions: list[Partition] = field(default_factory=list)
    fetched: list[Fetched] | None = None
    """Where records may need something from outside."""

    def __len__(self) -> int:
        return len(self.values)

    def extend(self, other: Columns) -> None:
        self.values += other.values
        self.keys += other.keys
        self.headers += other.headers
        self.timestamps_ms += other.timestamps_ms
        self.offsets += other.offsets
        self.partitions += other.partitions
        if self.fetched is not None:
            self.fetched += other.fetched or ()

    def select(self, rows: Sequence[int]) -> Columns:
        """These rows as columns of their own; the very same lists when ``rows`` is everything."""
        if len(rows) == len(self.values):
            return self
        if len(rows) > 1 and not isinstance(rows, range):
            its = itemgetter(*rows)
            return Columns(
                list(its(self.values)),
                list(its(self.keys)),
                list(its(self.headers)),
                list(its(self.timestamps_ms)),
                list(its(self.offsets)),
                list(its(self.partitions)),
                list(its(self.fetched)) if self.fetched is not None else None,
            )
        return Columns(
            pick(self.values, rows),
            pick(self.keys, rows),
            pick(self.headers, rows),
            pick(self.timestamps_ms, rows),
            pick(self.offsets, rows),
            pick(self.partitions, rows),
            pick(self.fetched, rows) if self.fetched is not None else None,
        )


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a route's answers go."""

    topic: str
    partition: Literal["key", "input"] = "key"
    """``output.partition``: chosen by the record's key, or the input partition's number."""
    errors: bool = False
    """``output.errors``: a rejected record also gets an error body on this topic."""


@dataclass(frozen=True, slots=True, eq=False)
class Lane:
    """Where model runs happen: processor slots, or one stream of one device. Servables that share a lane share the object."""

    name: str
    runs: int = 1
    """Most runs in progress at once."""
    ahead: int = 1
    """Batches that are decoded, or being decoded, beyond those that run."""
    priority: int = 5
    """0..9: a thread of the pool that becomes free works for the lane with the highest one first."""


class Servable(Protocol):
    """What answers a record, as far as the loop knows it: see :mod:`worker.serving.servable`."""

    @property
    def model_name(self) -> str: ...

    @property
    def model_version(self) -> str: ...

    @property
    def label(self) -> str:
        """``name@version`` of its model."""

    @property
    def batch_records(self) -> int:
        """Most records in one batch."""

    @property
    def slab_records(self) -> int:
        """Most records in one slab."""

    @property
    def item_nbytes(self) -> int:
        """Bytes that the tensors of one item take while it is worked on."""

    @property
    def run_items(self) -> int:
        """Most items in one model run now; fewer than configured after the model was out of memory."""

    @property
    def lane(self) -> Lane: ...

    @property
    def free_bytes(self) -> int:
        """Records up to this length take no scratch memory; ``cost`` is asked for longer ones only."""

    def cost_of_length(self, nbytes: int) -> int:
        """About the ``cost`` of a record of which only the length is known, because it is wrapped."""

    def cost(self, value: bytes) -> int:
        """Bytes of memory that reading this record takes beside its own bytes and one item's tensors.

        Raises:
            Reject: the record's header already says that it cannot be decoded.
        """

    def fields(self, payload: bytes, headers: Headers | None = None) -> Mapping[str, Any] | None:
        """The named fields of a record, where its format has such; it was decoded without a fault before."""

    def interrupt(self) -> None:
        """Make the model runs in progress fail soon."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a batch that is finished leaves behind of one of its runs."""

    run: Run
    fragments: Sequence[Any]
    """Per row what the encoder made of the model's answer."""
    outputs: dict[str, Array]
    """Empty where the answers came from memory."""
    rows: Sequence[int]
    """The rows of the batch that the loop submitted, or of the shadow's."""


@dataclass(slots=True)
class Kept:
    """What a batch that is finished leaves behind for a comparison with another version's answers."""

    answered: list[Answered] = field(default_factory=list)
    feed: Feed | None = None
    """As it was before its tensors were let go; None where a part of it was not decoded."""
    servable: Servable | None = None
    """Who decoded it."""


class Shadow(Protocol):
    """A candidate that answers what the stable servable has answered: see :mod:`worker.serving.shadow`."""

    def reserve(self, batch: Batch) -> bool:
        """Keep a place for a batch that goes to the stable servable; False: none is free, and it passes by."""

    def pass_by(self, batch: Batch) -> None:
        """The candidate does not get this batch."""

    def release(self) -> None:
        """Nothing comes of a place that was kept."""

    def start(self, twin: Batch, kept: Kept) -> None:
        """Answer a batch for which a place was kept.

        Args:
            twin: its records, for the candidate. kept: what it left behind.
        """

    def back(self) -> Iterable[tuple[Batch, str | None]]:
        """The batches that are done, each with why the candidate is sick, if it is."""


class Trial(Protocol):
    """A candidate beside the stable servable of a route: see :mod:`worker.serving.trial`."""

    @property
    def candidate(self) -> Servable: ...

    @property
    def shadow(self) -> Shadow | None:
        """Who answers what the stable servable has answered; None where the candidate answers rows of its own."""

    @property
    def doubt(self) -> str | None:
        """Why no run of the candidate is worth another try; for any thread."""

    def overdue(self) -> None:
        """A batch of the candidate is past its time-out; for any thread."""

    def rows(self, columns: Columns) -> Sequence[int]:
        """The rows that the candidate answers in place of the stable servable, in order."""

    def control(self) -> bool:
        """Whether a batch of the stable servable should be as large as the candidate's now, to be compared with it."""

    def returned(self, batch: Batch) -> None:
        """A batch is back, answered by whomever it pins."""


class Envelope(Protocol):
    """What every answer of a route carries whatever the model says: see :mod:`worker.serving.envelope`."""

    @property
    def completes(self) -> bool:
        """Whether results are wrapped, or made events, before they go out."""

    @property
    def copies_trace(self) -> bool:
        """Whether a result carries the trace context of its record."""

    def complete(self, batch: Batch, rows: Sequence[int]) -> None:
        """Do that for the finished results of these rows."""

    def error(self, columns: Columns, row: int, rejection: Rejection) -> tuple[bytes, Headers | None]:
        """What a rejected record puts on the output topic where ``output.errors`` is on: body and headers.

        Raises:
            Reject: custom code cannot wrap it; nothing goes out then.
        """

    def expired(
        self, columns: Columns, row: int, message: str, servable: Servable
    ) -> tuple[bytes, Headers | None]:
        """What an expired record puts on the output topic where ``limits.expired`` is ``publish``: body and headers.

        Raises:
            Reject: custom code cannot wrap it.
        """

    def headers(self, columns: Columns, row: int) -> Headers | None:
        """Headers of a tombstone that is passed on; None where it has none."""


class Opening(Protocol):
    """From a record's value to the bytes that the input format reads: see :mod:`worker.payload.opening`."""

    @property
    def always(self) -> bool:
        """Every record of the route is wrapped, whatever its headers say."""

    @property
    def hides(self) -> bool:
        """Only what is known of the length inside a value is an upper bound, which may be far off."""

    def applies(self, headers: Headers | None) -> bool:
        """Whether a record with these headers has to be opened."""

    @property
    def secret(self) -> bool:
        """What is inside is encrypted: no message may quote it."""

    def cost(self, value: bytes, headers: Headers | None) -> tuple[int, int, int]:
        """What opening a record needs: (most bytes inside, memory for unwrapping, most memory for parsing an event).

        Raises:
            Reject: the value's own header says that it cannot be opened.
        """

    def is_event(self, headers: Headers) -> bool:
        """Whether the headers say that the value is a structured event."""

    def counted(self, value: bytes, headers: Headers | None) -> Headers | None:
        """The headers as they count: with the attributes of a structured event, where the value is a readable one.

        Raises:
            Reject: the event is broken.
        """


class Route(Protocol):
    """Which records, their limits, and where answers go: see :mod:`worker.serving.route`. Hashed by identity."""

    @property
    def name(self) -> str:
        """The pipeline's key in the configuration; the label of its metrics."""

    @property
    def topics(self) -> frozenset[str]:
        """A topic that a pattern matches is in it, too."""

    @property
    def when(self) -> tuple[str, bytes] | None:
        """Name and value of the header that a record must have; None = any record."""

    @property
    def max_bytes(self) -> int: ...

    @property
    def opening(self) -> Opening | None:
        """How its records are opened; None: they are what they are."""

    @property
    def tombstone(self) -> str:
        """``pass``, ``drop`` or ``reject``."""

    @property
    def priority(self) -> int:
        """0..9; the pipeline with the highest one goes first."""

    @property
    def max_wait_s(self) -> float: ...

    @property
    def keep(self) -> Literal["all", "latest"] | int:
        """``input.keep``; a number n stands for each n-th record of a key."""

    @property
    def destination(self) -> Destination: ...

    @property
    def envelope(self) -> Envelope: ...


class Deadlines(Protocol):
    """The deadlines of a batch's rows: see :mod:`worker.deadlines`."""

    @property
    def passed(self) -> Collection[int]:
        """Rows found to be past their deadline."""

    def look(self, now_ms: float, doing: str) -> None:
        """Find the rows whose deadline has passed.

        Args:
            now_ms: Unix milliseconds. doing: what would be done with the row now, for the message.
        """

    def part(self, rows: Sequence[int]) -> Deadlines | None:
        """Those of some rows, as the rows of a batch of their own; None when none of them has one."""

    def decide(self, batch: Batch) -> None:
        """Give every row that is past its deadline its outcome."""


class SlabRef(Protocol):
    """The slab of a batch, as far as anyone outside the loop may know it."""

    @property
    def columns(self) -> Columns: ...

    @property
    def routes(self) -> Sequence[Route | None]:
        """The route of each row; None where no route takes the record."""


@dataclass(slots=True)
class Request:
    """What an Open Inference Protocol request asks of its answer."""

    id: str | None = None
    outputs: list[str] | None = None
    """Names and order of the outputs wanted; None = all of the model's."""
    binary: bool = False
    """``binary_data_output`` of the request: every output binary unless it says otherwise."""
    binary_outputs: dict[str, bool] = field(default_factory=dict)
    """Per output ``parameters.binary_data``, where given."""


@dataclass(slots=True)
class Item:
    """The decoded tensors of one record where its shape is not known beforehand.

    ``arrays`` have the model's full rank, the batch dimension included; ``count`` is how many items the record
    holds (the first dimension of a batchable model's request, else 1).
    """

    arrays: dict[str, Array]
    count: int = 1
    single: bool = True
    """False when the record itself had a batch dimension: a JSON result then has ``predictions``."""
    request: Request | None = None
    marks: Mapping[str, Array] | None = None
    """Where the items are *windows* of one record: name -> one float64 per item, such as ``start_s``. Each prediction
    carries its own. The items are then independent of one another, and they may run in parts."""


@dataclass(frozen=True, slots=True)
class Padding:
    """How items of one model input are made equally long, so that records of unlike length share a run."""

    axis: int
    """The axis of the item that is padded; 0 is the first one behind the batch dimension."""
    value: float = 0
    """What stands in the added positions."""
    multiple: int = 1
    """Lengths are rounded up to a multiple of this, so that a model meets fewer shapes."""
    longest: int | None = None
    """Rounding up goes no further than this, because the model takes no longer items; None = no such limit."""
    before: bool = False
    """The added positions come before the item's own, not behind them."""
    group: str = ""
    """Inputs of one group have the same length in each record, as the ids and the mask of a text have."""
    positions: int | None = None
    """Most positions (items x padded length) in one run, unless a record alone has more; None = no such limit."""


@dataclass(slots=True)
class Feed:
    """The input side of one batch, filled by the decoder.

    Either ``arrays`` (every shape known: name -> (rows, *item), C order, a decoder writes ``arrays[name][row]``)
    or ``items`` (one :class:`Item` per row). Rows that cannot be decoded go to ``rejected``.
    """

    arrays: dict[str, Array] | None
    items: list[Item | None]
    contexts: list[Any]
    """Per row what postprocessing needs to know of the input (an image's geometry); None elsewhere."""
    rejected: dict[int, Rejection] = field(default_factory=dict)
    postponed: dict[int, Postponed] = field(default_factory=dict)
    """Rows that custom code wants tried again."""
    truncated: set[int] = field(default_factory=set)
    """Rows whose text was longer than the model may be given; see the metric ``truncated_total``."""
    opened: list[dict[Any, Any]] | None = None
    """Per row what features have read of the record, such as a decoded picture, where several steps look at one record."""


@dataclass(frozen=True, slots=True)
class Aside:
    """A result that must be written to a store before the batch goes back."""

    what: str
    """Its URL, for people."""
    place: str
    """The store, for people."""
    nbytes: int
    put: Callable[[], None]
    """Write it, on a thread that may block; raises :class:`worker.outside.Away`."""


@dataclass(slots=True)
class Outcomes:
    """One outcome per row of a batch: a body to publish, a rejection, or nothing at all."""

    bodies: list[bytes | None]
    """Value for the output topic; None (outside ``rejected`` and ``dropped``) is a tombstone passed on."""
    headers: list[Headers | None] | None = None
    """Output headers per row; None when no row of the batch has any."""
    rejected: dict[int, Rejection] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)

    @classmethod
    def empty(cls, rows: int) -> Outcomes:
        return cls([None] * rows)

    def put(self, rows: Sequence[int], bodies: Sequence[bytes]) -> None:
        """Give each of these rows its body."""
        if isinstance(rows, range):
            self.bodies[rows.start : rows.stop] = bodies
            return
        for row, body in zip(rows, bodies, strict=True):
            self.bodies[row] = body


class StepPart(NamedTuple):
    """The part of one step in the answers to a batch."""

    us: int
    """Whole microseconds, what stands around its runs included; those of all steps sum to the stage ``infer``."""
    items: int
    runs: int
    """Model runs."""


@dataclass(slots=True)
class Run:
    """One model run inside a batch: some of its rows, in order, and what the model answered."""

    rows: Sequence[int]
    outputs: dict[str, Array]
    """As the model gave them. Batchable: the first dimension is ``sum(counts)``."""
    counts: Sequence[int] | None = None
    """Items per row; None = one each."""
    alone: bool = False
    """The model is not batchable: this run is one record, the outputs are the model's own, whole."""
    stacked: bool = False
    """With ``alone``: the record has several windows, each was a run. The first dimension of the outputs counts them."""
    started_ns: int = 0
    ended_ns: int = 0
    stages_us: dict[str, int | NDArray[np.int64]] = field(default_factory=dict)
    """Latency by stage in whole microseconds, one number for the run or one per row; with ``total``."""
    sizes: Sequence[int] | None = None
    """Items of each model run that is told here, where several were put together or one was divided; None = one run."""
    fragments: Sequence[Any] | None = None
    """Of a run that did not take place: the prediction of each row, which was in memory. None: the model's outputs tell."""

    predictions: Sequence[bytes] | None = None
    """JSON text per row, of a servable that has made its predictions already because it has several steps."""
    steps: Mapping[str, StepPart] | None = None
    """What each of several steps had to do; None where there is one model."""
    places: Sequence[int] | None = None
    """Of a run in a further try, or in a part: for each row of that batch, its row in the batch that the loop submitted."""

    @property
    def whole(self) -> bool:
        """Whether the outputs are those of one record and have no dimension that counts items."""
        return self.alone and not self.stacked


@dataclass(slots=True)
class Looked:
    """Rows of a batch that are measured, to be compared with a profile: see :mod:`worker.serving.gauge`."""

    rows: Sequence[int]
    """In ascending order."""
    files: dict[int, dict[str, float]] = field(default_factory=dict)
    """By row, figures of what was decoded of its files."""
    lets_go: bool = False
    """What was decoded of a file is kept for nobody else."""
    cost_ns: int = 0
    """Processor time that measuring has taken."""


@dataclass(slots=True)
class Batch:
    """A unit of work for the pool: rows of one slab that one servable answers together."""

    slab: SlabRef | None
    """The slab it belongs to; None for a batch that no loop made."""
    rows: Sequence[int]
    """Which rows of the slab these are."""
    columns: Columns
    route: Route
    servable: Servable
    """Pinned when the batch is made, so that a change of models never falls inside one."""
    taken_ns: int
    """Monotonic clock, in nanoseconds, when the slab's first record was taken."""
    taken_ms: float
    """Unix milliseconds at the same moment: the only clock comparable with the record timestamp."""
    late_us: NDArray[np.int64] | None = None
    """Per row the microseconds between the first take and its own, where the slab grew by several takes."""
    fetch_us: NDArray[np.int64] | None = field(default=None, kw_only=True)
    """Per row the microseconds for which it waited for something outside, where that is a stage."""
    payloads: list[bytes | None] = field(default_factory=list)
    """What decoders read: the very list ``columns.values``, unless a step before the decoder put other bytes here.
    ``columns.values`` stays the original, for dead letters. Given as empty, it is ``columns.values``."""
    headers: list[Headers | None] = field(default_factory=list)
    """What decoders and the envelope read: the very list ``columns.headers``, unless attributes of events count as headers."""
    to_open: set[int] = field(default_factory=set)
    """Rows whose payload is still to be opened: unwrapped, or taken out of an event. A thread takes out those it opens."""
    feed: Feed | None = None
    runs: list[Run] = field(default_factory=list)
    outcomes: Outcomes | None = None
    aside: list[Aside] = field(default_factory=list, kw_only=True)
    """Results that must be written to a store first."""
    sick: str | None = None
    """Why its servable can no longer be trusted; the batch then has no outcomes that may be published."""
    again: Again | None = None
    """Set when the batch is finished but for some rows that must be tried again."""
    origin: Origin | None = None
    """Of a batch that holds rows of another one: to try them again, or a part of them."""
    deadlines: Deadlines | None = None
    """When its rows expire; None when none of them does."""
    keys: list[bytes | None] | None = field(default=None, kw_only=True)
    """Under what the answer of each row is kept; None where none is."""
    parts: Parts | None = field(default=None, kw_only=True)
    """Where the answers of some rows are known: the batches that stand for this one. None: it stands for itself."""
    cache_hits: int = field(default=0, kw_only=True)
    """Rows whose answer was known, or equals that of another row."""
    cache_misses: int = field(default=0, kw_only=True)
    """Rows for which that was looked up in vain."""
    trial: Trial | None = field(default=None, kw_only=True)
    """The trial that ran when the batch was made; None where none did."""
    kept: Kept | None = field(default=None, kw_only=True)
    """To be filled when the batch is finished; None: nobody wants it."""
    looked: Looked | None = field(default=None, kw_only=True)
    """Rows that are measured; None: none of them."""
    items: int = 0
    cost_bytes: int = 0
    """Tensors and decode scratch, held against the budget from admission until the batch is back."""
    decode_started_ns: int = 0
    decode_ended_ns: int = 0
    finished_ns: int = 0

    def __post_init__(self) -> None:
        if not self.payloads:
            self.payloads = self.columns.values
        if not self.headers:
            self.headers = self.columns.headers

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"<Batch {self.route.name}: {len(self)} records, {self.servable.label}>"


@dataclass(slots=True)
class Parts:
    """A batch of which some rows need no run, divided. Both parts belong to it: see :class:`Origin`."""

    known: Batch
    rest: Batch | None
    """None where no row is left."""
    fragments: list[Any]
    """The prediction of each row of ``known``; None: that of another row, which runs with the rest."""
    leaders: dict[int, int]
    """That other row, as a row of ``rest``."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of a further try, or of a part, belong."""

    batch: Batch
    """The batch that the loop submitted: it gets the outcomes, and goes back when no row is left to try."""
    rows: Sequence[int]
    """For each row of the further try, its row in that batch."""
    tries: int
    """How often these rows were tried before."""
    since_ns: int
    """Monotonic clock when the first of the tries ended."""


@dataclass(frozen=True, slots=True)
class Again:
    """The rows of a batch that must be tried again, as a batch of their own."""

    batch: Batch
    due_ns: int
    """Monotonic clock: not before."""
