"""Clips -> pictures at regular times, each an item: compared with PyAV by hand, bounded before anything is decoded."""

from __future__ import annotations

import base64
import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import av
import models
import numpy as np
import pytest
from clips import moving, write_clip
from decode_support import Decoding
from fakes import columns_of

from worker.batch import Batch, Partition
from worker.errors import ConfigError, Reject
from worker.features.video_header import peek
from worker.loop.pool import InlinePool, Mailbox
from worker.serving.engine import Engine
from worker.serving.load import load
from worker.settings import PipelineSettings, validate

KINDS = {
    "mp4": ("mp4", "libx264"),
    "mkv": ("matroska", "libx264"),
    "webm": ("webm", "libvpx"),
    "avi": ("avi", "mpeg4"),
}
SHAPE = ("N", 48, 64, 3)
CLIPS = {name: write_clip(moving(25), *kind) for name, kind in KINDS.items()}
"""25 pictures at 10 a second."""


def decoding(
    shape: Any = SHAPE, kind: str = "uint8", limits: Any = None, image: Any = None, **video: Any
) -> Decoding:
    preprocess = {"video": video, "image": image or {}}
    return Decoding("video", {"x": (kind, shape)}, preprocess=preprocess, limits=limits)


def by_hand(clip: bytes) -> tuple[list[float], list[Any]]:
    """(seconds since the first, RGB pixels) of every picture, by PyAV."""
    with av.open(io.BytesIO(clip)) as container:
        frames = list(container.decode(video=0))
        times = [float(frame.pts * frame.time_base) for frame in frames]
        return [time - times[0] for time in times], [frame.to_ndarray(format="rgb24") for frame in frames]


def pictures(clip: bytes, **video: Any) -> tuple[list[float], Any]:
    """(times, items) that the decoder takes of a clip that must be good."""
    feed = decoding(**video).decode(clip)
    assert not feed.rejected, feed.rejected
    item = feed.items[0]
    assert item is not None
    assert item.marks is not None
    assert item.count == len(item.arrays["x"])
    return item.marks["time_s"].tolist(), item.arrays["x"]


@pytest.mark.parametrize("name", CLIPS)
def test_pictures_are_those_of_pyav(name: str) -> None:
    """Every container and coding: the first picture of each half second, pixel for pixel what PyAV gives by hand."""
    times, items = pictures(CLIPS[name], fps=2)
    all_times, all_pictures = by_hand(CLIPS[name])
    assert np.allclose(times, [0, 0.5, 1, 1.5, 2], atol=1e-6)
    for time, item in zip(times, items, strict=True):
        assert np.array_equal(item, all_pictures[int(np.argmin(np.abs(np.array(all_times) - time)))])


@pytest.mark.parametrize("fps", [10, 25, 240])
def test_a_higher_rate_gives_every_picture_once(fps: float) -> None:
    """No picture is made up between those of the clip."""
    times, items = pictures(CLIPS["mp4"], fps=fps, max_frames=600)
    assert np.allclose(times, np.arange(25) / 10)
    assert len(items) == 25


@pytest.mark.parametrize("name", ["mp4", "mkv"])
def test_times_count_and_not_numbers(name: str) -> None:
    """With an uneven rate the picture of each second is the first one at or after its beginning."""
    times = [0, 0.1, 0.2, 0.95, 1.02, 1.5, 4.0, 4.1, 6.9]
    clip = write_clip(moving(len(times)), *KINDS[name], times=times)
    found, items = pictures(clip, fps=1)
    assert np.allclose(found, [0, 1.02, 4.0, 6.9], atol=2e-3)
    hand = by_hand(clip)[1]
    assert all(np.array_equal(item, hand[index]) for item, index in zip(items, (0, 4, 6, 8), strict=True))


