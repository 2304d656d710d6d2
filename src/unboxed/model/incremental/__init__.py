"""Exact incremental inference: inputs that differ from one in a window each, carried through a model as windows.

The exact half of Krypton (Nakandala, Kumar & Papakonstantinou 2019, SIGMOD): each layer is computed only where its
output can have changed, beside one pass of the input itself. The model needs no change and no tracing.

An op that can stay local moves in here, by `handles`.
"""

from . import pointwise as pointwise
from . import spatial as spatial
from .base_run import BasePass as BasePass
from .regions import crop as crop
from .side_effects import restore_containers as restore_containers
from .windowed import WindowedMode as WindowedMode
from .windowed import WindowedTensor as WindowedTensor
from .windowed import to_dense as to_dense
