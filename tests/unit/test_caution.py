"""Attempts are counted for the record that kills, and for no other."""

from worker.batch import Partition
from worker.caution import Caution, Note

A, B = Partition("in", 0), Partition("in", 1)


class Broker:
    """Committed (position, metadata) per partition, and processes that die on some offsets."""

    def __init__(self, poison: dict[Partition, set[int]]) -> None:
        self.poison = poison
        self.committed: dict[Partition, tuple[int, str]] = dict.fromkeys(poison, (0, ""))
        self.dead_letters: list[tuple[Partition, int]] = []
        self.answered: list[tuple[Partition, int]] = []

    def life(self, end: int, max_crashes: int = 3) -> bool:
        """One process, from assignment to its death (False) or to the end of all partitions."""
        caution = Caution(reach=10, max_crashes=max_crashes)
        for partition, note in caution.assigned(self.committed).items():
            self.committed[partition] = (self.committed[partition][0], note)
        while any(position < end for position, _ in self.committed.values()):
            for partition in self.committed:
                position = self.committed[partition][0]
                if position >= end:
                    continue
                stop = position + 1 if partition in caution else min(position + 5, end)
                note = caution.attempt(partition) if partition in caution else None
                if note is not None:
                    self.committed[partition] = (position, str(note))
                rows = range(position, stop)
                if note is not None and note.attempts >= caution.max_crashes:
                    self.dead_letters.append((partition, position))
                elif self.poison[partition] & set(rows):
                    return False
                else:
                    self.answered += [(partition, row) for row in rows]
                metadata = caution.metadata({partition: stop})
                self.committed[partition] = (stop, metadata.get(partition, ""))
        return True


def test_only_the_record_that_kills_becomes_a_dead_letter() -> None:
    """Two partitions, poison deep inside a slab of each: both are found, every neighbour is answered."""
    broker = Broker({A: {3, 17}, B: {8}})
    deaths = 0
    while not broker.life(end=30):
        deaths += 1
        assert deaths < 20
    assert sorted(broker.dead_letters) == [(A, 3), (A, 17), (B, 8)]
    good = {(p, n) for p in (A, B) for n in range(30)} - set(broker.dead_letters)
    assert good <= set(broker.answered)


def test_a_process_that_dies_of_something_else_costs_no_record() -> None:
    """After deaths before any work began, every record is still answered."""
    broker = Broker({A: set(), B: set()})
    for _ in range(5):
        caution = Caution(reach=10, max_crashes=3)
        for partition, note in caution.assigned(broker.committed).items():
            broker.committed[partition] = (0, note)
    assert broker.life(end=30)
    assert not broker.dead_letters


def test_a_note_reads_back_as_it_was_written() -> None:
    """Somebody else's commit metadata is no note."""
    assert Note.parse(str(Note(2, 77))) == Note(2, 77)
    assert Note.parse("") is None
    assert Note.parse("attempts=2") is None


def test_partitions_left_without_progress_are_named() -> None:
    """A clean hand-over knows whose first note is still in place."""
    caution = Caution(reach=10, max_crashes=3)
    assert set(caution.assigned({A: (5, ""), B: (7, "")})) == {A, B}
    caution.metadata({A: 6})
    assert caution.unmoved([A, B]) == {B}
    caution.dropped([B])
    assert caution.unmoved([A, B]) == set()
