"""The engine on one batch: grouping, running, and finding the guilty one."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from fakes import FakeClock, FakeRollout, columns_of

from worker.batch import STAGES, Array, Batch, Columns, Feed, Item, Lane, Partition, Run
from worker.errors import Reject, Rejection
from worker.loop.pool import InlinePool, Mailbox
from worker.model.signature import Signature, TensorSpec
from worker.serving.engine import Engine
from worker.serving.run_limit import GOOD_BATCHES
from worker.serving.servable import Servable
from worker.serving.trial import Trial

X = TensorSpec("x", np.dtype(np.float32), "FP32", (None, 1))
Y = TensorSpec("y", np.dtype(np.float32), "FP32", (None, 1))


class Decoder:
    """A value is a number; ``b"2x7"`` is a record of two items that begin at 7, ``b"w3:1"`` one of width 3."""

    shard_rows = 0
    free_bytes = 1 << 62

    def __init__(self, fixed: bool = True) -> None:
        self.fixed = fixed

    def cost(self, value: bytes) -> int:
        return 0

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        for row in range(start, stop):
            text = (payloads[row] or b"").decode()
            if text == "bad":
                feed.rejected[row] = Rejection.of(Reject("not a number"), "decode", self)
            elif feed.arrays is not None:
                feed.arrays["x"][row] = float(text)
            else:
                feed.items[row] = _item(text)


def _item(text: str) -> Item:
    width, _, rest = text.rpartition(":")
    count, _, first = rest.rpartition("x")
    rows = [[float(first) + n] * int(width[1:] or 1) for n in range(int(count or 1))]
    return Item({"x": np.array(rows, np.float32)}, len(rows), single=not count)


class Model:
    """y = 2 x, and everything that can go wrong on the way."""

    name, version, provider = "double", "1", "cpu"

    def __init__(self, batchable: bool = True, fixed_batch: int | None = None) -> None:
        self.signature = Signature((X,), (Y,), batchable)
        self.fixed_batch = fixed_batch
        self.needs_canary = False
        self.healthy = True
        self.poison: float | None = None
        self.rows_max = 1_000
        self.no_memory = "Failed to allocate memory for requested buffer"
        self.answer: Callable[[Array], Array] = lambda x: x[:, :1] * 2
        self.asked: list[list[float]] = []
        self.adopted: list[dict[str, Array]] = []
        self.canaries = 0
        self.failing_canaries = 0
        self.on_canary: Callable[[], None] = lambda: None

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        x = feeds["x"]
        self.asked.append(x[:, 0].tolist())
        if len(x) > self.rows_max:
            raise RuntimeError(self.no_memory)
        if self.poison is not None and self.poison in x:
            raise RuntimeError("poisoned")
        return {"y": self.answer(x)}

    def sickness(self) -> str | None:
        self.canaries += 1
        self.on_canary()
        self.failing_canaries -= 1
        return None if self.healthy and self.failing_canaries < 0 else "output y is not finite"

    def close(self) -> None: ...

    def interrupt(self) -> None: ...

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def adopt_canary(self, feeds: dict[str, Array], outputs: dict[str, Array]) -> None:
        self.adopted.append(feeds)
        self.needs_canary = False


class Encoder:
    """The answers of a record's items, as text."""

    reserved, names_source = frozenset[str](), False

    def predict(self, batch: Batch, run: Run) -> list[bytes]:
        texts, start = [], 0
        for count in run.counts or [1] * len(run.rows):
            texts.append(repr(run.outputs["y"][start : start + count].ravel().tolist()).encode())
            start += count
        return texts

    def bodies(self, batch: Batch, run: Run, fragments: Sequence[bytes]) -> None:
        assert batch.outcomes is not None
        assert "total" in run.stages_us, "the stages are stamped between the two steps"
        batch.outcomes.put(run.rows, fragments)


