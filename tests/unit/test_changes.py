"""Which settings may change while the worker runs, and how a difference between two configurations is told."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from worker.errors import ConfigError, StartError
from worker.settings import Settings, validate
from worker.settings.changes import LIMITS, Changes, changes


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    for name in ("one.onnx", "two.onnx"):
        (tmp_path / name).write_bytes(b"a model")
    (tmp_path / "labels.txt").write_text("cat\ndog\n")


def document(**sections: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "name": "test",
        "input": {"topics": ["in"], "format": "json"},
        "model": {"path": "one.onnx"},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
    }
    for name, section in sections.items():
        given[name] = {**given.get(name, {}), **section} if isinstance(section, dict) else section
    return given


def settings(folder: Path, **sections: Any) -> Settings:
    return validate(document(**sections), folder)


def changed(folder: Path, before: dict[str, Any], **sections: Any) -> Changes:
    return changes(settings(folder, **before), settings(folder, **sections))


REPOSITORY = {"path": None, "repository": "models", "name": "digits"}
CONTROL = {"model": REPOSITORY, "control": {"topic": "control"}, "rollout": {"share": 0.1}}
SHADOW = {**CONTROL, "rollout": {"mode": "shadow"}}

LIVE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "age": ({}, {"limits": {"max_age_ms": 500}}, "limits.max_age_ms"),
    "stall": ({}, {"limits": {"stall_s": 5}}, "limits.stall_s"),
    "dead letters": ({}, {"dead_letter": {"stop_after": {"ratio": 0.9}}}, "dead_letter.stop_after.ratio"),
    "crashes": ({}, {"dead_letter": {"max_crashes": 5}}, "dead_letter.max_crashes"),
    "waiting": ({}, {"batching": {"max_wait_ms": 1}}, "batching.max_wait_ms"),
    "log": ({}, {"log": {"level": "debug"}}, "log.level"),
    "transactions": ({}, {"transaction": {"max_ms": 20}}, "transaction.max_ms"),
    "model": ({}, {"model": {"path": "two.onnx"}}, "model.path"),
    "traces": ({"tracing": {"sample": 0.1}}, {"tracing": {"sample": 0.5}}, "tracing.sample"),
    "tests": ({}, {"tests": [{"name": "a", "record": {"value": "{}"}, "expect": {"label": "x"}}]}, "tests"),
    "labels": (
        {"postprocess": "regression", "labels": {"topic": "labels"}},
        {"postprocess": "regression", "labels": {"topic": "labels", "wait_s": 60}},
        "labels.wait_s",
    ),
    "version in a repository": (
        {"model": REPOSITORY},
        {"model": {**REPOSITORY, "version": "stable"}},
        "model.version",
    ),
    "rollout": (CONTROL, {**CONTROL, "rollout": {"share": 0.5}}, "rollout.share"),
    "threshold": (
        {"postprocess": {"classification": {"labels": "labels.txt"}}},
        {"postprocess": {"classification": {"labels": "labels.txt", "top_k": 2}}},
        "postprocess.classification.top_k",
    ),
    "preprocess": (
        {"preprocess": {"numeric": {"mean": 0, "std": 1}}},
        {"preprocess": {"numeric": {"mean": 0, "std": 2}}},
        "preprocess.numeric.std",
    ),
}


@pytest.mark.parametrize("name", LIVE)
def test_what_may_change_while_records_go_on(tmp_path: Path, name: str) -> None:
    """Limits of time, dead letters, waiting, the log, models and rollouts change, and afterwards nothing is left to do."""
    before, after, key = LIVE[name]
    found = changed(tmp_path, before, **after)
    assert [*found.live] == [key]
    assert found.restart == ()
    assert changes(found.settings, settings(tmp_path, **after)).live == {}


RESTART: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "memory": ({}, {"limits": {"in_flight_bytes": 1 << 29}}, "limits.in_flight_bytes"),
    "pixels": ({}, {"limits": {"image_pixels": 1000}}, "limits.image_pixels"),
    "kafka": ({}, {"kafka": {"client.id": "x"}}, "kafka.client.id"),
    "input": ({}, {"input": {"topics": ["other"]}}, "input.topics"),
    "output": ({}, {"output": {"topic": "other"}}, "output.topic"),
    "dead-letter topic": ({}, {"dead_letter": {"topic": "other"}}, "dead_letter.topic"),
    "delivery": ({}, {"delivery": "exactly_once"}, "delivery"),
    "batches": ({}, {"batching": {"max_size": 8}}, "batching.max_size"),
    "threads": ({}, {"model": {"threads": 2}}, "model.threads"),
    "a collector": ({"tracing": {}}, {"tracing": {"otlp": "http://localhost:1"}}, "tracing.otlp"),
    "metrics": ({}, {"metrics": {"http": "127.0.0.1:0"}}, "metrics.http"),
    "shadow topic": (SHADOW, {**CONTROL, "rollout": {"mode": "shadow", "topic": "tried"}}, "rollout.topic"),
    "time of a batch of clips": (
        {"input": {"format": "video"}},
        {"input": {"format": "video"}, "limits": {"batch_timeout_s": 5}},
        "limits.batch_timeout_s",
    ),
}


@pytest.mark.parametrize("name", RESTART)
def test_what_needs_a_restart_is_named_and_stays_as_it_was(tmp_path: Path, name: str) -> None:
    """Topics, clients, threads and what counts bytes need a restart; the setting is named, and what is in force does not change."""
    before, after, key = RESTART[name]
    found = changed(tmp_path, before, **after)
    assert (found.live, found.restart) == ({}, (key,))
    assert found.settings.redacted() == settings(tmp_path, **before).redacted()


def test_a_model_from_a_file_and_one_from_a_repository_do_not_take_turns(tmp_path: Path) -> None:
    """The change of `model.path` to `model.repository` needs a restart."""
    found = changed(tmp_path, {}, model=REPOSITORY)
    assert found.live == {}
    assert {"model.path", "model.repository"} <= {*found.restart}


def test_changes_are_told_with_both_values(tmp_path: Path) -> None:
    """The name of a setting comes with what it was and what it is, secrets without either."""
    found = changed(
        tmp_path,
        {"kafka": {"sasl.password": "one secret"}},
        limits={"max_age_ms": 500},
        kafka={"sasl.password": "another secret"},
    )
    assert found.live == {"limits.max_age_ms": "nothing -> 500"}
    assert found.restart == ("kafka.sasl.password",)
    key = {name: base64.b64encode(name.encode() * 32).decode() for name in "ab"}
    sections = {"input": {"unwrap": ["aes-256-gcm"]}}
    found = changed(
        tmp_path,
        {**sections, "encryption": {"keys": {"a": key["a"]}}},
        **sections,
        encryption={"keys": {"a": key["b"]}},
    )
    assert found.live == {"encryption.keys.a": "another value"}


def test_a_single_pipeline_stays_the_same_when_its_model_has_another_name(tmp_path: Path) -> None:
    """Without `name` the file's stem names everything: the model changes, and the names do so at the next start."""
    found = changed(tmp_path, {"name": None}, name=None, model={"path": "two.onnx"})
    assert [*found.live] == ["model.path"]
    assert found.restart == ("name", "model.name")
    assert found.models == ("one",)


