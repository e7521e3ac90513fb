"""Why a version of a model cannot take the place of another one: they must look alike from outside."""

from __future__ import annotations

from worker.model.signature import TensorSpec
from worker.serving.servable import Servable


def misfit(before: Servable, now: Servable) -> str:
    """Why a version cannot take the place of another one; empty if it can."""
    for kind, old, new in (
        ("inputs", before.model.signature.inputs, now.model.signature.inputs),
        ("outputs", before.model.signature.outputs, now.model.signature.outputs),
    ):
        if not _alike(old, new):
            return f"its {kind} are {_shown(new)}, those of the version that answers {_shown(old)}"
    return ""


def _alike(old: tuple[TensorSpec, ...], new: tuple[TensorSpec, ...]) -> bool:
    if [spec.name for spec in old] != [spec.name for spec in new]:
        return False
    return all(
        a.dtype == b.dtype and len(a.shape) == len(b.shape) and a.item_shape == b.item_shape
        for a, b in zip(old, new, strict=True)
    )


def _shown(specs: tuple[TensorSpec, ...]) -> str:
    return ", ".join(
        f"{spec.name}: {spec.datatype}[{','.join('*' if d is None else str(d) for d in spec.shape)}]"
        for spec in specs
    )
