"""Chores between two turns of the loop."""

from worker.process.rounds import Chore, Rounds, every


def test_a_chore_is_done_when_it_is_due_and_not_before() -> None:
    """Each chore runs at its own interval, however often the loop turns."""
    now, done = [100.0], []
    rounds = Rounds(
        [every(1.0, lambda: done.append("second")), every(5.0, lambda: done.append("five"))], lambda: now[0]
    )
    for step in range(21):
        now[0] = 100.0 + step * 0.25
        rounds()
    assert done.count("second") == 6
    assert done.count("five") == 2


def test_a_chore_names_its_next_time_and_can_be_made_due_at_once() -> None:
    """A chore that says "never" stays undone until somebody sets its time."""
    done: list[float] = []

    def once(now_s: float) -> float:
        done.append(now_s)
        return float("inf")

    chore = Chore(3.0, once)
    now = [2.0]
    rounds = Rounds([chore], lambda: now[0])
    for now[0] in (2.0, 3.0, 4.0, 5.0):
        rounds()
    assert done == [3.0]
    chore.due_s = 0.0
    rounds()
    assert done == [3.0, 5.0]
