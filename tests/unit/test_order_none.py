"""``order: none``: a batch is published as it returns; positions still wait for everything before them."""

from __future__ import annotations

from random import Random

from fakes import FakeClock, FakeKafka, FakePool, FakeRollout, FakeSink, FakeSource
from world import Figures, make_loop

from worker.batch import Partition
from worker.loop.conductor import Conductor

P = Partition("in", 0)


def world(ordered: bool) -> tuple[FakeKafka, FakePool, Conductor]:
    clock = FakeClock()
    kafka = FakeKafka(clock, {"in": 1})
    for number in range(12):
        kafka.append(P, b"bad" if number == 5 else b"fine")
    source, sink, pool = FakeSource(kafka), FakeSink(kafka), FakePool(clock)
    conductor = make_loop(
        clock,
        source,
        sink,
        pool,
        [FakeRollout(max_size=4, slab_records=12, max_wait_s=0.0)],
        Figures(ordered=ordered, limit_bytes=1 << 20),
    ).conductor
    source.subscribe(conductor.membership)
    kafka.rebalance()
    while not pool.held:
        conductor.turn()
    return kafka, pool, conductor


def landed(kafka: FakeKafka) -> list[bytes | None]:
    return [message.value for message in kafka.landed]


def test_a_batch_is_published_before_the_ones_in_front_of_it() -> None:
    """The last batch of a slab returns first and is out at once; nothing is committed before the others are."""
    kafka, pool, conductor = world(ordered=False)
    first, second, third = pool.held
    pool.finish(third)
    for _ in range(3):
        conductor.turn()
    assert landed(kafka) == [b"8 ok", b"9 ok", b"10 ok", b"11 ok"]
    assert not kafka.committed.get(P)
    pool.finish(second, first)
    for _ in range(5):
        conductor.turn()
    assert sorted(landed(kafka)[4:], key=str) == sorted(
        [b"0 ok", b"1 ok", b"2 ok", b"3 ok", b"4 ok", b"bad", b"6 ok", b"7 ok"], key=str
    )
    assert kafka.committed[P] == 12
    assert conductor.budget.held == 0
    assert conductor.window.slabs == 0


def test_with_order_partition_it_waits_for_its_turn() -> None:
    """With `order: partition` nothing is published before the first batch is back."""
    kafka, pool, conductor = world(ordered=True)
    pool.finish(*pool.held[1:])
    for _ in range(3):
        conductor.turn()
    assert landed(kafka) == []
    pool.finish()
    for _ in range(5):
        conductor.turn()
    assert [value for value in landed(kafka) if value != b"bad"] == [
        b"%d ok" % number for number in range(12) if number != 5
    ]


def test_any_schedule_ends_with_every_record_out_once() -> None:
    """Whatever order batches return in, each record is published once and all are committed."""
    for seed in range(50):
        rng = Random(seed)
        kafka, pool, conductor = world(ordered=False)
        for _ in range(200):
            if pool.held:
                pool.finish(rng.choice(pool.held))
            conductor.turn()
            if kafka.drained():
                break
        assert len(landed(kafka)) == 12, seed
        assert kafka.drained(), seed