def servable(model: Model, fixed: bool = True, max_size: int = 64) -> Servable:
    return Servable(
        Decoder(fixed),
        model,
        Encoder(),
        max_size=max_size,
        batch_records=max_size,
        slab_records=max_size,
        lane=Lane("double"),
        threads=1,
    )


def batch_for(servable: Servable, columns: Columns, taken_ns: int = 0, late_us: Array | None = None) -> Batch:
    return Batch(
        None, range(len(columns)), columns, FakeRollout().route, servable, taken_ns, 1_000_000.0, late_us
    )


def process(
    servable: Servable, *values: str, engine: Engine | None = None, trial: Trial | None = None
) -> Batch:
    """One batch through all three steps."""
    columns = columns_of(Partition("in", 0), range(len(values)), [value.encode() for value in values])
    batch = batch_for(servable, columns)
    batch.trial = trial
    engine = engine or Engine()
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    engine.infer(batch)
    engine.finish(batch)
    return batch


def bodies(batch: Batch) -> list[str | None]:
    assert batch.outcomes is not None
    return [body.decode() if body is not None else None for body in batch.outcomes.bodies]


def rejections(batch: Batch) -> dict[int, tuple[str, str]]:
    assert batch.outcomes is not None
    return {row: (why.reason, why.stage) for row, why in batch.outcomes.rejected.items()}


def test_a_batch_is_one_run() -> None:
    """The records of a batch share one model run, and every record gets its own answer."""
    model = Model()
    batch = process(servable(model), "1", "2", "3")
    assert bodies(batch) == ["[2.0]", "[4.0]", "[6.0]"]
    assert model.asked == [[1, 2, 3]]
    assert (batch.items, len(batch.runs)) == (3, 1)


def test_a_record_that_cannot_be_decoded_is_left_out_of_the_run() -> None:
    """A record that cannot be decoded is rejected with its own reason, and the model never sees it."""
    model = Model()
    batch = process(servable(model), "1", "bad", "3")
    assert bodies(batch) == ["[2.0]", None, "[6.0]"]
    assert rejections(batch) == {1: ("invalid", "decode")}
    assert model.asked == [[1, 3]]


def test_nothing_runs_when_nothing_could_be_decoded() -> None:
    """A batch without any decoded record does not run the model."""
    model = Model()
    assert set(rejections(process(servable(model), "bad", "bad"))) == {0, 1}
    assert model.asked == []


def test_a_model_that_is_not_batchable_runs_every_record_alone() -> None:
    """A model that is not batchable runs once for each record, and its output is kept whole."""
    model = Model(batchable=False)
    batch = process(servable(model), "1", "2")
    assert model.asked == [[1], [2]]
    assert all(run.alone for run in batch.runs)
    assert bodies(batch) == ["[2.0]", "[4.0]"]


def test_a_fixed_batch_is_padded_and_cut() -> None:
    """A model of fixed batch size gets a padded batch, and the padding is cut from the answer."""
    model = Model(batchable=False, fixed_batch=4)
    batch = process(servable(model), "5")
    assert model.asked == [[5, 0, 0, 0]]
    assert bodies(batch) == ["[10.0]"]


def test_records_of_several_items_share_runs_up_to_the_limit() -> None:
    """Runs hold whole records in order and at most `max_size` items; a record with more items runs alone."""
    model = Model()
    batch = process(servable(model, fixed=False, max_size=4), "2x10", "1", "5x20", "3x30")
    assert model.asked == [[10, 11, 1], [20, 21, 22, 23, 24], [30, 31, 32]]
    assert bodies(batch) == ["[20.0, 22.0]", "[2.0]", "[40.0, 42.0, 44.0, 46.0, 48.0]", "[60.0, 62.0, 64.0]"]
    assert batch.items == 11


