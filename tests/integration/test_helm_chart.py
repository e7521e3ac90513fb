"""The Helm chart, rendered by helm: lint, ten sets of values, what the pods may do, and what is refused with one sentence."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from worker import settings

pytestmark = [pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "docker" / "helm" / "streaminfer"
SETS = {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").iterdir())}
KUBERNETES = "1.31.0"
TOOLS = ROOT / "build" / "helm"
CONFIG = yaml.safe_load(SETS["least"].read_text(encoding="utf-8"))["config"]
Objects = dict[str, dict[str, Any]]


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    found = shutil.which("helm") or str(TOOLS / "helm")
    if not Path(found).exists():
        pytest.skip("helm is not there: scripts/helm gets it")
    return subprocess.run([found, *arguments], capture_output=True, text=True)


def rendered(*arguments: str) -> Objects:
    """Objects by their kinds; the ConfigMap of the dashboard has the key ``dashboard``."""
    done = helm("template", "digits", str(CHART), "--kube-version", KUBERNETES, *arguments)
    assert done.returncode == 0, done.stderr
    objects: Objects = {}
    for each in yaml.safe_load_all(done.stdout):
        kind = "dashboard" if each["metadata"]["name"].endswith("-dashboard") else each["kind"]
        assert kind not in objects
        objects[kind] = each
    return objects


@pytest.fixture(params=SETS)
def name(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


def test_the_chart_is_linted(name: str) -> None:
    """helm finds neither a mistake nor a warning, with each set of values."""
    done = helm("lint", "--strict", "--kube-version", KUBERNETES, str(CHART), "-f", str(SETS[name]))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout


def test_every_object_is_the_release_s_and_finds_the_pods(name: str) -> None:
    """Each has the one name and the labels; budget, policy, monitor and scaling select the pods of the Deployment."""
    objects = rendered("-f", str(SETS[name]))
    deployment = objects["Deployment"]
    own = deployment["metadata"]["name"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    for each in objects.values():
        assert each["metadata"]["name"].removesuffix("-dashboard") == own
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "digits"
    for kind, key in (
        ("Deployment", "selector"),
        ("PodDisruptionBudget", "selector"),
        ("NetworkPolicy", "podSelector"),
        ("PodMonitor", "selector"),
    ):
        if kind in objects:
            assert objects[kind]["spec"][key]["matchLabels"].items() <= labels.items()
    assert ("replicas" in deployment["spec"]) == ("ScaledObject" not in objects)


def test_pods_keep_the_restricted_standard_and_have_probes_and_limits(name: str) -> None:
    """Pod Security's restricted profile, read-only root, no token, memory limit, liveness and readiness on one port."""
    pod = rendered("-f", str(SETS[name]))["Deployment"]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert not [volume for volume in pod["volumes"] if "hostPath" in volume]
    [container] = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"]["memory"]
    assert container["resources"]["requests"]["memory"]
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    mounted = [mount["name"] for mount in container["volumeMounts"]]
    assert sorted(mounted) == sorted(volume["name"] for volume in pod["volumes"])
    assert {"tmp", "cache"} <= {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}


@pytest.mark.parametrize("watch", [False, True])
def test_a_changed_configuration_replaces_the_pods_or_is_taken_over_by_them(
    watch: bool, tmp_path: Path
) -> None:
    """By default another configuration makes another pod template; with `watch` the pods stay, and run with --watch."""

    def template(age_ms: int) -> dict[str, Any]:
        values = tmp_path / "values.yaml"
        values.write_text(
            yaml.safe_dump({"config": {**CONFIG, "limits": {"max_age_ms": age_ms}}, "watch": watch})
        )
        found: dict[str, Any] = rendered("-f", str(values))["Deployment"]["spec"]["template"]
        return found

    one, other = template(1000), template(2000)
    assert (one == other) is watch
    assert ("--watch" in one["spec"]["containers"][0]["args"]) is watch


