"""What ``check`` says of loaded models: one line for each thing that can be known of a model, of every step where there are several."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from worker.settings import MIB, Settings

if TYPE_CHECKING:
    from worker.serving.rollout import Rollout

SPEED_S = 0.5
"""Most seconds that measuring one model takes, but for the first run of each size."""
SPEED_BYTES = 64 * MIB
"""A batch whose tensors take more is not measured."""


def models_line(rollouts: Mapping[str, Rollout]) -> str:
    """``name@version on cpu`` of every model."""
    each = (part for name, rollout in rollouts.items() for _, part in _parts(name, rollout.choose()))
    return ", ".join(f"{servable.label} on {servable.model.provider}" for servable in each)


def model_lines(name: str, servable: Any) -> Iterator[tuple[str, str]]:
    """(check, message) for the model of a pipeline, or for each of its steps."""
    for part, one in _parts(name, servable):
        yield "signature", f"{part}: {_signature_line(one.model.signature)}"
        yield "batchable", f"{part}: {_batchable_line(one.model)}{_padding_clause(one)}"
        sources: dict[str, str] = getattr(one.decoder, "sources", dict)()
        if sources and part in (name, _first(name, servable)):
            fed = "; ".join(f"{tensor} from {source}" for tensor, source in sources.items())
            yield "inputs", f"{part}: {fed}"
    if hasattr(servable, "steps"):
        yield "steps", _steps_line(name, servable)
    if getattr(servable, "gauge", None) is not None:
        yield "drift", f"{name}: {_drift_line(servable.gauge.comparer.profile)}"


def model_rows(
    rollouts: Mapping[str, Rollout], settings: Settings, fast: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """(name, what people read) of the only model, or one row for each pipeline and step.

    Args:
        fast: what :func:`speeds` gives.
    """
    parts = [part for name, rollout in rollouts.items() for part in _parts(name, rollout.choose())]
    alone = len(parts) == 1
    for part, one in parts:
        told = [f"{one.label}, {one.model.provider}", _signature_line(one.model.signature), _batches(one)]
        if alone:
            yield "model", ", ".join(told)
            if part in fast:
                yield "speed", fast[part]
            continue
        flow = _flow(settings, part) if part in settings.pipelines else ""
        yield part, ", ".join(filter(None, (flow, *told[::2], fast.get(part, ""))))


def _flow(settings: Settings, name: str) -> str:
    pipeline = settings.pipelines[name]
    return f"{', '.join(pipeline.input.topics)} -> {pipeline.output.topic}"


def _batches(servable: Any) -> str:
    return (
        f"alone ({servable.model.why_alone})"
        if servable.model.why_alone
        else f"batches{_padding_clause(servable)}"
    )


def speeds(rollouts: Mapping[str, Rollout]) -> dict[str, str]:
    """Microseconds that each model takes for an item, alone and in the largest batches, by the pipeline or its step.

    Models that refuse made-up items are left out.
    """
    parts = [part for name, rollout in rollouts.items() for part in _parts(name, rollout.choose())]
    return {part: told for part, one in parts if (told := _measured(one))}


def _measured(servable: Any) -> str:
    from worker.model.tune import batch_costs

    model = servable.model
    if getattr(model, "sample", None) is None:
        return ""
    together = servable.max_size if model.signature.batchable else 1
    affordable = max(1, SPEED_BYTES // max(1, model.sample_nbytes))
    sizes = sorted({1, min(together, affordable)})
    try:
        costs = batch_costs(model, sizes, time.perf_counter() + SPEED_S)
    except Exception:  # whatever the runtime raises for items that nobody sent
        return ""
    if not costs:
        return ""
    one, largest = costs[1], max(costs)
    if largest == 1:
        return f"{_us(one)} an item (model only)"
    return f"{_us(costs[largest] / largest)} an item in batches of {largest}, {_us(one)} alone (model only)"


def _us(us: float) -> str:
    if us >= 1e6:
        return f"{us / 1e6:.2g} s"
    return f"{us / 1000:.3g} ms" if us >= 1000 else f"{us:.2g} us" if us < 10 else f"{us:.0f} us"


def _parts(name: str, servable: Any) -> list[tuple[str, Any]]:
    """What has one model each, by a name for people."""
    if not hasattr(servable, "steps"):
        return [(name, servable)]
    return [(f"{name}.{step.name}", step.servable) for step in servable.steps]


def _drift_line(profile: Any) -> str:
    """With what records are compared."""
    return (
        f"{len(profile.features)} features of {profile.records} records from {profile.source}, answered by "
        f"{profile.model}@{profile.version} on {profile.created[:10]}"
    )


def _first(name: str, servable: Any) -> str:
    return _parts(name, servable)[0][0]


def _steps_line(name: str, cascade: Any) -> str:
    """The order of the steps, and the memory that they take of ``limits.in_flight_bytes``."""
    record, runs = cascade.item_nbytes / MIB, cascade.reserve_bytes / MIB
    order = ", ".join(step.name for step in cascade.steps)
    return (
        f"{name}: {order}; of in_flight_bytes, each record takes {record:.2f} MiB, and runs over boxes and fields "
        f"have {runs:.1f} MiB"
    )


def _batchable_line(model: Any) -> str:
    """Whether items may share a run, and the result of trying that with made-up items."""
    if model.why_alone:
        return f"no, each record runs alone: {model.why_alone}"
    if model.provider == "code":
        return "yes: custom code takes a list of items"
    return f"yes (largest difference between an answer alone and in a batch: {model.largest_difference:.2g})"


def _padding_clause(servable: Any) -> str:
    """What becomes of records of unlike length, where a format or content has such; else nothing."""
    if servable.model.why_alone or not getattr(servable.decoder, "padding", None):
        return ""
    if servable.ragged is None:
        return "; padding changes its answers, so only records of one length share a run"
    return "; records of like length share a run, padded"


def _signature_line(signature: Any) -> str:
    """``image: FP32[*,1,28,28] -> scores: FP32[*,10]``."""

    def tensors(specs: Any) -> str:
        return ", ".join(
            f"{spec.name}: {spec.datatype}[{','.join('*' if d is None else str(d) for d in spec.shape)}]"
            for spec in specs
        )

    return f"{tensors(signature.inputs)} -> {tensors(signature.outputs)}"
