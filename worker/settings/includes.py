"""One document from a configuration file and the files that it includes.

``include`` is a list of files, relative to the file that has it; a name may hold ``*``, ``?`` and ``[...]``. An included
file has settings as the main file has them, or a single pipeline, whose name is the file's. No setting may stand in two
files: what counts would depend on their order.
"""

from __future__ import annotations

import glob
import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

from worker.errors import ConfigError, Mistake
from worker.filesystem import TooLarge, instead_of_file, is_file, read_bytes
from worker.settings.origins import Origins
from worker.settings.sections import PipelineSettings
from worker.settings.yaml_text import (
    Key,
    NotYaml,
    check_size,
    describe,
    dotted,
    parse_with_node,
    spots,
    unshared,
)

_PATTERN = re.compile(r"[*?\[]")
FILES_MAX = 1_000
"""Files that one pattern of ``include`` may match: one such as ``/**/*`` would search the whole machine."""
_PIPELINE = ("input", "model", "output", "steps")
"""Keys of which one at the top of an included file says that it is a single pipeline."""

_FLOW_HINT = '; inside {...} and [...] a variable needs quotes: "${NAME}"'


def read_files(path: Path) -> tuple[dict[str, Any], Origins]:
    """The values of a file and of all that it includes, and where each comes from. Each mapping is there once: what
    is laid over one place changes no other that an alias gave the same value.

    Raises:
        ConfigError: a file is missing or no mapping, a file includes itself, or two files have one setting.
    """
    values, origins = _read(path, _bytes_of(path))
    found: list[Mistake] = []
    _include(path, values, origins, [path], {_same(path)}, found)
    if found:
        raise ConfigError.of(sorted(found, key=origins.order), str(path))
    return values, origins


def is_extra(key: Any) -> bool:
    """Whether a key is the user's own: nobody reads ``x-...``, so that fragments for anchors can stand there."""
    return isinstance(key, str) and key.startswith("x-")


def _same(path: Path) -> str:
    return os.path.realpath(path)


def _read(path: Path, content: bytes) -> tuple[dict[str, Any], Origins]:
    """One file."""
    text = ""
    try:
        text = _text_of(content)
        values, node = parse_with_node(text)
        if not isinstance(values, dict):
            found = "nothing" if values is None else "a list" if isinstance(values, list) else "text"
            raise ConfigError(f"expected a YAML mapping of settings, got {found}")
        check_size(values)
    except NotYaml as error:
        place = f"{path}:{error.line}:{error.column}" if error.line else str(path)
        sentence = str(error) + _FLOW_HINT * _breaks_at_variable(text, error)
        mistake = Mistake(sentence, place, str(path), error.line, error.column)
        raise ConfigError.of([mistake]) from None
    except ConfigError as error:
        raise ConfigError.of([Mistake(str(error), str(path), str(path))]) from None
    return unshared(values), Origins(str(path), content, spots(node))


def _breaks_at_variable(text: str, error: NotYaml) -> bool:
    """Whether YAML stops at the brace of a variable that stands without quotes inside braces or brackets."""
    lines = text.splitlines()
    return 0 < error.line <= len(lines) and lines[error.line - 1][: error.column].endswith("${")


def _bytes_of(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        problem = "no such file; expected a YAML configuration"
    except IsADirectoryError:
        problem = "is a directory; expected a YAML configuration file"
    except TooLarge as error:
        problem = f"{error}; expected a YAML configuration"
    except (OSError, ValueError) as error:
        problem = f"cannot be read: {getattr(error, 'strerror', None) or error}"
    raise ConfigError.of([Mistake(problem, str(path), str(path))])


def _text_of(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8 text; expected a YAML configuration") from None


def _include(
    path: Path,
    values: dict[str, Any],
    origins: Origins,
    chain: list[Path],
    seen: set[str],
    found: list[Mistake],
) -> None:
    """Lay the files that ``path`` includes into its values.

    Args:
        chain: the files that led here, ``path`` the last.
        seen: every file read so far.
        found: gets what is wrong.
    """
    patterns = values.pop("include", None)
    if patterns is None:
        return
    if not isinstance(patterns, list):
        sentence = f"include: got {describe(patterns)}, expected a list of files, such as [pipelines/*.yaml]"
        found.append(origins.mistake(sentence, ("include",)))
        return
    for index, pattern in enumerate(patterns):
        key = ("include", str(index))
        try:
            files = _files(pattern, path, dotted(key))
            again = next((file for file in files if _same(file) in map(_same, chain)), None)
            if again is not None:
                turn = " -> ".join(str(each) for each in [*chain, again])
                raise ConfigError(f"{dotted(key)}: {again} is included by itself: {turn}")
        except ConfigError as error:
            found.append(origins.mistake(str(error), key))
            continue
        for file in files:
            if _same(file) in seen:
                continue
            seen.add(_same(file))
            try:
                inner, inner_origins = _read(file, _bytes_of(file))
            except ConfigError as error:
                found += error.mistakes
                continue
            _include(file, inner, inner_origins, [*chain, file], seen, found)
            origins.add_files(inner_origins)
            _under_its_name(file, inner, inner_origins)
            _lay(inner, inner_origins, values, origins, (), found)


def _files(pattern: Any, path: Path, key: str) -> list[Path]:
    """The files that one entry of ``include`` names, in the order of their names.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(pattern, str) or not pattern:
        raise ConfigError(f"{key}: got {describe(pattern)}, expected a file")
    place = Path(os.path.normpath(path.parent / pattern))
    if not _PATTERN.search(pattern):
        if not is_file(place):
            raise ConfigError(
                f"{key}: {place} {instead_of_file(place)}; expected a YAML file, or a pattern such as pipelines/*.yaml"
            )
        return [place]
    named = [*islice(glob.iglob(pattern, root_dir=path.parent, recursive=True), FILES_MAX + 1)]
    if len(named) > FILES_MAX:
        raise ConfigError(f"{key}: more than {FILES_MAX:,} files match {place}; expected a narrower pattern")
    files = [Path(os.path.normpath(path.parent / name)) for name in sorted(named)]
    files = [file for file in files if is_file(file) and _same(file) != _same(path)]
    if not files:
        raise ConfigError(f"{key}: no file matches {place}")
    return files


def _under_its_name(file: Path, values: dict[str, Any], origins: Origins) -> None:
    """Move a single pipeline at the top of an included file under ``pipelines``, where others join it."""
    if "pipelines" in values or not any(key in values for key in _PIPELINE):
        return
    name = str(values.pop("name", None) or file.stem)
    own = {key: values.pop(key) for key in [*values] if key in PipelineSettings.model_fields}
    for key in own:
        origins.move((key,), ("pipelines", name, key))
    values["pipelines"] = {name: own}


def _lay(
    source: dict[str, Any],
    source_origins: Origins,
    into: dict[str, Any],
    origins: Origins,
    at: Key,
    found: list[Mistake],
) -> None:
    """Put the settings of one file beside those of others."""
    for key, value in source.items():
        here = (*at, str(key))
        if is_extra(key):  # fragments for the anchors of one file
            continue
        if key not in into:
            into[key] = value
            origins.copy(source_origins, here)
        elif isinstance(value, dict) and isinstance(into[key], dict) and here[:-1] != ("pipelines",):
            _lay(value, source_origins, into[key], origins, here, found)
        else:
            other = origins.of(here)
            where = other.short() if other is not None else "another file"
            sentence = f"{dotted(here)}: is in {where}, too; expected it in one file"
            found.append(source_origins.mistake(sentence, here, of_key=True))
