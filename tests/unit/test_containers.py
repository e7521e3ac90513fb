"""The image's recipe, its health check, the locked requirements and the compose file, as far as no builder is needed."""

from __future__ import annotations

import re
import runpy
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from worker import settings

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
RECIPE = re.sub(r"\\\n", " ", (DOCKER / "Dockerfile").read_text(encoding="utf-8"))
STEPS = [line for line in RECIPE.splitlines() if line and not line.startswith("#")]
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCKS = {
    "image-cpu": ["cpu"],
    "image-cpu-all": ["cpu", "all"],
    "image-gpu": ["gpu", "all"],
    "ci": ["cpu", "test"],
    "ci-slow": ["cpu", "test", "slow"],
}
"""A locked file -> the extras that it is made of."""
PYTHONS = ["3.11", "3.12", "3.13"]


# ---- the recipe


def test_both_targets_run_the_same_worker_as_a_user_without_rights() -> None:
    """The targets cpu and gpu are there; user, health check, init and command are those of the stage both come from."""
    stages = re.findall(r"^FROM (\S+) AS (\S+)", RECIPE, re.MULTILINE)
    assert {("base", "cpu"), ("base", "gpu")} <= set(stages)
    base = RECIPE[RECIPE.index(" AS base") :]
    assert re.findall(r"^USER (.*)", RECIPE, re.MULTILINE) == ["10001:10001"], (
        "a number: what runAsNonRoot can check"
    )
    assert re.search(r'^ENTRYPOINT \["tini", "--", "streaminfer"\]$', base, re.MULTILINE)
    assert re.search(r"^HEALTHCHECK .*CMD \[.*healthcheck.py\"\]$", base, re.MULTILINE)
    assert stages[-1] == ("base", "cpu"), "what is built when nobody names a target"


def test_what_goes_into_an_image_is_named_by_its_hash() -> None:
    """Each installation from an index demands hashes, nothing is fetched by other means, and no stage copies all."""
    installs = [step for step in STEPS if re.search(r"pip\b.* install\b", step)]
    assert len(installs) == 4
    for step in installs:
        assert "--require-hashes" in step or "--no-index" in step, step
    assert not [
        step for step in STEPS if re.match(r"ADD\b", step) or re.search(r"\b(curl|wget)\b|https?://", step)
    ]
    assert not [step for step in STEPS if re.match(r"COPY \.", step)]


