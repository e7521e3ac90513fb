"""The ``streaminfer`` command: finds the subcommand, runs it, turns errors into one sentence and an exit code.

A command is a module ``worker/cli/<name>.py`` with ``configure(parser)`` and ``run(args) -> int``. Only the one that
was asked for is imported, so ``--help`` is quick and needs no runtime.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import select
import sys
from collections.abc import Sequence

from worker import __version__
from worker.cli import standard
from worker.cli.parser import Parser
from worker.errors import StartError, WorkerError

COMMANDS = {
    "init": "write a configuration for a model, and try a record",
    "run": "the worker: records in, predictions out",
    "check": "everything that can be known before running",
    "test": "run the tests that stand in a configuration",
    "topics": "the topics that a configuration needs: list or make them",
    "produce": "send images, a video, CSV or lines to a topic",
    "tail": "read results, metrics or dead letters",
    "top": "all replicas of a group in a terminal",
    "bench": "load a running group and measure latency",
    "plan": "how many replicas and partitions a rate takes",
    "broker": "the embedded development broker",
    "demo": "digits through two replicas, nothing else needed",
    "dlq": "list, show or replay dead letters",
    "explain": "one record through every stage: tensors, outputs, prediction, time",
    "model": "versions of models: list, try, promote, roll back, pin",
    "profile": "write down how records and answers are spread, for drift",
    "optimize": "try what makes a model smaller or faster, and write the best",
    "score": "join results with late labels: live accuracy",
    "quantize": "make a static INT8 model",
    "schema": "the JSON Schema of configurations, for editors",
    "completion": "a script with which bash, zsh or fish completes commands",
    "info": "versions and abilities of this installation, for a report of a bug",
}
"""Every command by name; one whose module is not there is left out."""

ABOUT = """\
example: streaminfer demo

environment:
  KAFKA_BOOTSTRAP_SERVERS, ...   where a configuration has ${NAME} or ${NAME:-default}
  LOG_LEVEL, LOG_FORMAT          debug to critical; json or console (default: console on a terminal)
  NO_COLOR                       no colours and no progress bars
  STREAMINFER_NATIVE=0           without the compiled batch path
  XDG_CACHE_HOME                 where copies of models and engines are kept (default: ~/.cache)

exit codes:
  0  done or drained                       5  stalled, stuck, or a drain over its budget
  1  a bug                                 6  the Kafka client failed for good
  2  usage or configuration                7  the model is sick
  3  cannot start: broker, topic, model    8  drained to give memory back
  4  too many dead letters                 129, 130, 143  a second signal

For a report of a bug: streaminfer info"""
"""What is the same for all commands, at the end of the help."""

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code. A user's mistake is one sentence on standard error."""
    standard.fill_closed()
    try:
        code = _dispatch(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
        return code
    except WorkerError as error:
        return _fail(error.lines, error.exit_code)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        return _unforeseen(error)
    finally:
        if standard.unwritten() is not None:
            standard.let_go()


def add_set_option(parser: argparse.ArgumentParser) -> None:
    """``--set K=V``, for every command that takes a configuration file."""
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="K=V",
        action="append",
        default=[],
        help="override one setting, such as batching.max_size=32 (YAML value; may be repeated)",
    )


def _dispatch(argv: list[str]) -> int:
    """Parse with only the wanted command's module imported, then run it."""
    parser = Parser(
        prog="streaminfer",
        description="A Kafka-native ONNX inference worker.",
        epilog=ABOUT,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"streaminfer {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    if not argv:
        print(_concise())
    wanted = next((argument for argument in argv if not argument.startswith("-")), None)
    command = None
    for name, line in COMMANDS.items():
        module = f"worker.cli.{name}"
        if importlib.util.find_spec(module) is None:
            continue
        subparser = subparsers.add_parser(name, help=line, allow_abbrev=False)
        if name == wanted:
            command = importlib.import_module(module)
            command.configure(subparser)
    try:
        arguments = parser.parse_args(argv)
    except SystemExit:  # how argparse ends after --help and --version
        return 0
    assert command is not None  # a parsed command is one of those above

    from worker.telemetry import logs

    logs.configure()
    return int(command.run(arguments))


def _concise() -> str:
    """What a bare ``streaminfer`` prints."""
    width = max(map(len, COMMANDS))
    there = [name for name in COMMANDS if importlib.util.find_spec(f"worker.cli.{name}") is not None]
    return "\n".join(
        [
            "streaminfer: a Kafka-native ONNX inference worker",
            "",
            *(f"  {name:<{width}}  {COMMANDS[name]}" for name in there),
            "",
            "  streaminfer demo              for a first look",
            "  streaminfer COMMAND --help    for each",
        ]
    )


def _unforeseen(error: Exception) -> int:
    """What no command expects: the reader of our output is gone, the system refuses something, or there is a bug."""
    if isinstance(error, BrokenPipeError) and _nobody_reads_stdout():
        return 0
    if isinstance(error, OSError) and error.errno is not None and standard.refuses(error):
        return _fail([f"standard output cannot be written: {os.strerror(error.errno)}"], StartError.exit_code)
    from worker.shortage import shortage

    if (sentence := shortage(error)) is not None:
        return _fail([sentence], StartError.exit_code)
    return _report_bug(error)


def _nobody_reads_stdout() -> bool:
    """Whether standard output is a pipe or a socket whose other end is closed."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _fail(lines: Sequence[str], exit_code: int) -> int:
    from worker.telemetry import logs

    logs.ensure_configured()
    logs.fatal(lines[0], exit_code, lines[1:])
    return exit_code


def _report_bug(error: Exception) -> int:
    from worker.telemetry import logs

    logs.ensure_configured()
    logs.get(__name__).error("bug", exc_info=error)
    sentence = " ".join(f"a bug: {type(error).__name__}: {error}".split())
    return _fail([sentence], WorkerError.exit_code)