def test_pipelines_that_come_go_or_change_places_need_a_restart(tmp_path: Path) -> None:
    """Each is named once, whatever it holds; the others change as usual."""

    def several(*names: str, **batching: Any) -> Settings:
        shared = document()
        one = {key: shared.pop(key) for key in ("input", "model", "output")}
        return validate(
            shared | {"pipelines": {name: {**one, "batching": batching} for name in names}}, tmp_path
        )

    found = changes(several("a", "b"), several("b", "c", max_wait_ms=1))
    assert found.live == {"pipelines.b.batching.max_wait_ms": "5.0 -> 1.0"}
    assert found.restart == ("pipelines.a", "pipelines.c")
    assert changes(several("a", "b"), several("b", "a")).restart == ("pipelines",)


def test_a_part_that_does_not_go_with_the_rest_is_refused_whole(tmp_path: Path) -> None:
    """A longer transaction with a longer time-out of the client: the client keeps its own until a restart, so neither counts."""
    exactly = {"delivery": "exactly_once"}
    with pytest.raises(ConfigError, match=r"without a restart only a part .* transaction\.max_ms: got 20000"):
        changed(
            tmp_path,
            exactly,
            **exactly,
            transaction={"max_ms": 20000},
            kafka={"transaction.timeout.ms": 30000},
        )


def test_files_that_are_not_there_refuse_everything(tmp_path: Path) -> None:
    """A model or labels that are missing are named, also where they would count only after a restart."""
    with pytest.raises(StartError, match=r"model\.path: .*three\.onnx does not exist"):
        changed(tmp_path, {}, model={"path": "three.onnx"})
    with pytest.raises(ConfigError, match=r"labels: .*none\.txt"):
        changed(tmp_path, {}, postprocess={"classification": {"labels": "none.txt"}})


def test_every_limit_is_live_or_needs_a_restart(tmp_path: Path) -> None:
    """The bytes and pixels are the only limits that stay."""
    fields = {*type(settings(tmp_path).limits).model_fields}
    assert fields - {*LIMITS} == {"in_flight_bytes", "prefetch_bytes", "output_bytes", "image_pixels"}
