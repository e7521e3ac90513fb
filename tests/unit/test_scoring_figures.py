"""The figures of live accuracy are those of scikit-learn, of SciPy, and of average precision written out by hand."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    mean_absolute_error,
    precision_recall_fscore_support,
    root_mean_squared_error,
)

from worker.scoring.boxes import Box, compare, iou
from worker.scoring.compare import NONE, Comparer
from worker.scoring.tally import MOST_CELLS, MOST_CLASSES, OTHER, Tally, figures, wilson

CLASSES = ["bird", "cat", "dog", "none of them"]


def tally_of(pairs: list[tuple[Any, Any]]) -> Tally:
    """The tally of (prediction, label) pairs, counted by the comparer."""
    comparer, tally = Comparer(), Tally()
    for prediction, label in pairs:
        tally.results += 1
        tally.labelled += 1
        comparer.compare(comparer.answer(prediction), comparer.truth(label)).into(tally)
    return tally


def test_classes_are_scored_as_scikit_learn_does() -> None:
    """Accuracy, confusion, precision, recall, F1 and support of every class equal scikit-learn's, unbalanced classes included."""
    rng = random.Random(1)
    true = rng.choices(CLASSES, [1, 5, 20, 2], k=3_000)
    said = [each if rng.random() < 0.7 else rng.choice(CLASSES[:3]) for each in true]
    found = figures(tally_of([({"label": s}, t) for s, t in zip(said, true, strict=True)]))
    assert found["accuracy"] == pytest.approx(accuracy_score(true, said), rel=1e-12)
    assert found["macro_f1"] == pytest.approx(f1_score(true, said, average="macro"), rel=1e-12)
    table = zip(*precision_recall_fscore_support(true, said, labels=CLASSES, zero_division=0.0), strict=True)
    for name, expected in zip(CLASSES, table, strict=True):
        its = found["classes"][name]
        assert [its["precision"], its["recall"], its["f1"], its["support"]] == pytest.approx([*expected])
    cells = tally_of([({"label": s}, t) for s, t in zip(said, true, strict=True)]).cells
    matrix = confusion_matrix(true, said, labels=CLASSES)
    assert {cell: count for cell, count in cells.items() if count} == {
        (t, s): matrix[i, j] for i, t in enumerate(CLASSES) for j, s in enumerate(CLASSES) if matrix[i, j]
    }


@pytest.mark.parametrize(("hits", "count"), [(0, 10), (10, 10), (1, 3), (870, 1000), (49_213, 50_000)])
def test_the_interval_is_wilsons(hits: int, count: int) -> None:
    """The 95 % interval of a share is the one that SciPy gives."""
    expected = binomtest(hits, count).proportion_ci(0.95, "wilson")
    assert wilson(hits, count) == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_numbers_are_scored_as_scikit_learn_does() -> None:
    """MAE, RMSE and bias equal scikit-learn's and NumPy's, for single values and for several of one result."""
    rng = np.random.default_rng(2)
    true, said = rng.normal(3, 2, 500), rng.normal(3, 2, 500)
    pairs = [({"value": float(s)}, float(t)) for s, t in zip(said[:300], true[:300], strict=True)]
    pairs += [({"values": [*map(float, said[300:])]}, [*map(float, true[300:])])]
    found = figures(tally_of(pairs))
    assert found["mae"] == pytest.approx(mean_absolute_error(true, said))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(true, said))
    assert found["bias"] == pytest.approx((said - true).mean())
    half = 1.959964 * np.abs(said - true).std() / np.sqrt(500)
    assert found["mae_95"] == pytest.approx([found["mae"] - half, found["mae"] + half])


def test_boxes_are_scored_as_written_out_by_hand() -> None:
    """mAP at 0.5, COCO's mAP over ten thresholds and mean IoU of 60 pictures of random boxes equal those of a plain COCO evaluation."""
    rng = random.Random(3)
    pictures = [picture(rng) for _ in range(60)]
    found = figures(tally_of([({"boxes": said}, true) for said, true in pictures]))
    expected_map, expected_iou = plain_coco(pictures, 0.5)
    assert 0.2 < expected_map < 0.9
    assert found["map_50"] == pytest.approx(expected_map, abs=1e-9)
    every = [plain_coco(pictures, 0.5 + step / 20)[0] for step in range(10)]
    assert max(every) > min(every) + 0.2
    assert found["map_50_95"] == pytest.approx(np.mean(every), abs=1e-9)
    assert found["mean_iou"] == pytest.approx(expected_iou)