def test_the_build_gets_what_it_copies_and_no_more() -> None:
    """Every file that the recipe copies from the checkout is there, and .dockerignore lets it and nothing else through."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[1] == "*"
    let_in = [line[1:] for line in lines if line.startswith("!")]
    copied = [
        path
        for step in STEPS
        if step.startswith("COPY ") and "--from" not in step
        for path in step.split()[1:-1]
    ]
    for path in (path.replace("${EXTRAS}", extras) for path in copied for extras in ("", "-all")):
        assert (ROOT / path).exists(), path
        assert any(fnmatch(path, pattern) for pattern in let_in), f".dockerignore keeps {path} out"
    for pattern in let_in:
        assert [path for path in copied if fnmatch(path.replace("${EXTRAS}", ""), pattern)], (
            f"nothing copies {pattern}"
        )


def test_process_1_obeys_sigterm_from_its_first_moment() -> None:
    """Without an init, too: the kernel would keep the signal from a process 1 that has no handler for it yet."""
    code = (
        "import importlib.util, os, time, streaminfer\n"
        "os.getpid = lambda: 1\n"
        "importlib.util.find_spec = lambda name: (print('importing', flush=True), time.sleep(60))\n"
        "streaminfer.main()\n"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143, (
            "not -15: by the handler, since the kernel does it for other processes only"
        )


# ---- the health check


class Answer(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/livez" else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], int]:
    """Runs the health check with this ``STREAMINFER_HEALTH``; returns its exit code."""

    def run(address: str | None, default: str = "127.0.0.1:9464") -> int:
        monkeypatch.delenv("STREAMINFER_HEALTH", raising=False)
        if address is not None:
            monkeypatch.setenv("STREAMINFER_HEALTH", address)
        check = runpy.run_path(str(DOCKER / "healthcheck.py"))
        check["main"].__globals__.update(TIMEOUT_S=0.3, DEFAULT=default)
        code: int = check["main"]()
        return code

    return run


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Takes connections and answers none, like a process that hangs."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield listening


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_says_what_livez_says(ask: Callable[..., int], status: int, code: int) -> None:
    """An alive worker is healthy, one whose loop stands still is not."""
    with HTTPServer(("127.0.0.1", 0), type("Given", (Answer,), {"status": status})) as server:
        Thread(target=server.handle_request, daemon=True).start()
        assert ask(f"127.0.0.1:{server.server_port}") == code


def test_a_worker_that_hangs_is_not_healthy(ask: Callable[..., int], listener: socket.socket) -> None:
    """A connection that is taken and not answered is a failure, wherever the address came from."""
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    assert ask(address) == 1
    assert ask(None, default=address) == 1


def test_a_pipeline_without_metrics_http_is_healthy(
    ask: Callable[..., int], listener: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody listens: no complaint where nobody said where to ask, one sentence where somebody did."""
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    listener.close()
    assert ask(None, default=address) == 0
    assert ask(address) == 1
    assert ask("nowhere") == 1
    assert capsys.readouterr().err.splitlines() == [
        f"health check: {address}: [Errno 111] Connection refused",
        "health check: STREAMINFER_HEALTH is 'nowhere', expected host:port or https://host:port",
    ]


# ---- the locked requirements


def pins(name: str) -> Iterator[tuple[Requirement, bool]]:
    """Each requirement of a locked file, and whether a hash follows it."""
    text = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        requirement, _, hashes = line.partition("--hash")
        if requirement.strip():
            yield Requirement(requirement.strip()), bool(hashes)


