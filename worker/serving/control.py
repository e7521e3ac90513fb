"""The records of the control topic, and what they say together. Pure: no Kafka, no clock.

Every replica folds the same records in the same order (:class:`Book`), so every replica comes to the same answer. Of a
rollout's decisions the first one counts. No record that matters has the key of another one, so compaction removes none.

    streaminfer.rollout   a rollout runs, or what was decided of it
    streaminfer.pin       one version answers, whatever else is there; null: no longer
    streaminfer.stable    the version that answered when the topic said nothing yet; the first one counts
    streaminfer.figures   what one replica has seen of the rollout that runs; the newest of each replica counts
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from worker.serving.rollout import Arm, Figures

SCHEMA = 1
ROLLOUT, PIN, STABLE, FIGURES = (f"streaminfer.{name}" for name in ("rollout", "pin", "stable", "figures"))
Mode = Literal["canary", "shadow"]
State = Literal["running", "promoted", "rolled_back", "aborted"]
CLI = "cli:"
"""With this begins the name of a person who wrote a record by the command line."""
ID_DIGEST = 12
"""Hex digits of the digest over a version's files with which the id of a rollout begins."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One record about a rollout."""

    pipeline: str
    id: str
    """``<digest of the candidate's files>-<random>``."""
    stable: str
    candidate: str
    mode: Mode
    share: float
    state: State
    reason: str
    by: str
    """The client id of a replica, or ``cli:<user>@<host>``."""
    time_ms: int
    """Unix milliseconds."""

    def key(self, nonce: str) -> str:
        """Of the record; ``nonce`` makes it another one at each attempt to write it.

        A record that is written twice must not have one key: compaction would then keep the later one, and what came
        between the two would have been first.
        """
        return f"rollout/{self.pipeline}/{self.id}/{self.state}/{self.by}/{nonce}"

    @property
    def digest(self) -> str:
        """Of the candidate's files, as its id has it."""
        return self.id.partition("-")[0]


@dataclass(frozen=True, slots=True)
class Pin:
    """One version answers a pipeline, or does so no longer."""

    pipeline: str
    version: str | None
    was: str | None
    """With version null: the version that was pinned, which goes on answering."""
    by: str
    time_ms: int

    def key(self, nonce: str) -> str:
        return f"pin/{self.pipeline}/{nonce}"


@dataclass(frozen=True, slots=True)
class Stable:
    """The version that answers a pipeline of which nothing was decided yet."""

    pipeline: str
    version: str
    by: str
    time_ms: int

    def key(self, nonce: str) -> str:
        return f"stable/{self.pipeline}/{nonce}"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one replica has seen of a rollout so far."""

    pipeline: str
    id: str
    figures: Figures
    replica: str
    """A name of the process of its own: several may share a client id."""
    by: str
    time_ms: int

    def key(self, nonce: str) -> str:
        """The same at each writing: only the newest is of use."""
        return f"figures/{self.pipeline}/{self.replica}"


Record = Decision | Pin | Stable | Seen
_TYPES: dict[str, type[Decision | Pin | Stable | Seen]] = {
    ROLLOUT: Decision,
    PIN: Pin,
    STABLE: Stable,
    FIGURES: Seen,
}


def encoded(record: Record) -> bytes:
    """The record's value: JSON."""
    kind = next(name for name, each in _TYPES.items() if isinstance(record, each))
    return json.dumps({"type": kind, "schema": SCHEMA, **asdict(record)}, ensure_ascii=False).encode()


def decoded(value: bytes | None) -> Record | None:
    """The record that a value holds; None where it is none that this program knows, such as one of a later schema."""
    try:
        document = json.loads(value or b"")
    except (ValueError, UnicodeDecodeError):
        return None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return None
    made = _TYPES.get(str(document.get("type")))
    try:
        return _read(made, document) if made is not None else None
    except (KeyError, TypeError, ValueError):
        return None


