"""Windows over records: which record completes one, what a hand-over needs, how samples are read."""

from __future__ import annotations

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.batch import Columns, Feed
from worker.cli.main import main
from worker.errors import ConfigError, Reject
from worker.loop.caution import Note
from worker.loop.series import Marks, Rules, Sample, Series, with_marks
from worker.model.signature import Signature, TensorSpec
from worker.records import decoder
from worker.records.windowed import SampleReader, WindowedDecoder
from worker.settings import LimitsSettings, PipelineSettings, validate

RULES = Rules(size=3, hop=2, keys=2, within=10)


def fed(series: Series, *records: tuple[int, str], until: int = 0) -> list[tuple[int, str]]:
    """(offset, window as text) of each window that these records complete; samples are the offsets."""
    found = []
    for offset, key in records:
        window = series.feed(offset, key, b"%d" % offset)
        series.next_offset = offset + 1
        if window is not None and offset >= until:
            found.append((offset, b",".join(window).decode()))
    return found


def test_each_series_has_its_own_windows() -> None:
    """A window is complete with its last sample; the next one begins `hop` samples later."""
    series = Series(RULES, Marks(0))
    assert fed(series, (0, "a"), (1, "b"), (2, "a"), (4, "b"), (5, "a"), (7, "a"), (8, "a"), (9, "b")) == [
        (5, "0,2,5"),
        (8, "5,7,8"),
        (9, "1,4,9"),
    ]


def test_a_tombstone_begins_anew() -> None:
    """After a tombstone of its key a series has no samples."""
    series = Series(RULES, Marks(0))
    fed(series, (0, "a"), (1, "a"))
    series.forget("a")
    assert fed(series, (2, "a"), (3, "a"), (4, "a")) == [(4, "2,3,4")]
    assert Series(RULES, Marks(0)).nbytes == 0


def test_a_window_that_takes_too_long_is_given_up() -> None:
    """A window that is incomplete `within` offsets after its first record begins anew, and holds nothing up."""
    series = Series(RULES, Marks(0))
    fed(series, (0, "a"), (1, "a"), (11, "b"))
    assert series.marks() == Marks(12, (11,))
    assert fed(series, (12, "a"), (13, "a"), (14, "a")) == [(14, "12,13,14")]


def test_there_is_an_end_to_incomplete_windows() -> None:
    """A record that would begin one window too many is refused; a complete or an old one makes room."""
    series = Series(RULES, Marks(0))
    fed(series, (0, "a"), (1, "b"))
    with pytest.raises(Reject, match="2 windows of this partition are incomplete"):
        series.feed(2, "c", b"")
    fed(series, (11, "c"))
    with pytest.raises(Reject, match=r"limits\.in_flight_bytes"):
        Series(RULES, Marks(0)).feed(0, "a", b"", may_grow=False)


STREAM = st.lists(st.tuples(st.integers(1, 4), st.sampled_from("abc")), max_size=60)


@given(
    STREAM, st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.sampled_from([3, 1_000]), st.data()
)
@settings(max_examples=300, deadline=None)
def test_whoever_goes_on_from_marks_finds_the_same_windows(
    stream: list[tuple[int, str]], size: int, hop: int, keys: int, within: int, data: Any
) -> None:
    """From any marks on, at or before the position, the windows are those of one reader; what is answered is not again."""
    rules = Rules(size, min(hop, size), keys, within)
    records: list[tuple[int, str]] = []
    for gap, key in stream:
        records.append(((records[-1][0] if records else 0) + gap, key))

    def run(series: Series, part: list[tuple[int, str]], until: int = 0) -> list[tuple[int, str]]:
        found = []
        for record in part:
            try:
                found += fed(series, record, until=until)
            except Reject:
                found.append((record[0], "refused"))
                series.next_offset = record[0] + 1
        return [each for each in found if each[0] >= until]

    everything = run(Series(rules, Marks(0)), records)
    cut = data.draw(st.integers(0, len(records)))
    first = Series(rules, Marks(0))
    run(first, records[:cut])
    marks = Marks.parse(with_marks("", first.marks()))
    assert marks is not None
    later = data.draw(st.integers(cut, len(records)))
    position = records[later][0] if later < len(records) else 10_000
    again = [record for record in records if record[0] >= marks.first]
    assert run(Series(rules, marks), again, position) == [each for each in everything if each[0] >= position]


