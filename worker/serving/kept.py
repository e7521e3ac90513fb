"""What a batch leaves behind for a comparison with another version's answers, where somebody asked for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from worker.batch import Answered, Batch, Run


def keep_answers(batch: Batch, run: Run, fragments: Sequence[Any]) -> None:
    """Keep what one run became, with the rows of the batch that was submitted."""
    if batch.kept is not None:
        batch.kept.answered.append(Answered(run, fragments, run.outputs, run.rows))
    elif batch.origin is not None and (kept := batch.origin.batch.kept) is not None:
        rows = [batch.origin.rows[row] for row in run.rows]
        kept.answered.append(Answered(run, fragments, run.outputs, rows))


def keep_feed(batch: Batch) -> None:
    """Keep what was decoded, before its tensors are let go."""
    if batch.kept is not None and batch.feed is not None:
        batch.kept.feed, batch.kept.servable = replace(batch.feed), batch.servable
