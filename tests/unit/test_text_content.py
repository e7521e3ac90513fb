"""Text as a content: the tokens are those of HuggingFace tokenizers, in batches padded to like lengths, within bounds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime
import pytest
from text_models import by_hand, classifier, encoder, sentences, write_tokenizer
from text_support import Pipeline

from worker.cli.main import main
from worker.cli.sources import opened
from worker.errors import ConfigError
from worker.features.tokenizer import Tokenizer
from worker.telemetry.meters import Meters
from worker.telemetry.prometheus import Exposition

RAW = {"pooling": "none"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small encoder and its tokenizer."""
    models.write(tmp_path, encoder())
    write_tokenizer(tmp_path)
    return tmp_path


def reference(folder: Path, texts: list[Any], max_length: int = 512) -> list[np.ndarray[Any, Any]]:
    """The model's answers to each text alone, by the tokenizers library and ONNX Runtime."""
    tokenizer = by_hand(folder / "tokenizer.json", max_length)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    names = {given.name for given in session.get_inputs()}
    answers = []
    for text in texts:
        found = tokenizer.encode(*text) if isinstance(text, tuple) else tokenizer.encode(text)
        feeds = {
            "input_ids": found.ids,
            "attention_mask": found.attention_mask,
            "token_type_ids": found.type_ids,
        }
        answers.append(
            session.run(None, {k: np.array([v], np.int64) for k, v in feeds.items() if k in names})[0][0]
        )
    return answers


def close(found: list[Any], expected: list[Any], output: str = "last_hidden_state") -> None:
    assert len(found) == len(expected)
    for answer, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(answer["outputs"][output], wanted, rtol=1e-5, atol=1e-6)


def test_each_text_gets_what_it_gets_alone(folder: Path) -> None:
    """Sixty texts of 1 to 60 words in one batch get what tokenizers and ONNX Runtime give for each alone, without padding."""
    texts = sentences(60)
    pipeline = Pipeline(folder)
    close(pipeline.predictions(*texts), reference(folder, texts))
    assert 1 < len(pipeline.runs) < 8
    padded = sum(run["input_ids"].size for run in pipeline.runs)
    own = sum(int(run["attention_mask"].sum()) for run in pipeline.runs)
    assert padded <= 1.5 * own + 8 * len(texts)


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize("truncation", ["right", "left"])
def test_a_long_text_is_cut_without_changing_its_tokens(tmp_path: Path, kind: str, truncation: str) -> None:
    """Of a text of any length the tokens kept are those that the library keeps of the whole text, at either end."""
    path = write_tokenizer(tmp_path, kind)
    whole = by_hand(path)
    whole.enable_truncation(32, direction=truncation)
    cutting = Tokenizer(by_hand(path), 32, truncation)
    texts = [
        *sentences(10, 200, 3000),
        "x" * 5000,
        "x" * 290,
        "the fox " + "y" * 700,
        "z" * 700 + " the fox",
        "long" * 3000 + " then words " * 50,
        " " * 4000 + "the end",
        "naïve " * 2000,
        "日本語テキスト" * 1000,
        "the quick " * 3,
    ]
    for text, found in zip(texts, cutting.encode(texts), strict=True):
        expected = whole.encode(text)
        assert found.ids == expected.ids  # type: ignore[union-attr]
        assert found.truncated == bool(expected.overflowing)  # type: ignore[union-attr]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe", "unigram"])
@pytest.mark.parametrize("truncation", ["right", "left"])
@pytest.mark.parametrize("max_length", [31, 32])
def test_a_long_pair_loses_the_tokens_that_the_library_would_leave_out(
    tmp_path: Path, kind: str, truncation: str, max_length: int
) -> None:
    """Of a pair the same tokens of both texts are kept as by the library's `longest_first`, with the same types."""
    path = write_tokenizer(tmp_path, kind)
    whole = by_hand(path)
    whole.enable_truncation(max_length, direction=truncation)
    cutting = Tokenizer(by_hand(path), max_length, truncation, pairs=True)
    texts = [*sentences(4, 1, 8), *sentences(3, 40, 60), "", "x" * 300]
    pairs = [(first, second) for first in texts for second in texts]
    for pair, found in zip(pairs, cutting.encode(pairs), strict=True):
        expected = whole.encode(*pair)
        assert (found.ids, found.types) == (expected.ids, expected.type_ids)  # type: ignore[union-attr]
        assert found.truncated == bool(expected.overflowing)  # type: ignore[union-attr]


