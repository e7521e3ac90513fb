"""Make examples/reviews/: a folder in Hugging Face's layout with a small text classifier and its tokenizer.

    .venv/bin/python scripts/train_reviews

The reviews are put together from phrases, so the model is a toy; it needs the extra `test`. The files are committed: run this
only to change them.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "reviews"
THINGS = [
    "the soup",
    "our room",
    "this phone",
    "the film",
    "the staff",
    "delivery",
    "the battery",
    "breakfast",
]
PRAISE = [
    "was excellent",
    "is a joy",
    "made us happy",
    "works perfectly",
    "was quick and friendly",
    "tasted great",
]
COMPLAINTS = [
    "was terrible",
    "is a waste",
    "made us angry",
    "broke at once",
    "was slow and rude",
    "tasted awful",
]
ENDINGS = (["", ", thank you", ", we will come back"], ["", ", never again", ", I want my money back"])
CLASSES = ["praise", "complaint"]


def main() -> None:
    texts, classes = reviews()
    tokenizer = trained_tokenizer(texts)
    counts = np.zeros((len(texts), tokenizer.get_vocab_size()))
    for row, text in enumerate(texts):
        ids = tokenizer.encode(text).ids
        np.add.at(counts[row], ids, 1 / len(ids))
    head = LogisticRegression(C=100, max_iter=1000).fit(counts, classes)
    table = np.stack([-head.coef_[0] / 2, head.coef_[0] / 2], axis=1).astype(np.float32)
    bias = np.array([-head.intercept_[0] / 2, head.intercept_[0] / 2], np.float32)
    FOLDER.mkdir(exist_ok=True)
    tokenizer.save(str(FOLDER / "tokenizer.json"), pretty=False)
    onnx.save(model_of(table, bias), str(FOLDER / "model.onnx"))
    config = {"id2label": dict(enumerate(CLASSES)), "max_position_embeddings": 256}
    (FOLDER / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def reviews() -> tuple[list[str], list[int]]:
    """Texts, and for each 0 for praise or 1 for a complaint."""
    texts, classes = [], []
    for number, phrases in enumerate((PRAISE, COMPLAINTS)):
        for thing, phrase, ending in itertools.product(THINGS, phrases, ENDINGS[number]):
            texts.append(f"{thing} {phrase}{ending}.")
            classes.append(number)
    return texts, classes


def trained_tokenizer(texts: list[str]) -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        texts, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    )
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made


def model_of(table: np.ndarray, bias: np.ndarray) -> onnx.ModelProto:
    """ids and mask (batch, sequence) -> ``logits`` (batch, 2): the mean of what each token says, by the mask."""
    constants = {
        "table": table,
        "bias": bias,
        "tokens": np.array([1], np.int64),
        "last": np.array([2], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["said"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["said", "weights"], ["own"]),
        helper.make_node("ReduceSum", ["own", "tokens"], ["sum"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "tokens"], ["count"], keepdims=0),
        helper.make_node("Div", ["sum", "count"], ["mean"]),
        helper.make_node("Add", ["mean", "bias"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "reviews", inputs, outputs, weights)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


if __name__ == "__main__":
    main()
