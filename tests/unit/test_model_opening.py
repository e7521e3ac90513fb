"""What opening a model says when it fails, and what the runtime never gets to say."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from onnx import helper

from worker.errors import StartError
from worker.model.opening import one_line
from worker.model.session import load

MATRIX = ["N", 2]


def custom(domain: str) -> bytes:
    """A model whose only operator belongs to ``domain``."""
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Fancy", ["x"], ["y"], domain=domain)],
            "graph",
            [models.tensor("x", np.float32, MATRIX)],
            [models.tensor("y", np.float32, MATRIX)],
        ),
        ir_version=models.IR_VERSION,
        opset_imports=[helper.make_opsetid("", models.OPSET), helper.make_opsetid(domain, 1)],
    )
    return model.SerializeToString()


@pytest.mark.parametrize("domain", ["com.acme", "ai.onnx.contrib"])
def test_an_operator_of_a_custom_library_is_named(tmp_path: Path, domain: str) -> None:
    """A model that needs a library of custom operators is refused in one sentence that names operator and domain."""
    with pytest.raises(
        StartError, match=rf"the operator Fancy of {domain}, which comes with a library"
    ) as caught:
        load(models.write(tmp_path, custom(domain)))
    assert "\n" not in str(caught.value)


def test_an_operator_of_another_build_is_not_called_a_library(tmp_path: Path) -> None:
    """An operator of Microsoft's own domain that this build lacks is told as that: no library would bring it."""
    with pytest.raises(StartError, match=r"Fancy of com\.microsoft, which this build of ONNX Runtime"):
        load(models.write(tmp_path, custom("com.microsoft")))


def test_a_missing_locale_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text model on a system without en_US.UTF-8 is refused with the commands that install the locale."""
    import onnxruntime

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(LOCALE)

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    with pytest.raises(StartError, match=r"needs the locale en_US\.UTF-8, .*localedef -i en_US") as caught:
        load(models.write(tmp_path, models.mlp()))
    assert "onnxruntime_src" not in str(caught.value)


LOCALE = (
    "[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: /onnxruntime_src/onnxruntime/core/providers/cpu/"
    "text/string_normalizer.cc:235 onnxruntime::StringNormalizer::Locale::Locale(const std::string&)::<lambda()> "
    "Failed to construct locale with name:en_US.UTF-8:locale::facet::_S_create_c_locale name not valid:Please, "
    "install necessary language-pack-XX and configure locales\n"
)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("a /onnxruntime_src/b.cc:1 onnxruntime::X::Y(const std::string&)::<lambda()> Failed it", "a Failed it"),
        ("/onnxruntime_src/b.h:45 n::R::R(const n::T&, bool) size == 2 was false. Bad", "size == 2 was false. Bad"),
        ("/onnxruntime_src/b.h:8 const T* n::C::Input(int) const [with T = n::Tensor] Missing x", "Missing x"),
        ("/onnxruntime_src/b.h:1 n::f(std::function<void(int)>) const axis (1) bad (so)", "axis (1) bad (so)"),
        ("/onnxruntime_src/b.h:1 n::f() one /onnxruntime_src/c.h:2 n::g() two", "one two"),
    ],
)  # fmt: skip
def test_a_reason_keeps_no_source_file_and_no_function(message: str, reason: str) -> None:
    """What the runtime says of its own source is cut out of the reason, whatever the reason begins with."""
    assert one_line(message) == reason


def test_a_model_without_an_input_is_refused(tmp_path: Path) -> None:
    """A model that takes nothing would give every record the same answer: it is refused in one sentence."""
    constant = models.build(
        [helper.make_node("Constant", [], ["y"], value_floats=[1.0, 2.0])],
        [],
        [models.tensor("y", np.float32, [2])],
    )
    with pytest.raises(StartError, match="has no input"):
        load(models.write(tmp_path, constant))


def test_an_output_that_the_file_lists_twice_is_one_output(tmp_path: Path) -> None:
    """Two entries of one name are one tensor: the answer holds it once, under its name."""
    model = onnx.load_from_string(models.identity())
    model.graph.output.append(model.graph.output[0])
    loaded = load(models.write(tmp_path, model.SerializeToString()))
    assert [spec.name for spec in loaded.signature.outputs] == ["y"]
    assert list(loaded.run({"x": np.ones((1, 4), np.float32)})) == ["y"]


CONFIG = """
input: {topics: [in], format: "custom:read"}
model: {path: model.onnx}
output: {topic: out}
dead_letter: {topic: dead}
kafka: {bootstrap.servers: "localhost:1", group.id: g}
"""


@pytest.mark.parametrize("given", [None, "0"])
def test_the_runtime_reports_to_nobody_unless_asked_to(tmp_path: Path, given: str | None) -> None:
    """The variable that switches ONNX Runtime's reports off is there when it is imported, by custom code too; a value
    of the user's own stays."""
    (tmp_path / "onnxruntime").mkdir()
    (tmp_path / "onnxruntime" / "__init__.py").write_text(
        "import os, sys; print('reports off:', os.environ.get('ORT_DISABLE_TELEMETRY'), file=sys.stderr)\n"
        "raise ImportError('only looked')\n"
    )
    (tmp_path / "custom.py").write_text("import onnxruntime\ndef read(value, headers): ...\n")
    (tmp_path / "model.onnx").write_bytes(models.mlp())
    (tmp_path / "worker.yaml").write_text(CONFIG)
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), *sys.path])
    if given is not None:
        environment["ORT_DISABLE_TELEMETRY"] = given
    done = subprocess.run(
        [sys.executable, "-m", "worker", "check", "worker.yaml", "--offline"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"reports off: {given or '1'}" in done.stderr
