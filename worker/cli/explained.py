"""What ``explain`` finds out about one record: it takes the record through the whole pipeline, without the loop, and writes nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from worker.batch import Batch, Columns, Fetched, Headers, Partition, Run
from worker.cli.sample import body_of, outcomes_of
from worker.errors import ConfigError, Reject, Rejection
from worker.local.outside import fetched
from worker.loop.admission import Admission, Admitted, matches
from worker.loop.openslab import lay_in_fetched
from worker.serving.cascade import Cascade
from worker.serving.load import load_servable
from worker.serving.rollout import Rollout
from worker.serving.route import Route
from worker.serving.servable import Servable
from worker.serving.tap import Told, ToldRun, tapped
from worker.serving.versions import resolved
from worker.settings import PipelineSettings, Settings, check_model_file, labels_of

if TYPE_CHECKING:
    from worker.kafka.tools import Record

TUNING_S = 0.5
"""Most time for the measurements behind ``auto``: one record does not need good figures."""
TIMED = 5
"""So often the record is taken through the engine for its times."""
TIMED_S = 1.0
"""After so long there is no further time."""
PREVIEW_CHARACTERS = 2000
PREVIEW_BYTES = 32
PICTURE_SIDE = 960
"""The longer side of the picture in a report has at most so many pixels."""


@dataclass(frozen=True, slots=True)
class Picture:
    """The record's picture for people, with its own size: boxes are given in pixels of that."""

    file: bytes
    mime: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class Explained:
    """A record's way through its pipeline: plain data that JSON can hold, and the picture if it has one."""

    report: dict[str, Any]
    picture: Picture | None = None


@dataclass(frozen=True, slots=True)
class Routed:
    """A route that is asked whether it takes a record, and for which no model is loaded yet."""

    route: Route
    trial: None = None
    held: bool = False

    def choose(self) -> Any:
        """No servable is there."""

    def sick(self, _servable: Any, _why: str) -> None:
        """None that is there can be."""


@dataclass(slots=True)
class _Passage:
    """One way through the engine: the batch with the record, and what became of it."""

    batch: Batch
    rejection: Rejection | None = None
    result: Any = None


