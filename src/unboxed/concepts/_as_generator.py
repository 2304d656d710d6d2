"""A model of images as a generator, so that the example of `causal_units` runs on any model."""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..box import Box
from ..engine.read.sizes import require_images
from ..inputs.features import Features
from ..inputs.pixels import Pixels
from ..objectives import mean_over_positions
from ._classes import random_card_examples
from ._image_source import ImageSource, default_addresses
from ._segmenting import bright_and_left_masks

N_GENERATOR_CODES, WIDTH = 20, 4
_GENERATOR_BY_BOX: WeakKeyDictionary[Box, Box] = (
    WeakKeyDictionary()
)  # opened once: threads may share a box, not its opening


class _RowShadingGenerator(nn.Module):
    """Codes are a model's images, flat; its outputs (N, K) shade the rows of images (N, 1, K, 4)."""

    def __init__(self, box: Box, inputs: Pixels) -> None:
        super().__init__()
        self.model, self.shape = box.model, inputs.model_shape
        self._reader = (box.output_reader,)
        if hasattr(box.model, "row_limits"):
            self.row_limits = box.model.row_limits

    def forward(self, z: Tensor) -> Tensor:
        output = self._reader[0].select_tensor(self.model(z.view(-1, *self.shape)))
        scores = mean_over_positions(output)  # (N, K)
        return scores.float().sigmoid()[:, None, :, None].expand(-1, 1, -1, WIDTH)


def run_card_example_on_generator(method: Any, box: Box) -> Any:
    """Call `causal_units` on the model as a generator, in its last layer with positions."""
    inputs = require_images(box, "causal_units")
    if box not in _GENERATOR_BY_BOX:
        codes = Features(tuple(f"z{i}" for i in range(math.prod(inputs.shape))))
        _GENERATOR_BY_BOX[box] = Box(_RowShadingGenerator(box, inputs), codes, outputs="regression", mode=box.mode)
    generator = _GENERATOR_BY_BOX[box]
    x = random_card_examples(box, N_GENERATOR_CODES).flatten(1)
    layer = default_addresses(ImageSource(generator))[-1]
    return method(generator, x, 1, layer, bright_and_left_masks, n_steps=1, n_units=1, n_random=1)
