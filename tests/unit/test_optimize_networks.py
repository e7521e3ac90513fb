"""`optimize` on the networks that the documentation measures; scripts/make_networks.py makes them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from worker.cli import main as cli
from worker.model import session

PACKAGE = Path(session.__file__).parents[1]
ROOT = PACKAGE.parent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def optimized(folder: Path, network: str, data: str, *options: str) -> dict[str, Any]:
    """The rows by name, for a network made by the script."""
    script = [sys.executable, str(ROOT / "scripts" / "make_networks.py"), str(folder), network]
    subprocess.run(script, check=True, cwd=folder)
    out = folder / "out"
    arguments = [str(folder / f"{network}.onnx"), "--data", str(folder / data), "--out", str(out), *options]
    assert cli.main(["optimize", *arguments]) == 0
    report = json.loads((out / "report.json").read_text())
    return {row["name"]: row for row in report["rows"]} | {"": report}


def test_a_digits_network_ten_times_too_large_is_pruned(tmp_path: Path) -> None:
    """Pruned, refitted and in INT8 it keeps the accuracy within 0.01, at less than a tenth of the bytes and twice the speed."""
    rows = optimized(tmp_path, "digits", "digits", "--config", str(PACKAGE / "demo_data" / "digits.yaml"))
    original, chosen = rows["original"], rows[rows[""]["chosen"]]
    assert original["bytes"] > 9 * (PACKAGE / "demo_data" / "digits.onnx").stat().st_size
    assert chosen["method"] in ("prune", "prune-int8")
    assert chosen["accuracy"] >= original["accuracy"] - 0.01 > 0.95
    assert chosen["bytes"] < original["bytes"] / 10
    assert chosen["best_us"] < original["best_us"] / 2


@pytest.mark.parametrize("network", ["squeezenet", "resnet18"])
def test_convolutions_become_faster_in_int8(tmp_path: Path, network: str) -> None:
    """Static INT8 has about a quarter of the bytes and is faster."""
    rows = optimized(tmp_path, network, "pictures.npz", "--methods", "int8-static", "--count", "32")
    assert rows["int8-static"]["bytes"] < rows["original"]["bytes"] / 3
    assert rows["int8-static"]["best_us"] < rows["original"]["best_us"]
    assert rows["int8-static"]["similarity"] > 0.99


def test_a_sentence_model_keeps_its_embeddings_in_int8(tmp_path: Path) -> None:
    """MiniLM with weights in INT8, and in mixed precision, gives embeddings with a cosine of 0.99 and more."""
    (tmp_path / "sentences.yaml").write_text(
        "input: {topics: [in], format: text}\n"
        "preprocess: {text: {tokenizer: tokenizer.json, max_length: 256}}\n"
        "model: {path: minilm.onnx}\n"
        "postprocess: {embedding: {pooling: mean, normalize: true}}\n"
        "output: {topic: out}\n"
        "dead_letter: {topic: dead}\n"
        'kafka: {bootstrap.servers: "localhost:9092", group.id: g}\n'
    )
    options = ["--config", str(tmp_path / "sentences.yaml"), "--count", "100"]
    rows = optimized(
        tmp_path, "minilm", "sentences.txt", *options, "--methods", "int8-static,int8-mixed,int8-weights"
    )
    assert rows["int8-weights"]["agreement"] > 0.999
    assert rows["int8-mixed"]["agreement"] > rows["int8-static"]["agreement"] > 0.97
    assert (tmp_path / "out" / "tokenizer.json").is_file()
