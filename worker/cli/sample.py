"""Runs one record through a whole pipeline, without Kafka and without the loop, for ``check --sample``."""

from __future__ import annotations

import time
from typing import Any

import orjson

from worker.batch import Batch, Columns, Headers, Partition
from worker.errors import ConfigError, Reject
from worker.loop.pool import InlinePool, Mailbox
from worker.serving.engine import Engine
from worker.serving.rollout import Rollout
from worker.serving.runs import feeds, groups
from worker.serving.servable import Servable


def answer(rollout: Rollout, value: bytes, headers: Headers | None = None) -> Any:
    """The result of one record, parsed where it is JSON.

    Args:
        rollout: what answers the record.
        value: the record's value.
        headers: the record's headers, if any.

    Raises:
        Reject: the record would become a dead letter; says for which reason.
        ConfigError: the record's answer would be another one in a batch.
        SickModel: the model no longer gives its known output.
    """
    servable = rollout.choose()
    if len(value) > servable.free_bytes:
        servable.cost(value)
    batch = _batch(rollout, servable, value, headers)
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
    if servable.max_size > 1 and (reason := _beside_others(_batch(rollout, servable, value, headers))):
        raise ConfigError(
            f"--sample: {reason}, when this record runs beside others; expected batching.max_size: 1"
        )
    body = batch.outcomes.bodies[0] or b""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body


def _batch(rollout: Rollout, servable: Servable, value: bytes, headers: Headers | None) -> Batch:
    now_ms = time.time() * 1000
    source = Partition(min(rollout.route.topics), 0)
    columns = Columns([value], [None], [headers or None], [int(now_ms)], [0], [source])
    return Batch(None, range(1), columns, rollout.route, servable, time.monotonic_ns(), now_ms)


def _beside_others(batch: Batch) -> str:
    """Why the record's items may not share a run, although made-up items may; empty if they may."""
    engine, servable = Engine(), batch.servable
    assert isinstance(servable, Servable)
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    group = next(groups(batch, servable), None)
    return servable.model.beside_others(feeds(batch, servable.model, group)) if group is not None else ""
