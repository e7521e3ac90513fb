"""Many pipelines in few lines: fragments, defaults, included files, and the configuration that counts."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from worker.cli.main import main
from worker.errors import ConfigError
from worker.settings import Settings, json_schema, load, printed

REST = """
dead_letter: {topic: dead}
kafka: {bootstrap.servers: "localhost:9092", group.id: g}
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes files by name and makes their folder the current one."""
    monkeypatch.chdir(tmp_path)

    def write(**texts: str) -> None:
        for name, text in texts.items():
            path = Path(name.replace("__", "/") + ".yaml")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return write


def refused(path: str = "main.yaml", *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return "\n".join(map(str, caught.value.mistakes))


# --- fragments


def test_fragments_are_nobodys_settings(files: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`x-...` at the top and in a pipeline is not read, not even its variables; a pipeline may have such a name."""
    monkeypatch.delenv("NOT_THERE", raising=False)
    files(
        main="x-frames: &frames {format: image, max_bytes: 1000}\nx-other: ${NOT_THERE}\npipelines:\n"
        "  x-ray: {x-owner: me, input: {<<: *frames, topics: [a]}, model: {path: m.onnx}, output: {topic: b}}"
        + REST
    )
    pipeline = load("main.yaml").pipelines["x-ray"]
    assert (pipeline.input.format, pipeline.input.max_bytes) == ("image", 1000)
    files(
        main="limits: {x-frames: 1}\ninput: {topics: [a], format: json}\nmodel: {path: m}\noutput: {topic: b}"
        + REST
    )
    assert "unknown key limits.x-frames" in refused()


# --- defaults


def test_defaults_are_merged_deep_into_each_pipeline(files: Any) -> None:
    """Mappings are merged key by key; lists and values of the pipeline stand in place of the default; null takes it away."""
    files(
        main="""
defaults:
  input: {format: json, max_bytes: 1000, fields: [a, b]}
  model: {path: m.onnx, providers: [cpu]}
  batching: {max_size: 8, max_wait_ms: 3}
  cache: {bytes: 100}
pipelines:
  one: {input: {topics: [a]}, output: {topic: x}}
  two: {input: {topics: [b], fields: [c]}, batching: {max_size: 2}, output: {topic: x}, cache: null}
"""
        + REST
    )
    one, two = load("main.yaml").pipelines.values()
    assert (one.input.format, one.input.max_bytes, one.input.fields) == ("json", 1000, ["a", "b"])
    assert (two.input.max_bytes, two.input.fields) == (1000, ["c"])
    assert (one.batching.max_size, two.batching.max_size, two.batching.max_wait_ms) == (8, 2, 3.0)
    assert one.cache is not None
    assert two.cache is None
    assert load("main.yaml", ["defaults.batching.max_wait_ms=9"]).pipelines["two"].batching.max_wait_ms == 9


def of_one(defaults: str, pipeline: str) -> str:
    """A file with defaults and one pipeline."""
    return (
        f"defaults: {{input: {{format: json}}, {defaults}}}\n"
        f"pipelines: {{a: {{input: {{topics: [a]}}, output: {{topic: b}}, {pipeline}}}}}{REST}"
    )


def test_one_of_several_things_is_not_merged_with_another(files: Any) -> None:
    """A pipeline that names another postprocess, content, model source or steps has nothing of the default's."""
    files(
        main=of_one(
            "model: {path: m}, postprocess: {classification: {top_k: 3}}", "postprocess: {embedding: {}}"
        ),
        same=of_one(
            "model: {path: m}, postprocess: {classification: {top_k: 3}}",
            "postprocess: {classification: {activation: softmax}}",
        ),
        word=of_one("model: {path: m}, postprocess: {classification: {top_k: 3}}", "postprocess: raw"),
        content=of_one(
            "model: {path: m}, preprocess: {image: {color: gray}}", "preprocess: {numeric: {mean: 1}}"
        ),
        source=of_one(f"model: {{path: m, sha256: {0:064}}}", "model: {repository: models, name: a}"),
        steps=of_one("model: {path: m}, postprocess: regression", "steps: [{name: s, model: {path: n}}]"),
        model=of_one("steps: [{name: s, model: {path: n}}]", "model: {path: m}"),
    )
    found = {name: load(f"{name}.yaml").pipelines["a"] for name in
             ("main", "same", "word", "content", "source", "steps", "model")}  # fmt: skip
    assert found["main"].postprocess.name == "embedding"
    options: Any = found["same"].postprocess.options
    assert (options.top_k, options.activation) == (3, "softmax")
    assert found["word"].postprocess.name == "raw"
    assert [content.name for content in found["content"].preprocess.contents] == ["numeric"]
    assert (found["source"].model.path, found["source"].model.sha256) == (None, None)
    assert found["steps"].steps is not None
    assert found["model"].steps is None