def test_records_of_different_shapes_do_not_share_a_run() -> None:
    """Records of different item shapes go into different runs, and every record gets its own answer."""
    model = Model()
    batch = process(servable(model, fixed=False), "w2:1", "w3:2", "w2:3")
    assert sorted(model.asked) == [[1, 3], [2]]
    assert bodies(batch) == ["[2.0]", "[4.0]", "[6.0]"]


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("guilty", [0, 31, 63])
def test_the_record_that_makes_the_model_fail_is_found(fixed: bool, guilty: int) -> None:
    """One guilty record of 64 is rejected with the error of the model; 63 are answered, in a logarithmic number of runs."""
    model = Model()
    model.poison = float(guilty)
    batch = process(servable(model, fixed), *map(str, range(64)))
    assert rejections(batch) == {guilty: ("model_error", "infer")}
    assert bodies(batch) == [f"[{2.0 * n}]" if n != guilty else None for n in range(64)]
    assert len(model.asked) <= 2 * 6 + 1


def test_a_sick_model_blames_nobody() -> None:
    """When the warm-up input fails too, the batch says that its model is sick, and no record is rejected or answered."""
    model = Model()
    model.poison, model.healthy = 1.0, False
    batch = process(servable(model), "1", "2")
    assert batch.sick is not None
    assert "output y is not finite (first error: poisoned)" in batch.sick
    assert rejections(batch) == {}
    assert bodies(batch) == [None, None]


def test_a_model_that_goes_wrong_without_an_error_is_noticed_within_a_minute() -> None:
    """The canary also runs by the clock: a batch whose canary gives another answer is not published."""
    model, clock = Model(), FakeClock()
    double, engine = servable(model), Engine(clock)
    assert process(double, "1", engine=engine).sick is None
    model.healthy, model.answer = False, lambda x: 0 * x
    clock.advance(59)
    assert process(double, "1", engine=engine).sick is None
    clock.advance(1)
    batch = process(double, "1", engine=engine)
    assert batch.sick is not None
    assert bodies(batch) == [None]


def test_a_checkup_comes_once_a_minute() -> None:
    """However many batches there are, the canary of a quick model runs once in sixty seconds."""
    model, clock = Model(), FakeClock()
    double, engine = servable(model), Engine(clock)
    for _ in range(600):
        clock.advance(0.5)
        process(double, "1", engine=engine)
    assert model.canaries == 4


def test_a_slow_canary_comes_more_seldom() -> None:
    """A canary that takes 100 ms runs every 100 s: checkups take at most a thousandth of the time."""
    model, clock = Model(), FakeClock()
    double, engine = servable(model), Engine(clock)
    model.on_canary = lambda: clock.advance(0.1)
    for _ in range(661):
        clock.advance(1)
        process(double, "1", engine=engine)
    assert model.canaries == 7


def test_a_checkup_that_was_interrupted_is_tried_once_more() -> None:
    """A canary that fails once and then gives its known answer is no sign of a sick model."""
    model, clock = Model(), FakeClock()
    double, engine = servable(model), Engine(clock)
    process(double, "1", engine=engine)
    model.failing_canaries = 1
    clock.advance(60)
    assert process(double, "1", engine=engine).sick is None
    assert model.canaries == 2


@pytest.mark.parametrize(
    "words",
    [
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Sub node. Name:'' Status Message: "
        "bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 77070336",
        "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Conv node. Status Message: "
        "bfc_arena.cc:360 Available memory of 1987584 is smaller than requested bytes of 411041792",
        "CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);",
        "cuMemHostAlloc failed: CUDA_ERROR_OUT_OF_MEMORY (2)",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0",
        "std::bad_alloc",
    ],
)
def test_out_of_memory_is_told_by_its_words(words: str) -> None:
    """The out-of-memory messages of ONNX Runtime, CUDA and its libraries halve the batch, and no record is rejected."""
    model = Model()
    model.rows_max, model.no_memory = 4, words
    double = servable(model)
    batch = process(double, *map(str, range(8)))
    assert rejections(batch) == {}
    assert double.run_limit.items == 4


