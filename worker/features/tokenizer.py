"""A file of HuggingFace ``tokenizers``: how long a text may be, how it is padded, and text -> tokens in bounded time.

A tokenizer reads a whole text before it truncates. So a long text is cut by characters first, generously; the tokens that
remain are those of the whole text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker import extras
from worker.errors import ConfigError, Reject
from worker.filesystem import MADE_MAX, read_text

if TYPE_CHECKING:
    from worker.features.text import TextSettings

DEFAULT_LENGTH = 512
_NO_LENGTH = 10**9
"""``tokenizer_config.json`` names a number far above this if the model has no limit."""
_CHARACTERS = 8
"""Characters for each token of ``max_length`` that are read at first. English has about 5 to a token."""
_MOST_CHARACTERS = 64
"""Characters for each token of ``max_length`` that are read at most, if those do not give enough tokens."""
_ALWAYS_READ = 65536
"""A text of at most so many characters is read to its end if its tokens do not suffice before."""
_SPARE_TOKENS = 16
"""Tokens behind those that are kept: a cut inside a word changes the last few before it."""
_LOOK_BACK = 256
"""Characters searched for a blank to cut at, where as much is read as may be."""
_OFFSET_POSITIONS = ("roberta", "camembert", "longformer", "mpnet", "data2vec-text", "luke")
"""Model types whose positions begin behind that of the padding token: two fewer tokens fit."""

_PROBES = ("a", "the", "0", "\u4e2d")
"""Texts that show where special tokens stand; the first that gives a token is used."""

Text = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of one text or pair."""

    ids: list[int]
    types: list[int]
    truncated: bool
    text: str
    """The text; of a pair the first one."""
    offsets: list[tuple[int, int]] | None = None
    """Per token its place in ``text``, in characters; (0, 0) for special tokens and those of a pair's second text."""


class Tokenizer:
    """A tokenizer that is configured once and then only read: several threads use it at once.

    The library's own truncation is not used: it makes encodings of everything that it leaves out, and of a pair each part of
    the one with each part of the other. The tokens kept and the special tokens around them are the same.

    Args:
        tokenizer: of the library; it belongs to this object.
        max_length: most tokens of a text or pair, special ones included.
        truncation: ``right``, ``left`` or ``none``.
        pairs: it is given pairs of texts, else single texts.
        pad_id, pad_type_id, pads_before: how the tokens of a run are padded.
    """

    def __init__(
        self,
        tokenizer: Any,
        max_length: int,
        truncation: str,
        *,
        pairs: bool = False,
        pad_id: int = 0,
        pad_type_id: int = 0,
        pads_before: bool = False,
    ) -> None:
        self.max_length = max_length
        self.pad_id = pad_id
        self.pad_type_id = pad_type_id
        self.pads_before = pads_before
        self.most_characters = max(_MOST_CHARACTERS * max_length, _ALWAYS_READ)
        """Characters of a text that are read at most."""
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._truncation = truncation
        self._left = truncation == "left"
        self._frame = _Frame.of(tokenizer, pairs)
        self._room = max_length - self._frame.special
        """Tokens that are not special."""

    def unknown_id(self) -> int | None:
        """The id of what stands for a text that the vocabulary does not have; None where there is none."""
        model = json.loads(self._tokenizer.to_str())["model"]
        token, number = model.get("unk_token"), model.get("unk_id")
        found = self._tokenizer.token_to_id(token) if isinstance(token, str) else number
        return found if isinstance(found, int) else None

    def encode(self, texts: Sequence[Text], offsets: bool = False) -> list[Encoded | Reject]:
        """The tokens of each text; a :class:`Reject` for one that cannot be tokenized.

        Args:
            texts: texts, or pairs of them.
            offsets: whether to find each token's place in the text.
        """
        parts = [(text,) if isinstance(text, str) else text for text in texts]
        # Which text of a pair loses more tokens depends on which has more: so as much as may be is read of both.
        most = self.most_characters if self._frame.pairs else _CHARACTERS * self.max_length
        read = iter(self._read([part for both in parts for part in both], most, offsets))
        return [self._framed(both, [next(read) for _ in both], offsets) for both in parts]

    def _read(self, texts: Sequence[str], most: int, offsets: bool) -> list[_Read | Reject]:
        """The tokens of texts, of which at most so many characters are read."""
        cuts = [self._cut(text, most) for text in texts]
        try:
            found = self._call([cut for cut, _ in cuts], offsets)
        except Exception:  # one of them is no text for the library: it must not cost the others
            found = [self._call_one(cut, offsets) for cut, _ in cuts]
        return [
            encoding
            if isinstance(encoding, Reject)
            else _Read(encoding, encoding.ids, begins, len(cut) < len(text))
            for text, encoding, (cut, begins) in zip(texts, found, cuts, strict=True)
        ]

    def _call(self, texts: Sequence[str], offsets: bool) -> list[Any]:
        call = self._tokenizer.encode_batch if offsets else self._tokenizer.encode_batch_fast
        found: list[Any] = call(texts, add_special_tokens=False)
        return found

    def _call_one(self, text: str, offsets: bool) -> Any:
        try:
            return self._call([text], offsets)[0]
        except Exception as error:
            return Reject(f"the text cannot be tokenized: {' '.join(str(error).split())[:200]}")

    def _framed(self, texts: Sequence[str], read: list[_Read | Reject], offsets: bool) -> Encoded | Reject:
        """The tokens of one text or pair, as many as there is room for, with the special ones around them."""
        parts: list[_Read] = []
        for text, part in zip(texts, read, strict=True):
            enough = (
                isinstance(part, Reject) or not part.was_cut or len(part.ids) >= self._room + _SPARE_TOKENS
            )
            found = part if enough else self._read([text], self.most_characters, offsets)[0]
            if isinstance(found, Reject):
                return found
            parts.append(found)
        there = sum(len(part.ids) for part in parts)
        truncated = there > self._room or any(part.was_cut for part in parts)
        if truncated and self._truncation == "none":
            more = "at least " if any(part.was_cut for part in parts) else ""
            return Reject(
                f"the text has {more}{there + self._frame.special} tokens, expected at most {self.max_length} (max_length)"
            )
        kept = [self._kept(len(part.ids), size) for part, size in zip(parts, self._sizes(parts), strict=True)]
        ids, types = self._frame.around([part.ids[place] for part, place in zip(parts, kept, strict=True)])
        found_offsets = self._frame.offsets(parts[0], kept, ids) if offsets else None
        return Encoded(ids, types, truncated, texts[0], found_offsets)

    def _kept(self, there: int, size: int) -> slice:
        return slice(there - size, there) if self._left else slice(size)

    def _sizes(self, parts: Sequence[_Read]) -> list[int]:
        """How many tokens of each part are kept: of a pair the longer one loses first, as the library's longest_first has it."""
        there = [len(part.ids) for part in parts]
        if sum(there) <= self._room:
            return there
        if len(there) == 1:
            return [self._room]
        first, second = there
        shorter = min(first, second)
        longer = shorter if shorter > self._room else max(shorter, self._room - shorter)
        if shorter + longer > self._room:
            shorter = self._room // 2
            longer = shorter + self._room % 2
        return [longer, shorter] if first > second else [shorter, longer]

    def _cut(self, text: str, most: int) -> tuple[str, int]:
        """At most ``most`` characters of one end of a text, and where they begin.

        No word is cut, because a tokenizer may take a long word for unknown and a part of it for known. Only if as much is
        read as may be, a word of more than ``_LOOK_BACK`` characters is.
        """
        if len(text) <= most:
            return text, 0
        back = _LOOK_BACK if most >= self.most_characters else most
        if self._left:
            start = len(text) - most
            place = next((i for i in range(start, start + back) if _separates(text[i])), None)
            if place is None:
                place = start if back < most else len(text)
            return text[place:], place
        place = next((i for i in range(most, most - back, -1) if _separates(text[i])), None)
        if place is None:
            place = most if back < most else 0
        return text[:place], 0


