"""Models that are the user's own Python: a class with ``load(path)`` and ``forward(items)``, behind the same model as an ONNX file.

Everything around a run stays as it is: batches, isolation of the record that makes a run fail, the canary, warm-up, versions.
No model runtime is loaded.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import structlog

from worker import frames
from worker.batch import Array
from worker.errors import ConfigError, Reject, Rejection, StartError
from worker.model.backend import Backend, Closed, Opened, Opening, Tensors
from worker.model.compare import same
from worker.model.fingerprint import files_sha256
from worker.model.made_up import FIRST, batch_of, likely_sizes, made_up
from worker.model.opening import one_line
from worker.model.probe import Probe
from worker.model.session import Model
from worker.model.signature import JSON, Shown, Signature, TensorSpec

VALUE = "prediction"
"""Name of the output that holds the values of code that gives no arrays."""
OUTPUT = "output"
"""Name of the output of code that gives one array for each item."""
_TYPES = {
    "bool": "tensor(bool)",
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "str": "tensor(string)",
} | {f"{sign}int{bits}": f"tensor({sign}int{bits})" for sign in ("", "u") for bits in (8, 16, 32, 64)}
"""What a class may call the kinds of its inputs' numbers -> what the runtime calls them."""

log = structlog.get_logger()


class Code(Backend):
    """The user's own class: nobody knows whether it may run twice at once, so by default it does not."""

    name = "code"

    def open(self, opening: Opening) -> Opened:
        raise NotImplementedError("custom code is loaded by load_code")

    def runs_at_once(self, threads: int) -> int:
        return 1


class CodeModel(Model):
    """A model that is the user's own class."""

    def beside_others(self, feeds: Tensors) -> str:
        """Empty: that items may share a call is what ``forward`` says by taking a list."""
        return ""


@dataclass(frozen=True, slots=True)
class Calling:
    """How the user's object is called.

    Args:
        name: ``module:Class``, for people.
        made: the object.
        inputs: what it takes.
    """

    name: str
    made: Any
    inputs: tuple[TensorSpec, ...]

    def items(self, feeds: Tensors) -> list[Any]:
        """A run's tensors as the list that ``forward`` takes: an array for each item, or a dict of them by input."""
        shown = {name: _read_only(feeds[name]) for name in (spec.name for spec in self.inputs)}
        if len(shown) == 1:
            return [*shown[self.inputs[0].name]]
        count = len(next(iter(shown.values())))
        return [{name: array[place] for name, array in shown.items()} for place in range(count)]

    def answers(self, items: list[Any]) -> list[Any]:
        """What ``forward`` gives for the items, one for each.

        Raises:
            ValueError: it gave another number of them.
        """
        found = self.made.forward(items)
        if isinstance(found, np.ndarray):
            found = [*found] if found.ndim else found
        if not isinstance(found, list | tuple) or len(found) != len(items):
            got = f"{len(found)} results" if isinstance(found, list | tuple) else f"a {type(found).__name__}"
            raise ValueError(
                f"{self.name}.forward gave {got} for {len(items)} items, expected a list of one each"
            )
        return [*found]


def _read_only(array: Array) -> Array:
    """The same for somebody else: a run that fails is tried again with parts of what it got."""
    view = array.view()
    view.flags.writeable = False
    return view


class CodeSessions:
    """What runs the user's object; see :class:`worker.model.backend.Sessions`.

    Args:
        outputs: names of the arrays that it gives; None = it gives values for JSON.
        at_once: calls at once.
    """

    lookahead = 0
    ahead = 0

    def __init__(self, calling: Calling, outputs: tuple[str, ...] | None, at_once: int) -> None:
        self._calling: Calling | None = calling
        self._outputs = outputs
        self._slots = threading.BoundedSemaphore(at_once)
        self._at_once = at_once

    def run(self, feeds: Tensors) -> Tensors:
        """One call of ``forward``.

        Raises:
            Exception: whatever it raises.
            ValueError: what it gave does not fit what it gave at the start.
        """
        with self._slots:
            calling = self._calling
            if calling is None:
                raise Closed("the model was closed")
            items = calling.items(feeds)
            try:
                found = calling.answers(items)
            except Exception as error:
                if not isinstance(error, Reject):
                    frames.mark(error)
                raise
        if self._outputs is None:
            values = np.empty(len(found), object)
            values[:] = [as_json(each, calling.made) for each in found]
            return {VALUE: values}
        return stacked(found, self._outputs)

    def interrupt(self) -> None:
        """Python code cannot be stopped from outside: the process ends after ``limits.batch_timeout_s``."""

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.empty(shape, dtype)

    def warm(self, sizes: Sequence[int], sample: Callable[[int], Tensors], largest: int) -> None:
        for size in sizes:
            self.run(sample(size))

    def close(self) -> None:
        """Let the object go, after the calls in progress; it may have a ``close()`` of its own."""
        for _ in range(self._at_once):
            self._slots.acquire()
        try:
            calling, self._calling = self._calling, None
            if calling is not None and callable(close := getattr(calling.made, "close", None)):
                close()
        except Exception as error:
            log.warning("custom code failed to close its model", reason=f"{type(error).__name__}: {error}")
        finally:
            for _ in range(self._at_once):
                self._slots.release()


