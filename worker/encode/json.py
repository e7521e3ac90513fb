"""Results as JSON: id, source, model, prediction and the stages of the latency.

This is the hot path of small models. Text that is the same for a run is made once per run; floats and latencies become
text once per batch. A record costs two bytes templates: one for its prediction, one for its body.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, groupby, repeat
from operator import mod
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from worker import native
from worker.batch import CONTENT_LENGTH, Array, Batch, Partition, Run, pick
from worker.encode.own_body import own_body
from worker.encode.rows import item_spans, put_off, request_of
from worker.encode.windows import mark_windows, marks_of
from worker.errors import Postponed, Rejection
from worker.model.signature import Signature
from worker.postprocess import Fragment, OfRecords, ShowsOutputs, postprocess, rendering
from worker.postprocess.item import input_items

if TYPE_CHECKING:
    from worker.serving.envelope import Envelope
    from worker.settings import PipelineSettings

CACHED = b'"cached":true,'
"""What a result says of itself that no run of the model made."""


class JsonBodies:
    """What stands around the predictions of a JSON result.

    Args:
        settings: of the pipeline.
        model: ``model`` of every result.
        envelope: of the route.
    """

    def __init__(self, settings: PipelineSettings, model: Mapping[str, Any], envelope: Envelope) -> None:
        self._envelope = envelope
        self._own_body = own_body(settings)
        """Makes other bodies of the results, where the settings ask for them."""
        text = b'"model":%b,' % orjson.dumps(model)
        self._before_prediction = b"}," + text + b'"prediction":'
        text = text.replace(b"%", b"%%")
        self._one = text + b'"prediction":%b,'
        self._many = text + b'"predictions":[%b],'

    def bodies(self, batch: Batch, run: Run, fragments: Sequence[Fragment]) -> None:
        """See :meth:`worker.encode.Encoder.bodies`."""
        assert batch.outcomes is not None
        if set(map(type, fragments)) == {bytes} and self._own_body is None:
            batch.outcomes.put(run.rows, self._texts(batch, run, fragments))  # type: ignore[arg-type]
            self._envelope.add_headers(batch, run.rows)
            return
        # A row without an answer is rendered with the others, so that every column stays aligned, and thrown away: it is rare.
        texts = [fragment if isinstance(fragment, bytes) else b"null" for fragment in fragments]
        bodies = self._texts(batch, run, texts)
        if self._own_body is not None:
            made = self._own_body.apply(batch, run.rows, bodies)
            bodies = [body if isinstance(body, bytes) else b"" for body in made]
            fragments = [
                body if isinstance(fragment, bytes) else fragment
                for fragment, body in zip(fragments, made, strict=True)
            ]
        batch.outcomes.put(run.rows, bodies)
        answered = []
        for row, fragment in zip(run.rows, fragments, strict=True):
            if isinstance(fragment, bytes):
                answered.append(row)
            else:
                batch.outcomes.bodies[row] = None
                put_off(batch, row, fragment)
        self._envelope.add_headers(batch, answered)

    def _with_batch_dimension(self, batch: Batch, rows: Iterable[int]) -> set[int]:
        """Rows whose record had a batch dimension of its own: these give ``predictions``."""
        return set()

    def _further(self, run: Run) -> bytes:
        """Members before the latency, each with a comma behind it, that are the same for all results of a run."""
        return CACHED if run.fragments is not None else b""

    def _texts(self, batch: Batch, run: Run, predictions: Sequence[bytes]) -> list[bytes]:
        columns = batch.columns.select(run.rows)
        own, many = self._envelope.ids(batch, run.rows), self._with_batch_dimension(batch, run.rows)
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
                _stage_columns(run.stages_us, self._further(run)),
            )
            return bodies
        latency, times = _latency(run.stages_us)
        middle, end = self._one, self._further(run) + latency + b"}"
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


class JsonEncoder(JsonBodies):
    """``prediction`` for a record of one item, ``predictions`` for one with its own batch dimension.

    A fragment is the JSON text of a row's prediction; of several items, their predictions joined by commas.
    """

    # Copied from a request, the content length would make a reader split this body.
    reserved = frozenset({CONTENT_LENGTH})
    expires_as_error = False
    content_type = "application/json"
    names_source = False

    predicts = True

    def __init__(
        self,
        settings: PipelineSettings,
        signature: Signature,
        model_name: str,
        model_version: str,
        labels: Sequence[str] | None,
        envelope: Envelope,
    ) -> None:
        super().__init__(settings, {"name": model_name, "version": model_version}, envelope)
        self._postprocess = postprocess(settings.postprocess, signature, labels)
        self.takes_items: bool = getattr(self._postprocess, "takes_items", False)
        """The postprocess is custom code that wants to know of the record behind each item."""
        self.takes_padding: bool = getattr(self._postprocess, "takes_padding", False)
        """The postprocess leaves out padded positions by itself."""
        # Asking a protocol for an instance takes 10 us: once here, not twice for each batch.
        made = self._postprocess
        self._of_records = made if isinstance(made, OfRecords) else None
        self._shows_outputs = made if isinstance(made, ShowsOutputs) else None

    def predict(self, batch: Batch, run: Run) -> list[Fragment]:
        """See :meth:`worker.encode.Encoder.predict`."""
        assert batch.feed is not None
        contexts = pick(batch.feed.contexts, run.rows)
        outputs, count = run.outputs, len(run.rows)
        if run.whole:
            outputs = {name: output[np.newaxis] for name, output in outputs.items()}
        elif run.counts is not None:
            contexts = [context for context, k in zip(contexts, run.counts, strict=True) for _ in range(k)]
            count = len(contexts)
        if self.takes_items:
            contexts = input_items(batch, run)
        try:
            if self._of_records is not None:
                return [*self._of_records.of_records(outputs, item_spans(run), marks_of(batch, run))]
            found = [*self._postprocess.predictions(outputs, count, contexts, run.alone)]
        except Exception as error:
            return [Rejection.of(error, "postprocess", self._postprocess)] * len(run.rows)
        self._choose(batch, run, outputs, found)
        if run.counts is not None:
            mark_windows(batch, run, found)
        if count == len(run.rows):
            return found
        return [_joined(found[start:stop]) for start, stop in item_spans(run)]

    def _choose(self, batch: Batch, run: Run, outputs: dict[str, Array], found: list[Fragment]) -> None:
        """A request that names outputs gets these alone, in its order, where the postprocess shows outputs at all."""
        if batch.feed is None or not batch.feed.items or self._shows_outputs is None:
            return
        for row, (start, stop) in zip(run.rows, item_spans(run), strict=True):
            request = request_of(batch, row)
            if request is not None and request.outputs:
                for item in range(start, stop):
                    found[item] = self._shows_outputs.chosen(outputs, item, request.outputs)

    def _with_batch_dimension(self, batch: Batch, rows: Iterable[int]) -> set[int]:
        """Rows whose record had a batch dimension of its own: these give ``predictions``."""
        assert batch.feed is not None
        items = batch.feed.items
        if not items or self._of_records is not None:
            return set()
        return {row for row in rows if (item := items[row]) is not None and not item.single}


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


def _stage_columns(stages_us: dict[str, int | Array], further: bytes) -> list[tuple[bytes, int | Array]]:
    """The stages with the text that stands before each."""
    opening = chain([b"," + further + b'"latency_ms":{"'], repeat(b',"'))
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


def _joined(parts: list[Fragment]) -> Fragment:
    """The predictions of one record's items; one refused item refuses the record, else one postponed item postpones it."""
    texts: list[bytes] = []
    later: Postponed | None = None
    for i, part in enumerate(parts):
        if isinstance(part, Rejection):
            return dataclasses.replace(part, message=f"item {i}: {part.message}")
        if isinstance(part, Postponed):
            later = later or part
        else:
            texts.append(part)
    return later or b",".join(texts)
