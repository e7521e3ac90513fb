"""Models with versions in a store: which of them count, how they reach the cache, and what a store that is away means."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from bucket import Bucket
from onnx import helper
from structlog.testing import capture_logs

from worker.cli.main import main
from worker.errors import ConfigError, StartError
from worker.model.cache import Cache
from worker.serving.load import load
from worker.serving.loader import Loader, Refusal, Swap
from worker.serving.rollout import Rollout
from worker.serving.versions import resolved
from worker.settings import Settings, validate

KEY = "fleet/digits"


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with Bucket() as found:
        yield found


def put(bucket: Bucket, version: str, model: bytes | None = None, **more: bytes) -> None:
    """A version as ``sha256sum`` describes it, its checksum written last."""
    files = {"model.onnx": shifted(float(version)) if model is None else model, **more}
    for name, data in files.items():
        bucket.put(f"{KEY}/{version}/{name}", data)
    bucket.put(f"{KEY}/{version}/model.sha256", sums(files))


def sums(files: dict[str, bytes]) -> bytes:
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()


def shifted(by: float) -> bytes:
    """y = x + by."""
    return models.build(
        [helper.make_node("Add", ["x", "by"], ["y"])],
        [models.tensor("x", np.float32, ("N", 4))],
        [models.tensor("y", np.float32, ("N", 4))],
        {"by": np.float32(by)},
    )


def configured(bucket: Bucket, folder: Path, **model: Any) -> dict[str, Any]:
    return {
        "input": {"topics": ["in"], "format": "json"},
        "model": {
            "repository": "s3://models/fleet",
            "name": "digits",
            "store_options": bucket.options,
            "cache": str(folder / "cache"),
            "poll_s": 1e-9,
            **model,
        },
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
    }


class Place:
    """A worker's models without the worker."""

    def __init__(self, settings: Settings) -> None:
        with_files, found = resolved(settings)
        took: dict[str, int] = {}
        rollouts = load(with_files, took)
        (self.rollout,) = rollouts.values()
        running = {name: (version, took[name]) for name, version in found.items()}
        self.loader = Loader(settings, rollouts, running)

    def look(self) -> list[Swap | Refusal]:
        """One look at the store, and the loop's turn after it."""
        self.loader.look()
        return self.loader.turn()

    @property
    def answers(self) -> str:
        return label(self.rollout)


def label(rollout: Rollout) -> str:
    return rollout.choose().model_version


def test_a_version_counts_when_its_checksum_is_there(bucket: Bucket, tmp_path: Path) -> None:
    """Half a version, whose model.sha256 has not been written yet, does not count; whole, it answers without a restart."""
    put(bucket, "1")
    place = Place(validate(configured(bucket, tmp_path), tmp_path))
    bucket.put(f"{KEY}/2/model.onnx", shifted(2))
    assert place.look() == []
    assert place.answers == "1"
    put(bucket, "2", **{"labels.txt": b"a\nb\n"})
    (swap,) = place.look()
    assert isinstance(swap, Swap)
    assert place.answers == "2"


def test_a_wrong_checksum_is_refused_once_and_tried_again_when_files_change(
    bucket: Bucket, tmp_path: Path
) -> None:
    """A version that is not what its checksum says is refused once; when it is written anew, it answers."""
    put(bucket, "1")
    place = Place(validate(configured(bucket, tmp_path), tmp_path))
    put(bucket, "2")
    bucket.put(f"{KEY}/2/model.onnx", shifted(3))
    assert place.look() == [Refusal("digits", "checksum")]
    assert place.look() == []
    assert place.answers == "1"
    copies = [each.name for each in (tmp_path / "cache").iterdir() if each.is_dir()]
    assert len(copies) == 1, "the damaged copy was kept"
    put(bucket, "2")
    assert [type(event) for event in place.look()] == [Swap]


def test_a_start_takes_the_newest_version_that_is_whole(bucket: Bucket, tmp_path: Path) -> None:
    """Where the newest version is damaged, a start takes the one before it; where that is named, it is one sentence."""
    put(bucket, "1")
    put(bucket, "2")
    bucket.put(f"{KEY}/2/model.onnx", b"half a mod")
    assert Place(validate(configured(bucket, tmp_path), tmp_path)).answers == "1"
    with pytest.raises(StartError, match=r"fleet/digits/2 is not complete: model.onnx does not match"):
        resolved(validate(configured(bucket, tmp_path, version="2"), tmp_path))


