"""A model of several inputs as a model of one of them, the others held at the values of one example."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from .base import Inputs
from .batches import to_model_arguments
from .multi import MultiInput


class ModelWithFixedOtherInputs(nn.Module):
    """Calls a model of several inputs with the given one, and with the others of one example.

    Args:
        model: The model.
        varied: Name (or position) of the input that is given.
        encoded: All inputs of one example, as the model takes them (1, ...).
    """

    def __init__(self, model: nn.Module, varied: str | int, encoded: Any) -> None:
        super().__init__()
        self.model, self.varied, self.by_name = model, varied, isinstance(encoded, dict)
        named = dict(encoded if self.by_name else enumerate(encoded))
        self.names = list(named)
        for name, value in named.items():
            self.register_buffer(f"held_{name}", value.detach().clone(), persistent=False)

    def forward(self, z: Tensor) -> Any:  # (N, ...)
        values = {name: z if name == self.varied else self._fixed_value(name, len(z)) for name in self.names}
        return self.model(**values) if self.by_name else self.model(*values.values())

    def _fixed_value(self, name: str | int, n: int) -> Tensor:
        value: Tensor = getattr(self, f"held_{name}")
        return value.expand(n, *value.shape[1:])


def inputs_of_varied_part(inputs: Inputs, varied: str | int) -> Inputs:
    """What the input that remains is. Raises InputError where there is none of this name."""
    parts = dict(inputs.keys_and_parts()) if isinstance(inputs, MultiInput) else {}
    if varied not in parts:
        raise InputError(f"fix_other_inputs wants one of the inputs {', '.join(map(repr, parts))}; got {varied!r}")
    return parts[varied]


def fix_other_inputs_of_model(
    model: nn.Module, inputs: Inputs, varied: str | int, packed: Tensor, dtype: torch.dtype
) -> ModelWithFixedOtherInputs:
    """The model with its other inputs held at those of one packed example (1, D). Raises InputError for several."""
    if len(packed) != 1:
        raise InputError(f"the other inputs are held at those of one example (1, ...); got {len(packed)} examples")
    args, named = to_model_arguments(inputs.encode(packed), dtype, False)
    return ModelWithFixedOtherInputs(model, varied, named or args)
