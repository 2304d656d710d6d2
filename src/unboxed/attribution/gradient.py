"""The gradient of a score in the input.

Simonyan et al. 2014, "Deep Inside Convolutional Networks", arXiv:1312.6034, section 3 (here signed).
"""

from __future__ import annotations

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution
from ..engine.gradients.score import attribute_by_gradient
from ..parameters import BatchSize, InputBatch, Target
from ..settings import check_settings


@card(
    name="Gradient",
    aliases=("saliency", "vanilla_gradient", "sensitivity_map"),
    source="Simonyan et al. 2014, arXiv:1312.6034, section 3",
    shows="Where slightly larger values would raise this score, and where slightly smaller ones would.",
    does_not_show="How much each value adds to the score: it is the slope at this input, and says nothing of larger "
    "changes.",
    example=lambda method, box, x, y: method(box, x, y),
    texts=True,
    order=1,
    first_choice=True,
)
def gradient(box: Box, x: InputBatch, target: Target = None, *, batch_size: BatchSize = "auto") -> Attribution:
    """The gradient of the score in the input: how the score changes with a small change of each value.

    The cheapest method: one forward and one backward pass. Take `smoothgrad` where its map is noisy, and
    `integrated_gradients` or `lrp` to see how the score is made up of the input's values.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        d score / d x, signed, shaped like x, in units of score per unit of the input (per pixel range for images).
        Where a final ReLU clamps the logit at zero, and its gradient with it, the gradient before the clamp is given;
        an UnboxedWarning says for how many inputs.

    Raises:
        InputError: for inputs or classes that the model does not have.
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> ub.attribution.gradient(box, x, y).shape
        torch.Size([2, 1, 28, 28])

    Source:
        Simonyan et al. 2014, arXiv:1312.6034, section 3. The paper shows the largest absolute value over channels; here
        the gradient keeps its sign and its channels.
    """
    check_settings(gradient, locals())
    return attribute_by_gradient(box, x, target, method="Gradient", batch_size=batch_size)
