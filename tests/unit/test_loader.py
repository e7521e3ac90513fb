"""New versions of a model: what takes the place of the one that answers, and what is refused. No Kafka, no loop."""

from __future__ import annotations

import gc
import hashlib
import json
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from fakes import columns_of
from onnx import helper
from stream import wait_for

from worker.batch import Batch, Partition
from worker.cli.check_figures import memory as memory_sum
from worker.model.headroom import memory_left, resident_bytes
from worker.serving.engine import Engine
from worker.serving.growth import Growth
from worker.serving.load import load
from worker.serving.loader import Loader, Overgrown, Refusal, Swap
from worker.serving.rollout import Rollout
from worker.serving.versions import resolved
from worker.settings import validate


class Place:
    """A worker's models without the worker: a repository, its rollout, and the loader."""

    def __init__(
        self,
        folder: Path,
        memory: Callable[[], int | None] = memory_left,
        resident: Callable[[], int] = resident_bytes,
        **pipeline: Any,
    ) -> None:
        self.folder = folder / "models" / "digits"
        self.put("1")
        document = {
            "input": {"topics": ["in"], "format": "json"},
            "model": {"repository": "models", "name": "digits", "poll_s": 0.01, **pipeline.pop("model", {})},
            "output": {"topic": "out"},
            "dead_letter": {"topic": "dead"},
            "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
            **pipeline,
        }
        self.settings = validate(document, folder)
        with_files, found = resolved(self.settings)
        took: dict[str, int] = {}
        rollouts = load(with_files, took)
        (self.rollout,) = rollouts.values()
        running = {name: (version, took[name]) for name, version in found.items()}
        self.loader = Loader(self.settings, rollouts, running, memory, resident=resident)

    def put(self, version: str, model: bytes | None = None, **files: str) -> None:
        """A version that counts at once, because its checksum is there."""
        model = shifted(int(version)) if model is None else model
        folder = self.folder / version
        folder.mkdir(parents=True, exist_ok=True)
        models.write(folder, model)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)
        (folder / "model.sha256").write_text(hashlib.sha256(model).hexdigest())

    def look(self) -> list[Swap | Refusal]:
        """One look at the repository, and the loop's turn after it."""
        time.sleep(0.011)  # poll_s
        self.loader.look()
        return self.loader.turn()

    def answer(self) -> tuple[str, list[float]]:
        """The version that answers a record, and its prediction."""
        return answer(self.rollout)


def answer(rollout: Rollout) -> tuple[str, list[float]]:
    servable = rollout.choose()
    columns = columns_of(Partition("in", 0), range(1), [b'{"features": [1, 2, 3, 4]}'])
    batch = Batch(None, range(1), columns, rollout.route, servable, time.monotonic_ns(), time.time() * 1000)
    engine = Engine()
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    engine.infer(batch)
    engine.finish(batch)
    assert batch.outcomes is not None
    result = json.loads(batch.outcomes.bodies[0] or b"")
    return result["model"]["version"], result["prediction"]["outputs"]["y"]


def shifted(by: float, shape: tuple[Any, ...] = ("N", 4), name: str = "x") -> bytes:
    """y = x + by."""
    return models.build(
        [helper.make_node("Add", [name, "by"], ["y"])],
        [models.tensor(name, np.float32, shape)],
        [models.tensor("y", np.float32, shape)],
        {"by": np.float32(by)},
    )


def test_a_new_version_answers_from_the_next_slab_on(tmp_path: Path) -> None:
    """A newer version takes over; its answers are its own and name it; the loop hears of it once."""
    place = Place(tmp_path)
    assert place.answer() == ("1", [2.0, 3.0, 4.0, 5.0])
    place.put("2")
    (event,) = place.look()
    assert isinstance(event, Swap)
    assert place.answer() == ("2", [3.0, 4.0, 5.0, 6.0])
    assert place.look() == []