def test_a_huge_text_takes_bounded_time(folder: Path) -> None:
    """A text of 8 MB, of words or of one word, costs at most some times what one of 100 KB costs: the rest is not tokenized."""
    pipeline = Pipeline(folder, preprocess={"text": {"max_length": 128}})
    pipeline.predictions("warm")
    for text in ("the quick brown fox " * 400_000, "x" * 8_000_000):
        began = time.process_time()
        (answer,) = pipeline.predictions(text)
        assert time.process_time() - began < 1.0
        assert "outputs" in answer


def test_truncation_is_counted_or_refused(folder: Path) -> None:
    """A text beyond max_length is counted as truncated, or with `truncation: none` is `invalid` and named with its length."""
    text = {"max_length": 8}
    pipeline = Pipeline(folder, preprocess={"text": text})
    batch = pipeline.batch([b"the quick fox", b"the quick brown fox jumps over a lazy dog"])
    assert batch.feed is not None
    assert batch.feed.truncated == {1}
    assert pipeline.runs[0]["input_ids"].shape == (2, 8)
    strict = Pipeline(folder, preprocess={"text": {**text, "truncation": "none"}})
    short, long, huge = strict.predictions(
        "the fox", "the quick brown fox jumps over a lazy dog", "fox " * 9000
    )
    assert "outputs" in short
    assert long[0] == huge[0] == "invalid"
    assert long[1] == "the text has 11 tokens, expected at most 8 (max_length)"
    assert "expected at most 8" in huge[1]


def test_truncated_records_stand_in_the_metrics(folder: Path) -> None:
    """`/metrics` has the number of records whose text was truncated, by pipeline."""
    pipeline = Pipeline(folder, preprocess={"text": {"max_length": 8}})
    meters = Meters({"reviews": None})
    meters.batch("reviews", pipeline.batch([b"the fox", b"the quick brown fox jumps over a lazy dog"]))
    text = Exposition(lambda: meters.snapshot()).render().decode()
    assert 'streaminfer_truncated_total{pipeline="reviews"} 1.0' in text


def test_produce_sends_texts(tmp_path: Path) -> None:
    """A .txt file is sent line by line, a folder of them file by file, and with --raw one file as it is."""
    (tmp_path / "a.txt").write_bytes("the fox\n\nnaïve\r\n".encode())
    (tmp_path / "b.txt").write_bytes(b"two\nlines\n")
    lines = [item.value for item in opened(str(tmp_path / "a.txt"), None).read()]
    assert lines == [b"the fox", "naïve".encode()]
    files = list(opened(str(tmp_path), "name").read())
    assert [(item.key, item.value[:3]) for item in files] == [(b"a.txt", b"the"), (b"b.txt", b"two")]
    (whole,) = opened(str(tmp_path / "b.txt"), None, raw=True).read()
    assert whole.value == b"two\nlines\n"


def test_max_length_is_the_least_that_the_files_name(folder: Path) -> None:
    """Without max_length the least of tokenizer.json, tokenizer_config.json, sentence_bert_config.json and config.json counts, else 512."""

    def longest() -> int:
        return max(run["input_ids"].shape[1] for run in self_test(Pipeline(folder)))

    def self_test(pipeline: Pipeline) -> list[Any]:
        pipeline.predictions("fox " * 900)
        return pipeline.runs

    assert longest() == 512
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1000000000000000019884624838656}')
    assert longest() == 512
    (folder / "config.json").write_text(
        '{"max_position_embeddings": 130, "model_type": "roberta", "pad_token_id": 1}'
    )
    assert longest() == 128
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    assert longest() == 77
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 60}')
    assert longest() == 60
    write_tokenizer(
        folder,
        truncation={"max_length": 20, "stride": 0, "strategy": "LongestFirst", "direction": "Right"},
    )
    assert longest() == 20