def _separates(character: str) -> bool:
    """Whether no word goes on over this character: a blank, or a Chinese sign, which tokenizers take for a word of its own.

    Not every character that Python calls a blank: some are control characters, which normalizers take out.
    """
    return character in " \t\n\r" or "\u4e00" <= character <= "\u9fff"


@dataclass(frozen=True, slots=True)
class _Read:
    """The tokens of a text, or of the part of it that was read."""

    encoding: Any
    ids: list[int]
    begins: int
    """Where in the text that part begins, in characters."""
    was_cut: bool


@dataclass(frozen=True, slots=True)
class _Frame:
    """The special tokens before, between and behind the tokens of a text or pair, with the type of each."""

    pairs: bool
    specials: list[tuple[list[int], list[int]]]
    """Ids and types of the special tokens before each text, and behind the last one."""
    types: list[int]
    """Type of the tokens of each text."""

    @property
    def special(self) -> int:
        return sum(len(ids) for ids, _ in self.specials)

    @classmethod
    def of(cls, tokenizer: Any, pairs: bool) -> _Frame:
        """As the tokenizer puts them around a short text.

        Raises:
            ValueError: it does not put each text once between special tokens.
        """
        word = next((word for word in _PROBES if tokenizer.encode(word, add_special_tokens=False).ids), None)
        if word is None:
            raise ValueError(f"it gives no token for {_PROBES[0]!r}")
        shown = tokenizer.encode(word, word) if pairs else tokenizer.encode(word)
        sequences = [-1 if number is None else number for number in shown.sequence_ids]
        specials: list[tuple[list[int], list[int]]] = []
        types, place = [], 0
        for number in range(2 if pairs else 1):
            if number not in sequences:
                raise ValueError(f"it gives no token for {word!r}")
            start = sequences.index(number)
            stop = len(sequences) - sequences[::-1].index(number)
            specials.append((shown.ids[place:start], shown.type_ids[place:start]))
            types.append(shown.type_ids[start])
            place = stop
        specials.append((shown.ids[place:], shown.type_ids[place:]))
        if sum(len(ids) for ids, _ in specials) != sequences.count(-1):
            raise ValueError("it does not put each text once between special tokens")
        return cls(pairs, specials, types)

    def around(self, parts: Sequence[list[int]]) -> tuple[list[int], list[int]]:
        """Ids and types of the whole."""
        ids, types = list(self.specials[0][0]), list(self.specials[0][1])
        for part, kind, (special, special_types) in zip(parts, self.types, self.specials[1:], strict=True):
            ids += part
            ids += special
            types += [kind] * len(part)
            types += special_types
        return ids, types

    def offsets(self, first: _Read, kept: Sequence[slice], ids: list[int]) -> list[tuple[int, int]]:
        """Per token its place in the first text; (0, 0) for special tokens and those of a second text."""
        before = len(self.specials[0][0])
        places = [
            (start + first.begins, stop + first.begins) for start, stop in first.encoding.offsets[kept[0]]
        ]
        return [(0, 0)] * before + places + [(0, 0)] * (len(ids) - before - len(places))


