"""Results and labels of a few partitions: what makes a pair, what becomes of the rest, and what is committed."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from jsonschema import Draft202012Validator

from worker.cli.score_table import table
from worker.errors import ConfigError
from worker.scoring import notes
from worker.scoring.joiner import Group, Mark
from worker.scoring.reading import Rules
from worker.scoring.records import Before, before
from worker.scoring.scorer import Bounds, Scorer
from worker.settings import scored_pipelines, validate
from worker.telemetry.quality import View, lines, routes

ROOT = Path(__file__).resolve().parents[2]
WAIT_S, WINDOW_S = 60, 600
PARTS = ("input", "preprocess", "model", "batching", "postprocess", "output")
WORKER = {"id": "score-1", "group": "digits.score", "host": "host", "pid": 1, "version": "0.1.0"}
OUT, LABELS = "digits.predictions", "digits.labels"


@dataclass
class Message:
    """A record as the client gives it."""

    log: str
    at: int
    held: Any
    id: bytes | None = None
    seconds: float = 0.0
    number: int = 0
    headed: Sequence[tuple[str, bytes]] = ()

    def topic(self) -> str:
        return self.log

    def partition(self) -> int:
        return self.number

    def offset(self) -> int:
        return self.at

    def timestamp(self) -> tuple[int, int]:
        return 1, int(self.seconds * 1000)

    def key(self) -> bytes | None:
        return self.id

    def value(self) -> bytes | None:
        return self.held if isinstance(self.held, bytes | None) else orjson.dumps(self.held)

    def headers(self) -> Sequence[tuple[str, bytes]]:
        return self.headed


def result(at: int, key: str | None, label: str = "7", seconds: float = 0.0, **more: Any) -> Message:
    model = {"name": "digits", "version": "3f9c2a71"}
    document = {"id": f"digits/0/{at}", "model": model, "prediction": {"label": label}, **more}
    return Message(OUT, at, document, key.encode() if key is not None else None, seconds)


def label(at: int, key: str | None, true: Any = "7", seconds: float = 0.0, **more: Any) -> Message:
    return Message(LABELS, at, {"label": true, **more}, key.encode() if key is not None else None, seconds)


def scoring(id_: str = "key", max_pending: int = 1_000, field: str = "label", partitions: int = 1) -> Scorer:
    """A scorer that owns new partitions from their beginning."""
    rules = Rules({OUT: {"": "digits"}}, LABELS, id_, field)
    scorer = Scorer(rules, Bounds(WAIT_S * 1000, WINDOW_S * 1000, max_pending), WORKER)
    for number in range(partitions):
        start = {topic: (Mark(0), "") for topic in (OUT, LABELS)}
        scorer.own(number, start, {OUT: 0, LABELS: 0}, Before(), 100)
    return scorer


def always(_topic: str) -> bool:
    return True


def positions(scorer: Scorer) -> tuple[int, int]:
    """What would be committed of the results and the labels."""
    (due,) = scorer.due(0)
    assert scorer.due(0) == []  # nothing has changed since
    commits = due.commits(LABELS, None)
    return commits[OUT][0], commits[LABELS][0]


def the(scorer: Scorer) -> Any:
    ((_, tally),) = scorer.totals().items()
    return tally


@pytest.mark.parametrize("order", [1, -1])
def test_a_result_and_its_label_make_a_pair(order: int) -> None:
    """Whichever comes first, a result and the label with its key are one pair."""
    scorer = scoring()
    scorer.take([result(0, "a"), label(0, "a")][::order])
    assert (the(scorer).labelled, the(scorer).correct) == (1, 1)
    assert positions(scorer) == (1, 1)


def test_the_committed_position_is_the_oldest_that_waits() -> None:
    """Of ten results the third waits: its offset is committed, and the later ones are not counted yet."""
    scorer = scoring()
    scorer.take([result(n, f"k{n}") for n in range(10)])
    scorer.take([label(n, f"k{n}") for n in range(10) if n != 2])
    (due,) = scorer.due(0)
    assert due.commits(LABELS, None)[OUT][0] == 2
    record = orjson.loads(due.value or b"")
    ((_, version),) = record["pipelines"]["digits"].items()
    assert (version["total"]["results"], version["live"]["results"]) == (2, 9)
    scorer.take([label(9, "k2")])
    assert positions(scorer) == (10, 10)
    assert the(scorer).results == 10


@pytest.mark.parametrize(
    ("id_", "found"),
    [
        ("key", label(0, "k0")),
        ("header:ticket", Message(LABELS, 0, {"label": "7"}, headed=[("ticket", b"digits/0/0")])),
        ("result.id", Message(LABELS, 0, {"label": "7", "result": {"id": "digits/0/0"}})),
    ],
)
def test_a_label_names_its_result(id_: str, found: Message) -> None:
    """By its key a label names the result's key; by a header or a field it names the result's id."""
    scorer = scoring(id_)
    scorer.take([result(0, "k0"), found])
    assert the(scorer).labelled == 1


def test_without_a_key_the_id_counts() -> None:
    """A result without a key is found by labels whose key is its id."""
    scorer = scoring()
    scorer.take([result(0, None), label(0, "digits/0/0")])
    assert the(scorer).labelled == 1


def test_long_ids_differ() -> None:
    """Ids of a thousand characters that differ at their end are two ids."""
    scorer = scoring()
    scorer.take([result(0, "x" * 1000 + "a"), result(1, "x" * 1000 + "b"), label(0, "x" * 1000 + "b")])
    assert the(scorer).labelled == 1
    assert scorer.waiting() == (1, 0)


def test_the_first_label_counts() -> None:
    """A second label and a second result with the same id are counted as duplicates and change nothing."""
    scorer = scoring()
    scorer.take([result(0, "a"), label(0, "a", "7"), label(1, "a", "1"), result(1, "a", "1")])
    assert (the(scorer).results, the(scorer).correct) == (1, 1)
    assert scorer.counts() == {"labels_duplicate": 1, "results_duplicate": 1}


def test_waiting_ends() -> None:
    """After wait_s a result counts as unlabelled and a label as unmatched; a label that comes then is late."""
    scorer = scoring()
    scorer.take([result(0, "a", seconds=0), label(0, "b", seconds=0)])
    assert not scorer.expiring(0, WAIT_S * 1000)
    scorer.expire(0, WAIT_S * 1000, always)
    assert scorer.waiting() == (1, 1)
    scorer.expire(0, WAIT_S * 1000 + 1, always)
    assert scorer.waiting() == (0, 0)
    scorer.take([label(1, "a", seconds=WAIT_S + 1)])
    assert (the(scorer).unlabelled, the(scorer).labelled) == (1, 0)
    assert scorer.counts() == {"labels_unmatched": 1, "labels_late": 1}
    assert positions(scorer) == (1, 2)


def test_the_clock_of_a_backlog_is_its_records() -> None:
    """While labels of yesterday are still to be read, results of yesterday wait for them, whatever the clock says."""
    scorer = scoring()
    scorer.take([result(0, "a", seconds=0), label(0, "b", seconds=WAIT_S - 1)])
    scorer.expire(0, 86_400_000, lambda topic: topic != LABELS)
    assert scorer.waiting()[0] == 1


def test_a_label_outside_the_wait_makes_no_pair() -> None:
    """A label whose timestamp is further from its result's than wait_s is late, even if the result still waits."""
    scorer = scoring()
    scorer.take([result(0, "a", seconds=0), label(0, "a", seconds=WAIT_S + 1)])
    assert scorer.waiting() == (1, 0)
    assert scorer.counts() == {"labels_late": 1}