def test_fixed_padding_inside_the_file_is_not_followed(folder: Path) -> None:
    """Padding to a fixed length in tokenizer.json does not make every text that long; its padding token is used."""
    write_tokenizer(
        folder,
        padding={
            "strategy": {"Fixed": 128},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 7,
            "pad_type_id": 1,
            "pad_token": "[PAD]",
        },
    )
    pipeline = Pipeline(folder)
    pipeline.predictions("the fox", "the")
    (run,) = pipeline.runs
    assert run["input_ids"].shape == (2, 8)
    assert run["input_ids"][0, 4:].tolist() == [7] * 4
    assert run["token_type_ids"][0].tolist() == [0] * 4 + [1] * 4


def test_padding_may_be_to_the_longest_in_multiples_or_to_max_length(folder: Path) -> None:
    """`multiple` sets the steps of padded lengths; `padding: max_length` gives every run that length."""
    pipeline = Pipeline(folder, preprocess={"text": {"multiple": 5}})
    pipeline.predictions("the fox jumps over")
    assert pipeline.runs[0]["input_ids"].shape == (1, 10)
    pipeline = Pipeline(folder, preprocess={"text": {"padding": "max_length", "max_length": 40}})
    found = pipeline.predictions("the fox jumps over", "fox")
    assert pipeline.runs[0]["input_ids"].shape == (2, 40)
    assert len(found) == 2


def test_a_pair_is_a_text_of_two_fields(folder: Path) -> None:
    """With `pair` the model gets both fields as the library's pair: types 1 for the second, truncated longest first."""
    pipeline = Pipeline(
        folder,
        input={"format": "json"},
        preprocess={"text": {"from": "query.text", "pair": "answers[0]", "max_length": 16}},
    )
    texts = sentences(24, 1, 14)
    pairs = [*zip(texts[:12], texts[12:], strict=True)]
    values = [json.dumps({"query": {"text": a}, "answers": [b]}) for a, b in pairs]
    close(pipeline.predictions(*values), reference(folder, pairs, 16))
    assert any(run["token_type_ids"].any() for run in pipeline.runs)
    assert pipeline.predictions('{"query": {"text": "a"}}') == [
        ("invalid", 'the field "answers[0]" is missing')
    ]


def test_text_comes_from_a_field_beside_other_inputs(folder: Path) -> None:
    """Under preprocess.inputs a text fills ids, mask and types, as far as the model has them, beside inputs from other fields."""
    pipeline = Pipeline(
        folder,
        input={"format": "json"},
        preprocess={"inputs": {"input_ids": {"from": "title", "text": {}}}},
    )
    close(pipeline.predictions('{"title": "the quick fox"}'), reference(folder, ["the quick fox"]))
    models.write(folder, encoder(types=False))
    pipeline = Pipeline(folder, preprocess={"text": {}})
    close(pipeline.predictions("the quick fox"), reference(folder, ["the quick fox"]))


def test_a_model_without_padded_outputs_answers_in_one_run_for_each_length_class(folder: Path) -> None:
    """A text classifier answers as alone, and its padded runs are encoded together."""
    models.write(folder, classifier())
    texts = sentences(40)
    pipeline = Pipeline(folder)
    close(pipeline.predictions(*texts), reference(folder, texts), "logits")


def test_a_model_that_ignores_its_mask_is_not_padded(folder: Path) -> None:
    """Where padding changes the answers, only texts of one length share a run, and every answer stays that of the text alone."""
    models.write(folder, encoder(masked=False))
    texts = sentences(30, 1, 6)
    pipeline = Pipeline(folder)
    close(pipeline.predictions(*texts), reference(folder, texts))
    assert all(run["attention_mask"].all() for run in pipeline.runs)


