"""``streaminfer optimize``: tries methods that make a model smaller or faster, measures each, writes the best."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from worker.cli.main import add_set_option
from worker.cli.quantize import at_least, image_settings, pipeline_of
from worker.errors import ConfigError, StartError
from worker.filesystem import exists, is_dir, is_file
from worker.optimize.table import METHODS
from worker.settings import labels_of, load

if TYPE_CHECKING:
    from worker.optimize.pipeline import Pipeline
    from worker.optimize.report import About

EXAMPLE = """\
examples:
  streaminfer optimize digits.onnx --data pictures --config digits.yaml --out smaller
  streaminfer optimize minilm.onnx --data sentences.txt --config sentences.yaml --out smaller --methods int8-dynamic,int4
  streaminfer optimize net.onnx --data inputs.npz --out smaller --max-loss 0.002

OUT gets model.onnx (the original if nothing helps), report.json, report.md, and with --config the labels and the
tokenizer. Half of the data at most is given to the methods; the other half measures. Loss is lost accuracy where the
true classes are known, else 1 minus agreement with the original."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a model smaller and faster: try every method, measure each on data that no method saw, print the table, and "
        "write the fastest model that keeps the loss."
    )
    parser.epilog = EXAMPLE
    parser.add_argument(
        "model", metavar="MODEL", type=Path, help="the ONNX model, or a folder in Hugging Face's layout"
    )
    parser.add_argument(
        "--data",
        metavar="DIR|FILE",
        type=Path,
        required=True,
        help="a folder of records (pictures, texts, ...; in class-named subfolders they are labelled), lines of text or "
        "JSON (.txt, .jsonl), or prepared inputs: .npy, or .npz with an array for each input and `labels`",
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, required=True, help="the folder to write; made if missing"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--config",
        metavar="CONFIG",
        type=Path,
        help="a worker's YAML file: records are prepared and answers are read as its pipeline for MODEL does",
    )
    how.add_argument("--image", metavar="YAML", help="preprocess.image as YAML; default: pixels as they are")
    add_set_option(parser)
    parser.add_argument("--labels", metavar="FILE", type=Path, help="names of the classes, one per line")
    parser.add_argument("--label", metavar="FIELD", help="field of a line of JSON that has its true class")
    _add_choices(parser)


def _add_choices(parser: argparse.ArgumentParser) -> None:
    """What is tried, on how much, and what is told."""
    parser.add_argument(
        "--target",
        choices=("cpu", "cuda", "tensorrt"),
        default="cpu",
        help="what will run the model (default cpu)",
    )
    parser.add_argument(
        "--max-loss", metavar="SHARE", type=_share, default=0.01, help="most that may be lost (default 0.01)"
    )
    parser.add_argument(
        "--methods",
        metavar="NAMES",
        type=_methods,
        default=tuple(METHODS),
        help=f"which to try: {', '.join(METHODS)} (default: all)",
    )
    parser.add_argument(
        "--seed", metavar="N", type=at_least(0), default=0, help="of every random choice (default 0)"
    )
    parser.add_argument(
        "--calibrate",
        metavar="N",
        type=at_least(1),
        default=200,
        help="items to give to the methods (default 200)",
    )
    parser.add_argument(
        "--count", metavar="N", type=at_least(2), default=1000, help="items to use at most (default 1000)"
    )
    parser.add_argument(
        "--keep-all", action="store_true", help="also write every model of the table into OUT/candidates"
    )
    parser.add_argument(
        "--json", action="store_true", help="one JSON object per row, then the summary, and nothing else"
    )


def run(args: argparse.Namespace) -> int:
    """Make the candidates, measure them beside the original, write the best.

    Raises:
        ConfigError: arguments, settings, labels or data.
        StartError: the model or the target cannot be used, or a package is missing.
    """
    _check_arguments(args)
    settings = load(args.config, args.overrides) if args.config is not None else None
    image = image_settings(args.image).model_dump(exclude_unset=True, by_alias=True) if args.image else None
    labels = labels_of(args.labels, "--labels") if args.labels else None
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise StartError("optimize needs the onnx package: install streaminfer[optimize]") from None
    from worker.optimize.pipeline import Pipeline

    if settings is not None:
        pipeline = Pipeline.of(pipeline_of(args), settings.limits)
    else:
        pipeline = Pipeline.implied(args.model, args.data, image, labels)
    logging.getLogger().setLevel(logging.ERROR)  # the converters tell of every tensor
    _check_target(args.target)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            return _optimize(args, pipeline, Path(folder))
    except OSError as error:  # a full disk, a file or a folder without rights
        raise StartError(f"{error.filename or args.out}: {error.strerror or error}") from None


def _check_arguments(args: argparse.Namespace) -> None:
    if args.overrides and args.config is None:
        raise ConfigError("--set goes with --config")
    if exists(args.out) and not is_dir(args.out):
        raise ConfigError(f"--out: {args.out} is a file, expected a folder")
    if (args.out / "model.onnx").absolute() == _file(args.model).absolute():
        raise ConfigError(f"--out: got {args.out}, where MODEL itself is; expected another folder")
    if not exists(args.data):
        raise ConfigError(f"--data: {args.data} does not exist; expected a folder or a file")


def _check_target(target: str) -> None:
    """That the target is here: without it there is nothing to measure.

    Raises:
        StartError: it is not.
    """
    from worker.model.opening import import_runtime
    from worker.model.providers import RUNTIME_NAMES

    if RUNTIME_NAMES[target] not in import_runtime().get_available_providers():
        raise StartError(
            f"--target {target}: the installed ONNX Runtime cannot use it, so nothing can be measured for it here; expected "
            "--target cpu, or a machine with the device and streaminfer[gpu]"
        )


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to 1, such as 0.01, got {text}")
    return value


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{name or 'an empty name'} is none of {', '.join(METHODS)}")
    return names


def _file(model: Path) -> Path:
    """The .onnx file of MODEL, which may be a folder in Hugging Face's layout."""
    if not is_dir(model):
        return model
    places = (model / "model.onnx", model / "onnx" / "model.onnx")
    return next((place for place in places if is_file(place)), model)


def _optimize(args: argparse.Namespace, pipeline: Pipeline, folder: Path) -> int:
    from worker.optimize import report
    from worker.optimize.tries import Tries

    tries = Tries(
        _file(args.model),
        pipeline,
        args.target,
        seed=args.seed,
        max_loss=args.max_loss,
        folder=folder,
        say=lambda text: print(f"{text} ...", file=sys.stderr, flush=True),
    )
    tries.read(args.data, args.label, args.count, args.calibrate)
    rows, chosen = tries.run(args.methods)
    about: About = tries.about(args.data, sys.argv[1:])
    tries.write(args.out, chosen, keep_all=args.keep_all)
    report.write(args.out, about, rows)
    copied = pipeline.copy_beside(args.out, _file(args.model))
    if args.json:
        for row in rows:
            print(json.dumps({"type": "row", **row.as_dict()}))
        files = ["model.onnx", "report.json", "report.md", *copied]
        summary = {"chosen": chosen.candidate.name, "out": str(args.out), "files": files}
        print(json.dumps({"type": "summary", **summary}, ensure_ascii=False))
        return 0
    for line in (*report.table(about, rows), *report.footnotes(about, rows)):
        print(line)
    print(
        f"{args.out / 'model.onnx'} is {chosen.candidate.name}; the report is beside it: report.json, report.md"
    )
    return 0