def _read(made: type[Decision | Pin | Stable | Seen], document: Mapping[str, Any]) -> Record:
    by, time_ms, pipeline = str(document["by"]), int(document["time_ms"]), str(document["pipeline"])
    if made is Pin:
        return Pin(pipeline, _text(document["version"]), _text(document.get("was")), by, time_ms)
    if made is Stable:
        return Stable(pipeline, str(document["version"]), by, time_ms)
    if made is Seen:
        figures = document["figures"]
        arms = [
            Arm(**{name: figures[arm][name] for name in Arm.__slots__}) for arm in ("stable", "candidate")
        ]
        seen = Figures(arms[0], arms[1], int(figures["compared"]), int(figures["disagreed"]))
        return Seen(pipeline, str(document["id"]), seen, str(document["replica"]), by, time_ms)
    mode, state, share = document["mode"], document["state"], float(document["share"])
    if mode not in get_args(Mode) or state not in get_args(State) or not 0 <= share <= 1:
        raise ValueError("not a decision")
    name, stable, candidate = (str(document[name]) for name in ("id", "stable", "candidate"))
    reason = str(document.get("reason") or "")
    return Decision(pipeline, name, stable, candidate, mode, share, state, reason, by, time_ms)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


@dataclass(slots=True)
class Book:
    """What the control topic says of one pipeline, by the records read so far."""

    running: Decision | None = None
    """The rollout that runs, with the largest share that it was given."""
    decided: dict[str, Decision] = field(default_factory=dict)
    """The decision that counts of each rollout, by its id, in their order."""
    pin: str | None = None
    seen: dict[str, Seen] = field(default_factory=dict)
    """Of the rollout that runs, the newest figures of each replica."""
    _answers: str | None = None

    @property
    def stable(self) -> str | None:
        """The version that answers what no candidate answers; None: the topic does not say yet."""
        return self.pin or self._answers

    def take(self, record: Record) -> bool:
        """Take the next record; whether it changed anything."""
        match record:
            case Decision(state="running"):
                return self._run(record)
            case Decision():
                return self._decide(record)
            case Pin(version=None):
                changed = self.pin is not None
                self._answers = self.pin or record.was or self._answers
                self.pin = None
                return changed
            case Pin():
                self._end_by(record)
                self.pin = record.version
            case Stable():
                if self._answers is not None:
                    return False
                self._answers = record.version
            case Seen():
                if self.running is None or self.running.id != record.id:
                    return False
                self.seen[record.replica] = record
        return True

    def _run(self, record: Decision) -> bool:
        """A rollout runs if none does, its writer knew which version answers, and nobody has decided it already."""
        running = self.running
        if running is not None:
            grows = running.id == record.id and record.share > running.share
            if grows:
                self.running = replace(running, share=record.share)
            return grows
        if record.id in self.decided or self.pin is not None:
            return False
        if self._answers not in (None, record.stable) or record.candidate == record.stable:
            return False
        if not record.by.startswith(CLI) and self.ended(record.candidate, record.digest, "rolled_back"):
            return (
                False  # two replicas began one after the other, and the later one did not know how it ended
            )
        self.running, self._answers = record, record.stable
        self.seen.clear()
        return True

    def _decide(self, record: Decision) -> bool:
        if record.id in self.decided:
            return False
        self.decided[record.id] = record
        if self.running is None or self.running.id != record.id:
            return False
        if record.state == "promoted":
            self._answers = self.running.candidate
        self.running = None
        self.seen.clear()
        return True

    def _end_by(self, pin: Pin) -> None:
        """A pin ends the rollout that runs, whether or not its writer knew of it."""
        running = self.running
        if running is not None:
            why = f"version {pin.version} is pinned"
            self._decide(replace(running, state="aborted", reason=why, by=pin.by, time_ms=pin.time_ms))

    def ended(self, version: str, digest: str, *states: State) -> bool:
        """Whether a rollout of these files of a version ended in one of some states."""
        return any(
            each.candidate == version and each.digest == digest and each.state in states
            for each in self.decided.values()
        )