def test_memory_is_bounded_by_giving_up_the_oldest() -> None:
    """With max_pending 100, of 250 results without labels the oldest 150 are given up and counted."""
    scorer = scoring(max_pending=100)
    scorer.take([result(n, f"k{n}", seconds=n / 1000) for n in range(250)])
    assert scorer.waiting() == (100, 0)
    assert the(scorer).given_up == 150
    assert positions(scorer)[0] == 150


def test_one_that_waits_does_not_hold_everything() -> None:
    """Results behind one that waits are held; beyond four times max_pending the one that waits is given up."""
    scorer = scoring(max_pending=100)
    scorer.take([result(0, "never")])
    for n in range(1, 500):
        scorer.take([result(n, f"k{n}"), label(n - 1, f"k{n}")])
    assert scorer.crowded or the(scorer).given_up == 1
    assert positions(scorer) == (500, 499)


def test_who_is_ahead_is_not_read() -> None:
    """When much waits, the topic that is ahead in time is held back, unless the others have ended."""
    scorer = scoring(max_pending=100)
    scorer.take([result(0, "x", seconds=1), *(label(n, f"k{n}", seconds=10 + n) for n in range(60))])
    assert scorer.ahead(0, lambda _topic: False) == [LABELS]
    assert scorer.ahead(0, always) == []
    assert scorer.ahead(0, lambda topic: topic == OUT) == []
    few = scoring(max_pending=1_000)
    few.take([label(n, f"k{n}") for n in range(60)])
    assert few.ahead(0, lambda _topic: False) == []


