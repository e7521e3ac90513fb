"""README, CONTRIBUTING, SECURITY and docs/ are held to the code: commands parse, configurations load, names exist."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown.extensions.toc import slugify

from worker import errors, settings
from worker.cli.main import COMMANDS, Parser, main
from worker.cli.sample import answer
from worker.serving.load import load
from worker.telemetry.names import METRICS, PREFIX
from worker.telemetry.quality_names import QUALITY

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "digits.yaml"
TOP = [path for name in ("README", "CONTRIBUTING", "SECURITY") if (path := ROOT / f"{name}.md").exists()]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]
}
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
OTHER_COMMANDS = {
    ".venv/bin/python", ".venv/bin/ruff", "cat", "cd", "curl", "docker", "echo", "eval", "export", "jq",
    "kafka-acls.sh", "kafka-configs.sh", "kafka-consumer-groups.sh", "kafka-topics.sh", "pip", "source",
}  # fmt: skip
"""Programs that are not ours and that a command line of the documentation may begin with."""


def blocks(*languages: str) -> Iterator[tuple[str, str]]:
    """(page, text) of every fenced block in one of the languages, without the block's own indentation."""
    for page, text in PAGES.items():
        for indent, language, body in BLOCK.findall(text):
            if language in languages:
                yield page, re.sub(f"^{indent}", "", body, flags=re.MULTILINE)


def prose() -> Iterator[tuple[str, str]]:
    """(page, text) of every page without its fenced blocks."""
    for page, text in PAGES.items():
        yield page, BLOCK.sub("", text)


def command_lines() -> Iterator[tuple[str, str]]:
    """(page, command) of every simple command of the console and sh blocks and every `streaminfer ...` in the text."""
    for page, body in blocks("sh"):
        for line in body.replace("\\\n", " ").splitlines():
            yield from ((page, command) for command in simple_commands(line))
    for page, body in blocks("console"):
        for line in re.findall(r"^\$ (.*(?:\\\n.*)*)", body, re.MULTILINE):
            yield from ((page, command) for command in simple_commands(line.replace("\\\n", " ")))
    for page, text in prose():
        for found in re.findall(r"`(streaminfer [a-z]+ [^`]*[-.][^`]*)`", text):  # with arguments
            if not re.search(r"[|…]|\.\.\.", found):  # a choice of commands, not one
                yield page, found


def simple_commands(line: str) -> list[str]:
    """The commands of a shell line, without comments and the operators between them."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars="|&;")
    lexer.whitespace_split = True
    lexer.commenters = "#"
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("|&;"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [" ".join(words) for words in commands if words]


COMMAND_LINES = sorted(set(command_lines()))
FOREIGN = ("apiVersion:", "groups:", "# values.yaml")
"""What YAML of Kubernetes, of Prometheus and of the chart begins with, or has."""
YAML = [(page, text) for page, text in blocks("yaml") if not any(word in text for word in FOREIGN)]


@pytest.mark.parametrize(("page", "line"), COMMAND_LINES)
def test_every_command_is_one(page: str, line: str) -> None:
    """Each command line of the documentation is accepted by its parser, or is a script or a known program."""
    words = shlex.split(line)
    if ">" in words:
        words = words[: words.index(">")]
    while "=" in words[0]:  # VARIABLE=value before the command
        words = words[1:]
    if words[0] == "streaminfer":
        if words[1:] != ["--help"] and words[1:] != ["--version"]:
            parser(words[1]).parse_args(words[2:])
    elif words[0].startswith("scripts/"):
        assert (ROOT / words[0]).exists(), f"{page}: no {words[0]}"
    else:
        assert words[0] in OTHER_COMMANDS, f"{page}: {line}"


@pytest.mark.parametrize(("page", "text"), YAML)
def test_every_configuration_loads(page: str, text: str) -> None:
    """Each YAML block is a whole configuration, or a part that the example accepts in place of its own."""
    text = re.sub(r"\$\{[A-Z_]+_KEY\}|file:\S+", "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=", text)
    part = yaml.safe_load(re.sub(r"\$\{[A-Z_]+\}", "secret", text))
    whole = part if {"dead_letter", "kafka", "output"} <= part.keys() else merged(part)
    assert settings.validate(whole, EXAMPLE.parent).pipelines, page


def merged(part: dict[str, Any]) -> dict[str, Any]:
    """The example with the part's settings over its own."""
    whole: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    if "pipelines" in part:
        for key in ("input", "preprocess", "model", "batching", "postprocess", "output"):
            del whole[key]
    if part.get("input", {}).get("format", "image") != "image":
        del whole["preprocess"]
    if part.get("output", {}).get("format", "json") != "json":
        del whole["postprocess"]  # the binary formats go with raw
    if "repository" in part.get("model", {}):
        del whole["model"]["path"]
    for key, value in part.items():
        replaced = key in ("preprocess", "postprocess") or not isinstance(value, dict)
        whole[key] = value if replaced else {**whole.get(key, {}), **value}
    return whole