def test_pictures_that_refer_to_later_ones_come_in_the_order_of_their_times() -> None:
    """A clip with B-frames, whose pictures are stored in another order than they are shown."""
    clip = write_clip(moving(30), "mp4", "libx264", options={"bf": "4", "b-pyramid": "normal"})
    with av.open(io.BytesIO(clip)) as container:
        assert any(packet.pts != packet.dts for packet in container.demux(video=0) if packet.pts is not None)
    times, items = pictures(clip, fps=10)
    assert times == sorted(times)
    assert all(map(np.array_equal, items, by_hand(clip)[1]))


def test_a_clip_on_its_side_is_turned_unless_ignored() -> None:
    """The rotation that a phone writes beside the pictures is applied, as the EXIF orientation of a photo is."""
    clip = CLIPS["mp4"]
    matrix = clip.index(b"tkhd") + 4 + 40
    turned = (
        clip[:matrix]
        + struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
        + clip[matrix + 36 :]
    )
    upright = pictures(clip, fps=1)[1]
    assert peek(turned).on_its_side
    found = pictures(turned, shape=("N", 64, 48, 3), fps=1)[1]
    assert all(np.array_equal(a, np.rot90(b, -1)) for a, b in zip(found, upright, strict=True))
    ignored = pictures(turned, fps=1, image={"orientation": "ignore"})[1]
    assert np.array_equal(ignored, upright)


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_each_picture_is_fitted_as_a_photo_is(color: str) -> None:
    """size, resize, colour, layout and scaling hold for each picture of a clip, and the geometry for boxes is at hand."""
    channels = 1 if color == "gray" else 3
    image = {"size": [32, 32], "resize": "letterbox", "color": color, "scale": 1 / 255}
    one = decoding(("N", channels, 32, 32), "float", fps=1, image=image)
    feed = one.decode(CLIPS["mp4"])
    item = feed.items[0]
    assert item is not None
    assert item.arrays["x"].shape == (3, channels, 32, 32)
    assert np.allclose(item.arrays["x"][:, :, 0], 114 / 255)
    assert (feed.contexts[0].height, feed.contexts[0].width, feed.contexts[0].offset_y) == (48, 64, 4)
    whole = by_hand(CLIPS["mp4"])[1][10]
    if color == "rgb":
        import cv2

        expected = cv2.resize(whole, (32, 24)).transpose(2, 0, 1) * np.float32(1 / 255)
        assert np.allclose(item.arrays["x"][1][:, 4:28], expected)


def test_pictures_may_keep_their_own_size() -> None:
    """A model of any height and width gets the clip's own."""
    assert pictures(CLIPS["mp4"], shape=("N", None, None, 3), fps=1, image={"resize": "none"})[1].shape == (
        3,
        48,
        64,
        3,
    )


def test_image_alone_is_for_each_picture_at_the_default_rate() -> None:
    """`preprocess.image` without `video` means one picture a second."""
    one = Decoding("video", {"x": ("uint8", SHAPE)}, preprocess={"image": {}})
    item = one.decode(CLIPS["mp4"]).items[0]
    assert item is not None
    assert item.count == 3


def test_a_clip_in_json_is_read_as_base64() -> None:
    """A clip in a field: plain or URL-safe base64, with line breaks, or a data URL."""
    one = Decoding(
        "json",
        {"x": ("uint8", SHAPE)},
        preprocess={"inputs": {"x": {"from": "clip", "video": {"fps": 1}, "image": {}}}},
    )
    clip = CLIPS["mkv"]
    texts = [
        base64.b64encode(clip).decode(),
        base64.urlsafe_b64encode(clip).decode().rstrip("="),
        base64.encodebytes(clip).decode(),
        "data:video/x-matroska;base64," + base64.b64encode(clip).decode(),
    ]
    feed = one.decode(*(json.dumps({"clip": text}).encode() for text in texts))
    assert not feed.rejected
    assert [item.count for item in feed.items if item] == [3] * 4


