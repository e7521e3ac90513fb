"""From settings to warm servables: every model is loaded, probed, tuned and warmed here."""

from __future__ import annotations

import time
from functools import partial
from typing import Literal

import structlog

from worker.batch import Lane
from worker.drift.watch import CPU_SHARE
from worker.encode import encoder as make_encoder
from worker.errors import ConfigError
from worker.model.bounded import Bounds
from worker.model.headroom import resident_bytes
from worker.model.session import LARGEST_UNKNOWN_SIZE, Model
from worker.model.session import load as load_model
from worker.model.signature import JSON
from worker.model.tune import Tuning, quickest_s, tune, usable_cores
from worker.payload.keys import Keys
from worker.records import Decoder
from worker.records import decoder as make_decoder
from worker.registry import CONTENTS, INPUT_FORMATS, POSTPROCESSES
from worker.schema_registry.opening import Registry
from worker.serving.cache import cache_of
from worker.serving.constants import constants_of
from worker.serving.gauge import gauge_of
from worker.serving.padding_check import ragged_of
from worker.serving.ragged_warm import warm_longest
from worker.serving.rollout import Rollout
from worker.serving.route import Route, route_of
from worker.serving.servable import Servable
from worker.settings import (
    PipelineSettings,
    Settings,
    check_budget,
    check_model_file,
    import_attribute,
    labels_of,
)

TUNING_S = 5.0
"""Most time that all ``auto`` measurements of a process take together."""
WARM_BYTES = 64 << 20
"""Made-up warm-up batches never take more than this."""
DECODE_US = 150.0
"""About what the decoding of one small image costs outside the interpreter lock."""
SLAB_WORK_S = 0.004
"""About the work in one slab of a fast model: it holds several runs, which then share what is done for each slab."""
SLAB_RECORDS_MAX = 2048

log = structlog.get_logger()


def load(
    settings: Settings,
    took: dict[str, int] | None = None,
    keys: Keys | None = None,
    registry: Registry | None = None,
) -> dict[str, Rollout]:
    """Every pipeline with its model loaded, tuned and warm, by name and in the order of the configuration.

    Args:
        settings: with the file of each model, see :func:`worker.serving.versions.resolved`.
        took: gets the memory in bytes that each pipeline's load took.
        keys: of ``encryption``, when somebody else wants to have them read again.
        registry: the schema registry; None where no pipeline needs one.

    Raises:
        WorkerError: a model, its labels, its formats or the budget do not fit together.
    """
    for name in settings.pipelines:
        check_model_file(settings, name)
    for key, path in settings.label_files():
        labels_of(path, key)
    if keys is None and settings.encryption is not None:
        keys = Keys(settings.encryption)
    routes = {name: route_of(name, wanted, keys, registry) for name, wanted in settings.pipelines.items()}
    watches = [route.drift for route in routes.values() if route.drift is not None]
    for watch in watches:
        watch.share = CPU_SHARE / len(watches)
    deadline = time.perf_counter() + TUNING_S
    rollouts = {}
    for name, route in routes.items():
        before_bytes = resident_bytes()
        rollouts[name] = Rollout(route, load_servable(settings, route, deadline))
        if took is not None:
            took[name] = resident_bytes() - before_bytes
    return rollouts


def load_servable(
    settings: Settings, route: Route, deadline: float, like: Servable | None = None
) -> Servable:
    """The servable that the settings of a route's pipeline describe, warm.

    Args:
        deadline: of the measurements behind ``auto``; by ``time.perf_counter``.
        like: the servable whose place it takes: its figures count, because beside traffic nothing can be measured, and
            its lane. None for the first one.

    Raises:
        WorkerError: the model, its labels, its formats or the budget do not fit together.
    """
    wanted = settings.pipelines[route.name]
    if wanted.steps is not None:
        from worker.serving.load_steps import load_cascade

        return load_cascade(settings, route, lambda alone, its: load_servable(alone, its, deadline))
    model = _coded(settings, route.name) if wanted.model.code is not None else _opened(settings, route.name)
    try:
        return _warm(settings, route, model, deadline, like)
    except BaseException:
        model.close()
        raise


def _opened(settings: Settings, pipeline: str) -> Model:
    """A pipeline's ONNX model."""
    wanted = settings.pipelines[pipeline]
    return load_model(
        wanted.model.file,
        name=wanted.model.name or pipeline,
        version=wanted.model.version,
        sha256=wanted.model.sha256,
        providers=wanted.model.providers,
        instances=_or(wanted.model.instances, 1),
        max_size=_or(wanted.batching.max_size, LARGEST_UNKNOWN_SIZE),
        described_by=wanted.model.folder,
        few_shapes=_few_shapes(wanted),
        one_shape=wanted.preprocess.one_shape,
        shapes=wanted.model.shapes,
        sizes=[*([len(wanted.input.field_names)] if wanted.input.fields else ()), *wanted.preprocess.sizes],
        constants=constants_of(wanted, settings.limits),
        state=wanted.model.state,
        devices=wanted.model.devices or (0,),
        bounds=Bounds(settings.limits.batch_timeout_s, partial(check_budget, settings, pipeline)),
    )


