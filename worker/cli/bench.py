"""``streaminfer bench``: sends open-loop load through a running group and measures the latency of its results."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from worker.bench.capacity import FILE
from worker.cli.bench_usage import Measured
from worker.cli.connect import above_zero
from worker.cli.main import add_set_option
from worker.cli.registered import Framer, expects_schemas
from worker.cli.sources import ENDINGS, opened
from worker.errors import ConfigError, StartError
from worker.filesystem import is_dir, is_file
from worker.registry import OUTPUT_FORMATS
from worker.settings import PipelineSettings, Settings, load
from worker.telemetry import logs

if TYPE_CHECKING:
    from worker.bench.load import Load
    from worker.bench.search import Found
    from worker.bench.trial import Trial

DURATION_S, SEARCH_DURATION_S = 10.0, 4.0
MOST_BYTES = 256 << 20
"""Most bytes of records kept in memory; further records of a source are left out."""
FEWEST_RECORDS = 200
"""Fewest records in a trial of a search: with fewer there is no 99th percentile."""

EXAMPLE = """\
examples:
  streaminfer bench digits.yaml --rate 5000 --source frames/ --duration 30
  streaminfer bench digits.yaml --search --p99-ms 20 --source records.jsonl --json bench.json

A search also writes what one replica keeps to capacity.json, from which `streaminfer plan` counts."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Send records to a running group at a fixed rate and measure each from the moment it should have been sent to "
        "the moment its result was read. Start the workers first."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the running workers' YAML file")
    add_set_option(parser)
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--rate", type=above_zero, metavar="R", help="records per second")
    how.add_argument("--search", action="store_true", help="find the highest rate that keeps --p99-ms")
    parser.add_argument(
        "--p99-ms", type=above_zero, metavar="M", help="with --search: bound of the 99th percentile"
    )
    parser.add_argument(
        "--source",
        required=True,
        metavar="FILE",
        help="records as for produce, or any other file as one record; sent round and round",
    )
    parser.add_argument(
        "--duration",
        type=above_zero,
        metavar="S",
        help=f"seconds of one trial (default {DURATION_S:.0f}, with --search {SEARCH_DURATION_S:.0f})",
    )
    parser.add_argument(
        "--pipeline", metavar="NAME", help="which pipeline, where there are several (default: the first)"
    )
    parser.add_argument(
        "--capacity",
        metavar="FILE",
        type=Path,
        help=f"with --search: where to write what one replica keeps, for the command plan (default: {FILE})",
    )
    parser.add_argument(
        "--yes", action="store_true", help="go on although others send to the same input topic"
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write every number there, as one line of JSON; - is standard output, and the table goes to standard error",
    )


def run(args: argparse.Namespace) -> int:
    """Probe, load, measure, show.

    Raises:
        ConfigError: arguments, configuration or source are wrong.
        StartError: no broker, no topic, or no worker that answers.
    """
    _check_arguments(args)
    settings = load(args.config, args.overrides)
    logs.configure(settings.secrets())
    pipeline = _pipeline(settings, args.pipeline)
    if pipeline.input.unwrap or pipeline.output.wrap:
        raise ConfigError(
            "bench sends and reads values as they are; expected neither input.unwrap nor output.wrap"
        )

    if getattr(OUTPUT_FORMATS.entry(pipeline.output.format), "needs_schemas", False):
        raise ConfigError(
            f"bench does not read results as {pipeline.output.format}; expected --set output.format=json"
        )

    from worker.bench.load import Load

    values = _values(args.source)
    if settings.registry is not None and expects_schemas(settings, pipeline.input.topics[0]):
        framer = Framer(settings.registry, pipeline.input.topics[0])
        values = [value if value[:1] in (b"\0", b"\1") else framer.framed(value) for value in values]
    for_people = nullcontext() if args.json is None else redirect_stdout(sys.stderr)
    name = next(each for each, found in settings.pipelines.items() if found is pipeline)
    with for_people, Load(settings, pipeline, values) as group:
        _announce(group, settings, pipeline, args.yes)
        group.probe()
        if args.search:
            document = _search(group, args, Measured(settings, name, values))
        else:
            document = _once(group, args)
    if args.json is not None:
        _write(args.json, document)
    return 0


