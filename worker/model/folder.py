"""A folder in Hugging Face's layout: ``model.onnx`` with files beside it that say what its numbers mean.

https://huggingface.co/docs/transformers: ``config.json`` (``id2label``); https://sbert.net: ``1_Pooling/config.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worker.filesystem import MADE_MAX, read_text

_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
}


def class_names(folder: Path | None) -> tuple[str, ...]:
    """The classes' names in their order, by ``id2label`` of ``config.json``; empty if it has none."""
    found = _json(folder, "config.json").get("id2label")
    if not isinstance(found, dict):
        return ()
    names = {int(number): str(name) for number, name in found.items() if str(number).isdecimal()}
    return tuple(names[number] for number in sorted(names)) if set(names) == set(range(len(found))) else ()


def pooling(folder: Path | None) -> str:
    """How one vector is made of those of all tokens, by ``1_Pooling/config.json``: ``mean``, ``cls``, ``max``; as that file
    calls it for another way, or for several at once; empty if there is no such file."""
    found = _json(folder, "1_Pooling/config.json")
    modes = [name for name, on in found.items() if name.startswith("pooling_mode_") and on is True]
    if not modes and isinstance(mode := found.get("pooling_mode"), str):
        return mode
    return " and ".join(_MODES.get(mode, mode) for mode in modes)


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    """A JSON object in the folder; empty if there is none."""
    if folder is None:
        return {}
    try:
        found = json.loads(read_text(folder / name, MADE_MAX))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