def _coded(settings: Settings, pipeline: str) -> Model:
    """A pipeline's model that is custom code."""
    from worker.model.code import load_code
    from worker.serving.code_inputs import inputs_of

    wanted = settings.pipelines[pipeline]
    code, key = wanted.model.code or "", settings.key(pipeline, "model.code")
    model = load_code(
        code,
        import_attribute(code, key),
        wanted.model.file,
        key=key,
        default_inputs=lambda: inputs_of(wanted, key),
        name=wanted.model.name or pipeline,
        version=wanted.model.version,
        sha256=wanted.model.sha256,
        at_once=_or(wanted.model.instances, 1),
        sizes=wanted.preprocess.sizes,
    )
    if model.signature.outputs[0].datatype == JSON and (
        wanted.postprocess.name != "raw" or wanted.output.format != "json"
    ):
        model.close()
        raise ConfigError(
            f"{key}: custom code {code} gives values for JSON; expected arrays, or no postprocess and output.format json"
        )
    return model


def _warm(settings: Settings, route: Route, model: Model, deadline: float, like: Servable | None) -> Servable:
    """The servable around a loaded model, with the figures measured for them; see :func:`load_servable`."""
    wanted = settings.pipelines[route.name]
    decoder = make_decoder(wanted, model.signature, settings.limits, route.schemas)
    needs_windows = getattr(POSTPROCESSES.entry(wanted.postprocess.name), "needs_windows", False)
    if needs_windows and not getattr(decoder, "windowed", False):
        raise ConfigError(
            f"postprocess.{wanted.postprocess.name}: goes with windows of sound only; expected preprocess.audio.window_s"
        )
    encoder = make_encoder(
        wanted, model.described or model.signature, model.name, model.version, wanted.labels, route.envelope
    )
    model.forget()
    signature = model.signature
    check_budget(settings, route.name, sum(s.item_nbytes for s in (*signature.inputs, *signature.outputs)))
    share = min(WARM_BYTES, settings.limits.in_flight_bytes // 2)
    tuning = tune(
        model,
        max_size=wanted.batching.max_size if like is None else like.max_size,
        threads=wanted.model.threads if like is None else like.threads,
        instances=wanted.model.instances if like is None else max(1, like.lane.runs - model.lookahead),
        cores=usable_cores(),
        max_bytes=share,
        deadline=deadline,
        decode_us=DECODE_US if decoder.shard_rows else 0.0,
    )
    max_size = model.warm(tuning.max_size, share)
    # How long custom code takes is not known: it must not hold up the loop, and a drain must not wait for many batches.
    threads = tuning.threads
    if wanted.model.threads == "auto":
        threads = max(threads, _least_threads(wanted, tuning, model))
    slab_records = max_size if wanted.custom_code else _slab_records(model, decoder, max_size)
    joins_runs = decoder.fixed and not decoder.shard_rows and signature.batchable
    ragged = ragged_of(model, getattr(decoder, "padding", None), model.name, model.backend.tolerance)
    warm_longest(model, ragged, max_size)
    servable = Servable(
        decoder,
        model,
        encoder,
        max_size=max_size,
        batch_records=slab_records if joins_runs else getattr(decoder, "batch_records", None) or max_size,
        slab_records=slab_records,
        lane=like.lane if like is not None else _lane(route, tuning, model),
        threads=threads,
        offload=route.offload,
        ragged=ragged,
        gauge=gauge_of(wanted, route.drift, decoder, encoder, signature, route.name),
        cache=cache_of(wanted, route.entries, encoder, settings.key(route.name, "cache")),
        reading=(wanted.input, wanted.preprocess),
    )
    _log_ready(route, servable, tuning)
    return servable


def _least_threads(wanted: PipelineSettings, tuning: Tuning, model: Model) -> int:
    """Threads that the pool needs whatever a run costs: on several devices one for each run, which waits, and one to decode."""
    if len(wanted.model.devices or ()) > 1:
        return tuning.instances + model.lookahead + 1
    return 1 if wanted.custom_code else 0


def _few_shapes(wanted: PipelineSettings) -> bool:
    """Whether every input has few lengths, because it is made of text."""
    named = [content.name for content in wanted.preprocess.contents]
    if not named and wanted.input.format in INPUT_FORMATS:
        named = [*INPUT_FORMATS.entry(wanted.input.format).contents[:1]]
    return bool(named) and all(getattr(CONTENTS.entry(name), "few_shapes", False) for name in named)


def _lane(route: Route, tuning: Tuning, model: Model) -> Lane:
    return Lane(route.name, tuning.instances + model.lookahead, model.ahead, route.priority)


def _log_ready(route: Route, servable: Servable, tuning: Tuning) -> None:
    log.info(
        "model ready",
        pipeline=route.name,
        model=servable.label,
        provider=servable.model.provider,
        batchable=servable.model.signature.batchable,
        max_size=servable.max_size,
        threads=servable.threads,
        slab_records=servable.slab_records,
        **tuning.figures,
    )


def _or(figure: int | Literal["auto"], unknown: int) -> int:
    """A figure as configured; ``unknown`` where it is still to be measured."""
    return unknown if figure == "auto" else figure


def _slab_records(model: Model, decoder: Decoder, max_size: int) -> int:
    """Records in one slab: one batch, or several of a model that is quick with one.

    A slab of images is one batch: their decoding takes the time, and the pool divides that by itself.
    """
    sample = model.sample(max_size if model.signature.batchable else 1)
    if decoder.shard_rows or sample is None:
        return max_size
    took_s = quickest_s(lambda: model.run(sample), 5 * SLAB_WORK_S)
    if not model.signature.batchable:
        took_s *= max_size
    runs = min(SLAB_RECORDS_MAX // max_size, int(SLAB_WORK_S / max(took_s, 1e-6)))
    return max_size * max(1, runs)
