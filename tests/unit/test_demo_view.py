"""The demo's display, on recorded results."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import orjson
import pytest
from rich.console import Console

from worker.batch import STAGES
from worker.cli.demo_view import GridView, JsonView, RowsView, Tally, summary_text, view_for

FRAME = np.zeros((8, 8), np.uint8)
FRAME[:4, 2] = 255  # a stroke: upper half, third column


def result(number: int, label: str | None = "7", total_ms: float = 6.0) -> dict[str, Any]:
    latency = dict.fromkeys(STAGES, total_ms / 6) | {"total": total_ms}
    score = None if label is None else 0.987
    prediction = {"label": label, "score": score, "top": []}
    return {"id": f"digits/0/{number}", "prediction": prediction, "latency_ms": latency}


def console(terminal: bool, width: int = 80, height: int = 24) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=height, highlight=False, _environ={}
    )


def written(to: Console) -> str:
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def test_a_record_answered_twice_counts_once() -> None:
    """A duplicate, which at least once allows, changes neither the records nor the accuracy."""
    tally = Tally()
    assert tally.add(result(1), FRAME, "7") is not None
    assert tally.add(result(1), FRAME, "7") is None
    assert tally.records == 1


def test_the_summary_states_accuracy_latency_and_shares() -> None:
    """The demo's summary gives accuracy against the true labels, percentiles of the results, and shares from the metrics topic."""
    tally = Tally()
    for number in range(4):
        tally.add(result(number, total_ms=6.0 * (number + 1)), FRAME, "7" if number else "1")
    for replica, out in (("b", 1), ("a", 2), ("a", 1)):
        tally.add_metrics(replica, {"pipelines": {"digits": {"records": {"out": out}}}})

    summary = tally.summary()

    assert (summary["type"], summary["records"], summary["accuracy"]) == ("summary", 4, 0.75)
    assert list(summary["latency_ms"]) == [*STAGES, "total"]
    assert summary["latency_ms"]["total"] == {"p50": 15.0, "p99": 23.82}
    assert summary["replicas"] == [
        {"id": "a", "records": 3, "share": 0.75},
        {"id": "b", "records": 1, "share": 0.25},
    ]


def test_json_is_one_object_per_line(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """``--json`` writes each result with its type, then the summary, and nothing else."""
    view, tally = view_for(json=True), Tally()
    assert isinstance(view, JsonView)
    with view:
        view.starting("starting ...")
        answer = tally.add(result(1), FRAME, "7")
        assert answer is not None
        view.answered(result(1), answer)
        view.tick(tally)
    view.summary(tally)

    first, last = (orjson.loads(line) for line in capfdbinary.readouterr().out.splitlines())
    assert first == {"type": "prediction", **result(1)}
    assert last == tally.summary()


def test_a_pipe_gets_every_digit_as_plain_text() -> None:
    """Into a pipe the demo writes pictures in block characters side by side, marks a misread one, and uses no escape codes."""
    out, tally = console(terminal=False), Tally()
    view = RowsView(out)
    with view:
        for number in range(6):
            answer = tally.add(result(number), FRAME, "7" if number else "1")
            assert answer is not None
            view.answered(result(number), answer)
    text = written(out)

    assert "\x1b" not in text
    assert text.count("98.7%") == text.count("6.0 ms") == 6
    assert text.count("is a 1") == 1
    assert text.splitlines()[0].startswith("  █       7")
    assert max(map(len, text.splitlines())) < 80


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (20, 10)])
def test_the_live_grid_fits_the_terminal(width: int, height: int) -> None:
    """The demo's live grid with its title and live line never scrolls, however many digits came."""
    out, tally = console(terminal=True, width=width, height=height), Tally()
    view = GridView(out)
    for number in range(300):
        answer = tally.add(result(number), FRAME, "7")
        assert answer is not None
        view.answered(result(number), answer)
    view.tick(tally)

    lines = out.render_lines(view.live.get_renderable())
    assert len(lines) < height
    assert max(sum(segment.cell_length for segment in line) for line in lines) <= width


def test_the_newest_digit_takes_the_place_of_the_oldest() -> None:
    """In the demo's live grid the newest digit replaces the oldest, and the other cards stay where they are."""
    view = GridView(console(terminal=True))
    tally = Tally()
    for number in range(17):  # the grid of 80x24 has 16 places
        answer = tally.add(result(number, label=str(number)), FRAME, "7")
        assert answer is not None
        view.answered(result(number), answer)
    assert [card.label for card in view.cards] == ["16", *map(str, range(1, 16))]


def test_nothing_answered_is_said() -> None:
    """A demo that is interrupted before the first answer ends with a sentence."""
    assert summary_text(Tally(), console(terminal=False)).plain == "no record was answered"


def test_a_prediction_below_the_threshold_is_shown_as_unknown() -> None:
    """The demo shows a null label as a question mark and counts it as a wrong answer."""
    out, tally = console(terminal=False), Tally()
    answer = tally.add(result(1, label=None), FRAME, "7")
    assert answer is not None
    with RowsView(out) as view:
        view.answered(result(1), answer)
    assert "?" in written(out)
    assert tally.accuracy == 0
