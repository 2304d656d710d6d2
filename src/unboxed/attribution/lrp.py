"""Layer-wise relevance propagation: the score, distributed layer by layer from the output back to the input.

Bach et al. 2015, "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
PLOS ONE 10(7); Montavon et al. 2017, "Explaining nonlinear classification decisions with deep Taylor decomposition",
arXiv:1512.02479; Montavon et al. 2019, "Layer-Wise Relevance Propagation: An Overview", LNCS 11700; Kohlbrenner et al.
2020, "Towards Best Practice in Explaining Neural Network Decisions with LRP", arXiv:1910.09840; Ali et al. 2022, "XAI
for Transformers: Better Explanations through Conservative Propagation", arXiv:2202.07304.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution
from ..engine.gradients.relevance import LRP_PATENT_NOTICE, relevance
from ..model.lrp import LayerRules, linear_rules
from ..parameters import BatchSize, InputBatch, Target
from ..settings import AtLeast, check_settings

LAYER_RULES_FACTORY_BY_NAME: Mapping[str, Callable[[float, float], LayerRules]] = {
    "composite": lambda e, g: LayerRules(
        linear_rules.epsilon_rule(e), linear_rules.gamma_rule(g, e), linear_rules.z_box_rule(e)
    ),
    "composite-plus": lambda e, g: LayerRules(
        linear_rules.epsilon_rule(e), linear_rules.z_plus_rule(e), linear_rules.flat_distribution_rule()
    ),
    "epsilon": lambda e, g: LayerRules(linear_rules.epsilon_rule(e), linear_rules.epsilon_rule(e)),
    "gamma": lambda e, g: LayerRules(linear_rules.gamma_rule(g, e), linear_rules.gamma_rule(g, e)),
    "z-plus": lambda e, g: LayerRules(linear_rules.z_plus_rule(e), linear_rules.z_plus_rule(e)),
    "alpha-beta": lambda e, g: LayerRules(linear_rules.alpha_beta_rule(2, e), linear_rules.alpha_beta_rule(2, e)),
}


@card(
    name="LRP",
    aliases=("layerwise_relevance_propagation",),
    source="Bach et al. 2015; Montavon et al. 2019, LNCS 11700; Kohlbrenner et al. 2020, arXiv:1910.09840",
    shows="How the score is made up of the inputs, if each layer distributes its relevance over what it was computed "
    "from.",
    does_not_show="What would happen if a value changed; and other rules distribute the same score differently.",
    example=lambda method, box, x, y: method(box, x, y),
    axioms=("dummy", "symmetry"),
    texts=True,
    order=5,
    patents=LRP_PATENT_NOTICE,
    first_choice=True,
)
def lrp(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    rule: Annotated[
        Literal["composite", "composite-plus", "epsilon", "gamma", "z-plus", "alpha-beta"],
        "Propagation rule: one for all layers, or a composite that depends on the kind of layer.",
    ] = "composite",
    epsilon: Annotated[float, AtLeast(0), "Stabilizer of the epsilon rule; 0 is LRP-0."] = 1e-6,
    gamma: Annotated[float, AtLeast(0), "How much the gamma rule favors positive weights."] = 0.25,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """The score distributed layer by layer, from the output back to the input, by propagation rules.

    As cheap as a gradient, with clean maps on convolutional models and (by Ali et al.'s rules) transformers, for which
    `attn_lrp` has rules of its own. The map depends on the rules and on how the model is written;
    `integrated_gradients` depends on its function alone.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        rule: Propagation rule: one for all layers, or a composite that depends on the kind of layer.
            "composite": epsilon in dense layers, gamma in convolutions, z-B in layers that see pixels (Montavon et al.
            2019). "composite-plus": epsilon, z-plus, flat (Kohlbrenner et al. 2020). "epsilon", "gamma", "z-plus" and
            "alpha-beta" (alpha = 2, beta = 1) are for all layers.
        epsilon: Stabilizer of the epsilon rule; 0 is LRP-0.
        gamma: How much the gamma rule favors positive weights.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The relevance of each value, signed, shaped like x, in units of the score. It sums to the score, less what
        biases and epsilon absorb. The relevance of a value is that of its distance from zero after normalization: a
        pixel at the mean has none, except by z-B and flat, which use the range of pixels.

    Raises:
        RuleError: at an op that no rule is for, or that cannot be seen (scripted code).
        OutputError: where the score does not depend on the input by any path that carries relevance.
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.lrp(box, x, y)
        >>> tuple(a.shape), tuple(a.score.shape)
        ((2, 1, 28, 28), (2,))

    Source:
        Bach et al. 2015; Montavon et al. 2017 (z-B) and 2019 (gamma, composite); Kohlbrenner et al. 2020; Ali et al.
        2022 (attention). Where the papers leave it open: activations pass on what they receive (where f(0) is not zero,
        it absorbs its part as a bias does); sums distribute in proportion and maxima give all to the winner; batch norm
        is merged with the convolution or linear layer before it, or else is a scale with a bias; the divisor of layer
        norm and its like is held constant, and so are gates and attention weights in products (Ali et al. 2022);
        other factors of a product get half each.
    """
    check_settings(lrp, locals())
    layer_rules = LAYER_RULES_FACTORY_BY_NAME[rule](float(epsilon), float(gamma))
    x = box.validate_inputs(x)
    objective = box.check_objective(box.objective(target, len(x)), len(x))

    out = relevance(box, objective, x, layer_rules, batch_size=batch_size)
    return make_attribution(
        box, out.map, x=x, method="LRP", target=out.predicted if target is None else target,
        score=out.score.to(box.dtype),
    )  # fmt: skip
