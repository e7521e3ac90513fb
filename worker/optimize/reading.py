"""From files to items: pictures, tensors, or records through a pipeline's own decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from worker.batch import Array, Batch, Columns, Feed, Partition
from worker.errors import ConfigError, Reject
from worker.filesystem import is_dir, is_file
from worker.model.session import Model
from worker.model.signature import TensorSpec
from worker.optimize.items import Item, Tensors
from worker.quantize.images import class_indices
from worker.records import Decoder
from worker.serving.route import Route
from worker.serving.runs import Group, feeds

TENSORS = (".npy", ".npz")
LINES = (".jsonl", ".ndjson", ".txt")
WHOLE = (".jpg", ".jpeg", ".png", ".webp", ".wav", ".flac", ".ogg", ".mp3", ".npy", ".json", ".txt", ".bin")
"""Files of a folder that are one record each."""
LABELS = "labels"
"""Name of the array of true classes in an .npz file."""
MOST_BYTES = 512 << 20
"""Most bytes of all prepared inputs together; of more data, a part that is spread evenly is used."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it lies in a file."""

    name: str
    value: bytes
    true: str | int | None = None
    """Its class by name or by number; None if nobody said."""


def tensors(path: Path, model: Model, most: int) -> list[Item]:
    """Prepared inputs from an .npy file (models of one input) or an .npz file (an array for each input, and ``labels``).

    The first dimension of every array counts the items.

    Raises:
        ConfigError: the file cannot be read, or its arrays do not fit the model.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):  # an .npy file
            arrays = {model.signature.inputs[0].name: loaded}
        else:
            with loaded:
                arrays = {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"--data: {path} cannot be read: {error}") from None
    names = [spec.name for spec in model.signature.inputs]
    missing = [name for name in names if name not in arrays]
    if missing or (len(names) > 1 and path.suffix.lower() == ".npy"):
        raise ConfigError(
            f"--data: {path} has no array {missing[0] if missing else names[1]}; expected an .npz file with "
            f"{', '.join(names)}, and {LABELS} where the true classes are known"
        )
    wanted = names + [name for name in arrays if name == LABELS]
    counts = {name: len(arrays[name]) if arrays[name].ndim else 0 for name in wanted}
    if len(set(counts.values())) != 1:
        shown = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise ConfigError(f"--data: the arrays of {path} differ in their count of items: {shown}")
    rows = evenly(counts[names[0]], most)
    labels = arrays.get(LABELS)
    if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iu"):
        raise ConfigError(f"--data: {LABELS} of {path}: expected one whole number for each item")
    inputs = model.signature.inputs
    return [
        Item(
            f"{path.name}:{row}",
            {spec.name: _fitted(spec, arrays[spec.name][row], path, model.fixed_batch) for spec in inputs},
            int(labels[row]) if labels is not None else None,
        )
        for row in rows
    ]


def _fitted(spec: TensorSpec, value: Array, path: Path, fixed_batch: int | None) -> Array:
    """One item of an array as the model takes it."""
    expected = spec.item_shape
    fits = len(expected) == value.ndim and all(
        e is None or e == v for e, v in zip(expected, value.shape, strict=True)
    )
    if not fits or not (np.can_cast(value.dtype, spec.dtype, "same_kind") or value.dtype.kind in "iub"):
        shape = [*("*" if length is None else length for length in expected)]
        raise ConfigError(
            f"--data: {path}: an item of {spec.name} is {value.dtype} {[*value.shape]}, "
            f"expected {spec.dtype} {str(shape).replace(chr(39), '')}"
        )
    value = np.ascontiguousarray(value, spec.dtype)
    if not spec.has_rows:
        return value
    return np.repeat(value[np.newaxis], fixed_batch or 1, axis=0)


def records(data: Path, label_field: str | None, most: int) -> list[Record]:
    """The records of a file of lines, of one file, or of a folder whose files are one record each.

    In class-named subfolders records are labelled; in lines of JSON the field ``label_field`` has the class.

    Raises:
        ConfigError: there is nothing to read, or a line has no such field.
    """
    if is_dir(data):
        return _folder(data, most)
    if not is_file(data):
        raise ConfigError(f"--data: {data} does not exist; expected a folder or a file")
    if data.suffix.lower() in LINES:
        return _lines(data, label_field, most)
    raise ConfigError(
        f"--data: {data}: expected a folder of records, or a file that ends in {', '.join((*LINES, *TENSORS))}"
    )


def _folder(folder: Path, most: int) -> list[Record]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in WHOLE and is_file(path))
    if len(found) < 2:
        raise ConfigError(
            f"--data: {folder} has {len(found)} records ({', '.join(WHOLE)}); "
            "expected some to calibrate on and others to measure with"
        )
    flat = any(path.parent == folder for path in found)
    files = [found[i] for i in evenly(len(found), most)]
    return [
        Record(
            str(path.relative_to(folder)),
            path.read_bytes(),
            None if flat else path.relative_to(folder).parts[0],
        )
        for path in files
    ]


def _lines(path: Path, label_field: str | None, most: int) -> list[Record]:
    numbered = [
        (number, line) for number, line in enumerate(path.read_bytes().splitlines(), 1) if line.strip()
    ]
    if len(numbered) < 2:
        raise ConfigError(f"--data: {path} has {len(numbered)} lines; expected one record on each of several")
    found = []
    for number, line in (numbered[i] for i in evenly(len(numbered), most)):
        true = None if label_field is None else _label(line, label_field, f"{path} line {number}")
        found.append(Record(f"{path.name}:{number}", line, true))
    return found


def _label(line: bytes, field: str, where: str) -> str | int:
    with suppress(orjson.JSONDecodeError):
        document = orjson.loads(line)
        found = document.get(field) if isinstance(document, dict) else None
        if isinstance(found, str | int):
            return found
    raise ConfigError(f"--data: {where}: expected a JSON object with a class in the field {field} (--label)")


def evenly(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, spread evenly."""
    return [int(i) for i in np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))]


