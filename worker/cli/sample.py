"""Runs one record through a whole pipeline, without Kafka and without the loop, for ``check --sample`` and ``explain``."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from worker import frames
from worker.batch import Batch, Columns, Headers, Outcomes, Partition
from worker.errors import ConfigError, Reject, StartError
from worker.local.outside import as_sent, fetched, opened_body
from worker.loop.pool import InlinePool, Mailbox, Returned
from worker.serving.engine import Engine
from worker.serving.rollout import Rollout
from worker.serving.runs import feeds, groups
from worker.serving.servable import Servable

WAIT_S = 15.0
"""For so long a sample waits for its schema."""


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
        StartError: the store that has what the record refers to is away.
    """
    servable = rollout.choose()
    payload = fetched(rollout.route, value, headers, "--sample")
    if payload is None:
        value, headers = as_sent(rollout.route, value, headers)
    else:
        value = payload
    if rollout.route.opening.applies(headers):
        rollout.route.opening.cost(value, headers)
    elif len(value) > servable.free_bytes:
        servable.cost(value)
    batch = _batch(rollout, servable, value, headers)
    outcomes = outcomes_of(batch, rollout, "--sample")
    for rejection in outcomes.rejected.values():
        raise frames.at(rejection.frames, Reject(f"{rejection.stage}: {rejection.message}", rejection.reason))
    if servable.max_size > 1 and (reason := _beside_others(_batch(rollout, servable, value, headers))):
        raise ConfigError(
            f"--sample: {reason}, when this record runs beside others; expected batching.max_size: 1"
        )
    return body_of(outcomes, rollout)


def outcomes_of(batch: Batch, rollout: Rollout, asker: str) -> Outcomes:
    """What becomes of the records of a batch that goes through all steps of the engine on this thread.

    Args:
        batch: of the rollout's stable servable, or of one that stands for it.
        asker: who wants to know, for messages: an option or a record.

    Raises:
        SickModel: the model no longer gives its known output.
        StartError: a record waits for its schema for too long.
    """
    pool = InlinePool(Engine(), Mailbox())
    pool.submit(batch)
    back = _collected(pool, asker)
    if back.error is not None:
        raise back.error
    if batch.sick is not None:
        rollout.sick(rollout.stable, batch.sick)
    assert batch.outcomes is not None
    return batch.outcomes


def body_of(outcomes: Outcomes, rollout: Rollout) -> Any:
    """The body of the first result, without what the pipeline wraps around it; parsed where it is JSON."""
    sent = outcomes.headers[0] if outcomes.headers is not None else None
    return opened_body(rollout.route, outcomes.bodies[0] or b"", sent)


def _collected(pool: InlinePool, asker: str) -> Returned:
    """The batch when it is back: a record may wait for its schema.

    Raises:
        StartError: it waits for too long.
    """
    deadline = time.monotonic() + WAIT_S
    while not (found := pool.collect()):
        if time.monotonic() > deadline:
            raise StartError(
                f"{asker}: the schema registry does not answer; expected registry.url to be reachable"
            )
        time.sleep(0.005)
    return found[0]


def _batch(rollout: Rollout, servable: Servable, value: bytes, headers: Headers | None) -> Batch:
    now_ms = time.time() * 1000
    source = Partition(rollout.route.topics.example, 0)
    columns = Columns([value], [None], [headers or None], [int(now_ms)], [0], [source])
    batch = Batch(None, range(1), columns, rollout.route, servable, time.monotonic_ns(), now_ms)
    batch.to_open = {0} if rollout.route.opening.applies(headers) else set()
    return batch


def _beside_others(batch: Batch) -> str:
    """Why the record's items may not share a run, although made-up items may; empty if they may."""
    assert isinstance(batch.servable, Servable)
    # an answer that is in memory by now would leave nothing to decode
    engine, servable = Engine(), replace(batch.servable, cache=None)
    batch.servable = servable
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    group = next(groups(batch, servable), None)
    return servable.model.beside_others(feeds(batch, servable.model, group)) if group is not None else ""
