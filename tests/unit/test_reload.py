"""A configuration that is read again: everything that may change counts at once, or nothing does. No Kafka."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import structlog
import yaml
from fakes import FakeClock, FakeKafka, FakePool, FakeRollout, FakeSink, FakeSource
from onnx import helper
from stream import wait_for
from test_loader import answer
from world import Figures, World, make_loop

from worker.in_force import InForce, Watched
from worker.model.session import Model
from worker.process.progress import Progress, Reading
from worker.process.watchdog import AwakeClock, BatchDeadline, DrainDeadline, Outage, Standstill
from worker.reload import Reloader
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.loader import Loader
from worker.settings import Settings
from worker.settings.current import read_current
from worker.telemetry.configured import Configured
from worker.telemetry.meters import Meters
from worker.telemetry.vitals import Vitals


def shifted(by: int, width: int = 4) -> bytes:
    """y = x + by."""
    return models.build(
        [helper.make_node("Add", ["x", "by"], ["y"])],
        [models.tensor("x", np.float32, ("N", width))],
        [models.tensor("y", np.float32, ("N", width))],
        {"by": np.float32(by)},
    )


class Place:
    """A worker's configuration and models without its loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, model in (("one", shifted(1)), ("two", shifted(2)), ("wide", shifted(2, width=5))):
            (folder / f"{name}.onnx").write_bytes(model)
        (folder / "broken.onnx").write_bytes(b"no model")
        self.config = folder / "worker.yaml"
        self.document: dict[str, Any] = {
            "name": "test",
            "input": {"topics": ["in"], "format": "json"},
            "model": {"path": "one.onnx"},
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
        }
        self.write()
        now = read_current(self.config)
        rollouts = load(now.settings)
        (self.rollout,) = rollouts.values()
        self.followed: list[Settings] = []
        self.configured = Configured()
        self.loader = Loader(now.settings, rollouts, {}, took={"test": 1 << 20})
        self.reloader = Reloader(
            now,
            lambda: read_current(self.config),
            self.loader,
            rollouts,
            self.followed.append,
            self.configured,
        )

    def write(self, **sections: Any) -> None:
        document = self.document
        for name, section in sections.items():
            document[name] = {**document.get(name, {}), **section} if isinstance(section, dict) else section
        self.config.write_text(yaml.safe_dump(document))

    def reload(self) -> list[Any]:
        """What is logged of it: the loader's lines left out."""
        return [line for line in self.logged() if line["event"].startswith("configuration")]

    def logged(self) -> list[Any]:
        """Everything that is logged of a reload."""
        with structlog.testing.capture_logs() as lines:
            self.reloader.look()
            self.reloader.turn()
            self.loader.turn()
        return [*lines]

    @property
    def added(self) -> float:
        """What the model that answers adds to a number."""
        return answer(self.rollout)[1][0] - 1


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.loader.close()


def test_model_and_limits_change_together(place: Place) -> None:
    """The new model answers the next record under the new limits; one line says what changed and one what needs a restart."""
    first = place.rollout.stable.model_version
    assert place.added == 1
    place.write(model={"path": "two.onnx"}, limits={"max_age_ms": 500, "image_pixels": 1000})
    before = place.configured.digest
    changed, restart = place.reload()
    assert changed["event"] == "configuration changed"
    assert {*changed["changed"]} == {"model.path", "limits.max_age_ms"}
    assert changed["models"] == ["test"]
    assert restart["settings"] == ["limits.image_pixels"]
    assert [each.limits.max_age_ms for each in place.followed] == [500]
    assert place.added == 2
    assert place.rollout.stable.model_version != first
    assert place.configured.digest == changed["digest"] != before
    assert place.configured.fields()["needs_restart"] == ["limits.image_pixels"]
    assert place.configured.reloads == {"changed": 1}


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown key": ({"limit": {"max_age_ms": 1}}, "unknown key limit"),
    "no model": ({"model": {"path": "three.onnx"}}, "three.onnx does not exist"),
    "a broken model": ({"model": {"path": "broken.onnx"}}, "broken.onnx cannot be loaded"),
    "a model with another input": ({"model": {"path": "wide.onnx"}}, "its inputs are x: FP32[*,5]"),
    "another checksum": ({"model": {"path": "two.onnx", "sha256": "0" * 64}}, "sha256"),
    "no YAML": ({"name": "\0"}, "name"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_changes_nothing(place: Place, name: str) -> None:
    """One error line says what is wrong; limits, model and digest stay, and the next file counts."""
    sections, why = MISTAKES[name]
    digest = place.configured.digest
    place.write(limits={"max_age_ms": 500}, log={"level": "debug"}, **sections)
    (line,) = place.reload()
    assert (line["event"], line["log_level"]) == ("configuration refused, the old one goes on", "error")
    assert why in line["why"]
    assert place.followed == []
    assert place.configured.digest == digest
    assert place.added == 1
    place.document.pop(next(iter(sections)), None)
    place.write(name="test", model={"path": "two.onnx", "sha256": None}, limits={"max_age_ms": 600})
    assert place.reload()[0]["event"] == "configuration changed"
    assert place.added == 2
    assert place.configured.reloads == {"refused": 1, "changed": 1}


def test_a_model_under_the_same_name_is_taken_over_too(place: Place) -> None:
    """Whoever copies a new model over the old one and has the configuration read again gets it."""
    (line,) = place.reload()
    assert line["event"] == "configuration read again, nothing changed"
    (place.folder / "one.onnx").write_bytes(shifted(3))
    (line,) = place.reload()
    assert (line["event"], line["models"], line["changed"]) == ("configuration changed", ["test"], {})
    assert place.added == 3
    assert place.configured.reloads == {"unchanged": 1, "changed": 1}


def test_labels_that_change_in_their_file_are_taken_over(place: Place) -> None:
    """A ConfigMap that holds configuration and labels is one change: the pipeline answers with the new labels."""
    labels = place.folder / "labels.txt"
    labels.write_text("a\nb\nc\nd\n")
    place.write(postprocess={"classification": {"labels": "labels.txt"}})
    assert place.reload()[0]["models"] == ["test"]
    labels.write_text("e\nf\ng\nh\n")
    assert place.reload()[0]["models"] == ["test"]
    assert place.reload()[0]["event"] == "configuration read again, nothing changed"


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"model": {"path": "two.onnx"}}, "another model version answers"),
        (
            {"postprocess": {"classification": {"top_k": 2}}},
            "the same model version answers with changed settings",
        ),
    ],
)
def test_the_log_tells_a_new_version_from_changed_settings(
    place: Place, section: dict[str, Any], told: str
) -> None:
    """Another file is another version; the same file with other settings is not."""
    place.write(**section)
    assert [line["event"] for line in place.logged() if "answers" in line["event"]] == [told]


