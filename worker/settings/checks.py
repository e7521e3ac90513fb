"""Checks that involve several settings, the machine or the model's signature."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from worker.errors import ConfigError, Mistake
from worker.registry import CONTENTS, INPUT_FORMATS, OUTPUT_FORMATS, POSTPROCESSES
from worker.settings.drift_checks import check_drift
from worker.settings.kafka_checks import check_kafka, check_results_clusters
from worker.settings.kinds import MIB
from worker.settings.label_checks import check_labels
from worker.settings.model_checks import check_model
from worker.settings.queue_checks import check_queue
from worker.settings.rollout_checks import check_control, check_rollout
from worker.settings.sections import PipelineSettings, Settings
from worker.settings.steps import check_steps
from worker.topics import matches, may_overlap

WORKING_BYTES = 16 * MIB
"""What ``limits.in_flight_bytes`` must hold beside the largest record and one item's tensors."""


def check_budget(settings: Settings, pipeline: str, item_nbytes: int = 0, reserve_bytes: int = 0) -> None:
    """Refuse a pipeline whose largest record does not fit in ``limits.in_flight_bytes`` while it is processed.

    Args:
        settings: the worker's settings.
        pipeline: the pipeline's name.
        item_nbytes: bytes of one item's tensors, inputs and outputs, once the model's signature is known.
        reserve_bytes: what is kept for the runs of later steps.
    """
    max_bytes = settings.pipelines[pipeline].input.max_bytes
    needed = max_bytes + item_nbytes + WORKING_BYTES + reserve_bytes
    if needed > settings.limits.in_flight_bytes:
        raise ConfigError(
            f"limits.in_flight_bytes: got {settings.limits.in_flight_bytes}, expected at least {needed}: "
            f"{settings.key(pipeline, 'input.max_bytes')} {max_bytes} + one item's tensors {item_nbytes} "
            f"+ {WORKING_BYTES}" + (f" + runs of later steps {reserve_bytes}" if reserve_bytes else "")
        )


def check_replicas(settings: Settings, replicas: int) -> None:
    """Refuse what several processes cannot share."""
    if replicas > 1 and "group.instance.id" in settings.kafka:
        raise ConfigError(
            f"kafka.group.instance.id: expected none with --replicas {replicas}, "
            "because every process needs one of its own"
        )