def test_the_old_version_is_closed_when_its_last_batch_is_gone(tmp_path: Path) -> None:
    """A batch that is pinned to the old version can still run it after the swap; then its session is given back."""
    place = Place(tmp_path)
    pinned = place.rollout.choose()
    model = weakref.ref(pinned.model)
    place.put("2")
    place.look()
    place.look()
    feeds = {"x": np.zeros((1, 4), np.float32)}
    assert pinned.model.run(feeds)["y"].tolist() == [[1.0] * 4]
    del pinned
    gc.collect()
    place.look()
    gc.collect()
    assert model() is None


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (b"not a model", "unloadable"),
        (shifted(2)[:60], "unloadable"),
        (shifted(2, ("N", 5)), "signature"),
        (shifted(2, name="z"), "signature"),
        (models.identity(np.float64), "signature"),
    ],
    ids=["no model", "cut", "other width", "other name", "other type"],
)
def test_a_version_that_does_not_fit_is_refused_once(tmp_path: Path, model: bytes, reason: str) -> None:
    """A broken version, or one with other inputs, is refused with its reason, once; the old one goes on."""
    place = Place(tmp_path)
    place.put("2", model)
    assert place.look() == [Refusal(place.rollout.route.name, reason)]
    assert place.look() == []
    assert place.answer()[0] == "1"


def test_a_refused_version_is_tried_again_when_its_files_change(tmp_path: Path) -> None:
    """The same version, mended in place, takes over."""
    place = Place(tmp_path)
    place.put("2", b"not a model")
    assert len(place.look()) == 1
    place.put("2")
    assert isinstance(place.look()[0], Swap)
    assert place.answer()[0] == "2"


def test_a_version_with_another_number_of_labels_is_refused(tmp_path: Path) -> None:
    """Five labels fewer are another contract with those who read the answers."""
    pipeline: dict[str, Any] = {"postprocess": {"classification": {"labels": "labels.txt"}}}
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    place = Place(tmp_path, **pipeline)
    place.put("2", shifted(2), labels__txt="e\nf\ng\n")
    assert place.look() == [Refusal(place.rollout.route.name, "signature")]


def test_labels_beside_a_version_are_its_own(tmp_path: Path) -> None:
    """A relative labels file is taken from the version's folder where it is there."""
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\n")
    place = Place(tmp_path, postprocess={"classification": {"labels": "labels.txt"}})
    place.put("2", labels__txt="e\nf\ng\nh\n")
    before = place.rollout.choose().encoder
    assert isinstance(place.look()[0], Swap)
    assert place.rollout.choose().encoder is not before
    assert labelled(place.rollout) == "h"


def labelled(rollout: Rollout) -> str:
    columns = columns_of(Partition("in", 0), range(1), [b'{"features": [1, 2, 3, 4]}'])
    batch = Batch(
        None, range(1), columns, rollout.route, rollout.choose(), time.monotonic_ns(), time.time() * 1000
    )
    engine = Engine()
    for start, stop in engine.shards(batch):
        engine.decode(batch, start, stop)
    engine.infer(batch)
    engine.finish(batch)
    assert batch.outcomes is not None
    label: str = json.loads(batch.outcomes.bodies[0] or b"")["prediction"]["label"]
    return label


def test_a_version_that_fails_its_golden_set_is_refused(tmp_path: Path) -> None:
    """A version whose answers are not the expected ones is refused; the same with right answers takes over."""
    place = Place(tmp_path)
    golden = {"value": {"features": [1, 2, 3, 4]}, "prediction": {"outputs": {"y": [3, 4, 5, 6.0004]}}}
    place.put("2", golden__jsonl=json.dumps(golden))
    assert isinstance(place.look()[0], Swap)
    place.put("3", golden__jsonl=json.dumps(golden))
    assert place.look() == [Refusal(place.rollout.route.name, "golden")]
    assert place.answer()[0] == "2"


def test_a_version_that_does_not_fit_memory_is_not_loaded(tmp_path: Path) -> None:
    """Where less memory is left than the first load took, the new version is refused before it is loaded."""
    place = Place(tmp_path, memory=lambda: 1)
    place.put("2", b"not even a model")
    assert place.look() == [Refusal(place.rollout.route.name, "memory")]


def test_what_a_new_version_takes_may_be_said(tmp_path: Path) -> None:
    """model.swap_bytes counts in place of what the first load took."""
    place = Place(tmp_path, memory=lambda: 1 << 30, model={"swap_bytes": 2 << 30})
    place.put("2")
    assert place.look() == [Refusal("digits", "memory")]


