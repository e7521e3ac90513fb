"""Optional dependencies: imported only when a pipeline needs one, with one sentence where it is not installed."""

from __future__ import annotations

import importlib
from typing import Any

from worker.errors import ConfigError, StartError
from worker.shortage import shortage


def load(module: str, *, extra: str, why: str) -> Any:
    """An optional dependency.

    Args:
        module: its name for ``import``.
        extra: the extra of this distribution that installs it.
        why: the setting that needs it, for the error's sentence.

    Raises:
        ConfigError: it is not installed, or cannot be imported.
        StartError: there is no memory for it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if (sentence := shortage(error)) is not None:
            raise StartError(sentence) from error
        top = module.partition(".")[0]
        broken = "" if getattr(error, "name", None) in (module, top) else f" (importing it fails: {error})"
        raise ConfigError(f"{why} needs {top}: pip install 'streaminfer[{extra}]'{broken}") from None
