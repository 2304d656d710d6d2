"""Layer-wise relevance propagation, op by op: each op propagates the relevance of its output to its inputs.

The backward pass propagates not the relevance R of an activation a but c = R / a, so that R = a * c: the gradient,
where no rule says otherwise. Ops that are linear without weights (sums, views, pooling) then need no rule: their
gradient distributes a sum in proportion, gives a maximum to its argmax, and needs no division.

A rule of LRP moves in here, op by op; the method itself is `attribution.lrp`.
"""

from .audit import RelevanceAudit as RelevanceAudit
from .autograd_functions import annotate_activation as annotate_activation
from .context import check_every_node_has_rule as check_every_node_has_rule
from .context import frozen_parameters as frozen_parameters
from .cuts import edges_on_every_path as edges_on_every_path
from .ledger import KINDS as KINDS
from .ledger import RelevanceLedger as RelevanceLedger
from .ledger import relevance_of as relevance_of
from .mode import LayerRules as LayerRules
from .mode import LRPMode as LRPMode
