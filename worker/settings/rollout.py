"""Settings of a rollout: how a new version of a model is tried, and where what is decided of it is written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from worker.settings.kinds import Fraction, Positive, Topic, Wait
from worker.settings.section import Section


class ControlSettings(Section):
    """Where every replica reads which version of a model answers."""

    topic: Topic
    """A compacted topic with one partition, the same for every replica of the group. Made, if it is missing, where output.create is there."""


class RolloutLimits(Section):
    """What a candidate may be worse at. null switches a limit off."""

    errors: Fraction | None = 0.01
    """Share of dead letters among the candidate's records, less that among the stable version's."""
    latency_ratio: Annotated[float, Field(gt=1)] | None = 1.5
    """Time per record in the candidate's runs, divided by that of the stable version."""
    disagreement: Fraction | None = 0.05
    """With mode shadow: share of the compared records to which both versions give unlike answers."""


class RolloutSettings(Section):
    """How a new version of a repository's model is tried before it answers everything."""

    mode: Literal["canary", "shadow"] = "canary"
    """canary: the candidate answers a share of the keys; shadow: it runs beside the stable version, and its answers are only compared."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Of the keys that a canary answers; of shadow, of nothing: it sees all records."""
    min_records: Positive = 1000
    """Records that the candidate must have answered, in all replicas together, before it is promoted."""
    for_s: Wait = 600.0
    """How long the rollout must have lasted before the candidate is promoted."""
    max: RolloutLimits = RolloutLimits()
    """The candidate is rolled back when it breaks one of these."""
    then: Literal["promote", "wait"] = "promote"
    """What happens after min_records and for_s; wait: for `streaminfer model CONFIG promote`."""
    topic: Topic | None = None
    """With mode shadow: topic for the candidate's results; they are published nowhere unless named."""