def test_the_old_model_is_closed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many changes leave one model in memory: each one that does not answer any more is closed."""
    closed: list[str] = []
    close = Model.close

    def note(model: Model) -> None:
        closed.append(model.version)
        close(model)

    monkeypatch.setattr(Model, "close", note)
    first = place.rollout.stable.model_version
    place.write(model={"path": "two.onnx"})
    place.reload()
    wait_for(lambda: closed == [first], "the old model to be closed")


# -- limits ----------------------------------------------------------------------------------------------------------


class Rig:
    """A loop over fakes, with everyone who keeps to a limit."""

    def __init__(self) -> None:
        kafka = FakeKafka(FakeClock(), {"in": 1}, {"results": 1})
        self.clock = kafka.clock
        self.world: World = make_loop(
            kafka.clock,
            FakeSource(kafka),
            FakeSink(kafka),
            FakePool(kafka.clock),
            [FakeRollout("test")],
            Figures("test"),
        )
        awake = AwakeClock(lambda: kafka.clock.ns / 1e9)
        self.engine, self.vitals = Engine(), Vitals(Meters({}), 60.0)
        self.watched = Watched(
            DrainDeadline(1.0, lambda: False, awake),
            BatchDeadline(1.0, lambda: None, lambda _batch: None, awake),
            Standstill(1.0, lambda: 0, awake),
            Outage(None, lambda: False, awake),
            Progress(1.0, lambda: Reading({}), awake),
        )
        self.in_force = InForce(self.world.conductor, self.engine, self.vitals, self.watched)


def test_everyone_keeps_to_the_limits_that_changed(tmp_path: Path) -> None:
    """Each limit that may change reaches whoever keeps to it."""
    place, rig = Place(tmp_path), Rig()
    limits = {
        "batch_timeout_s": 11, "stall_s": 12, "retry_s": 13, "outage_s": 14, "drain_s": 15, "revoke_s": 16,
        "max_age_ms": 17, "expired": "publish",
    }  # fmt: skip
    place.write(
        limits=limits,
        batching={"max_wait_ms": 18},
        dead_letter={"topic": "dead", "max_crashes": 19, "stop_after": {"ratio": 0.2, "of_last": 21}},
    )
    rig.in_force.follow(read_current(place.config).settings)
    watched, membership = rig.watched, rig.world.conductor.membership
    assert (watched.batch.timeout_s, watched.draining.drain_s, watched.outage.outage_s) == (11, 15, 14)
    assert {watched.turning.stall_s, watched.progress.stall_s, rig.vitals.stall_s} == {12}
    assert rig.engine.retry_s == 9  # three quarters of stall_s
    assert (membership.drain_s, membership.revoke_s) == (15, 16)
    (intake,) = rig.world.intakes
    assert (intake.admission.max_age_ms, intake.admission.expired) == (17, "publish")
    assert intake.left_s(intake.open.first_ns) == pytest.approx(0.018, abs=0.018)
    assert rig.world.conductor.parts.isolation.caution.max_crashes == 19
    place.loader.close()
