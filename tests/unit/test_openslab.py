"""The open slab: what leaves it, what stays, and that its bytes are always told."""

from __future__ import annotations

import pytest
from fakes import FakeRollout, columns_of

from worker.batch import Columns, Partition, Span
from worker.errors import Rejection
from worker.loop.admission import Admission
from worker.loop.budget import Budget
from worker.loop.epochs import Epochs
from worker.loop.openslab import OpenSlab
from worker.loop.slab import Slab
from worker.sizes import held_bytes

A, B = Partition("in", 0), Partition("in", 1)


def append(slab: OpenSlab, partition: Partition, offsets: list[int], epoch: int = 0, now_ns: int = 5) -> None:
    columns = columns_of(partition, offsets)
    slab.append(columns, [Span(partition, 0, len(columns), offsets[-1] + 1, epoch)], now_ns, 7.0)


def close(
    slab: OpenSlab, free_bytes: int = 10_000, force: bool = False, most: int = 100, **route: object
) -> Slab | None:
    admission = Admission([FakeRollout(item_nbytes=100, **route)], None, "drop", 10_000)  # type: ignore[arg-type]
    return slab.close(admission, free_bytes, 0.0, most, force)


def places(slab: Slab | None) -> list[tuple[Partition, list[int], int]]:
    assert slab is not None
    return [(s.partition, slab.columns.offsets[s.start : s.stop], s.next_offset) for s in slab.spans]


@pytest.fixture
def slab() -> OpenSlab:
    slab = OpenSlab(Budget(1 << 20).shares[0])
    append(slab, A, [0, 4])
    append(slab, B, [2])
    append(slab, A, [9])
    return slab


def test_everything_leaves_when_it_fits(slab: OpenSlab) -> None:
    """A slab has the takes in order, all their bytes, and the time of the first one."""
    slab.append(Columns(), [], 99, 99.0)
    closed = close(slab)
    assert places(closed) == [(A, [0, 4], 5), (B, [2], 3), (A, [9], 10)]
    assert closed is not None
    assert closed.taken_ns == 5
    assert closed.claim.nbytes == held_bytes(closed.columns)
    assert len(slab) == 0


def test_a_slab_is_cut_where_the_budget_ends(slab: OpenSlab) -> None:
    """A slab may end within a span; its position is then behind its last record, gaps or not."""
    total = held_bytes(columns_of(A, [0, 4, 9])) + held_bytes(columns_of(B, [2]))
    first = close(slab, free_bytes=150)
    assert places(first) == [(A, [0], 1)]
    rest = close(slab)
    assert places(rest) == [(A, [4], 5), (B, [2], 3), (A, [9], 10)]
    assert first is not None
    assert rest is not None
    assert first.claim.nbytes + rest.claim.nbytes == total


def test_nothing_leaves_when_not_one_record_fits(slab: OpenSlab) -> None:
    """When no record fits, nothing leaves, except one record when nothing else is in flight."""
    assert close(slab, free_bytes=99) is None
    assert len(slab) == 4
    assert places(close(slab, free_bytes=99, force=True)) == [(A, [0], 1)]


def test_at_most_so_many_records_leave(slab: OpenSlab) -> None:
    """A slab holds no more records than are asked for."""
    assert places(close(slab, most=1)) == [(A, [0], 1)]
    assert len(slab) == 3


def test_a_refused_record_is_not_given_to_any_model(slab: OpenSlab) -> None:
    """A refused record has its outcome whatever the budget says."""
    crashed = Rejection("crashed", "decode", "it killed three processes")
    closed = slab.close(Admission([FakeRollout()], None, "drop", 10_000), 0, 0.0, 1, False, crashed)
    assert closed is not None
    assert closed.batches == []
    assert closed.decided is not None
    assert closed.decided.rejected == {0: crashed}


