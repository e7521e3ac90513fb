"""Text -> the token ids, the mask and the types of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from worker.batch import Array, Feed, Padding
from worker.errors import Reject
from worker.features import Opened, Place, Record
from worker.features.strings import text_at
from worker.features.text_context import TextContext
from worker.features.tokenizer import Encoded, Tokenizer
from worker.model.signature import Signature, TensorSpec

if TYPE_CHECKING:
    from worker.features.text import TextSettings

_BYTES_PER_CHARACTER = 100
"""Upper bound of what tokenizing takes for each character that it reads."""
_COPIES = 3
"""Tensors of a token: its own array, its place in the padded run, and half again for the padding there."""
POSITIONS = 4096, 16384
"""Most tokens in one run on a processor and on a GPU, padding included: more make no run quicker, and memory grows with them."""


class TokensFeature:
    """Fills the model's inputs for ids, mask and types from one text, or from a pair.

    The row's context becomes a :class:`TextContext` if the postprocess reads it.

    Args:
        roles: the model's inputs for ``ids``, ``mask`` and ``types``; None where it has none.
        place: where in the record the text is. pair: where the second one is; None = there is none.
        wants_text: the postprocess reads the row's context, offsets included.
        positions: most tokens in one run, padding included.
    """

    slow = True

    def __init__(
        self,
        roles: Mapping[str, TensorSpec | None],
        place: Place,
        pair: Place | None,
        tokenizer: Tokenizer,
        options: TextSettings,
        wants_text: bool,
        positions: int,
    ) -> None:
        ids = roles["ids"]
        assert ids is not None
        self.spec = ids
        self.place = place
        self.pair = pair
        self.tokenizer = tokenizer
        self._wants_text = wants_text
        self._specs = {role: spec for role, spec in roles.items() if spec is not None}
        self.specs = [*self._specs.values()]
        self.mask = roles.get("mask")
        values = {"ids": tokenizer.pad_id, "mask": 0, "types": tokenizer.pad_type_id}
        self._values = {role: values[role] for role in self._specs}
        self.paddings = {
            spec.name: Padding(
                0,
                values[role],
                options.multiple,
                before=tokenizer.pads_before,
                group=ids.name,
                positions=positions,
                longest=tokenizer.max_length,
            )
            for role, spec in self._specs.items()
        }
        fixed = ids.item_shape[0]
        self._length = (
            fixed if fixed is not None else tokenizer.max_length if options.padding == "max_length" else None
        )
        """What every text is padded to; None = the longest of its run."""

    def room(self, nbytes: int, signature: Signature) -> int:
        """Bytes of memory that reading and answering a text of at most ``nbytes`` bytes takes, padding included."""
        tokenizer = self.tokenizer
        tokens = self._length or min(tokenizer.max_length, nbytes + 8)
        inputs = sum(spec.dtype.itemsize for spec in self._specs.values())
        outputs: int = sum(
            spec.item_nbytes * tokens ** spec.item_shape.count(None)
            for spec in signature.outputs
            if None in spec.item_shape
        )
        read = _BYTES_PER_CHARACTER * min(nbytes, tokenizer.most_characters)
        return int(read + _COPIES * (tokens * inputs + outputs))

    def read_all(self, records: Mapping[int, Record]) -> dict[int, Any]:
        """See :class:`worker.features.ReadsAhead`. One call of the tokenizer, without the interpreter lock."""
        found: dict[int, Any] = {}
        texts: dict[int, str | tuple[str, str]] = {}
        for row, record in records.items():
            try:
                text = text_at(self.place, record)
                texts[row] = text if self.pair is None else (text, text_at(self.pair, record))
            except Reject as error:
                found[row] = error
        encoded = self.tokenizer.encode([*texts.values()], self._wants_text)
        return found | dict(zip(texts, encoded, strict=True))

    def write(self, record: Record, feed: Feed, row: int, items: dict[str, Array], opened: Opened) -> bool:
        """See :class:`worker.features.Feature`."""
        encoded = opened.get(self)
        if encoded is None:
            encoded = self.read_all({row: record})[row]
        if isinstance(encoded, Exception):
            raise encoded
        self._put(encoded, feed, row, items)
        if encoded.truncated:
            feed.truncated.add(row)
        if self._wants_text and feed.contexts[row] is None:
            padded = self._length if self._length is not None else len(encoded.ids)
            feed.contexts[row] = TextContext(
                encoded.text, min(len(encoded.ids), padded), self.tokenizer.pads_before, encoded.offsets
            )
        return True

    def _put(self, encoded: Encoded, feed: Feed, row: int, items: dict[str, Array]) -> None:
        tokens = len(encoded.ids)
        length = self._length if self._length is not None else tokens
        own = slice(length - tokens, length) if self.tokenizer.pads_before else slice(tokens)
        values: dict[str, Any] = {"ids": encoded.ids, "mask": 1, "types": encoded.types}
        for role, spec in self._specs.items():
            if feed.arrays is not None:
                target = feed.arrays[spec.name][row]
            else:
                target = items[spec.name] = np.empty(length, spec.dtype)
            if tokens != length:
                target.fill(self._values[role])
            target[own] = values[role]
