"""What ``check`` finds by loading the models: what they are, how fast, and what they answer to samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from worker import frames
from worker.batch import Headers
from worker.cli.check_models import model_lines, model_rows, models_line, speeds
from worker.cli.check_report import Report
from worker.cli.prediction_text import result_text
from worker.errors import ConfigError, Reject
from worker.filesystem import RECORD_MAX, read_bytes
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.serving.rollout import Rollout

SHOWN_BYTES = 2048
"""Most of a sample's result that is printed: `raw` of a segmentation model has megabytes."""


class Sample(NamedTuple):
    """One record to send through a pipeline."""

    pipeline: str | None
    """Its name; None: the first pipeline that takes a record with these headers."""
    value: bytes


def check_engine(
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
    rollouts = report.check(
        "model", lambda: load(settings, took, registry=registry), models_line, lambda _: ""
    )
    if rollouts is None:
        return
    fast = speeds(rollouts)
    for name, message in model_rows(rollouts, settings, fast):
        report.row(name, message)
    several = len(rollouts) > 1
    for name, rollout in rollouts.items():
        for check, message in model_lines(name, rollout.choose()):
            if several or check in ("signature", "batchable"):
                report.detail(check, message)
            else:
                report.line(check, True, message)
        if settings.pipelines[name].model.golden is not None:
            report.check("golden", partial(_golden, settings, rollout), str)
    for sample in samples:
        found = partial(_answer, answer, rollouts, sample, headers)
        report.check("sample", found, _sample_line, _sample_row)
    for name, told in fast.items():
        report.detail("speed", f"{name}: {told}")
    if registry is not None:
        registry.close()


def _golden(settings: Settings, rollout: Rollout) -> str:
    from worker.serving.golden import check_golden

    model, route = settings.pipelines[rollout.route.name].model, rollout.route
    assert model.golden is not None
    count = check_golden(model.golden, route, rollout.choose(), model.tolerance)
    return f"{route.name}: {count} records answered as expected"


def samples_of(report: Report, settings: Settings, options: Sequence[str]) -> list[Sample]:
    """The samples that can be read; the report names the fault of each other one."""
    samples = []
    for option in options:
        name, equals, path = option.partition("=")
        named = bool(equals) and name in settings.pipelines
        file = Path(path if named else option)
        value = report.check("sample file", partial(_read_sample, file), _bytes_line, lambda _: "")
        if value is not None:
            samples.append(Sample(name if named else None, value))
    return samples


def _read_sample(path: Path) -> bytes:
    try:
        return read_bytes(path, RECORD_MAX)
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
        calls = "".join(f"; in {call}" for call in frames.marked(error))
        raise ConfigError(f"--sample: {error.reason}: {error}{calls}") from None


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


def _sample_row(result: Any) -> str:
    """A JSON result in a few words, and as it would be published on the next line."""
    if isinstance(result, bytes):
        return _sample_line(result)
    latency = result.get("latency_ms", {}).get("total") if isinstance(result, dict) else None
    took = f"  ({latency:.3g} ms)" if isinstance(latency, int | float) else ""
    return f"{result_text(result)}{took}\n{_sample_line(result)}"
