"""What is measured of records: each figure is that of numpy, by the input's content, and costs nothing where nobody asks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import models
import numpy as np
import orjson
import pytest
import sounds
import text_models
from structlog.testing import capture_logs
from text_support import Pipeline

from worker.batch import Array, Batch
from worker.drift.measured import Gathered, Measured
from worker.features.figures import SHARP_SIDE, of_picture, of_sound
from worker.serving.gauge import Gauge
from worker.serving.measures import Measures

LUMA = np.array([0.299, 0.587, 0.114])
"""Of red, green and blue: ITU-R BT.601."""


class Figures:
    """A pipeline of which every record is measured, or those that ``rows`` names."""

    def __init__(self, folder: Path, rows: Sequence[int] | None = None, **sections: Any) -> None:
        self._pipeline = Pipeline(folder, **sections)
        self._rows = rows
        servable = self._pipeline.servable
        self.measures = Measures(servable.decoder, servable.encoder, servable.model.signature)
        self._pipeline.servable = replace(servable, gauge=Gauge(self, self.measures, every=True))

    def chosen(self, rows: int, most: int) -> Sequence[int]:
        return range(rows) if self._rows is None else self._rows

    def add(self, measured: Measured, cost_ns: int) -> None:
        self._gathered.add(measured)

    def of(self, *values: bytes) -> dict[str, list[Any]]:
        """Each figure of these records."""
        self._gathered = Gathered()
        self.batch: Batch = self._pipeline.batch(values)
        assert self.batch.outcomes is not None
        self.refused = self.batch.outcomes.rejected
        numbers: dict[str, list[Any]] = {name: column.tolist() for name, column in self._gathered.columns()}
        return numbers | self._gathered.texts


def picture(seed: int, height: int = 40, width: int = 60) -> Array:
    """A picture in RGB with edges and colours."""
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (height // 4, width // 4, 3), np.uint8), (width, height))


def png(rgb: Array) -> bytes:
    return bytes(cv2.imencode(".png", rgb[..., ::-1])[1])


def laplacian(gray: Array) -> Array:
    """Of a picture whose border is mirrored, as OpenCV's."""
    p = np.pad(gray.astype(np.float64), 1, mode="reflect")
    return p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * p[1:-1, 1:-1]


@pytest.mark.parametrize("order", ["rgb", "bgr", "gray"])
def test_figures_of_a_picture(order: str) -> None:
    """Brightness and contrast are mean and deviation of the luma, sharpness the variance of the Laplacian, size the pixels."""
    rgb = picture(1)
    gray = (rgb @ LUMA).round().astype(np.uint8)
    found = of_picture({"rgb": rgb, "bgr": rgb[..., ::-1].copy(), "gray": gray}[order], order)
    assert found["brightness"] == pytest.approx(gray.mean(), abs=0.6)
    assert found["contrast"] == pytest.approx(gray.std(), abs=0.6)
    assert found["sharpness"] == pytest.approx(laplacian(gray).var(), rel=0.03)
    assert found["size"] == 2400


def test_figures_of_a_large_picture() -> None:
    """Of a large picture brightness and contrast are those of the whole, sharpness that of its middle in full resolution."""
    gray = np.zeros((1500, 1600), np.uint8)
    gray[:, 800:] = 200
    found = of_picture(gray, "gray")
    assert found["brightness"] == pytest.approx(100, abs=0.2)
    assert found["contrast"] == pytest.approx(100, abs=0.2)
    assert found["size"] == 2_400_000
    top, left = (1500 - SHARP_SIDE) // 2, (1600 - SHARP_SIDE) // 2
    middle = gray[top : top + SHARP_SIDE, left : left + SHARP_SIDE]
    assert found["sharpness"] == pytest.approx(laplacian(middle).var())


def test_figures_of_a_sound() -> None:
    """Level is the root mean square in dB, silence the share of frames of 20 ms below -50 dB, length the seconds."""
    rate = 8000
    tone = (0.5 * np.sin(np.arange(rate) * 0.3)).astype(np.float32)
    sound = np.concatenate([tone, np.zeros(rate, np.float32)])
    found = of_sound(sound, rate)
    assert found["level"] == pytest.approx(
        20 * np.log10(np.sqrt(np.mean(sound.astype(np.float64) ** 2))), abs=1e-3
    )
    assert (found["silence"], found["length"]) == (0.5, 2.0)
    assert of_sound(np.zeros(10, np.float32), rate) == {"level": -120.0, "silence": 1.0, "length": 10 / rate}
    assert of_sound(np.zeros(0, np.float32), rate)["silence"] == 1.0