def picture(rng: random.Random) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Found and true boxes: most found ones are true ones moved a little, some are made up, some are missing."""
    said, true = [], []
    for _ in range(rng.randrange(6)):
        x, y, w, h = (rng.uniform(5, 90) for _ in range(4))
        label = rng.choice("ab")
        true.append({"label": label, "xyxy": [x, y, x + w, y + h]})
        if rng.random() < 0.8:
            dx, dy = rng.gauss(0, w / 6), rng.gauss(0, h / 6)
            score = rng.randrange(1, 1_000) / 1_000
            said.append({"label": label, "score": score, "xyxy": [x + dx, y + dy, x + dx + w, y + dy + h]})
    for _ in range(rng.randrange(3)):
        x, y = rng.uniform(5, 90), rng.uniform(5, 90)
        said.append(
            {
                "label": rng.choice("ab"),
                "score": rng.randrange(1, 1_000) / 1_000,
                "xyxy": [x, y, x + 20, y + 9],
            }
        )
    return said, true


def plain_coco(pictures: list[Any], least: float) -> tuple[float, float]:
    """(mAP at an IoU, mean IoU of matches), by arrays of all detections of a class, as pycocotools does it."""
    precisions, ious = [], []
    for label in "ab":
        scores: list[float] = []
        hits: list[bool] = []
        truths = 0
        for said, true in pictures:
            gts = [box["xyxy"] for box in true if box["label"] == label]
            truths += len(gts)
            taken = [False] * len(gts)
            for box in sorted((b for b in said if b["label"] == label), key=lambda b: -b["score"]):
                best, at = least, -1
                for number, gt in enumerate(gts):
                    cover = plain_iou(box["xyxy"], gt)
                    if not taken[number] and cover >= best:
                        best, at = cover, number
                if at >= 0:
                    taken[at] = True
                    ious.append(best)
                scores.append(box["score"])
                hits.append(at >= 0)
        # boxes of one score count together: only the last of them has a precision of its own
        order = np.argsort(-np.array(scores), kind="mergesort")
        ranked, true_positives = np.array(scores)[order], np.cumsum(np.array(hits)[order])
        last = np.append(ranked[1:] != ranked[:-1], True)
        recall = true_positives[last] / truths
        precision = true_positives[last] / (np.arange(len(order)) + 1)[last]
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(recall, [point / 100 for point in range(101)], side="left")
        precisions.append(np.mean([envelope[place] if place < len(envelope) else 0.0 for place in places]))
    return float(np.mean(precisions)), float(np.mean(ious))


def plain_iou(a: list[float], b: list[float]) -> float:
    """By counting no pixels: width and height of the shared part."""
    w = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    h = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def test_one_true_box_matches_once() -> None:
    """Of two boxes over one true box only the one with the higher score matches; boxes without area match nothing."""
    here = (0.0, 0.0, 10.0, 10.0)
    counts = compare([Box("a", 0.5, here), Box("a", 0.9, here)], [Box("a", 1, here)])["a"]
    assert (counts.truths, counts.matched) == (1, 1)
    assert counts.plain()["scores"] == [[500, 1], [900, 1, *[1] * 10]]
    assert iou((5, 5, 5, 9), (0, 0, 9, 9)) == 0.0


@pytest.mark.parametrize(
    ("prediction", "label", "correct"),
    [
        ({"label": "7"}, 7, True),
        ({"label": "7"}, 7.0, True),
        ({"label": "7"}, "7", True),
        ({"label": "7"}, "1", False),
        ({"label": "true"}, True, True),
        ({"label": None, "score": None}, "7", False),
        ({"anomaly": True, "score": 3.5}, True, True),
        ({"anomaly": False, "score": 0.5}, "true", False),
        ({"text": "AB 12"}, "AB 12", True),
    ],
)
def test_a_class_is_its_text(prediction: dict[str, Any], label: Any, correct: bool) -> None:
    """7, 7.0 and "7" are one class, and so are true and "true"; a prediction of no class is wrong."""
    tally = tally_of([(prediction, label)])
    assert (tally.items, tally.correct) == (1, int(correct))


@pytest.mark.parametrize(
    ("prediction", "label"),
    [
        ({"label": "7"}, {"digit": 7}),
        ({"value": 2.5}, "much"),
        ({"value": 2.5}, float("nan")),
        ({"value": 2.5}, True),
        ({"values": [1.0, 2.0]}, [1.0]),
        ({"boxes": []}, "none"),
        ({"boxes": []}, [{"label": "cat", "xyxy": [1, 2, 3]}]),
        ({"embedding": [0.5]}, "7"),
    ],
)
def test_what_cannot_be_compared_is_no_mistake(prediction: dict[str, Any], label: Any) -> None:
    """A label of another kind than the prediction counts as unscored, and changes no figure."""
    tally = tally_of([(prediction, label)])
    assert (tally.unscored, tally.items, tally.numbers, tally.boxes) == (1, 0, 0, {})


def test_several_predictions_of_one_result_count_one_by_one() -> None:
    """Three predictions of one result and a list of three labels are three items of one labelled result."""
    comparer, tally = Comparer(), Tally()
    answers = [comparer.answer({"label": each}) for each in "abc"]
    comparer.compare(answers, ["a", "x", "c"]).into(tally)
    assert (tally.items, tally.correct) == (3, 2)


def test_tallies_add_up_and_come_back() -> None:
    """Tallies of two halves, written as plain data, read again and merged, say what the whole says."""
    rng = random.Random(4)
    pairs: list[tuple[Any, Any]] = [({"label": rng.choice("ab")}, rng.choice("ab")) for _ in range(50)]
    pairs += [({"value": rng.random()}, rng.random()) for _ in range(50)]
    pairs += [({"boxes": said}, true) for said, true in (picture(rng) for _ in range(20))]
    whole = tally_of(pairs)
    halves = Tally()
    for part in (pairs[::2], pairs[1::2]):
        half = tally_of(part)
        half.add_delay(len(part))
        halves.merge(Tally.of(half.plain()))
        whole.add_delay(len(part))
    assert flat(halves.plain()) == pytest.approx(flat(whole.plain()))
    assert figures(halves).keys() == figures(whole).keys()


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested data as one mapping, so that numbers can be compared nearly."""
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in flat(v, f"{name}.{k}").items()}
    if isinstance(value, list):
        return {key: leaf for k, v in enumerate(value) for key, leaf in flat(v, f"{name}[{k}]").items()}
    return {name: value}


