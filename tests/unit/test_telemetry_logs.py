"""Logs: one line per event on the given stream, as JSON or for people, and never a secret."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from worker.errors import ConfigError
from worker.telemetry import logs

SECRET = 'hunter2"\\é'


@pytest.fixture(autouse=True)
def _put_logging_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    logs._redactor = logs.Redactor()


@pytest.fixture
def bound() -> Iterator[None]:
    """What a worker binds does not outlive the test."""
    hook = sys.unraisablehook
    yield
    logs.release()
    sys.unraisablehook = hook


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def configured(stream: io.StringIO | None = None, **environ: str) -> io.StringIO:
    stream = stream or io.StringIO()
    logs.configure([SECRET], stream, environ)
    return stream


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_off_a_terminal_every_event_is_one_line_of_json() -> None:
    """Off a terminal each event is one line of JSON with event, level, module, time and fields, also if a field holds a newline or an odd value."""
    stream = configured()
    logs.get("worker.test").info(
        "started", partitions=[1, 2], note="a\nb", odd={1, 2}, big=2**80, lone="\udcff"
    )
    (event,) = events(stream)
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "started",
        "level": "info",
        "module": "worker.test",
        "partitions": [1, 2],
        "note": "a\nb",
        "odd": [1, 2],
        "big": 2**80,
        "lone": "\udcff",
    }


def test_a_terminal_gets_colour_unless_told_otherwise() -> None:
    """Log lines have escape sequences on a terminal only, and none with NO_COLOR; LOG_FORMAT decides over the stream."""
    for stream, environ, coloured in (
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (io.StringIO(), {"LOG_FORMAT": "console"}, False),
    ):
        configured(stream, **environ)
        logs.get("t").warning("look")
        assert "look" in stream.getvalue()
        assert ("\x1b[" in stream.getvalue()) == coloured
        assert not stream.getvalue().startswith("{")
    stream = configured(Terminal(), LOG_FORMAT="json")
    logs.get("t").warning("look")
    assert events(stream)[0]["event"] == "look"


def test_events_below_the_level_are_left_out() -> None:
    """LOG_LEVEL holds for the worker's loggers and for those of the standard library."""
    stream = configured(LOG_LEVEL="WARNING")
    logs.get("t").info("quiet")
    logging.getLogger("librdkafka").info("quiet")
    logs.get("t").warning("loud")
    logging.getLogger("librdkafka").warning("loud %d", 2)
    assert [(event["event"], event.get("text")) for event in events(stream)] == [
        ("loud", None),
        ("library", "loud 2"),
    ]
    assert events(stream)[1]["module"] == "librdkafka"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_secret_is_hidden_wherever_it_occurs(log_format: str) -> None:
    """A known secret is hidden in events, values, nested values, keys, objects, exceptions and the lines of other libraries."""

    class Odd:
        def __str__(self) -> str:
            return f"Odd({SECRET})"

    stream = configured(LOG_FORMAT=log_format)
    log = logs.get("t")
    log.info(
        f"password is {SECRET}",
        plain=SECRET,
        deep={"a": [{"b": (f"x{SECRET}",)}]},
        odd=Odd(),
        raw=SECRET.encode(),
    )
    try:
        local_copy = SECRET
        raise ValueError(f"bad {local_copy}")
    except ValueError:
        log.exception("failed")
        logging.getLogger("another.library").exception("failed too: %s", SECRET)
    text = stream.getvalue()
    assert "hunter2" not in text
    assert text.count("failed") == 2
    assert "ValueError" in text
    assert logs.redact(f"{SECRET}!") == "***!"


def test_a_value_is_hidden_when_its_key_names_a_secret() -> None:
    """A secret that the configuration does not hold is still hidden by its key."""
    stream = configured()
    logs.get("t").info(
        "client", kafka={"sasl.password": "unknown", "ssl.key.pem": "---", "group.id": "digits"}
    )
    assert events(stream)[0]["kafka"] == {"sasl.password": "***", "ssl.key.pem": "***", "group.id": "digits"}


def test_a_secret_that_begins_like_another_leaves_nothing_of_it() -> None:
    """If one secret begins with another, no part of the longer one is left in a log line."""
    assert logs.Redactor(["abc", "abcdef", ""]).text("abcdef abc") == "*** ***"


