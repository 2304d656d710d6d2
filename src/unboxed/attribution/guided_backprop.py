"""Guided backprop: each ReLU passes down only what is positive above it, and only where it was open.

Springenberg et al. 2015, "Striving for Simplicity: The All Convolutional Net", arXiv:1412.6806, section 3.4.
"""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients import attribute
from ..net import rules
from ..net.batching import BatchSize
from ..objectives import Objective


@card(
    name="Guided backprop",
    source="Springenberg et al. 2015, arXiv:1412.6806, section 3.4",
    tells="Details of the input through which paths of only positive influence run up to this score.",
    not_tells="Why this class and not another: it is close to an edge detector, and looks alike for most classes.",
    needs=("relu",),
    example=lambda method, box, x, y: method(box, x, y),
)
def guided_backprop(
    box: Box, x: Tensor, target: int | Tensor | Objective | None = None, *, batch_size: BatchSize = "auto"
) -> Tensor:
    """The score's gradient in x with negative signals stopped at every ReLU; signed, shaped like x.

    Raises RuleError where a ReLU would escape the rule (spelled as a clamp, inside opaque code) or there is none.
    """
    return attribute(box, x, target, rule=rules.guided, batch_size=batch_size)
