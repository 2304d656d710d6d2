"""The same architecture without its training, to stand beside the trained net."""

from ..engine.randomized import untrained as untrained