def test_a_line_begins_with_time_level_event_and_whose_it_is(bound: None) -> None:
    """Every line of a worker, those of libraries too, has replica, pid and group behind time, level and event, fields in the order given, the module last."""
    stream = configured()
    logs.bind(replica=1, pid=77, group="g")
    logs.get("worker.test").warning("broker lost", zebra=1, apple=2)
    logging.getLogger("another.library").error("broken")
    logs.get("worker.test").info("replica started", replica=0, pid=5)
    first, second, third = events(stream)
    assert [*first] == [
        "timestamp",
        "level",
        "event",
        "replica",
        "pid",
        "group",
        "zebra",
        "apple",
        "help",
        "module",
    ]
    assert first["help"] == "operations/runbooks.md#broker-lost"
    assert [*second][:7] == ["timestamp", "level", "event", "replica", "pid", "group", "text"]
    assert (third["replica"], third["pid"]) == (0, 5)


def test_a_worker_tells_of_broken_connections_itself(bound: None) -> None:
    """In a worker librdkafka's lines about broken connections are of the level debug; its other lines, and those in a command, stay."""
    failed = "FAIL [rdkafka#consumer-1] [thrd:x]: refused"
    stream = configured()
    logging.getLogger("librdkafka").error(failed)
    assert [event["text"] for event in events(stream)] == [failed]
    logs.bind(pid=1)
    logging.getLogger("librdkafka").error(failed)
    logging.getLogger("librdkafka").warning("MAXPOLL [rdkafka#consumer-1]: left the group")
    assert len(events(stream)) == 2
    assert events(stream)[1]["text"].startswith("MAXPOLL")


def test_the_end_is_a_sentence_and_for_a_collector_an_event(
    bound: None, capfd: pytest.CaptureFixture[str]
) -> None:
    """A command says one sentence, a worker beside it an event, and with LOG_FORMAT=json there is the event alone."""

    def said() -> list[str]:
        logs.fatal("too many records are bad", 4)
        logs.flush()
        return capfd.readouterr().err.splitlines()

    sentence = "streaminfer: too many records are bad"
    logs.configure(environ={})
    assert said() == [sentence]
    logs.configure(environ={"LOG_FORMAT": "json"})
    (line,) = said()
    assert json.loads(line)["exit_code"] == 4
    logs.configure(environ={})
    logs.bind(pid=1)
    event, last = said()
    assert (json.loads(event)["event"], json.loads(event)["reason"]) == ("fatal", "too many records are bad")
    assert last == sentence
    logs.configure(environ={"LOG_FORMAT": "console"})
    assert said() == [sentence]


@pytest.mark.parametrize("arguments", [["run", "nowhere.yaml"], ["run", "nowhere.yaml", "--bogus"], []])
def test_with_json_asked_for_a_mistake_is_json_too(arguments: list[str], tmp_path: Path) -> None:
    """Every line on standard error parses, also if the process ends before logging is set up; the last one is the event `fatal`."""
    done = subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        env={**os.environ, "LOG_FORMAT": "json"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    *_, last = [json.loads(line) for line in done.stderr.splitlines()]
    assert (last["event"], last["exit_code"]) == ("fatal", 2)
    assert last["reason"]


def test_what_is_printed_to_standard_error_is_an_event_of_its_own(bound: None) -> None:
    """A worker that logs JSON makes each line that custom code prints to standard error an event, a part without an end later."""
    stream = configured()
    logs.bind(pid=1)
    print("loaded\x1b[2J", file=sys.stderr)
    sys.stderr.write("two ")
    sys.stderr.write("parts\n\n")
    assert [(event["event"], event["text"]) for event in events(stream)] == [
        ("printed", "loaded\x1b[2J"),
        ("printed", "two parts"),
    ]


@pytest.mark.parametrize("environ", [{"LOG_FORMAT": "xml"}, {"LOG_LEVEL": "loud"}])
def test_an_unknown_choice_is_one_sentence(environ: dict[str, str]) -> None:
    """An unknown LOG_LEVEL or LOG_FORMAT is one sentence with the variable, its value and the choices."""
    (name, value) = next(iter(environ.items()))
    with pytest.raises(ConfigError, match=f"^{name}: got '{value}', expected one of "):
        configured(**environ)


def test_a_sentence_for_the_user_cannot_steer_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Escape sequences, C1 controls and text that runs backwards are shown as escapes, whatever they came from."""
    logs.configure()
    logs.say("streaminfer: \x1b[2J and \x9b and \u202etxt")
    logs.flush()
    assert capfd.readouterr().err == "streaminfer: \\x1b[2J and \\x9b and \\u202etxt\n"