def test_memory_that_is_not_given_back_ends_the_process(tmp_path: Path) -> None:
    """Once the old version is closed and the process still has more than all that it may take, the loop hears of it, once."""
    resident = [1 << 30]
    place = Place(tmp_path, resident=lambda: resident[0])
    place.loader.start()
    place.loader.close()
    for version, grown in ((2, 0), (3, 300 << 20), (4, 2 << 30), (5, 3 << 30)):
        resident[0] = (1 << 30) + grown
        place.put(str(version))
        events = place.look()
        gc.collect()  # nobody is pinned to the old version
        events += place.look()
        assert [type(event) for event in events] == [Swap, *([Overgrown] if version == 4 else [])]
        assert (place.loader.overgrown is not None) == (version >= 4)
    assert "3072 MiB are in use" in str(place.loader.overgrown)


def test_what_the_c_library_keeps_is_returned_first() -> None:
    """Memory that was freed and only kept for reuse does not end the process."""
    resident = [100]
    growth = Growth(lambda: resident[0], trim=lambda: resident.__setitem__(0, 150))
    growth.begin(60)
    resident[0] = 500
    assert growth.look() is False
    assert growth.why is None


def test_a_damaged_version_is_refused_once_and_the_one_before_it_answers(tmp_path: Path) -> None:
    """Files that do not match model.sha256 are counted as a refusal when nobody writes them any more."""
    place = Place(tmp_path)
    place.put("2")
    (place.folder / "2" / "model.onnx").write_bytes(b"half")
    deadline = time.monotonic() + 20
    events: list[Any] = []
    while not events and time.monotonic() < deadline:
        events += place.look()
    assert events == [Refusal(place.rollout.route.name, "checksum")]
    assert place.look() == []
    assert place.answer()[0] == "1"


def test_a_repository_that_goes_away_leaves_the_answers_alone(tmp_path: Path) -> None:
    """Without a repository the version that answers goes on; when it is back, a newer one is found."""
    place = Place(tmp_path)
    away = place.folder.with_name("away")
    place.folder.rename(away)
    assert place.look() == []
    assert place.answer()[0] == "1"
    away.rename(place.folder)
    place.put("2")
    assert isinstance(place.look()[0], Swap)


def test_an_alias_can_go_back(tmp_path: Path) -> None:
    """Where the alias points to an older version again, that one answers again."""
    aliases = tmp_path / "models" / "digits" / "aliases.yaml"
    aliases.parent.mkdir(parents=True)
    aliases.write_text("stable: 1\n")
    place = Place(tmp_path, model={"version": "stable"})
    place.put("2")
    assert place.look() == []
    for version in ("2", "1"):
        aliases.write_text(f"stable: {version}\n")
        place.look()
        assert place.answer()[0] == version


def test_check_counts_the_version_beside_the_one_that_answers(tmp_path: Path) -> None:
    """Where a repository is followed, the memory sum holds what a second version takes, measured or given."""
    place = Place(tmp_path)
    assert "344 MiB" in memory_sum(place.settings, {})
    measured = memory_sum(place.settings, {"digits": 100 << 20})
    assert measured.startswith("warm process + 444 MiB = ")
    assert measured.endswith(" + model.swap_bytes of digits 100")
    given = Place(tmp_path / "given", model={"swap_bytes": 200 << 20})
    assert memory_sum(given.settings, {"digits": 100 << 20}).endswith(" + model.swap_bytes of digits 200")


def test_changed_settings_are_followed_at_once(tmp_path: Path) -> None:
    """Another alias, and a version that was refused under a tolerance that is larger now: at the next look, whatever `poll_s` is."""
    place = Place(tmp_path, model={"version": "1", "poll_s": 1000.0})
    golden = {"value": {"features": [1, 2, 3, 4]}, "prediction": {"outputs": {"y": [3, 4, 5, 6.5]}}}
    place.put("2", golden__jsonl=json.dumps(golden))

    def follow(**model: Any) -> None:
        (name, before) = next(iter(place.settings.pipelines.items()))
        changed = before.model_copy(update={"model": before.model.model_copy(update=model)})
        place.loader.follow(place.settings.model_copy(update={"pipelines": {name: changed}}))

    def turned() -> list[Any]:
        return [*wait_for(place.loader.turn, "something to happen")]

    place.loader.look()
    follow(version="2")
    assert turned() == [Refusal(place.rollout.route.name, "golden")]
    follow(version="2", tolerance=1.0)
    (swap,) = turned()
    assert isinstance(swap, Swap)
    assert place.answer() == ("2", [3.0, 4.0, 5.0, 6.0])
    place.loader.close()
