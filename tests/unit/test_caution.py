"""Attempts are counted for the record that kills, and for no other."""

import pytest

from worker.batch import Partition
from worker.loop.caution import Caution, Note

A, B = Partition("in", 0), Partition("in", 1)


def attempt(caution: Caution, partition: Partition, offset: int) -> int:
    """Begin to work on a record under caution; which attempt it is."""
    attempts = caution.attempts(partition, offset)
    caution.begin(partition, offset)
    return attempts


class Broker:
    """Committed (position, metadata) per partition, and processes that die on some offsets."""

    def __init__(self, poison: dict[Partition, set[int]]) -> None:
        self.poison = poison
        self.committed: dict[Partition, tuple[int, str]] = dict.fromkeys(poison, (0, ""))
        self.dead_letters: list[tuple[Partition, int]] = []
        self.answered: list[tuple[Partition, int]] = []

    def life(self, end: int, commit_every: int, max_crashes: int = 3) -> bool:
        """One process, from assignment to its death (False) or to the end of all partitions.

        What was answered is committed every so many steps only: a death repeats what came since.
        """
        caution = Caution(reach={"in": 10}, max_crashes=max_crashes)
        for partition, note in caution.assigned(self.committed).items():
            self.committed[partition] = (self.committed[partition][0], note)
        positions = {partition: position for partition, (position, _) in self.committed.items()}
        step = 0
        while any(position < end for position in positions.values()):
            for partition, position in positions.items():
                if position >= end:
                    continue
                step += 1
                given_up = False
                stop = min(position + 5, end)
                if alone := caution.covers(partition, position):
                    stop = position + 1
                    attempts = attempt(caution, partition, position)
                    for told, note in caution.notes().items():
                        self.committed[told] = (self.committed[told][0], note)
                    given_up = attempts >= max_crashes
                if given_up:
                    self.dead_letters.append((partition, position))
                elif self.poison[partition] & set(range(position, stop)):
                    return False
                else:
                    self.answered += [(partition, row) for row in range(position, stop)]
                positions[partition] = stop
                if alone and not given_up:
                    caution.survived(partition, stop)
                if given_up or step % commit_every == 0:
                    metadata = caution.metadata(positions)
                    self.committed = {p: (n, metadata.get(p, "")) for p, n in positions.items()}
                if given_up:
                    caution.survived(partition, stop)
        return True


@pytest.mark.parametrize("commit_every", [1, 3, 1000])
def test_only_the_record_that_kills_becomes_a_dead_letter(commit_every: int) -> None:
    """Two partitions, poison deep inside a slab of each: both are found, every neighbour is answered."""
    broker = Broker({A: {3, 17}, B: {8}})
    deaths = 0
    while not broker.life(30, commit_every):
        deaths += 1
        assert deaths < 20
    assert sorted(broker.dead_letters) == [(A, 3), (A, 17), (B, 8)]
    good = {(p, n) for p in (A, B) for n in range(30)} - set(broker.dead_letters)
    assert good <= set(broker.answered)


def test_a_process_that_dies_of_something_else_costs_no_record() -> None:
    """After deaths before any work began, every record is still answered."""
    broker = Broker({A: set(), B: set()})
    for _ in range(5):
        caution = Caution(reach={"in": 10}, max_crashes=3)
        for partition, note in caution.assigned(broker.committed).items():
            broker.committed[partition] = (0, note)
    assert broker.life(30, 1)
    assert not broker.dead_letters


def test_a_note_reads_back_as_it_was_written() -> None:
    """Somebody else's commit metadata is no note."""
    assert Note.parse(str(Note(2, 77))) == Note(2, 77)
    assert Note.parse(str(Note(0, 77, 70))) == Note(0, 77, 70)
    assert Note.parse("") is None
    assert Note.parse("attempts=2") is None


def test_partitions_left_without_progress_are_named() -> None:
    """A clean hand-over knows whose first note is still in place."""
    caution = Caution(reach={"in": 10}, max_crashes=3)
    assert set(caution.assigned({A: (5, ""), B: (7, "")})) == {A, B}
    caution.metadata({A: 6})
    assert caution.unmoved([A, B]) == {B}
    caution.dropped([B])
    assert caution.unmoved([A, B]) == set()


