"""Deadlines after admission: a record that waits in the pool past its deadline is neither decoded nor run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import FakeClock, FakeRollout, columns_of

from worker.batch import Array, Batch, Columns, Feed, Headers, Lane, Partition, Run, Span
from worker.loop.admission import Admission
from worker.loop.budget import Budget
from worker.loop.openslab import OpenSlab
from worker.model.signature import Signature, TensorSpec
from worker.serving.engine import Engine
from worker.serving.servable import Servable

P = Partition("in", 0)
SPEC = TensorSpec("x", np.dtype(np.float32), "FP32", (None, 1))


class Decoder:
    """Remembers which rows it was given."""

    fixed, shard_rows, free_bytes = True, 2, 1 << 62

    def __init__(self) -> None:
        self.rows: list[int] = []

    def cost(self, value: bytes) -> int:
        return 0

    def decode(
        self, payloads: list[bytes | None], columns: Columns, feed: Feed, start: int, stop: int
    ) -> None:
        assert feed.arrays is not None
        self.rows += range(start, stop)
        feed.arrays["x"][start:stop, 0] = range(start, stop)


class Model:
    """Remembers which rows it was run with."""

    name, version, provider, fixed_batch, needs_canary = "m", "1", "cpu", None, False
    signature = Signature((SPEC,), (SPEC,), True)

    def __init__(self) -> None:
        self.rows: list[float] = []

    def run(self, feeds: dict[str, Array]) -> dict[str, Array]:
        self.rows += feeds["x"][:, 0].tolist()
        return {"x": feeds["x"]}

    def canary(self) -> bool:
        return True

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)


class Encoder:
    reserved, names_source = frozenset[str](), False

    def predict(self, batch: Batch, run: Run) -> list[bytes]:
        return [b"%d ok" % row for row in run.rows]

    def bodies(self, batch: Batch, run: Run, fragments: Sequence[bytes]) -> None:
        assert batch.outcomes is not None
        batch.outcomes.put(run.rows, fragments)


class Bench:
    """Five records of these ages in ms, all in one batch, and an engine over a clock."""

    def __init__(
        self, expired: str, max_age_ms: int = 100, ages: Sequence[int] = (0, 10, 20, 30, 40)
    ) -> None:
        self.clock = FakeClock()
        self.engine = Engine(self.clock)
        self.decoder, self.model = Decoder(), Model()
        rollout: Any = FakeRollout()
        rollout.stable = Servable(
            self.decoder,
            self.model,
            Encoder(),
            max_size=8,
            batch_records=8,
            slab_records=8,
            lane=Lane("m"),
            threads=1,
        )
        columns = columns_of(P, range(5))
        now_ms = self.clock.wall_ms()
        columns.timestamps_ms = [int(now_ms) - age for age in ages]
        columns.headers = [[("traceparent", b"%d" % row)] for row in range(5)]
        opened = OpenSlab(Budget(1 << 20).shares[0])
        opened.append(columns, [Span(P, 0, 5, 5)], self.clock(), now_ms)
        admission = Admission([rollout], max_age_ms, expired, 1 << 20)
        slab = opened.close(admission, 1 << 20, now_ms, 8, False)
        assert slab is not None
        (self.batch,) = slab.batches

    def decode(self) -> None:
        for start, stop in self.engine.shards(self.batch):
            self.engine.decode(self.batch, start, stop)

    def finish(self) -> None:
        self.engine.infer(self.batch)
        self.engine.finish(self.batch)

    @property
    def bodies(self) -> list[bytes | None]:
        assert self.batch.outcomes is not None
        return self.batch.outcomes.bodies


def test_a_record_that_expires_in_the_queue_is_not_decoded() -> None:
    """Rows 1 and 3 expire before decode begins: the decoder and the model see the other rows only."""
    bench = Bench("dead_letter", ages=(0, 40, 10, 30, 20))
    bench.clock.advance(0.075)
    bench.decode()
    assert bench.decoder.rows == [0, 2, 4]
    bench.finish()
    assert bench.model.rows == [0, 2, 4]
    assert bench.bodies == [b"0 ok", None, b"2 ok", None, b"4 ok"]
    assert bench.batch.outcomes is not None
    rejected = bench.batch.outcomes.rejected
    assert {row: (why.reason, why.stage) for row, why in rejected.items()} == {
        1: ("expired", "decode"),
        3: ("expired", "decode"),
    }
    assert rejected[1].message == "the record's deadline passed 15 ms before it was decoded"


def test_a_record_that_expires_after_its_decode_is_not_run() -> None:
    """The wait between decode and a free run counts too."""
    bench = Bench("dead_letter")
    bench.decode()
    bench.clock.advance(0.065)
    bench.finish()
    assert bench.decoder.rows == [0, 1, 2, 3, 4]
    assert bench.model.rows == [0, 1, 2, 3]
    assert bench.batch.outcomes is not None
    assert "before it was run" in bench.batch.outcomes.rejected[4].message


@pytest.mark.parametrize(
    ("expired", "body", "headers"),
    [("drop", None, None), ("publish", b"4 expired", [("traceparent", b"4")])],
)
def test_what_becomes_of_it_is_configured(expired: str, body: bytes | None, headers: Headers | None) -> None:
    """`drop` gives no output, `publish` a body that says so, with the headers that a result would have."""
    bench = Bench(expired)
    bench.clock.advance(0.065)
    bench.decode()
    bench.finish()
    outcomes = bench.batch.outcomes
    assert outcomes is not None
    assert outcomes.rejected == {}
    assert outcomes.dropped == ({4} if expired == "drop" else set())
    assert bench.bodies == [b"0 ok", b"1 ok", b"2 ok", b"3 ok", body]
    assert (outcomes.headers or [None] * 5)[4] == headers


def test_a_batch_of_which_everything_has_expired_costs_neither_decode_nor_run() -> None:
    """Every row gets its outcome all the same."""
    bench = Bench("dead_letter")
    bench.clock.advance(1.0)
    bench.decode()
    bench.finish()
    assert (bench.decoder.rows, bench.model.rows) == ([], [])
    assert bench.batch.outcomes is not None
    assert len(bench.batch.outcomes.rejected) == 5


def test_a_batch_without_deadlines_is_not_looked_through() -> None:
    """Records without an age limit or an expiry header cost nothing."""
    bench = Bench("dead_letter", max_age_ms=1 << 40)
    assert bench.batch.deadlines is not None
    columns = columns_of(P, range(2))
    opened = OpenSlab(Budget(1 << 20).shares[0])
    opened.append(columns, [Span(P, 0, 2, 2)], 0, 0.0)
    slab = opened.close(Admission([FakeRollout()], None, "drop", 1 << 20), 1 << 20, 0.0, 8, False)
    assert slab is not None
    assert slab.batches[0].deadlines is None
