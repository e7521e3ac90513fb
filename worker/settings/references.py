"""What settings name but do not contain: custom code and label files."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from worker.errors import ConfigError
from worker.filesystem import LIST_MAX, TooLarge, read_text
from worker.registry import CUSTOM_CODE
from worker.settings.yaml_text import describe


def labels_of(path: Path, key: str = "labels") -> list[str]:
    """The labels in a text file, one per line; the line number is the class index.

    Args:
        path: the file.
        key: the setting that names it, for the error's sentence.

    Raises:
        ConfigError: missing, a directory, not UTF-8, larger than 16 MiB or empty.
    """
    try:
        labels = read_text(path, LIST_MAX, "utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        found = (
            "does not exist"
            if isinstance(error, FileNotFoundError)
            else "is a directory"
            if isinstance(error, IsADirectoryError)
            else "is not UTF-8 text"
            if isinstance(error, UnicodeDecodeError)
            else str(error)
            if isinstance(error, TooLarge)
            else f"cannot be read ({error.strerror if isinstance(error, OSError) else error})"
        )
        raise ConfigError(f"{key}: {path} {found}; expected a text file with one label per line") from None
    while labels and not labels[-1].strip():
        labels.pop()
    if not labels:
        raise ConfigError(f"{key}: {path} is empty; expected a text file with one label per line")
    return [label.strip() for label in labels]


def import_attribute(name: str, key: str) -> Any:
    """What ``module:attribute`` names; modules beside the configuration file are found too.

    Args:
        key: the setting that names it, for the error's sentence.

    Raises:
        ConfigError: the text has another form, the module cannot be imported or has no such attribute.
    """
    if not CUSTOM_CODE.fullmatch(name):
        raise ConfigError(f'{key}: got {describe(name)}, expected "module:attribute"')
    module_name, _, path = name.partition(":")
    if module_name == "worker":
        raise ConfigError(
            f"{key}: custom code {name}: worker is the package of streaminfer itself; expected another name for your file"
        )
    try:
        found: Any = importlib.import_module(module_name)
    except (
        Exception,
        SystemExit,
    ) as error:  # importing runs custom code: what it raises is for the user to read
        raise ConfigError(
            f"{key}: custom code {name}: the module cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise ConfigError(f"{key}: custom code {name}: {module_name} has no attribute {path}")
        found = getattr(found, attribute)
    if not callable(found):
        raise ConfigError(
            f"{key}: custom code {name}: expected something to call, got {type(found).__name__}"
        )
    return found
