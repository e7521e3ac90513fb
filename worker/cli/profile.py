"""``streaminfer profile``: how the records of a pipeline and their answers are spread, as a file that `drift` compares with."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from worker import settings as configuration
from worker.batch import Batch, Columns, Headers, Partition
from worker.cli.connect import at_least_one
from worker.cli.main import add_set_option
from worker.cli.sources import opened
from worker.cli.spans import is_span, span_of
from worker.errors import ConfigError, Reject
from worker.filesystem import is_dir
from worker.settings import Settings
from worker.telemetry import logs

if TYPE_CHECKING:
    from worker.drift.measured import Gathered, Measured
    from worker.drift.profile import Feature, Profile
    from worker.serving.rollout import Rollout

BATCH_BYTES = 64 << 20
"""Records that go through the engine together have at most so many bytes, unless one alone has more."""
RECORDS = 50_000
FEATURES_SHOWN = 20
REFUSED_SHARE = 0.5
"""If more records than this are refused, most likely the source is another pipeline's."""

EXAMPLE = """\
SOURCE is what `streaminfer produce` takes (a file, a folder, a video, a table, lines, or - for standard input), or a span of a
topic: topic:NAME[/PARTITION][@FROM..TO]. FROM and TO are times (-2h for two hours ago, or 2026-11-30T12:00Z) or, with a
PARTITION, offsets. Either may be left out. The records should be such as the model was made for, several thousand of them.

examples:
  streaminfer profile digits.yaml --from frames/ --out profile.json
  streaminfer profile digits.yaml --from topic:digits@-1d.. --out profile.json
  streaminfer profile shop.yaml --pipeline prices --from topic:prices/0@1000..50000 --out prices.profile.json"""


class Given(NamedTuple):
    """A record that is measured."""

    value: bytes
    headers: Headers


@dataclass(frozen=True, slots=True)
class Records:
    """What is read: how many records there are at most, and the records."""

    most: int | None
    """None: not known before they are read."""
    read: Callable[[], Iterator[Given]]


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Send records through a pipeline and write down how they and their answers are spread: numbers, pictures, texts, sounds, "
        "classes, scores. `drift` in the configuration compares what comes later. Joins no group, commits and sends nothing."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the worker's YAML file")
    parser.add_argument(
        "--from", dest="source", metavar="SOURCE", required=True, help="where records come from"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, default=Path("profile.json"), help="default: profile.json"
    )
    parser.add_argument("--pipeline", metavar="NAME", help="which one, where the configuration has several")
    parser.add_argument(
        "--records",
        metavar="N",
        type=at_least_one,
        default=RECORDS,
        help=f"most records that are measured, evenly out of the source (default {RECORDS})",
    )
    add_set_option(parser)


def run(args: argparse.Namespace) -> int:
    """Measure the records and write the file.

    Raises:
        ConfigError: arguments or configuration; a source that is missing or not understood; too few records.
        StartError: no broker or no such topic; a model that cannot be loaded.
    """
    settings = configuration.load(args.config, args.overrides)
    name = _pipeline(settings, args.pipeline)
    if not is_dir(args.out.absolute().parent):
        raise ConfigError(
            f"--out: {args.out.absolute().parent} is no folder; expected one to write {args.out.name} into"
        )
    logs.configure(settings.secrets(), level="warning")
    settings = _alone(settings, name)
    with _source(settings, args.source) as records, redirect_stdout(sys.stderr):  # custom code may print
        profile, refused = _measured(settings, name, records, args.source, args.records)
    profile.write(args.out)
    for line in _told(args.out, profile, refused):
        print(line)
    return 0


def _pipeline(settings: Settings, wanted: str | None) -> str:
    names = [*settings.pipelines]
    if wanted is None and len(names) > 1:
        raise ConfigError(
            f"--pipeline: required, because there are several; expected one of {', '.join(names)}"
        )
    if wanted is not None and wanted not in names:
        raise ConfigError(f"--pipeline: there is no {wanted}; expected one of {', '.join(names)}")
    name = wanted or names[0]
    if settings.pipelines[name].input.window is not None:
        raise ConfigError(
            f"{name} has input.window, so a record is answered together with earlier ones of its key; expected a pipeline "
            "whose records are answered alone"
        )
    return name


def _alone(settings: Settings, name: str) -> Settings:
    """This pipeline alone, and without a profile, which may not be there yet."""
    wanted = settings.pipelines[name].model_copy(update={"drift": None, "rollout": None})
    return settings.model_copy(update={"pipelines": {name: wanted}})


# -- the records ----------------------------------------------------------------------------------------------


@contextmanager
def _source(settings: Settings, text: str) -> Iterator[Records]:
    """What ``--from`` names.

    Raises:
        ConfigError: it is missing or not understood.
        StartError: no broker or no such topic.
    """
    if not is_span(text):
        source = opened(text, None)

        def read() -> Iterator[Given]:
            return (Given(item.value, item.headers) for item in source.read())

        yield Records(sum(1 for _ in source.read()) if source.repeats else None, read)
        return
    from worker.cli.connect import connection
    from worker.kafka.spans import SpanReader

    span = span_of("--from", text)
    (pipeline,) = settings.pipelines.values()
    when = pipeline.when
    with SpanReader(connection("streaminfer-profile", None, [], settings), span) as reader:

        def taken() -> Iterator[Given]:
            from worker.loop.admission import matches

            condition = (when.header, when.equals.encode()) if when is not None else None
            for record in reader.read():
                if record.value is not None and matches(condition, record.headers):
                    yield Given(record.value, record.headers)

        yield Records(reader.most, taken)


def _some(records: Records, most: int) -> Iterator[Given]:
    """At most so many of the records, evenly out of all."""
    step = 1 if records.most is None else math.ceil(records.most / most)
    return islice(records.read(), 0, most * step, step)