def stacked(found: Sequence[Any], names: Sequence[str]) -> Tensors:
    """The arrays of each item as one array per output.

    Raises:
        Reject: one item alone is refused.
        ValueError: an item has other outputs, or their shapes differ.
    """
    for each in found:
        if isinstance(each, Reject):
            raise each  # of several items the run is repeated with fewer, until the refused one is alone
    rows = [_arrays(each) for each in found]
    for row in rows:
        if row is None or set(row) != set(names):
            got = ", ".join(row) if row is not None else "no arrays"
            raise ValueError(f"forward gave {got} for an item, expected {', '.join(names)}")
    together = {name: np.stack([row[name] for row in rows if row is not None]) for name in names}
    return {name: a.astype(object) if a.dtype.kind == "U" else a for name, a in together.items()}


def as_json(value: Any, made: object) -> bytes | Rejection:
    """One value as JSON text; what cannot be one refuses its record alone."""
    try:
        if isinstance(value, Reject):
            raise value
        if not finite(value):
            raise Reject("the prediction has NaN or infinity, which JSON cannot hold", "non_finite")
        return orjson.dumps(
            value, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
        )
    except Exception as error:
        return Rejection.of(error, "infer", made)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"forward gave a {type(value).__name__}, expected what JSON can hold")


def finite(value: Any) -> bool:
    """Whether no number anywhere in a value is NaN or infinite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    return all(map(finite, value)) if isinstance(value, list | tuple) else True


def _arrays(answer: Any) -> dict[str, Array] | None:
    """An answer as arrays by output; None if it is a value for JSON."""
    if isinstance(answer, np.ndarray):
        return {OUTPUT: answer}
    if (
        isinstance(answer, dict)
        and answer
        and all(isinstance(value, np.ndarray) for value in answer.values())
    ):
        return {str(name): value for name, value in answer.items()}
    return None


def load_code(
    code: str,
    function: Callable[..., Any],
    path: Path,
    *,
    key: str,
    default_inputs: Callable[[], tuple[TensorSpec, ...]],
    name: str,
    version: str | None = None,
    sha256: str | None = None,
    at_once: int = 1,
    sizes: Sequence[int] = (),
) -> Model:
    """Make the user's object, have it load its files, and find out what it gives.

    Args:
        code: ``module:Class``, for people.
        function: that class.
        path: a file or a folder; passed on to ``load``.
        key: the setting that names the class, for an error's sentence.
        default_inputs: what it takes if it does not say so itself.
        name, version, sha256: as for :func:`worker.model.session.load`, over the file, or over all files of the folder.
        at_once: calls at once.
        sizes: lengths that an item's free dimension is known to have.

    Raises:
        StartError: another SHA-256, the class or ``load`` raises, or ``forward`` gives what nothing can be made of.
        ConfigError: the class has no such methods, or says its inputs in a way that cannot be read.
    """
    try:
        digest = files_sha256(path)
    except OSError as error:
        raise StartError(f"model.path: {path} cannot be read: {error.strerror}") from None
    if sha256 is not None and digest != sha256:
        raise StartError(f"model.sha256: {path} has {digest}, expected {sha256}")
    made = _made(code, function, path, key)
    declared = getattr(made, "inputs", None)
    inputs = declared_specs(declared, f"{key}: custom code {code}: inputs") if declared else default_inputs()
    outputs = getattr(made, "outputs", None)
    specs = declared_specs(outputs, f"{key}: custom code {code}: outputs") if outputs else None
    calling = Calling(code, made, inputs)
    names = tuple(spec.name for spec in specs) if specs else None
    found, arrays = _tried(calling, names, sizes, key)
    if found.item is None:
        log.warning("the custom code refuses made-up items", model=name, reason=found.refusal)
    outputs_are = specs or (_observed(found.outputs) if arrays and found.outputs else _VALUES)
    sessions = CodeSessions(calling, tuple(s.name for s in outputs_are) if arrays else None, at_once)
    shown = Shown(found.answers, answer_share=found.answer_share)
    signature = Signature(inputs, outputs_are, True, shown=shown)
    return CodeModel(
        sessions, Code(), signature, found, name=name, version=version or digest[:8], sha256=digest
    )


def _made(code: str, function: Callable[..., Any], path: Path, key: str) -> Any:
    """The user's object with its files loaded; raises as :func:`load_code`."""
    for method in ("load", "forward"):
        if not callable(getattr(function, method, None)):
            raise ConfigError(
                f"{key}: custom code {code}: expected a class with load(path) and forward(items)"
            )
    try:
        made = function()
        made.load(path)
    except Exception as error:
        raise StartError(
            f"{key}: custom code {code} cannot load {path}: {type(error).__name__}: {one_line(str(error))}"
        ) from error
    return made


