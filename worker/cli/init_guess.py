"""What a model's signature, its made-up answers and one record say about a configuration. Pure but for label files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worker.model.signature import Signature, TensorSpec

IDS = ("input_ids", "attention_mask", "token_type_ids")
CHANNELS = (1, 3)
SIDE_LEAST = 8
"""A picture's side has at least so many pixels."""


@dataclass
class Guess:
    """What a configuration would say, and what somebody should look at."""

    format: str
    preprocess: dict[str, Any] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    postprocess: dict[str, Any] | str | None = None
    """A name with its options, custom code, or nothing for raw."""
    why: dict[str, str] = field(default_factory=dict)
    """Comment for ``format``, ``preprocess`` and ``postprocess``."""
    edit: list[str] = field(default_factory=list)
    """What could not be found out, one sentence each."""


def kind_of(value: bytes, signature: Signature) -> str:
    """The input format of a record, by its first bytes; ``tensor`` where only its length fits the model; empty if nothing fits."""
    if (
        value[:8] == b"\x89PNG\r\n\x1a\n"
        or value[:3] == b"\xff\xd8\xff"
        or (value[:4], value[8:12]) == (b"RIFF", b"WEBP")
    ):
        return "image"
    if (
        value[:4] in (b"fLaC", b"OggS")
        or value[:3] == b"ID3"
        or (value[:4], value[8:12]) == (b"RIFF", b"WAVE")
    ):
        return "audio"
    if (
        value[4:8] == b"ftyp"
        or value[:4] == b"\x1a\x45\xdf\xa3"
        or (value[:4], value[8:12]) == (b"RIFF", b"AVI ")
    ):
        return "video"
    if value[:6] == b"\x93NUMPY":
        return "npy"
    (first, *others) = signature.inputs
    if not others and first.fixed and first.dtype != object and len(value) == first.item_nbytes:
        return "tensor"
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return "audio" if value[:2] in (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2") else ""
    try:
        found = json.loads(text)
    except ValueError:
        return "text"
    if not isinstance(found, dict):
        return "text" if takes_text(signature) else ""
    requests = found.get("inputs")
    is_request = isinstance(requests, list) and all(
        isinstance(each, dict) and "datatype" in each for each in requests
    )
    return "oip" if requests and is_request else "json"


def kind_without_sample(signature: Signature) -> tuple[str, str]:
    """(input format, why), by the model's inputs alone."""
    if takes_text(signature):
        return "text", "the model's input is text"
    pictures = [spec for spec in signature.inputs if picture_of(spec) is not None]
    if len(signature.inputs) == 1 and pictures:
        return "image", f"the model's input {signature.inputs[0].name} has the shape of a picture"
    return "json", "no record was given: numbers in JSON are the most common"


def guess(signature: Signature, value: bytes | None, tokenizer: Path | None) -> Guess:
    """Format and contents.

    Args:
        value: of one record; None without one.
        tokenizer: its file, where it does not lie in the model's own folder.
    """
    if value is None:
        kind, why = kind_without_sample(signature)
        found = Guess(kind, why={"format": why})
        found.edit.append("input.format is a guess: init --sample FILE looks at one of your records")
    else:
        kind = kind_of(value, signature)
        seen = (
            "the sample has the length of one item"
            if kind == "tensor"
            else "by the first bytes of the sample"
        )
        found = Guess(kind or "json", why={"format": seen})
        if kind not in ("json", "oip", "npy", "tensor") and takes_bytes(signature):
            found.format, kind = "bytes", "bytes"
            found.why["format"] = f"the model's input {signature.inputs[0].name} is a row of whole numbers"
        if not kind:
            found.edit.append("input.format: the sample is of no format that is known here; see --custom")
    if found.format == "image":
        _picture(found, signature)
    elif found.format == "text":
        found.preprocess = _text(signature, tokenizer)
    elif found.format == "audio":
        found.why["preprocess"] = "rate in samples a second"
        found.preprocess = {"audio": {"rate": 16000, **_features(signature)}}
        found.edit.append("preprocess.audio: rate, windows and features as in training")
    elif found.format == "video":
        _picture(found, signature)
        found.preprocess = {"video": {"fps": 1}, **found.preprocess}
    elif found.format == "json":
        _json(found, signature, json.loads(value) if value is not None and kind else None, tokenizer)
    return found


# -- contents ------------------------------------------------------------------------------------------------


def takes_text(signature: Signature) -> bool:
    """Whether the inputs are a text, or what a tokenizer makes of one."""
    names = {spec.name for spec in signature.inputs}
    strings = len(signature.inputs) == 1 and signature.inputs[0].dtype == object
    return strings or (IDS[0] in names and names <= set(IDS))


def picture_of(spec: TensorSpec) -> dict[str, Any] | None:
    """``preprocess.image`` for an input that has the shape of one picture; None for another one."""
    shape = spec.item_shape
    if len(shape) != 3 or spec.dtype == object:
        return None
    first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
    if first == last:
        return None
    layout = "nchw" if first else "nhwc"
    channels = shape[0] if first else shape[2]
    sides = shape[1:] if first else shape[:2]
    if any(side is not None and side < SIDE_LEAST for side in sides):
        return None
    options: dict[str, Any] = {}
    if None not in sides:
        options["size"] = list(sides)
    elif spec.suggested is not None:
        options["size"] = list(spec.suggested)
    options |= {"color": "gray" if channels == 1 else "rgb", "layout": layout}
    if spec.dtype.kind == "f":
        options["scale"] = 0.00392157
    return options


def _picture(found: Guess, signature: Signature) -> None:
    options = picture_of(signature.inputs[0]) if len(signature.inputs) == 1 else None
    if options is None:
        found.edit.append(
            f"preprocess: no input has the shape of a picture ({', '.join(shape_of(s) for s in signature.inputs)})"
        )
        return
    if "size" not in options:
        options = {"size": [224, 224], **options}
        found.edit.append("preprocess.image.size: the model takes any size; 224 by 224 is a guess")
    found.preprocess = {"image": options}
    if "scale" in options:
        found.why["preprocess"] = (
            "size and layout are the model's; scale 1/255 makes 0..255 to 0..1. Trained on ImageNet? Then also "
            "mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]"
        )
        found.edit.append("preprocess.image: scale, mean, std and color as in training")
    else:
        found.why["preprocess"] = "the model takes the pixels as they are"


def _features(signature: Signature) -> dict[str, Any]:
    """Log-mel features for an input of two dimensions, by the number of its bins."""
    bins = next((side for side in signature.inputs[0].item_shape if side is not None and side > 1), None)
    if len(signature.inputs) != 1 or len(signature.inputs[0].item_shape) != 2 or bins is None:
        return {}
    return {"features": f"whisper{bins}" if bins in (80, 128) else {"bins": bins}}


def takes_bytes(signature: Signature) -> bool:
    """Whether the only input is a row of whole numbers: what a file's bytes are."""
    spec = signature.inputs[0]
    return (
        len(signature.inputs) == 1
        and spec.dtype.kind in "iu"
        and len(spec.item_shape) == 1
        and spec.name not in IDS
    )


def _text(signature: Signature, tokenizer: Path | None) -> dict[str, Any]:
    if signature.inputs[0].dtype == object or tokenizer is None:
        return {}
    return {"text": {"tokenizer": tokenizer}}


def _json(found: Guess, signature: Signature, record: Any, tokenizer: Path | None) -> None:
    """Which fields of the record go into which inputs."""
    numbers = [name for name, value in _leaves(record) if _is_number(value)]
    lists = {name: value for name, value in _leaves(record) if isinstance(value, list) and value}
    texts = [name for name, value in _leaves(record) if isinstance(value, str)]
    if takes_text(signature):
        options = _text(signature, tokenizer)
        place = next(iter(texts), "text")
        found.preprocess = {"inputs": {signature.inputs[0].name: {"from": place, **(options or {})}}}
        if len(texts) != 1:
            found.edit.append(
                f"preprocess.inputs: the text is taken from {place}; the record has {_named(texts)}"
            )
        return
    if len(signature.inputs) > 1:
        found.preprocess = {
            "inputs": {spec.name: _source(found, spec, numbers, lists, texts) for spec in signature.inputs}
        }
        return
    (spec,) = signature.inputs
    if record is None:
        found.why["format"] += '; a record is {"features": [...]}'
        return
    picture = picture_of(spec)
    if picture is not None and texts:
        found.preprocess = {"inputs": {spec.name: {"from": texts[0], "image": picture}}}
        found.why["preprocess"] = "the field holds a picture in base64"
    elif "features" in lists:
        found.why["format"] = 'the record has its numbers under "features"'
    elif numbers:
        wanted = spec.item_shape[0] if len(spec.item_shape) == 1 else None
        found.fields = numbers[:wanted]
        if wanted is not None and len(numbers) != wanted:
            found.edit.append(
                f"input.fields: the model takes {wanted} numbers, the record has {len(numbers)}: {_named(numbers)}"
            )
        else:
            found.edit.append("input.fields: in the order of the training, which the model does not say")
    elif lists:
        found.preprocess = {"inputs": {spec.name: {"from": next(iter(lists))}}}
    else:
        found.edit.append(f"input.fields: the record has no numbers; the model takes {shape_of(spec)}")


def _source(
    found: Guess, spec: TensorSpec, numbers: list[str], lists: dict[str, Any], texts: list[str]
) -> dict[str, Any]:
    """Where one of several inputs comes from: the field of its name, else one that nobody else has."""
    every = [*numbers, *lists, *texts]
    same = next((name for name in every if name.rpartition(".")[2].lower() == spec.name.lower()), None)
    options = picture_of(spec) if same in texts else None
    if same is None:
        found.edit.append(
            f"preprocess.inputs.{spec.name}: no field of the record has this name; it has {_named(every)}"
        )
    return {"from": same or spec.name, **({"image": options} if options else {})}


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted path and value of each field that is no object."""
    if not isinstance(value, dict):
        return
    for name, each in value.items():
        path = f"{at}.{name}" if at else str(name)
        if isinstance(each, dict):
            yield from _leaves(each, path)
        else:
            yield path, each


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(names: list[str]) -> str:
    return ", ".join(names) or "none"


def shape_of(spec: TensorSpec) -> str:
    """``x FP32[*,4]``."""
    return f"{spec.name} {spec.datatype}[{','.join('*' if d is None else str(d) for d in spec.shape)}]"
