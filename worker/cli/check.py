"""``streaminfer check``: checks everything that can be checked before a run, and prints one line for each check."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from worker import native
from worker import settings as configuration
from worker.batch import Headers
from worker.cli import check_acls, check_figures
from worker.cli.check_models import model_lines, models_line
from worker.cli.check_report import Report, every
from worker.cli.check_stores import check_stores
from worker.cli.check_versions import with_versions
from worker.cli.main import add_set_option
from worker.cli.payloads import described
from worker.errors import ConfigError, Reject, WorkerError
from worker.settings import Settings
from worker.telemetry import logs

if TYPE_CHECKING:
    from worker.serving.rollout import Rollout


EXAMPLE = """\
example:
  streaminfer check digits.yaml --offline --sample seven.png
  streaminfer check shop.yaml --sample prices=row.json --sample faces=face.jpg --sample-header x-model=a"""
SHOWN_BYTES = 2048
"""Most of a sample's result that is printed: `raw` of a segmentation model has megabytes."""


class Sample(NamedTuple):
    """One record to send through a pipeline."""

    pipeline: str | None
    """Its name; None: the first pipeline that takes a record with these headers."""
    value: bytes


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Check configuration, labels, model, memory, broker, topics and rights before running."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
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
    parser.add_argument("--json", action="store_true", help="one JSON object per check and nothing else")


def run(args: argparse.Namespace) -> int:
    """Go through the checks in order.

    Raises:
        WorkerError: the first failure, once all that can be checked has been.
    """
    from worker.cli.connect import pair  # loads the Kafka client, which --help does without

    if args.print:
        print(configuration.printed(configuration.load(args.config, args.overrides)), end="")
        return 0
    report = Report(as_json=args.json)
    headers: Headers = [(k, v.encode()) for k, v in (pair("--sample-header", h) for h in args.sample_headers)]
    settings = report.check("config", lambda: configuration.load(args.config, args.overrides), _config_line)
    if settings is not None:
        report.settings = settings
        _check_all(report, settings, args, headers)
    if report.first_failure:
        raise report.first_failure
    return 0


def _check_all(report: Report, settings: Settings, args: argparse.Namespace, headers: Headers) -> None:
    logs.configure(settings.secrets(), level="warning")  # the lines of the report say what the log would
    report.check("pipelines", lambda: _pipelines(settings), str)
    if settings.tests:
        report.check("tests", lambda: _tests(settings), str)
    report.check("kafka", lambda: _clients(settings), str)
    configured, took = settings, dict[str, int]()
    with_files = with_versions(report.check, settings)
    if with_files is not None:
        settings = with_files
        _check_files(report, settings, args, headers, took)
    if settings.metrics.http:
        report.check("http", lambda: _http(settings), str)
    report.line("batch path", True, f"{native.batch_path}, producer {native.producer_path}")
    report.line("memory", True, check_figures.memory(configured, took))
    for name, message in check_figures.figures(settings):
        report.line(name, True, message)
    if payload := described(settings):
        report.line("payload", True, payload)
    report.line("credentials", True, _credentials(settings))
    check_stores(report.check, settings, args.offline)
    if not args.offline:
        _check_broker(report, settings)
    if args.acls:
        check_acls.check_acls(report, settings, args.principal, args.offline)


def _check_files(
    report: Report, settings: Settings, args: argparse.Namespace, headers: Headers, took: dict[str, int]
) -> None:
    """Everything about models, labels, custom code and samples; ``took`` gets the memory of each load in bytes."""
    report.check("labels", lambda: _labels(settings), str)
    report.check("custom code", lambda: _custom_code(settings), str)
    report.check("model file", lambda: _model_files(settings), str)
    samples = _samples(report, settings, args.samples)
    if report.first_failure is None:
        _check_engine(report, settings, samples, headers, args.offline, took)


def _check_engine(
    report: Report,
    settings: Settings,
    samples: Sequence[Sample],
    headers: Headers,
    offline: bool,
    took: dict[str, int],
) -> None:
    """Load every model, say what it is, and send each sample through its pipeline."""
    from worker.cli.sample import answer  # imports the runtime: only once the cheap checks have passed
    from worker.schema_registry.opening import open_registry
    from worker.serving.load import load

    registry = open_registry(settings, offline, registers=False)
    rollouts = report.check("model", lambda: load(settings, took, registry=registry), models_line)
    if rollouts is None:
        return
    for name, rollout in rollouts.items():
        for check, message in model_lines(name, rollout.choose()):
            report.line(check, True, message)
        if settings.pipelines[name].model.golden is not None:
            report.check("golden", partial(_golden, settings, rollout), str)
    for sample in samples:
        report.check("sample", partial(_answer, answer, rollouts, sample, headers), _sample_line)
    if registry is not None:
        registry.close()