@pytest.mark.parametrize(
    ("message", "what"),
    [
        (Message(LABELS, 0, b"no JSON", b"a"), "labels_invalid"),
        (Message(LABELS, 0, None, b"a"), "labels_invalid"),
        (Message(LABELS, 0, {"label": None}, b"a"), "labels_invalid"),
        (Message(LABELS, 0, {"label": "7"}), "labels_invalid"),
        (Message(OUT, 0, b"\xff", b"a"), "results_unreadable"),
        (Message(OUT, 0, [1], b"a"), "results_unreadable"),
        (Message(OUT, 0, {"prediction": {"label": "7"}}, b"a"), "results_unreadable"),
        (Message(OUT, 0, None, b"a"), "results_unanswered"),
        (Message(OUT, 0, {"id": "r", "error": "no"}, b"a"), "results_unanswered"),
    ],
)
def test_what_cannot_be_read_is_counted(message: Message, what: str) -> None:
    """A record that is no result or no label is left out, counted, and passed by the committed position."""
    scorer = scoring()
    scorer.take([message])
    assert scorer.counts() == {what: 1}
    assert positions(scorer) == ((1, 0) if message.log == OUT else (0, 1))


def test_no_record_stops_it() -> None:
    """Two thousand records of arbitrary JSON, as predictions, models, ids and labels, are each scored, left out or waiting."""
    rng = random.Random(8)
    scorer = scoring(max_pending=50)
    for at in range(2_000):
        key = rng.choice(["a", "b", "c", str(at), None])
        if rng.random() < 0.5:
            odd = {
                name: anything(rng) for name in ("prediction", "model", "predictions") if rng.random() < 0.4
            }
            scorer.take([result(at, key, seconds=rng.choice([0, at, 1e12]), **odd)])
        else:
            scorer.take([label(at, key, anything(rng), rng.choice([0, at, 1e12]))])
        if at % 50 == 0:
            scorer.expire(0, at * 1000, always)
            for due in scorer.due(at):
                assert due.value is None or before(due.value, 0) is not None
    assert scorer.totals()
    assert "\n".join(table(View(scorer.totals(), scorer.windows(), scorer.counts(), scorer.waiting())))


def anything(rng: random.Random, depth: int = 2) -> Any:
    """Some JSON value, often in a form that predictions have."""
    plain: list[Any] = [None, True, -1, 7, 2.5, 1e300, "", "7", "\u0000", "x" * 300, [], {}]
    if depth == 0 or rng.random() < 0.4:
        return rng.choice(plain)
    inner = [anything(rng, depth - 1) for _ in range(rng.randrange(4))]
    names = ["label", "value", "values", "boxes", "xyxy", "score", "text", "anomaly", "name", "version"]
    return rng.choice([inner, {rng.choice(names): each for each in inner}])


def test_windows_are_of_the_results_time() -> None:
    """A label that comes in the next window counts in the window of its result."""
    scorer = scoring()
    scorer.take([result(0, "a", seconds=WINDOW_S - 1), label(0, "a", seconds=WINDOW_S + 1)])
    assert [*scorer.windows()] == [Group("digits", "3f9c2a71", 0)]


def test_a_record_says_what_came_before() -> None:
    """The next owner of a partition finds the totals in its last record, and the place of that in the note."""
    scorer = scoring()
    scorer.take([result(0, "a"), label(0, "a"), label(1, "a")])
    (due,) = scorer.due(5)
    mark, last = notes.read(*due.commits(LABELS, "3/17")[LABELS])
    assert (mark.position, mark.read, last) == (2, 2, "3/17")
    found = before(due.value or b"", 0)
    assert found is not None
    assert found.settled[("digits", "3f9c2a71")].correct == 1
    assert found.counts == {"labels_duplicate": 1}
    assert before(due.value or b"", 1) is None
    assert before(b"[]", 0) is None
    assert notes.read(9, "of another program") == (Mark(9, 9, 0), "")


