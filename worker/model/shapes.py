"""``model.shapes``: what items look like where a model leaves it open, checked against what it takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import structlog

from worker.errors import ConfigError
from worker.model.made_up import likely_sizes, made_up, pinned
from worker.model.opening import one_line
from worker.model.probe import Run
from worker.model.signature import TensorSpec

log = structlog.get_logger()


def side_by_side(
    shapes: Mapping[str, Sequence[Sequence[int]]], inputs: Sequence[TensorSpec]
) -> list[Mapping[str, Sequence[int]]]:
    """The shapes by input that belong together: the first of each input, the second of each, and so on.

    Args:
        shapes: by input; an input with one shape has it in all of them.

    Raises:
        ConfigError: an input that the model does not have, a shape that it does not take, or different numbers of shapes.
    """
    specs = {spec.name: spec for spec in inputs}
    for name, given in shapes.items():
        spec = specs.get(name)
        if spec is None:
            raise ConfigError(
                f"model.shapes: {name} is no input of the model; expected one of {', '.join(specs)}"
            )
        for shape in given:
            _check(shape, spec)
    counts = {len(given) for given in shapes.values()} - {1}
    if len(counts) > 1:
        raise ConfigError(
            "model.shapes: the inputs have different numbers of shapes; expected one shape, or equally many, for each input"
        )
    count = max((len(given) for given in shapes.values()), default=0)
    return [{name: given[index % len(given)] for name, given in shapes.items()} for index in range(count)]


def run_each(
    run: Run, inputs: Sequence[TensorSpec], shapes: Sequence[Mapping[str, Sequence[int]]], model: str
) -> None:
    """Run an item of each shape, so that the first records of that shape do not pay for it."""
    for shape in shapes:
        known = pinned(inputs, shape)
        try:
            run(made_up(known, likely_sizes(known)[0]))
        except Exception as error:
            log.warning(
                "the model refuses a made-up item of a shape in model.shapes",
                model=model,
                shapes={name: list(lengths) for name, lengths in shape.items()},
                reason=one_line(str(error)),
            )


def _check(shape: Sequence[int], spec: TensorSpec) -> None:
    declared = spec.shape if spec.whole is None else spec.whole
    if spec.has_rows and declared[0] is None:
        declared = (1, *declared[1:])
    fits = len(shape) == len(declared) and all(
        length in (None, given) for length, given in zip(declared, shape, strict=True)
    )
    if not fits:
        expected = str(list(declared)).replace("None", "any")
        raise ConfigError(
            f"model.shapes.{spec.name}: got {list(shape)}, expected {expected}: the shape of one item"
        )