def test_pods_run_the_configuration_that_was_given(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies in the ConfigMap loads with the container's arguments, listens on its port, and has time to drain."""
    objects = rendered("-f", str(SETS[name]))
    given = yaml.safe_load(SETS[name].read_text(encoding="utf-8"))
    files = objects["ConfigMap"]["data"]
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    for variable in ("KAFKA_BOOTSTRAP_SERVERS", "KAFKA_PASSWORD", "METRICS_TOKEN"):
        monkeypatch.setenv(variable, "kafka-0123456789abcdef:9092")
    path = tmp_path / "worker.yaml"
    path.write_text(files["worker.yaml"])
    text = given["config"]
    assert yaml.safe_load(files["worker.yaml"]) == (yaml.safe_load(text) if isinstance(text, str) else text)
    assert files == {"worker.yaml": files["worker.yaml"], **given.get("files", {})}
    assert container["args"][:2] == ["run", "/config/worker.yaml"]
    changes = [each for each in container["args"][2:] if each != "--set"]
    loaded = settings.load(path, ["security.allow_plaintext=true", *changes])
    assert loaded.metrics.http is not None
    assert loaded.metrics.http.endswith(f":{container['ports'][0]['containerPort']}")
    scheme = "HTTPS" if loaded.metrics.tls else "HTTP"
    assert container["livenessProbe"]["httpGet"]["scheme"] == scheme
    grace = given.get("terminationGracePeriodSeconds")
    assert pod["terminationGracePeriodSeconds"] == (
        grace or math.ceil(loaded.limits.drain_s + loaded.limits.revoke_s + 10)
    )
    if "ScaledObject" in objects:
        triggers = objects["ScaledObject"]["spec"]["triggers"]
        kafka = [trigger["metadata"] for trigger in triggers if trigger["type"] == "apache-kafka"]
        topics = {topic for pipeline in loaded.pipelines.values() for topic in pipeline.input.topics}
        assert {trigger["topic"] for trigger in kafka} == topics
        for trigger in kafka:
            assert trigger["limitToPartitionsWithLag"] == trigger["excludePersistentLag"] == "true"
            assert trigger["consumerGroup"] == loaded.kafka["group.id"]
        assert all(isinstance(value, str) for each in triggers for value in each["metadata"].values())


def strict(schema: Any) -> None:
    """Refuse fields that a definition does not name, as the API server does."""
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            strict(part)
    if isinstance(schema, dict) and schema.get("type") == "object" and "properties" in schema:
        schema.setdefault("additionalProperties", schema.get("x-kubernetes-preserve-unknown-fields", False))


def test_kinds_of_operators_are_what_their_definitions_say(name: str) -> None:
    """ScaledObject, PodMonitor and PrometheusRule, by the definitions of KEDA and of the Prometheus operator."""
    definitions = [path.read_text(encoding="utf-8") for path in (TOOLS / "crds").glob("*.yaml")]
    if not definitions:
        pytest.skip("the definitions are not there: scripts/helm gets them")
    objects = rendered("-f", str(SETS[name]))
    for text in definitions:
        [spec] = [each["spec"] for each in yaml.safe_load_all(text) if each]
        schema = spec["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
        strict(schema)
        check = Draft7Validator(schema)
        if found := objects.get(spec["names"]["kind"]):
            assert [error.message for error in check.iter_errors(found["spec"])] == []
            assert not check.is_valid({**found["spec"], "planted": 1})


def test_core_kinds_are_what_kubernetes_says(name: str, tmp_path: Path) -> None:
    """kubernetes-validate holds each object to the schema of that version, and refuses one with an unknown field."""
    tool = TOOLS / "validate" / "bin" / "kubernetes-validate"
    if not tool.exists():
        pytest.skip("kubernetes-validate is not there: scripts/helm gets it")

    def check(objects: Objects) -> int:
        path = tmp_path / "objects.yaml"
        path.write_text(yaml.safe_dump_all(objects.values()))
        command = [str(tool), "-k", KUBERNETES.removesuffix(".0"), "--strict", str(path)]
        return subprocess.run(command, capture_output=True).returncode

    objects = rendered("-f", str(SETS[name]))
    core = {kind: each for kind, each in objects.items() if ".com/" not in each["apiVersion"]}
    core.pop("ScaledObject", None)
    assert check(core) == 0
    core["Deployment"]["spec"]["planted"] = 1
    assert check(core) != 0


def test_a_changed_configuration_replaces_the_pods() -> None:
    """The annotation of the pods changes with it, and not with anything else."""

    def annotation(*arguments: str) -> str:
        objects = rendered("-f", str(SETS["least"]), *arguments)
        checksum: str = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"][
            "checksum/config"
        ]
        return checksum

    assert annotation() == annotation("--set", "replicas=5")
    assert annotation() != annotation("--set", "config.limits.drain_s=26")


def test_alerts_and_dashboard_are_those_of_the_files() -> None:
    """Word for word: neither is a template."""
    objects = rendered("-f", str(SETS["monitoring"]))
    alerts = (ROOT / "docker" / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    assert objects["PrometheusRule"]["spec"] == yaml.safe_load(alerts)
    board = (ROOT / "docker" / "grafana" / "streaminfer.json").read_text(encoding="utf-8")
    assert objects["dashboard"]["data"]["streaminfer.json"].strip() == board.strip()


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"config": None}, "config is missing: give the worker's YAML with --set-file"),
        ({"config": {**CONFIG, "pipelines": {"a": {}, "b": {}}}}, "loses the order in which they are tried"),
        ({"config": "a: [1"}, "config is not a YAML mapping"),
        ({"config": {**CONFIG, "metrics": {"http": "127.0.0.1:9464"}}}, "where no probe reaches it"),
        (
            {"config": {**CONFIG, "metrics": {"http": "0.0.0.0:0"}}},
            "expected host:port with a port that is known",
        ),
        (
            {"config": {**CONFIG, "limits": {"drain_s": "${DRAIN:-25}"}}},
            "limits.drain_s is ${DRAIN:-25}, expected a number",
        ),
        (
            {"config": {**CONFIG, "kafka": {"sasl.password": "${SECRET}"}}},
            "config names ${SECRET}, which nothing gives",
        ),
        (
            {"config": CONFIG, "files": {"worker.yaml": ""}},
            "files: worker.yaml is the name of the configuration",
        ),
        (
            {"config": {**CONFIG, "input": {"topics": ["^a"]}}, "keda": {"enabled": True}},
            "^a is a pattern or a variable",
        ),
        (
            {"config": {**CONFIG, "kafka": {}}, "keda": {"enabled": True}},
            "keda.kafka.bootstrapServers is missing",
        ),
        ({"config": CONFIG, "misspelt": 1}, "misspelt"),
    ],
)
def test_what_cannot_work_is_refused_with_a_sentence(
    values: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    """Before anything is installed."""
    path = tmp_path / "values.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    done = helm("template", "digits", str(CHART), "--kube-version", KUBERNETES, "-f", str(path))
    assert done.returncode != 0
    assert sentence in done.stderr