def _check_arguments(args: argparse.Namespace) -> None:
    if args.search and args.p99_ms is None:
        raise ConfigError("--search: expected --p99-ms M, the 99th percentile to keep")
    if args.p99_ms is not None and not args.search:
        raise ConfigError("--p99-ms: goes with --search")
    if args.capacity is not None and not args.search:
        raise ConfigError("--capacity: goes with --search")
    places = {"--json": args.json, "--capacity": (args.capacity or Path(FILE)) if args.search else None}
    for option, path in places.items():
        if path is not None and (is_dir(path) or not is_dir(path.parent)):
            raise ConfigError(f"{option}: {path} cannot be written; expected a file in a folder that exists")


def _pipeline(settings: Settings, name: str | None) -> PipelineSettings:
    if name is None:
        return next(iter(settings.pipelines.values()))
    if name not in settings.pipelines:
        raise ConfigError(f"--pipeline: got {name}, expected one of {', '.join(settings.pipelines)}")
    return settings.pipelines[name]


def _values(source: str) -> list[bytes]:
    """The records of the source, as many as fit in memory.

    Raises:
        ConfigError: it is missing, cannot be read, or holds no record.
    """
    path = Path(source)
    raw = is_file(path) and path.suffix.lower() not in ENDINGS  # such as one raw tensor
    values: list[bytes] = []
    size = 0
    for item in opened(source, None, raw).read():
        values.append(item.value)
        size += len(item.value)
        if size > MOST_BYTES:
            break
    if not values:
        raise ConfigError(f"--source: {source} holds no record; expected at least one")
    return values


def _once(group: Load, args: argparse.Namespace) -> dict[str, Any]:
    trial = _trial(group, args.rate, args.duration or DURATION_S, fewest=1)
    _show(trial)
    return trial.document()


def _announce(group: Load, settings: Settings, pipeline: PipelineSettings, sure: bool) -> None:
    """Say what is about to be written where, and refuse to write among the records of others.

    Raises:
        ConfigError: somebody else sends to the topic, which would also spoil the figures.
    """
    topic = pipeline.input.topics[0]
    held, others = group.of_others()
    there = f"{held:,} records are in it" if held else "it is empty"
    logs.say(
        f"bench sends its records to topic {topic} on {settings.kafka['bootstrap.servers']} ({there}); results go to "
        f"{pipeline.output.topic}, refusals to {settings.dead_letter.topic}"
    )
    if others > 0 and not sure:
        raise ConfigError(
            f"others send to topic {topic} now: {others:,} records within 1 s. Expected a topic of your own (--set "
            "input.topics=[...]), or --yes if bench may write among these records and read their results"
        )


def _search(group: Load, args: argparse.Namespace, measured: Measured) -> dict[str, Any]:
    from worker.bench.search import search

    print(f"{'records/s':>12} {'p50 ms':>9} {'p99 ms':>9} {'lost':>7}", flush=True)
    terminal = sys.stdout.isatty()

    def trial(rate: float) -> Trial:
        if terminal:
            print(f"{rate:12,.0f} ...", end="\r", flush=True)
        found = _trial(group, rate, args.duration or SEARCH_DURATION_S, FEWEST_RECORDS)
        p50, p99 = (found.latency_ms.get(name, float("nan")) for name in ("p50", "p99"))
        verdict = (
            ""
            if found.holds(args.p99_ms)
            else "  load generator late, repeated"
            if found.generator_limited
            else "  over"
        )
        print(f"{rate:12,.0f} {p50:9.2f} {p99:9.2f} {found.lost:7,}{verdict}", flush=True)
        return found

    with measured:
        found = measured.doubted(search(trial, args.p99_ms))
        document = measured.document(found, args.p99_ms, group)
    _show_search(found, args.p99_ms)
    if document is not None:
        _show_replica(document)
        try:
            _write(args.capacity or Path(FILE), document, indent=True)
        except StartError as error:
            if args.capacity is not None:
                raise
            logs.say(f"bench: {error}; expected --capacity FILE")  # nobody asked for this file
    return {
        "p99_ms": args.p99_ms,
        "best": found.best.document() if found.best else None,
        "best_p99_ms": {"lowest": found.p99_ms[0], "highest": found.p99_ms[1]},
        "generator_limited": found.generator_limited,
        "noisy": found.noisy or None,
        "steps": [
            {"rate": step.rate, "verdict": step.verdict, "p99_ms": step.p99_ms()} for step in found.steps
        ],
        "capacity": document,
        "trials": [trial.document() for trial in found.trials],
    }


