"""A vector for each token -> one vector for the text: the mean over its tokens, the first one's, or the largest values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import numpy as np

from worker.batch import Array
from worker.errors import ConfigError
from worker.model.signature import Signature, TensorSpec
from worker.postprocess.item import InputItem

Pooling = Literal["none", "mean", "cls", "max"]
_NAMES = ("last_hidden_state", "token_embeddings")


def default_pooling(signature: Signature) -> Pooling:
    """What the files in the model's folder say, else ``none``.

    Raises:
        ConfigError: they name a way that is not known here.
    """
    found = signature.shown.pooling
    if found in ("", *get_args(Pooling)):
        return cast("Pooling", found or "none")
    raise ConfigError(
        f"postprocess.embedding.pooling: 1_Pooling/config.json in the model's folder says {found}; expected "
        "mean, cls or max here, or custom code"
    )


def tokens_output(signature: Signature, field: str) -> TensorSpec:
    """The output with a vector for each token.

    Raises:
        ConfigError: no output has items of two dimensions; ``field`` names the setting that needs one.
    """
    wanted = (3,) if signature.batchable else (2, 3)
    found = [spec for spec in signature.outputs if spec.dtype.kind == "f" and len(spec.shape) in wanted]
    if not found:
        shapes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in signature.outputs)
        raise ConfigError(
            f"{field} needs a vector for each token, [items, tokens, size], but the model's outputs are "
            f"{shapes.replace('None', 'any')}"
        )
    return next((spec for spec in found if spec.name in _NAMES), found[0])


def pooled(vectors: Array, items: Sequence[InputItem], how: Pooling) -> Array:
    """One vector per item: (count, size), float32 or float64.

    Args:
        vectors: (count, tokens, size) or, of a model that runs records alone, (1, 1, tokens, size).
        items: what each item was made of. Tokens are those of its text, or where its attention mask is not 0; without
            either, every position is one.
        how: ``mean``: the sum over tokens, divided by their number or 1e-9; ``cls``: the first token's; ``max``.

    Raises:
        ValueError: the vectors have another shape.
    """
    dtype = np.promote_types(vectors.dtype, np.float32)
    found = []
    for place, item in enumerate(items):
        own = vectors[place]
        own = own[0] if own.ndim == 3 and len(own) == 1 else own
        if own.ndim != 2:
            raise ValueError(
                f"expected a vector for each token, the model gave an item of shape {list(own.shape)}"
            )
        own = _tokens(own, item)
        if not len(own):
            found.append(np.zeros(own.shape[1], dtype))
        elif how == "cls":
            found.append(own[0].astype(dtype))
        elif how == "max":
            found.append(own.max(axis=0).astype(dtype))
        else:
            found.append(own.sum(axis=0, dtype=dtype) / dtype.type(len(own)))
    return np.stack(found)


def _tokens(vectors: Array, item: InputItem) -> Array:
    """The vectors of an item's tokens, without those of padded positions."""
    text: Any = item.text
    if text is not None:
        return vectors[-text.tokens :] if text.before else vectors[: text.tokens]
    mask = item.mask
    if mask is None:
        return vectors
    mask = mask.reshape(-1)
    chosen: Array = vectors[: len(mask)][mask != 0]
    return chosen