class Explainer:
    """Explains one record of a configuration's topics.

    Args:
        routes: of all pipelines, in the order of the configuration.
        version: of the model, instead of the one that the configuration means.
    """

    def __init__(self, settings: Settings, routes: Sequence[Route], version: str | None) -> None:
        self._settings = settings
        self._routes = routes
        self._version = version

    def explain(self, record: Record) -> Explained:
        """Take the record through every stage.

        Raises:
            WorkerError: its pipeline's model cannot be loaded, or there is no such version; what the record needs from outside
                cannot be reached; its pipeline answers records together with earlier ones.
        """
        columns = columns_of(record)
        report: dict[str, Any] = {"record": described(record), "route": None}
        wanted = [Routed(route) for route in self._routes]
        admission = Admission(
            wanted, self._settings.limits.max_age_ms, self._settings.limits.expired, self._budget
        )
        (taken,) = admission.routed(columns)
        route = next((route for route in self._routes if route is taken), None)
        report["route"] = self._route(route, columns)
        report["notes"] = notes = self._notes(admission, columns, route)
        if route is None:
            message = (
                f"no pipeline takes this record of topic {record.topic}: none of their `when` headers matches"
            )
            return Explained(report | {"refused": asdict(Rejection("unroutable", "decode", message))})
        if self._settings.pipelines[route.name].input.window is not None:
            raise ConfigError(
                f"{record.topic}/{record.partition}/{record.offset}: pipeline {route.name} has input.window, so a record is "
                "answered together with earlier ones of its key; explain shows records that are answered alone"
            )
        rollout = self._loaded(route)
        try:
            return self._through(rollout, columns, report, notes)
        finally:
            rollout.close()

    @property
    def _budget(self) -> int:
        return self._settings.limits.in_flight_bytes

    # -- which pipeline, which model ---------------------------------------------------------------------

    def _route(self, taken: Route | None, columns: Columns) -> dict[str, Any]:
        """Which pipeline takes the record, and what each said that was asked."""
        (partition,), (headers,) = columns.partitions, columns.headers
        asked = []
        for route in self._routes:
            if partition.topic not in route.topics:
                continue
            asked.append(
                {"pipeline": route.name, "takes": route is taken, "why": _why(route, headers, taken)}
            )
            if route is taken:
                break
        return {
            "pipeline": taken.name if taken is not None else None,
            "asked": asked,
            "output": taken.destination.topic if taken is not None else None,
        }

    def _notes(self, admission: Admission, columns: Columns, route: Route | None) -> list[str]:
        """What the worker might do otherwise, because it sees more than this record."""
        notes = []
        for _, deadline_ms in admission.deadlines(columns):
            late_s = time.time() - deadline_ms / 1000
            if late_s > 0:
                told = f"the record's deadline passed {late_s:,.0f} s ago: a worker that reads it now refuses it as expired"
                notes.append(f"{told}. Here it counts as read when it was written")
        if route is not None and route.keep != "all":
            notes.append(f"input.keep is {route.keep}: a worker may leave this record out")
        if route is not None and route.entries is not None:
            notes.append("the pipeline has a cache: a worker may answer from memory. Here the model was run")
        return notes

    def _loaded(self, route: Route) -> Rollout:
        """The route with its model, loaded and warm."""
        name = route.name
        wanted = self._settings.pipelines[name]
        if self._version is not None:
            wanted = _of_version(self._settings, name, wanted, self._version)
        alone = self._settings.model_copy(update={"pipelines": {name: wanted}})
        alone, _ = resolved(alone)
        settings = self._settings.model_copy(
            update={"pipelines": {**self._settings.pipelines, name: alone.pipelines[name]}}
        )
        check_model_file(settings, name)
        for key, path in alone.label_files():
            labels_of(path, key)
        return Rollout(route, load_servable(settings, route, time.perf_counter() + TUNING_S))

    # -- through the engine ------------------------------------------------------------------------------

    def _through(
        self, rollout: Rollout, columns: Columns, report: dict[str, Any], notes: list[str]
    ) -> Explained:
        servable = rollout.choose()
        report["model"] = _model(servable)
        if rollout.route.outside:
            report["fetch"] = _fetch(rollout, columns, report["record"]["place"])
        written_ms = columns.timestamps_ms[0]
        now_ms = float(written_ms) if written_ms > 0 else time.time() * 1000
        limits = self._settings.limits
        admission = Admission([rollout], limits.max_age_ms, limits.expired, self._budget)
        admitted = admission.admit(columns, now_ms)
        if 0 in admitted.decided:
            return Explained(report | _decided(admitted))
        told = Told()
        first = self._pass(rollout, columns, admitted, tapped(servable, told), now_ms)
        report["decode"] = self._decoded(rollout.route, told, first.batch)
        report["runs"] = [_run(run, servable) for run in told.runs]
        if told.untold:
            notes.append(f"{told.untold} further model runs are not shown")
        if isinstance(servable, Cascade):
            report["steps"] = {step.name: told.predictions.get(step.name, []) for step in servable.steps}
        last = first
        if first.rejection is None:  # being looked at takes time, and so does what is made once
            last = self._quickest(rollout, columns, admitted, now_ms)
        report["refused"] = asdict(last.rejection) if last.rejection is not None else None
        report["result"] = last.result
        report["us"] = _times(last.batch)
        return Explained(report, _picture(told))

    def _quickest(self, rollout: Rollout, columns: Columns, admitted: Admitted, now_ms: float) -> _Passage:
        """Of several ways through the engine that nobody looks at, the one that took the least time."""
        plain = replace(rollout.stable, cache=None, offload=None)
        passages: list[_Passage] = []
        deadline = time.monotonic() + TIMED_S
        while len(passages) < TIMED and (not passages or time.monotonic() < deadline):
            passages.append(self._pass(rollout, columns, admitted, plain, now_ms))
        return min(passages, key=lambda passage: sum(_times(passage.batch).values()))

    def _pass(
        self, rollout: Rollout, columns: Columns, admitted: Admitted, servable: Servable, now_ms: float
    ) -> _Passage:
        waited_us = columns.fetched[0].fetch_us if columns.fetched is not None else 0
        taken_ns = time.monotonic_ns() - waited_us * 1000
        batch = Batch(None, range(1), columns, rollout.route, servable, taken_ns, now_ms)
        batch.to_open = set(admitted.to_open)
        if columns.fetched is not None:
            lay_in_fetched(batch, columns.fetched)
        place = f"{columns.partitions[0].topic}/{columns.partitions[0].number}/{columns.offsets[0]}"
        outcomes = outcomes_of(batch, rollout, place)
        if outcomes.rejected:
            return _Passage(batch, outcomes.rejected[0])
        body = body_of(outcomes, rollout)
        return _Passage(batch, None, {"bytes": len(body)} if isinstance(body, bytes) else body)

    def _decoded(self, route: Route, told: Told, batch: Batch) -> dict[str, Any]:
        wanted = self._settings.pipelines[route.name]
        picture = told.pixels.shape[:2] if told.pixels is not None else None
        return {
            "format": wanted.input.format,
            "unwrapped": route.opening.applies(batch.columns.headers[0]),
            "payload": preview(told.payload),
            "picture": {"height": picture[0], "width": picture[1]} if picture is not None else None,
            "truncated": batch.feed is not None and 0 in batch.feed.truncated,
        }