def test_the_configuration_of_the_tutorial_is_the_example() -> None:
    """The first configuration of README and tutorial is examples/digits.yaml, word for word."""
    shown = EXAMPLE.read_text(encoding="utf-8").partition("\n")[2]  # its first line says how to try it
    for page in ("README.md", "docs/tutorial.md"):
        assert next(text for name, text in YAML if name == page) == shown, page


def test_the_example_reads_its_frames() -> None:
    """The example's worker answers every frame beside it with the digit that the file is named for."""
    (rollout,) = load(settings.load(EXAMPLE)).values()
    for frame in sorted((ROOT / "examples" / "frames").iterdir()):
        assert answer(rollout, frame.read_bytes())["prediction"]["label"] == frame.stem


def test_an_example_answers_its_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """The command in the first line of examples/scans.yaml answers, and says which field feeds the model."""
    line = (ROOT / "examples" / "scans.yaml").read_text(encoding="utf-8").splitlines()[0]
    command = shlex.split(line.partition("Try it: streaminfer ")[2])
    assert main([part.replace("examples/", f"{ROOT}/examples/") for part in command]) == 0
    printed = capsys.readouterr().out
    assert '"ticket": 17, "digit": "7"' in printed
    assert 'inputs      scans: image from the field "scan.pages[0].picture"' in printed


def test_the_example_of_a_clip_answers_its_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """The command in the first line of examples/clip.yaml gives a prediction for each second of the clip."""
    line = (ROOT / "examples" / "clip.yaml").read_text(encoding="utf-8").splitlines()[0]
    command = shlex.split(line.partition("Try it: streaminfer ")[2])
    assert main([part.replace("examples/", f"{ROOT}/examples/") for part in command]) == 0
    printed = capsys.readouterr().out
    found = re.findall(r'"time_s": ([0-9.]+), "label": "(\d)"', printed)
    assert found == [("0.0", "7"), ("1.0", "3"), ("2.0", "0"), ("3.0", "1")]


def test_the_example_of_references_answers_its_sample(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command in its first line answers a frame; so does a record that names the frame's file."""
    monkeypatch.setenv("FRAMES", f"file://{ROOT}/examples/frames/")
    line = (ROOT / "examples" / "references.yaml").read_text(encoding="utf-8").splitlines()[0]
    command = shlex.split(line.partition("Try it: streaminfer ")[2])
    command = [part.replace("examples/", f"{ROOT}/examples/") for part in command]
    header = ["--sample-header", f"ce_dataref=file://{ROOT}/examples/frames/3.png"]
    for arguments, label in ((command, "7"), ([*command, *header], "3")):
        assert main(arguments) == 0
        printed = capsys.readouterr().out
        assert f'"label": "{label}"' in printed
        assert f"references  file://{ROOT}/examples/frames/" in printed


def test_the_reviews_example_answers_its_sample(capsys: pytest.CaptureFixture[str]) -> None:
    """The command in the first line of examples/reviews.yaml answers with a class that config.json of the model's folder names."""
    line = (ROOT / "examples" / "reviews.yaml").read_text(encoding="utf-8").splitlines()[0]
    command = shlex.split(line.partition("Try it: streaminfer ")[2])
    assert main([part.replace("examples/", f"{ROOT}/examples/") for part in command]) == 0
    printed = capsys.readouterr().out
    assert '"prediction": {"label": "complaint", "score": ' in printed
    assert "inputs      reviews: input_ids from the record" in printed


def test_the_example_of_model_code_answers_its_sample(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command in the first line of examples/nearest/nearest.yaml answers with the class beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "nearest"))
    line = (ROOT / "examples" / "nearest" / "nearest.yaml").read_text(encoding="utf-8").splitlines()[0]
    command = shlex.split(line.partition("# streaminfer ")[2])
    assert main([part.replace("examples/", f"{ROOT}/examples/") for part in command]) == 0
    assert '"prediction": {"label": "summer", "distance": ' in capsys.readouterr().out


