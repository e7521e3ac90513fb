"""The Helm chart as far as no helm is needed: its values, their schema, and what its templates assume of the worker."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from worker import settings
from worker.settings.sections import LimitsSettings

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "docker" / "helm" / "streaminfer"
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
TEMPLATES = {path.name: path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir()}
SETS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").iterdir())}


def merged(values: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """As helm lays one mapping over another."""
    both = dict(values)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(both.get(key), dict):
            value = merged(both[key], value)
        both[key] = value
    return both


def leaves(values: dict[str, Any], path: str = "") -> set[str]:
    """Dotted paths of all values; an empty mapping is a value."""
    found = set()
    for key, value in values.items():
        found |= leaves(value, f"{path}{key}.") if isinstance(value, dict) and value else {path + key}
    return found


def test_the_schema_is_a_schema_and_allows_no_other_names() -> None:
    """It is valid draft 7, and a misspelt value is refused at the top and in every section."""
    Draft7Validator.check_schema(SCHEMA)
    check = Draft7Validator(SCHEMA)
    for section in ("", "image", "repository", "gpu", "keda", "podMonitor", "networkPolicy", "resources"):
        wrong = merged(VALUES, {section: {"misspelt": 1}} if section else {"misspelt": 1})
        assert [error.validator for error in check.iter_errors(wrong)] == ["additionalProperties"], section


@pytest.mark.parametrize("name", [None, *SETS])
def test_every_set_of_values_is_what_the_schema_says(name: str | None) -> None:
    """The defaults alone, and each set of ci/ over them."""
    values = (
        VALUES if name is None else merged(VALUES, yaml.safe_load(SETS[name].read_text(encoding="utf-8")))
    )
    assert [error.message for error in Draft7Validator(SCHEMA).iter_errors(values)] == []


def test_there_are_ten_sets_of_values() -> None:
    """As many as `helm template` is tried with."""
    assert len(SETS) >= 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": -1},
        {"replicas": "2"},
        {"image": {"digest": "latest"}},
        {"resources": {"limits": {"memory": "2 GB"}}},
        {"secretEnv": {"KAFKA_PASSWORD": {"secret": "kafka"}}},
        {"env": {"KAFKA-PASSWORD": "x"}},
        {"gpu": {"count": 0}},
        {"keda": {"prometheus": {"serverAddress": "prometheus:9090"}}},
        {"podDisruptionBudget": {"maxUnavailable": 0}},
        {"repository": {"mountPath": "models"}},
        {"files": {"a/b": ""}},
        {"config": ["digits.yaml"]},
    ],
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    """Each of these would fail in the cluster, or bring pods that cannot work."""
    assert list(Draft7Validator(SCHEMA).iter_errors(merged(VALUES, wrong)))


def test_containers_always_have_a_memory_limit() -> None:
    """Values that take it away are refused."""
    values = {**VALUES, "resources": {"limits": {"cpu": "1"}}}
    assert [e.message for e in Draft7Validator(SCHEMA).iter_errors(values)] == [
        "'memory' is a required property"
    ]


def test_templates_use_the_values_that_there_are() -> None:
    """Each value that a template names is in values.yaml, and each of values.yaml is named or handed on by a template."""
    used = {
        name.rstrip(".")
        for text in TEMPLATES.values()
        for name in re.findall(r"\.Values\.([A-Za-z.]+)", text)
    }
    known = leaves(VALUES)
    inner = {path[:at] for path in known for at in range(len(path)) if path[at] == "."}
    parts = {"config.pipelines"}  # of the worker's own configuration
    assert used - parts <= known | inner
    handed_on = {re.sub(r"^keda\.(kafka|prometheus)$", r"keda.\1", name) for name in used if name in inner}
    unused = [path for path in known - used if not any(path.startswith(name + ".") for name in handed_on)]
    assert unused == []


def test_templates_are_closed() -> None:
    """In each template every block has its end, and no action is left open."""
    for name, text in TEMPLATES.items():
        actions = re.findall(r"\{\{-?\s*(.*?)\s*-?\}\}", text, re.DOTALL)
        assert text.count("{{") == text.count("}}") == len(actions), name
        opened = [each for each in actions if re.match(r"(if|range|with|define|block)\b", each)]
        assert len(opened) == len([each for each in actions if each == "end"]), name


def test_the_grace_period_begins_with_the_defaults_of_the_worker() -> None:
    """Where a configuration is silent, the chart counts the worker's own drain_s and revoke_s, and 10 seconds more."""
    helpers = TEMPLATES["_helpers.tpl"]
    limits = LimitsSettings()
    assert f'dict "drain_s" {limits.drain_s} "revoke_s" {limits.revoke_s}' in helpers
    assert "$sum := 10.0" in helpers


def test_pods_are_as_restricted_as_they_can_be() -> None:
    """Not root, read-only, without privileges, capabilities and a token, by a user that the image has."""
    text = TEMPLATES["deployment.yaml"]
    recipe = (ROOT / "docker" / "Dockerfile").read_text(encoding="utf-8")
    for line in (
        "runAsNonRoot: true",
        "readOnlyRootFilesystem: true",
        "allowPrivilegeEscalation: false",
        "capabilities: {drop: [ALL]}",
        "seccompProfile: {type: RuntimeDefault}",
        "automountServiceAccountToken: false",
    ):
        assert line in text
    user = re.search(r"runAsUser: (\d+)", text)
    assert user is not None
    assert f"USER {user[1]}:{user[1]}" in recipe
    assert "mountPath: /var/cache/streaminfer" in text, "where the image keeps its cache"
    assert "XDG_CACHE_HOME=/var/cache" in recipe


@pytest.mark.parametrize("name", SETS)
def test_every_set_runs_a_configuration_that_the_worker_takes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration of each set is one, so that what the chart reads of it is what the worker reads."""
    values = yaml.safe_load(SETS[name].read_text(encoding="utf-8"))
    config = values["config"]
    for variable in ("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_PASSWORD", "METRICS_TOKEN"):
        monkeypatch.setenv(variable, "kafka-0123456789abcdef:9092")
    path = tmp_path / "worker.yaml"
    path.write_text(config if isinstance(config, str) else yaml.safe_dump(config, sort_keys=False))
    loaded = settings.load(path, ["security.allow_plaintext=true"])
    assert loaded.pipelines


def test_alerts_and_dashboard_of_the_chart_are_those_beside_it() -> None:
    """The chart has no copies of its own."""
    for name, source in (("alerts.yaml", "prometheus"), ("streaminfer.json", "grafana")):
        assert (CHART / "files" / name).resolve() == ROOT / "docker" / source / name


def test_values_of_the_guide_are_what_the_schema_says() -> None:
    """Each example of values in the guide on Kubernetes."""
    guide = (ROOT / "docs" / "guides" / "kubernetes.md").read_text(encoding="utf-8")
    examples = [
        yaml.safe_load(text) for text in re.findall(r"```yaml\n(# values.yaml.*?)```", guide, re.DOTALL)
    ]
    assert len(examples) >= 3
    for example in examples:
        assert [e.message for e in Draft7Validator(SCHEMA).iter_errors(merged(VALUES, example))] == []
