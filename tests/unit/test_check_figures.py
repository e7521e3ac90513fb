"""What ``check`` says of priorities, caches and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.cli.check_figures import figures, memory
from worker.settings import load

MODEL = Path(__file__).parents[2] / "worker" / "demo_data" / "digits.onnx"


def settings_of(tmp_path: Path, **sections: dict[str, Any]) -> Any:
    """Settings with these pipelines, each on a topic of its own; `control` and `page` are sections beside them."""
    beside = {name: sections[name] for name in ("control", "page") if name in sections}
    pipelines = {name: section for name, section in sections.items() if name not in beside}
    made = {
        name: {
            "input": {"topics": [name], "format": "image"},
            "model": {"path": str(MODEL)},
            "output": {"topic": f"{name}.out"},
        }
        | more
        for name, more in pipelines.items()
    }
    file = tmp_path / "worker.yaml"
    document = {
        **beside,
        "pipelines": made,
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "g"},
    }
    file.write_text(yaml.safe_dump(document))
    return load(file, [])


@pytest.mark.parametrize(
    ("priorities", "expected"),
    [((5, 5), {}), ((5, 9), {"priority": "second 9, first 5"}), ((0, 3), {"priority": "second 3, first 0"})],
)
def test_priorities_that_differ_are_shown(
    tmp_path: Path, priorities: tuple[int, int], expected: dict[str, str]
) -> None:
    """The most important pipeline stands first; where all are the same there is no line."""
    first, second = priorities
    settings = settings_of(tmp_path, first={"priority": first}, second={"priority": second})
    assert dict(figures(settings)) == expected


def test_the_memory_line_is_a_sum(tmp_path: Path) -> None:
    """The parts are those of the limits, and they add up."""
    line = memory(settings_of(tmp_path, only={}), {})
    assert line == (
        "warm process + 344 MiB = in_flight_bytes 256 + prefetch_bytes 16 + output_bytes 64 + largest record 8"
    )


def test_a_cache_is_shown_and_part_of_the_sum(tmp_path: Path) -> None:
    """Its bytes are in the memory line, its age in a line of its own; without a cache there is neither."""
    settings = settings_of(
        tmp_path,
        first={"cache": {"bytes": 1 << 20, "ttl_s": 60}},
        second={"cache": {}},
        third={},
    )
    assert [*figures(settings)] == [
        ("cache", "first: equal payloads are answered from memory, for 60 s, up to 1 MiB"),
        ("cache", "second: equal payloads are answered from memory, of any age, up to 64 MiB"),
    ]
    assert memory(settings, {}).endswith("+ largest record 8 + cache 65")
    assert memory(settings, {}).startswith("warm process + 409 MiB")


def test_rollouts_and_samples_are_shown(tmp_path: Path) -> None:
    """How a new version is tried, what becomes of it, and that the page shows content of records."""
    folder = tmp_path / "models" / "m" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(MODEL.read_bytes())
    model = {"path": None, "repository": str(tmp_path / "models"), "name": "m"}
    shadow = {"mode": "shadow", "then": "wait", "min_records": 5, "for_s": 1}
    settings = settings_of(
        tmp_path,
        first={"model": model, "rollout": {"share": 0.25}},
        second={"model": model, "rollout": shadow},
        control={"topic": "control"},
        page={"samples": 3},
    )
    assert [*figures(settings)] == [
        (
            "rollout",
            "first: a new version answers 25 % of the keys first; within its limits it is promoted after 1,000 "
            "records and 600 s",
        ),
        (
            "rollout",
            "second: a new version runs beside the one that answers; within its limits it waits after 5 records "
            "and 1 s for `streaminfer model`",
        ),
        ("page", "shows the last 3 results with their pictures, up to 16 MiB"),
    ]


def test_devices_are_shown(tmp_path: Path) -> None:
    """Which GPUs run the model, and how many runs each takes."""
    model = {"path": str(MODEL), "providers": ["cuda"]}
    settings = settings_of(
        tmp_path,
        first={"model": {**model, "devices": [0, 2]}},
        second={"model": {**model, "devices": [1], "instances": 3}},
    )
    assert [*figures(settings)] == [
        ("devices", "first: the whole model on each of 0, 2, 1 run at once on each"),
        ("devices", "second: the whole model on each of 1, 3 runs at once on each"),
    ]


def test_devices_of_steps_are_shown(tmp_path: Path) -> None:
    """Each step may have GPUs of its own."""
    steps = [
        {"name": name, "model": {"path": str(MODEL), "providers": ["cuda"], "devices": [device]}}
        for device, name in enumerate(("small", "large"))
    ]
    settings = settings_of(tmp_path, two={"steps": steps, "model": None})
    assert [*figures(settings)] == [
        ("devices", "two: steps.0: the whole model on each of 0, 1 run at once on each"),
        ("devices", "two: steps.1: the whole model on each of 1, 1 run at once on each"),
    ]
