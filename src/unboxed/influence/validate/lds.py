"""The linear datamodeling score of scores of training examples, by real retrainings.

Park, Georgiev, Ilyas, Leclerc & Madry 2023, arXiv:2303.14186, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, cast, get_args, overload

import torch
from torch import Tensor

from ... import rng
from ...engine.rank_correlation import spearman
from ...engine.unroll.model_training import ModelTraining
from ...engine.unroll.smoothness import losses_from_perturbed_starts, noise_to_signal, warn_if_not_smooth
from ...engine.unroll.training import MAX_RETRAINING_BYTES, Training, check_is_training
from ...errors import InputError
from ...parameters import CheckpointPath, InputBatch, Labels, Seed
from ...settings import AtLeast, Unit, ValueRole, check_settings
from ...validation import valid_seed
from ..result import LOSS_CHANGE_UNIT_TEXTS, RANKING_UNIT_TEXT, Influence, ScoreTruth
from .agreement import check_estimates_same_truth, check_scores_match_queries, measure_agreement
from .lds_result import LinearDatamodelingScore
from .retraining import (
    MaxRetrainingBytes,
    QuietSetting,
    TrainingToRepeat,
    check_finite_losses_of_queries,
    open_retraining_checkpoint,
    resolve_queries,
    retrained_losses,
)
from .subsets import left_out_subset_masks, to_fraction_tuple

DEFAULT_LEFT_OUT_FRACTIONS = (0.01, 0.1, 0.5)
TruthToCompare = Annotated[ScoreTruth | None, "What the scores are compared with; None: what they estimate."]
LeftOutFractions = Annotated[
    float | Sequence[float], ValueRole("floats"), "Fractions of the training examples that are left out."
]
InfluenceResults = Annotated[
    Influence | Sequence[Influence], ValueRole("object"), "Scores of the queries, or several to compare."
]
NSubsets = Annotated[int, AtLeast(3), Unit("subsets"), "Number of random subsets that are left out, per fraction."]
NSeeds = Annotated[
    int, AtLeast(2), Unit("seeds"), 'Number of retrainings of each subset, for the truth "mean over seeds".'
]
AllowOtherTruth = Annotated[bool, "Compare scores with a truth that they do not estimate."]


@overload
def linear_datamodeling_score(
    results: Influence, training: Training, x: Any, labels: Any, **settings: Any
) -> LinearDatamodelingScore: ...


@overload
def linear_datamodeling_score(
    results: Sequence[Influence], training: Training, x: Any, labels: Any, **settings: Any
) -> list[LinearDatamodelingScore]: ...


def linear_datamodeling_score(  # type: ignore[misc]  # the overloads leave its settings out
    results: InfluenceResults,
    training: TrainingToRepeat,
    x: InputBatch,
    labels: Labels,
    *,
    truth: TruthToCompare = None,
    fractions: LeftOutFractions = DEFAULT_LEFT_OUT_FRACTIONS,
    n_subsets: NSubsets = 50,
    n_seeds: NSeeds = 5,
    allow_other_truth: AllowOtherTruth = False,
    max_bytes: MaxRetrainingBytes = MAX_RETRAINING_BYTES,
    checkpoint: CheckpointPath = None,
    seed: Seed = 0,
    quiet: QuietSetting = True,
) -> LinearDatamodelingScore | list[LinearDatamodelingScore]:
    """Retrain without random subsets of the examples, and see how well sums of their scores predict the losses.

    The figure that scores of training examples should never be without. It costs `n_subsets` trainings per fraction (50
    small ones run at once in the time of about 25), and for the truth "mean over seeds" `n_seeds` times as many.

    Args:
        results: Scores of the queries, or several to compare. Several methods share the retrainings.
        training: The training that made the model: a `ModelTraining`, or a `Training`.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1]. The queries of the scores.
        labels: Correct classes (N,), or one for all. Those of the scores; None: the predicted classes.
        truth: What the scores are compared with; None: what they estimate. "one run" retrains with the same seed and
            order, where the examples left out have weight 0; "mean over seeds" retrains from other initial weights, in
            other orders (`training.reseed`), and takes the mean.
        fractions: Fractions of the training examples that are left out. Few examples ask for the derivative, half of
            them for more than one.
        n_subsets: Number of random subsets that are left out, per fraction.
        n_seeds: Number of retrainings of each subset, for the truth "mean over seeds".
        allow_other_truth: Compare scores with a truth that they do not estimate. Refused otherwise.
        max_bytes: Memory that the trainings which run at once may take. Their activations come on top.
        checkpoint: File from which a call that was stopped goes on. It keeps the losses after retraining: a second call
            with other scores of the same training, queries and subsets retrains nothing.
        seed: Seed of all random draws: same seed, same result. Of the subsets, the retrainings anew and the intervals.
        quiet: No progress bar.

    Returns:
        A `LinearDatamodelingScore` with rank correlations, slopes and intervals; a list of them for several results.
        Beside scores against one run it has the noise-to-signal ratio of the retrainings, of which a warning tells
        where it is above .15; against the mean over seeds how well one real retraining predicts it.

    Raises:
        InputError: for scores of another truth, other queries or another number of examples; fractions that leave out
            none or all; losses that are not finite; a training without `reseed` for the truth "mean over seeds".
        ModelError: for a checkpoint of another training, other queries or subsets.

    Example:
        >>> import unboxed as ub
        >>> model, inputs = ub.zoo.load("digits-cnn", weights=None)
        >>> x, y = ub.data.digits("train").first(32)
        >>> training = ub.influence.ModelTraining(model, inputs, (x, y), epochs=1, batch_size=16)
        >>> result = ub.influence.unrolled(training.box(training.run()), x[:4], y[:4], training)
        >>> score = ub.influence.validate.linear_datamodeling_score(
        ...     result, training, x[:4], y[:4], fractions=(.1,), n_subsets=8)
        >>> tuple(score.correlations.shape), bool(score.means[0] > .3), score.truth
        ((1, 4, 1), True, 'one run')

    Source:
        Park et al. 2023, arXiv:2303.14186, definition 2.3, of the loss in place of the margin, over what is left out in
        place of what is kept (which changes nothing: both differ by a constant). Ilyas & Engstrom 2025,
        arXiv:2503.13751, for the truth "one run".
    """
    check_settings(linear_datamodeling_score, locals())
    check_is_training(training)
    several, seed = not isinstance(results, Influence), valid_seed(seed)
    listed = [results] if isinstance(results, Influence) else list(results)
    truth = _require_common_truth(listed) if truth is None else truth
    for result in listed:
        check_estimates_same_truth(result, truth, allow_other_truth=allow_other_truth)
    fractions = to_fraction_tuple(fractions)
    final = training.run()
    x, y = resolve_queries(training, final, x, labels)
    for result in listed:
        check_scores_match_queries(result, len(x), training.n_examples, y, getattr(training, "y", None))
    left_out = left_out_subset_masks(training.n_examples, fractions, n_subsets, seed)  # (F, S, N)
    seeds = n_seeds if truth == "mean over seeds" else 1
    settings = {"truth": truth, "fractions": list(fractions), "n_subsets": n_subsets, "n_seeds": seeds,
                "seed": seed}  # fmt: skip
    file = open_retraining_checkpoint(checkpoint, training, final, x, y, settings)
    weights = 1 - torch.cat([torch.zeros(1, training.n_examples), left_out.flatten(0, 1).float()])
    losses = retrained_losses(
        lambda k: training if truth == "one run" else _nth_reseeded_training(training, seed, k), seeds, weights, x, y,
        max_bytes=max_bytes, file=file, quiet=quiet,
    )  # fmt: skip
    check_finite_losses_of_queries(training, losses.flatten(0, 1))
    retrained = _RetrainingResults(left_out, losses, training.n_examples)
    noise = _noise_to_signal_by_fraction(training, x, y, retrained, seed) if truth == "one run" else None
    scores = [_make_linear_datamodeling_score(r, retrained, noise, fractions, truth, seeds, seed) for r in listed]
    return scores if several else scores[0]


def _require_common_truth(results: Sequence[Influence]) -> ScoreTruth:
    truths = {result.truth for result in results}
    if len(truths) != 1:
        raise InputError(
            "wanted scores of one truth, one or several; got "
            + (" and ".join(map(repr, sorted(truths))) + ". Give truth=, one of " if truths else "none. ")
            + (" or ".join(map(repr, get_args(ScoreTruth))) if truths else "")
        )
    return truths.pop()


def _nth_reseeded_training(training: Training, seed: int, k: int) -> Training:
    """The k-th of the trainings anew: the same for all scores, and none of those that a caller would number."""
    reseed = training.reseed if isinstance(training, ModelTraining) else getattr(training, "reseed", None)
    if reseed is None:
        raise InputError(
            'the truth "mean over seeds" retrains anew: give a ModelTraining, or a Training with a method reseed(seed)'
        )
    return cast(Training, reseed(rng.derive_seed("retrained anew", seed, k) % 2**31))


@dataclass(frozen=True, eq=False)
class _RetrainingResults:
    """Losses of queries after retraining without subsets."""

    left_out: Tensor  # (F, S, N) bool
    losses: Tensor  # (K, 1 + F S, Q) of K seeds; the first is without leaving anything out
    n_examples: int

    @property
    def changes(self) -> Tensor:
        """(K, F, S, Q)"""
        changes = (self.losses[:, 1:] - self.losses[:, :1]).double()
        return changes.reshape(len(changes), *self.left_out.shape[:2], -1)

    @property
    def ceilings(self) -> Tensor:
        """(F, Q) rank correlations of one seed's changes with the mean of the others', the mean over seeds."""
        changes = self.changes
        others = (changes.sum(0) - changes) / (len(changes) - 1)
        pairs = [_rank_correlations_by_fraction(a, b) for a, b in zip(changes, others, strict=True)]
        return torch.stack(pairs).nanmean(0)


def _rank_correlations_by_fraction(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlations (F, Q) over subsets, of (F, S, Q) with another."""
    return torch.stack([spearman(one.T, other.T) for one, other in zip(a, b, strict=True)])


