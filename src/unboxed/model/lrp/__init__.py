"""Layer-wise relevance propagation, op by op: what each op of a running model hands down of the relevance above it.

Throughout, what goes down the graph is not the relevance R of an activation a but c = R / a, so that R = a * c: the
gradient, where no rule says otherwise. Ops that are linear without mixing rules (sums, views, pooling) then need no
rule at all: their gradient shares a sum in proportion, gives a maximum to its winner, and divides by nothing.

A rule of LRP moves in here, op by op; the method itself is `attribution.lrp`.
"""

from .autograd_functions import note as note
from .context import all_ruled as all_ruled
from .context import constant as constant
from .mode import Propagation as Propagation
from .mode import Recipe as Recipe