def _golden(settings: Settings, rollout: Rollout) -> str:
    from worker.serving.golden import check_golden

    model, route = settings.pipelines[rollout.route.name].model, rollout.route
    assert model.golden is not None
    count = check_golden(model.golden, route, rollout.choose(), model.tolerance)
    return f"{route.name}: {count} records answered as expected"


def _check_broker(report: Report, settings: Settings) -> None:
    from worker.kafka.topics import check_broker

    try:
        for name, message in check_broker(settings):
            report.line(name, True, message)
    except WorkerError as error:
        report.fail("broker", error)


def _config_line(settings: Settings) -> str:
    names = ", ".join(settings.pipelines)
    return (
        f"{settings.name}: {len(settings.pipelines)} pipeline{'s'[: len(settings.pipelines) > 1]} ({names})"
    )


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


def _samples(report: Report, settings: Settings, options: Sequence[str]) -> list[Sample]:
    """The samples that can be read; the report names the fault of each other one."""
    samples = []
    for option in options:
        name, equals, path = option.partition("=")
        named = bool(equals) and name in settings.pipelines
        file = Path(path if named else option)
        value = report.check("sample file", partial(_read_sample, file), _bytes_line)
        if value is not None:
            samples.append(Sample(name if named else None, value))
    return samples


def _read_sample(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ConfigError(f"--sample: {path} does not exist; expected a file with one record") from None
    except IsADirectoryError:
        raise ConfigError(f"--sample: {path} is a directory; expected a file with one record") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--sample: {path} cannot be read: {error}") from None


def _answer(
    answer: Callable[[Rollout, bytes, Headers], Any],
    rollouts: Mapping[str, Rollout],
    sample: Sample,
    headers: Headers,
) -> Any:
    """The sample's result; a record that would become a dead letter is the caller's mistake here."""
    rollout = _taking(rollouts, sample, headers)
    max_bytes = rollout.route.max_bytes
    if len(sample.value) > max_bytes:
        raise ConfigError(
            f"--sample: too_large: got {len(sample.value)} bytes, expected at most input.max_bytes {max_bytes}"
        )
    try:
        return answer(rollout, sample.value, headers)
    except Reject as error:
        raise ConfigError(f"--sample: {error.reason}: {error}") from None


def _taking(rollouts: Mapping[str, Rollout], sample: Sample, headers: Headers) -> Rollout:
    """The pipeline that answers the sample: the named one, else the first one that takes its headers."""
    from worker.loop.admission import matches

    if sample.pipeline is not None:
        return rollouts[sample.pipeline]
    for rollout in rollouts.values():
        if matches(rollout.route.when, headers):
            return rollout
    raise ConfigError(
        "--sample: unroutable: no pipeline takes a record with these headers; expected --sample-header K=V, or "
        f"PIPELINE=FILE with one of {', '.join(rollouts)}"
    )


def _credentials(settings: Settings) -> str:
    """How the worker authenticates to the broker, without secrets; warns if others could read the traffic."""
    kafka = settings.kafka
    protocol = configuration.security_protocol(settings)
    mechanism = kafka.get("sasl.mechanisms", "GSSAPI") if "sasl" in protocol else "no SASL"
    hosts = configuration.plaintext_hosts(settings)
    return f"{protocol}, {mechanism}" + (f"; not encrypted to {', '.join(hosts)}" if hosts else "")


def _bytes_line(value: bytes) -> str:
    return f"{len(value)} bytes"


def _sample_line(result: Any) -> str:
    """A JSON result as it would be published, shortened if it is long; for a binary result its size."""
    if isinstance(result, bytes):
        return f"{len(result)} bytes"
    text = json.dumps(result, ensure_ascii=False)
    if len(text) <= SHOWN_BYTES:
        return text
    return f"{text[:SHOWN_BYTES]}... ({len(text):,} characters)"