def test_records_go_together_up_to_the_first_of_a_partition_under_caution(slab: OpenSlab) -> None:
    """Records go together up to the first of a partition under caution; such a record goes alone."""
    assert slab.stretch(lambda partition, _offset: partition == B) == 2
    assert slab.stretch(lambda partition, _offset: partition == A) == 1
    assert slab.stretch(lambda _partition, _offset: False) == 4


def test_dropped_partitions_free_their_bytes(slab: OpenSlab) -> None:
    """Dropped partitions free their bytes, and the rest keeps its order."""
    slab.drop([A])
    assert slab.claim.nbytes == held_bytes(columns_of(B, [2]))
    assert places(close(slab)) == [(B, [2], 3)]
    slab.drop([A])
    assert slab.claim.nbytes == 0


def test_records_of_a_dead_epoch_are_discarded() -> None:
    """Records of an earlier epoch are discarded; those of the current epoch stay."""
    slab, epochs = OpenSlab(Budget(1 << 20).shares[0]), Epochs()
    append(slab, A, [0])
    append(slab, B, [0])
    epochs.bump(A)
    append(slab, A, [0], epoch=1)
    slab.discard(epochs)
    assert slab.claim.nbytes == held_bytes(columns_of(A, [0])) * 2
    assert places(close(slab)) == [(B, [0], 1), (A, [0], 1)]


def test_clearing_frees_all_bytes(slab: OpenSlab) -> None:
    """A cleared slab holds no bytes and can be filled again."""
    assert slab.claim.nbytes > 0
    slab.clear()
    assert slab.claim.nbytes == 0
    assert len(slab) == 0
    append(slab, B, [3], now_ns=8)
    closed = close(slab)
    assert places(closed) == [(B, [3], 4)]
    assert closed is not None
    assert closed.taken_ns == 8


def test_batches_hold_at_most_max_size_records(slab: OpenSlab) -> None:
    """A batch holds at most `max_size` records, with their rows and the bytes of their tensors."""
    closed = close(slab, max_size=3)
    assert closed is not None
    assert [list(batch.rows) for batch in closed.batches] == [[0, 1, 2], [3]]
    assert [batch.columns.offsets for batch in closed.batches] == [[0, 4, 2], [9]]
    assert [batch.cost_bytes for batch in closed.batches] == [300, 100]


def test_every_row_knows_how_long_after_the_first_it_was_taken() -> None:
    """A row's delay after the first take survives cuts and drops; rows of one take have none."""
    slab = OpenSlab(Budget(1 << 20).shares[0])
    append(slab, A, [0, 1], now_ns=1_000_000)
    append(slab, B, [0, 1], now_ns=3_000_000)
    append(slab, A, [2], now_ns=4_000_000)
    first, rest = close(slab, free_bytes=300, max_size=2), slab
    rest.drop([A])
    for closed, late_us in ((first, [[0, 0], [2000]]), (close(rest), [[2000]])):
        assert closed is not None
        found = [batch.late_us.tolist() for batch in closed.batches if batch.late_us is not None]
        assert found == late_us
    append(slab, A, [3, 4])
    closed = close(slab)
    assert closed is not None
    assert [batch.late_us for batch in closed.batches] == [None]


def test_every_batch_belongs_to_one_pipeline_and_decided_rows_to_none() -> None:
    """Rows keep their places in the slab; what no pipeline takes is an outcome of the slab itself."""
    slab = OpenSlab(Budget(1 << 20).shares[0])
    columns = columns_of(A, range(5))
    columns.headers = [[("to", to)] for to in (b"x", b"y", b"x", b"nobody", b"y")]
    slab.append(columns, [Span(A, 0, 5, 5)], 0, 0.0)
    routes = [FakeRollout(name, when=("to", name.encode())) for name in "xy"]
    closed = slab.close(Admission(routes, None, "drop", 10_000), 10_000, 0.0, 100, False)
    assert closed is not None
    assert {batch.route.name: list(batch.rows) for batch in closed.batches} == {"x": [0, 2], "y": [1, 4]}
    assert closed.decided is not None
    assert [why.reason for why in closed.decided.rejected.values()] == ["unroutable"]
    assert not closed.one_route
