"""``streaminfer init``: writes a commented configuration for a model, from its signature and one record."""

from __future__ import annotations

import argparse
import json
import re
import sys
from contextlib import redirect_stdout, suppress
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.cli.init_flow import Found, Sample, asked, read_sample
from worker.cli.init_text import Names, configuration, custom_code
from worker.cli.schema import FILE as SCHEMA
from worker.errors import ConfigError, StartError, WorkerError
from worker.filesystem import exists, is_dir, is_file
from worker.telemetry import logs

if TYPE_CHECKING:
    from worker.local.answers import Answer

BOOTSTRAP = "${KAFKA_BOOTSTRAP_SERVERS:-localhost:9092}"
CUSTOM = "custom_code.py"
SHOWN = 2000
"""Characters of an answer that are printed."""

EXAMPLE = """\
examples:
  streaminfer init --model digits.onnx --sample seven.png
  streaminfer init --model iris.onnx --sample rows.csv --out iris.yaml --topic flowers
  streaminfer init --model own.onnx --sample record.json --custom

On a terminal it asks for what it cannot find out; elsewhere it takes the defaults and says what to look at."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = "Write a commented configuration for a model, and send a sample record through it. No broker is asked."
    parser.epilog = EXAMPLE
    parser.add_argument(
        "--model",
        metavar="MODEL",
        type=Path,
        help="an ONNX file, or a folder in Hugging Face's layout (default: the only .onnx file here)",
    )
    parser.add_argument(
        "--sample", metavar="FILE", help="records as for produce, or any other file as one record"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="the file to write (default: NAME.yaml)")
    parser.add_argument("--name", metavar="NAME", help="name and group of the worker (default: the model's)")
    parser.add_argument("--topic", metavar="TOPIC", help="the input topic (default: the name)")
    parser.add_argument(
        "--bootstrap",
        metavar="H:P",
        help="the broker (default: $KAFKA_BOOTSTRAP_SERVERS, else localhost:9092)",
    )
    parser.add_argument(
        "--labels",
        metavar="FILE",
        type=Path,
        help="names of the classes, one per line (default: a file beside the model)",
    )
    parser.add_argument(
        "--custom", action="store_true", help=f"also write {CUSTOM} with a postprocess to fill in, and use it"
    )
    parser.add_argument("--force", action="store_true", help="write over files that are there")
    parser.add_argument("--yes", action="store_true", help="ask nothing, take the defaults")


def run(args: argparse.Namespace) -> int:
    """Look, write, try.

    Raises:
        ConfigError: no model is named, a file is in the way, or the sample is of no use.
        StartError: the model cannot be loaded.
    """
    logs.configure(level="warning")
    asks = not args.yes and sys.stdin.isatty() and sys.stdout.isatty()
    model = args.model or _only_model(asks)
    name = args.name or _name_of(model)
    out = args.out or Path(f"{name}.yaml")
    custom = out.parent / CUSTOM if args.custom else None
    _free(out, custom, args.force)
    sample = read_sample(args.sample) if args.sample is not None else None
    with redirect_stdout(sys.stderr):
        found = Found.of(model, sample, args.labels, out)
    topic = args.topic or (asked("Input topic", name) if asks else name)
    bootstrap = args.bootstrap or (asked("Broker", BOOTSTRAP) if asks else BOOTSTRAP)
    text, answer, fault = _written(found, out, name, topic, bootstrap, custom, sample)
    _save(out, text)
    _report(out, custom, found, answer, args.sample)
    if fault is not None:
        raise type(fault)(f"{out} was written, but it does not load yet: {fault}")
    return 0 if answer is None or answer.rejected is None else ConfigError.exit_code


def _only_model(asks: bool) -> Path:
    """The model where none is named.

    Raises:
        ConfigError: there is none, or more than one and nobody to ask.
    """
    here = sorted(Path().glob("*.onnx"))
    if len(here) == 1:
        return here[0]
    if asks:
        return Path(asked("Model (an .onnx file, or a folder)", str(here[0]) if here else ""))
    there = f"{len(here)} .onnx files are here" if here else "no .onnx file is here"
    raise ConfigError(f"--model: {there}; expected an ONNX file or a folder in Hugging Face's layout")


def _name_of(model: Path) -> str:
    """A name for topics and groups, from the file's."""
    path = model.resolve()
    stem = (
        path.parent.name
        if path.stem == "model" and is_file(path)
        else path.stem
        if is_file(path)
        else path.name
    )
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.") or "model"


