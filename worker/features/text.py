"""Text as a content: token ids of a tokenizer file, or the text itself for a model with a string input.

The settings and the entry; ``tokenizers`` is imported only if a pipeline has a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from worker.errors import ConfigError
from worker.features import Feature, Place
from worker.features.strings import StringFeature
from worker.model.signature import TensorSpec
from worker.registry import POSTPROCESSES
from worker.settings import LimitsSettings
from worker.settings.kinds import File, Positive
from worker.settings.kinds import Text as Name
from worker.settings.section import ContentSettings, Section

if TYPE_CHECKING:
    from worker.settings import PipelineSettings


class TextInputs(Section):
    """Names of the model inputs that the tokens fill."""

    ids: Name = "input_ids"
    """Input of the token ids."""
    mask: Name = "attention_mask"
    """Input that is 1 for a token and 0 for padding; filled if the model has it."""
    types: Name = "token_type_ids"
    """Input that is 1 for tokens of the second text of a pair; filled if the model has it."""


class TextSettings(ContentSettings):
    """From text to the inputs of a language model."""

    from_: Name = Field(default="value", alias="from")
    """`value` for the record's value, or the name or dotted path of the field that holds the text."""
    tokenizer: File | None = None
    """A file of HuggingFace tokenizers; default: `tokenizer.json` beside the model. Fixed padding inside it is not followed."""
    max_length: Positive | None = None
    """Most tokens of a record, special ones included; default: the least that the tokenizer's file, `tokenizer_config.json`, `sentence_bert_config.json` and `config.json` beside it name, else 512."""
    truncation: Literal["right", "left", "none"] = "right"
    """Which end of a longer text is left out, which is counted; none: a longer text is a dead letter."""
    padding: Literal["longest", "max_length"] = "longest"
    """To what texts that run together are padded: the longest of them, or always max_length."""
    multiple: Positive = 8
    """Padded lengths are multiples of this, as far as max_length allows."""
    pair: Name | None = None
    """The field of a second text: the model gets both as a pair."""
    inputs: TextInputs = TextInputs()
    """Names of the model inputs that the tokens fill."""


class Text:
    """Text: token ids, mask and types for a language model, or the text itself for a model with a string input."""

    settings: ClassVar[type[ContentSettings]] = TextSettings
    takes_default = True
    few_shapes = True

    @staticmethod
    def fills(
        options: TextSettings, inputs: Sequence[TensorSpec], named: TensorSpec | None, key: str
    ) -> list[TensorSpec]:
        """See :class:`worker.features.WideContent`."""
        strings = [spec for spec in inputs if spec.dtype == object]
        if named is not None and named.dtype == object:
            return [named]
        if named is None and len(strings) == 1:
            return strings
        return [spec for spec in _roles(options, inputs, named, key).values() if spec is not None]

    @staticmethod
    def make_wide(
        options: TextSettings,
        specs: Sequence[TensorSpec],
        places: Callable[[str], Place],
        key: str,
        settings: PipelineSettings,
        limits: LimitsSettings,
    ) -> Feature:
        """See :class:`worker.features.WideContent`."""
        place = places(options.from_)
        if specs[0].dtype == object:
            if options.pair is not None or options.tokenizer is not None:
                wrong = "pair" if options.pair is not None else "tokenizer"
                raise ConfigError(
                    f"{key}.{wrong}: the model's input {specs[0].name} takes strings; expected neither tokenizer nor pair"
                )
            return StringFeature(specs[0], place, key)
        from worker.features.tokenizer import load
        from worker.features.tokens import POSITIONS, TokensFeature

        roles = {
            role: next((spec for spec in specs if spec.name == name), None)
            for role, name in _names(options, specs).items()
        }
        ids = roles["ids"]
        assert ids is not None
        folder = settings.model.folder or settings.model.file.parent
        tokenizer = load(options, folder, ids.item_shape[0], key)
        return TokensFeature(
            roles,
            place,
            places(options.pair) if options.pair is not None else None,
            tokenizer,
            options,
            wants_text=_postprocess_wants_text(settings),
            positions=POSITIONS[settings.model.providers[0] != "cpu"],
        )


def _postprocess_wants_text(settings: PipelineSettings) -> bool:
    chosen: Any = POSTPROCESSES.entry(settings.postprocess.name)
    return bool(getattr(chosen, "reads_text", False))


def _names(options: TextSettings, specs: Sequence[TensorSpec]) -> dict[str, str]:
    """Role -> name, for inputs that were chosen before: the first is that of the ids."""
    return {"ids": specs[0].name, "mask": options.inputs.mask, "types": options.inputs.types}


def _roles(
    options: TextSettings, inputs: Sequence[TensorSpec], named: TensorSpec | None, key: str
) -> dict[str, TensorSpec | None]:
    """The model's inputs for ids, mask and types; None where the model has none.

    Raises:
        ConfigError: the model has no input for the ids, or one of the three has a form that tokens cannot fill.
    """
    names = options.inputs
    by_name = {spec.name: spec for spec in inputs}
    if named is not None and named.name in (names.mask, names.types):
        raise ConfigError(
            f"{key}: text fills {named.name} together with the input of the token ids; expected text for that one alone"
        )
    explicit = names.model_fields_set
    wanted = {
        "ids": named.name if named is not None and "ids" not in explicit else names.ids,
        "mask": names.mask,
        "types": names.types,
    }
    found = {role: by_name.get(name) for role, name in wanted.items()}
    for role, spec in found.items():
        # the usual name is no typing error where the model lacks that input: one text of settings serves many models
        usual = TextInputs.model_fields[role].default == wanted[role]
        if spec is None and (role == "ids" or (role in explicit and not usual)):
            raise ConfigError(
                f"{key}.inputs.{role}: the model has no input {wanted[role]}; its inputs are {', '.join(by_name)}"
            )
        if spec is None:
            continue
        if len(spec.item_shape) != 1:
            shape = str(list(spec.shape)).replace("None", "any")
            raise ConfigError(
                f"{key}: the model's input {spec.name} has shape {shape}, expected [items, tokens]"
            )
        if spec.dtype.kind not in ("iu" if role == "ids" else "iufb"):
            raise ConfigError(f"{key}: the model's input {spec.name} is {spec.datatype}; expected integers")
    return found