def test_out_of_memory_halves_the_batch() -> None:
    """After a run is out of memory no record is rejected or skipped, and later batches go in runs that fit."""
    model = Model()
    model.rows_max = 5
    double = servable(model, max_size=16)
    values = [str(n) for n in range(50)]
    assert bodies(process(double, *values)) == [f"[{2.0 * n}]" for n in range(50)]
    assert double.run_limit.items == 4
    model.asked.clear()
    process(double, *values)
    assert max(map(len, model.asked)) == 4


def test_the_full_size_is_tried_again_after_many_good_batches() -> None:
    """A model that ran out of memory once runs full batches again later."""
    model = Model()
    model.rows_max = 5
    double = servable(model, max_size=16)
    values = [str(n) for n in range(16)]
    process(double, *values)
    model.rows_max = 1_000
    for _ in range(3 * GOOD_BATCHES):
        batch = process(double, *values)
    assert double.run_limit.items == 16
    assert model.asked[-1] == list(range(16))
    assert bodies(batch) == [f"[{2.0 * n}]" for n in range(16)]


def test_outputs_that_do_not_follow_the_batch_are_the_models_error() -> None:
    """When the outputs do not follow the batch, no record gets the answer of another: each is answered alone, or rejected."""
    model = Model()
    model.answer = lambda x: x[:1]
    assert bodies(process(servable(model), "1", "2", "3")) == ["[1.0]", "[2.0]", "[3.0]"]
    model.answer = lambda x: np.zeros((7, 1), np.float32)
    assert set(rejections(process(servable(model), "1", "2", "3"))) == {0, 1, 2}


def test_the_first_answered_record_becomes_the_canary_where_there_is_none() -> None:
    """Where there is no canary, the first answered record becomes it, exactly as the model got it, and only once."""
    model = Model(batchable=False)
    model.needs_canary = True
    process(servable(model), "7", "8")
    assert [feeds["x"].tolist() for feeds in model.adopted] == [[[7.0]]]


def test_stage_times_add_up() -> None:
    """`total` is the exact sum of the stages; `broker` is never negative, and 0 where the timestamp is not known."""
    columns = columns_of(Partition("in", 0), range(3), [b"1", b"2", b"3"])
    columns.timestamps_ms = [999_000, 1_001_000, 0]
    batch = batch_for(servable(Model()), columns)
    engine = Engine()
    engine.shards(batch)
    engine.decode(batch, 0, 3)
    engine.infer(batch)
    engine.finish(batch)
    (run,) = batch.runs
    stages = {name: np.broadcast_to(us, 3) for name, us in run.stages_us.items()}
    assert stages["broker"].tolist() == [1_000_000, 0, 0]
    assert (sum(stages[name] for name in STAGES) == stages["total"]).all()
    assert all((us >= 0).all() for us in stages.values())


def test_a_record_taken_later_than_its_slab_counts_from_its_own_take() -> None:
    """For a record taken later than its slab, `broker` ends and `queue` begins with its own take; their sum is the time that passed."""
    columns = columns_of(Partition("in", 0), range(3), [b"1", b"bad", b"3"])
    columns.timestamps_ms = [999_990, 999_990, 999_996]
    taken_ns = time.monotonic_ns() - 10_000_000
    late_us = np.array([0, 4_000, 4_000])
    batch = batch_for(servable(Model()), columns, taken_ns, late_us)
    InlinePool(Engine(), Mailbox()).submit(batch)
    (run,) = batch.runs
    stages = {name: np.broadcast_to(us, 2) for name, us in run.stages_us.items()}
    assert stages["broker"].tolist() == [10_000, 8_000]
    assert (stages["queue"] - [0, -4_000]).tolist() == [stages["queue"][0]] * 2
    assert stages["queue"][1] >= 6_000
    assert (sum(stages[name] for name in STAGES) == stages["total"]).all()


def test_a_finished_batch_holds_no_tensors() -> None:
    """A finished batch holds bodies and no tensors."""
    batch = process(servable(Model()), "1")
    assert batch.feed is not None
    assert batch.feed.arrays is None
    assert batch.feed.items == []
    assert all(run.outputs == {} for run in batch.runs)