def test_a_mistake_in_the_defaults_is_told_once_at_its_line(files: Any) -> None:
    """Twenty pipelines with one wrong default are one mistake, named as it is written."""
    pipelines = "".join(f"  p{n}: {{input: {{topics: [t{n}]}}, output: {{topic: x}}}}\n" for n in range(20))
    files(
        main="defaults:\n  input: {format: json}\n  model: {path: m}\n  batching: {max_sise: 8, max_wait_ms: x}\n"
        f"pipelines:\n{pipelines}{REST}"
    )
    assert refused().splitlines() == [
        "main.yaml:4:14: unknown key defaults.batching.max_sise; "
        "the nearest known key is defaults.batching.max_size",
        "main.yaml:4:40: defaults.batching.max_wait_ms: got 'x', expected a number",
    ]
    shared = refused(
        "main.yaml", "defaults.batching={}", "defaults.output.format=oip", "defaults.postprocess=regression"
    )
    assert "pipelines.p0.output.format" in shared
    assert shared.endswith("(and 19 other pipelines)")


# --- include


def test_included_files_count_as_if_they_stood_there(files: Any) -> None:
    """Pipelines of a folder of files join those of the main file, each file one or several; defaults count for all."""
    files(
        main="include: [pipelines/*.yaml, limits.yaml]\ndefaults: {input: {format: json}, model: {path: m.onnx}}\n"
        "pipelines:\n  z: {input: {topics: [z]}, output: {topic: x}}\n" + REST,
        pipelines__cam02="input: {topics: [c]}\noutput: {topic: x}\n",
        pipelines__cam01="pipelines:\n  a: {input: {topics: [a]}, output: {topic: x}}\n"
        "  b: {input: {topics: [b]}, output: {topic: x}}\n",
        pipelines__named="name: own\ninput: {topics: [d]}\nmodel: {path: n.onnx}\noutput: {topic: x}\n",
        limits="limits: {stall_s: 30}\n",
    )
    settings = load("main.yaml", ["pipelines.cam02.batching.max_size=3"])
    assert list(settings.pipelines) == ["z", "a", "b", "cam02", "own"]
    assert settings.pipelines["cam02"].model.path == Path.cwd() / "m.onnx"
    assert settings.pipelines["own"].model.path == Path.cwd() / "n.onnx", "paths begin at the main file"
    assert settings.pipelines["cam02"].batching.max_size == 3
    assert settings.limits.stall_s == 30


def test_mistakes_of_an_included_file_have_its_lines(files: Any) -> None:
    """A wrong setting of an included file is told with that file's name and line."""
    files(
        main=f"include: [one.yaml]{REST}",
        one="input: {topics: [a], format: json}\nmodel: {path: m}\nbatching:\n  max_size: many\noutput: {topic: b}\n",
    )
    assert refused() == (
        "one.yaml:4:13: pipelines.one.batching.max_size: got 'many', expected a whole number or 'auto'"
    )


@pytest.mark.parametrize(
    ("texts", "sentences"),
    [
        ({"main": "include: [gone.yaml]"}, ["main.yaml:1:11: include.0: gone.yaml does not exist; expected"]),
        ({"main": "include: [none/*.yaml]"}, ["include.0: no file matches none/*.yaml"]),
        ({"main": "include: one.yaml"}, ["include: got 'one.yaml', expected a list of files"]),
        ({"main": "include: [[a]]"}, ["include.0: got [a], expected a file"]),
        ({"main": "include: [.]"}, ["include.0: . is a directory"]),
        ({"main": "include: [main.yaml]"}, ["main.yaml is included by itself: main.yaml -> main.yaml"]),
        (
            {"main": "include: [one.yaml]", "one": "include: [main.yaml]"},
            ["one.yaml:1:11: include.0: main.yaml is included by itself: main.yaml -> one.yaml -> main.yaml"],
        ),
        (
            {"main": "include: [one.yaml]\nlimits: {stall_s: 3}", "one": "limits: {stall_s: 4}"},
            ["one.yaml:1:10: limits.stall_s: is in main.yaml:2, too; expected it in one file"],
        ),
        (
            {"main": "include: [one.yaml, two.yaml]", "one": "pipelines: {a: {}}", "two": "pipelines: {a: {}}"},
            ["two.yaml:1:13: pipelines.a: is in one.yaml:1, too"],
        ),
        (
            {"main": "include: [one.yaml, two.yaml]", "one": "- a", "two": "a: [b"},
            ["two.yaml:1:6: not valid YAML", "one.yaml: expected a YAML mapping of settings, got a list"],
        ),
    ],
    ids=str,
)  # fmt: skip
def test_files_that_do_not_go_together_are_one_sentence_each(
    texts: dict[str, str], sentences: list[str], files: Any
) -> None:
    """A missing file, a pattern without a file, a circle, and a setting in two files are named with file and line."""
    files(**texts)
    told = refused().splitlines()
    assert len(told) == len(sentences)
    assert all(wanted in line for wanted, line in zip(sentences, told, strict=True)), told


