"""Layer-wise relevance propagation, op by op: how each op propagates the relevance of its output to its inputs.

Not the relevance R of an activation a is propagated but c = R / a, so that R = a * c; without a rule, c is the
gradient. Linear ops (sums, views, pooling) then need no rule: their gradient distributes the relevance of a sum in
proportion to its terms, gives that of a maximum to its winner, and never divides.

A rule of LRP moves in here, op by op; the method itself is `attribution.lrp`.
"""

from .autograd_functions import annotate as annotate
from .context import check_all_ruled as check_all_ruled
from .context import frozen_parameters as frozen_parameters
from .mode import LayerRules as LayerRules
from .mode import LRPMode as LRPMode
