"""What ``check`` says of the stores of references and of large results."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.settings import Settings
    from worker.settings.stores import OffloadSettings, ReferenceSettings


def check_stores(check: Callable[..., Any], settings: Settings, offline: bool) -> None:
    """The stores of references and of large results: their options, and, unless offline, whether they answer."""
    for name, pipeline in settings.pipelines.items():
        reference, offload = pipeline.input.reference, pipeline.output.offload
        if reference is not None:
            check("references", partial(_references, reference, pipeline.input.max_bytes, offline), str)
        if offload is not None:
            check("offload", partial(_offload, offload, pipeline.output.format, name, offline), str)


def _references(settings: ReferenceSettings, max_bytes: int, offline: bool) -> str:
    from worker.stores.probe import probe
    from worker.stores.references import References

    references = References(settings, max_bytes)
    try:
        roots = references.allowed.roots
        return "; ".join(str(root) if offline else probe(references.store(root), root) for root in roots)
    finally:
        references.close()


def _offload(settings: OffloadSettings, format_: str, name: str, offline: bool) -> str:
    from worker.serving.offload import Offload
    from worker.stores.probe import probe

    made = Offload(settings, format_)
    try:
        where = str(made.root) if offline else probe(made.store, made.root)
    finally:
        made.store.close()
    return f"{name}: results over {settings.over_bytes} bytes to {where}"
