"""Settings of a repository of models: where it is, and who must have signed what comes from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

from worker.settings.kinds import File, from_file
from worker.settings.section import Section

_LISTED = ("s3", "gs", "az")
"""Schemes of stores whose objects can be listed."""


_REGISTERED = re.compile(r"mlflow:models:/([^/@]+)(?:@([^/@]+)|/(\d+|latest))?")


def registered(place: Path | str | None) -> tuple[str, str | None] | None:
    """(name of the registered model, its alias or version) of ``mlflow:models:/name@alias``; None if it is no such place."""
    found = _REGISTERED.fullmatch(str(place))
    return (found[1], found[2] or found[3]) if found else None


def _place(value: Any, info: ValidationInfo) -> Path | str:
    """A folder, or the beginning of URLs in a store: a text that ends with a slash."""
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError(
            "expected a folder, a beginning of URLs such as s3://models/, or mlflow:models:/name"
        )
    if str(value).startswith("mlflow:"):
        if registered(value) is None:
            raise ValueError(
                "expected mlflow:models:/name, mlflow:models:/name@alias or mlflow:models:/name/3"
            )
        return str(value)
    scheme, colon, _ = str(value).partition("://")
    if not colon:
        return from_file(Path(value), info)
    from worker.stores.allow import Allowed

    (root,) = Allowed([str(value)]).roots
    if root.scheme == "file":
        return Path(root.path)
    if root.scheme not in _LISTED:
        raise ValueError(
            f"an {scheme} server cannot list what it has; expected a folder, or a beginning of URLs under "
            f"{', '.join(f'{each}://' for each in _LISTED)} or file://"
        )
    return str(root)


Place = Annotated[Path | str, BeforeValidator(_place), WithJsonSchema({"type": "string", "minLength": 1})]


class SignatureSettings(Section):
    """Who must have signed a version before it is loaded."""

    public_key: File
    """A PEM file with the elliptic-curve public key whose signature a version must have in its `model.sig`."""