def test_pictures_are_measured_as_they_were_decoded(tmp_path: Path) -> None:
    """Figures of a picture are those of its own pixels, whatever size and scale the model is given."""
    models.write(tmp_path, models.image(size=28))
    made = Figures(
        tmp_path,
        input={"format": "image"},
        preprocess={"image": {"color": "rgb", "layout": "nchw", "scale": 0.01, "mean": 3}},
        postprocess={"classification": {}},
    )
    pictures = [picture(seed, 40 + 8 * seed) for seed in range(20)]
    found = made.of(*map(png, pictures), b"no picture")
    expected = [of_picture(one, "rgb") for one in pictures]
    for name in ("brightness", "contrast", "sharpness", "size"):
        assert found[f"picture.{name}"] == [one[name] for one in expected]
    assert len(found["prediction.score"]) == len(found["prediction.label"]) == 20
    assert made.measures.kinds == {next(iter(made.measures.kinds)): "picture"}


def test_only_chosen_rows_keep_their_picture(tmp_path: Path) -> None:
    """Of a batch the chosen rows alone are measured, and no decoded picture stays behind."""
    models.write(tmp_path, models.image(size=28))
    made = Figures(
        tmp_path,
        rows=[2, 11],
        input={"format": "image"},
        preprocess={"image": {"color": "rgb", "layout": "nchw"}},
    )
    pictures = [picture(seed) for seed in range(16)]
    found = made.of(*map(png, pictures))
    assert found["picture.brightness"] == [of_picture(pictures[row], "rgb")["brightness"] for row in (2, 11)]
    assert made.batch.feed is not None
    opened = made.batch.feed.opened
    assert opened is not None
    assert all(not opened[row] for row in range(16))


def test_numbers_are_measured_as_they_stand_in_the_record(tmp_path: Path) -> None:
    """Named fields have figures of their names, before mean and std are applied."""
    models.write(tmp_path, models.mlp(3))
    made = Figures(
        tmp_path,
        input={"format": "json", "fields": ["rooms", "area", "year"]},
        preprocess={"numeric": {"mean": [5, 100, 1980], "std": [2, 50, 20]}},
        postprocess={"classification": {}},
    )
    rows = [{"rooms": 3, "area": 80.5, "year": 1990}, {"rooms": 4, "area": -7, "year": 2001}]
    found = made.of(*map(orjson.dumps, rows))
    for name in rows[0]:
        assert found[name] == pytest.approx([row[name] for row in rows])
    assert made.measures.kinds == {"x": "3 numbers"}


def test_each_element_of_a_small_tensor_is_measured(tmp_path: Path) -> None:
    """A list of few numbers has a figure for each, called by field and place; a long one has its mean and deviation."""
    models.write(tmp_path, models.mlp(4))
    small = Figures(tmp_path, input={"format": "json"}, postprocess={"classification": {}})
    found = small.of(b'{"features": [1, 2, 3, 4]}', b'{"features": [5, 6, 7, 8]}', b'{"features": 0}')
    assert found["features[0]"] == [1, 5]
    assert found["features[3]"] == [4, 8]
    models.write(tmp_path, models.mlp(300))
    large = Figures(tmp_path, input={"format": "json"}, postprocess={"classification": {}})
    values = np.random.default_rng(1).random(300).astype(np.float32)
    found = large.of(orjson.dumps({"features": values.tolist()}))
    assert found["features.mean"] == pytest.approx([values.mean()], rel=1e-6)
    assert found["features.deviation"] == pytest.approx([values.std()], rel=1e-6)
    assert not [name for name in found if "[" in name and name.startswith("features")]


def test_raw_tensors_and_their_outputs_are_measured(tmp_path: Path) -> None:
    """Where results are tensors, the model's outputs are measured themselves."""
    models.write(tmp_path, models.identity())
    made = Figures(tmp_path, input={"format": "tensor"}, output={"format": "tensor"})
    found = made.of(*(np.array(row, np.float32).tobytes() for row in ([1, 2, 3, 4], [5, 6, 7, 8])))
    names = [name for name in found if name.startswith("output.")]
    assert len(names) == 4
    assert all(len(found[name]) == 2 for name in names)
    inputs = [found[name] for name in found if not name.startswith("output.")]
    assert inputs[:4] == [[1, 5], [2, 6], [3, 7], [4, 8]]


def test_texts_are_measured_by_their_tokens(tmp_path: Path) -> None:
    """A text's length is its tokens, special ones included and padding left out; unknown ones count with their share."""
    models.write(tmp_path, text_models.encoder())
    tokenizer = text_models.write_tokenizer(tmp_path)
    made = Figures(tmp_path, postprocess={"embedding": {"pooling": "mean"}})
    texts = ["a short one", "☃ ☃", *text_models.sentences(6)]
    found = made.of(*(text.encode() for text in texts))
    assert not made.refused, made.refused
    library = text_models.by_hand(tokenizer)
    unknown = library.token_to_id("[UNK]")
    ids = [library.encode(text).ids for text in texts]
    assert sorted(found["text.length"]) == sorted(len(each) for each in ids)
    assert sorted(found["text.unknown"]) == pytest.approx(
        sorted(each.count(unknown) / len(each) for each in ids)
    )
    assert max(found["text.unknown"]) > 0