def test_one_clip_may_feed_two_inputs() -> None:
    """Two inputs get the same pictures, each fitted in its own way."""
    one = Decoding(
        "video",
        {"a": ("uint8", SHAPE), "b": ("uint8", ("N", 24, 32, 3))},
        preprocess={
            "inputs": {
                "a": {"from": "value", "video": {"fps": 2}, "image": {}},
                "b": {"from": "value", "video": {"fps": 2}, "image": {}},
            }
        },
    )
    item = one.decode(CLIPS["mp4"]).items[0]
    assert item is not None
    assert (item.arrays["a"].shape, item.arrays["b"].shape) == ((5, 48, 64, 3), (5, 24, 32, 3))


@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_that_ends_early_is_undecodable(name: str) -> None:
    """Wherever a file is cut, the last byte included, it is refused, not answered in part."""
    clip, one = CLIPS[name], decoding(fps=2)
    cuts = sorted({*range(0, len(clip), max(1, len(clip) // 25)), len(clip) - 1, len(clip) - 9})
    feed = one.decode(*(clip[:cut] for cut in cuts))
    assert {row: rejection.reason for row, rejection in feed.rejected.items()} == dict.fromkeys(
        range(len(cuts)), "undecodable"
    )


@pytest.mark.parametrize("name", CLIPS)
def test_damage_inside_a_clip_costs_that_clip_alone(name: str) -> None:
    """Damaged bytes give a rejection with a reason, or pictures as a decoder makes them; nothing is raised."""
    random, one = np.random.default_rng(4), decoding(fps=2)
    for _ in range(12):
        damaged = bytearray(CLIPS[name])
        for place in random.integers(0, len(damaged), 6):
            damaged[place] = random.integers(0, 256)
        feed = one.decode(bytes(damaged), CLIPS[name])
        assert set(feed.rejected) <= {0}
        if feed.rejected:
            assert feed.rejected[0].reason in ("undecodable", "too_large", "too_many_pixels", "invalid")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "no clip; expected an MP4, WebM, MKV or AVI file"),
        (b"#EXTM3U\nhttp://10.0.0.1/secret.ts\n", "no clip"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "no clip"),
        (b"G@\0\x10" + b"\xff" * 200, "an MPEG transport stream"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "a JPEG image"),
        (b"\0\0\0\x10ftypisom\0\0\0\0", "without a header"),
    ],
)
def test_what_is_no_clip_is_named(value: bytes, said: str) -> None:
    """Other files are refused by their first bytes: FFmpeg never sees a playlist that would open other addresses."""
    reason, message = decoding().refusal(value)
    assert reason == "undecodable"
    assert said in message


def test_sound_alone_is_no_clip() -> None:
    """An MP4 file without pictures is refused."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    assert "without pictures" in decoding().refusal(file.getvalue())[1]


def with_size(clip: bytes, width: int, height: int) -> bytes:
    """An MP4 file whose header says another size than its pictures have."""
    place = clip.index(b"avc1", clip.index(b"stsd")) + 4 + 24
    return clip[:place] + struct.pack(">HH", width, height) + clip[place + 4 :]


def test_a_bomb_is_refused_by_its_header() -> None:
    """Pictures beyond the limits are refused before a decode, for the record and when its cost is asked."""
    bomb = with_size(CLIPS["mp4"], 60_000, 60_000)
    one = decoding()
    assert one.refusal(bomb)[0] == "too_many_pixels"
    with pytest.raises(Reject) as caught:
        one.decoder.cost(bomb)
    assert caught.value.reason == "too_many_pixels"


def test_pictures_larger_than_the_header_says_are_refused() -> None:
    """A header that says 64 x 48 for larger pictures does not let them through."""
    clip = with_size(write_clip(moving(3, 480, 640), "mp4"), 64, 48)
    assert decoding().refusal(clip)[0] == "undecodable"


def test_a_table_of_samples_that_cannot_be_is_refused() -> None:
    """A header of a kilobyte that names 100 million samples would make FFmpeg take gigabytes."""
    clip = CLIPS["mp4"]
    place = clip.index(b"stsz") + 8
    bomb = clip[:place] + struct.pack(">II", 1, 100_000_000) + clip[place + 8 :]
    live = write_clip(moving(5), container_options={"movflags": "frag_keyframe+empty_moov"})
    place = live.index(b"trun") + 4
    fragment = live[:place] + struct.pack(">II", 0, 100_000_000) + live[place + 8 :]
    hidden = (
        clip + struct.pack(">I4sIIII", 24, b"xyzw", 16, 0x7374737A, 0, 1) + struct.pack(">I", 100_000_000)
    )
    hidden = hidden[: len(clip)] + struct.pack(">I", len(hidden) - len(clip)) + hidden[len(clip) + 4 :]
    for value in (bomb, fragment, hidden):
        reason, message = decoding().refusal(value)
        assert (reason, "more samples than the file can hold" in message) == ("undecodable", True)


def test_a_second_header_does_not_count() -> None:
    """Size and length are those of the first header, which is the one that FFmpeg reads; a compressed one is refused."""
    clip = CLIPS["mp4"]
    place = clip.index(b"moov") - 4
    header = clip[place:]
    assert peek(clip + with_duration(with_size(clip, 16, 16), 1)[place:]) == peek(clip)
    assert (
        "compressed"
        in decoding().refusal(header.replace(b"udta", b"cmov").join([b"", clip[:place]]) or clip)[1]
    )


def with_duration(clip: bytes, seconds: float) -> bytes:
    """An MP4 file whose video track says another duration."""
    place = clip.index(b"mdhd") + 4 + 12
    scale = int.from_bytes(clip[place : place + 4], "big")
    return clip[: place + 4] + struct.pack(">I", int(seconds * scale)) + clip[place + 8 :]


def test_a_long_clip_is_refused_by_its_header() -> None:
    """More pictures than max_frames at this rate: too_large, before anything is decoded; the message names both."""
    hours = with_duration(CLIPS["mp4"], 7200)
    one = decoding(fps=1, max_frames=300)
    reason, message = one.refusal(hours)
    assert (reason, "7200 pictures at fps: 1; preprocess.video.max_frames is 300" in message) == (
        "too_large",
        True,
    )
    with pytest.raises(Reject):
        one.decoder.cost(hours)
    assert len(pictures(CLIPS["mp4"], fps=10, max_frames=25)[0]) == 25
    assert decoding(fps=10, max_frames=24).refusal(CLIPS["mp4"])[0] == "too_large"


def test_a_header_that_says_too_little_gives_no_more_pictures() -> None:
    """No more items are made than were charged for: a clip longer than its header says is refused."""
    reason, message = decoding(fps=10).refusal(with_duration(CLIPS["mp4"], 1))
    assert (reason, "although its header says 1 s" in message) == ("too_large", True)


def test_a_clip_that_was_written_live_is_bounded_all_the_same() -> None:
    """Fragmented MP4 and live WebM say no duration: they count as max_frames, or as what half of the budget holds."""
    live = write_clip(moving(25), container_options={"movflags": "frag_keyframe+empty_moov"})
    assert peek(live).duration_s is None
    assert np.allclose(pictures(live, fps=2)[0], [0, 0.5, 1, 1.5, 2])
    assert decoding(fps=10, max_frames=24).refusal(live)[0] == "too_large"
    small = decoding(("N", 480, 640, 3), fps=10, limits={"in_flight_bytes": 40 << 20})
    reason, message = small.refusal(live)
    assert (reason, "half of limits.in_flight_bytes" in message) == ("too_large", True)


def test_every_picture_is_charged() -> None:
    """The byte budget counts the items of all pictures, with their copies, before the decode."""
    one, more = decoding(fps=1), decoding(fps=10)
    item = 48 * 64 * 3
    assert more.decoder.cost(CLIPS["mp4"]) - one.decoder.cost(CLIPS["mp4"]) >= (25 - 3) * 2 * item
    tight = decoding(("N", 480, 640, 3), fps=10, limits={"in_flight_bytes": 40 << 20})
    assert tight.refusal(CLIPS["mp4"])[0] == "too_large"


def test_a_decode_ends_in_time() -> None:
    """A clip whose decode would take half of a batch's time-out is refused: the batch would end the process."""
    one = decoding(fps=10, limits={"batch_timeout_s": 1e-9})
    reason, message = one.refusal(CLIPS["mp4"])
    assert (reason, "decoding the clip takes longer" in message) == ("too_large", True)


def test_another_coding_is_named() -> None:
    """What FFmpeg could read but no clip of today has is refused by name."""
    assert "coded as flv" in decoding().refusal(write_clip(moving(3), "avi", "flv"))[1]


def test_without_pyav_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV is an extra; only pipelines with clips need it."""
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"preprocess.video needs av: pip install 'streaminfer\[video\]'"):
        decoding()


@pytest.mark.parametrize(
    "preprocess",
    [
        {"video": {"fps": 2, "max_frames": 9}, "image": {"size": [48, 64]}},
        {
            "inputs": {
                "x": {"from": "value", "video": {"fps": 2, "max_frames": 9}, "image": {"size": [48, 64]}}
            }
        },
    ],
)
def test_image_stands_beside_video(preprocess: dict[str, Any]) -> None:
    """What is written is read, and a dump of it reads the same."""
    document = {
        "input": {"topics": ["in"], "format": "video"},
        "model": {"path": "model.onnx"},
        "output": {"topic": "out"},
        "preprocess": preprocess,
    }
    first = PipelineSettings.model_validate(document)
    again = PipelineSettings.model_validate(first.model_dump(mode="json", by_alias=True))
    assert first.preprocess == again.preprocess
    assert first.preprocess.contents[0].name == "video"
    assert first.preprocess.contents[0].options.image.size == (48, 64)  # type: ignore[attr-defined]


def answered(folder: Path, clip: bytes, preprocess: dict[str, Any], **settings: Any) -> list[Any]:
    """The predictions for a clip by ``model.onnx``, loaded and run as the worker does it."""
    document = {
        "input": {"topics": ["in"], "format": "video"},
        "preprocess": preprocess,
        "model": {"path": "model.onnx", "threads": 1},
        "batching": {"max_size": 2},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:9", "group.id": "g"},
        **settings,
    }
    (one,) = load(validate(document, folder)).values()
    assert one.choose().batch_records == 1
    columns = columns_of(Partition("in", 0), [0], [clip])
    batch = Batch(None, [0], columns, one.route, one.choose(), 1, 1.0)
    pool = InlinePool(Engine(), Mailbox())
    pool.submit(batch)
    (back,) = pool.collect()
    assert back.error is None
    assert batch.outcomes is not None
    assert not batch.outcomes.rejected, batch.outcomes.rejected
    found: list[Any] = json.loads(batch.outcomes.bodies[0] or b"")["predictions"]
    return found


def test_each_picture_has_a_prediction_with_its_time(tmp_path: Path) -> None:
    """Through a loaded model: `predictions` has an entry for each picture, with `time_s`, in runs of at most max_size."""
    models.write(tmp_path, models.image(size=None))
    image = {"size": [28, 28], "scale": 1 / 255}
    found = answered(tmp_path, CLIPS["mp4"], {"video": {"fps": 2}, "image": image})
    assert [entry["time_s"] for entry in found] == [0, 0.5, 1, 1.5, 2]
    assert len({json.dumps(entry["outputs"]) for entry in found}) == 5


def test_boxes_are_in_the_pixels_of_the_clip(tmp_path: Path) -> None:
    """A detector's boxes for every picture of a clip find back through the letterbox: 64 x 48 stands 24 high in 32 x 32."""
    head = np.array([[16, 16, 8, 8, 0.9, 0.1]], np.float32).T @ np.ones((1, 12), np.float32)
    models.write(tmp_path, models.detector(head, little=0.0))
    found = answered(
        tmp_path,
        CLIPS["mp4"],
        {"video": {"fps": 1}, "image": {"resize": "letterbox"}},
        postprocess={"detection": {"layout": "yolov8"}},
    )
    assert len(found) == 3
    for entry in found:
        (box,) = entry["boxes"]
        assert box["xyxy"] == [24, 16, 40, 32]
