"""What a method of ``optimize`` is given and what it gives, and trying them one after the other.

A method is a function ``make(work)`` that gives models. One new method is one new file and one line in
:mod:`worker.optimize.table`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnx

from worker.model.fingerprint import external_locations
from worker.model.opening import one_line
from worker.optimize.items import Item, Tensors
from worker.optimize.table import METHODS
from worker.quantize.convert import name_nodes, simplified


class DoesNotApply(Exception):
    """This method can do nothing for this model; the message is a clause that says why."""


@dataclass(frozen=True, slots=True)
class Made:
    """One model that a method made."""

    name: str
    """The method's name, with what distinguishes it from others of the method."""
    model: onnx.ModelProto
    note: str = ""
    """What was done, as a clause; empty if the name says it."""


@dataclass
class Work:
    """What a method is given.

    Args:
        path: the original model.
        calibration: prepared inputs that methods may look at; held-out ones are not here.
        constants: further inputs that are the same in every run.
        loss: what a model loses on the calibration part, as the judge has it. It raises what the runtime raises.
        max_loss: what may be lost.
        seed: of every random choice.
        folder: for temporary files.
    """

    path: Path
    calibration: Sequence[Item]
    constants: Tensors
    loss: Callable[[onnx.ModelProto], float]
    max_loss: float
    seed: int
    folder: Path
    made: dict[str, list[Made]] = field(default_factory=dict)
    """What earlier methods made, by method."""

    @cached_property
    def original(self) -> onnx.ModelProto:
        """The model as it is. Methods change only copies."""
        return onnx.load(self.path)

    @cached_property
    def base(self) -> onnx.ModelProto:
        """The model with constants folded, batch normalisation fused into convolutions, shapes inferred, nodes named."""
        path = self.path
        if external_locations(path):  # what simplifies reads one file
            path = self.folder / "in-one-file.onnx"
            onnx.save(self.original, path)
        model = simplified(path, self.folder)
        name_nodes(model.graph)
        return model

    def feeds(self, most: int | None = None) -> Iterator[Tensors]:
        """Every input of the model file, for each calibration item (the first ``most``)."""
        for item in self.calibration[:most]:
            yield {**item.feeds, **self.constants}


@dataclass(frozen=True, slots=True)
class Attempt:
    """What became of one method."""

    method: str
    made: list[Made]
    reason: str = ""
    """Why there is nothing, or nothing more; a clause."""


def attempts(work: Work, names: Iterable[str], say: Callable[[str], None]) -> Iterator[Attempt]:
    """Try the methods in the order of the table. A failure of a library is an attempt with a reason.

    Args:
        say: is told the name of each method before it begins.
    """
    wanted = set(names)
    for name, module in METHODS.items():
        if name not in wanted:
            continue
        say(name)
        made: list[Made] = []
        reason = ""
        try:
            made.extend(importlib.import_module(module).make(work))
        except DoesNotApply as why:
            reason = str(why)
        except ImportError as error:
            package = (error.name or "a package").partition(".")[0].replace("_", "-")
            reason = f"needs {package}: pip install 'streaminfer[optimize]'"
        except Exception as error:  # converters raise whatever they stumble over
            reason = f"cannot be made: {one_line(str(error)) or type(error).__name__}"
        work.made[name] = made
        yield Attempt(name, made, reason)