_VALUES = (TensorSpec(VALUE, np.dtype(object), JSON, (None,)),)


def _tried(
    calling: Calling, names: tuple[str, ...] | None, sizes: Sequence[int], key: str
) -> tuple[Probe, bool]:
    """What made-up items show, and whether the answers are arrays.

    Raises:
        StartError: ``forward`` does not give one result for each item.
    """
    refusal = ""
    plain = any(spec.dtype.kind != "f" for spec in calling.inputs)
    for size in likely_sizes(calling.inputs, sizes):
        for recipe in FIRST if plain else FIRST[:1]:
            item = made_up(calling.inputs, size, recipe)
            try:
                (answer,) = calling.answers(calling.items(item))
                arrays = names is not None or _arrays(answer) is not None
                outputs = names or (tuple(_arrays(answer) or ()) if arrays else None)
                sessions = CodeSessions(calling, outputs, 1)
                first, again = sessions.run(item), sessions.run(item)
            except Exception as error:
                refusal = refusal or f"{type(error).__name__}: {one_line(str(error))}"
                continue
            try:
                sessions.run(batch_of(item, 2))
            except Exception as error:
                raise StartError(
                    f"{key}: it answers one made-up item and not two of them: {one_line(str(error))}"
                ) from error
            answers = (first,) if arrays else ()
            return Probe(item, first, same(again, first), answers=answers), arrays
    return Probe(None, refusal=refusal), names is not None


def _observed(outputs: Mapping[str, Array]) -> tuple[TensorSpec, ...]:
    """The outputs as an answer shows them; of each array the length is taken as free but for one dimension, as classes are."""
    return tuple(
        TensorSpec(name, array.dtype, _datatype(array.dtype), (None, *array.shape[1:]))
        for name, array in outputs.items()
    )


def _datatype(dtype: np.dtype[Any]) -> str:
    known = "str" if dtype.kind in "OU" else dtype.name
    return TensorSpec.of("", _TYPES[known], ()).datatype if known in _TYPES else known.upper()


def declared_specs(declared: Any, where: str) -> tuple[TensorSpec, ...]:
    """Tensors as a class says them: ``{"image": ("float32", (1, 28, 28))}``, shapes of one item, None = any length.

    Raises:
        ConfigError: it says something else.
    """
    try:
        found = []
        for name, (dtype, shape) in declared.items():
            kind = dtype if isinstance(dtype, str) else "str" if dtype is str else np.dtype(dtype).name
            lengths = [None if length is None else int(length) for length in shape]
            found.append(TensorSpec.of(str(name), _TYPES[kind], (None, *lengths)))
        if found:
            return tuple(found)
    except (AttributeError, TypeError, ValueError, KeyError):
        pass
    raise ConfigError(
        f'{where}: expected names with the type and shape of one item, such as {{"image": ("float32", (1, 28, 28))}}, '
        f"types {', '.join(_TYPES)}"
    )
