"""Magika, a real model that tells the type of a file from 2,048 of its bytes, beside its own package."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import sys
import tarfile
import time
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from worker.batch import Batch, Columns, Partition
from worker.cli.main import main
from worker.loop.pool import InlinePool, Mailbox
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.settings import validate

ROOT = Path(__file__).resolve().parents[2]


def _picture(extension: str) -> Callable[[np.random.Generator], bytes]:
    def make(random: np.random.Generator) -> bytes:
        size = random.integers(8, 60, 2)
        pixels = cv2.resize(random.integers(0, 255, (4, 5, 3), np.uint8), size.tolist())
        return cv2.imencode(extension, pixels)[1].tobytes()

    return make


def _words(random: np.random.Generator, count: int = 60) -> list[str]:
    known = ["stream", "record", "offset", "partition", "value", "key", "batch", "answer", "reader", "time"]
    return [known[i] for i in random.integers(0, len(known), count)]


def _zip(random: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.txt", " ".join(_words(random)))
    return file.getvalue()


def _tar(random: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        content = " ".join(_words(random)).encode()
        entry = tarfile.TarInfo("a.txt")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def _wav(random: np.random.Generator) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(random.integers(-99, 99, 2000, np.int16).tobytes())
    return file.getvalue()


def _sqlite(random: np.random.Generator) -> bytes:
    database = sqlite3.connect(":memory:")
    database.execute("create table t (a integer, b text)")
    database.executemany("insert into t values (?, ?)", enumerate(_words(random)))
    database.commit()
    content = database.serialize()
    database.close()
    return content


def _csv(random: np.random.Generator) -> bytes:
    file = io.StringIO()
    csv.writer(file).writerows(
        [["id", "name", "price"], *([i, w, i / 7] for i, w in enumerate(_words(random)))]
    )
    return file.getvalue().encode()


def _lines(template: str, blanks: int = 0) -> Callable[[np.random.Generator], bytes]:
    def make(random: np.random.Generator) -> bytes:
        body = "\n".join(
            template.replace("WORD", word).replace("N", str(i)) for i, word in enumerate(_words(random))
        )
        space = " \n" * int(random.integers(0, 1 + blanks))
        return (space + body + "\n" + space).encode()

    return make


FILES: dict[str, Callable[[np.random.Generator], bytes]] = {
    "png": _picture(".png"),
    "jpeg": _picture(".jpg"),
    "webp": _picture(".webp"),
    "bmp": _picture(".bmp"),
    "zip": _zip,
    "tar": _tar,
    "gzip": lambda random: gzip.compress(random.bytes(3000)),
    "bzip2": lambda random: bz2.compress(random.bytes(3000)),
    "xz": lambda random: lzma.compress(random.bytes(3000)),
    "wav": _wav,
    "sqlite": _sqlite,
    "pickle": lambda random: pickle.dumps(_words(random), protocol=2),
    "csv": _csv,
    "json": lambda random: json.dumps({"words": _words(random), "n": random.random()}, indent=1).encode(),
    "elf": lambda random: Path(sys.executable).read_bytes()[: int(random.integers(5000, 90_000))],
    "python": _lines("def WORD_N(value):\n    return [value + N for _ in range(N)]\n", 30),
    "javascript": _lines(
        "function WORD_N(value) {\n  const x = document.getElementById('WORD');\n  return x;\n}"
    ),
    "html": lambda random: _html(random),
    "yaml": _lines("WORD_N:\n  - name: WORD\n    port: N"),
    "text": lambda random: (" ".join(_words(random, 400)) + ".\n").encode(),
}


def _html(random: np.random.Generator) -> bytes:
    cells = "".join(f"<p class='a'>{word}</p>\n" for word in _words(random))
    return f"\n\n<!DOCTYPE html>\n<html><head><title>t</title></head><body>{cells}</body></html>\n".encode()


def test_magika_answers_as_its_own_package_does() -> None:
    """200 files of 20 kinds, some with blanks around them, have the label and the score that Magika's own package gives."""
    magika = pytest.importorskip("magika")
    folder = next((Path(magika.__file__).parent / "models").iterdir())
    labels = json.loads((folder / "config.min.json").read_text())["target_labels_space"]
    document = {
        "name": "files",
        "input": {"topics": ["files"], "format": "bytes"},
        "preprocess": {"bytes": {"length": 2048, "pad": 256, "head_tail": True, "strip": True}},
        "model": {"path": str(folder / "model.onnx"), "threads": 1, "instances": 1},
        "batching": {"max_size": 8},
        "postprocess": {"classification": {"labels": labels}},
        "output": {"topic": "types"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9092", "group.id": "files"},
    }
    random = np.random.default_rng(7)
    files = [make(random) for make in FILES.values() for _ in range(10)]
    files[-3:] = [b" \n" * 1000 + file + b"\n" * 1500 for file in files[-3:]]
    (rollout,) = load(validate(document, Path.cwd())).values()
    found = []
    for start in range(0, len(files), 8):
        values = files[start : start + 8]
        count = len(values)
        columns = Columns(
            [*values],
            [None] * count,
            [None] * count,
            [0] * count,
            [*range(count)],
            [Partition("files", 0)] * count,
        )
        batch = Batch(None, range(count), columns, rollout.route, rollout.choose(), time.monotonic_ns(), 0.0)
        pool = InlinePool(Engine(), Mailbox())
        pool.submit(batch)
        pool.collect()
        assert batch.outcomes is not None
        assert not batch.outcomes.rejected
        found += [json.loads(body or b"")["prediction"] for body in batch.outcomes.bodies]
    own = magika.Magika()
    expected = [own.identify_bytes(file).prediction for file in files]
    assert [each["label"] for each in found] == [str(one.dl.label) for one in expected]
    assert np.allclose([each["score"] for each in found], [one.score for one in expected], rtol=0, atol=1e-4)
    assert len({each["label"] for each in found}) >= 15


def test_the_example_tells_the_type_of_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code of the guide prepares what examples/files.yaml needs; its sample, a picture, is a `png`."""
    pytest.importorskip("magika")
    guide = (ROOT / "docs/guides/bytes.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    exec(compile(guide.partition("```python\n")[2].partition("```")[0], "bytes.md", "exec"), {})
    monkeypatch.setenv("MAGIKA", str(tmp_path / "magika"))
    example, sample = ROOT / "examples/files.yaml", ROOT / "examples/frames/7.png"
    quick = ["--set", "model.threads=1", "--set", "model.instances=1"]
    assert main(["check", str(example), "--offline", "--sample", str(sample), *quick]) == 0
    assert '"label": "png"' in capsys.readouterr().out