def test_the_custom_code_of_the_guide_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guide's custom code takes a record to a prediction, and refuses a record that is too short."""
    code = next(
        text
        for page, text in blocks("python")
        if page == "docs/guides/custom-code.md" and "def digit" in text
    )
    (tmp_path / "tickets.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    document = {
        **yaml.safe_load(EXAMPLE.read_text()),
        "input": {"topics": ["tickets"], "format": "tickets:digit"},
        "postprocess": "tickets:parity",
    }
    del document["preprocess"]
    try:
        (rollout,) = load(settings.validate(document, EXAMPLE.parent)).values()
        result = answer(rollout, json.dumps({"pixels": [0] * 784}).encode())
        assert result["prediction"].keys() == {"even", "digit"}
        with pytest.raises(errors.Reject, match="got 1 pixels, expected 784"):
            answer(rollout, b'{"pixels": [0]}')
    finally:
        sys.modules.pop("tickets", None)


def test_every_python_block_compiles() -> None:
    """Each Python block of the documentation is syntactically correct."""
    for page, text in blocks("python"):
        compile(text, page, "exec")


def test_every_command_is_documented() -> None:
    """Each command of `streaminfer` has its place in the reference."""
    reference = PAGES["docs/reference/commands.md"]
    assert [name for name in COMMANDS if f"## `streaminfer {name}`" not in reference] == []


def test_every_folder_is_in_the_module_map() -> None:
    """Each folder of the package stands in the architecture page's module map."""
    page = PAGES["docs/explanation/architecture.md"]
    folders = [path.name for path in (ROOT / "worker").iterdir() if path.is_dir() and path.name[0] != "_"]
    assert [name for name in folders if f"`worker/{name}/`" not in page] == []


def test_every_path_named_exists() -> None:
    """Scripts and source files that the text names exist, and so do the targets of links outside docs/."""
    missing = []
    for page, text in prose():
        named = set(
            re.findall(r"`(scripts/[\w-]+|(?:worker|tests|examples|schemas|docker)/[\w/.-]*)[` ]", text)
        )
        if not page.startswith("docs/"):
            named |= {target for target in re.findall(r"\]\(([^)#]+)[)#]", text) if "://" not in target}
        missing += [(page, name) for name in sorted(named) if not (ROOT / name).exists()]
        tests = set(re.findall(r"`(test_\w+\.py)`", text))
        missing += [(page, name) for name in sorted(tests) if not list((ROOT / "tests").rglob(name))]
    assert missing == []


