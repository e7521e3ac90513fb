"""``streaminfer test``: runs the tests that stand in a configuration, without a broker."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import orjson

from worker import settings as configuration
from worker.cli.main import add_set_option
from worker.cli.text import harmless
from worker.errors import ConfigError
from worker.filesystem import is_dir
from worker.telemetry import logs
from worker.text import printable

if TYPE_CHECKING:
    from worker.local.record_tests import Outcome
    from worker.settings import Settings
    from worker.settings.record_tests import TestSettings

FAILED = 2
"""Exit code when a test has failed: the configuration does not do what its own tests say. 1 stands for a bug."""

EXAMPLE = """\
examples:
  streaminfer test digits.yaml
  streaminfer test digits.yaml --only 'a seven*' --set model.path=candidate.onnx
  streaminfer test digits.yaml --junit report.xml

exit code 0: every test passed; 2: one failed, or the configuration is wrong"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Send the records under `tests:` of a configuration through its pipelines and compare the answers. "
        "No broker is asked."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
    add_set_option(parser)
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        default=[],
        help="run the tests of this name only; * stands for any text; may be repeated",
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per test, then a summary, and nothing else"
    )
    parser.add_argument("--junit", metavar="FILE", type=Path, help="also write a report in JUnit's form")


def run(args: argparse.Namespace) -> int:
    """Load, test, report.

    Raises:
        ConfigError: the configuration or its tests are wrong, or there is none to run.
        WorkerError: a model cannot be loaded.
    """
    settings = configuration.load(args.config, args.overrides)
    logs.configure(settings.secrets(), level="warning")
    from worker.local.pipeline import Pipeline
    from worker.local.record_tests import run_tests
    from worker.settings.record_tests import check_tests

    check_tests(settings)
    chosen = _chosen(settings, args.only, args.config)
    if args.junit is not None and (is_dir(args.junit) or not is_dir(args.junit.parent)):
        raise ConfigError(f"--junit: {args.junit} cannot be written; expected a file in a folder that exists")
    say = _json_line if args.json else _text_lines
    timed: list[tuple[Outcome, float]] = []
    out = sys.stdout
    with redirect_stdout(sys.stderr), Pipeline.of(settings) as pipeline:  # custom code may print
        for outcome, took_s in _timed(run_tests(settings, pipeline, chosen)):
            timed.append((outcome, took_s))
            out.write(logs.redact(say(outcome)))
            out.flush()
    failed = sum(not outcome.ok for outcome, _ in timed)
    summary: dict[str, Any] = {"type": "summary", "tests": len(timed), "failed": failed}
    print(orjson.dumps(summary).decode() if args.json else _summary(len(timed), failed))
    if args.junit is not None:
        _write_junit(args.junit, settings.name, timed)
    return FAILED if failed else 0


def _chosen(settings: Settings, only: Sequence[str], config: Path) -> list[TestSettings]:
    if not settings.tests:
        raise ConfigError(
            f"{config}: tests: it has none; expected a list of tests, each with name, record and expect"
        )
    if not only:
        return settings.tests
    chosen = [test for test in settings.tests if any(fnmatchcase(test.name, pattern) for pattern in only)]
    if not chosen:
        names = ", ".join(test.name for test in settings.tests)
        raise ConfigError(f"--only: no test is called {' or '.join(only)}; expected one of {names}")
    return chosen


def _timed(outcomes: Iterator[Outcome]) -> Iterator[tuple[Outcome, float]]:
    before = time.perf_counter()
    for outcome in outcomes:
        yield outcome, time.perf_counter() - before
        before = time.perf_counter()


def _text_lines(outcome: Outcome) -> str:
    lines = [f"{'ok  ' if outcome.ok else 'FAIL'} {printable(outcome.name)}"]
    lines += [f"     {printable(fault)}" for fault in outcome.faults]
    return "\n".join(lines) + "\n"


def _json_line(outcome: Outcome) -> str:
    from worker.local.record_tests import plain

    answer = outcome.answer
    rejected = answer.rejected
    told = {
        "type": "test",
        "test": outcome.name,
        "ok": outcome.ok,
        "faults": outcome.faults,
        "pipeline": answer.pipeline,
        "result": plain(answer.result),
        "dead_letter": rejected
        and {"reason": rejected.reason, "stage": rejected.stage, "message": rejected.message},
        "dropped": answer.dropped,
    }
    return harmless(orjson.dumps(told, default=str, option=orjson.OPT_APPEND_NEWLINE)).decode()


def _summary(count: int, failed: int) -> str:
    tests = f"{count} test{'s'[: count != 1]}"
    return f"{tests}: {failed} failed" if failed else f"{tests}: all ok"


def _write_junit(path: Path, name: str, timed: Sequence[tuple[Outcome, float]]) -> None:
    """The form that CI systems read: one suite, a ``failure`` for each test that failed."""
    failed = sum(not outcome.ok for outcome, _ in timed)
    total_s = sum(took_s for _, took_s in timed)
    counts = {"tests": str(len(timed)), "failures": str(failed), "errors": "0", "time": f"{total_s:.3f}"}
    suite = ElementTree.Element("testsuite", {"name": _xml(name), **counts})
    for outcome, took_s in timed:
        case = ElementTree.SubElement(
            suite, "testcase", {"name": _xml(outcome.name), "classname": _xml(name), "time": f"{took_s:.3f}"}
        )
        if not outcome.ok:
            text = _xml(logs.redact("\n".join(outcome.faults)))
            failure = ElementTree.SubElement(case, "failure", {"message": text.splitlines()[0]})
            failure.text = text
    root = ElementTree.Element("testsuites", counts)
    root.append(suite)
    try:
        ElementTree.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise ConfigError(f"--junit: {path} cannot be written: {error.strerror}") from None


def _xml(text: str) -> str:
    """Text without the characters that XML cannot hold."""
    return printable(text, keep="\n")