def starved_pipelines(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Pipelines that no record can reach: (name, the pipeline that takes their records, their topics).

    Pipelines are tried in the order of the file, and one without ``when`` takes everything that is left of a topic.
    """
    taken: dict[str, str] = {}
    for name, pipeline in settings.pipelines.items():
        topics = pipeline.input.topics
        takers = [
            next((who for seen, who in taken.items() if matches(seen, topic)), None) for topic in topics
        ]
        if takers[0] is not None and all(takers):
            yield name, takers[0], ", ".join(topics)
        if pipeline.when is None:
            for topic in topics:
                taken.setdefault(topic, name)


TRANSACTION_TIMEOUT_MS = 10_000
"""``kafka.transaction.timeout.ms`` unless given."""


def check_together(settings: Settings) -> None:
    """Run every check that needs no model.

    Raises:
        ConfigError: all that they find.
    """
    if found := mistakes_together(settings):
        raise ConfigError.of(found)


def mistakes_together(settings: Settings) -> list[Mistake]:
    """What every check that needs no model finds. A check that needs what an earlier one refuses is left out."""
    found: list[Mistake] = []

    def passes(check: Callable[..., None], *args: Any) -> bool:
        try:
            check(*args)
        except ConfigError as error:
            found.extend(error.mistakes)
            return False
        return True

    passes(check_kafka, settings)
    passes(check_results_clusters, settings)
    for check in (
        _check_names,
        _check_transactions,
        _check_topics,
        check_queue,
        check_control,
        check_labels,
        _check_encryption,
    ):
        passes(check, settings)
    for name, pipeline in settings.pipelines.items():
        if not passes(check_steps, settings, name):
            continue
        for prefix, part in pipeline.parts.items():
            if passes(check_model, part, settings.key(name, f"{prefix}model")):
                passes(_check_part, settings, name, part, prefix)
        for of_pipeline in (check_rollout, check_drift, check_budget):
            passes(of_pipeline, settings, name)
        for ours in (_check_pipeline, _check_payload, _check_registry, _check_cache):
            passes(ours, settings, name)
    return found


def _check_encryption(settings: Settings) -> None:
    if settings.encryption is not None:
        settings.encryption.read()


def _check_names(settings: Settings) -> None:
    """librdkafka writes client.id into its statistics (JSON) as it is: such a character would make them unreadable."""
    for key, value in (("name", settings.name), ("kafka.client.id", settings.kafka.get("client.id", ""))):
        if wrong := next((c for c in value if c in '"\\' or not c.isprintable()), None):
            raise ConfigError(
                f"{key}: got {value!r}, expected no quotation mark, backslash or control character, found {wrong!r}"
            )


def _check_transactions(settings: Settings) -> None:
    """A transaction that may grow for longer than the broker lets it live is aborted every time."""
    if settings.delivery != "exactly_once":
        return
    timeout_ms = settings.kafka.get("transaction.timeout.ms", str(TRANSACTION_TIMEOUT_MS)).strip()
    if timeout_ms.isdecimal() and settings.transaction.max_ms >= int(timeout_ms):
        raise ConfigError(
            f"transaction.max_ms: got {settings.transaction.max_ms}, expected less than "
            f"kafka.transaction.timeout.ms ({timeout_ms}), after which the broker aborts the transaction"
        )


def _is_elsewhere(settings: Settings, pipeline: PipelineSettings) -> bool:
    """Whether results go to another cluster, where a topic may have the name of an input topic."""
    there = pipeline.output.kafka
    return there is not None and there.get("bootstrap.servers") != settings.kafka.get("bootstrap.servers")


def _check_topics(settings: Settings) -> None:
    """Nothing the worker writes may be read by it again; pipelines that share a topic start at one place."""
    read_by: dict[str, str] = {}
    for name, pipeline in settings.pipelines.items():
        for topic in pipeline.input.topics:
            first = next((who for seen, who in read_by.items() if may_overlap(seen, topic)), name)
            read_by.setdefault(topic, name)
            if settings.pipelines[first].input.start != pipeline.input.start:
                raise ConfigError(
                    f"pipelines.{name}.input.start: got '{pipeline.input.start}', expected the same as "
                    f"pipelines.{first}.input.start, which reads the topic {topic} too"
                )
    written = {
        settings.key(name, "output.topic"): pipeline.output.topic
        for name, pipeline in settings.pipelines.items()
        if not _is_elsewhere(settings, pipeline)
    }
    written |= {
        "dead_letter.topic": settings.dead_letter.topic,
        "metrics.topic": settings.metrics.topic or "",
    }
    for key, topic in written.items():
        reader = next((who for seen, who in read_by.items() if topic and matches(seen, topic)), None)
        if reader is not None:
            raise ConfigError(
                f"{key}: got '{topic}', expected a topic that is not in {settings.key(reader, 'input.topics')}"
            )


_EVENTS_OWN = ("ce_source", "ce_type", "ce_id", "ce_specversion", "ce_time", "ce_correlationid")


def _check_payload(settings: Settings, name: str) -> None:
    """Refuse filters without their keys, sizes beyond the budget, and results that would be sent as their own requests."""
    pipeline = settings.pipelines[name]
    taken, sent = pipeline.input, pipeline.output
    for key, filters in (("input.unwrap", taken.unwrap), ("output.wrap", sent.wrap)):
        if "aes-256-gcm" not in (filters or ()):
            continue
        if settings.encryption is None:
            raise ConfigError(f"{settings.key(name, key)}: aes-256-gcm needs encryption.keys")
        if filters is sent.wrap and settings.encryption.use is None:
            raise ConfigError(
                f"encryption.use is required, because {settings.key(name, key)} has aes-256-gcm; "
                f"expected one of {', '.join(settings.encryption.keys)}"
            )
    most = settings.limits.in_flight_bytes - WORKING_BYTES
    if (taken.unwrap or taken.max_unwrapped_bytes) and taken.unwrapped_bytes > most:
        raise ConfigError(
            f"{settings.key(name, 'input.max_unwrapped_bytes')}: got {taken.unwrapped_bytes}, expected at most {most}: "
            f"limits.in_flight_bytes {settings.limits.in_flight_bytes} - {WORKING_BYTES}"
        )
    refused = _EVENTS_OWN if sent.cloudevents is not None else _EVENTS_OWN[:2]
    for header in sent.headers if isinstance(sent.headers, list) else ():
        if header.lower() in refused:
            raise ConfigError(
                f"{settings.key(name, 'output.headers')}: got '{header}', expected none of {', '.join(refused)}: "
                "a result is never sent as the event that its request is"
            )


def _check_window(settings: Settings, name: str) -> None:
    """Windows are made of every record of a topic, whatever its headers."""
    pipeline, key = settings.pipelines[name], settings.key(name, "input.window")
    if pipeline.input.format not in ("json", "tensor"):
        raise ConfigError(f"{key}: goes with input.format json or tensor only, got '{pipeline.input.format}'")
    if pipeline.input.keep != "all":
        raise ConfigError(f"{key}: goes with input.keep all only: every record is a sample")
    if pipeline.input.unwrap:
        raise ConfigError(
            f"{key}: does not go with input.unwrap: samples are read on the loop's thread, as they are"
        )
    others = [
        other
        for other, each in settings.pipelines.items()
        if other != name and pipeline.input.names.touches(each.input.topics)
    ]
    if pipeline.when is not None or others:
        reason = f"{others[0]} reads it too" if others else "when takes some of its records only"
        raise ConfigError(
            f"{key}: expected a topic of its own, because windows are made of all its records; {reason}"
        )
    assert pipeline.input.window is not None
    if pipeline.input.window.by != "key" and pipeline.input.format != "json":
        raise ConfigError(
            f"{key}.by: got '{pipeline.input.window.by}', expected key: records of input.format "
            f"{pipeline.input.format} have no fields"
        )


def _check_pipeline(settings: Settings, name: str) -> None:
    """Refuse settings of records and results that their formats do not have."""
    pipeline = settings.pipelines[name]
    taken, entry = pipeline.input.format, INPUT_FORMATS.entry(pipeline.input.format)
    if pipeline.input.fields is not None and not entry.has_fields:
        with_fields = [other for other in INPUT_FORMATS if INPUT_FORMATS.entry(other).has_fields]
        raise ConfigError(
            f"{settings.key(name, 'input.fields')}: goes with input.format {' or '.join(with_fields)} only, "
            f"got '{taken}'"
        )
    if pipeline.input.missing != "reject" and not entry.takes_missing:
        taking = [other for other in INPUT_FORMATS if INPUT_FORMATS.entry(other).takes_missing]
        raise ConfigError(
            f"{settings.key(name, 'input.missing')}: goes with input.format {' or '.join(taking)} only, got '{taken}'"
        )
    if pipeline.input.window is not None:
        _check_window(settings, name)
    for field, given in (("copy", pipeline.output.copy_), ("body", pipeline.output.body)):
        if given is not None and pipeline.output.format != "json":
            raise ConfigError(
                f"{settings.key(name, f'output.{field}')}: goes with output.format json only, "
                f"got '{pipeline.output.format}'"
            )


def _check_part(settings: Settings, name: str, part: PipelineSettings, prefix: str) -> None:
    """Refuse an input format, preprocessing, postprocessing and output format that do not fit together.

    Args:
        part: a pipeline with one model; ``prefix`` stands before its settings.
    """
    taken, pre = part.input.format, part.preprocess
    entry = INPUT_FORMATS.entry(taken)

    def key(setting: str) -> str:
        return settings.key(name, prefix + setting)

    if pre.inputs and pre.content is not None:
        raise ConfigError(f"{key('preprocess')}: expected only one of inputs and {pre.content.name}")
    if pre.inputs and not entry.contents:
        raise ConfigError(f"{key('preprocess.inputs')}: does not go with input.format '{taken}'")
    places = {"preprocess": pre, **{f"preprocess.inputs.{tensor}": s for tensor, s in pre.inputs.items()}}
    for place, source in places.items():
        placeless = source.content is not None and getattr(
            CONTENTS.entry(source.content.name), "placeless", False
        )
        if source.content is not None and not placeless and source.content.name not in entry.contents:
            raise ConfigError(
                f"{key(f'{place}.{source.content.name}')}: does not go with input.format '{taken}'"
            )
    wanted = getattr(POSTPROCESSES.entry(part.postprocess.name), "needs_content", None)
    named = [content.name for content in pre.contents] or [*entry.contents[:1]]
    if wanted is not None and wanted not in named:
        raise ConfigError(
            f"{key(f'postprocess.{part.postprocess.name}')}: needs preprocess.{wanted}, "
            f"input.format '{taken}' alone does not give it"
        )
    predicts = OUTPUT_FORMATS.entry(part.output.format).predicts
    if not predicts and part.postprocess.name != "raw":
        raise ConfigError(
            f"{settings.key(name, 'output.format')}: '{part.output.format}' goes with postprocess raw only; "
            "expected json, or no postprocess"
        )


def _check_cache(settings: Settings, name: str) -> None:
    """Refuse a cache that would never answer, or could not answer as the model does."""
    pipeline, key = settings.pipelines[name], settings.key(name, "cache")
    if pipeline.cache is None:
        return
    if pipeline.output.format != "json":
        raise ConfigError(
            f"{key}: goes with output.format json only, got '{pipeline.output.format}': a result says that it was cached"
        )
    if pipeline.input.window is not None:
        raise ConfigError(
            f"{key}: does not go with input.window: records are single samples, not what is answered"
        )
    if "aes-256-gcm" in (pipeline.input.unwrap or ()):
        raise ConfigError(
            f"{key}: does not go with encrypted records: no two of them are alike, nothing would be found"
        )
    if pipeline.custom_wrap:
        raise ConfigError(
            f"{key}: does not go with custom code in output.wrap, which may ask for a record to be tried again"
        )


def _check_registry(settings: Settings, name: str) -> None:
    """Refuse a format whose schemas are in a registry if none is configured."""
    if settings.registry is not None:
        return
    pipeline = settings.pipelines[name]
    formats: dict[str, tuple[str, Any]] = {
        "input.format": (pipeline.input.format, INPUT_FORMATS.entry(pipeline.input.format)),
        "output.format": (pipeline.output.format, OUTPUT_FORMATS.entry(pipeline.output.format)),
    }
    for key, (value, entry) in formats.items():
        if getattr(entry, "needs_schemas", False):
            raise ConfigError(
                f"{settings.key(name, key)}: '{value}' needs a schema registry; expected registry: {{url: http://...}}"
            )
