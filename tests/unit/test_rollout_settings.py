"""The settings of rollouts: what goes together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from worker.errors import ConfigError
from worker.settings import Settings, validate

REPOSITORY = {"repository": "models", "name": "digits"}


def made(**changed: Any) -> Settings:
    document = {
        "name": "t",
        "input": {"topics": ["in"], "format": "json"},
        "model": REPOSITORY,
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
        **changed,
    }
    return validate(document, Path.cwd())


def test_a_rollout_has_the_documented_defaults() -> None:
    """An empty section is a canary of a tenth of the keys with all three limits."""
    rules = made(control={"topic": "c"}, rollout={}).pipelines["t"].rollout
    assert rules is not None
    assert (rules.mode, rules.share, rules.min_records, rules.for_s, rules.then) == (
        "canary",
        0.1,
        1000,
        600,
        "promote",
    )
    assert (rules.max.errors, rules.max.latency_ratio, rules.max.disagreement) == (0.01, 1.5, 0.05)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (
            {"rollout": {}},
            "rollout: needs a control topic, in which all replicas read what is decided; expected control: ",
        ),
        (
            {"control": {"topic": "out"}},
            "control.topic: got 'out', expected another topic than that of output.topic",
        ),
        (
            {"control": {"topic": "in"}},
            "control.topic: got 'in', expected another topic than that of input.topics",
        ),
        (
            {"control": {"topic": "dead"}},
            "control.topic: got 'dead', expected another topic than that of dead_letter",
        ),
        (
            {"control": {"topic": "c"}, "model": {"path": "m.onnx"}},
            "control: expected a pipeline with model.repository, because no model has versions",
        ),
        (
            {"control": {"topic": "c"}, "rollout": {"topic": "shadows"}},
            "rollout.topic: goes with rollout.mode: shadow only",
        ),
        (
            {"control": {"topic": "c"}, "rollout": {"mode": "shadow", "topic": "out"}},
            "rollout.topic: got 'out', expected a topic of its own",
        ),
        (
            {"control": {"topic": "c"}, "rollout": {"share": 0}},
            "rollout.share: got 0, expected a number above 0.0",
        ),
    ],
)
def test_what_does_not_go_together_is_named(changed: dict[str, Any], sentence: str) -> None:
    """Each mistake is one sentence that names the setting."""
    with pytest.raises(ConfigError) as caught:
        made(**changed)
    assert str(caught.value).startswith(sentence)


def test_only_pipelines_with_versions_have_rollouts() -> None:
    """With several pipelines the sentence names the one whose model is a file."""
    one = {"input": {"topics": ["a"], "format": "json"}, "model": REPOSITORY, "output": {"topic": "out"}}
    other = {**one, "input": {"topics": ["b"], "format": "json"}, "model": {"path": "m.onnx"}, "rollout": {}}
    document = {
        "name": "t",
        "pipelines": {"one": one, "other": other},
        "control": {"topic": "c"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
    }
    with pytest.raises(
        ConfigError, match=r"^pipelines\.other\.rollout: needs pipelines\.other\.model\.repository"
    ):
        validate(document, Path.cwd())
