"""Imports point one way: cli -> app -> {loop, kafka, serving}; each of the three knows only its own library."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import worker

PACKAGE = Path(worker.__file__).parent
LOOP = ("loop", "dead_letters.compose")
ENGINE = (
    "serving",
    "payload",
    "records",
    "features",
    "encode",
    "model",
    "postprocess",
    "schema_registry",
    "stores",
)
SHARED = (
    "batch",
    "drift",
    "deadlines",
    "errors",
    "frames",
    "outside",
    "extras",
    "filesystem",
    "registry",
    "sending",
    "shortage",
    "sizes",
    "text",
    "topics",
    "settings",
    "stores.url",
    "stores.allow",
    "stores.options",
    "model.signature",
    "native",
)
"""Values, settings and the compiled path, which every side may know; and how figures are compared, which is pure."""


def test_only_the_kafka_package_knows_the_kafka_client() -> None:
    """Only worker/kafka imports confluent_kafka; its client of a schema registry is loaded by name, as every extra is."""
    assert importers_of("confluent_kafka") <= within("kafka")


def test_only_the_engines_side_knows_the_runtimes() -> None:
    """Only the engine's side, quantize and optimize import ONNX Runtime; OpenCV also cuts videos for produce."""
    assert importers_of("onnxruntime") <= within(*ENGINE, "quantize", "optimize")
    assert importers_of("cv2") <= within(*ENGINE, "quantize", "cli.sources")


def test_only_quantize_and_optimize_know_onnx() -> None:
    """Only these two read and write ONNX files: the worker runs without the onnx package."""
    assert importers_of("onnx") <= within("quantize", "optimize", "cli.quantize", "cli.optimize")
    assert importers_of("onnxslim") <= within("optimize")


def test_the_worker_never_imports_what_makes_models_smaller() -> None:
    """Only commands import quantize and optimize; neither knows Kafka, the loop or what composes the worker."""
    users = {name for name in modules() if imports(name) & within("quantize", "optimize")}
    assert users <= within("quantize", "optimize", "cli")
    assert reached_from(within("optimize")) & within(*LOOP, "kafka", "telemetry", "app", "cli") <= within(
        *SHARED
    )


def test_the_loop_stands_alone() -> None:
    """The loop reaches neither Kafka nor an engine nor what puts them together: it declares what it needs."""
    assert reached_from(within(*LOOP)) & within("kafka", *ENGINE, "telemetry", "app", "cli") <= within(
        *SHARED
    )


def test_the_engine_has_never_heard_of_kafka() -> None:
    """What runs in the pool reaches nothing of the loop and nothing of Kafka."""
    assert reached_from(within(*ENGINE)) <= within(*ENGINE, *SHARED)


def test_kafka_knows_neither_the_loop_nor_the_engine() -> None:
    """The Kafka package reaches no model, no engine and none of the loop and no measurement; of dead letters it knows the form."""
    reached = reached_from(within("kafka")) - within("dead_letters.compose", *SHARED)
    assert reached & within(*LOOP, *ENGINE, "app", "bench", "cli") == set()


def test_drift_is_pure() -> None:
    """What compares figures with a profile reaches neither engine nor loop nor Kafka, and no telemetry."""
    assert reached_from(within("drift")) <= within("drift", *SHARED)


def test_only_commands_compose() -> None:
    """app is imported by commands alone, and commands by nothing but each other and the entry point."""
    assert importers_of("worker.app") <= within("cli")
    assert {name for name in modules() if imports(name) & within("cli")} <= within("cli", "__main__")


def test_the_worker_runs_without_the_python_interface() -> None:
    """Only commands use what answers records without Kafka, and that knows neither Kafka nor a command."""
    assert {name for name in modules() if imports(name) & within("local")} <= within("local", "cli")
    known = set().union(*(imports(name) for name in within("local")))
    assert known & within("kafka", "cli", "app") == set()


@pytest.mark.parametrize("name", ["worker.cli.main", "worker.app", "worker.loop.conductor", "worker.records"])
def test_importing_loads_no_runtime(name: str) -> None:
    """A module outside Kafka and the model loads no client, no model runtime and no OpenCV by being imported."""
    script = (
        f"import sys, {name}; print(*{{'confluent_kafka', 'onnxruntime', 'cv2', 'onnx'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_reading_a_configuration_loads_no_runtime() -> None:
    """Checking a pipeline with pictures and boxes, and the JSON Schema of all settings, load no OpenCV and no runtime."""
    script = """
import sys
from pathlib import Path
from worker.settings import json_schema, validate
validate({
    "input": {"topics": ["in"], "format": "image"}, "preprocess": {"image": {"size": [8, 8]}},
    "model": {"path": "m.onnx"}, "postprocess": {"detection": {}}, "output": {"topic": "out"},
    "dead_letter": {"topic": "dead"}, "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
}, Path.cwd())
json_schema()
print(*{"confluent_kafka", "onnxruntime", "cv2", "onnx"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_imports_are_found_wherever_they_stand() -> None:
    """The graph holds imports inside functions and of submodules, not those for type checkers alone."""
    source = """
from typing import TYPE_CHECKING
from worker.kafka import topics
if TYPE_CHECKING:
    import onnx.helper
def late():
    import cv2 as cv
"""
    assert set(imported_by(source)) == {
        "typing",
        "worker.kafka",
        "worker.kafka.topics",
        "typing.TYPE_CHECKING",
        "cv2",
    }


# -- the graph -----------------------------------------------------------------------------------------------------


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def within(*names: str) -> set[str]:
    """The modules called so inside the package, and everything below them."""
    roots = [f"worker.{name}" for name in names]
    return {name for name in modules() for root in roots if name == root or name.startswith(root + ".")}


@cache
def imports(name: str) -> frozenset[str]:
    """What a module imports when it is loaded or runs; dotted names, this package's and others."""
    return frozenset(imported_by(modules()[name].read_text(encoding="utf-8")))


def imported_by(source: str) -> Iterator[str]:
    for node in _running(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, "relative import: the package imports by absolute names"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING``."""
    yield node
    if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
        return
    for child in ast.iter_child_nodes(node):
        yield from _running(child)


def importers_of(library: str) -> set[str]:
    """Modules that import this module or something below it."""
    return {
        name
        for name in modules()
        if any(target == library or target.startswith(library + ".") for target in imports(name))
    }


def reached_from(names: Iterable[str]) -> set[str]:
    """Modules of this package that these import, directly or through others."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        found = (imports(waiting.pop()) & modules().keys()) - {"worker"} - reached
        reached |= found
        waiting += found
    return reached
