"""Pictures of unlike size through a loaded model: which share a run, and that nobody's answer depends on it."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import ocr_models
import onnxruntime
import pytest
from fakes import columns_of
from onnx import helper
from test_decode_image import encode
from test_image_fit import line

from worker.batch import Batch, Partition
from worker.loop.pool import InlinePool, Mailbox
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.serving.rollout import Rollout
from worker.settings import validate

OCR = {"scale": 1 / 255, "mean": 0.5, "std": 0.5, "color": "bgr"}


def over_width(kind: str) -> bytes:
    """float32 (N, 3, 8, W) -> (N, 3): the largest, or the mean, of each channel."""
    return models.build(
        [helper.make_node(kind, ["x", "axes"], ["y"], keepdims=0)],
        [models.tensor("x", np.float32, ["N", 3, 8, "W"])],
        [models.tensor("y", np.float32, ["N", 3])],
        {"axes": np.array([2, 3])},
    )


def rollout(path: Path, image: dict[str, Any], **settings: Any) -> Rollout:
    document = {
        "input": {"topics": ["in"], "format": "image"},
        "preprocess": {"image": image},
        "model": {"path": str(path), "threads": 1},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
        **settings,
    }
    (made,) = load(validate(document, path.parent)).values()
    return made


def answer(one: Rollout, *values: bytes) -> Batch:
    columns = columns_of(Partition("in", 0), range(len(values)), values)
    batch = Batch(None, range(len(values)), columns, one.route, one.choose(), 1, 1.0)
    pool = InlinePool(Engine(), Mailbox())
    pool.submit(batch)
    (back,) = pool.collect()
    assert back.error is None
    assert batch.outcomes is not None
    assert not batch.outcomes.rejected, batch.outcomes.rejected
    return batch


def outputs(batch: Batch) -> list[Any]:
    assert batch.outcomes is not None
    return [
        next(iter(json.loads(body or b"")["prediction"]["outputs"].values()))
        for body in batch.outcomes.bodies
    ]


def sizes(batch: Batch) -> list[int]:
    """Items of each model run."""
    return [size for run in batch.runs for size in (run.sizes if run.sizes is not None else [len(run.rows)])]


PICTURES = [
    encode(".png", np.random.default_rng(width).integers(0, 256, (8, width, 3), np.uint8))
    for width in (60, 9, 8, 10, 9, 9)
]


@pytest.mark.parametrize(("kind", "padded"), [("ReduceMax", True), ("ReduceMean", False)])
def test_like_widths_share_a_run_where_padding_changes_nothing(
    tmp_path: Path, kind: str, padded: bool
) -> None:
    """Items are padded to the widest of their run only if the model's answers allow it; each answer is that alone."""
    path = models.write(tmp_path, over_width(kind))
    one = rollout(path, {"resize": "fit", "pad_value": 0, "pad": "top_left"}, batching={"max_size": 8})
    together = answer(one, *PICTURES)
    assert sorted(sizes(together)) == ([1, 5] if padded else [1, 1, 1, 3])
    alone = [outputs(answer(one, picture))[0] for picture in PICTURES]
    assert np.allclose(outputs(together), alone, rtol=1e-6)


def test_a_multiple_makes_shapes_alike(tmp_path: Path) -> None:
    """With a multiple, pictures of nearby widths have one shape and share a run whatever the model does."""
    path = models.write(tmp_path, over_width("ReduceMean"))
    one = rollout(path, {"resize": "fit", "multiple": 16}, batching={"max_size": 8})
    assert sorted(sizes(answer(one, *PICTURES))) == [1, 5]


def text_of(scores: Any) -> str:
    """Greedy CTC with the labels in RapidOCR's model file."""
    metadata = onnxruntime.InferenceSession(ocr_models.model("rec")).get_modelmeta().custom_metadata_map
    characters = ["", *metadata["character"].splitlines(), " "]
    best = np.argmax(scores, axis=-1)
    kept = [b for before, b in zip([0, *best], best, strict=False) if b and b != before]
    return "".join(characters[index] for index in kept)


def test_rapidocr_reads_lines_of_any_width() -> None:
    """The recogniser of RapidOCR answers lines of three widths in one batch as its package's preprocess and a run of each
    alone: to 1e-4, and the text is that of the picture as far as it is visible."""
    image = {"size": [48, None], "pad": "top_left", "pad_to": [48, 320], "pad_value": 127.5, **OCR}
    path = ocr_models.model("rec")
    one = rollout(path, image, output={"topic": "out", "format": "npy"})
    lines = [line(60, 500), line(48, 320), line(48, 320), line(60, 374)]
    batch = answer(one, *(encode(".png", picture[..., ::-1]) for picture in lines))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    assert sorted(sizes(batch)) == [1, 3]
    assert batch.outcomes is not None
    for picture, body in zip(lines, batch.outcomes.bodies, strict=True):
        ours = np.load(io.BytesIO(body or b""))
        theirs = session.run(None, {"x": ocr_models.recognizer_input(picture)[None]})[0][0]
        assert np.abs(ours - theirs).max() <= 1e-4
        assert text_of(ours).replace(" ", "").startswith("Invoice2024-117")
