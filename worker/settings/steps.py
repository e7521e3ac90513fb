"""Checks of ``steps``: each may name earlier ones only, and only what their predictions have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from worker.errors import ConfigError
from worker.settings.members import Kind, boxes_of, members_of_step
from worker.settings.sections import ConditionSettings, PipelineSettings, Settings, StepSettings

Scope = tuple[str, ...]
"""What a step's items are: ``()`` for records; the steps whose boxes they are, the outermost one first."""
_TAKEN = frozenset({"record", "label", "class_id", "score", "xyxy", "rle", "keypoints", "points"})
"""Members that a box has anyway, and the word for the record."""
_SEVERAL_ITEMS = ("oip", "video")
"""Formats whose records hold several items."""


@dataclass
class _Known:
    """The steps before the one that is checked."""

    steps: dict[str, StepSettings] = field(default_factory=dict)
    scopes: dict[str, Scope] = field(default_factory=dict)


def check_steps(settings: Settings, pipeline: str) -> None:
    """Refuse steps that cannot be run one after the other.

    Raises:
        ConfigError: names the setting, what is there and what is expected.
    """
    wanted = settings.pipelines[pipeline]
    if wanted.steps is None:
        return
    _check_around(settings, pipeline, wanted)
    known = _Known()
    for index, step in enumerate(wanted.steps):
        key = settings.key(pipeline, f"steps.{index}")
        if step.name in _TAKEN:
            raise ConfigError(
                f"{key}.name: got '{step.name}', expected a name that boxes and records do not use"
            )
        if step.name in known.steps:
            raise ConfigError(f"{key}.name: got '{step.name}' a second time; expected a name of its own")
        known.scopes[step.name] = _scope(step, known, key)
        for path, condition in step.when.items():
            _check_condition(step, path, condition, known, f"{key}.when.{path}")
        _check_turn(step, known, key)
        if step.model.golden is not None:
            raise ConfigError(f"{key}.model.golden: does not go with steps; expected none")
        known.steps[step.name] = step


def scopes(steps: list[StepSettings]) -> dict[str, Scope]:
    """What each step's items are, of steps that :func:`check_steps` has let through."""
    known = _Known()
    for step in steps:
        known.scopes[step.name] = _scope(step, known, "steps")
        known.steps[step.name] = step
    return known.scopes


def _check_around(settings: Settings, pipeline: str, wanted: PipelineSettings) -> None:
    """The rest of a pipeline that has steps."""
    for other in ("model", "preprocess", "postprocess"):
        if other in wanted.model_fields_set:
            raise ConfigError(
                f"{settings.key(pipeline, other)}: expected inside the steps, because "
                f"{settings.key(pipeline, 'steps')} is there"
            )
    if wanted.output.format != "json":
        raise ConfigError(
            f"{settings.key(pipeline, 'output.format')}: got '{wanted.output.format}', expected json, because "
            "steps give one prediction each"
        )
    if wanted.input.format in _SEVERAL_ITEMS:
        raise ConfigError(
            f"{settings.key(pipeline, 'input.format')}: '{wanted.input.format}' does not go with steps, because its "
            "records hold several items"
        )
    if wanted.input.window is not None:
        raise ConfigError(f"{settings.key(pipeline, 'input.window')}: does not go with steps")


def _scope(step: StepSettings, known: _Known, key: str) -> Scope:
    """What the step's items are.

    Raises:
        ConfigError: ``from`` names no earlier step, or something that its predictions do not have.
    """
    if step.source is None:
        return ()
    name, wanted = step.source
    if not wanted:
        raise ConfigError(f"{key}.from: got '{step.from_}', expected record, <step>.boxes or <step>.<field>")
    earlier = _earlier(step, name, known, f"{key}.from")
    if step.over_boxes:
        held = boxes_of(earlier.postprocess)
        if held is None or wanted not in ("boxes", held):
            raise ConfigError(
                f"{key}.from: got '{step.from_}', but postprocess {earlier.postprocess.name} of {name} gives no "
                f"{wanted}; expected a step with detection, keypoints, regions or custom code"
            )
        return (*known.scopes[name], name)
    _kind(earlier, wanted, f"{key}.from")
    return known.scopes[name]


def _earlier(step: StepSettings, name: str, known: _Known, key: str) -> StepSettings:
    if name in known.steps:
        return known.steps[name]
    choices = ", ".join(known.steps)
    expected = f"an earlier step ({choices})" if choices else "record, because it is the first step"
    found = f"'{name}', the step itself" if name == step.name else f"'{name}'"
    raise ConfigError(f"{key}: got {found}, expected {expected}")


def _kind(earlier: StepSettings, path: str, key: str) -> Kind:
    """What a member of an earlier step's prediction is.

    Raises:
        ConfigError: its predictions never have it.
    """
    members = members_of_step(earlier)
    if members is None:
        return "any"
    first = re.split(r"[.\[]", path, maxsplit=1)[0]
    if first not in members or (first != path and members[first] in ("text", "number", "truth")):
        raise ConfigError(
            f"{key}: predictions of {earlier.name} (postprocess {earlier.postprocess.name}) have no {path}; "
            f"expected one of {', '.join(members)}"
        )
    return members[first] if first == path else "any"


def _check_condition(
    step: StepSettings, path: str, condition: ConditionSettings, known: _Known, key: str
) -> None:
    name, _, wanted = path.partition(".")
    if not wanted:
        raise ConfigError(f"{key}: expected <step>.<field>, such as small.score")
    earlier = _earlier(step, name, known, key)
    _check_within(step, name, known, key)
    kind = _kind(earlier, wanted, key)
    if kind in ("list", "object"):
        raise ConfigError(f"{key}: {wanted} is a {kind}; expected a number, a text, or true or false")
    if kind in ("text", "truth") and (condition.below is not None or condition.above is not None):
        raise ConfigError(f"{key}: {wanted} is no number; expected equals")


def _check_within(step: StepSettings, name: str, known: _Known, key: str) -> None:
    """A step may look at what was said of its own items, or of what they are parts of."""
    own, other = known.scopes[step.name], known.scopes[name]
    if own[: len(other)] != other:
        raise ConfigError(
            f"{key}: {name} answers the boxes of {other[-1]}, {step.name} does not; expected a step before "
            f"{other[-1]}, or from: {other[-1]}.boxes"
        )


def _check_turn(step: StepSettings, known: _Known, key: str) -> None:
    if step.turn is None:
        return
    if not step.over_boxes:
        raise ConfigError(f"{key}.turn: goes with from: <step>.boxes only, got '{step.from_}'")
    earlier = _earlier(step, step.turn.step, known, f"{key}.turn.step")
    if known.scopes[earlier.name] != known.scopes[step.name]:
        raise ConfigError(
            f"{key}.turn.step: got '{earlier.name}', expected a step with from: {step.from_}, as this one"
        )
    for member in ("label", "score"):
        _kind(earlier, member, f"{key}.turn.step")