def _batches(records: Iterable[Given], most: int) -> Iterator[list[Given]]:
    batch: list[Given] = []
    nbytes = 0
    for record in records:
        if batch and (len(batch) >= most or nbytes + len(record.value) > BATCH_BYTES):
            yield batch
            batch, nbytes = [], 0
        batch.append(record)
        nbytes += len(record.value)
    if batch:
        yield batch


# -- the figures ----------------------------------------------------------------------------------------------


class _Collector:
    """Wants the figures of every record; see :class:`worker.serving.gauge.Comparer`."""

    def __init__(self, gathered: Gathered) -> None:
        self._gathered = gathered

    def chosen(self, rows: int, most: int) -> Sequence[int]:
        return range(rows)

    def add(self, measured: Measured, cost_ns: int) -> None:
        self._gathered.add(measured)


def _measured(
    settings: Settings, name: str, records: Records, source: str, most: int
) -> tuple[Profile, Counter[str]]:
    """The profile, and how many records were refused for which reason.

    Raises:
        ConfigError: too few records were answered.
    """
    from worker.drift.measured import Gathered
    from worker.drift.profile import LEAST_RECORDS, Profile, features_of
    from worker.schema_registry.opening import open_registry
    from worker.serving.gauge import Gauge
    from worker.serving.load import load
    from worker.serving.measures import Measures
    from worker.serving.versions import resolved

    settings = resolved(settings)[0]
    registry = open_registry(settings, registers=False)
    gathered, refused = Gathered(), Counter[str]()
    try:
        (rollout,) = load(settings, registry=registry).values()
        servable = rollout.stable
        measures = Measures(servable.decoder, servable.encoder, servable.model.signature)
        servable = replace(servable, gauge=Gauge(_Collector(gathered), measures, every=True))
        for batch in _batches(_some(records, most), servable.batch_records):
            _answer(rollout, servable, batch, refused)
        label, version = servable.model_name, servable.model_version
        rollout.close()
    finally:
        if registry is not None:
            registry.close()
    if gathered.records < LEAST_RECORDS:
        why = f"; {_reasons(refused)} were refused" if refused else ""
        raise ConfigError(
            f"--from {source}: expected at least {LEAST_RECORDS} records that are answered, got {gathered.records}{why}"
        )
    features = features_of(gathered)
    if not features:
        raise ConfigError(f"--from {source}: nothing in these records or their answers can be compared")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    profile = Profile(name, label, version, source, created, gathered.records, measures.kinds, features)
    return profile, refused


def _answer(rollout: Rollout, servable: Any, given: Sequence[Given], refused: Counter[str]) -> None:
    """Take records through the engine; what is refused is counted."""
    from worker.cli.sample import outcomes_of
    from worker.local.outside import as_sent, fetched

    route, values, headers = rollout.route, [], []
    for record in given:
        try:
            if len(record.value) > route.max_bytes:
                raise Reject("longer than input.max_bytes", "too_large")
            value: bytes | None = fetched(route, record.value, record.headers or None, "--from")
            its: Headers | None = record.headers or None
            if value is None:
                value, its = as_sent(route, record.value, its)
        except Reject as error:
            refused[error.reason] += 1
            continue
        values.append(value)
        headers.append(its)
    if not values:
        return
    now_ms, count = time.time() * 1000, len(values)
    source = Partition(min(route.topics), 0)
    columns = Columns(
        [*values], [None] * count, headers, [int(now_ms)] * count, [*range(count)], [source] * count
    )
    batch = Batch(None, range(count), columns, route, servable, time.monotonic_ns(), now_ms)
    batch.to_open = {row for row in range(count) if route.opening.applies(headers[row])}
    outcomes = outcomes_of(batch, rollout, "--from")
    refused.update(why.reason for why in outcomes.rejected.values())


# -- what is said ---------------------------------------------------------------------------------------------


def _told(path: Path, profile: Profile, refused: Counter[str]) -> Iterator[str]:
    count = len(profile.features)
    yield f"{path}: {profile.records} records of {profile.pipeline}, {count} feature{'s'[: count > 1]}"
    for name, feature in islice(profile.features.items(), FEATURES_SHOWN):
        yield f"  {name}: {_spread(feature)}"
    if count > FEATURES_SHOWN:
        yield f"  and {count - FEATURES_SHOWN} more"
    if refused:
        yield f"  left out, because the pipeline refuses them: {_reasons(refused)}"
    if refused.total() > REFUSED_SHARE * (profile.records + refused.total()):
        print(
            f"streaminfer: most records of {profile.source} are refused; is it a source of {profile.pipeline}?",
            file=sys.stderr,
        )


def _reasons(refused: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in refused.most_common())


def _spread(feature: Feature) -> str:
    """How a feature is spread, in a few words."""
    from worker.drift.bins import NumberBins

    bins, counts = feature.bins, feature.counts
    missing = f", {counts[-1] / counts.sum():.1%} missing" if counts[-1] else ""
    if isinstance(bins, NumberBins):
        if len(bins.edges) == 2:
            return f"always {bins.edges.mean():.4g}{missing}"
        half = int((counts[:-1].cumsum() * 2 >= counts[:-1].sum()).argmax())
        middle = f", half below {bins.edges[half]:.4g}" if 0 < half < len(bins.edges) - 1 else ""
        return f"{bins.edges[0]:.4g} to {bins.edges[-1]:.4g}{middle}{missing}"
    top = sorted(zip(bins.values, counts, strict=False), key=lambda pair: -pair[1])[:3]
    return ", ".join(f"{value} {share / counts.sum():.1%}" for value, share in top) + missing
