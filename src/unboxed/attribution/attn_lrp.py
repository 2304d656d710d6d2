"""AttnLRP: layer-wise relevance propagation through attention, with an account of what reaches no input.

Achtibat et al. 2024, "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", arXiv:2402.05602.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from ..box import Box
from ..cards import card
from ..engine.attribution_result import Attribution, make_attribution
from ..engine.gradients.relevance import LRP_PATENT_NOTICE, relevance
from ..model.lrp import LayerRules, linear_rules
from ..parameters import BatchSize, InputBatch, Target
from ..settings import AtLeast, check_settings

LINEAR_RULE_FACTORY_BY_NAME: Mapping[str, Callable[[float, float], linear_rules.LinearRuleFn]] = {
    "epsilon": lambda e, g: linear_rules.epsilon_rule(e),
    "gamma": lambda e, g: linear_rules.gamma_rule(g, e),
}


@card(
    name="AttnLRP",
    source="Achtibat et al. 2024, arXiv:2402.05602, sections 3.1 to 3.3",
    shows="How the score is made up of the inputs, if each layer distributes its relevance over what it was computed "
    "from, through the attention weights, too.",
    does_not_show="What would happen if a value changed; what biases, positions and softmax receive is on none: the "
    "attribution's `conservation` counts it.",
    example=lambda method, box, x, y: method(box, x, y),
    axioms=("dummy", "symmetry"),
    exempt={"awkward": "its account has a row per layer, and layers differ between spellings of a model"},
    texts=True,
    order=5,
    patents=LRP_PATENT_NOTICE,
)
def attn_lrp(
    box: Box,
    x: InputBatch,
    target: Target = None,
    *,
    rule: Annotated[Literal["epsilon", "gamma"], "Propagation rule of linear layers and convolutions."] = "epsilon",
    epsilon: Annotated[float, AtLeast(0), "Stabilizer of the epsilon rule; 0 is LRP-0."] = 1e-6,
    gamma: Annotated[float, AtLeast(0), "How much the gamma rule favors positive weights."] = 0.25,
    check: Annotated[bool, "Count, layer by layer, what becomes of the relevance."] = True,
    batch_size: BatchSize = "auto",
) -> Attribution:
    """The score distributed layer by layer through a transformer, by rules for attention, normalization and gates.

    For text models and vision transformers; as cheap as a gradient. Unlike `lrp`, which holds attention weights
    constant, it asks also why a token was attended to. Print the result's `conservation` to see what each layer did
    with the relevance that it received: what is on biases and positions is on no token.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        target: The score: a class, one per example (N,), or an objective. None is the predicted class.
        rule: Propagation rule of linear layers and convolutions. "epsilon" is the paper's for language models, "gamma"
            its for vision transformers, whose maps are less noisy by it.
        epsilon: Stabilizer of the epsilon rule; 0 is LRP-0.
        gamma: How much the gamma rule favors positive weights.
        check: Count, layer by layer, what becomes of the relevance. Costs about as much again.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        The relevance of each value, signed, shaped like x, in units of the score; of texts each token's, (N, T). With
        `check` also `conservation`: a table of what each layer received, passed on, and what its biases, constants
        (positions, types of tokens), softmax and stabilizer hold back; its `error` is what is not accounted for.

    Raises:
        RuleError: at an op that no rule is for, or that cannot be seen (scripted code): the op is named.
        OutputError: where the score does not depend on the input by any path that carries relevance.
        NaNError: where the score is NaN or infinite.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> a = ub.attribution.attn_lrp(box, x, y)
        >>> a.conservation.max_error < 1e-4
        True
        >>> a.conservation.layers[-3:]
        ('fc1', 'relu3', 'fc2')

    Source:
        Achtibat et al. 2024, arXiv:2402.05602: softmax by its first-order expansion at the point itself (eq. 13,
        proposition 3.1), products of two activations half to each (propositions 3.2 and 3.3), normalization with its
        divisor held constant (proposition 3.4), activations pass on what they receive (eq. 9), linear layers by epsilon
        (eq. 8) or gamma. Where the paper leaves it open: gates that are a sigmoid or tanh receive nothing (as in
        `lrp`), so that a GELU or SiLU gives the same however it is written; where f(0) is not zero it is a bias; the
        zero of images is zero after normalization.
    """
    check_settings(attn_lrp, locals())
    linear_rule = LINEAR_RULE_FACTORY_BY_NAME[rule](float(epsilon), float(gamma))
    x = box.validate_inputs(x)
    objective = box.check_objective(box.objective(target, len(x)), len(x))
    rules = LayerRules(linear_rule, linear_rule, softmax_is_gate=False)
    out = relevance(box, objective, x, rules, batch_size=batch_size, check=check)
    extras: dict[str, Any] = {} if out.conservation is None else {"conservation": out.conservation}
    explained = out.predicted if target is None else target
    return make_attribution(
        box, out.map, x=x, method="AttnLRP", target=explained, score=out.score.to(box.dtype), **extras
    )
