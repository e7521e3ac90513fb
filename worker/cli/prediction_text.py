"""A prediction in a few words, by its kind: what ``tail`` and ``check`` show to people."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from worker.text import printable

MOST = 3
"""Entries of one prediction that are named; the rest are counted."""
MOST_ITEMS = 4
"""Items of one record that are shown."""
WIDTH = 100
"""Characters of JSON that are shown where no kind is known."""

_Prediction = Mapping[str, Any]


def result_text(result: Any, most: int = MOST) -> str:
    """A result as one line; whatever else stands in the topic, as JSON that is cut.

    Args:
        most: entries of each prediction that are named.
    """
    if not isinstance(result, dict):
        return _json(result)
    if result.get("error") is not None:
        return f"error: {printable(str(result['error']))}"
    if "dataref" in result:
        return f"in {printable(str(result['dataref']))} ({result.get('bytes', '?')} bytes)"
    if "prediction" in result:
        return prediction_text(result["prediction"], most)
    items = result.get("predictions")
    if not isinstance(items, list):
        return _json(result)
    shown = "; ".join(_item(item, most) for item in items[:MOST_ITEMS])
    more = f"; ... {len(items)} in all" if len(items) > MOST_ITEMS else ""
    return shown + more


def prediction_text(prediction: Any, most: int = MOST) -> str:
    """One prediction as one line."""
    if isinstance(prediction, dict):
        for member, told in _KINDS.items():
            if member in prediction:
                try:
                    return told(prediction, most)
                except (TypeError, KeyError, ValueError, AttributeError, IndexError):
                    break  # custom code may name its members like a kind and mean something else
        if prediction and all(isinstance(each, dict) for each in prediction.values()):
            steps = (
                f"{printable(str(name))}: {prediction_text(each, most)}" for name, each in prediction.items()
            )
            return "; ".join(steps)
    return _json(prediction)


def details(result: Any) -> Iterator[str]:
    """A line for each thing in a result that one line only counts: boxes, entities, segments, further classes."""
    predictions = result.get("predictions", [result.get("prediction")]) if isinstance(result, dict) else []
    for prediction in predictions if isinstance(predictions, list) else []:
        yield from _details_of(prediction, "")


def _details_of(prediction: Any, prefix: str) -> Iterator[str]:
    if not isinstance(prediction, dict):
        return
    found = False
    for member, told in _ENTRIES.items():
        entries = prediction.get(member)
        if isinstance(entries, list) and all(isinstance(each, dict) for each in entries):
            found = True
            for entry in entries:
                try:
                    yield f"{prefix}{told(entry)}"
                except (TypeError, KeyError, ValueError, AttributeError):
                    yield f"{prefix}{_json(entry)}"
    for name, inner in prediction.items() if not found else ():
        yield from _details_of(inner, f"{prefix}{printable(str(name))}: ")


def score_text(score: Any) -> str:
    """A score: a share as percent, anything else as a number; empty for none."""
    if not isinstance(score, int | float) or isinstance(score, bool):
        return ""
    if not 0 <= score <= 1:
        return f"{score:.4g}"
    percent = f"{score * 100:.1f}"
    return ">99.9 %" if percent == "100.0" and score < 1 else f"{percent} %"


def _item(item: Any, most: int) -> str:
    """One of several predictions of a record, with the time that it is of."""
    if not isinstance(item, dict):
        return prediction_text(item, most)
    rest = {key: value for key, value in item.items() if key not in ("start_s", "end_s", "time_s")}
    when = ""
    if "start_s" in item:
        when = f"{_number(item['start_s'])}-{_number(item.get('end_s'))} s "
    elif "time_s" in item:
        when = f"{_number(item['time_s'])} s "
    return when + prediction_text(rest, most)


def _label(prediction: _Prediction, most: int) -> str:
    if prediction["label"] is None:
        return "no class above the threshold"
    return f"{printable(str(prediction['label']))}  {score_text(prediction.get('score'))}".rstrip()


def _boxes(member: str) -> Callable[[_Prediction, int], str]:
    def told(prediction: _Prediction, most: int) -> str:
        counts = Counter(
            str(each.get("label", member.rstrip("s").removesuffix("e"))) for each in prediction[member]
        )
        if not counts:
            return f"no {member}"
        return _some([f"{count} {printable(label)}" for label, count in counts.most_common()], most)

    return told


def _segments(prediction: _Prediction, most: int) -> str:
    return _some([_segment(each) for each in prediction["segments"]], most) or "no segments"


def _entities(prediction: _Prediction, most: int) -> str:
    shown = [
        f"{printable(str(each['text']))} ({printable(str(each['label']))})" for each in prediction["entities"]
    ]
    return _some(shown, most) or "no entities"


def _shares(prediction: _Prediction, most: int) -> str:
    shares = sorted(prediction["shares"].items(), key=lambda each: -each[1])
    return _some(
        [f"{printable(str(label))} {score_text(share)}" for label, share in shares if share > 0], most
    )


def _text(prediction: _Prediction, most: int) -> str:
    return f"{json.dumps(str(prediction['text']), ensure_ascii=False)}  {score_text(prediction.get('score'))}".rstrip()


def _anomaly(prediction: _Prediction, most: int) -> str:
    return f"{'anomaly' if prediction['anomaly'] else 'normal'}  {_number(prediction['score'])}"


def _values(prediction: _Prediction, most: int) -> str:
    return _some([_number(each) for each in prediction["values"]], most + 5)


def _embedding(prediction: _Prediction, most: int) -> str:
    return f"embedding of {len(prediction['embedding'])} numbers"


def _outputs(prediction: _Prediction, most: int) -> str:
    return _some(
        [f"{printable(str(name))} {_shape(value)}" for name, value in prediction["outputs"].items()], most + 3
    )


_KINDS: dict[str, Callable[[_Prediction, int], str]] = {
    "boxes": _boxes("boxes"),
    "regions": _boxes("regions"),
    "segments": _segments,
    "entities": _entities,
    "shares": _shares,
    "anomaly": _anomaly,
    "label": _label,
    "text": _text,
    "value": lambda prediction, most: _number(prediction["value"]),
    "values": _values,
    "embedding": _embedding,
    "outputs": _outputs,
}
"""By the member that only predictions of this kind have, as the postprocesses write them."""


def _box(entry: _Prediction) -> str:
    corners = ",".join(f"{corner:4.0f}" for corner in entry["xyxy"])
    return (
        f"{printable(str(entry['label'])):<14} {score_text(entry.get('score')):>7}  {corners}{_inside(entry)}"
    )


def _inside(box: _Prediction) -> str:
    """What later steps said of a box."""
    own = ("label", "class_id", "score", "xyxy", "rle", "keypoints", "points")
    steps = [
        f"{printable(str(name))}: {prediction_text(each)}" for name, each in box.items() if name not in own
    ]
    points = [f"{len(box['keypoints'])} points"] if "keypoints" in box else []
    return "".join(f"  {each}" for each in (*points, *steps))


def _region(entry: _Prediction) -> str:
    points = entry.get("points", entry.get("xyxy"))
    return f"region {score_text(entry.get('score')):>7}  {_json(points)}{_inside(entry)}"


def _segment(entry: _Prediction) -> str:
    span = f"{_number(entry['start_s'])}-{_number(entry['end_s'])} s" if "start_s" in entry else ""
    return f"{span}  {score_text(entry['score'])}".strip()


def _entity(entry: _Prediction) -> str:
    place = f"{entry['start']}-{entry['end']}"
    return f"{printable(str(entry['label'])):<14} {score_text(entry['score']):>7}  {place:>9}  {printable(str(entry['text']))}"


def _class(entry: _Prediction) -> str:
    return f"{printable(str(entry['label'])):<14} {score_text(entry['score']):>7}"


_ENTRIES: dict[str, Callable[[_Prediction], str]] = {
    "boxes": _box,
    "regions": _region,
    "segments": _segment,
    "entities": _entity,
    "top": _class,
}
"""Lists of predictions, with what one entry is in a line."""


def _some(shown: Sequence[str], most: int) -> str:
    """The first ones, and how many more there are."""
    more = len(shown) - most
    return "  ".join(shown[:most]) + (f"  +{more}" if more > 0 else "")


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, int | float) and not isinstance(value, bool) else _json(value)


def _shape(value: Any) -> str:
    """A scalar itself; of a nested list its lengths."""
    if not isinstance(value, list):
        return _number(value)
    lengths = []
    while isinstance(value, list):
        lengths.append(str(len(value)))
        value = value[0] if value else None
    return f"[{','.join(lengths)}]"


def _json(value: Any) -> str:
    text = printable(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= WIDTH else f"{text[:WIDTH]}..."