def test_a_store_that_is_away_changes_nothing(bucket: Bucket, tmp_path: Path) -> None:
    """While the store is away the old version goes on: one log line when it is lost and one when it is back."""
    put(bucket, "1")
    place = Place(validate(configured(bucket, tmp_path), tmp_path))
    put(bucket, "2")
    bucket.down = 503
    with capture_logs() as lines:
        assert [place.look() for _ in range(3)] == [[], [], []]
        bucket.down = 0
        bucket.cut[f"/models/{KEY}/2/model.onnx"] = 1  # and away again, in the middle of the model
        assert place.look() == []
        assert place.answers == "1"
        assert [type(event) for event in place.look()] == [Swap]
    told = [line["event"] for line in lines if "repository" in line["event"]]
    lost, back = (
        "the model repository is away, the version that answers goes on",
        "the model repository is back",
    )
    assert told == [lost, back, lost, back]


@pytest.mark.parametrize("status", [503, 403])
def test_a_start_without_the_store_is_one_sentence(bucket: Bucket, tmp_path: Path, status: int) -> None:
    """A store that is away, or refuses the credentials, ends a start with a sentence that names the repository."""
    bucket.down = status
    with pytest.raises(StartError, match=r"model.repository: s3://models/fleet/digits cannot be read: "):
        resolved(validate(configured(bucket, tmp_path), tmp_path))


def test_an_alias_names_a_version_in_a_store(bucket: Bucket, tmp_path: Path) -> None:
    """aliases.yaml lies beside the versions; pages of the listing are put together."""
    bucket.page = 2
    for version in ("1", "2", "10"):
        put(bucket, version)
    bucket.put(f"{KEY}/aliases.yaml", b"stable: 2\n")
    assert Place(validate(configured(bucket, tmp_path, version="stable"), tmp_path)).answers == "2"
    assert Place(validate(configured(bucket, tmp_path), tmp_path)).answers == "10"


