"""Logs: to standard error only, readable on a terminal and JSON lines otherwise, with secrets hidden.

``LOG_FORMAT=json|console`` and ``LOG_LEVEL`` override the defaults; ``NO_COLOR`` is honoured. Log per batch or per
event, never per record: a log line costs as much as decoding a record. A line that cannot be written is dropped and
counted; see :mod:`worker.telemetry.lines`.

An event is a constant text and its values are fields, so that lines can be counted and searched. Every event is listed in
:mod:`worker.telemetry.log_events`.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

import structlog

from worker.errors import ConfigError
from worker.telemetry.console import console_line
from worker.telemetry.lines import LineWriter
from worker.telemetry.log_events import help_for
from worker.telemetry.printed import behind, take_over
from worker.text import printable

HIDDEN = "***"

_LEVELS = ("debug", "info", "warning", "error", "critical")
_SECRET_WORDS = ("password", "passwd", "secret", "token", "credential", "private_key", "sasl.jaas", "ssl.key")
_TOLD_BY_CALLBACK = ("FAIL ", "ERROR ", "REQTMOUT ")
"""How librdkafka's lines begin that say what its error callback says too: a connection broke, a request got no answer."""
_SHORTEST_SECRET = 3  # hiding every "a" would hide nothing and make every line unreadable


def get(name: str) -> Any:
    """The logger of a module: ``log.info("what happened", key=value)``."""
    return structlog.get_logger(module=name)


def configure(
    secrets: Sequence[str] = (),
    stream: TextIO | None = None,
    environ: Mapping[str, str] = os.environ,
    level: str = "info",
) -> None:
    """Set up structlog and the standard library's logging (librdkafka's lines come through it).

    Args:
        secrets: the secret values of the configuration; each is hidden wherever it occurs.
        stream: where to write; default standard error.
        level: the lowest level shown if ``LOG_LEVEL`` is not set.

    Raises:
        ConfigError: LOG_FORMAT or LOG_LEVEL is unknown.
    """
    global _redactor, _configured, _json, _json_only, _least
    stream = _standard_error() if stream is None else stream
    _least = getattr(logging, _choice(environ, "LOG_LEVEL", _LEVELS, level).upper())
    terminal = stream is not None and stream.isatty()
    _json = _choice(environ, "LOG_FORMAT", ("json", "console"), "console" if terminal else "json") == "json"
    _json_only = _json and bool(environ.get("LOG_FORMAT"))
    colors = terminal and not environ.get("NO_COLOR")
    renderer = _json_line if _json else _console_renderer(colors, stream if terminal else None)
    _redactor = Redactor([*secrets, *_secret_arguments(sys.argv)])
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper("iso", utc=True),
            structlog.processors.format_exc_info,  # to text before redaction: tracebacks quote values
            _in_order,
            _redact_event,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_least),
        logger_factory=lambda *_: _Out(stream),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=_least, force=True)
    logging.captureWarnings(True)
    threading.excepthook = _log_dead_thread
    _configured = True


def hide(secrets: Sequence[str]) -> None:
    """Hide these secrets as well from now on; for any thread."""
    global _redactor
    _redactor = Redactor([*_redactor.secrets, *secrets])


def show_from(level: str, environ: Mapping[str, str] = os.environ) -> None:
    """Show lines from this level on, where ``LOG_LEVEL`` is not set; for any thread."""
    global _least
    _least = getattr(logging, _choice(environ, "LOG_LEVEL", _LEVELS, level).upper())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(_least))
    logging.getLogger().setLevel(_least)


def bind(**fields: Any) -> None:
    """From now on every line of this process has these fields, those of libraries too; called by a worker at its start.

    ``replica=None`` shows an empty place on a terminal, for a process that speaks of replicas and is none.
    """
    _bound.update(fields)
    sys.unraisablehook = _log_ignored
    if _json:
        take_over(lambda line: get("stderr").info("printed", text=line))


def release() -> None:
    """Undo `bind`; for tests, which run a worker's commands in their own process."""
    if _bound:
        _bound.clear()
        sys.unraisablehook = sys.__unraisablehook__
        sys.stderr = _standard_error()


def shows_debug() -> bool:
    """Whether lines of the level debug are shown."""
    return _least <= logging.DEBUG


def ensure_configured() -> None:
    """Set logging up if `configure` was not called yet, whatever the environment says: for a failure at start.

    Without this, structlog would print the local variables of every frame, including passwords.
    """
    if not _configured:
        try:
            configure()
        except ConfigError:
            configure(environ={})


def fatal(reason: str, exit_code: int, more: Sequence[str] = ()) -> None:
    """Say why the process ends, as the last words on standard error.

    For people that is one sentence. A worker that logs JSON writes the event ``fatal`` as well, and if the user asked for
    JSON (``LOG_FORMAT=json``) there is nothing but this event.

    Args:
        more: further lines, one for each mistake of a configuration.
    """
    if _json_only or (_json and _bound):
        fields = {"mistakes": [line.strip() for line in more]} if more else {}
        get(__name__).critical("fatal", exit_code=exit_code, reason=reason, **fields)
    if not _json_only:
        say(f"streaminfer: {reason}")
        for line in more:
            say(line)


def say(sentence: str) -> None:
    """Write one line for the user to standard error, in order with the log, with secrets hidden.

    Never waits and never raises. Control characters are escaped, because the sentence may quote a record.
    """
    _Out(_standard_error()).msg(printable(redact(sentence)))


