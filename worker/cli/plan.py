"""``streaminfer plan``: how many replicas and partitions a rate takes, from what ``bench --search`` found."""

from __future__ import annotations

import argparse
from pathlib import Path

import orjson
import yaml

from worker import settings as configuration
from worker.bench.capacity import FILE, HOW, digest_of, read_capacity
from worker.cli.connect import above_zero
from worker.cli.main import add_set_option
from worker.errors import ConfigError, StartError
from worker.filesystem import is_file
from worker.settings import Settings, memory_bound
from worker.telemetry import logs

EXAMPLE = """\
examples:
  streaminfer plan digits.yaml --rate 50000 --p99-ms 20
  streaminfer plan digits.yaml --rate 50000 --p99-ms 20 --capacity capacity.json --offline --json

It counts from what `streaminfer bench CONFIG --search --p99-ms M` has found on a machine like yours."""
OUTAGE_S = 300.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Say how many replicas and partitions a rate takes, what limits it, and what a restart or an outage means."
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
    add_set_option(parser)
    parser.add_argument(
        "--rate", type=above_zero, required=True, metavar="R", help="records per second to answer"
    )
    parser.add_argument(
        "--p99-ms", type=above_zero, required=True, metavar="M", help="bound of the 99th percentile"
    )
    parser.add_argument(
        "--capacity",
        type=Path,
        metavar="FILE",
        help=f"what bench --search wrote (default: {FILE} here, else beside CONFIG)",
    )
    parser.add_argument(
        "--pipeline", metavar="NAME", help="which pipeline, where there are several (default: the first)"
    )
    parser.add_argument(
        "--outage",
        type=above_zero,
        default=OUTAGE_S,
        metavar="S",
        help=f"an outage of so many seconds is worked off afterwards (default: {OUTAGE_S:.0f})",
    )
    parser.add_argument(
        "--offline", action="store_true", help="do not ask the broker how many partitions there are"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def run(args: argparse.Namespace) -> int:
    """Count and print.

    Raises:
        ConfigError: the configuration, or what was measured, is wrong.
        StartError: the broker cannot be reached.
    """
    settings = configuration.load(args.config, args.overrides)
    logs.configure(settings.secrets(), level="warning")
    pipeline = _pipeline(settings, args.pipeline)
    capacity = read_capacity(_place(args.capacity, args.config))
    if args.p99_ms < capacity.p99_ms:
        raise ConfigError(
            f"--p99-ms: got {args.p99_ms:g}, but the search kept {capacity.p99_ms:g} ms; expected at least that, or a new "
            f"search: streaminfer bench {args.config} --search --p99-ms {args.p99_ms:g} --source FILE"
        )
    from worker.bench import plan as planning

    taken = settings.pipelines[pipeline].input
    wanted = planning.Wanted(
        pipeline,
        tuple(taken.topics),
        args.rate,
        args.p99_ms,
        args.outage,
        None if args.offline else _partitions(settings, tuple(taken.topics)),
        memory_bound(settings) + _for_versions(settings),
        settings.limits.drain_s,
        settings.limits.revoke_s,
    )
    found = planning.plan(capacity, wanted)
    said = list(planning.notes(found, digest_of(settings, pipeline), _model(settings, pipeline)))
    if any(
        each.model.repository is not None and each.model.swap_bytes == "auto"
        for each in settings.pipelines.values()
    ):
        said.append("memory: a new version of a model takes more; check says how much, or model.swap_bytes")
    if args.json:
        print(orjson.dumps(planning.document_of(found, said)).decode())
        return 0
    print("\n".join(planning.lines(found, said)))
    print("\nValues for the Helm chart:\n")
    print(yaml.safe_dump(planning.keda(found), sort_keys=False), end="")
    return 0


def _pipeline(settings: Settings, name: str | None) -> str:
    if name is None:
        return next(iter(settings.pipelines))
    if name not in settings.pipelines:
        raise ConfigError(f"--pipeline: got {name}, expected one of {', '.join(settings.pipelines)}")
    return name


def _place(given: Path | None, config: Path) -> Path:
    """Where the capacity is."""
    if given is not None:
        return given
    places = (Path(FILE), config.parent / FILE)
    found = next((place for place in places if is_file(place)), None)
    if found is None:
        raise ConfigError(f"--capacity: there is no {FILE} here or beside {config}; {HOW}")
    return found


def _partitions(settings: Settings, topics: tuple[str, ...]) -> int:
    """Of the input topics together.

    Raises:
        StartError: the broker does not answer, or a topic is missing.
    """
    from worker.kafka.measuring import partitions_of

    try:
        return sum(partitions_of(settings, topics).values())
    except StartError as error:
        raise StartError(f"{error}; expected --offline to plan without it") from None


def _for_versions(settings: Settings) -> int:
    """Bytes that new versions of models from a repository take beside the running ones, where the configuration says it."""
    given = (
        each.model.swap_bytes for each in settings.pipelines.values() if each.model.repository is not None
    )
    return sum(size for size in given if size != "auto")


def _model(settings: Settings, pipeline: str) -> str | None:
    """``name@version`` of the model's file now; None where that takes more than reading a file."""
    from worker.model.fingerprint import model_sha256

    part = settings.pipelines[pipeline]
    if part.steps is not None or part.model.path is None or part.model.code is not None:
        return None
    try:
        version = part.model.version or model_sha256(part.model.file)[:8]
    except OSError:
        return None
    return f"{part.model.name or pipeline}@{version}"