def load(options: TextSettings, folder: Path, fixed: int | None, key: str) -> Tokenizer:
    """The tokenizer of a text's settings.

    Args:
        folder: that of the model; the tokenizer is looked for there.
        fixed: tokens that the model's inputs are fixed to; None = any number.
        key: the setting's name, for errors.

    Raises:
        ConfigError: the library is not installed, the file is missing or no tokenizer, or the lengths cannot be.
    """
    path = options.tokenizer or folder / "tokenizer.json"
    # the pool's threads already work side by side; the library's own threads would take their cores
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    library = extras.load("tokenizers", extra="text", why="preprocess.text")
    tokenizer = _read(library, path, f"{key}.tokenizer")
    beside = path.parent
    configured = _json(beside / "tokenizer_config.json")
    described = _json(beside / "config.json")
    limits = [*_lengths(tokenizer, configured, described, beside), *([fixed] if fixed is not None else [])]
    length = options.max_length or min(limits, default=DEFAULT_LENGTH)
    if fixed is not None and length > fixed:
        raise ConfigError(f"{key}.max_length: got {length}, but the model takes {fixed} tokens")
    pairs = options.pair is not None
    special = tokenizer.num_special_tokens_to_add(pairs)
    if length <= special:
        raise ConfigError(
            f"{key}.max_length: got {length}, expected more than {special}, the special tokens of every text"
        )
    padding = tokenizer.padding or {}
    pad_id = padding.get("pad_id")
    if pad_id is None:
        pad_id = _pad_id(tokenizer, configured, described)
    before = (padding.get("direction") or configured.get("padding_side")) == "left"
    try:
        return Tokenizer(
            tokenizer,
            length,
            options.truncation,
            pairs=pairs,
            pad_id=pad_id,
            pad_type_id=padding.get("pad_type_id", 0),
            pads_before=before,
        )
    except ValueError as error:
        raise ConfigError(f"{key}.tokenizer: {path} cannot be used: {error}") from None


def _read(library: Any, path: Path, key: str) -> Any:
    try:
        return library.Tokenizer.from_str(read_text(path, MADE_MAX))
    except FileNotFoundError:
        raise ConfigError(
            f"{key}: {path} does not exist; expected a tokenizer.json of HuggingFace tokenizers"
        ) from None
    except OSError as error:
        raise ConfigError(f"{key}: {path} cannot be read: {error.strerror}") from None
    except Exception as error:  # the library raises plain exceptions
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{key}: {path} is no tokenizer.json of HuggingFace tokenizers ({reason})"
        ) from None


def _json(path: Path) -> dict[str, Any]:
    """A JSON object beside the tokenizer; empty if there is none."""
    try:
        found = json.loads(read_text(path, MADE_MAX))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _lengths(
    tokenizer: Any, configured: dict[str, Any], described: dict[str, Any], beside: Path
) -> list[int]:
    """The lengths in tokens that the files name."""
    positions = described.get("max_position_embeddings")
    kind = str(described.get("model_type", ""))
    if isinstance(positions, int) and any(name in kind for name in _OFFSET_POSITIONS):
        pad = described.get("pad_token_id")
        positions -= (pad if isinstance(pad, int) else 1) + 1
    named = [
        (tokenizer.truncation or {}).get("max_length"),
        configured.get("model_max_length"),
        _json(beside / "sentence_bert_config.json").get("max_seq_length"),
        positions,
    ]
    return [int(length) for length in named if isinstance(length, int | float) and 0 < length < _NO_LENGTH]


def _pad_id(tokenizer: Any, configured: dict[str, Any], described: dict[str, Any]) -> int:
    """The id of the padding token; 0 if no file names one: a mask hides it."""
    token = configured.get("pad_token")
    names = [token.get("content") if isinstance(token, dict) else token, "[PAD]", "<pad>"]
    for name in names:
        if isinstance(name, str) and (found := tokenizer.token_to_id(name)) is not None:
            return int(found)
    found = described.get("pad_token_id")
    return found if isinstance(found, int) and found >= 0 else 0
