"""The report of ``explain`` for a reader on a terminal. What comes from records cannot steer the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC
from typing import Any

import orjson

from worker.cli.text import moment
from worker.text import printable

VALUE_CHARACTERS = 300
"""Of a key, a header's value or a payload."""
RESULT_CHARACTERS = 4000
BAR = 24
"""Characters of the longest bar."""

Line = tuple[str, str]


def in_words(report: Mapping[str, Any]) -> str:
    """The whole report; each line has a name on its left."""
    lines = [line for part in (_letter, _record, _way, _model, _answer, _time) for line in part(report)]
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:<{width}}  {printable(text)}".rstrip() for name, text in lines)


def verdict(report: Mapping[str, Any]) -> str:
    """In one sentence, what becomes of the record."""
    letter = report.get("dead_letter")
    if "record" not in report:
        return f"not explained: {letter['missing']}" if letter else "not explained"
    if (why := report.get("refused")) is not None:
        return f"refused as {why['reason']} in stage {why['stage']}"
    if report.get("dropped"):
        return "left out: nothing is sent for it"
    if report.get("result") is None:
        return "no value: it is passed on as it is"
    return "answered: what it was refused for is no longer so here" if letter else "answered"


def shown(value: Mapping[str, Any] | None, most: int = VALUE_CHARACTERS) -> str:
    """A preview of some bytes, see :func:`worker.cli.explained.preview`."""
    if value is None:
        return "none"
    if "text" not in value:
        return f"{value['hex']}{' ...' * value['cut']} ({value['bytes']:,} bytes)"
    text = value["text"]
    return f"{text[:most]} ... ({value['bytes']:,} bytes)" if value["cut"] or len(text) > most else text


def when(timestamp_ms: int) -> str:
    """A record's timestamp."""
    if timestamp_ms <= 0:
        return "unknown"
    return moment(timestamp_ms, lambda at: at.isoformat(timespec="milliseconds"), UTC)


def number(value: float | None) -> str:
    """A tensor's figure, to five digits."""
    return "-" if value is None else f"{value:.5g}"


def odd(tensor: Mapping[str, Any]) -> str:
    """How many numbers of a tensor are none; empty where all are."""
    told = [f"{tensor['nan']:,} NaN"] if tensor["nan"] else []
    told += [f"{tensor['infinite']:,} infinite"] if tensor["infinite"] else []
    return ", ".join(told)


def shape(tensor: Mapping[str, Any]) -> str:
    return f"[{', '.join(map(str, tensor['shape']))}]"


def as_json(value: Any) -> str:
    return orjson.dumps(value, default=str).decode()


def stages(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Microseconds by stage; those of a cascade's steps are a part of ``infer``."""
    return [*(report.get("us") or {}).items()]


def total_us(report: Mapping[str, Any]) -> int:
    return sum(us for name, us in stages(report) if ":" not in name)


# -- parts ----------------------------------------------------------------------------------------------------


def _letter(report: Mapping[str, Any]) -> Iterator[Line]:
    letter = report.get("dead_letter")
    if letter is None:
        return
    yield "dead letter", letter["place"]
    yield "  refused", f"{letter['reason'] or '?'} in stage {letter['stage'] or '?'}"
    yield "  message", letter["message"]
    by = letter["model"] or "no model"
    tries = f", {letter['attempts']} attempts" if (letter["attempts"] or 1) > 1 else ""
    yield "  by", f"pipeline {letter['pipeline'] or '?'}, {by}{tries}"
    if "missing" in letter:
        yield "record", f"{letter['from']}: {letter['missing']}"


def _record(report: Mapping[str, Any]) -> Iterator[Line]:
    record = report.get("record")
    if record is None:
        return
    yield "record", f"{record['place']}, written {when(record['timestamp_ms'])}"
    yield "  key", shown(record["key"])
    for name, value in record["headers"]:
        yield "  header", f"{name}: {shown(value)}"
    value = record["value"]
    yield "  value", "none" if value is None else f"{value['bytes']:,} bytes"


def _way(report: Mapping[str, Any]) -> Iterator[Line]:
    route = report.get("route")
    if route is None:
        return
    yield "route", route["pipeline"] or "no pipeline takes it"
    for each in route["asked"]:
        yield f"  {'takes it' if each['takes'] else 'does not'}", f"{each['pipeline']}: {each['why']}"
    for note in report.get("notes", ()):
        yield "  note", note
    if (fetch := report.get("fetch")) is not None:
        got = f", {fetch['bytes']:,} bytes" if fetch["bytes"] is not None else ""
        yield "fetch", f"{', '.join(fetch['what']) or 'nothing is needed'}{got}, {fetch['us']:,} us"
    if (decode := report.get("decode")) is not None:
        said = [decode["format"]]
        said += ["unwrapped"] if decode["unwrapped"] else []
        if picture := decode["picture"]:
            said.append(f"a picture of {picture['height']} x {picture['width']} (height x width)")
        said += ["its text is longer than the model may be given"] if decode["truncated"] else []
        yield "decode", ", ".join(said)
        if decode["payload"] is not None:
            yield "  payload", shown(decode["payload"])


def _model(report: Mapping[str, Any]) -> Iterator[Line]:
    model = report.get("model")
    if model is None:
        return
    yield "model", f"{model['name']}@{model['version']} on {model['provider']}"
    for run in report.get("runs", ()):
        if run["step"] is not None:
            yield "  step", f"{run['step']}: {run['model']}"
        yield from _tensors("  input", run["inputs"])
        yield from _tensors("  output", run["outputs"])
        if run["error"] is not None:
            yield "  error", run["error"]
    for name, said in report.get("steps", {}).items():
        text = ", ".join(map(as_json, said)) or "nothing: it did not run for this record"
        yield "  predicts", f"{name}: {text[:RESULT_CHARACTERS]}"


def _tensors(name: str, tensors: Sequence[Mapping[str, Any]]) -> Iterator[Line]:
    for tensor in tensors:
        figures = ""
        if tensor["low"] is not None:
            figures = "  ".join(
                f"{what} {number(tensor[key])}"
                for what, key in (("min", "low"), ("mean", "mean"), ("max", "high"))
            )
        parts = [tensor["name"], tensor["dtype"], shape(tensor), figures, odd(tensor)]
        yield name, "  ".join(filter(None, parts))


def _answer(report: Mapping[str, Any]) -> Iterator[Line]:
    yield "outcome", verdict(report)
    why = report.get("refused")
    if why is not None:
        yield "  message", why["message"]
        if why["class_name"]:
            yield "  by", why["class_name"]
    result = report.get("result")
    if result is not None:
        text = as_json(prediction_of(result))
        more = f" ... ({len(text):,} characters)" if len(text) > RESULT_CHARACTERS else ""
        yield "prediction", text[:RESULT_CHARACTERS] + more


def prediction_of(result: Any) -> Any:
    """What a result says of the record; all of a result that has another form."""
    for name in ("prediction", "predictions", "outputs"):
        if isinstance(result, dict) and name in result:
            return result[name]
    return result


def _time(report: Mapping[str, Any]) -> Iterator[Line]:
    told = stages(report)
    if not told:
        return
    whole = total_us(report)
    yield "time", f"{whole:,} us for this record alone on this machine, the quickest of a few tries"
    longest = max(1, *(us for _, us in told))
    for name, us in told:
        yield f"  {name}", f"{us:>9,} us  {'#' * round(BAR * us / longest)}"