@given(st.sets(st.integers(0, 3_000_000), max_size=200), st.integers(0, 5), st.text(max_size=3))
@settings(max_examples=200, deadline=None)
def test_marks_travel_beside_a_note(offsets: set[int], attempts: int, garbage: str) -> None:
    """What is written into the metadata of a commit is read from it, with a note before it and without, whatever follows."""
    marks = Marks(3_000_001, tuple(sorted(offsets)))
    note = Note(attempts, 12, 3, timed_out=True)
    assert Marks.parse(with_marks(str(note), marks)) == marks
    assert Note.parse(with_marks(str(note), marks)) == note
    assert Marks.parse(with_marks("", marks)) == marks
    assert Note.parse(with_marks("", marks)) is None
    assert Marks.parse(str(note)) is None
    behind = with_marks(str(note), marks) + garbage
    assert (Marks.parse(behind), Note.parse(behind)) == (marks, note)


def test_as_many_marks_as_allowed_fit_into_a_commit() -> None:
    """The metadata of a commit holds at most 4,096 bytes, which is enough for the most windows over the widest span."""
    widest = np.random.default_rng(0).choice(2_000_000, 1_200, replace=False)
    uneven = [*range(1_000), *range(10_000, 2_000_000, 10_000)]
    for offsets in (widest, uneven[:1_200], [*range(0, 1_200 * 128, 128)], [*range(0, 1_200 * 1_600, 1_600)]):
        text = with_marks(str(Note(3, 10**12, 10**12, True)), Marks(10**12, tuple(sorted(map(int, offsets)))))
        assert len(text) <= 4_096


# -- samples -------------------------------------------------------------------------------------------


def windowed(shape: Any, input_format: str = "json", kind: str = "float", **given: Any) -> WindowedDecoder:
    given.setdefault("window", {"size": 3, "hop": 1})
    spec = TensorSpec.of("x", f"tensor({kind})", shape)
    document = {
        "input": {"topics": ["in"], "format": input_format, **given},
        "model": {"path": "model.onnx"},
        "output": {"topic": "out"},
    }
    made = decoder(PipelineSettings.model_validate(document), Signature((spec,), (), True), LimitsSettings())
    assert isinstance(made, WindowedDecoder)
    return made


def read(
    one: WindowedDecoder, values: list[bytes], keys: list[bytes | None] | None = None, by: str = "key"
) -> list[tuple[Hashable, bytes] | Reject]:
    return SampleReader(one.samples, one.sample, by, 1_000).read(values, keys or [b"k"] * len(values))


def decode(one: WindowedDecoder, *values: bytes) -> Feed:
    count = len(values)
    arrays = {"x": np.zeros((count, 3, 2), np.float32)} if one.fixed else None
    feed = Feed(arrays, [None] * count, [None] * count)
    one.decode([*values], Columns([*values]), feed, 0, count)
    return feed


@pytest.mark.parametrize("shape", [("N", 3, 2), ("N", None, 2)])
def test_a_window_is_its_samples_in_their_order(shape: Any) -> None:
    """An item is the samples of its window, each decoded once; the record itself stays as it was."""
    one = windowed(shape, fields=["a", "b.c"])
    values = [json.dumps({"a": i, "b": {"c": -i}}).encode() for i in range(3)]
    samples = [found[1] for found in read(one, values) if not isinstance(found, Reject)]
    last = Sample(values[2])
    last.window = tuple(samples)
    feed = decode(one, last)
    found = feed.arrays["x"][0] if feed.arrays is not None else feed.items[0].arrays["x"][0]  # type: ignore[union-attr]
    assert found.tolist() == [[0, 0], [1, -1], [2, -2]]
    assert last == values[2]


def test_what_is_no_sample_is_refused_alone() -> None:
    """A record that cannot be decoded, has no key or is too long is refused by itself."""
    one = windowed(("N", 3, 2))
    good = b'{"features": [1, 2]}'
    found = read(
        one, [good, b"x", good, b'{"features": [1]}', good + b" " * 1_000], [b"a", b"b", None, b"d", b"e"]
    )
    assert found[0] == (b"a", np.float32([1, 2]).tobytes())
    refused = [(each.reason, str(each)) for each in found[1:] if isinstance(each, Reject)]
    assert [reason for reason, _ in refused] == ["undecodable", "invalid", "invalid", "too_large"]
    assert "the record has no key" in refused[1][1]


