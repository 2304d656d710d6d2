"""Signs of gradient masking: what cannot happen where attacks see the model's true gradients.

Athalye, Carlini & Wagner 2018, "Obfuscated Gradients Give a False Sense of Security", arXiv:1802.00420, section 3.1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..adversarial.attack_state import AttackState
from ..adversarial.fgsm import fgsm
from ..adversarial.pgd import pgd
from ..adversarial.square import square
from ..box import Box
from ..engine.optimize.constraints import NormBall, resolve_ball
from ..engine.read.class_labels import has_class_labels
from ..engine.read.output_values import predicted_output_values
from ..errors import NaNError, OutputError, UnboxedWarning
from ..inputs.pixels import Pixels
from ..model.batching import BatchSize
from ..model.nan_checks import check_no_nan, reindex_nan_error
from ..parameters import Norm

MAX_MASKING_CHECK_EXAMPLES = 200  # examples that are used
MIN_FOOLED_DIFFERENCE_FRACTION, MIN_FOOLED_DIFFERENCE_EXAMPLES = (
    0.05,
    3,
)  # by how many one attack must beat another to be reported
MIN_GAIN_DIFFERENCE = 0.05  # by what share of the larger one two gains on an example must differ
FEW_ATTACK_STEPS, MANY_ATTACK_STEPS = 10, 100  # steps
SQUARE_ATTACK_QUERIES = 500
N_STOCHASTIC_PREDICTIONS_PER_EXAMPLE = 10  # of a model's own noise


@dataclass(frozen=True)
class MaskingFinding:
    """A sign that gradients are masked, and that robust accuracy is too high, or a loss under attack too low."""

    name: str
    message: str
    fractions: dict[str, float] = field(default_factory=dict)  # of the examples used; of losses their mean rise

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def masking_findings_suffix(findings: Sequence[MaskingFinding]) -> str:
    """For the end of a line; "" without findings."""
    return f", signs of gradient masking: {', '.join(finding.name for finding in findings)}" if findings else ""


def check_gradient_masking(
    box: Box,
    x: Tensor,
    y: Tensor,
    is_correct: Tensor,
    eps: float,
    norm: Norm = "linf",
    *,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> tuple[MaskingFinding, ...]:
    """Signs that the robust accuracy within `eps` is too high because gradients are masked.

    `evaluate` and `evaluate_outputs` run this with the largest eps. Of outputs that are not one class per example the
    rise of the loss is compared, by fewer attacks. Of batch-dependent models, whose examples cannot be attacked apart,
    only random numbers are reported.

    Args:
        box: The model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        y: Correct classes (N,), or what the outputs should be.
        is_correct: (N,) bool: correct without an attack, or worth an attack. The first 200 of these are used.
        eps: Largest distance from x.
        norm: Norm in which the distance from x is measured.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `MaskingFinding` for each sign; none where there is no sign.

    Raises:
        InputError: for settings out of their range.

    Example:
        >>> import torch, unboxed as ub
        >>> from unboxed.robustness.gradient_masking import check_gradient_masking
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(4)
        >>> check_gradient_masking(box, x, y, torch.ones(4, dtype=torch.bool), eps=0.3)
        ()

    Source:
        Athalye et al. 2018, arXiv:1802.00420, section 3.1; Carlini et al. 2019, arXiv:1902.06705.
    """
    rows = is_correct.nonzero()[:MAX_MASKING_CHECK_EXAMPLES, 0]
    if not len(rows):
        return ()
    comparison = _AttackComparison(
        box, x[rows], y[rows], resolve_ball(eps, norm, None), {"seed": seed, "batch_size": batch_size}
    )
    checks = [stochastic_findings]
    if not box.batch_dependent:
        checks += [zero_gradient_findings, _attack_comparison_findings]
    try:
        return tuple(finding for check in checks for finding in check(comparison))
    except NaNError as error:
        raise reindex_nan_error(error, rows) from None
    except OutputError as error:
        return (MaskingFinding("no gradient", f"attacks by gradient can't be run on this model: {error}"),)


@dataclass
class _AttackComparison:
    """Correctly classified examples, and on how many of them each attack fails."""

    box: Box
    x: Tensor  # (M, ...)
    y: Tensor  # (M,)
    ball: NormBall
    attack_kwargs: dict[str, Any]

    @property
    def has_classes(self) -> bool:
        return has_class_labels(self.box)

    def gains(self, attack: Callable[..., Any], ball: NormBall | None = None, **extra_kwargs: Any) -> Tensor:
        """(M,) what the attack achieves: 1 where it fools, 0 where not; of other outputs the rise of their loss."""
        x = self.box.restore_structure(self.x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnboxedWarning)  # a gradient of zero is reported separately
            result = attack(
                self.box, x, self.y, **_eps_and_norm_kwargs(ball or self.ball), **self.attack_kwargs, **extra_kwargs
            )
        if result.interrupted:
            raise KeyboardInterrupt
        if result.loss_before is None or result.loss_after is None:
            return Tensor.double(result.success)
        return Tensor.double(result.loss_after - result.loss_before)

    def is_significantly_stronger(self, a: Tensor, b: Tensor) -> bool:
        """Whether the first gains (M,) are larger on so many more examples that chance does not explain it."""
        clear = MIN_GAIN_DIFFERENCE * a.maximum(b)
        n_more = int((a > b + clear).sum()) - int((b > a + clear).sum())
        return n_more >= max(MIN_FOOLED_DIFFERENCE_EXAMPLES, MIN_FOOLED_DIFFERENCE_FRACTION * len(self.x))

    def figure(self, gains: Tensor) -> float:
        """Robust accuracy, or the mean rise of the loss."""
        return float(1 - gains.mean() if self.has_classes else gains.mean())

    def figures_text(self, figures: dict[str, float]) -> str:
        """Like "robust accuracy is 3% under PGD, 1% under Square"."""
        subject, form = ("robust accuracy is", ".0%") if self.has_classes else ("the mean rise of the loss is", ".3g")
        return f"{subject} {', '.join(f'{value:{form}} under {attack}' for attack, value in figures.items())}"


def _eps_and_norm_kwargs(ball: NormBall) -> dict[str, Any]:
    return {"eps": ball.eps, "norm": type(ball).__name__.lower()}


def stochastic_findings(comparison: _AttackComparison) -> Iterator[MaskingFinding]:
    """The model draws random numbers: an attack sees one draw of many."""
    if not comparison.box.stochastic:
        return
    predictions = (
        torch.stack([_predict_with_seed(comparison, seed) for seed in range(N_STOCHASTIC_PREDICTIONS_PER_EXAMPLE)])
        .flatten(1, -1)
        .view(N_STOCHASTIC_PREDICTIONS_PER_EXAMPLE, len(comparison.x), -1)
    )  # (DRAWS, M, outputs)
    changed_fraction = float((predictions != predictions[0]).any(2).any(0).float().mean())
    message = (
        f"the model draws random numbers when it runs, and over {N_STOCHASTIC_PREDICTIONS_PER_EXAMPLE} draws "
        f"{changed_fraction:.0%} of its predictions change. An attack sees one draw; give pgd and fgsm "
        f"eot={N_STOCHASTIC_PREDICTIONS_PER_EXAMPLE} to average over them"
    )
    yield MaskingFinding("random layers", message, {"changes": changed_fraction})


def _predict_with_seed(comparison: _AttackComparison, seed: int) -> Tensor:
    with comparison.box.isolated(grad=False, seed=seed):
        logits = check_no_nan(comparison.box.forward(comparison.x, {"logits"})["logits"])
    return logits.argmax(1) if comparison.has_classes else predicted_output_values(comparison.box, logits)


def zero_gradient_findings(comparison: _AttackComparison) -> Iterator[MaskingFinding]:
    """The gradient is zero: attacks by gradient do not move."""
    x = comparison.box.restore_structure(comparison.x)
    state = AttackState(
        comparison.box, x, comparison.y, norm=comparison.ball, batch_size=comparison.attack_kwargs["batch_size"],
        raises_output_loss=True,
    )  # fmt: skip
    gradient = state.evaluate_with_grad(state.x, torch.arange(len(comparison.x), device=comparison.x.device)).grad
    zero_fraction = float((gradient.flatten(1) == 0).all(1).float().mean())
    if zero_fraction * len(comparison.x) >= 1:
        advice = "use square or hop_skip_jump" if comparison.has_classes else "that nothing was found says nothing"
        message = (
            f"the gradient is exactly zero for {zero_fraction:.0%} of the examples, so attacks by gradient do not move "
            f"them; {advice}"
        )
        yield MaskingFinding("no gradient", message, {"zero": zero_fraction})


ATTACK_COMPARISONS = (
    (
        "iterative weaker than single step",
        "one step",
        f"{FEW_ATTACK_STEPS} steps",
        "From the second step on the gradient is of no use: it is masked, and the model is less robust than PGD shows",
    ),
    (
        "more steps not stronger",
        f"{FEW_ATTACK_STEPS} steps",
        f"{MANY_ATTACK_STEPS} steps",
        "Small steps get stuck where large ones do not: the loss surface is rough, a sign of masked gradients",
    ),
    (
        "loss saturates",
        "PGD on the margin",
        "PGD on the cross-entropy",
        "The softmax is saturated and the gradient of its loss vanishes: attack with loss='margin' or 'dlr'",
    ),
    (
        "black box stronger than white box",
        "Square",
        "PGD",
        "It uses only outputs, and finds more than attacks that use the gradient: robust accuracy by PGD is too high. "
        "Use auto_attack",
    ),
)
"""(name, the attack that should be weaker, the one that should be stronger, what it means where it is not)"""


def _attack_comparison_findings(comparison: _AttackComparison) -> Iterator[MaskingFinding]:
    """Weaker attacks that find more than stronger ones."""
    few_steps, many_steps = (comparison.gains(pgd, steps=steps) for steps in (FEW_ATTACK_STEPS, MANY_ATTACK_STEPS))
    gains = {
        "one step": comparison.gains(fgsm),
        f"{FEW_ATTACK_STEPS} steps": few_steps,
        f"{MANY_ATTACK_STEPS} steps": many_steps,
    }
    if comparison.has_classes:
        gains |= _gains_of_class_attacks(comparison, gains)
    for name, weaker, stronger, explanation in ATTACK_COMPARISONS:
        if weaker in gains and comparison.is_significantly_stronger(gains[weaker], gains[stronger]):
            figures = {attack: comparison.figure(gains[attack]) for attack in (weaker, stronger)}
            yield MaskingFinding(name, f"{comparison.figures_text(figures)}. {explanation}", figures)
    if comparison.has_classes and not gains["PGD"].all():
        yield from _unbounded_attack_findings(comparison)


def _gains_of_class_attacks(comparison: _AttackComparison, gains: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those of attacks that only classes have, and of the best PGD."""
    more = {
        "PGD on the margin": comparison.gains(pgd, steps=MANY_ATTACK_STEPS, loss="margin"),
        "PGD on the cross-entropy": gains[f"{MANY_ATTACK_STEPS} steps"],
    }
    more["PGD"] = max((*gains.values(), *more.values()), key=lambda g: float(g.sum()))
    if isinstance(comparison.box.inputs, Pixels) and type(comparison.ball).__name__ != "L1":
        more["Square"] = comparison.gains(square, queries=SQUARE_ATTACK_QUERIES)
    return more


def _unbounded_attack_findings(comparison: _AttackComparison) -> Iterator[MaskingFinding]:
    """With any change allowed, an attack must fool the model on every example."""
    ball = _ball_containing_all_images(comparison)
    if ball is None:
        return
    robust_fraction = comparison.figure(comparison.gains(pgd, ball, steps=MANY_ATTACK_STEPS))
    if robust_fraction * len(comparison.x) >= max(1, MIN_FOOLED_DIFFERENCE_FRACTION * len(comparison.x)):
        message = (
            f"with any change allowed, robust accuracy under PGD is {robust_fraction:.0%} in place of 0%: PGD "
            "misses images that certainly exist, so its failures within eps are no evidence"
        )
        yield MaskingFinding("unbounded eps does not reach 0", message, {"PGD, any change": robust_fraction})


def _ball_containing_all_images(comparison: _AttackComparison) -> NormBall | None:
    """The ball that contains all images; None where inputs have no bounds."""
    if not isinstance(comparison.box.inputs, Pixels):
        return None
    white = torch.ones_like(comparison.x[:1])
    return replace(comparison.ball, eps=float(comparison.ball.distance(white, 0 * white)))  # type: ignore[type-var]
