"""The same architecture without its training, to stand beside the trained model."""

from ..engine.randomized import randomize_all_layers as randomize_all_layers