def test_every_anchor_linked_from_outside_the_site_exists() -> None:
    """A link from README, CONTRIBUTING or SECURITY to a heading leads to one."""
    broken = []
    for page, text in prose():
        if page.startswith("docs/"):
            continue  # the strict build looks at these
        for target, anchor in re.findall(r"\]\(([^)#:]*\.md)?#([^)]+)\)", text):
            if anchor not in anchors(PAGES[target or page]):
                broken.append((page, target, anchor))
    assert broken == []


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the site and GitHub name them."""
    return {slugify(title.replace("`", ""), "-") for title in re.findall(r"^#+ (.*)", text, re.MULTILINE)}


def test_every_metric_is_documented() -> None:
    """Each metric has its row in the reference."""
    page = PAGES["docs/reference/metrics.md"]
    assert [
        metric.name
        for metric in (*METRICS, *QUALITY)
        if f"| `{PREFIX}{metric.name}` | {metric.kind} |" not in page
    ] == []


def test_every_metric_named_exists() -> None:
    """Each `streaminfer_...` in the documentation is a metric of the worker."""
    exposed = {PREFIX + metric.name for metric in (*METRICS, *QUALITY)}
    exposed |= {name + suffix for name in exposed for suffix in ("_bucket", "_count", "_sum")}
    named = {
        (page, name) for page, text in PAGES.items() for name in re.findall(r"\bstreaminfer_[a-z0-9_]+", text)
    }
    assert {(page, name) for page, name in named if name not in exposed} == set()


def test_every_setting_named_exists() -> None:
    """Each dotted setting in the text, such as `limits.stall_s`, is one of the reference's."""
    keys = set(re.findall(r"^\| `([\w.<>]+)` \|", PAGES["docs/reference/settings.md"], re.MULTILINE))
    sections = {key.partition(".")[0] for key in keys if "." in key}
    keys |= set(re.findall(r"^\| `([\w.<>]+)` \|", PAGES["docs/reference/results.md"], re.MULTILINE))
    known = keys | {".".join(key.split(".")[:n]) for key in keys for n in range(1, key.count(".") + 1)}
    unknown = set()
    for page, text in prose():
        for name in re.findall(r"`([a-z_]+\.[a-z_.]+)(?:: [^`]*)?`", text):
            file = name.endswith((".onnx", ".sig"))
            if name.partition(".")[0] in sections - {"kafka"} and name not in known and not file:
                unknown.add((page, name))
    assert unknown == set()


def test_every_exit_code_has_its_remedy() -> None:
    """Each exit code that an error can give stands in the operator's table."""
    codes = {error.exit_code for error in [errors.WorkerError, *errors.WorkerError.__subclasses__()]}
    page = PAGES["docs/operations/exit-codes.md"]
    assert {str(code) for code in codes} <= set(re.findall(r"^\| (\d+) \|", page, re.MULTILINE))


def test_the_generated_parts_are_current() -> None:
    """The generated parts of the reference are what scripts/reference writes; a stale part is written anew."""
    regenerated: Any = runpy.run_path(str(ROOT / "scripts" / "reference"))["regenerated"]
    for path in sorted((ROOT / "docs" / "reference").glob("*.md")):
        text = path.read_text(encoding="utf-8")
        assert regenerated(text) == text, f"{path.name} is not current: run scripts/reference"
    stale = PAGES["docs/reference/settings.md"].replace("`input.max_bytes`", "`input.most`")
    assert regenerated(stale) == PAGES["docs/reference/settings.md"]


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    """The site builds with no broken link, no unknown anchor and no page outside the navigation."""
    done = build_site(ROOT, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_site_loads_nothing_from_the_network(tmp_path: Path) -> None:
    """No page of the site loads a script, a style sheet, a font or a picture from another host."""
    assert build_site(ROOT, tmp_path).returncode == 0
    loaded = re.compile(
        r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*\shref=["']?(?:https?:)?//"""
    )
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    assert [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    """The strict build refuses a page whose link or anchor leads nowhere."""
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with open(tmp_path / "docs" / "tutorial.md", "a", encoding="utf-8") as page:
        page.write("\n[nowhere](reference/settings.md#no-such-section)\n")
    done = build_site(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    assert "no-such-section" in done.stderr


def build_site(root: Path, site: Path) -> subprocess.CompletedProcess[str]:
    """Run the build of scripts/docs into another folder."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def parser(command: str) -> argparse.ArgumentParser:
    """The parser of one command, whose mistakes are raised as ConfigError."""
    made = Parser(prog=f"streaminfer {command}", allow_abbrev=False)
    importlib.import_module(f"worker.cli.{command}").configure(made)
    return made
