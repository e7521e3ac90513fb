"""The dashboard and the alerts: they ask for series that the worker has, and each alert has its tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.telemetry.names import METRICS, PREFIX

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
BOARD: dict[str, Any] = json.loads((DOCKER / "grafana" / "streaminfer.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
RULES = yaml.safe_load((DOCKER / "prometheus" / "alerts.yaml").read_text(encoding="utf-8"))["groups"][0][
    "rules"
]
TESTS = yaml.safe_load((DOCKER / "prometheus" / "alerts.test.yaml").read_text(encoding="utf-8"))["tests"]
GUIDE = (ROOT / "docs" / "operations" / "monitoring.md").read_text(encoding="utf-8")
SCRAPE = {"job", "instance", "namespace", "pod", "container"}
"""Labels that the scrape adds."""
FOREIGN = {
    "process_start_time_seconds",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "kube_pod_container_status_last_terminated_exitcode",
    "kube_pod_container_status_restarts_total",
}
"""Series that are not the worker's own: of every process, and of kube-state-metrics."""


def series() -> dict[str, set[str]]:
    """Each name of a series of the worker with its labels."""
    known: dict[str, set[str]] = {}
    for metric in METRICS:
        labels = {*metric.labels, *SCRAPE}
        if metric.kind == "histogram":
            known |= {f"{PREFIX}{metric.name}_{part}": labels for part in ("sum", "count")}
            known[f"{PREFIX}{metric.name}_bucket"] = {*labels, "le"}
        else:
            known[PREFIX + metric.name] = labels
    return known


def mistakes(expression: str) -> list[str]:
    """What an expression asks for and the worker does not have."""
    known = series() | dict.fromkeys(FOREIGN, SCRAPE)
    found = []
    labels: set[str] = set()
    for name, _, selector in re.findall(r"\b((?:streaminfer|process|kube)_\w+)(\{([^}]*)\})?", expression):
        if name not in known:
            found.append(name)
            continue
        labels |= known[name]
        found += [
            f"{name}: {label}"
            for label in re.findall(r'(\w+)\s*(?:=~|!=|!~|=)\s*"', selector)
            if label not in known[name]
        ]
    for grouped in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        found += [f"by {label}" for label in re.split(r",\s*", grouped) if label not in labels]
    return found


def expressions() -> list[tuple[str, str]]:
    found = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
    found += [(each["name"], each["expr"]) for each in BOARD["annotations"]["list"]]
    return found + [(rule["alert"], rule["expr"]) for rule in RULES]


@pytest.mark.parametrize(("name", "expression"), expressions())
def test_dashboard_and_alerts_ask_for_series_that_there_are(name: str, expression: str) -> None:
    """Each name of a series, and each label of it, is one of the worker's."""
    assert mistakes(expression) == []


def test_a_series_or_a_label_that_is_not_there_is_found() -> None:
    """A misspelt name, a label in a selector and one in a grouping: Prometheus would answer all three with nothing."""
    assert mistakes("sum(rate(streaminfer_record_total[5m]))") == ["streaminfer_record_total"]
    assert mistakes('streaminfer_records_total{topic="a"}') == ["streaminfer_records_total: topic"]
    assert mistakes("sum by (partition) (streaminfer_records_total)") == ["by partition"]


def test_every_metric_of_the_worker_is_on_the_dashboard() -> None:
    """Whoever adds a metric thinks of who will look at it."""
    text = " ".join(expression for _, expression in expressions())
    left_out = {
        "step_items_total",
        "step_batches_total",
        "records_in_total",
    }  # their sums are elsewhere on it
    names = {metric.name for metric in METRICS if PREFIX + metric.name not in text}
    assert names <= left_out


def test_panels_have_a_place_and_a_number_of_their_own() -> None:
    """None lies over another or beyond the 24 columns, and each says what its unit is and asks the chosen Prometheus."""
    ids = [panel["id"] for panel in BOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for one, other in combinations([panel["gridPos"] for panel in BOARD["panels"]], 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_every_alert_has_a_test_in_which_it_fires_and_one_in_which_it_does_not(rule: dict[str, Any]) -> None:
    """And it says how bad it is, in one sentence what happened, and in the guide what to do."""
    asked = [each for test in TESTS for each in test["alert_rule_test"] if each["alertname"] == rule["alert"]]
    assert [each for each in asked if each["exp_alerts"]]
    assert [each for each in asked if not each["exp_alerts"]]
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"]["summary"].endswith(".")
    assert f"`{rule['alert']}`" in GUIDE


def test_the_guide_names_alerts_that_there_are() -> None:
    """No more than these."""
    assert set(re.findall(r"`(Streaminfer\w+)`", GUIDE)) == {rule["alert"] for rule in RULES}


def promtool() -> str:
    found = shutil.which("promtool") or str(ROOT / "build" / "helm" / "promtool")
    if not Path(found).exists():
        pytest.skip("promtool is not there: scripts/helm gets it")
    return found


def run_tests(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [promtool(), "test", "rules", str(folder / "alerts.test.yaml")], capture_output=True, text=True
    )


def test_alerts_fire_when_they_must_and_not_otherwise() -> None:
    """promtool evaluates every rule over series that the tests give."""
    done = run_tests(DOCKER / "prometheus")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
@pytest.mark.parametrize(
    "expression", ["vector(0) > 1", "streaminfer_records_in_total or vector(1)"], ids=["never", "always"]
)
def test_a_rule_that_fires_never_or_always_is_found(
    rule: dict[str, Any], expression: str, tmp_path: Path
) -> None:
    """Each rule's tests fail where the rule is replaced by one that is never, or always, true."""
    wrong = [{**each, "expr": expression} if each is rule else each for each in RULES]
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump({"groups": [{"name": "planted", "rules": wrong}]}))
    shutil.copy(DOCKER / "prometheus" / "alerts.test.yaml", tmp_path)
    done = run_tests(tmp_path)
    assert done.returncode == 1
    assert rule["alert"] in done.stdout + done.stderr
