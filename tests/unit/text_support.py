"""A text pipeline without Kafka: settings and a model in, results out, through the whole engine."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.batch import Array, Batch, Columns, Partition
from worker.loop.pool import InlinePool, Mailbox
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.settings import validate


class Pipeline:
    """One pipeline, loaded.

    Args:
        folder: relative paths of the settings are below it.
        model: ``model.path``.
        postprocess: of the configuration.
        sections: further sections, merged one level deep.
    """

    def __init__(
        self, folder: Path, model: Any = "model.onnx", postprocess: Any = "raw", **sections: Any
    ) -> None:
        document: dict[str, Any] = {
            "input": {"topics": ["in"], "format": "text"},
            "model": {"path": str(model), "threads": 1},
            "postprocess": postprocess,
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
        }
        for name, section in sections.items():
            old = document.get(name)
            document[name] = (
                {**old, **section} if isinstance(old, dict) and isinstance(section, dict) else section
            )
        (self.rollout,) = load(validate(document, folder)).values()
        self.servable: Any = self.rollout.choose()
        self.runs: list[dict[str, Array]] = []
        """What each model run was fed by the last :meth:`batch`."""
        run = self.servable.model._sessions.run

        def recorded(feeds: dict[str, Array]) -> dict[str, Array]:
            self.runs.append(feeds)
            answer: dict[str, Array] = run(feeds)
            return answer

        self.servable.model._sessions.run = recorded

    def batch(self, values: Sequence[bytes]) -> Batch:
        columns = Columns(
            list(values),
            [None] * len(values),
            [None] * len(values),
            [0] * len(values),
            list(range(len(values))),
            [Partition("in", 0)] * len(values),
        )
        batch = Batch(
            None, range(len(values)), columns, self.rollout.route, self.servable, time.monotonic_ns(), 0.0
        )
        pool = InlinePool(Engine(), Mailbox())
        self.runs.clear()
        pool.submit(batch)
        (back,) = pool.collect()
        if back.error is not None:
            raise back.error
        assert batch.sick is None, batch.sick
        return batch

    def predictions(self, *values: str | bytes) -> list[Any]:
        """The prediction of each record; of a refused one (reason, message)."""
        batch = self.batch([value.encode() if isinstance(value, str) else value for value in values])
        assert batch.outcomes is not None
        return [
            (why.reason, why.message)
            if (why := batch.outcomes.rejected.get(row)) is not None
            else json.loads(body or b"")["prediction"]
            for row, body in enumerate(batch.outcomes.bodies)
        ]
