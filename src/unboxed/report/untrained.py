"""The same architecture without its training, to compare the trained model with."""

from ..engine.randomized import randomize_all_layers as randomize_all_layers
