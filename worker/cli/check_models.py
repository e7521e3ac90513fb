"""What ``check`` says of loaded models: one line for each thing that can be known of a model, of every step where there are several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from worker.settings import MIB

if TYPE_CHECKING:
    from worker.serving.rollout import Rollout


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
