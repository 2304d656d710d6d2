"""The same architecture without its training, to stand beside the trained model."""

from ..engine.randomized import untrained as untrained