def _free(out: Path, custom: Path | None, force: bool) -> None:
    if is_dir(out) or not is_dir(out.absolute().parent):
        raise ConfigError(f"--out: {out} cannot be written; expected a file in a folder that exists")
    for path in (out, custom):
        if path is not None and exists(path) and not force:
            raise ConfigError(f"{path} is there already; expected --out FILE, or --force to write over it")


def _written(
    found: Found, out: Path, name: str, topic: str, bootstrap: str, custom: Path | None, sample: Sample | None
) -> tuple[str, Answer | None, WorkerError | None]:
    """The text of the configuration, the answer to the sample, and why it does not load, if it does not."""
    names = Names(name, topic, bootstrap, found.model_text, _schema())
    if custom is not None:
        _save(custom, custom_code(found.signature))
        found.use_custom_code(custom.stem)
    text = configuration(names, found.guess, found.signature, None)
    answer: Answer | None = None
    fault: WorkerError | None = None
    for _ in range(2):
        try:
            answer, fault = found.answered(text, out, sample), None
            break
        except (ConfigError, StartError) as error:
            fault = error
            if not found.without_postprocess(error):
                break
            text = configuration(names, found.guess, found.signature, None)
    test = found.test_of(answer, sample, out)
    return configuration(names, found.guess, found.signature, test), answer, fault


def _schema() -> str:
    """Where the schema is, for the first line of the file: an absolute path, since it belongs to the installation."""
    return str(SCHEMA.resolve()) if exists(SCHEMA) else "config.schema.json"


def _save(path: Path, text: str) -> None:
    there = exists(path)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        if not there:  # half a file would be in the way of the next try
            with suppress(OSError):
                path.unlink()
        raise StartError(f"{path} cannot be written: {error.strerror}") from None


def _report(out: Path, custom: Path | None, found: Found, answer: Answer | None, sample: str | None) -> None:
    """Say what was written, what came out, and what somebody should look at."""
    print(f"written to {out}{f' and {custom}' if custom is not None else ''}")
    for each in found.lines():
        print(f"  {each}")
    if answer is not None:
        shown = str(answer.rejected) if answer.rejected is not None else _shown(answer)
        print(f"\n{'the sample is refused: ' if answer.rejected is not None else 'the sample gives '}{shown}")
    if found.guess.edit:
        print("\nto look at:")
        for each in islice(found.guess.edit, 20):
            print(f"  - {each}")
    sending = f"streaminfer produce {sample} --config {out} --topic TOPIC" if sample else ""
    print(f"\nnext: streaminfer check {out} --offline" + (f" --sample {sample}" if sample else ""))
    print(
        f"      streaminfer topics {out} create --partitions 6"
        if _has_topics()
        else f"      streaminfer run {out}"
    )
    if _has_topics():
        print(f"      streaminfer run {out}")
    if sending:
        print(f"      {sending.replace('TOPIC', found.topic(out))}")


def _has_topics() -> bool:
    from worker.cli.main import COMMANDS

    return "topics" in COMMANDS


def _shown(answer: Answer) -> str:
    result: Any = answer.prediction if answer.prediction is not None else answer.result
    text = f"{len(result)} bytes" if isinstance(result, bytes) else json.dumps(result, ensure_ascii=False)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"
