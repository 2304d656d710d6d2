"""The same architecture without its training, to stand beside the trained net."""

from ..engine.untrained import untrained as untrained
