"""From settings to a cascade: every step is loaded, tuned and warmed as a pipeline of its own, and they are put together."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

import structlog

from worker.batch import Lane
from worker.encode.steps import StepsEncoder
from worker.errors import ConfigError, WorkerError
from worker.records.paths import Path
from worker.serving.cache import cache_of
from worker.serving.cascade import BOXES_MAX, RESERVE_SHARE, Cascade, CascadeModel, Room, Step
from worker.serving.condition import Condition
from worker.serving.gauge import gauge_of
from worker.serving.item_feed import picture_features
from worker.serving.route import Route
from worker.serving.servable import Servable
from worker.settings import Settings, check_budget
from worker.settings.members import boxes_of, members_of_step
from worker.settings.sections import StepSettings
from worker.settings.steps import Scope, scopes

LoadOne = Callable[[Settings, Route], Servable]
"""Loads the servable of a pipeline that has one model."""

log = structlog.get_logger()


def load_cascade(settings: Settings, route: Route, load_one: LoadOne) -> Cascade:
    """The cascade that the settings of a route's pipeline describe, warm.

    Raises:
        WorkerError: a step cannot be loaded, or the steps do not fit together; names the step's setting.
    """
    servables: list[Servable] = []
    try:
        for prefix, part in settings.pipelines[route.name].parts.items():
            alone = settings.model_copy(update={"pipelines": {route.name: part}})
            try:
                servables.append(load_one(alone, route))
            except WorkerError as error:
                key = settings.key(route.name, prefix.removesuffix("."))
                raise type(error)(f"{key}: {error}") from error
        return _joined(settings, route, servables)
    except BaseException:
        for servable in servables:
            servable.close()
        raise


def _joined(settings: Settings, route: Route, servables: Sequence[Servable]) -> Cascade:
    wanted = settings.pipelines[route.name]
    assert wanted.steps is not None
    first = servables[0]
    places = scopes(wanted.steps)
    lane = Lane(
        route.name, max(s.lane.runs for s in servables), max(s.lane.ahead for s in servables), route.priority
    )
    steps = [
        _step(step, servable, wanted.steps, places, lane)
        for step, servable in zip(wanted.steps, servables, strict=True)
    ]
    _check_pictures(settings, route, steps)
    model = CascadeModel(
        wanted.model.name or route.name, [(step.name, step.servable.model) for step in steps]
    )
    takes_items = any(getattr(servable.encoder, "takes_items", False) for servable in servables)
    encoder = StepsEncoder(wanted, model.name, model.version, model.steps, route.envelope, takes_items)
    records = min(servable.slab_records for servable in servables)
    cascade = Cascade(
        first.decoder,
        model,
        encoder,
        max_size=first.max_size,
        batch_records=min(first.batch_records, records),
        slab_records=records,
        lane=lane,
        threads=max(servable.threads for servable in servables),
        ragged=first.ragged,
        offload=route.offload,
        gauge=gauge_of(wanted, route.drift, first.decoder, encoder, first.model.signature, route.name),
        cache=cache_of(wanted, route.entries, encoder, settings.key(route.name, "cache")),
        steps=steps,
        room=_room(settings, steps, lane.runs),
        keeps_pictures=_keep_pictures(steps),
    )
    check_budget(settings, route.name, cascade.item_nbytes, cascade.reserve_bytes)
    log.info(
        "steps ready",
        pipeline=route.name,
        steps=model.steps,
        slab_records=cascade.slab_records,
        reserve_bytes=cascade.reserve_bytes,
    )
    return cascade


def _step(
    step: StepSettings,
    servable: Servable,
    steps: Sequence[StepSettings],
    places: Mapping[str, Scope],
    lane: Lane,
) -> Step:
    later = [other for other in steps if other is not step]
    has_boxes = any(other.over_boxes and other.source and other.source[0] == step.name for other in later)
    source = step.source
    runs = servable.lane.runs
    return Step(
        name=step.name,
        servable=servable,
        source=source[0] if source is not None else None,
        path=Path.of(source[1]) if source is not None and not step.over_boxes else None,
        over_boxes=step.over_boxes,
        scope=places[step.name],
        boxes=boxes_of(step.postprocess) if has_boxes else None,
        most_boxes=min(BOXES_MAX, getattr(step.postprocess.options, "max", BOXES_MAX)),
        conditions=[Condition(path, each, _is_number(path, steps)) for path, each in step.when.items()],
        turn=step.turn,
        gate=threading.BoundedSemaphore(runs) if runs < lane.runs else None,
    )


def _is_number(path: str, steps: Sequence[StepSettings]) -> bool:
    """Whether a condition looks at a number that every prediction of its step has."""
    name, _, field = path.partition(".")
    members = next(members_of_step(step) for step in steps if step.name == name)
    return members is not None and members.get(field) == "number"


def _check_pictures(settings: Settings, route: Route, steps: Sequence[Step]) -> None:
    """Crops need a picture that holds the colours which the later step is made for."""
    by_name = {step.name: step for step in steps}
    for index, step in enumerate(steps):
        if not step.over_boxes:
            continue
        key = settings.key(route.name, f"steps.{index}")
        source = by_name[step.scope[-1]]
        seen, own = picture_features(source), picture_features(step)
        if not seen:
            raise ConfigError(f"{key}.from: {source.name} is given no picture, so its boxes have no crops")
        gray = seen[0].target.settings.color == "gray"
        if gray and any(feature.target.settings.color != "gray" for feature in own):
            raise ConfigError(
                f"{key}.preprocess.image.color: got {own[0].target.settings.color}, but {source.name} looks at gray "
                f"pictures; expected gray, or rgb or bgr in {source.name}"
            )


def _keep_pictures(steps: Sequence[Step]) -> bool:
    """Have decoded pictures of records kept where later steps look at them; returns whether there are any."""
    sources = {step.scope[-1] for step in steps if step.over_boxes}
    cut = [f for step in steps if step.name in sources and not step.scope for f in picture_features(step)[:1]]
    keys = [feature.pixels_key for step in steps if not step.scope for feature in picture_features(step)]
    shared = [key for key in keys if keys.count(key) > 1]
    kept = False
    for feature in (f for step in steps if not step.scope for f in picture_features(step)):
        if feature in cut:
            feature.kept = 2  # the picture, and the largest crop of it
        elif feature.pixels_key in shared:
            feature.kept = 1
        kept = kept or feature.kept > 0
    return kept


def _room(settings: Settings, steps: Sequence[Step], runs: int) -> Room:
    """The memory for runs of steps over boxes and of fields of boxes: as much as they need, at most a share of the budget."""
    most = settings.limits.in_flight_bytes // RESERVE_SHARE
    needed = 0
    for step in steps:
        if step.source is None:
            continue
        decoder = step.servable.decoder
        free = not decoder.fixed or any(
            None in spec.item_shape for spec in step.servable.model.signature.inputs
        )
        one_run = step.servable.max_size * step.servable.item_nbytes
        needed = max(needed, most if free else 2 * runs * one_run)
    return Room(min(most, needed), runs)
