"""Pipelines that are kept loaded between the tests of one process: a model is loaded once, not for each record."""

from __future__ import annotations

import atexit
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worker.filesystem import exists
from worker.local.answers import Answer, HeadersLike
from worker.local.pipeline import Pipeline

MOST_KEPT = 8
"""Configurations kept loaded; the one that was not used for longest is closed."""

_Key = tuple[str, int, tuple[str, ...], str | None]
_kept: OrderedDict[_Key, Pipeline] = OrderedDict()


def answer(
    config: str | os.PathLike[str],
    value: bytes | str | dict[str, Any] | list[Any] | None,
    *,
    key: bytes | str | None = None,
    headers: HeadersLike | None = None,
    topic: str | None = None,
    overrides: Sequence[str] = (),
    pipeline: str | None = None,
) -> Answer:
    """What the worker would do with one record. The models stay loaded for the next call with the same file.

    Args:
        config: the worker's YAML file. When it has changed, it is loaded again.
        value: bytes, text, a dict or list that is sent as JSON, or None for a tombstone.
        topic: an input topic; None: the first one.
        overrides: settings over those of the file, such as ``["postprocess=raw"]``.
        pipeline: load this one alone.

    Raises:
        WorkerError: the configuration is wrong, or a model cannot be loaded.
    """
    return kept(config, overrides, pipeline)(value, key=key, headers=headers, topic=topic)


def kept(
    config: str | os.PathLike[str], overrides: Sequence[str] = (), pipeline: str | None = None
) -> Pipeline:
    """The pipeline of a configuration file, loaded now or earlier."""
    path = Path(config).absolute()
    changed_ns = path.stat().st_mtime_ns if exists(path) else 0
    key = (str(path), changed_ns, tuple(overrides), pipeline)
    found = _kept.get(key)
    if found is None:
        found = _kept[key] = Pipeline.load(config, overrides, pipeline=pipeline)
    _kept.move_to_end(key)
    while len(_kept) > MOST_KEPT:
        _kept.popitem(last=False)[1].close()
    return found


@atexit.register
def forget() -> None:
    """Close every pipeline that is kept: after custom code or a model was changed within one process."""
    while _kept:
        _kept.popitem()[1].close()
