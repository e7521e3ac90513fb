"""The byte budget: who holds what, what is free for whom, and that nothing is left behind."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.loop.budget import Budget


def test_one_share_may_use_the_whole_budget() -> None:
    """With a single intake nothing is set aside for others."""
    budget = Budget(1_000)
    (share,) = budget.shares
    claim = share.claim(600)
    assert (share.free, budget.held) == (400, 600)
    claim.adjust(500)
    assert share.free == -100
    claim.free()
    assert (share.free, budget.held) == (1_000, 0)


def test_a_share_leaves_the_guaranteed_part_of_the_others_alone() -> None:
    """Half of the budget is guaranteed in equal parts; the other half goes to whoever needs it first."""
    budget = Budget(1_200, 3)
    greedy, second, third = budget.shares
    assert [share.free for share in budget.shares] == [800, 800, 800]
    held = greedy.claim(800)
    assert [share.free for share in budget.shares] == [0, 200, 200]
    second.claim(200)
    assert [share.free for share in budget.shares] == [0, 0, 200]
    held.free()
    assert [share.free for share in budget.shares] == [800, 600, 800]
    assert third.guaranteed == 200


def test_a_part_of_a_claim_moves_without_a_change_of_the_sum() -> None:
    """Records that leave the open slab keep their bytes; whoever holds them now gives them back."""
    budget = Budget(1_000)
    opened = budget.shares[0].claim(300)
    slab = opened.part(120)
    assert (opened.nbytes, slab.nbytes, budget.held) == (180, 120, 300)
    slab.free()
    assert (opened.nbytes, budget.held) == (180, 180)


def test_bytes_given_back_change_the_number_that_waiters_look_at() -> None:
    """Taking does not change it: there is no more room than before."""
    budget = Budget(1_000, 2)
    claim = budget.shares[0].claim(100)
    assert budget.freed == 0
    claim.adjust(-40)
    assert budget.shares[1].freed == 40


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-50, 100)), max_size=50))
def test_the_sum_is_the_sum_whatever_happens(moves: list[tuple[int, int]]) -> None:
    """Shares, claims and the total agree after any sequence, and what is free follows from them alone."""
    budget = Budget(900, 3)
    claims = [share.claim() for share in budget.shares]
    for which, by in moves:
        claims[which].adjust(max(by, -claims[which].nbytes))
        assert budget.held == sum(claim.nbytes for claim in claims)
        for share in budget.shares:
            owed = sum(max(0, s.guaranteed - s.held) for s in budget.shares if s is not share)
            assert share.free == 900 - budget.held - owed
    for claim in claims:
        claim.free()
    assert (budget.held, budget.owed) == (0, 450)
