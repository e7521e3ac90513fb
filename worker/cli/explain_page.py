"""The report of ``explain`` as one HTML file, which asks for nothing else and runs no script.

Every text in it is escaped: header names, labels and messages are written by whoever writes records.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

from worker.cli.explain_text import (
    as_json,
    number,
    odd,
    prediction_of,
    shape,
    shown,
    stages,
    total_us,
    verdict,
    when,
)
from worker.text import printable

if TYPE_CHECKING:
    from worker.cli.explained import Picture

BOXES_MAX = 500
COLOURS = 8
"""Classes ``c0`` to ``c7`` of the style sheet: one for each label, in turn."""
LINE_BREAK = "\n"


def page(report: Mapping[str, Any], picture: Picture | None) -> str:
    """The page.

    Args:
        report: see :class:`worker.cli.explained.Explained`.
    """
    style = (resources.files("worker.cli") / "explain.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    place = (report.get("record") or report.get("dead_letter") or {}).get("place", "")
    body = "\n".join(
        part
        for part in (
            _letter(report),
            _picture(report, picture),
            _outcome(report),
            _record(report),
            _route(report),
            _decode(report),
            _runs(report),
            _time(report),
        )
        if part
    )
    tone = "bad" if report.get("refused") is not None or "record" not in report else "good"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<meta name="color-scheme" content="light dark">
<title>{_text(place)}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{_text(place)}</h1><p class="verdict {tone}">{_text(verdict(report))}</p></header>
<main>
{body}
</main>
</body>
</html>
"""


def _text(value: object) -> str:
    """Any text, safe inside an element or a quoted attribute."""
    return escape(printable(str(value), keep=LINE_BREAK), quote=True)


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{''.join(parts)}</section>"


def _facts(facts: Iterable[tuple[str, object]]) -> str:
    rows = "".join(f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts)
    return f"<dl>{rows}</dl>"


def _table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{_text(caption)}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


# -- parts ----------------------------------------------------------------------------------------------------


def _letter(report: Mapping[str, Any]) -> str:
    letter = report.get("dead_letter")
    if letter is None:
        return ""
    facts = [
        ("place", letter["place"]),
        ("reason", f"{letter['reason'] or '?'} in stage {letter['stage'] or '?'}"),
        ("message", letter["message"]),
        ("pipeline", letter["pipeline"] or "?"),
        ("model", letter["model"] or "none"),
        ("refused by", letter["class"] or "?"),
    ]
    facts += [("record", letter["missing"])] if "missing" in letter else []
    return _section("Dead letter", _facts(facts))


def _record(report: Mapping[str, Any]) -> str:
    record = report.get("record")
    if record is None:
        return ""
    value = record["value"]
    facts = [
        ("written", when(record["timestamp_ms"])),
        ("key", shown(record["key"])),
        ("value", "none" if value is None else f"{value['bytes']:,} bytes"),
    ]
    headers = [(name, shown(held)) for name, held in record["headers"]]
    return _section("Record", _facts(facts), _table("Headers", ("name", "value"), headers) if headers else "")


def _route(report: Mapping[str, Any]) -> str:
    route = report.get("route")
    if route is None:
        return ""
    items = "".join(
        f"<li><b>{_text(each['pipeline'])}</b> {'takes it' if each['takes'] else 'does not take it'}: "
        f"{_text(each['why'])}</li>"
        for each in route["asked"]
    )
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in report.get("notes", ()))
    output = f"<p>Its answer goes to {_text(route['output'])}.</p>" if route["output"] else ""
    return _section("Route", f"<ol>{items}</ol>", output, notes)


def _decode(report: Mapping[str, Any]) -> str:
    facts: list[tuple[str, object]] = []
    if (fetch := report.get("fetch")) is not None:
        facts.append(("fetched", ", ".join(fetch["what"]) or "nothing is needed"))
        facts += [("fetched bytes", f"{fetch['bytes']:,}")] if fetch["bytes"] is not None else []
    decode = report.get("decode")
    if decode is not None:
        facts.append(("format", decode["format"]))
        facts += [("unwrapped", "yes")] if decode["unwrapped"] else []
        if size := decode["picture"]:
            facts.append(("picture", f"{size['height']} x {size['width']} (height x width)"))
        facts += [("text", "longer than the model may be given")] if decode["truncated"] else []
    payload = (decode or {}).get("payload")
    shown_payload = f"<pre>{_text(shown(payload, 2000))}</pre>" if payload is not None else ""
    return _section("Decode", _facts(facts), shown_payload) if facts else ""


def _runs(report: Mapping[str, Any]) -> str:
    model = report.get("model")
    if model is None:
        return ""
    parts = [f"<p>{_text(model['name'])}@{_text(model['version'])} on {_text(model['provider'])}</p>"]
    heads = ("tensor", "type", "shape", "min", "mean", "max", "NaN", "infinite")
    for index, run in enumerate(report.get("runs", ())):
        step = f"step {run['step']}, {run['model']}" if run["step"] is not None else f"run {index + 1}"
        for what in ("inputs", "outputs"):
            if run[what]:
                parts.append(_table(f"{what.capitalize()} of {step}", heads, map(_figures, run[what])))
        if run["error"] is not None:
            parts.append(f'<p class="note bad">{_text(run["error"])}</p>')
        if any(odd(tensor) for tensor in (*run["inputs"], *run["outputs"])):
            parts.append('<p class="note bad">Some numbers are NaN or infinite.</p>')
    for name, said in report.get("steps", {}).items():
        text = LINE_BREAK.join(map(as_json, said)) or "It did not run for this record."
        parts.append(f"<h3>What {_text(name)} predicts</h3><pre>{_text(text)}</pre>")
    return _section("Model", *parts)