def _trial(group: Load, rate: float, duration_s: float, fewest: int) -> Trial:
    from worker.bench.trial import evaluate, warm_up_s

    count = max(round(rate * duration_s), fewest)
    sent, answers = group.run(rate, count)
    return evaluate(sent, answers, rate, warm_up_s(count / rate))


def _show(trial: Trial) -> None:
    """One trial for people."""
    print(
        f"{'records/s':12} {trial.answered_per_s:12,.1f}  (sent {trial.sent_per_s:,.1f}, wanted {trial.wanted_per_s:,.1f})"
    )
    print(
        f"{'records':12} {trial.sent:12,}  results {trial.results:,}, dead letters {trial.dead_letters:,}, "
        f"lost {trial.lost:,}, duplicates {trial.duplicates:,}"
    )
    if trial.latency_ms:
        print(f"\n{'ms':12} {'p50':>9} {'p90':>9} {'p99':>9} {'p99.9':>9} {'max':>9}")
        _show_times("end to end", trial.latency_ms)
        for stage, times in trial.stages_ms.items():
            _show_times(f"  {stage}", times)
    if trial.refused:
        print(f"\nThe broker did not take {trial.refused:,} records.")
    if not trial.reached:
        print(
            f"\nThe load generator was the limit: it reached {trial.sent_per_s:,.0f} of {trial.wanted_per_s:,.0f} records/s. "
            "The workers may do better."
        )
    elif trial.generator_limited:
        print(
            f"\nThe load generator was late itself, by {trial.late_p99_ms:.1f} ms at its 99th percentile: that is a part of "
            "these times. The workers may do better."
        )


def _show_times(name: str, times: dict[str, float]) -> None:
    print(f"{name:12} " + " ".join(f"{value:9.2f}" for value in times.values()))


def _show_search(found: Found, p99_ms: float) -> None:
    print()
    if found.noisy:
        print(
            f"Too noisy here to tell a rate: {found.noisy}, and the windows contradict one another. Something else than "
            "this load makes records late: other programs on these machines, or the broker. Expected a quieter place, "
            f"longer windows (--duration), or a larger --p99-ms.{_load()}"
        )
        return
    if found.best is None:
        print(f"No rate keeps the 99th percentile within {p99_ms:g} ms.")
        if found.generator_limited:
            print("The load generator was late itself; run it on another machine.")
        return
    print(
        f"Highest rate with the 99th percentile within {p99_ms:g} ms: {found.best.wanted_per_s:,.0f} records/s "
        f"(p99 {found.p99_ms[0]:.1f} to {found.p99_ms[1]:.1f} ms in the windows at this rate)."
    )
    if found.generator_limited:
        print("Beyond it the load generator was late itself; the workers may do better.")
    print()
    _show(found.best)


def _load() -> str:
    """How busy this machine is, where it is too busy."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    return f" This machine has a load of {load:.1f} on {cores} processors." if load > cores else ""


def _show_replica(document: dict[str, Any]) -> None:
    """What the search says of one replica."""
    replicas, cpu = document["group"]["replicas"], document["cpu_us_per_record"]
    known = "" if document["group"]["replicas_known"] else " (assumed: nothing tells how many there are)"
    line = f"One replica of {replicas}{known} keeps {document['records_per_s']:,.0f} records/s"
    if cpu is not None:
        cores = cpu * document["records_per_s"] / 1e6
        line += f", with {cpu:,.1f} us of CPU for each: {cores:.2f} cores"
    print(f"\n{line}.")
    if cpu is None:
        print(
            "What it costs in CPU is not known: the configuration names no metrics.topic, or nothing came there."
        )


def _write(path: Path, document: dict[str, Any], indent: bool = False) -> None:
    line = orjson.dumps(document, option=orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if indent else 0))
    if str(path) == "-":
        sys.stdout.write(line.decode())
        return
    try:
        path.write_bytes(line)
    except OSError as error:
        raise StartError(f"{path} cannot be written: {error.strerror}") from None
    print(f"written to {path}", file=sys.stderr)
