"""``streaminfer quantize``: a smaller, faster model, and what that costs in accuracy."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml
from pydantic import ValidationError

from worker.cli.main import add_set_option
from worker.errors import ConfigError, StartError, WorkerError
from worker.features.picture import ImageSettings
from worker.filesystem import is_dir
from worker.settings import PipelineSettings, labels_of, load
from worker.settings.mistakes import sentence
from worker.settings.yaml_text import Key, describe

if TYPE_CHECKING:
    from worker.batch import Array
    from worker.model.session import Model
    from worker.quantize.images import Pictures, Preparation
    from worker.quantize.measure import Figures

KINDS = {"static": "int8", "dynamic": "dynamic int8", "fp16": "fp16"}

EXAMPLE = """\
examples:
  streaminfer quantize digits.onnx --data pictures --out digits.int8.onnx --config digits.yaml --fold-preprocess
  streaminfer quantize resnet50.onnx --data imagenet/val --out resnet50.int8.onnx \\
      --image '{scale: 0.00392157, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}'"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Make a static INT8 model for the CPU, calibrated on pictures, and print accuracy, speed and size before "
        "and after. Half of the pictures at most calibrate, the others are what accuracy is measured on."
    )
    parser.epilog = EXAMPLE
    parser.add_argument("model", metavar="MODEL", type=Path, help="ONNX model with one picture as its input")
    parser.add_argument(
        "--data",
        metavar="DIR",
        type=Path,
        required=True,
        help="pictures; in class-named subfolders they are labelled, "
        "in a flat folder accuracy is agreement with the float model",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the model to write")
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--config",
        metavar="CONFIG",
        type=Path,
        help="a worker's YAML file: preprocess.image and labels as its pipeline for MODEL has them",
    )
    how.add_argument("--image", metavar="YAML", help="preprocess.image as YAML; default: pixels as they are")
    add_set_option(parser)
    parser.add_argument("--labels", metavar="FILE", type=Path, help="names of the classes, one per line")
    parser.add_argument(
        "--fold-preprocess",
        action="store_true",
        help="fold scale, mean and std into the first layer: the result takes pixels, uint8",
    )
    parser.add_argument("--kind", choices=KINDS, default="static", help="what to make (default static)")
    parser.add_argument(
        "--calibrate",
        metavar="N",
        type=at_least(1),
        default=200,
        help="pictures to calibrate on (default 200)",
    )
    parser.add_argument(
        "--count", metavar="N", type=at_least(2), default=1000, help="pictures to use at most (default 1000)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per model and nothing else")


