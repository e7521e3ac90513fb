"""Results as JSON: id, source, model, prediction and the stages of the latency.

This is the hot path of small models. What is the same for a run becomes text once per run, floats and latencies
once per batch; a record costs two bytes templates: one for its prediction, one for its body.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, groupby, repeat
from operator import mod
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from worker import native
from worker.batch import Array, Batch, Partition, Run, pick
from worker.errors import Rejection
from worker.model.signature import Signature
from worker.postprocess import postprocess, rendering
from worker.postprocess.raw import Raw
from worker.serving.envelope import CONTENT_LENGTH, ResultEncoder, item_spans, own_ids, request_of

if TYPE_CHECKING:
    from worker.settings import PipelineSettings


class JsonEncoder(ResultEncoder):
    """``prediction`` for a record of one item, ``predictions`` for one with its own batch dimension."""

    predicts = True

    def __init__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        model_name: str,
        model_version: str,
        labels: Sequence[str] | None,
    ) -> None:
        # Copied from a request, the content length would make a reader split this body.
        super().__init__(settings, model_name, model_version, reserved=frozenset({CONTENT_LENGTH}))
        self._postprocess = postprocess(settings.postprocess, signature, labels)
        model = b'"model":%b,' % orjson.dumps(self._model)
        self._before_prediction = b"}," + model + b'"prediction":'
        model = model.replace(b"%", b"%%")
        self._one = model + b'"prediction":%b,'
        self._many = model + b'"predictions":[%b],'

    def encode(self, batch: Batch, run: Run, stamp: Callable[[], None]) -> None:
        """Bodies, headers and rejections of one run's rows; see :class:`worker.encode.Encoder`."""
        assert batch.outcomes is not None
        predictions = self._predictions(batch, run)
        stamp()
        rejected: dict[int, Rejection] = {}
        if set(map(type, predictions)) != {bytes}:
            # rendered with the others and thrown away: rare, and every column stays aligned
            found = zip(run.rows, predictions, strict=True)
            rejected = {row: why for row, why in found if isinstance(why, Rejection)}
            predictions = [b"null" if isinstance(why, Rejection) else why for why in predictions]
        batch.outcomes.put(run.rows, self._bodies(batch, run, predictions))
        for row, rejection in rejected.items():
            batch.outcomes.bodies[row] = None
            batch.outcomes.rejected[row] = rejection
        self._copy_headers(batch, [row for row in run.rows if row not in rejected] if rejected else run.rows)

    def _predictions(self, batch: Batch, run: Run) -> list[bytes | Rejection]:
        """Per row the text of its prediction (of several items: joined by commas), or why there is none."""
        assert batch.feed is not None
        contexts = pick(batch.feed.contexts, run.rows)
        outputs, count = run.outputs, len(run.rows)
        if run.alone:
            outputs = {name: output[np.newaxis] for name, output in outputs.items()}
        elif run.counts is not None:
            contexts = [context for context, k in zip(contexts, run.counts, strict=True) for _ in range(k)]
            count = len(contexts)
        try:
            found = self._postprocess.predictions(outputs, count, contexts, run.alone)
        except Exception as error:
            return [Rejection.of(error, "postprocess", self._postprocess)] * len(run.rows)
        self._choose(batch, run, outputs, found)
        if count == len(run.rows):
            return found
        return [_joined(found[start:stop]) for start, stop in item_spans(run)]

    def _choose(
        self, batch: Batch, run: Run, outputs: dict[str, Array], found: list[bytes | Rejection]
    ) -> None:
        """Give the items of a request that names its outputs these, in its order; only `raw` shows outputs at all."""
        if not isinstance(self._postprocess, Raw) or batch.feed is None or not batch.feed.items:
            return
        for row, (start, stop) in zip(run.rows, item_spans(run), strict=True):
            request = request_of(batch, row)
            if request is not None and request.outputs:
                for item in range(start, stop):
                    found[item] = self._postprocess.chosen(outputs, item, request.outputs)

    def _bodies(self, batch: Batch, run: Run, predictions: list[bytes | Rejection]) -> list[bytes]:
        columns = batch.columns.select(run.rows)
        own, many = own_ids(batch, run.rows), _with_batch_dimension(batch, run.rows)
        own_texts = {i: orjson.dumps(own[row]) for i, row in enumerate(run.rows) if row in own} if own else {}
        if native.records is not None and not many:
            bodies: list[bytes] = native.records.bodies(
                _around_id,
                columns.partitions,
                columns.offsets,
                columns.timestamps_ms,
                list(map(own_texts.get, range(len(columns)))) if own else None,
                self._before_prediction,
                predictions,
                _stage_columns(run.stages_us),
            )
            return bodies
        latency, times = _latency(run.stages_us)
        middle, end = self._one, latency + b"}"
        ids: list[Any] = columns.offsets
        templates: list[bytes] = []
        for partition, stretch in groupby(columns.partitions):  # a dict would hash a tuple per row
            templates += [_head(partition, own_id=False) + middle + end] * len(list(stretch))
        if own or many:
            ids = ids.copy()
            for i, row in enumerate(run.rows):
                middle = self._many if row in many else self._one
                templates[i] = _head(columns.partitions[i], row in own) + middle + end
                ids[i] = own_texts.get(i, ids[i])
        fields = zip(ids, columns.offsets, columns.timestamps_ms, predictions, *times, strict=True)
        return list(map(mod, templates, fields))