def test_a_record_fits_its_schema() -> None:
    """Quality records of classes, numbers and boxes fit the published schema."""
    schema = json.loads((ROOT / "schemas" / "quality.schema.json").read_text())
    box = [{"label": "cat", "score": 0.9, "xyxy": [1, 2, 30, 40]}]
    predictions: list[tuple[Any, Any]] = [({"label": "7"}, 7), ({"value": 2.0}, 1.5), ({"boxes": box}, box)]
    for prediction, true in predictions:
        scorer = scoring()
        scorer.take([result(0, "a", prediction=prediction), label(0, "a", true), label(1, "x")])
        (due,) = scorer.due(5)
        Draft202012Validator(schema).validate(json.loads(due.value or b""))


def test_the_table_and_the_metrics_say_the_same() -> None:
    """The table, the JSON lines and the Prometheus text show the counts of the records."""
    scorer = scoring()
    scorer.take(
        [result(n, f"k{n}", "7" if n else "1") for n in range(8)] + [label(n, f"k{n}") for n in range(8)]
    )
    view = View(scorer.totals(), scorer.windows(), scorer.counts(), scorer.waiting(), 10**15)
    shown = "\n".join(table(view))
    assert "accuracy 87.500 %" in shown
    assert "waiting: 0 results, 0 labels" in shown
    assert "waiting: 1 result, 2 labels" in table(View(waiting=(1, 2)))
    window, total, summary = lines(view, WINDOW_S * 1000)
    assert (window["correct"], total["correct"], total["accuracy"]) == (7, 7, 0.875)
    assert summary["waiting"] == {"results": 0, "labels": 0}
    answer: Any = routes(lambda: view, lambda: True, lambda: True, WINDOW_S * 1000)["/metrics"]()
    text = answer.body.decode()
    of = 'pipeline="digits",version="3f9c2a71"'
    assert f"streaminfer_quality_accuracy{{{of}}} 0.875\n" in text
    assert f"streaminfer_quality_window_accuracy{{{of}}} 0.875\n" in text
    assert f'streaminfer_quality_results{{outcome="labelled",{of}}} 8.0\n' in text
    assert f'streaminfer_quality_confusion{{class="7",{of[:17]},predicted="1",{of[18:]}}} 1.0\n' in text
    assert table(View()) == ["no result has a label yet", "", "waiting: 0 results, 0 labels"]


# -- settings ------------------------------------------------------------------------------------------------------


def configured(**changes: Any) -> Any:
    document = yaml.safe_load((ROOT / "examples" / "digits.yaml").read_text())
    return validate({**document, "labels": {"topic": LABELS}, **changes}, ROOT / "examples")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"labels": {}}, "labels.topic is required"),
        ({"labels": {"topic": "digits.predictions"}}, "labels.topic: got 'digits.predictions'"),
        ({"labels": {"topic": "l", "id": "header:"}}, "labels.id: got 'header:', expected key"),
        ({"labels": {"topic": "l", "wait_s": 0}}, "labels.wait_s"),
        ({"labels": {"topic": "l", "waits": 5}}, "labels.wait_s"),
        ({"postprocess": "raw"}, "labels: no pipeline has results that labels can be compared with: "),
        ({"postprocess": {"embedding": {}}}, "has the postprocess embedding, expected classification"),
    ],
)
def test_labels_that_cannot_work_are_refused(changes: dict[str, Any], sentence: str) -> None:
    """Labels without a topic, of nothing that can be compared, or with a wrong id are one sentence that names the setting."""
    with pytest.raises(ConfigError, match=sentence.replace(".", r"\.")):
        configured(**changes)


def test_pipelines_that_cannot_be_scored_are_left_out() -> None:
    """Of two pipelines that share an output topic, the one whose results can be compared is scored, by its model's name."""
    document = yaml.safe_load((ROOT / "examples" / "digits.yaml").read_text())
    part = {key: document.pop(key) for key in PARTS}
    other = {**part, "input": {"topics": ["others"], "format": "image"}, "postprocess": "raw"}
    whole = {**document, "pipelines": {"digits": part, "faces": other}, "labels": {"topic": LABELS}}
    found, left_out = scored_pipelines(validate(whole, ROOT / "examples"))
    assert found == {part["output"]["topic"]: {"digits": "digits"}}
    assert left_out == {"faces": left_out["faces"]}