def decoded(
    found: Sequence[Record],
    route: Route,
    decoder: Decoder,
    model: Model,
    names: Sequence[str] | None,
) -> Iterator[Item]:
    """The records as the pipeline's own decoder gives them to the model.

    Args:
        names: the model's labels in their order; None if it has none.

    Raises:
        ConfigError: a record that the pipeline would refuse; names it.
    """
    indices = class_indices(sorted({r.true for r in found if isinstance(r.true, str)}), names)
    for record in found:
        label = indices[record.true] if isinstance(record.true, str) else record.true
        batch, fed = _fed(record, route, decoder, model)
        yield Item(record.name, fed, label, batch)


def _fed(record: Record, route: Route, decoder: Decoder, model: Model) -> tuple[Batch, Tensors]:
    """One record behind the decoder, and what a run with it alone is given."""
    columns = Columns([record.value], [None], [None], [0], [0], [Partition(route.topics.example, 0)])
    batch = Batch(None, range(1), columns, route, None, 0, 0.0)  # type: ignore[arg-type]  # nothing asks for a servable
    arrays = None
    if decoder.fixed:
        arrays = {
            spec.name: np.full(
                (1, *(length or 0 for length in spec.item_shape)),
                "" if spec.dtype == object else 0,
                spec.dtype,
            )
            for spec in model.signature.inputs
        }
    batch.feed = Feed(arrays, [] if decoder.fixed else [None], [None])
    try:
        if len(record.value) > decoder.free_bytes:
            decoder.cost(record.value)
        decoder.decode(batch.payloads, batch.columns, batch.feed, 0, 1)
    except Reject as error:
        raise ConfigError(f"--data: {record.name}: {error.reason}: {error}") from None
    for rejection in batch.feed.rejected.values():
        raise ConfigError(f"--data: {record.name}: {rejection.reason}: {rejection.message}")
    item = batch.feed.items[0] if batch.feed.items else None
    alone = not model.signature.batchable
    fed = feeds(batch, model, Group([0], alone, [item] if item is not None else None))
    return batch, {spec.name: fed[spec.name] for spec in model.signature.inputs}


def within(items: Sequence[Item]) -> tuple[list[Item], str]:
    """As many items, spread evenly, as take at most ``MOST_BYTES``; and a sentence if some are left out."""
    total = sum(item.nbytes for item in items)
    if total <= MOST_BYTES:
        return [*items], ""
    kept = evenly(len(items), max(2, int(len(items) * MOST_BYTES / total)))
    return [items[i] for i in kept], f"{len(kept)} of {len(items)} items are used: more take too much memory"