def flush(within_s: float = 1.0) -> None:
    """Wait up to ``within_s`` seconds until the queued lines are written; for the end of the process."""
    if _writer is not None:
        _writer.flush(within_s)


def dropped_lines() -> int:
    """Number of lines lost since the start of the process."""
    return _writer.dropped if _writer is not None else 0


def redact(text: str) -> str:
    """The text with every secret value of the configuration hidden; for text that is shown outside the logs."""
    return _redactor.text(text)


class Redactor:
    """Hides known secret values wherever they occur, and every value whose key has a name such as ``password``."""

    def __init__(self, secrets: Sequence[str] = ()) -> None:
        # Longest first: one secret may be the beginning of another.
        known = {secret for secret in secrets if len(secret) >= _SHORTEST_SECRET}
        self.secrets = sorted(known, key=len, reverse=True)

    def text(self, text: str) -> str:
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return text

    def value(self, value: Any) -> Any:
        """The same value with secrets hidden at any depth; values that are not plain data become text."""
        match value:
            case None | bool() | int() | float():
                return value
            case str():
                return self.text(value)
            case Mapping():
                return {
                    self.text(str(key)): HIDDEN if _names_a_secret(str(key)) else self.value(item)
                    for key, item in value.items()
                }
            case list() | tuple() | set() | frozenset():
                return [self.value(item) for item in value]
            case bytes():
                return self.text(value.decode(errors="backslashreplace"))
            case _:
                return self.text(str(value))


class _Out:
    """Writes lines: to the process's standard error through its `LineWriter`, to any other stream directly."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        if self._stream is None:
            return  # the process was started without a standard error
        writer = _writer_of(self._stream)
        if writer is not None:
            writer.put(line + "\n")
            return
        with suppress(OSError, ValueError):
            print(line, file=self._stream, flush=True)

    log = debug = info = warn = warning = error = critical = fatal = failure = exception = msg


class _ToStructlog(logging.Handler):
    """Passes the standard library's log records to structlog, so that all lines take one path."""

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno // 10 * 10, logging.CRITICAL) or logging.DEBUG
        text = record.getMessage()
        if _bound and record.name == "librdkafka" and text.startswith(_TOLD_BY_CALLBACK):
            level = logging.DEBUG  # the worker tells of an outage itself: worker.telemetry.story
        get(record.name).log(level, "library", text=text, exc_info=record.exc_info)


_redactor = Redactor()
_configured = False
_json = False
_json_only = False
"""Whether everything on standard error is JSON: the user asked for it."""
_least = logging.INFO
_bound: dict[str, Any] = {}
_writer: LineWriter | None = None
_writers_lock = threading.Lock()


def _writer_of(stream: TextIO) -> LineWriter | None:
    """The writer of the process's standard error; None if ``stream`` is another stream, as in tests."""
    global _writer
    if stream is not sys.__stderr__:
        return None
    with _writers_lock:
        if _writer is None:
            _writer = LineWriter(stream.fileno(), on_recovery=_tell_of_dropped)
            atexit.register(flush)
    return _writer


def _tell_of_dropped(lines: int) -> None:
    get(__name__).warning("log lines were dropped", lines=lines)


def _standard_error() -> TextIO | None:
    return behind(sys.stderr) if sys.stderr is not None else None


def _log_ignored(args: sys.UnraisableHookArgs) -> None:
    get(__name__).error("an exception was ignored", where=repr(args.object), exc_info=args.exc_value)


def _log_dead_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit:
        return
    name = args.thread.name if args.thread else "?"
    get(__name__).error("a thread died", thread=name, exc_info=args.exc_value)


def _secret_arguments(argv: Sequence[str]) -> Iterator[str]:
    """Values on the command line whose name marks them as secret: ``--set kafka.sasl.password=...``."""
    for argument in argv:
        name, equals, value = argument.partition("=")
        if equals and _names_a_secret(name):
            yield value


def _in_order(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    """Time, level and event first, then what is the same in every line, then the event's own fields as given."""
    first = {key: event.pop(key) for key in ("timestamp", "level", "event")}
    module, stack = event.pop("module", None), event.pop("exception", None)
    bound = {key: event.pop(key, value) for key, value in _bound.items()}
    first |= {key: value for key, value in bound.items() if value is not None}
    last = {} if module is None else {"module": module}
    if stack is not None:
        last["exception"] = stack
    anchor = help_for(str(first["event"])) if first["level"] in ("warning", "error", "critical") else None
    return {**first, **event, **({"help": anchor} if anchor else {}), **last}


def _console_renderer(colors: bool, terminal: TextIO | None) -> Any:
    def render(_logger: Any, _method: str, event: Mapping[str, Any]) -> str:
        width = shutil.get_terminal_size((120, 24)).columns if terminal is not None else None
        return console_line(event, colors, width, "replica" in _bound)

    return render


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> Mapping[str, Any]:
    redacted: dict[str, Any] = _redactor.value(event)
    return redacted


def _json_line(_logger: Any, _method: str, event: Mapping[str, Any]) -> str:
    return json.dumps(event, default=str)  # not orjson: it refuses big integers and lone surrogates


def _names_a_secret(key: str) -> bool:
    key = key.lower()
    return any(word in key for word in _SECRET_WORDS)


def _choice(environ: Mapping[str, str], name: str, choices: Sequence[str], default: str) -> str:
    chosen = environ.get(name, "").lower() or default
    if chosen not in choices:
        raise ConfigError(f"{name}: got {environ[name]!r}, expected one of {', '.join(choices)}")
    return chosen