def wanted(extras: list[str]) -> Iterator[Requirement]:
    """What pyproject.toml asks for with these extras, which may name others."""
    optional = PROJECT["optional-dependencies"]
    todo, seen = list(PROJECT["dependencies"]), set(extras)
    for extra in (open_extras := list(extras)):
        for text in optional[extra]:
            requirement = Requirement(text)
            if requirement.name == PROJECT["name"]:
                open_extras += [each for each in requirement.extras if each not in seen]
                seen |= requirement.extras
            else:
                todo.append(text)
    yield from map(Requirement, todo)


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", LOCKS)
def test_locked_requirements_are_what_pyproject_asks_for(name: str, python: str) -> None:
    """Each dependency is locked to one version that satisfies it, for every Python. If not: run scripts/lock."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    locked: dict[str, str] = {}
    for pin, hashed in pins(name):
        assert hashed, f"{pin} has no hash"
        if pin.marker is None or pin.marker.evaluate(environment):
            [version] = pin.specifier
            assert canonicalize_name(pin.name) not in locked, f"{pin.name} twice for Python {python}"
            locked[canonicalize_name(pin.name)] = version.version
    for requirement in wanted(LOCKS[name]):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            version = locked.get(canonicalize_name(requirement.name))
            assert version, f"requirements/{name}.txt lacks {requirement}; run scripts/lock"
            assert requirement.specifier.contains(version), (
                f"{requirement}, locked is {version}; run scripts/lock"
            )


def test_the_security_policy_names_the_wheels_that_are_in_the_images() -> None:
    """What SECURITY.md says of a wheel's inside, it says of the version that is locked."""
    named = dict(
        re.findall(r"wheel `([\w-]+)` (\d[\d.]*\d)", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    )
    assert set(named) >= {"opencv-python-headless", "confluent-kafka", "cryptography"}
    locked = {pin.name: next(iter(pin.specifier)).version for pin, _ in pins("image-gpu")}
    assert {name: locked[name] for name in named} == named, (
        "look inside the new ones (scripts/image lists OpenSSL)"
    )


def test_the_build_is_locked_as_pyproject_asks_for_it() -> None:
    """What builds the wheel in the image satisfies the build requirements."""
    system = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    locked = {pin.name: next(iter(pin.specifier)).version for pin, _ in pins("build")}
    for requirement in map(Requirement, system["requires"]):
        assert requirement.specifier.contains(locked[requirement.name])


@pytest.fixture
def bill(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return runpy.run_path(str(ROOT / "scripts" / "image_bill.py"))


@pytest.mark.parametrize("image", ["cpu", "cpu-all", "gpu"])
def test_every_package_of_an_image_has_a_licence_that_it_may_have(image: str, bill: dict[str, Any]) -> None:
    """Somebody has looked at the licence of each package, and only the images with every extra hold GPL parts."""
    names = [{"name": pin.name, "purl": f"pkg:pypi/{pin.name}"} for pin, _ in pins(f"image-{image}")]
    assert bill["refused"](bill["Bill"]({"components": names}), image) == []


def test_a_licence_that_nobody_looked_at_or_allowed_is_refused(bill: dict[str, Any]) -> None:
    """An unknown package, and one with GPL parts in the small image, are named with what is wrong."""
    names = [
        {"name": name, "purl": f"pkg:pypi/{name}"} for name in ("new_thing", "av", "numpy", "streaminfer")
    ]
    assert bill["refused"](bill["Bill"]({"components": names}), "cpu") == [
        "new-thing: no licence in requirements/licenses.toml; read it and name it there",
        "av: its licence may not be in the image cpu: GPL-2.0-or-later, LGPL-3.0-or-later",
    ]


# ---- compose


def test_the_compose_file_is_what_the_specification_says() -> None:
    """check-jsonschema brings the schema of the compose specification."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(DOCKER / "compose.yaml")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_composed_worker_can_run_its_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command is valid, its health check asks where it listens, and stopping leaves it time to drain."""
    worker = COMPOSE["services"]["worker"]
    for name, value in worker["environment"].items():
        monkeypatch.setenv(name, value)
    command, config, option, value = worker["command"]
    assert (command, option) == ("run", "--set")
    [mount] = worker["volumes"]
    source, target, mode = mount.split(":")
    assert mode == "ro"
    loaded = settings.load(DOCKER / source / Path(config).relative_to(target), [value])
    assert loaded.metrics.http is not None
    assert worker["environment"]["STREAMINFER_HEALTH"].split(":")[1] == loaded.metrics.http.split(":")[1]
    assert loaded.kafka["bootstrap.servers"] == "kafka:19092"
    grace_s = int(worker["stop_grace_period"].removesuffix("s"))
    assert grace_s > loaded.limits.drain_s + loaded.limits.revoke_s
    topics = COMPOSE["services"]["topics"]["command"][1]
    [pipeline] = loaded.pipelines.values()
    used = [*pipeline.input.topics, pipeline.output.topic, loaded.dead_letter.topic, loaded.metrics.topic]
    for topic in used:
        assert topic in topics


def test_the_composed_services_are_open_to_this_machine_only_and_of_one_version() -> None:
    """Each port is bound to 127.0.0.1, each foreign image has a version, and each mounted file is there."""
    assert {"registry", "store"} == {
        p for service in COMPOSE["services"].values() for p in service.get("profiles", [])
    }
    for name, service in COMPOSE["services"].items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+", service["image"]), name
        for source in (mount.split(":")[0] for mount in service.get("volumes", [])):
            assert source in COMPOSE["volumes"] or (DOCKER / source).exists(), source


def test_prometheus_asks_every_worker_where_it_listens() -> None:
    """By the service's name and the port of its metrics."""
    [job] = yaml.safe_load((DOCKER / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    [found] = job["dns_sd_configs"]
    assert found["names"] == ["worker"]
    assert f"metrics.http=0.0.0.0:{found['port']}" in COMPOSE["services"]["worker"]["command"]
