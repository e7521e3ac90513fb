"""Feature scaling: x = (feature - mean) / std, in the model's own dtype."""

from __future__ import annotations

import numpy as np

from worker.batch import Array
from worker.errors import ConfigError
from worker.model.signature import TensorSpec
from worker.settings import NumericSettings


class Numeric:
    """Scales the items of one model input in place.

    Args:
        settings: mean and std, one number or one per feature (the item's last dimension).
        spec: the model input; it must be floating.
        key: the setting's name, for errors.

    Raises:
        ConfigError: the model's input is not floating, or has another number of features.
    """

    def __init__(self, settings: NumericSettings, spec: TensorSpec, key: str) -> None:
        if spec.dtype.kind != "f":
            raise ConfigError(
                f"{key}: the model's input {spec.name} is {spec.datatype}; expected a floating one"
            )
        features = spec.item_shape[-1] if spec.item_shape else 1
        for name, values in (("mean", settings.mean), ("std", settings.std)):
            if features is not None and len(values) not in (1, features):
                raise ConfigError(
                    f"{key}.{name}: got {len(values)} numbers, expected 1 or {features}, "
                    f"the features of the model's input {spec.name}"
                )
        self.mean = np.asarray(settings.mean, spec.dtype)
        self.std = np.asarray(settings.std, spec.dtype)
        if not spec.item_shape:
            self.mean, self.std = self.mean.reshape(()), self.std.reshape(())

    def apply(self, items: Array) -> None:
        """Scale ``items`` ((rows, *item), the model's dtype) in place."""
        np.subtract(items, self.mean, out=items)
        np.divide(items, self.std, out=items)
