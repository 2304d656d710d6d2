"""A model that always runs with some of its activations replaced, so that any method can be applied to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from .hooks import Edit, capturing_activations, named_modules


class EditedModel(nn.Module):
    """`model` with the edits {address: function of an activation} of its layers made in each forward pass.

    Addresses are those of the model's own box; of this one's box they come after "model.".
    """

    def __init__(self, model: nn.Module, edits: Mapping[str, Edit]) -> None:
        super().__init__()
        self.model, self.edits = model, dict(edits)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives with its activations replaced."""
        with capturing_activations(named_modules(self.model), (), edits=self.edits, stop=False):
            return self.model(*args, **kwargs)
