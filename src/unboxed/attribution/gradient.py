"""The gradient of a score in the input.

Simonyan et al. 2014, "Deep Inside Convolutional Networks", arXiv:1312.6034, section 3 (here signed).
"""

from __future__ import annotations

from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.gradients.score import attribute
from ..model.batching import BatchSize
from ..objectives import Objective


@card(
    name="Gradient",
    source="Simonyan et al. 2014, arXiv:1312.6034, section 3",
    shows="Where slightly larger values would raise this score, and where slightly smaller ones would.",
    does_not_show="What the score is made of: it is the slope at this input, and says nothing of larger changes.",
    example=lambda method, box, x, y: method(box, x, y),
)
def gradient(
    box: Box, x: Tensor, target: int | Tensor | Objective | None = None, *, batch_size: BatchSize = "auto"
) -> Tensor:
    """d score / d x, signed, shaped like x, in units of score per unit of pixel range.

    Where a final ReLU clamps the logit at zero (and its gradient with it) the gradient before the clamp is given;
    an UnboxedWarning says for how many. Raises InputError for inputs or classes that the model doesn't have.
    """
    return attribute(box, x, target, batch_size=batch_size)
