"""Brokers for tests. Its place also puts this folder on the import path: any test may ``import models``."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import hypothesis
import pytest
import structlog

from worker.kafka.broker import EmbeddedBroker
from worker.telemetry import logs

SCRIPT = Path(__file__).parent.parent / "scripts" / "kafka"
IMAGE = "confluentinc/cp-kafka:8.1.0"

# how long an example takes says nothing on a machine that does other things besides
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def logs_as_imported() -> Iterator[None]:
    """A command that a test runs in this process sets up logging to a stream that is gone after the test."""
    hook = sys.unraisablehook
    yield
    logs.release()
    sys.unraisablehook = hook
    structlog.reset_defaults()
    logging.getLogger().handlers.clear()
    logging.getLogger().setLevel(logging.WARNING)
    logging.captureWarnings(False)


@pytest.fixture
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """The broker inside librdkafka, with no topics yet."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap address of a real Apache Kafka.

    The first that can be had of: ``KAFKA_BOOTSTRAP_SERVERS``, Docker, Java with Kafka's own jars. Without any the
    test is skipped and says why; with ``REQUIRE_KAFKA=1`` that is a failure.
    """
    if given := os.environ.get("KAFKA_BOOTSTRAP_SERVERS"):
        yield given
        return
    with ExitStack() as running:
        bootstrap = _in_docker(running)
        if bootstrap is None:
            bootstrap = _from_jars(running, tmp_path_factory.mktemp("kafka"))
        yield bootstrap


@pytest.fixture(scope="session")
def start_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Starts a Kafka of the test's own with these options of ``scripts/kafka start``; returns its address."""
    with ExitStack() as running:
        yield lambda *options: _from_jars(running, tmp_path_factory.mktemp("kafka"), *options)


@pytest.fixture(scope="session")
def schema_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real schema registry: ``SCHEMA_REGISTRY_URL``, or Apicurio Registry from its own jars.

    Without any the test is skipped and says why; with ``REQUIRE_REGISTRY=1`` that is a failure.
    """
    if given := os.environ.get("SCHEMA_REGISTRY_URL"):
        yield given
        return
    command = [sys.executable, str(SCRIPT.with_name("registry"))]
    place = ["--dir", str(tmp_path_factory.mktemp("registry"))]
    started = subprocess.run([*command, "start", *place], capture_output=True, text=True)
    if started.returncode:
        why = f"no real schema registry: {started.stderr.strip().splitlines()[-1]}"
        if os.environ.get("REQUIRE_REGISTRY") == "1":
            pytest.fail(why)
        pytest.skip(why)
    yield started.stdout.strip()
    subprocess.run([*command, "stop", *place], check=True)


def _in_docker(running: ExitStack) -> str | None:
    if shutil.which("docker") is None:
        return None
    with suppress(subprocess.TimeoutExpired):
        if subprocess.run(["docker", "info"], capture_output=True, timeout=10).returncode == 0:
            from testcontainers.kafka import KafkaContainer

            container = KafkaContainer(IMAGE).with_kraft()
            container.with_env("KAFKA_AUTO_CREATE_TOPICS_ENABLE", "false")
            container.with_env("KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS", "0")
            return str(running.enter_context(container).get_bootstrap_server())
    return None


def _from_jars(running: ExitStack, home: Path, *options: str) -> str:
    command = [sys.executable, str(SCRIPT), "start", "--dir", str(home), *options]
    started = subprocess.run(command, capture_output=True, text=True)
    if started.returncode:
        why = f"no real Kafka: Docker is not running, and {started.stderr.strip().splitlines()[-1]}"
        if os.environ.get("REQUIRE_KAFKA") == "1":
            pytest.fail(why)
        pytest.skip(why)
    running.callback(subprocess.run, [sys.executable, str(SCRIPT), "stop", "--dir", str(home)])
    return started.stdout.strip()
