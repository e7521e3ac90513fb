"""Where custom code failed: the calls of its own files, kept as text because an exception would keep its arrays alive."""

from __future__ import annotations

import linecache
import sysconfig
import traceback
from pathlib import Path
from typing import TypeVar

E = TypeVar("E", bound=BaseException)

MOST_CALLS = 5
"""Innermost calls that are kept."""
_PACKAGE = str(Path(__file__).parent)
_LIBRARIES = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def mark(error: BaseException) -> None:
    """Note on an exception that custom code raised it, and where; called where custom code is called."""
    error.own_calls = own_calls(error)  # type: ignore[attr-defined]


def marked(error: BaseException) -> tuple[str, ...]:
    """What `mark` noted; nothing where custom code is not to blame."""
    found: tuple[str, ...] = getattr(error, "own_calls", ())
    return found


def at(calls: tuple[str, ...], refusal: E) -> E:
    """A refusal that stands for another exception, with the calls noted on that."""
    refusal.own_calls = calls  # type: ignore[attr-defined]
    return refusal


def own_calls(error: BaseException) -> tuple[str, ...]:
    """The calls of a traceback from the user's own files, innermost last: ``zero.py:2 in post: return 1/0``.

    Calls of this package and of libraries are left out. Custom code that is installed as a library shows all its calls.
    """
    calls = [
        (frame.f_code.co_filename, line, frame.f_code.co_name)
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    inside = [at for at, (file, _, _) in enumerate(calls) if file.startswith(_PACKAGE)]
    beyond = calls[inside[-1] + 1 :] if inside else calls
    own = [call for call in beyond if not call[0].startswith((*_LIBRARIES, "<frozen"))]
    return tuple(_shown(*call) for call in (own or beyond)[-MOST_CALLS:])


def _shown(file: str, line: int, name: str) -> str:
    source = linecache.getline(file, line).strip()
    return f"{Path(file).name}:{line} in {name}" + (f": {source}" if source else "")