def run(args: argparse.Namespace) -> int:
    """Make the model, measure it beside the original, print both.

    Raises:
        ConfigError: arguments, settings, labels or pictures.
        StartError: the model cannot be loaded or converted, or a package is missing.
    """
    if args.fold_preprocess and args.kind != "static":
        raise ConfigError(f"--fold-preprocess goes with --kind static, got {args.kind}")
    if not is_dir(args.out.absolute().parent):
        raise ConfigError(f"--out: the folder {args.out.absolute().parent} does not exist")
    if is_dir(args.out) or args.out.absolute() == args.model.absolute():
        raise ConfigError(f"--out: got {args.out}, expected a file other than MODEL")
    wanted = _wanted(args)
    _require_onnx()
    from worker.model import session
    from worker.quantize import images, measure

    model = session.load(args.model)
    preparation = _preparation(model, wanted.image)
    pictures = images.load(args.data, preparation, wanted.labels, args.count)
    calibration, held_out = pictures.split(min(args.calibrate, len(pictures) // 2))

    notes = _convert(args, model, preparation, calibration)
    made = session.load(args.out)
    settings = wanted.image.model_copy(update=images.PLAIN) if args.fold_preprocess else wanted.image
    candidates = [
        measure.Candidate("float", args.model, model, preparation),
        measure.Candidate(KINDS[args.kind], args.out, made, _preparation(made, settings)),
    ]
    figures = measure.compare(candidates, held_out)
    if args.json:
        for line in figures:
            print(json.dumps(line.as_dict()))
    else:
        _print_table(figures)
    for note in notes:
        print(note, file=sys.stderr if args.json else sys.stdout)
    return 0


class Wanted(NamedTuple):
    """What is known of the pictures before the model is."""

    image: ImageSettings
    labels: list[str] | None


def _wanted(args: argparse.Namespace) -> Wanted:
    """Preprocessing and labels from ``--config`` or ``--image`` and ``--labels``."""
    labels = labels_of(args.labels, "--labels") if args.labels else None
    if args.config is None:
        if args.overrides:
            raise ConfigError("--set goes with --config")
        return Wanted(image_settings(args.image), labels)
    pipeline = pipeline_of(args)
    image = pipeline.preprocess.options(ImageSettings)
    if image is None and len(pipeline.preprocess.inputs) == 1:
        image = next(iter(pipeline.preprocess.inputs.values())).options(ImageSettings)
    if labels is None:
        labels = pipeline.labels
    return Wanted(image or ImageSettings(), labels)


def pipeline_of(args: argparse.Namespace) -> PipelineSettings:
    """The only pipeline of the configuration, or the pipeline or step that runs MODEL."""
    pipelines = load(args.config, args.overrides).pipelines
    parts = [part for pipeline in pipelines.values() for part in pipeline.parts.values()]
    if len(parts) == 1:
        return parts[0]
    running = [part for part in parts if part.model.path == args.model.absolute()]
    if not running:
        raise ConfigError(
            f"--config: none of the pipelines {', '.join(pipelines)} in {args.config} runs {args.model}"
        )
    return running[0]


def image_settings(text: str | None) -> ImageSettings:
    try:
        given = yaml.safe_load(text or "{}")
    except yaml.YAMLError:
        given = text
    if not isinstance(given, dict):
        raise ConfigError(
            f"--image: got {describe(given)}, expected a mapping such as '{{scale: 0.00392157}}'"
        )
    try:
        return ImageSettings.model_validate(given)
    except ValidationError as error:
        known: set[Key] = {(name,) for name in ImageSettings.model_fields}
        raise ConfigError(f"--image: {sentence(error, given, known)}") from None


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError:
        raise StartError("quantize needs the onnx package: install streaminfer[quantize]") from None


def _preparation(model: Model, settings: ImageSettings) -> Preparation:
    from worker.quantize.images import Preparation

    inputs = model.signature.inputs
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise ConfigError(f"MODEL: {model.name} has {len(inputs)} inputs ({names}); expected one, a picture")
    return Preparation(settings, inputs[0])


def _convert(
    args: argparse.Namespace, model: Model, preparation: Preparation, calibration: Pictures
) -> Sequence[str]:
    """Write ``--out``; what there is to say about it."""
    import numpy as np

    from worker.model.opening import one_line
    from worker.quantize import convert, measure

    size = measure.run_size(model)
    logging.getLogger().setLevel(logging.WARNING)  # the converters tell of every tensor

    def pixels() -> Iterator[Array]:
        whole = len(calibration) if model.fixed_batch is None else max(len(calibration) // size, 1) * size
        rows = np.resize(calibration.pixels, (whole, *calibration.pixels.shape[1:]))
        return (rows[start : start + size] for start in range(0, whole, size))

    def prepared(level: int) -> Array:
        shape = (model.fixed_batch or 1, *preparation.item_shape)
        return preparation.tensor(np.full(shape, level, np.uint8))

    note: str | None = None
    try:
        if args.kind == "dynamic":
            note = convert.dynamic_int8(args.model, args.out)
        elif args.kind == "fp16":
            note = convert.fp16(args.model, args.out)
        elif args.fold_preprocess:
            note = convert.static_int8_from_bytes(args.model, args.out, pixels, prepared)
        else:
            convert.static_int8(args.model, args.out, lambda: map(preparation.tensor, pixels()))
    except WorkerError:
        raise
    except Exception as error:  # converters raise whatever they stumble over
        reason = one_line(str(error)) or type(error).__name__
        raise StartError(f"{args.model} cannot be converted to {KINDS[args.kind]}: {reason}") from error
    notes = [note] if note else []
    if args.fold_preprocess:
        notes.append("the model takes pixels: remove scale, mean and std from preprocess.image")
    return notes


def _print_table(figures: Sequence[Figures]) -> None:
    rows: list[tuple[str, ...]] = [
        ("model", "bytes", "accuracy", "agreement", "cosine", "prepare us", "run us", "run of 8 us")
    ]
    rows += [
        (
            line.kind,
            f"{line.bytes:,}",
            _shown(line.accuracy, ".2%"),
            _shown(line.agreement, ".2%"),
            _shown(line.similarity, ".5f"),
            *(_shown(us, ",.1f") for us in (line.prepare_us, line.batch_1_us, line.batch_8_us)),
        )
        for line in figures
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]
        print("  ".join(cells))
    print(f"{figures[0].pictures} pictures that were not calibrated on; times per picture on one CPU thread")


def _shown(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def at_least(least: int) -> Callable[[str], int]:
    """An argument's type: whole numbers from ``least`` on."""

    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"expected a whole number from {least} on, got {text}")
        return int(text)

    return parse
