"""Is a model robust, or are its gradients of no use to an attack? What can't be true of a model that attacks see
through.

Athalye, Carlini & Wagner 2018, "Obfuscated Gradients Give a False Sense of Security", arXiv:1802.00420, section 3.1.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
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
from ..errors import NaNError, OutputError, UnboxedWarning
from ..inputs.pixels import Pixels
from ..model.batching import BatchSize
from ..model.nan_checks import check_no_nan, reindex_error

MAX_EXAMPLES = 200  # examples that are asked
MIN_BEATEN_FRACTION, MIN_BEATEN_EXAMPLES = 0.05, 3  # by how many of them one attack must beat another before it is told
FEW_STEPS, MANY_STEPS = 10, 100  # steps
SQUARE_QUERIES = 500
N_NOISE_SAMPLES = 10  # of a model's own noise


@dataclass(frozen=True)
class MaskingFinding:
    name: str
    message: str
    fractions: dict[str, float] = field(default_factory=dict)  # shares of the examples asked

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


def check_gradient_masking(
    box: Box,
    x: Tensor,
    y: Tensor,
    is_correct: Tensor,
    eps: float,
    norm: str = "linf",
    *,
    seed: int = 0,
    batch_size: BatchSize = "auto",
) -> tuple[MaskingFinding, ...]:
    """What speaks against the robust accuracy within `eps`, asked of the first examples (N, ...) named `right` (N,)."""
    rows = is_correct.nonzero()[:MAX_EXAMPLES, 0]
    if (
        not len(rows) or box.batch_dependent
    ):  # rows that change one another can't be asked apart from those that are wrong
        return ()
    comparison = _AttackComparison(
        box, x[rows], y[rows], resolve_ball(eps, norm, None), {"seed": seed, "batch_size": batch_size}
    )
    try:
        return tuple(
            finding
            for check in (check_stochastic, check_zero_gradient, _compare_attacks)
            for finding in check(comparison)
        )
    except NaNError as error:
        raise reindex_error(error, rows) from None
    except OutputError as error:
        return (MaskingFinding("no gradient", f"attacks by gradient can't be run on this model: {error}"),)


@dataclass
class _AttackComparison:
    """Examples that the model names right, and how many of them each attack leaves so."""

    box: Box
    x: Tensor  # (M, ...)
    y: Tensor  # (M,)
    ball: NormBall
    attack_kwargs: dict[str, Any]

    def count_robust(self, attack: Callable[..., Any], ball: NormBall | None = None, **extra_kwargs: Any) -> int:
        """How many examples the attack leaves right."""
        x = self.box.restore_structure(self.x)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnboxedWarning)  # a gradient of zero is an alarm of its own
            result = attack(
                self.box, x, self.y, **_ball_kwargs(ball or self.ball), **self.attack_kwargs, **extra_kwargs
            )
        if result.interrupted:
            raise KeyboardInterrupt
        return int((~result.success).sum())

    def is_stronger(self, n_robust_stronger: int, n_robust_weaker: int) -> bool:
        """Whether so few left standing are fewer than by chance."""
        return n_robust_weaker - n_robust_stronger >= max(MIN_BEATEN_EXAMPLES, MIN_BEATEN_FRACTION * len(self.x))

    def fraction(self, n_robust: int) -> float:
        return n_robust / len(self.x)


def _ball_kwargs(ball: NormBall) -> dict[str, Any]:
    return {"eps": ball.eps, "norm": type(ball).__name__.lower()}


def check_stochastic(comparison: _AttackComparison) -> Iterator[MaskingFinding]:
    """The model draws at every look: what an attack sees is one draw of many."""
    if not comparison.box.stochastic:
        return
    predictions = torch.stack([_predict_with_seed(comparison, seed) for seed in range(N_NOISE_SAMPLES)])  # (DRAWS, M)
    changed_fraction = float((predictions != predictions[0]).any(0).float().mean())
    message = (
        f"the model draws random numbers when it runs, and over {N_NOISE_SAMPLES} draws {changed_fraction:.0%} of its answers change. An "
        f"attack sees one draw; give pgd and fgsm eot={N_NOISE_SAMPLES}, which climb the mean over so many"
    )
    yield MaskingFinding("random layers", message, {"changes": changed_fraction})


def _predict_with_seed(comparison: _AttackComparison, seed: int) -> Tensor:
    with comparison.box.isolated(grad=False, seed=seed):
        return check_no_nan(comparison.box.forward(comparison.x, {"logits"})["logits"]).argmax(1)


def check_zero_gradient(comparison: _AttackComparison) -> Iterator[MaskingFinding]:
    """Nothing tells an attack by gradient where to go."""
    x = comparison.box.restore_structure(comparison.x)
    state = AttackState(
        comparison.box, x, comparison.y, norm=comparison.ball, batch_size=comparison.attack_kwargs["batch_size"]
    )
    gradient = state.evaluate_with_grad(state.x, torch.arange(len(comparison.x), device=comparison.x.device)).grad
    zero_fraction = float((gradient.flatten(1) == 0).all(1).float().mean())
    if zero_fraction * len(comparison.x) >= 1:
        message = (
            f"the gradient is exactly zero for {zero_fraction:.0%} of the examples, so attacks by gradient do not move them; "
            "ask square or hop_skip_jump"
        )
        yield MaskingFinding("no gradient", message, {"zero": zero_fraction})


def _compare_attacks(comparison: _AttackComparison) -> Iterator[MaskingFinding]:
    """Alarms of attacks that do better than they should beside others."""
    robust_fgsm, robust_few_steps, robust_many_steps = (
        comparison.count_robust(fgsm),
        comparison.count_robust(pgd, steps=FEW_STEPS),
        comparison.count_robust(pgd, steps=MANY_STEPS),
    )
    if comparison.is_stronger(robust_fgsm, robust_few_steps):
        yield _comparison_finding(
            comparison,
            "iterative weaker than single step",
            "one step",
            robust_fgsm,
            f"{FEW_STEPS} steps",
            robust_few_steps,
            SINGLE_STEP_STRONGER_TEXT,
        )
    if comparison.is_stronger(robust_few_steps, robust_many_steps):
        yield _comparison_finding(
            comparison,
            "more steps not stronger",
            f"{FEW_STEPS} steps",
            robust_few_steps,
            f"{MANY_STEPS} steps",
            robust_many_steps,
            FEWER_STEPS_STRONGER_TEXT,
        )
    robust_margin = comparison.count_robust(pgd, steps=MANY_STEPS, loss="margin")
    if comparison.is_stronger(robust_margin, robust_many_steps):
        yield _comparison_finding(
            comparison,
            "loss saturates",
            "PGD on the margin",
            robust_margin,
            "PGD on the cross-entropy",
            robust_many_steps,
            LOSS_SATURATED_TEXT,
        )
    min_robust = min(robust_fgsm, robust_few_steps, robust_many_steps, robust_margin)
    if isinstance(comparison.box.inputs, Pixels) and type(comparison.ball).__name__ != "L1":
        robust_square = comparison.count_robust(square, queries=SQUARE_QUERIES)
        if comparison.is_stronger(robust_square, min_robust):
            yield _comparison_finding(
                comparison,
                "black box stronger than white box",
                "Square",
                robust_square,
                "PGD",
                min_robust,
                BLACK_BOX_STRONGER_TEXT,
            )
    if min_robust:
        yield from _check_unbounded_attack(comparison)


SINGLE_STEP_STRONGER_TEXT = (
    "From the second step on the gradient leads nowhere: it is masked, and robust accuracy by PGD is too high"
)
FEWER_STEPS_STRONGER_TEXT = (
    "Small steps get stuck where large ones pass: the surface is jagged, as that of a model that masks gradients"
)
LOSS_SATURATED_TEXT = (
    "The softmax is so sure that the gradient of its loss vanishes: attack with loss='margin' or 'dlr'"
)
BLACK_BOX_STRONGER_TEXT = (
    "It sees only answers, and finds more than who sees the gradient: what PGD says is too good. Use auto_attack"
)


def _comparison_finding(
    comparison: _AttackComparison,
    name: str,
    attack_a: str,
    n_robust_a: int,
    attack_b: str,
    n_robust_b: int,
    explanation: str,
) -> MaskingFinding:
    fractions = {attack_a: comparison.fraction(n_robust_a), attack_b: comparison.fraction(n_robust_b)}
    return MaskingFinding(
        name,
        f"{attack_a} leaves {fractions[attack_a]:.0%} of the examples right, {attack_b} {fractions[attack_b]:.0%}. {explanation}",
        fractions,
    )


def _check_unbounded_attack(comparison: _AttackComparison) -> Iterator[MaskingFinding]:
    """With any change allowed, every example can be made into one of another class."""
    ball = _unbounded_ball(comparison)
    if ball is None:
        return
    n_robust = comparison.count_robust(pgd, ball, steps=MANY_STEPS)
    if n_robust >= max(1, MIN_BEATEN_FRACTION * len(comparison.x)):
        message = (
            f"with any change allowed PGD leaves {comparison.fraction(n_robust):.0%} of the examples right, where it must leave "
            "none: it does not find what surely is there, so what it misses within eps tells nothing"
        )
        yield MaskingFinding(
            "unbounded eps does not reach 0", message, {"PGD, any change": comparison.fraction(n_robust)}
        )


def _unbounded_ball(comparison: _AttackComparison) -> NormBall | None:
    """The ball that holds all images; None where inputs have no bounds."""
    if not isinstance(comparison.box.inputs, Pixels):
        return None
    white = torch.ones_like(comparison.x[:1])
    return replace(comparison.ball, eps=float(comparison.ball.distance(white, 0 * white)))  # type: ignore[type-var]