@pytest.mark.parametrize(
    ("masked", "sentence"),
    [(True, "records of like length share a run, padded"), (False, "only records of one length share a run")],
)
def test_check_says_whether_texts_are_padded(
    folder: Path, masked: bool, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` tells how texts of unlike length run, which depends on what the model does with padding."""
    models.write(folder, encoder(masked=masked))
    config = folder / "texts.yaml"
    config.write_text(
        "{input: {topics: [in], format: text}, model: {path: model.onnx}, output: {topic: out}, "
        "dead_letter: {topic: dead}, kafka: {bootstrap.servers: 'localhost:9092', group.id: g}}"
    )
    (folder / "sample.txt").write_text("the quick fox\n")
    sample = ["--sample", str(folder / "sample.txt")]
    assert main(["check", str(config), "--offline", *sample]) == 0
    printed = capsys.readouterr().out
    assert sentence in printed
    assert '"last_hidden_state"' in printed


def test_inputs_of_a_fixed_length_are_padded_to_it(folder: Path) -> None:
    """A model with a fixed number of tokens gets exactly so many; longer texts are truncated to it."""
    models.write(folder, encoder(length=12))
    pipeline = Pipeline(folder)
    long = "the quick brown fox jumps over a lazy dog while seven"
    assert len(pipeline.predictions("the fox", long)) == 2
    (run,) = pipeline.runs
    assert run["input_ids"].shape == (2, 12)
    assert run["attention_mask"].sum(axis=1).tolist() == [4, 12]


def test_a_string_input_takes_the_text_itself(tmp_path: Path) -> None:
    """A model with a string input gets the text without a tokenizer, from the record or from a field."""
    models.write(tmp_path, models.identity(str, ("N", 1)))
    assert Pipeline(tmp_path).predictions("a ü 日\0b", "") == [
        {"outputs": {"y": ["a ü 日\0b"]}},
        {"outputs": {"y": [""]}},
    ]
    pipeline = Pipeline(tmp_path, input={"format": "json"}, preprocess={"text": {"from": "a.b"}})
    assert pipeline.predictions('{"a": {"b": "x"}}') == [{"outputs": {"y": ["x"]}}]
    models.write(tmp_path, models.identity(str, ("N",)))
    assert Pipeline(tmp_path).predictions("x") == [{"outputs": {"y": "x"}}]


def test_hostile_text_costs_its_own_record_alone(folder: Path) -> None:
    """Bytes that are no UTF-8 are `undecodable`; NUL, right-to-left marks, a byte order mark and lone surrogates are text or refused."""
    pipeline = Pipeline(folder)
    good = "the quick fox"
    hostile = [b"\xff\xfe\x00", b"\xed\xa0\x80", b"a\0b", "\u202eabc\u202c שלום".encode(), b"", b"\xc3"]
    found = pipeline.predictions(good, *hostile, good, b"\xef\xbb\xbf" + good.encode())
    assert found[1] == ("undecodable", "not UTF-8 text: byte 0 is 0xff")
    assert [answer[0] if isinstance(answer, tuple) else "text" for answer in found] == [
        "text", "undecodable", "undecodable", "text", "text", "text", "undecodable", "text", "text",
    ]  # fmt: skip
    texts = [good, "a\0b", "\u202eabc\u202c שלום", "", good, good]
    close([answer for answer in found if isinstance(answer, dict)], reference(folder, texts))
    pipeline = Pipeline(folder, input={"format": "json"}, preprocess={"text": {"from": "t"}})
    found = pipeline.predictions(
        '{"t": "the fox"}', b'{"t": "\\ud800"}', '{"t": 5}', '{"t": null}', "{}", "[]"
    )
    assert "outputs" in found[0]
    assert found[1][0] == "undecodable"
    assert found[2:] == [
        ("invalid", 'the field "t": expected text, got an integer'),
        ("invalid", 'the field "t": expected text, got null'),
        ("invalid", 'the field "t" is missing'),
        ("invalid", "expected a JSON object, got a list"),
    ]


def test_a_default_stands_for_an_absent_text(folder: Path) -> None:
    """A field that is absent or null counts as its default."""
    pipeline = Pipeline(
        folder,
        input={"format": "json"},
        preprocess={"inputs": {"input_ids": {"from": "t", "default": "the fox", "text": {}}}},
    )
    close(pipeline.predictions("{}", '{"t": null}'), reference(folder, ["the fox"] * 2))


def test_padded_texts_are_charged_before_they_are_read(folder: Path) -> None:
    """What a text is charged grows with its bytes up to max_length and holds its tokens, padded, and its outputs."""
    servable = Pipeline(folder, preprocess={"text": {"max_length": 256}}).servable
    charged = [servable.cost(b"a" * length) for length in (10, 200, 2000, 100_000, 8_000_000)]
    assert charged == sorted(charged)
    outputs = 256 * 8 * 4
    assert charged[2] >= 3 * (256 * 3 * 8 + outputs)
    assert charged[4] < 5 * 8_000_000


MEASURE = """
import os, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import numpy as np
from text_support import Pipeline
pipeline = Pipeline(Path(sys.argv[3]), preprocess={"text": {"max_length": 256}})
words = [" ".join(np.random.default_rng(i).choice(["the", "quick", "brown", "fox"], 2000)) for i in range(64)]
pipeline.batch([text.encode() for text in words])
for values in ([text.encode() for text in words], [b"x" * 4_000_000] * 8):
    pid = os.fork()
    if not pid:
        def peak():
            return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM"))
        charged = sum(pipeline.servable.cost(value) + pipeline.servable.item_nbytes for value in values)
        open("/proc/self/clear_refs", "w").write("5")
        before = peak()
        pipeline.batch(values)
        print(charged, peak() - before, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""


def test_what_long_texts_take_is_charged(folder: Path) -> None:
    """64 texts of 2,000 words, or eight of 4 MB, take no more memory than they were charged for, and 8 MiB for a thread."""
    tests = Path(__file__).parent
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, str(tests), str(tests.parent), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if len(line.split()) == 2]
    assert len(lines) == 2
    for line in lines:
        charged, taken = map(int, line.split())
        assert taken <= charged + (8 << 20), line


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ({"tokenizer": "absent.json"}, r"preprocess\.text\.tokenizer: .*absent\.json does not exist"),
        ({"tokenizer": "model.onnx"}, r"preprocess\.text\.tokenizer: .*model\.onnx is no tokenizer\.json"),
        ({"max_length": 2}, r"preprocess\.text\.max_length: got 2, expected more than 2, the special tokens"),
        (
            {"inputs": {"ids": "ids"}},
            r"preprocess\.text\.inputs\.ids: the model has no input ids; its inputs are input_ids",
        ),
        ({"inputs": {"mask": "m"}}, r"preprocess\.text\.inputs\.mask: the model has no input m"),
        ({"pair": "b"}, r"input\.format text has no fields, got 'b'"),
        ({"from": "b"}, r"input\.format text has no fields, got 'b'"),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence(folder: Path, text: Any, sentence: str) -> None:
    """Each mistake in preprocess.text names the setting and what was expected."""
    with pytest.raises(ConfigError, match=sentence):
        Pipeline(folder, preprocess={"text": text})


def test_a_model_without_one_of_the_usual_inputs_gets_the_others(folder: Path) -> None:
    """All three usual names may be given: the model is fed those that it has."""
    models.write(folder, encoder(types=False))
    names = {"ids": "input_ids", "mask": "attention_mask", "types": "token_type_ids"}
    Pipeline(folder, preprocess={"text": {"inputs": names}})


def test_sources_that_leave_inputs_open_or_fill_them_twice_are_refused(folder: Path) -> None:
    """A model input that nothing fills, or two sources fill, is named."""
    json_in: dict[str, Any] = {"input": {"format": "json"}}
    with pytest.raises(
        ConfigError, match=r"with input\.format json the text needs a field; expected preprocess\.text"
    ):
        Pipeline(folder, **json_in, preprocess={"text": {}})
    inputs = {"input_ids": {"from": "a", "text": {}}, "attention_mask": {"from": "m"}}
    with pytest.raises(ConfigError, match="attention_mask is filled twice"):
        Pipeline(folder, **json_in, preprocess={"inputs": inputs})
    with pytest.raises(
        ConfigError, match="text fills attention_mask together with the input of the token ids"
    ):
        Pipeline(folder, **json_in, preprocess={"inputs": {"attention_mask": {"from": "a", "text": {}}}})
    with pytest.raises(ConfigError, match="input_ids is missing"):
        Pipeline(folder, **json_in, preprocess={"inputs": {"attention_mask": {"from": "m"}}})