def test_many_classes_stay_bounded_and_right() -> None:
    """Of 3000 classes the matrix has a bounded number of cells, and the accuracy is still exact."""
    rng = random.Random(5)
    names = [f"c{n}" for n in range(3 * MOST_CLASSES)]
    pairs = [
        (true, true if rng.random() < 0.5 else rng.choice(names)) for true in rng.choices(names, k=30_000)
    ]
    tally = tally_of([({"label": said}, true) for true, said in pairs])
    assert len(tally.cells) <= MOST_CELLS + 1
    assert tally.correct == sum(true == said for true, said in pairs)
    assert tally.items == len(pairs) == sum(tally.cells.values())
    assert len({name for cell in tally.cells for name in cell} - {OTHER, NONE}) <= MOST_CLASSES


def test_delays_are_percentiles_within_a_tenth() -> None:
    """The delays' percentiles are at most 10 % above the exact ones; a label that came first has none."""
    tally = Tally(results=1_001, labelled=1_001)
    for second in range(1_000):
        tally.add_delay(1_000 * second + 500)
    tally.add_delay(-30_000)
    found = figures(tally)["delay_s"]
    assert 499.5 <= found["p50"] <= 1.1 * 500.5
    assert 988.5 <= found["p99"] <= 1.1 * 990.5
