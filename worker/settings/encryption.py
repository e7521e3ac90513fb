"""The keys of encrypted payloads, as the configuration gives them. They are never shown."""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo, WithJsonSchema, model_validator

from worker.errors import ConfigError
from worker.filesystem import read_text
from worker.settings.section import Section

FILE = "file:"
"""Begins a key that stands in a file."""
KEY_BYTES = 32


def _key_id(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
        raise ValueError("expected an id of 1 to 64 of the characters a-z A-Z 0-9 . _ -")
    return name


def _key(text: str, info: ValidationInfo) -> str:
    """A key is checked where it is read (:meth:`EncryptionSettings.read`); a file's path is made absolute here."""
    if text.startswith(FILE):
        path = text.removeprefix(FILE)
        return FILE + (os.path.abspath(info.context["base"] / path) if info.context else path)
    return text


KeyId = Annotated[str, AfterValidator(_key_id)]
Key = Annotated[str, AfterValidator(_key), WithJsonSchema({"type": "string", "writeOnly": True})]


class EncryptionSettings(Section):
    """The keys of `aes-256-gcm` in `input.unwrap` and `output.wrap`. SIGHUP makes the worker read them again."""

    keys: Annotated[dict[KeyId, Key], Field(min_length=1, repr=False)]
    """Keys by id: 32 bytes in base64, as `${ENV}`, or `file:<path>` of a file that holds that text."""
    use: KeyId | None = None
    """Id of the key that encrypts results."""

    @model_validator(mode="after")
    def _use_is_there(self) -> Any:
        if self.use is not None and self.use not in self.keys:
            raise ValueError(f"use is '{self.use}', expected one of the ids under keys")
        return self

    def read(self) -> dict[str, bytes]:
        """The keys by id, those in files read now.

        Raises:
            ConfigError: naming the setting or its file, never what is in it.
        """
        return {name: _read(name, text) for name, text in self.keys.items()}

    def secrets(self) -> list[str]:
        """The keys that stand in the configuration itself."""
        return [text for text in self.keys.values() if not text.startswith(FILE)]

    def redacted(self) -> dict[str, Any]:
        """As plain data, keys replaced; the names of files stay."""
        shown = {name: text if text.startswith(FILE) else "[redacted]" for name, text in self.keys.items()}
        return {"keys": shown, "use": self.use}


def _read(name: str, text: str) -> bytes:
    where = f"encryption.keys.{name}"
    if text.startswith(FILE):
        path = Path(text.removeprefix(FILE))
        where = f"{where}: {path}"
        try:
            text = read_text(path, encoding="ascii")
        except OSError as error:
            found = error.strerror or type(error).__name__
            raise ConfigError(f"{where}: cannot be read ({found}); expected a file with a key") from None
        except ValueError:
            text = ""
    plain = "".join(text.split()).replace("-", "+").replace("_", "/")
    try:
        key = base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != KEY_BYTES:
        raise ConfigError(f"{where}: expected {KEY_BYTES} bytes in base64")
    return key
