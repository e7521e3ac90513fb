"""What `scripts/chaos` says of a campaign, without one."""

from __future__ import annotations

import json
from collections import Counter

from accounts import Counted
from chaos.outcome import Outcome, document, table


def campaign() -> Outcome:
    return Outcome(
        "exactly_once",
        seed=7,
        minutes=1.5,
        records=1_000,
        faults=Counter({"kill replica": 2}),
        recovery_s={"kill replica": [1.5, 2.25]},
        ends=Counter({"exit 5": 1}),
        counted=[
            Counted("a", taken=1_000, ok=900, dead_letter=60, dropped=40),
            Counted("b", taken=500, ok=499),
        ],
    )


def test_everything_that_was_counted_is_in_the_json() -> None:
    """The JSON of a chaos campaign has every counter under its name."""
    [found] = json.loads(document([campaign()]))
    assert (found["delivery"], found["seed"], found["records"]) == ("exactly_once", 7, 1_000)
    assert found["faults"] == {"kill replica": 2}
    assert found["ends"] == {"exit 5": 1}
    assert [(said["client_id"], said["taken"]) for said in found["counted"]] == [("a", 1_000), ("b", 500)]
    assert found["recovery_s"] == {"kill replica": [1.5, 2.25]}


def test_the_table_has_a_column_for_each_campaign() -> None:
    """The table of chaos campaigns has a column for each, with the promises, the counters' sums and the longest recovery of each fault."""
    lines = table([campaign()]).splitlines()
    assert lines[0] == "|  | exactly_once |"
    assert "| survived: kill replica | 2 (at most 2.2 s) |" in lines
    assert "| replicas that ended in order | 2 |" in lines
    equation = "1,500 = 1,399 + 60 + 40, difference 1"
    assert f"| their counters: taken = ok + dead letters + dropped | {equation} |" in lines
    assert "| replicas that ended by themselves | 1 x exit 5 |" in lines