def columns_of(record: Record) -> Columns:
    """The record as columns of one row."""
    return Columns(
        [record.value],
        [record.key],
        [record.headers or None],
        [record.timestamp_ms],
        [record.offset],
        [Partition(record.topic, record.partition)],
    )


def described(record: Record) -> dict[str, Any]:
    """The record itself."""
    return {
        "place": f"{record.topic}/{record.partition}/{record.offset}",
        "timestamp_ms": record.timestamp_ms,
        "key": preview(record.key),
        "headers": [[name, preview(value)] for name, value in record.headers],
        "value": preview(record.value),
    }


def preview(value: bytes | None) -> dict[str, Any] | None:
    """The beginning of some bytes: ``bytes`` in all, with ``text`` if they are UTF-8, else ``hex``."""
    if value is None:
        return None
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return {
            "bytes": len(value),
            "hex": value[:PREVIEW_BYTES].hex(" "),
            "cut": len(value) > PREVIEW_BYTES,
        }
    return {"bytes": len(value), "text": text[:PREVIEW_CHARACTERS], "cut": len(text) > PREVIEW_CHARACTERS}


def _why(route: Route, headers: Headers | None, taken: Route | None) -> str:
    if route.when is None:
        return "it has no `when`: it takes every record of its topics"
    name, value = route.when
    wanted = f"header {name} is {value.decode()}"
    if route is taken:
        inside = "" if matches(route.when, headers) else ", as an attribute of the event"
        return f"{wanted}{inside}"
    found = next((v for key, v in reversed(headers or []) if key.lower() == name.lower()), None)
    has = f"it is {found.decode(errors='replace')[:200]}" if found is not None else "the record has none"
    return f"expected {wanted}; {has}"


def _of_version(settings: Settings, name: str, wanted: PipelineSettings, version: str) -> PipelineSettings:
    """The pipeline with another version of its model."""
    if wanted.steps is not None:
        raise ConfigError(f"--version: pipeline {name} has steps, each with a model of its own")
    if wanted.model.repository is None:
        raise ConfigError(
            f"--version: the model of pipeline {name} is one file; expected {settings.key(name, 'model.repository')}"
        )
    return wanted.model_copy(update={"model": wanted.model.model_copy(update={"version": version})})


def _model(servable: Servable) -> dict[str, Any]:
    told: dict[str, Any] = {
        "name": servable.model_name,
        "version": servable.model_version,
        "provider": servable.model.provider,
    }
    if isinstance(servable, Cascade):
        told["steps"] = {step.name: step.servable.label for step in servable.steps}
    return told


def _fetch(rollout: Rollout, columns: Columns, place: str) -> dict[str, Any]:
    """Ask for what the record needs from outside; the columns hold it afterwards."""
    value, headers = columns.values[0], columns.headers[0]
    started_ns = time.monotonic_ns()
    payload, rejection = None, None
    needs: list[str] = []
    try:
        need = rollout.route.outside[0].need(value, headers)
        needs += [need.what] if need is not None else []
        payload = fetched(rollout.route, value, headers, place)
    except Reject as error:
        rejection = Rejection.of(error, "fetch", rollout.route.outside[0])
    took_us = (time.monotonic_ns() - started_ns) // 1000
    columns.fetched = [Fetched(started_ns, took_us, payload, rejection)]
    return {"what": needs, "us": took_us, "bytes": len(payload) if payload is not None else None}


def _decided(admitted: Admitted) -> dict[str, Any]:
    """What became of a record that needs no model."""
    why = admitted.outcomes.rejected.get(0)
    if why is not None:
        return {"refused": asdict(why)}
    return {"refused": None, "dropped": 0 in admitted.outcomes.dropped, "result": None}


def _run(run: ToldRun, servable: Servable) -> dict[str, Any]:
    label = servable.label
    if isinstance(servable, Cascade):
        label = next(step.servable.label for step in servable.steps if step.name == run.step)
    return {"model": label, **asdict(run)}


def _times(batch: Batch) -> dict[str, int]:
    """Microseconds by stage, without the time before the record was taken; of a refused record as far as it came."""
    runs: list[Run] = batch.runs
    if not runs or not runs[0].stages_us:
        if not batch.decode_started_ns or not batch.decode_ended_ns:
            return {}
        took_us = max(0, batch.decode_ended_ns - batch.decode_started_ns) // 1000
        return {"decode": took_us}
    stages = runs[0].stages_us
    told = {name: _one(us) for name, us in stages.items() if name not in ("broker", "total")}
    for name, part in (runs[0].steps or {}).items():
        told[f"infer: {name}"] = part.us
    return told


def _one(us: Any) -> int:
    return int(np.asarray(us).reshape(-1)[0])


def _picture(told: Told) -> Picture | None:
    if told.pixels is None:
        return None
    from worker.features.thumbnail import thumbnail_of

    made = thumbnail_of(told.pixels, told.flags, PICTURE_SIDE)
    return Picture(*made) if made is not None else None
