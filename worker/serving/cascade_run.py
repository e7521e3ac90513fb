"""The work of a cascade on one batch: each step over all items that it is for, items of many records in one run.

Items are the records of the batch, or the boxes that a step found in them. They stand in columns, one set for each kind, because
most cascades look at records alone. A record that any step refuses has no result, and no later step works for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import orjson

from worker.batch import Batch, Run, StepPart
from worker.errors import Postponed, Reject, Rejection
from worker.serving.item_feed import CropFeed, Feeding, FieldFeed
from worker.serving.items import Items, odd_boxes, picked, together
from worker.serving.runs import merged
from worker.serving.servable import Answers, SickServable

if TYPE_CHECKING:
    from worker.postprocess import Fragment
    from worker.serving.cascade import Cascade, Step
    from worker.serving.condition import Condition
    from worker.settings.steps import Scope


@dataclass(slots=True)
class _Spent:
    """What a step had to do."""

    ended_ns: int = 0
    items: int = 0
    runs: int = 0
    sizes: list[int] = field(default_factory=list)


class CascadeRun:
    """See the module.

    Args:
        engine: runs one model over a batch, and finds the guilty item where a run fails.
    """

    def __init__(self, cascade: Cascade, batch: Batch, engine: Answers) -> None:
        self.cascade = cascade
        self.batch = batch
        self.engine = engine
        self.kinds: dict[Scope, Items] = {(): Items(range(len(batch)))}
        self._spent: dict[str, _Spent] = {}
        self._steps = {step.name: step for step in cascade.steps}

    def run(self) -> None:
        """Fill ``batch.runs`` with one run of all answered rows.

        Raises:
            SickServable: a model is sick; says in which step.
        """
        batch = self.batch
        assert batch.feed is not None
        started_ns = self.engine.now_ns()
        self._refuse_several_items()
        for step in self.cascade.steps:
            spent = self._spent[step.name] = _Spent()
            try:
                with step.turn_taken():
                    self._run(step, spent)
            except SickServable as sick:
                raise SickServable(f"step {step.name}: {sick}") from sick
            step.servable.run_limit.good()
            if step.boxes is not None:
                self._find_boxes(step, step.boxes)
            spent.ended_ns = self.engine.now_ns()
        batch.feed.opened = None
        rows = self._alive(range(len(batch)))
        if not rows:
            return
        parts = self._parts(started_ns)
        predictions = self._composed(rows)
        run = Run(rows, {}, started_ns=started_ns, ended_ns=self._spent[self.cascade.steps[-1].name].ended_ns)
        run.predictions, run.steps = predictions, parts
        run.sizes = self._spent[self.cascade.steps[0].name].sizes
        batch.runs = [run]

    def is_alive(self, row: int) -> bool:
        """Whether nobody has refused the record, or put it off."""
        feed, outcomes = self.batch.feed, self.batch.outcomes
        assert feed is not None
        assert outcomes is not None
        return row not in outcomes.rejected and row not in feed.rejected and row not in feed.postponed

    def refuse(self, step: Step, row: int, why: Rejection | Postponed, item: str = "") -> None:
        """A step refuses a record, or puts it off."""
        feed, outcomes = self.batch.feed, self.batch.outcomes
        assert feed is not None
        assert outcomes is not None
        if isinstance(why, Postponed):
            feed.postponed.setdefault(row, replace(why, rejection=_named(step, why.rejection, item)))
        else:
            outcomes.rejected.setdefault(row, _named(step, why, item))

    # -- one step ----------------------------------------------------------------------------------------

    def _run(self, step: Step, spent: _Spent) -> None:
        items = self.kinds[step.scope]
        said: list[bytes | None] = [None] * len(items.rows)
        items.said[step.name] = said
        if step is self.cascade.steps[0]:
            self._take(step, self.batch, range(len(self.batch)), said, spent)
        else:
            chosen = self._chosen(step, items)
            if chosen:
                if step.source is None:
                    inner = self._of_records(step, chosen)
                    self._answer(step, inner, chosen, said, spent)
                else:
                    self._run_in_parts(step, items, chosen, said, spent)

    def _chosen(self, step: Step, items: Items) -> Sequence[int]:
        """The items that a step is for: of records that are not refused, where its source ran and all conditions hold."""
        chosen = self._alive(items.rows)
        for condition in step.conditions:
            chosen = self._where(step, condition, items, chosen)
        return chosen

    def _alive(self, rows: Sequence[int]) -> Sequence[int]:
        """The items, of which these are the rows, of records that nobody has refused."""
        feed, outcomes = self.batch.feed, self.batch.outcomes
        assert feed is not None
        assert outcomes is not None
        if not (outcomes.rejected or feed.rejected or feed.postponed):
            return range(len(rows))
        return [item for item, row in enumerate(rows) if self.is_alive(row)]

    def _where(self, step: Step, condition: Condition, items: Items, chosen: Sequence[int]) -> Sequence[int]:
        """Of these items those for which a condition holds."""
        texts = items.said.get(condition.step)
        if condition.by_text and texts is not None:
            said = [(item, text) for item in chosen if (text := texts[item]) is not None]
            if not said:
                return []
            holds = condition.chosen([text for _, text in said])
            return [said[index][0] for index in np.flatnonzero(holds).tolist()]
        look = self._said_for(step, condition.step)
        return [item for item in chosen if condition.holds(look(item))]

    def read(self, kind: Scope, step: str) -> list[Any]:
        """The predictions of a step as plain data, by item; None where it did not run."""
        items = self.kinds[kind]
        if step not in items.read:
            items.read[step] = [None if text is None else orjson.loads(text) for text in items.said[step]]
        return items.read[step]

    def _said_for(self, step: Step, earlier: str) -> Callable[[int], Any]:
        """What an earlier step predicted for an item of this step, or for what the item is a part of; None = nothing."""
        scope = self._steps[earlier].scope
        ways = []
        at = step.scope
        while at != scope:
            ways.append(self.kinds[at].parents)
            at = at[:-1]
        read = self.read(scope, earlier)
        if not ways:
            return read.__getitem__

        def look(item: int) -> Any:
            for parents in ways:
                item = parents[item]
            return read[item]

        return look

    def step(self, name: str) -> Step:
        return self._steps[name]

    def said_of(self, step: Step, earlier: str, item: int) -> Any:
        """What an earlier step predicted for one item of this step; None if it did not run."""
        return self._said_for(step, earlier)(item)

    def _of_records(self, step: Step, rows: Sequence[int]) -> Batch:
        """The batch of a later step over records: their payloads, and what was read of them before."""
        whole = self.batch
        assert whole.feed is not None
        columns = whole.columns
        inner = Batch(
            None,
            range(len(rows)),
            picked(columns, rows),
            whole.route,
            step.servable,
            whole.taken_ns,
            whole.taken_ms,
            payloads=[whole.payloads[row] for row in rows],
            headers=[whole.headers[row] for row in rows],
            to_open={index for index, row in enumerate(rows) if row in whole.to_open},
        )
        shards = self.engine.shards(inner)
        assert inner.feed is not None
        if whole.feed.opened is not None:
            inner.feed.opened = [whole.feed.opened[row] for row in rows]
        for start, stop in shards:
            self.engine.decode(inner, start, stop)
        return inner

    def _run_in_parts(
        self, step: Step, items: Items, chosen: Sequence[int], said: list[bytes | None], spent: _Spent
    ) -> None:
        """Items that are boxes, or fields of predictions: as many at once as the step's part of the memory takes."""
        feeding: Feeding = CropFeed(self, step) if step.over_boxes else FieldFeed(self, step)
        for part, alone in self._parts_of(step, feeding, items, chosen):
            with self.cascade.room.alone if alone else nullcontext():
                inner = self._empty(step, items, part, feeding)
                feeding.fill(inner, part, self.engine)
                self._answer(step, inner, part, said, spent)

    def _parts_of(
        self, step: Step, feeding: Feeding, items: Items, chosen: Sequence[int]
    ) -> Iterator[tuple[list[int], bool]]:
        """Items that go into memory together, and whether it is one that no other may be beside."""
        part: list[int] = []
        held = 0
        most = step.servable.max_size * (1 if step.servable.decoder.fixed else 4)
        for item in chosen:
            if not self.is_alive(items.rows[item]):
                continue
            try:
                nbytes = feeding.nbytes(item)
            except Reject as error:
                self._refuse_item(step, items, item, Rejection.of(error, "preprocess", step.servable.decoder))
                continue
            if nbytes is None:  # nothing is there to be looked at
                continue
            if nbytes > self.cascade.room.largest:
                message = (
                    f"an item needs {nbytes} bytes, later steps have {self.cascade.room.largest} for one "
                    "(an eighth of limits.in_flight_bytes)"
                )
                too_large = Reject(message, "too_large")
                self._refuse_item(
                    step, items, item, Rejection.of(too_large, "preprocess", step.servable.decoder)
                )
                continue
            if nbytes > self.cascade.room.each:
                yield [item], True
                continue
            if part and (held + nbytes > self.cascade.room.each or len(part) >= most):
                yield part, False
                part, held = [], 0
            part.append(item)
            held += nbytes
        if part:
            yield part, False

    def _empty(self, step: Step, items: Items, part: Sequence[int], feeding: Feeding) -> Batch:
        whole = self.batch
        rows = [items.rows[item] for item in part]
        columns = picked(whole.columns, rows)
        columns.values = [feeding.payload(item) for item in part]
        columns.headers = [whole.headers[row] for row in rows]
        return Batch(
            None, range(len(part)), columns, whole.route, step.servable, whole.taken_ns, whole.taken_ms
        )

    # -- answers -----------------------------------------------------------------------------------------

    def _answer(
        self, step: Step, inner: Batch, part: Sequence[int], said: list[bytes | None], spent: _Spent
    ) -> None:
        """Run a batch of a later step, and take its answers."""
        self._take(step, inner, part, said, spent)
        assert inner.feed is not None
        assert inner.outcomes is not None
        items = self.kinds[step.scope]
        refused: dict[int, Any] = {**inner.feed.postponed, **inner.feed.rejected, **inner.outcomes.rejected}
        for index, why in refused.items():
            self._refuse_item(step, items, part[index], why)

    def _take(
        self, step: Step, inner: Batch, part: Sequence[int], said: list[bytes | None], spent: _Spent
    ) -> None:
        """Run the model over a decoded batch; item ``part[row]`` gets the prediction of each row."""
        runs = self.engine.answers(inner, step.servable)
        for run in runs:
            items = len(run.rows) if run.counts is None else sum(run.counts)
            spent.items += items
            spent.runs += 1
            spent.sizes.append(items)
        kind = self.kinds[step.scope]
        if inner is self.batch:
            self._name_refusals(step)
        for run in merged(runs) if len(runs) > 1 else runs:
            fragments: Sequence[Fragment] = step.servable.encoder.predict(inner, run)
            run.outputs = {}
            if len(fragments) == len(said) and set(map(type, fragments)) == {bytes}:
                said[:] = cast(
                    "Sequence[bytes]", fragments
                )  # all of them, and in order: runs are merged in ascending order
                continue
            for row, fragment in zip(run.rows, fragments, strict=True):
                if isinstance(fragment, bytes):
                    said[part[row]] = fragment
                else:
                    self._refuse_item(step, kind, part[row], fragment)

    def _name_refusals(self, step: Step) -> None:
        """The first step works on the batch itself: its refusals get its name here."""
        outcomes = self.batch.outcomes
        assert outcomes is not None
        for row, why in outcomes.rejected.items():
            outcomes.rejected[row] = _named(step, why)

    def _refuse_item(self, step: Step, items: Items, item: int, why: Rejection | Postponed) -> None:
        where = f", box {items.numbers[item]}" if items.numbers else ""
        self.refuse(step, items.rows[item], why, where)

    def _refuse_several_items(self) -> None:
        """A record has one item: what several would mean for later steps nobody has said."""
        feed = self.batch.feed
        assert feed is not None
        for row, item in enumerate(feed.items):
            if item is not None and not item.single:
                error = Reject(f"the record holds {item.count} items of its own; steps take records of one")
                feed.rejected.setdefault(row, Rejection.of(error, "decode", self))

    # -- boxes, and the result ---------------------------------------------------------------------------

    def _find_boxes(self, step: Step, member: str) -> None:
        """Make items of the boxes that a step has found."""
        items = self.kinds[step.scope]
        rows: list[int] = []
        parents: list[int] = []
        boxes: list[dict[str, Any]] = []
        numbers: list[int] = []
        for item, prediction in enumerate(self.read(step.scope, step.name)):
            if prediction is None or not self.is_alive(items.rows[item]):
                continue
            held = prediction.get(member) if isinstance(prediction, dict) else None
            if held is None:
                continue
            wrong = odd_boxes(held, step.most_boxes)
            if wrong:
                why = Rejection.of(Reject(wrong, "model_error"), "postprocess", step.servable.encoder)
                self._refuse_item(step, items, item, why)
                continue
            rows += [items.rows[item]] * len(held)
            parents += [item] * len(held)
            boxes += held
            numbers += range(len(held))
        self.kinds[*step.scope, step.name] = Items(rows, parents, boxes, numbers)

    def _composed(self, rows: Sequence[int]) -> list[bytes]:
        """The prediction of each of these rows: innermost boxes first, each gets what the steps over it said."""
        for scope in sorted(self.kinds, key=len, reverse=True):
            items = self.kinds[scope]
            if not scope or not items.said:
                continue
            for name, texts in items.said.items():
                for box, text in zip(items.boxes, texts, strict=True):
                    if text is not None:
                        box[name] = orjson.Fragment(text)
            around, step = self.kinds[scope[:-1]], scope[-1]
            for parent in dict.fromkeys(items.parents):
                around.said[step][parent] = orjson.dumps(self.read(scope[:-1], step)[parent])
        return together(self.kinds[()].said, rows)

    def _parts(self, started_ns: int) -> dict[str, StepPart]:
        """What each step had to do; the whole microseconds of all sum to those of the run."""
        parts = {}
        before = 0
        for name, spent in self._spent.items():
            until = max(0, spent.ended_ns - started_ns) // 1000
            parts[name] = StepPart(until - before, spent.items, spent.runs)
            before = until
        return parts


def _named(step: Step, why: Rejection, item: str = "") -> Rejection:
    return replace(why, message=f"step {step.name}{item}: {why.message}")