def test_a_copy_is_read_once_by_all_processes(bucket: Bucket, tmp_path: Path) -> None:
    """A second start takes the copy that is there; several at once read the model once; a broken copy is read again."""
    put(bucket, "1")
    settings = validate(configured(bucket, tmp_path), tmp_path)
    threads = [threading.Thread(target=resolved, args=(settings,)) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    (copy,) = {found["digits"].folder for _, found in [resolved(settings)]}
    assert bucket.asked[f"GET /models/{KEY}/1/model.onnx"] == 1
    (copy / "model.onnx").write_bytes(b"broken")
    resolved(settings)
    assert bucket.asked[f"GET /models/{KEY}/1/model.onnx"] == 2


def test_a_large_model_is_read_in_pieces(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces are put together in their order; a file that changes between two pieces is not mixed of both."""
    monkeypatch.setattr("worker.stores.trees.PIECE_BYTES", 1000)
    data = os.urandom(12_345)
    put(bucket, "1", **{"weights.bin": data, "empty": b""})
    settings = validate(configured(bucket, tmp_path), tmp_path)
    _, found = resolved(settings)
    assert (found["digits"].folder / "weights.bin").read_bytes() == data
    assert (found["digits"].folder / "empty").read_bytes() == b""
    put(bucket, "2", **{"weights.bin": data})
    bucket.after[f"{KEY}/2/weights.bin"] = os.urandom(12_345)
    with pytest.raises(StartError, match="has changed while it was read"):
        resolved(settings)


def test_names_that_lead_out_of_the_folder_do_not_count(bucket: Bucket, tmp_path: Path) -> None:
    """An object called ../../x below a version is never written anywhere: one sentence."""
    put(bucket, "1", **{"../../../x": b"x"})
    with pytest.raises(StartError, match="has a name with an empty part"):
        resolved(validate(configured(bucket, tmp_path), tmp_path))


def test_copies_that_nobody_uses_make_room(tmp_path: Path) -> None:
    """The bound holds: what was used longest ago goes first, what is in use stays, and what cannot fit is one sentence."""
    cache = Cache(tmp_path, 250)

    def get(key: str) -> object:
        hold, wrong = cache.get(key, 100, lambda folder: fill(folder), lambda _: None)
        assert wrong is None
        return hold

    def fill(folder: Path) -> None:
        (folder / "file").write_bytes(bytes(100))

    first = get("a")
    get("b")
    third = get("c")
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {"a", "c"}
    with pytest.raises(StartError, match=r"model.cache_bytes: 250 are not enough"):
        get("d")
    del first
    get("d")
    assert {each.name for each in tmp_path.iterdir() if each.is_dir()} == {"c", "d"}
    assert third is not None
    with pytest.raises(StartError, match="expected at least 300"):
        cache.get("e", 300, fill, lambda _: None)


def test_a_process_that_dies_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    """A copy that a killed process had half filled is filled anew."""
    script = f"""
import os, signal
from pathlib import Path
from worker.model.cache import Cache
def fill(folder):
    (folder / "file").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
Cache(Path({str(tmp_path)!r}), 1000).get("a", 8, fill, lambda _: None)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert (tmp_path / "a.part" / "file").exists()
    hold, wrong = Cache(tmp_path, 1000).get("a", 8, lambda folder: (folder / "whole").touch(), lambda _: None)
    assert wrong is None
    assert hold is not None
    assert [each.name for each in (tmp_path / "a").iterdir()] == ["whole"]


def test_a_cache_that_cannot_be_written_is_one_sentence(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default folder is in the user's cache; where that cannot be made, the sentence names model.cache."""
    put(bucket, "1")
    (tmp_path / "home").write_bytes(b"no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    settings = validate(configured(bucket, tmp_path, cache=None), tmp_path)
    with pytest.raises(StartError, match=rf"model.cache: {tmp_path}/home/streaminfer cannot be written: "):
        resolved(settings)


def test_versions_in_a_store_are_listed(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``model list`` shows which version is meant and why another one does not count, and reads no model for it."""
    put(bucket, "1")
    bucket.put(f"{KEY}/2/model.onnx", shifted(2))
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(configured(bucket, tmp_path)))
    assert main(["model", str(config), "list", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["version"], row["wanted"], row["complete"]) for row in rows] == [
        ("2", False, False),
        ("1", True, True),
    ]
    assert rows[0]["reason"] == "model.sha256 is not there; expected it to be written last"
    assert bucket.asked[f"GET /models/{KEY}/1/model.onnx"] == 0


@pytest.mark.parametrize(
    ("repository", "sentence"),
    [
        ("https://models.example/fleet", "an https server cannot list what it has"),
        ("ftp://models.example/fleet", "expected the beginning of URLs"),
        ("s3://user:secret@models/fleet", "expected the beginning of URLs"),
    ],
)
def test_a_place_that_is_none_is_one_sentence(tmp_path: Path, repository: str, sentence: str) -> None:
    """A repository must be a folder or a store that can be listed."""
    document = configured(Bucket(), tmp_path, repository=repository)
    with pytest.raises(ConfigError, match=sentence) as error:
        validate(document, tmp_path)
    assert "secret@" not in str(error.value)


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    """file:///folder is the folder itself."""
    folder = tmp_path / "fleet" / "digits" / "1"
    folder.mkdir(parents=True)
    models.write(folder, shifted(1))
    (folder / "model.sha256").write_bytes(sums({"model.onnx": shifted(1)}))
    settings = validate(
        configured(Bucket(), tmp_path, repository=f"file://{tmp_path}/fleet", store_options={}), tmp_path
    )
    assert resolved(settings)[1]["digits"].folder == folder


def test_credentials_of_the_store_are_never_shown(bucket: Bucket, tmp_path: Path) -> None:
    """The options' secrets are blanked in logs."""
    settings = validate(configured(bucket, tmp_path), tmp_path)
    assert "SECRETSECRET" in settings.secrets()
    assert "SECRETSECRET" not in json.dumps(settings.redacted())


def test_a_version_of_a_store_can_be_ordered(bucket: Bucket, tmp_path: Path) -> None:
    """Where replicas agree on versions, the store's are copied and loaded by order, and named by the digest of their files."""
    put(bucket, "1")
    settings = validate(configured(bucket, tmp_path), tmp_path)
    with_files, found = resolved(settings)
    took: dict[str, int] = {}
    rollouts = load(with_files, took)
    loader = Loader(settings, rollouts, {"digits": (found["digits"], took["digits"])}, by_order=["digits"])
    loader.look()
    first = loader.meant("digits")
    put(bucket, "2")
    put(bucket, "3", b"not a model")
    loader.look()
    now = loader.meant("digits")
    assert first is not None
    assert now is not None
    assert (first.version, now.version) == ("1", "3")
    assert first.digest != now.digest
    loader.order("digits", "3")
    loader.look()
    refused = loader.delivered("digits")
    assert refused is not None
    assert refused.servable is None
    assert refused.loaded.refused.startswith("unloadable: ")
    loader.order("digits", "2")
    loader.look()
    delivery = loader.delivered("digits")
    assert delivery is not None
    assert delivery.servable is not None
    assert delivery.servable.model_version == "2"
