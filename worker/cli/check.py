"""``streaminfer check``: checks everything that can be checked before a run, and prints one line for each check."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from worker import native, tracing
from worker import settings as configuration
from worker.batch import Headers
from worker.cli import check_acls, check_figures
from worker.cli.check_engine import check_engine, samples_of
from worker.cli.check_labels import labels_line, topics_line
from worker.cli.check_report import Report, every
from worker.cli.check_stores import check_stores
from worker.cli.check_versions import with_versions
from worker.cli.main import add_set_option
from worker.cli.payloads import described
from worker.errors import ConfigError, Mistake, NotReady, WorkerError
from worker.settings import Settings
from worker.settings.hosts import open_hosts, protocol_of
from worker.telemetry import logs

EXAMPLE = """\
example:
  streaminfer check digits.yaml --offline --sample seven.png
  streaminfer check conf/*.yaml --quiet
  streaminfer check shop.yaml --sample prices=row.json --sample faces=face.jpg --sample-header x-model=a"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check configuration, labels, model, memory, broker, topics and rights before running."
    )
    parser.epilog = EXAMPLE
    parser.add_argument(
        "configs", metavar="CONFIG", type=Path, nargs="+", help="the worker's YAML file, or several of them"
    )
    add_set_option(parser)
    parser.add_argument(
        "--sample",
        dest="samples",
        metavar="[PIPELINE=]FILE",
        action="append",
        default=[],
        help="one record to send through the whole engine; prints the result. Without PIPELINE the first pipeline "
        "that takes the record answers it; may be repeated",
    )
    parser.add_argument(
        "--sample-header",
        dest="sample_headers",
        metavar="K=V",
        action="append",
        default=[],
        help="a header of every sample; may be repeated",
    )
    parser.add_argument("--offline", action="store_true", help="leave out what needs the broker")
    check_acls.add_options(parser)
    parser.add_argument(
        "--print",
        action="store_true",
        help="check no more than the configuration, and print it as it counts: every setting with where it comes from",
    )
    parser.add_argument("--quiet", action="store_true", help="print what fails and nothing else")
    parser.add_argument("--json", action="store_true", help="one JSON object per check and nothing else")


def run(args: argparse.Namespace) -> int:
    """Go through the checks in order, of each configuration.

    Raises:
        WorkerError: the first failure, once all that can be checked has been.
    """
    from worker.cli.connect import pair  # loads the Kafka client, which --help does without

    several = len(args.configs) > 1
    for option, given in (("--sample", args.samples), ("--print", args.print)):
        if several and given:
            raise ConfigError(f"{option}: expected one CONFIG beside it, got {len(args.configs)}")
    if args.print:
        print(configuration.printed(configuration.load(args.configs[0], args.overrides)), end="")
        return 0
    headers: Headers = [(k, v.encode()) for k, v in (pair("--sample-header", h) for h in args.sample_headers)]
    if not several:
        return _ended(_check(args.configs[0], args, headers, {}))
    return _each(args, headers)


def _check(config: Path, args: argparse.Namespace, headers: Headers, about: Mapping[str, str]) -> Report:
    """One configuration."""
    report = Report(args.json, args.quiet, about)
    settings = report.check(
        "config", lambda: configuration.load(config, args.overrides), _config_line, _config_row
    )
    if settings is not None:
        report.settings = settings
        _check_all(report, settings, args, headers)
    report.end()
    return report


def _ended(report: Report) -> int:
    """The exit code.

    Raises:
        WorkerError: the failure, where nobody has read it yet.
    """
    if report.first_failure is None:
        return 0
    if report.told:
        return report.first_failure.exit_code
    raise report.first_failure


def _each(args: argparse.Namespace, headers: Headers) -> int:
    """Several configurations, one after the other; each finds its own custom code.

    Raises:
        WorkerError: with the exit code of the first that failed, naming all that did.
    """
    failed: dict[Path, Report] = {}
    for config in args.configs:
        if not (args.json or args.quiet):
            print(f"{config}:")
        with _own_modules(config.absolute().parent):
            report = _check(config, args, headers, {"config": str(config)})
        if report.first_failure is not None:
            failed[config] = report
    count = len(args.configs)
    if not failed:
        if not (args.json or args.quiet):
            print(f"{count} configurations: all ok")
        return 0
    first = next(iter(failed.values()))
    assert first.first_failure is not None
    sentence = f"{len(failed)} of {count} configurations failed: {', '.join(map(str, failed))}"
    if first.told:
        print(sentence)
        return first.first_failure.exit_code
    raise type(first.first_failure).of([Mistake(sentence)])


@contextmanager
def _own_modules(folder: Path) -> Iterator[None]:
    """Let custom code beside a configuration go again: another one may have code of the same name."""
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            file = getattr(sys.modules[name], "__file__", None)
            if file is not None and Path(file).is_relative_to(folder):
                del sys.modules[name]


def _check_all(report: Report, settings: Settings, args: argparse.Namespace, headers: Headers) -> None:
    logs.configure(settings.secrets(), level="warning")  # the lines of the report say what the log would
    report.check("pipelines", lambda: _pipelines(settings), str, _nothing)
    if settings.tests:
        report.check("tests", lambda: _tests(settings), str)
    clients = report.check("kafka", lambda: _clients(settings), str, _nothing)
    configured, took = settings, dict[str, int]()
    with_files = with_versions(report.check, settings)
    if with_files is not None:
        settings = with_files
        _check_files(report, settings, args, headers, took)
    if settings.metrics.http:
        report.check("http", lambda: _http(settings), str)
    if settings.tracing is not None:
        report.check("tracing", lambda: tracing.described(settings, args.offline), str)
    report.line("batch path", True, f"{native.batch_path}, producer {native.producer_path}")
    report.line("memory", True, check_figures.memory(configured, took))
    for name, message in check_figures.figures(settings):
        report.line(name, True, message)
    if settings.labels is not None:
        report.line("score", True, labels_line(settings))
    if payload := described(settings):
        report.line("payload", True, payload)
    report.line("credentials", True, _credentials(settings))
    check_stores(report.check, settings, args.offline)
    if not args.offline and clients is not None:
        _check_broker(report, settings)
    if args.acls:
        check_acls.check_acls(report, settings, args.principal, args.offline)


def _check_files(
    report: Report, settings: Settings, args: argparse.Namespace, headers: Headers, took: dict[str, int]
) -> None:
    """Everything about models, labels, custom code and samples; ``took`` gets the memory of each load in bytes."""
    report.check("labels", lambda: _labels(settings), str, _unless_none)
    report.check("custom code", lambda: _custom_code(settings), str, _unless_none)
    report.check("model file", lambda: _model_files(settings), str, _nothing)
    samples = samples_of(report, settings, args.samples)
    if report.first_failure is None:
        check_engine(report, settings, samples, headers, args.offline, took)


def _check_broker(report: Report, settings: Settings) -> None:
    from worker.kafka.topics import check_broker

    try:
        for name, message in check_broker(settings):
            report.line(name, True, message)
    except NotReady as error:
        report.fail("broker", error)
        report.hint(
            f"streaminfer topics {settings.origins.file} shows all of them; with create it makes what is missing"
        )
    except WorkerError as error:
        report.fail("broker", error)
        return
    if settings.labels is not None:
        report.check("score", lambda: topics_line(settings), str)


def _config_line(settings: Settings) -> str:
    names = ", ".join(settings.pipelines)
    return (
        f"{settings.name}: {len(settings.pipelines)} pipeline{'s'[: len(settings.pipelines) > 1]} ({names})"
    )


def _config_row(settings: Settings) -> str:
    count = len(settings.pipelines)
    if count > 1:
        return f"{count} pipelines"
    (pipeline,) = settings.pipelines.values()
    once = ", exactly once" if settings.delivery == "exactly_once" else ""
    return f"1 pipeline, reads {', '.join(pipeline.input.topics)}, writes {pipeline.output.topic}{once}"


def _nothing(_: object) -> str:
    """No row: that it is well says nothing that people would look for."""
    return ""


def _unless_none(message: str) -> str:
    return "" if message == "none" else message


def _clients(settings: Settings) -> str:
    from worker.kafka.properties import check_clients

    return check_clients(settings)


def _labels(settings: Settings) -> str:
    found = every(
        lambda key, path: f"{path.name}: {len(configuration.labels_of(path, key))} labels",
        [*settings.label_files()],
    )
    return ", ".join(found) or "none"


def _custom_code(settings: Settings) -> str:
    every(lambda key, name: configuration.import_attribute(name, key), [*settings.custom_code()])
    return ", ".join(name for _, name in settings.custom_code()) or "none"


def _model_files(settings: Settings) -> str:
    every(
        lambda name: configuration.check_model_file(settings, name), [(name,) for name in settings.pipelines]
    )
    parts = (part for pipeline in settings.pipelines.values() for part in pipeline.parts.values())
    sizes = dict.fromkeys(part.model.file for part in parts)
    return ", ".join(f"{path.name}: {path.stat().st_size} bytes" for path in sizes)


def _pipelines(settings: Settings) -> str:
    """Check that every pipeline can get a record: an earlier one that takes every record of a topic leaves none."""
    for name, earlier, topics in configuration.starved_pipelines(settings):
        raise ConfigError(
            f"pipelines.{name}: no record can reach it: {earlier} stands before it and takes every record of "
            f"{topics}; expected it first, or a `when` in {earlier}"
        )
    return "each of them can get records"


def _tests(settings: Settings) -> str:
    """Check the section ``tests`` without running them."""
    from worker.settings.record_tests import check_tests

    check_tests(settings)
    return f"{len(settings.tests)}, which `streaminfer test` runs"


def _http(settings: Settings) -> str:
    """See :func:`worker.cli.check_http.check_http`."""
    from worker.cli.check_http import check_http

    return check_http(settings)


def _credentials(settings: Settings) -> str:
    """How the worker authenticates to the broker, without secrets; warns if others could read the traffic."""
    found = []
    for kafka in (settings.kafka, *(each.output.kafka for each in settings.pipelines.values())):
        if kafka is not None:
            protocol = protocol_of(kafka)
            mechanism = kafka.get("sasl.mechanisms", "GSSAPI") if "sasl" in protocol else "no SASL"
            hosts = open_hosts(kafka)
            found.append(
                f"{protocol}, {mechanism}" + (f"; not encrypted to {', '.join(hosts)}" if hosts else "")
            )
    return "; results: ".join(dict.fromkeys(found))