def test_sounds_are_measured_as_they_were_decoded(tmp_path: Path) -> None:
    """Figures of a sound are those of its samples, not of the features that the model is given."""
    models.write(tmp_path, models.identity(shape=("N", "samples")))
    made = Figures(tmp_path, input={"format": "audio"}, preprocess={"audio": {"rate": 16000}})
    speech = [sounds.speech(0.5 + 0.25 * seed, seed=seed) for seed in range(3)]
    found = made.of(*(sounds.file(one, 16000, "wav float") for one in speech))
    assert not made.refused, made.refused
    expected = [of_sound(one[:, 0], 16000) for one in speech]
    for name in ("level", "silence", "length"):
        assert sorted(found[f"sound.{name}"]) == pytest.approx(sorted(one[name] for one in expected))


def test_figures_of_predictions(tmp_path: Path) -> None:
    """Of boxes the number and the best one's label and score are measured."""
    from worker.serving.measures import _figures

    boxes = {"boxes": [{"label": "cat", "score": 0.9, "box": [0, 0, 1, 1]}, {"label": "dog", "score": 0.4}]}
    assert dict(_figures(boxes, "prediction")) == {
        "prediction.boxes.count": 2,
        "prediction.boxes.label": "cat",
        "prediction.boxes.score": 0.9,
    }
    assert dict(_figures({"boxes": []}, "prediction")) == {"prediction.boxes.count": 0}
    assert dict(_figures({"text": "abc", "score": 1}, "p")) == {"p.text.length": 3, "p.score": 1}
    assert dict(_figures({"label": None, "score": None, "top": []}, "p")) == {}
    nested = {"first": {"label": "a", "top": [{"label": "a"}]}, "second": None, "flag": True}
    assert dict(_figures(nested, "p")) == {"p.first.label": "a", "p.flag": "true"}
    assert dict(_figures([1, 2.5], "p")) == {"p[0]": 1, "p[1]": 2.5}


def test_of_several_items_the_first_is_measured(tmp_path: Path) -> None:
    """A record with a batch dimension of its own counts once, with its first item and that one's prediction."""
    models.write(tmp_path, models.identity(shape=("N", 2)))
    made = Figures(tmp_path, input={"format": "npy"})
    found = made.of(npy([[1, 2], [3, 4]]), npy([[5, 6]]))
    assert not made.refused, made.refused
    assert found["prediction.outputs.y[0]"] == [1, 5]
    assert found["x[1]"] == [2, 6]


def npy(rows: list[list[float]]) -> bytes:
    out = io.BytesIO()
    np.save(out, np.array(rows, np.float32))
    return out.getvalue()


def test_of_several_windows_the_first_is_measured(tmp_path: Path) -> None:
    """A sound that is cut into windows counts once, as a whole, with the prediction for its first window."""
    models.write(tmp_path, models.identity(shape=("N", 4000)))
    made = Figures(
        tmp_path,
        input={"format": "audio"},
        preprocess={"audio": {"rate": 8000, "window_s": 0.5, "pad": True}},
    )
    speech = sounds.speech(1.2, 8000)
    found = made.of(sounds.file(speech, 8000, "wav float"))
    assert not made.refused, made.refused
    assert found["sound.length"] == [1.2]
    assert found["output.y.mean"] == pytest.approx([speech[:4000].mean()], rel=1e-4)


def test_a_fault_while_measuring_costs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong while a record is measured, it has its answer, and the log says so once."""
    models.write(tmp_path, models.mlp(4))
    made = Figures(tmp_path, input={"format": "json"}, postprocess={"classification": {}})
    record = b'{"features": [1, 2, 3, 4]}'

    def fails(*_: Any) -> None:
        raise ValueError("what the record holds")

    monkeypatch.setattr(made.measures, "of_run", fails)
    with capture_logs() as lines:
        found = [made.of(record) for _ in range(3)]
    assert found == [{}, {}, {}]
    assert made.batch.outcomes is not None
    assert made.batch.outcomes.bodies[0]
    assert [line["event"] for line in lines] == ["some records cannot be measured"]
    assert "holds" not in str(lines)


def test_nobody_is_measured_unless_asked(tmp_path: Path) -> None:
    """Without a profile a servable has nothing that measures, and a batch says so."""
    models.write(tmp_path, models.mlp(4))
    pipeline = Pipeline(tmp_path, input={"format": "json"})
    assert pipeline.servable.gauge is None
    assert pipeline.batch([b'{"features": [1, 2, 3, 4]}']).looked is None