def _noise_to_signal_by_fraction(
    training: Training, x: Tensor, y: Any, retrained: _RetrainingResults, seed: int
) -> Tensor:
    """(F, Q) of each fraction's subsets; warns where it is high."""
    noise = losses_from_perturbed_starts(training, x, y, seed)
    ratios = torch.stack([noise_to_signal(noise.to(h), h) for h in retrained.changes[0]])
    highest = float(ratios.median(1).values.max())
    warn_if_not_smooth(highest, "examples", "no scores can agree well with one run")
    return ratios


def _make_linear_datamodeling_score(
    result: Influence,
    retrained: _RetrainingResults,
    noise: Tensor | None,
    fractions: tuple[float, ...],
    truth: ScoreTruth,
    n_seeds: int,
    seed: int,
) -> LinearDatamodelingScore:
    real = retrained.changes.mean(0)  # (F, S, Q)
    predicted = retrained.left_out.double() @ result.scores.double().cpu().T  # (F, S, Q)
    agreements = [measure_agreement(p.T, r.T) for p, r in zip(predicted.to(real), real, strict=True)]
    slopes = torch.stack([a.slopes for a in agreements])
    pooled = torch.tensor([a.pooled_slope for a in agreements], dtype=slopes.dtype)
    if result.unit not in (*LOSS_CHANGE_UNIT_TEXTS, RANKING_UNIT_TEXT):
        slopes, pooled = slopes.fill_(torch.nan), pooled.fill_(torch.nan)
    return LinearDatamodelingScore(
        torch.stack([a.spearman for a in agreements])[..., None].cpu(),
        slopes[..., None].cpu(),
        pooled[:, None],
        fractions,
        truth,
        result.method,
        predicted,
        real.cpu(),
        None if noise is None else noise[..., None].cpu(),
        retrained.ceilings[..., None].cpu() if truth == "mean over seeds" else None,
        n_seeds,
        seed,
    )
