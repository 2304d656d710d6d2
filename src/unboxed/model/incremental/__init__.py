"""Exact incremental inference: inputs that differ from a base input in one window each, propagated as windows.

The exact part of Krypton (Nakandala, Kumar & Papakonstantinou 2019, SIGMOD): after one pass of the base input, each
layer is computed only where its output can have changed. The model needs no change and no tracing.

An op that can be computed on windows moves in here, by `handles`.
"""

from . import pointwise as pointwise
from . import spatial as spatial
from .base_run import BasePass as BasePass
from .regions import crop_rectangles as crop_rectangles
from .side_effects import restoring_containers as restoring_containers
from .windowed import WindowedMode as WindowedMode
from .windowed import WindowedTensor as WindowedTensor
from .windowed import to_dense as to_dense