def test_a_field_may_name_the_series() -> None:
    """`by` takes a path to text or a number; `1` and `"1"` are two series."""
    one = windowed(("N", 3), fields=["v"])
    values = [
        b'{"v": 1, "s": {"id": 1}}',
        b'{"v": 1, "s": {"id": "1"}}',
        b'{"v": 1}',
        b'{"v": 1, "s": {"id": []}}',
    ]
    found = read(one, values, by="s.id")
    keys = [each[0] for each in found if not isinstance(each, Reject)]
    assert len(set(keys)) == 2
    assert [str(each) for each in found if isinstance(each, Reject)] == [
        'the field "s.id" is missing; input.window.by expects the name of the series there',
        'the field "s.id" is no text and no number; input.window.by expects the name of the series there',
    ]


def test_raw_tensors_may_be_samples() -> None:
    """With input.format tensor a record is the bytes of one sample."""
    one = windowed(("N", 3, 2), "tensor")
    value = np.float32([1, 2]).tobytes()
    assert read(one, [value, b"123"])[0] == (b"k", value)


def test_a_sample_for_check_is_the_records_of_one_window() -> None:
    """`check --sample` takes a file with the records of one window, one in each line."""
    one = windowed(("N", 3, 2))
    feed = decode(one, b'{"features": [1, 2]}\n{"features": [3, 4]}\n\n{"features": [5, 6]}\n')
    assert feed.arrays is not None
    assert feed.arrays["x"][0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert "got 1 lines, expected a window of 3" in decode(one, b"{}").rejected[0].message
    assert decode(one, b"{}\n{}\n{}").rejected[0].message == 'line 1: the field "features" is missing'


def test_the_example_answers_its_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """examples/readings.yaml answers the window in its sample, and check says what the model is fed from."""
    model = models.write(tmp_path, models.identity(shape=("N", 4, 3)))
    monkeypatch.setenv("MODEL", str(model))
    folder = Path(__file__).parents[2] / "examples"
    command = [
        "check",
        str(folder / "readings.yaml"),
        "--offline",
        "--sample",
        str(folder / "readings.jsonl"),
    ]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert '"y": [[20.5, 0.1, 0.0], [20.6, 0.2, 0.1], [21.0, 0.1, 0.1], [24.5, 0.9, 0.7]]' in printed
    assert "windows of 4 samples, each the fields temperature, vibration.x, vibration.y" in printed


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"when": {"header": "a", "equals": "b"}}, "input.window: expected a topic of its own"),
        (
            {"input": {"format": "image"}},
            "input.window: goes with input.format json or tensor only, got 'image'",
        ),
        (
            {"input": {"format": "tensor", "window": {"by": "a", "size": 2}}},
            "input.window.by: got 'a', expected key",
        ),
        ({"input": {"keep": "latest"}}, "input.window: goes with input.keep all only"),
        ({"input": {"window": {"size": 2, "hop": 3}}}, "expected hop of at most size, 2"),
        ({"input": {"window": {"size": 2, "keys": 2_000}}}, "input.window.keys: got 2000"),
    ],
)
def test_settings_that_cannot_be_windows_are_refused(change: dict[str, Any], sentence: str) -> None:
    """A pipeline that shares its topic, another format, or a hop beyond the size is one sentence at start."""
    document: dict[str, Any] = {
        "name": "a",
        "model": {"path": "m.onnx"},
        "output": {"topic": "out"},
        "dead_letter": {"topic": "dead"},
        "kafka": {"bootstrap.servers": "localhost:1", "group.id": "g"},
        **change,
    }
    document["input"] = {"topics": ["in"], "format": "json", "window": {"size": 2}, **change.get("input", {})}
    with pytest.raises(ConfigError) as caught:
        validate(document, Path.cwd())
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "given", "sentence"),
    [
        (("N", 4, 2), {}, "input.window.size: got 3, but an item of the model's input x is FP32 [4, 2]"),
        (("N",), {}, "input.window.size: got 3"),
        (("N", 3, None), {}, "expected a known shape of a sample"),
        (("N", 3, 2), {"fields": ["a"]}, "input.fields: got 1 fields"),
    ],
)
def test_windows_that_do_not_fit_the_model_are_refused(shape: Any, given: Any, sentence: str) -> None:
    """A model whose items are no such windows is one sentence at start."""
    with pytest.raises(ConfigError) as caught:
        windowed(shape, **given)
    assert sentence in str(caught.value)