def test_a_record_that_was_survived_alone_is_not_noted_again() -> None:
    """A record that was survived alone collects no further attempt, in this process or the next one."""
    caution = Caution(reach={"in": 10}, max_crashes=3)
    caution.assigned({A: (5, str(Note(1, 20)))})
    assert attempt(caution, A, 5) == 2
    caution.survived(A, 6)
    assert attempt(caution, A, 6) == 1
    assert caution.notes() == {A: str(Note(1, 20, 6))}
    successor = Caution(reach={"in": 10}, max_crashes=3)
    successor.assigned({A: (5, str(Note(1, 20, 6)))})
    assert successor.covers(A, 5)
    assert attempt(successor, A, 5) == 0
    assert attempt(successor, A, 6) == 2


def test_only_what_is_begun_counts_as_an_attempt() -> None:
    """A record looked at and put off may go to another process, and come back."""
    caution = Caution(reach={"in": 10}, max_crashes=3)
    for _ in range(3):
        caution.assigned({A: (5, str(Note(1, 20)))})
        assert caution.attempts(A, 5) == 2
        assert not caution.outdated
        caution.dropped([A])


def test_a_rewind_is_no_further_attempt() -> None:
    """One process makes one attempt at a record, however often it reads it."""
    caution = Caution(reach={"in": 10}, max_crashes=3)
    caution.assigned({A: (5, str(Note(1, 20)))})
    assert attempt(caution, A, 5) == 2
    assert attempt(caution, A, 5) == 2


def test_a_process_that_gets_its_partition_back_has_not_died_meanwhile() -> None:
    """A hand-over whose commit failed leaves an attempt noted; whoever else finds it must take it for a death."""
    found = {A: (5, str(Note(1, 12)))}
    ours = Caution(reach={"in": 10}, max_crashes=3)
    ours.assigned(found)
    assert attempt(ours, A, 5) == 2
    noted = {A: (5, ours.notes()[A])}
    ours.dropped([A])
    another = Caution(reach={"in": 10}, max_crashes=3)
    for each in (ours, another):
        each.assigned(noted)
    assert ours.attempts(A, 5) == 2
    assert another.attempts(A, 5) == 3


def test_an_attempt_is_noted_where_somebody_else_took_ours_back() -> None:
    """An attempt is noted anew where another process has survived the records before it."""
    ours = Caution(reach={"in": 10}, max_crashes=3)
    ours.assigned({A: (5, str(Note(1, 12)))})
    attempt(ours, A, 5)
    ours.dropped([A])
    ours.assigned({A: (5, str(Note(0, 12, 5)))})
    assert attempt(ours, A, 5) == 1
    assert ours.notes() == {A: str(Note(1, 12, 5))}


def test_what_another_record_survived_is_told_before_the_next_is_tried() -> None:
    """Records that were survived are noted before the next one is tried; otherwise they would be charged with its death."""
    caution = Caution(reach={"in": 10}, max_crashes=3)
    caution.assigned({A: (5, str(Note(1, 20))), B: (0, str(Note(1, 2)))})
    attempt(caution, B, 1)
    assert caution.notes() == {B: str(Note(2, 2, 1))}
    caution.survived(B, 2)
    assert not caution.covers(B, 2)
    attempt(caution, A, 5)
    assert caution.outdated
    # B is now as if it had just become ours at 2
    assert caution.notes() == {A: str(Note(2, 20, 5)), B: str(Note(1, 12, 2))}
    assert not caution.outdated


def test_a_rewind_beyond_the_noted_record_forgets_its_attempts() -> None:
    """Its dead letter was committed although the answer got lost: the next record must not be charged with it."""
    caution = Caution({"in": 8}, 3)
    caution.assigned({A: (5, "streaminfer;attempts=2;until=9")})
    assert attempt(caution, A, 5) == 3
    caution.resumed({A: 6})
    assert attempt(caution, A, 7) == 1
    caution.resumed({A: 6})
    assert attempt(caution, A, 7) == 1
    caution.resumed({A: 9})
    assert not caution.covers(A, 9)
