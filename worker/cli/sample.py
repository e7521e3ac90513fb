"""One record through a whole pipeline, without Kafka and without the loop: what ``check --sample`` shows."""

from __future__ import annotations

import time
from typing import Any

import orjson

from worker.batch import Batch, Columns, Headers, Partition
from worker.errors import Reject
from worker.loop.pool import InlinePool, Mailbox
from worker.serving.engine import Engine
from worker.serving.rollout import Rollout


def answer(rollout: Rollout, value: bytes, headers: Headers | None = None) -> Any:
    """The result of one record, parsed where it is JSON.

    Args:
        rollout: what answers the record.
        value: the record's value.
        headers: the record's headers, if any.

    Raises:
        Reject: the record would become a dead letter; says for which reason.
        SickModel: the model no longer gives its known output.
    """
    now_ms = time.time() * 1000
    route, servable = rollout.route, rollout.choose()
    columns = Columns(
        [value], [None], [headers or None], [int(now_ms)], [0], [Partition(min(route.topics), 0)]
    )
    if len(value) > servable.free_bytes:
        servable.cost(value)
    batch = Batch(None, range(1), columns, route, servable, time.monotonic_ns(), now_ms)
    pool = InlinePool(Engine(), Mailbox())
    pool.submit(batch)
    (back,) = pool.collect()
    if back.error is not None:
        raise back.error
    if batch.sick is not None:
        rollout.sick(servable, batch.sick)
    assert batch.outcomes is not None
    for rejection in batch.outcomes.rejected.values():
        raise Reject(f"{rejection.stage}: {rejection.message}", rejection.reason)
    body = batch.outcomes.bodies[0] or b""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body