def _figures(tensor: Mapping[str, Any]) -> tuple[object, ...]:
    low, mean, high = (number(tensor[key]) for key in ("low", "mean", "high"))
    return tensor["name"], tensor["dtype"], shape(tensor), low, mean, high, tensor["nan"], tensor["infinite"]


def _outcome(report: Mapping[str, Any]) -> str:
    why, result = report.get("refused"), report.get("result")
    if why is not None:
        facts = [
            ("reason", f"{why['reason']} in stage {why['stage']}"),
            ("message", why["message"]),
            ("by", why["class_name"] or "?"),
        ]
        return _section("Refused", _facts(facts))
    if result is None:
        return ""
    whole = f"<details><summary>The whole result</summary><pre>{_text(as_json(result))}</pre></details>"
    return _section("Prediction", f"<pre>{_text(as_json(prediction_of(result))[:20000])}</pre>", whole)


def _time(report: Mapping[str, Any]) -> str:
    told = stages(report)
    if not told:
        return ""
    longest = max(1, *(us for _, us in told))
    rows = "".join(
        f'<tr><th scope="row">{_text(name)}</th><td>{us:,} µs</td>'
        f'<td class="bar"><svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{100 * us / longest:.2f}" height="10"/></svg></td></tr>'
        for name, us in told
    )
    return _section(
        "Time",
        f"<p>{total_us(report):,} µs for this record alone on this machine, the quickest of a few tries. A worker takes records in batches.</p>",
        f"<table><tbody>{rows}</tbody></table>",
    )


# -- the picture ----------------------------------------------------------------------------------------------


def _picture(report: Mapping[str, Any], picture: Picture | None) -> str:
    if picture is None:
        return ""
    file = f"data:{picture.mime};base64,{base64.b64encode(picture.file).decode()}"
    marks = [*_marks(prediction_of(report.get("result")))]
    large = max(picture.width, picture.height)
    drawn = "".join(_drawn(mark, large) for mark in _coloured(marks))
    told = f"The picture, with {len(marks)} boxes" if marks else "The picture"
    return _section(
        "Picture",
        f'<svg class="picture" viewBox="0 0 {picture.width} {picture.height}" role="img" aria-label="{told}">'
        f'<image href="{file}" width="{picture.width}" height="{picture.height}"/>{drawn}</svg>',
    )


def _marks(prediction: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """Everything in a prediction that has corners or points in pixels of the picture: boxes, rotated boxes, also of later steps."""
    if depth > 8:
        return
    if isinstance(prediction, list):
        for each in prediction[:BOXES_MAX]:
            yield from _marks(each, depth + 1)
    elif isinstance(prediction, dict):
        corners = _numbers(prediction.get("xyxy"), 4)
        points = _points(prediction.get("points"))
        if corners or points:
            yield {
                "corners": corners,
                "points": points,
                "joints": _points(prediction.get("keypoints")),
                "label": prediction.get("label", prediction.get("text", "")),
                "score": prediction.get("score"),
            }
            return  # what a later step found inside a box is given in the box's own pixels
        for value in prediction.values():
            yield from _marks(value, depth + 1)


def _numbers(value: Any, count: int) -> list[float]:
    if isinstance(value, list) and len(value) >= count:
        found = value[:count]
        if all(isinstance(each, int | float) and not isinstance(each, bool) for each in found):
            return [float(each) for each in found]
    return []


def _points(value: Any) -> list[list[float]]:
    points = [_numbers(each, 2) for each in value] if isinstance(value, list) else []
    return points if all(points) else []


def _coloured(marks: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The marks with a colour for each label."""
    labels: dict[str, int] = {}
    for mark in marks[:BOXES_MAX]:
        yield mark | {"colour": labels.setdefault(str(mark["label"]), len(labels)) % COLOURS}


def _drawn(mark: Mapping[str, Any], large: int) -> str:
    line, size = max(large / 300, 0.2), max(large / 36, 1)
    if mark["points"]:
        corners = " ".join(f"{x:.2f},{y:.2f}" for x, y in mark["points"])
        form = f'<polygon points="{corners}" stroke-width="{line:.2f}"/>'
        left, top = mark["points"][0]
    else:
        left, top, right, bottom = mark["corners"]
        width, height = max(0.0, right - left), max(0.0, bottom - top)
        form = (
            f'<rect x="{left:.2f}" y="{top:.2f}" width="{width:.2f}" height="{height:.2f}" '
            f'stroke-width="{line:.2f}"/>'
        )
    joints = "".join(
        f'<circle class="joint" cx="{x:.2f}" cy="{y:.2f}" r="{2 * line:.2f}"/>' for x, y in mark["joints"]
    )
    score = f" {mark['score']:.2f}" if isinstance(mark["score"], float) else ""
    words = f"{str(mark['label'])[:60]}{score}".strip()
    above = max(top - line, size)
    text = (
        f'<text x="{left:.2f}" y="{above:.2f}" font-size="{size:.2f}">{_text(words)}</text>' if words else ""
    )
    return f'<g class="c{mark["colour"]}"><title>{_text(words)}</title>{form}{joints}{text}</g>'