def test_a_pattern_that_matches_the_file_itself_leaves_it_out(files: Any) -> None:
    """`include: ["*.yaml"]` means the other files; a file that two patterns name counts once."""
    files(
        main=f'include: ["*.yaml", one.yaml]{REST}',
        one="input: {topics: [a], format: json}\nmodel: {path: m}\noutput: {topic: b}\n",
    )
    assert list(load("main.yaml").pipelines) == ["one"]


def test_set_names_pipelines_that_are_there(files: Any) -> None:
    """--set of a setting of an unknown pipeline names the nearest one; a whole pipeline may be added."""
    one = "{input: {topics: [%s], format: json}, model: {path: m}, output: {topic: x}}"
    files(main=f"pipelines:\n  cam03: {one % 'a'}\n  cam04: {one % 'b'}{REST}")
    assert "--set pipelines.cam3.input.topics: no pipeline cam3; did you mean cam03?" in refused(
        "main.yaml", "pipelines.cam3.input.topics=[x]"
    )
    assert "no pipeline door; expected one of cam03, cam04" in refused(
        "main.yaml", "pipelines.door.priority=1"
    )
    assert "door" in load("main.yaml", [f"pipelines.door={one % 'c'}"]).pipelines
    assert "expected in the file itself" in refused("main.yaml", "include=[x]")


def test_set_changes_no_other_pipeline_behind_an_alias(files: Any) -> None:
    """Two pipelines that share a fragment by an alias are two: --set of one leaves the other as it was."""
    files(
        main="x-b: &b {max_size: 4}\npipelines:\n"
        "  a: {input: {topics: [a], format: json}, model: {path: m}, batching: *b, output: {topic: x}}\n"
        "  b: {input: {topics: [b], format: json}, model: {path: m}, batching: *b, output: {topic: x}}" + REST
    )
    settings = load("main.yaml", ["pipelines.a.batching.max_size=2"])
    assert [each.batching.max_size for each in settings.pipelines.values()] == [2, 4]


# --- what counts


def test_print_shows_what_counts_and_where_it_comes_from(
    files: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check --print` is YAML with a comment behind each setting: file and line, a variable, --set, or default."""
    monkeypatch.setenv("SIZE", "7")
    files(
        main="include: [cam.yaml]\ndefaults:\n  model: {path: m.onnx}\n  batching: {max_size: '${SIZE}'}\n"
        f"metrics: {{topic: numbers}}{REST}",
        cam="input: {topics: [a], format: json}\npostprocess: regression\noutput: {topic: b}\n",
    )
    argv = [
        "check",
        "main.yaml",
        "--print",
        "--set",
        "limits.stall_s=9",
        "--set",
        "kafka.sasl.password=hunter2",
    ]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    lines = {" ".join(line.split()) for line in shown.splitlines()}
    assert {
        "topics: [a] # cam.yaml:1",
        f"path: {os.getcwd()}/m.onnx # main.yaml:3",
        "max_size: 7 # main.yaml:4 ${SIZE}",
        "max_wait_ms: 5.0 # default",
        "regression: {} # cam.yaml:2",
        "topic: numbers # main.yaml:5",
        "stall_s: 9.0 # --set",
        "sasl.password: '[redacted]' # --set",
    } <= lines
    assert "hunter2" not in shown
    assert yaml.safe_load(shown)["pipelines"]["cam"]["input"]["topics"] == ["a"]
    files(main="limits: {stall_s: x}")
    assert main(["check", "main.yaml", "--print"]) == 2


EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_what_is_printed_means_the_same(
    example: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed form of each example is read as the same settings."""
    settings = example_settings(example, monkeypatch)
    path = tmp_path / "printed.yaml"
    path.write_text(printed(settings), encoding="utf-8")
    assert load(path).model_dump() == settings.model_dump()


def example_settings(example: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """An example with something for each variable that it needs."""
    text = example.read_text(encoding="utf-8")
    if re.search("^encryption:", text, re.MULTILINE):
        pytest.skip("its keys are secrets, which are not printed")
    for name in re.findall(r"\$\{(\w+)\}", text):
        monkeypatch.setenv(name, "given")
    return load(example)


def test_the_schema_takes_defaults_includes_and_fragments() -> None:
    """An editor accepts a pipeline whose settings stand in defaults, and still finds what is misspelt."""
    schema = jsonschema.Draft202012Validator(json_schema())
    good: dict[str, Any] = yaml.safe_load(
        "x-a: 1\ndefaults: {input: {format: json}, model: {path: m}}\npipelines: {a: {x-b: 1, input: {topics: [a]}}}"
        + REST
    )
    schema.validate(good)
    schema.validate({"include": ["a.yaml"]})
    for bad in (
        good | {"defaults": {"inputt": {}}},
        good | {"defaults": {"batching": {"max_size": "many"}}},
        {key: value for key, value in good.items() if key != "defaults"},
        {"include": "a.yaml"},
        {},
    ):
        assert not schema.is_valid(bad), bad
