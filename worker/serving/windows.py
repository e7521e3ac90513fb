"""Model runs over the windows of records: in parts that fit, or one by one where the model is not batchable.

The windows of a record are independent items. A long record has more of them than one run may hold, so they run in
parts, and the answers are put together again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from worker.batch import Array
from worker.serving.runs import Group
from worker.serving.servable import Model

Tensors = dict[str, Array]


def run_windows(model: Model, fed: Tensors, group: Group, limit: int) -> Tensors:
    """The model's answers to all windows of a group.

    Args:
        fed: every input by name; the first dimension counts the windows, except in an input that has no rows.
        group: its records.
        limit: most windows in one run.

    Returns:
        Every output by name; the first dimension counts the windows.

    Raises:
        Exception: whatever the runtime raises.
        ValueError: an output does not follow the windows.
    """
    if model.signature.states:
        return model.run_in_order(fed, group.counts or [1] * len(group.rows))
    answers = []
    for part, count in _parts(model, fed, group, limit):
        answer = model.run(part)
        if model.needs_canary:
            model.adopt_canary(part, answer)
        answers.append(_by_window(answer, count, model, group.alone))
    if len(answers) == 1:
        return answers[0]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def _parts(model: Model, fed: Tensors, group: Group, limit: int) -> Iterator[tuple[Tensors, int]]:
    """What each run is fed, and how many windows it holds."""
    size = (model.fixed_batch or 1) if group.alone else max(1, limit)
    with_rows = {spec.name for spec in model.signature.inputs if spec.has_rows}
    for start in range(0, group.item_count, size):
        count = min(size, group.item_count - start)
        part = {
            name: array[start : start + count] if name in with_rows else array for name, array in fed.items()
        }
        if group.alone and count < size:
            part = {name: _filled(array, size) for name, array in part.items()}
        yield part, count


def _filled(array: Array, size: int) -> Array:
    """The windows of a last part with zeros behind them, for a model whose batch has a fixed size."""
    filled = np.zeros((size, *array.shape[1:]), array.dtype)
    filled[: len(array)] = array
    return filled


def _by_window(answer: Tensors, count: int, model: Model, alone: bool) -> Tensors:
    """The answer with a first dimension that counts the windows.

    Raises:
        ValueError: an output has another first dimension.
    """
    if alone and not model.fixed_batch:
        return {name: output[np.newaxis] for name, output in answer.items()}
    size = model.fixed_batch if alone else count
    for name, output in answer.items():
        if not output.ndim or len(output) != size:
            raise ValueError(
                f"output {name} has shape {list(output.shape)} for {size} windows: "
                "its first dimension does not follow them"
            )
    return {name: output[:count] for name, output in answer.items()}