@functools.lru_cache(maxsize=4096)
def _head(partition: Partition, own_id: bool) -> bytes:
    """Template of a body up to the model; takes the id (by default the offset), offset and timestamp."""
    name, number = orjson.dumps(partition.topic), partition.number
    id_ = b"%b" if own_id else b'"%b/%d/%%d"' % (name[1:-1], number)
    return b'{"id":%b,"source":{"topic":%b,"partition":%d,"offset":%%d,"timestamp_ms":%%d},' % (
        id_,
        name,
        number,
    )


@functools.lru_cache(maxsize=4096)
def _around_id(partition: Partition) -> tuple[bytes, bytes]:
    """Text of a body up to the offset in its id, and from behind its id up to the offset."""
    name, number = orjson.dumps(partition.topic), partition.number
    before = b'{"id":"%b/%d/' % (name[1:-1], number)
    return before, b',"source":{"topic":%b,"partition":%d,"offset":' % (name, number)


def _stage_columns(stages_us: dict[str, int | Array]) -> list[tuple[bytes, int | Array]]:
    """The stages with the text that stands before each."""
    opening = chain([b',"latency_ms":{"'], repeat(b',"'))
    named = zip(opening, stages_us.items(), strict=False)
    return [(before + stage.encode() + b'":', us) for before, (stage, us) in named]


def _latency(stages_us: dict[str, int | Array]) -> tuple[bytes, list[list[bytes]]]:
    """Template of ``latency_ms``, and a column of texts for each stage that differs by row.

    Whole microseconds divided by 1000 are the doubles nearest to three decimals, so they read as at most three.
    """
    stages, columns = [], []
    for stage, us in stages_us.items():
        if isinstance(us, np.ndarray):
            text = b"%b"
            columns.append(rendering.scalars(us / 1000))
        else:
            text = orjson.dumps(us / 1000)
        stages.append(b'"%b":%b' % (stage.encode(), text))
    return b'"latency_ms":{%b}' % b",".join(stages), columns


def _with_batch_dimension(batch: Batch, rows: Iterable[int]) -> set[int]:
    """Rows whose record had a batch dimension of its own: these give ``predictions``."""
    assert batch.feed is not None
    items = batch.feed.items
    return {row for row in rows if (item := items[row]) is not None and not item.single} if items else set()


def _joined(parts: list[bytes | Rejection]) -> bytes | Rejection:
    """The predictions of one record's items; one refused item refuses the record."""
    texts = []
    for i, part in enumerate(parts):
        if isinstance(part, Rejection):
            return dataclasses.replace(part, message=f"item {i}: {part.message}")
        texts.append(part)
    return b",".join(texts)
