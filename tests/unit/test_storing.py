"""Large results: what is written to the store, what is sent in their place, and that nothing is sent before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from encode_support import batch_of
from fakes import FakeClock, FakePool, NullLog
from test_fetching import Played
from test_schemas import check

from worker.batch import STAGES, Aside, Batch, Outcomes, Partition, Run
from worker.errors import ConfigError
from worker.loop.budget import Budget
from worker.loop.pool import Returned
from worker.loop.storing import BATCHES_MAX, Storing
from worker.outside import Away
from worker.serving.offload import Offload
from worker.settings.stores import OffloadSettings


class Jobs(Played):
    """Calls that end when the test says so, by the name of the result."""

    def end(self, *what: str) -> None:
        for job, call in [(j, c) for j, c in self.running if not what or j.aside.what in what]:
            self.running.remove((job, call))
            self._end(job, call)


class Room:
    """A pool with a store behind it."""

    def __init__(self) -> None:
        self.clock, self.jobs, self.log = FakeClock(), Jobs(), NullLog()
        self.pool: Any = FakePool(self.clock, capacity=100)
        self.storing = Storing(self.pool, self.jobs, 2, self.log, self.clock, self.clock.wall_ms)
        self.budget = Budget(1 << 20)

    def batch(self, name: str, *puts: Callable[[], None]) -> Batch:
        """A finished batch of one partition, with so many results to write."""
        slab: Any = SimpleNamespace(
            claim=self.budget.shares[0].claim(), turn=SimpleNamespace(ends={Partition("in", 0): 1})
        )
        batch: Any = SimpleNamespace(
            slab=slab,
            sick=None,
            aside=[Aside(f"{name}{i}", "store", 1_000, put) for i, put in enumerate(puts)],
        )
        self.pool._back.append(Returned(batch))
        return batch  # type: ignore[no-any-return]


def test_a_batch_comes_back_when_its_results_are_written() -> None:
    """Not before the last of them; one without such results comes back at once; the bytes are in the budget meanwhile."""
    room = Room()
    plain, large = room.batch("p"), room.batch("a", lambda: None, lambda: None, lambda: None)
    assert [back.batch for back in room.storing.collect()] == [plain]
    assert (room.budget.held, room.storing.outstanding) == (3_000, 1)
    assert len(room.jobs.running) == 2  # at once
    room.jobs.end()
    assert room.storing.collect() == []
    room.jobs.end()
    assert [back.batch for back in room.storing.collect()] == [large]
    assert (room.budget.held, room.storing.outstanding) == (0, 0)
    assert large.aside == []


def test_a_store_that_is_away_is_waited_for_and_told() -> None:
    """The result is written again until it works; whoever watches learns what the partition waits for; no more is begun."""
    room, up = Room(), False

    def put() -> None:
        if not up:
            raise Away("status 503")

    batches = [room.batch(f"b{n}-", put) for n in range(BATCHES_MAX)]
    back: list[Returned] = []
    for _ in range(50):
        back += room.storing.collect()
        room.jobs.end()
        room.clock.advance(0.5)
    assert back == []
    assert not room.storing.free(())
    (waits,) = room.storing.waits().values()
    assert waits.away
    assert "for the store, away since 20" in waits.sentence
    up = True
    for _ in range(50):
        back += room.storing.collect()
        room.jobs.end()
        room.clock.advance(0.5)
    assert {id(each.batch) for each in back} == {id(batch) for batch in batches}
    assert room.log.events() == ["away", "back"]
    assert room.storing.free(())


def offload(folder: Path, over_bytes: int = 100) -> Offload:
    settings = OffloadSettings(to=f"file://{folder}/results", over_bytes=over_bytes)
    envelope: Any = SimpleNamespace(ids=lambda batch, rows: {1: "own-id"} if 1 in rows else {})
    return Offload(settings, "json", envelope)


def finished(bodies: list[bytes | None]) -> Batch:
    batch = batch_of(len(bodies))
    batch.outcomes = Outcomes([*bodies])
    times = dict.fromkeys(STAGES, 100) | {"total": 600}
    batch.runs = [Run(range(len(bodies)), {}, stages_us=times)]  # type: ignore[arg-type]
    return batch


def test_a_large_result_is_an_object_and_a_small_one_names_it(tmp_path: Path) -> None:
    """The object has the very bytes of the result; the small one has id, source, model, times, and the digest to check it."""
    large = orjson.dumps({"prediction": "x" * 500})
    batch = finished([b"small", large, None])
    offload(tmp_path).put_aside(batch)
    assert batch.outcomes is not None
    small = orjson.loads(batch.outcomes.bodies[1] or b"")
    assert list(small) == ["id", "source", "model", "dataref", "bytes", "sha256", "latency_ms"]
    assert (small["id"], small["bytes"], small["sha256"]) == (
        "own-id",
        len(large),
        hashlib.sha256(large).hexdigest(),
    )
    assert small["latency_ms"]["total"] > 0
    check("result", small)
    assert (batch.outcomes.bodies[0], batch.outcomes.bodies[2]) == (b"small", None)
    (aside,) = batch.aside
    assert not list(tmp_path.iterdir())
    aside.put()
    path = Path(small["dataref"].removeprefix("file://"))
    assert path.read_bytes() == large
    assert path.is_relative_to(tmp_path / "results")


def test_a_record_has_one_name_and_each_answer_stays_true(tmp_path: Path) -> None:
    """The same result overwrites itself; another result of the same record is another object beside it."""
    for body in (b"x" * 500, b"x" * 500, b"y" * 500):
        batch = finished([body])
        offload(tmp_path).put_aside(batch)
        batch.aside[0].put()
    found = sorted(path for path in (tmp_path / "results").rglob("*") if path.is_file())
    assert len(found) == 2
    assert len({path.name.split("-")[0] for path in found}) == 1


def test_a_store_that_refuses_to_write_is_no_records_fault(tmp_path: Path) -> None:
    """The result waits until somebody gives the worker the right to write."""
    from worker.stores import Denied

    made = offload(tmp_path)
    made.store = SimpleNamespace(put=lambda *_: (_ for _ in ()).throw(Denied("no right")))  # type: ignore[assignment]
    batch = finished([b"x" * 500])
    made.put_aside(batch)
    with pytest.raises(Away, match="no right"):
        batch.aside[0].put()


def test_the_store_of_large_results_is_checked_at_start() -> None:
    """An option that is not known is told before anything starts."""
    settings = OffloadSettings(to="s3://results/", options={"regoin": "x"})
    with pytest.raises(ConfigError, match="regoin"):
        Offload(settings, "json", SimpleNamespace())  # type: ignore[arg-type]
