"""Probes of features (N, D): how well an attribute is read from them, against its controls.

Alain & Bengio 2017, arXiv:1610.01644 (linear probes); Hewitt & Liang 2019, arXiv:1909.03368 (control tasks);
Voita & Titov 2020, arXiv:2003.12298 (description length). For any encoder: features are all that is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import DataError, InputError
from ..intervals import GRADING_LEVEL, Interval, bootstrap_mean_interval, proportion_interval
from .description_length import OnlineCodeLength, online_code_length
from .mlp import fit_mlp
from .principal import PrincipalBasis
from .softmax import fit_softmax
from .splits import Split, control_task_labels, cross_validation_splits, split_from_flags

ProbeKind = Literal["linear", "mlp"]
Classifier = Callable[[Tensor], Tensor]
L2_PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
MLP_L2_PENALTIES = (0.1, 1e-2, 1e-3, 1e-4)  # a larger one leaves all weights at zero
# Penalties in a row that are worse than the best, after which smaller ones of a linear probe are not tried
MAX_CONSECUTIVE_WORSE_PENALTIES = 2
N_FOLDS, N_CONTROL_TASKS = 5, 5
MIN_PROBE_EXAMPLES = 4
MIN_INFORMATION_BITS = 1e-6  # less is rounding, as of features that are constant


@dataclass(frozen=True, eq=False)
class FeatureProbe:
    """How well an attribute is read from features, on examples that the probe was not fitted to.

    Intervals are at 90 %, over the tested examples (and the control tasks' draws).

    Attributes:
        accuracy: The share of tested examples whose class is read.
        majority: The share whose class is the most frequent one of their split's training examples.
        control: Accuracy on the control tasks: classes that are a random function of the example's type.
        selectivity: `accuracy` minus `control` (Hewitt & Liang 2019).
        memorized: Share of the training examples whose control class is read: 1 is a probe that learns any labels.
        information: Bits per example by which the probe predicts the class better than the classes' frequencies do.
        description: The length of the classes when they are sent with the features known (Voita & Titov 2020).
        predicted: (M,) the class read for each tested example.
        tested: (M,) the indices of the tested examples.
        l2: The penalty chosen in each split.
        n_features: Number of features D.
    """

    accuracy: Interval
    majority: float
    control: Interval
    selectivity: Interval
    memorized: float
    information: Interval
    description: OnlineCodeLength | None
    predicted: Tensor
    tested: Tensor
    l2: tuple[float, ...]
    n_features: int

    @property
    def majority_text(self) -> str:
        """What is right without any features, in words."""
        return f"{self.majority:.1%} by the most frequent class of the training part"

    @property
    def is_decodable(self) -> bool:
        """Whether the probe predicts better than the classes' frequencies, by the interval."""
        return self.information.low > MIN_INFORMATION_BITS


def probe_features(
    h: Tensor,
    y: Tensor,
    *,
    n_classes: int | None = None,
    flags: Sequence[Any] | Tensor | None = None,
    kind: ProbeKind = "linear",
    n_folds: int = N_FOLDS,
    types: Tensor | None = None,
    n_controls: int = N_CONTROL_TASKS,
    description_length: bool = True,
    seed: int = 0,
) -> FeatureProbe:
    """Read an attribute from features by cross-validated probes, with a control task and a description length.

    The penalty is the one of 10, 1, .1, ..., .0001 with the smallest cross-entropy on a held-out quarter of the
    training examples, on standardized features; smaller ones than two in a row that are worse are not tried (of an MLP
    it is one of .1 to .0001). Controls have the penalty of the probe that they are compared with.

    Args:
        h: Features (N, D) of any encoder.
        y: Classes (N,) of the attribute, from 0.
        n_classes: Number of classes; None: the largest of y plus one.
        flags: Which examples train ("tr"), choose the penalty ("va") and test ("te"), (N,), in place of
            cross-validation.
        kind: "linear" is multinomial logistic regression; "mlp" has a hidden layer of 64 tanh units.
        n_folds: Stratified folds of the cross-validation.
        types: Type (N,) of each example, such as its word: the control task gives each type a random class. None: each
            example is a type of its own, so that the control is at chance and `memorized` says what the probe can fit.
        n_controls: Control tasks drawn.
        description_length: Whether the online code is computed, too.
        seed: Seed of all random draws: same seed, same result.

    Returns:
        A `FeatureProbe`.

    Raises:
        InputError: for y or types that do not fit h, or NaN in h.
        DataError: for too few examples, or an attribute with one class.

    Example:
        >>> import torch
        >>> from unboxed.engine.linear.probing import probe_features
        >>> generator = torch.Generator().manual_seed(0)
        >>> y = torch.arange(100) % 2
        >>> h = torch.randn(100, 5, generator=generator)
        >>> h[:, 3] += 4 * y
        >>> result = probe_features(h, y)
        >>> result.accuracy.mean > 0.9, result.is_decodable
        (True, True)
    """
    h, y, k = check_features_and_classes(h, y, n_classes)
    types = None if types is None else torch.as_tensor(types).cpu().flatten()
    if types is not None and len(types) != len(y):
        raise InputError(f"types must be one per example ({len(y)}); got {len(types)}")
    given = None if flags is None else split_from_flags(_check_split_flags(flags, len(y)))
    labels = [control_task_labels(y, types, seed, draw) for draw in range(n_controls)]
    splits, *control_splits = (given or cross_validation_splits(c, n_folds, seed) for c in (y, *labels))
    parts = [_FoldResult.run(h, y, k, split, kind, seed) for split in splits]
    controls = _ControlTaskResults.run(h, labels, control_splits, [p.l2 for p in parts], kind, seed)
    coded = torch.arange(len(y)) if flags is None else splits[0].train
    fit = partial(_fit_and_choose_penalty, kind=kind, seed=seed)
    description = online_code_length(h[coded], y[coded], k, fit, seed) if description_length else None
    return _make_feature_probe(parts, controls, y, h.shape[1], description, seed)


def check_features_and_classes(h: Any, y: Any, n_classes: int | None = None) -> tuple[Tensor, Tensor, int]:
    """Features (N, D) in float64 and classes (N,) on the CPU, and the number of classes. Raises as `probe_features`."""
    h, y = torch.as_tensor(h).detach().cpu().double(), torch.as_tensor(y).detach().cpu()
    h = h.flatten(1) if h.ndim > 1 else h[:, None]
    if y.ndim != 1 or len(y) != len(h):
        raise InputError(f"y must have one class per row of h ({len(h)}); got shape {tuple(y.shape)}")
    if y.is_floating_point() or y.is_complex():
        raise InputError("y must be classes, whole numbers from 0; cut numbers into classes first")
    y = y.long()
    if len(y) < MIN_PROBE_EXAMPLES:
        raise DataError(f"a probe needs at least {MIN_PROBE_EXAMPLES} examples, better 200; got {len(y)}")
    if int(y.min()) < 0 or not torch.isfinite(h).all():
        raise InputError("wanted classes from 0 and finite features; got negative classes, NaN or infinite features")
    if len(y.unique()) < 2:
        raise DataError("all examples have one class of the attribute: there is nothing to read")
    return h, y, max(n_classes or 0, int(y.max()) + 1)


def _check_split_flags(flags: Sequence[Any] | Tensor, n: int) -> Sequence[Any] | Tensor:
    if len(flags) != n:
        raise InputError(f"flags must be one per example ({n}); got {len(flags)}")
    return flags


@dataclass(frozen=True, eq=False)
class _FoldResult:
    """What a probe reads in one split."""

    split: Split
    log_probs: Tensor  # (M, K) of the tested examples, by the probe
    prior: Tensor  # (K,) log-probabilities of the classes, by their frequencies in the training examples
    majority: int
    l2: float

    @classmethod
    def run(cls, h: Tensor, y: Tensor, k: int, split: Split, kind: ProbeKind, seed: int) -> _FoldResult:
        z, n = PrincipalBasis.fit(h[split.train])(h), len(split.train)
        probe, l2 = fit_with_best_penalty(z, y, k, split, kind, seed)
        counts = y[split.train].bincount(minlength=k)
        log_probs = smoothed_log_probs(probe(z[split.test]).softmax(1), n)
        return cls(split, log_probs, smoothed_log_probs(counts / n, n), int(counts.argmax()), l2)


@dataclass(frozen=True, eq=False)
class _ControlTaskResults:
    """What probes with the same penalties read of control tasks."""

    correct: Tensor  # (N, C) of held-out examples; those that are not tested are wrong
    memorized: float  # share of the training examples whose control label is read

    @classmethod
    def run(
        cls, h: Tensor, labels: Sequence[Tensor], splits: Sequence[Sequence[Split]], l2: Sequence[float],
        kind: ProbeKind, seed: int,
    ) -> _ControlTaskResults:  # fmt: skip
        """Each task has splits of its own: folds that are stratified by other labels put its accuracy below chance."""
        correct, trained = torch.zeros(len(h), len(labels), dtype=torch.bool), list[Tensor]()
        for draw, (c, parts) in enumerate(zip(labels, splits, strict=True)):
            for split, penalty in zip(parts, l2, strict=True):
                z = PrincipalBasis.fit(h[split.train])(h)
                fitted = fit_classifier(z[split.train], c[split.train], int(c.max()) + 1, penalty, kind, seed)
                read = fitted(z).argmax(1) == c
                correct[split.test, draw] = read[split.test]
                trained.append(read[split.train])
        return cls(correct, float(torch.cat(trained).double().mean()) if trained else float("nan"))


def smoothed_log_probs(p: Tensor, n: int) -> Tensor:
    """Log-probabilities (..., K) of a probe fitted to n examples, mixed with the uniform ones by the weight K of n + K.

    A class that it never saw has a probability, too (Laplace's rule of succession).
    """
    k = p.shape[-1]
    return ((n * p + 1) / (n + k)).log()


def fit_with_best_penalty(z: Tensor, y: Tensor, k: int, split: Split, kind: ProbeKind, seed: int) -> tuple[Any, float]:
    """The classifier of a split's training examples, with the penalty that is best on its validation examples."""
    fitted, l2 = _fit_and_choose_penalty(
        z[split.fit], y[split.fit], z[split.validation], y[split.validation], k, kind, seed
    )
    if torch.equal(split.fit, split.train):
        return fitted, l2
    return fit_classifier(z[split.train], y[split.train], k, l2, kind, seed, start=fitted), l2


def _fit_and_choose_penalty(
    z: Tensor, y: Tensor, z_validation: Tensor, y_validation: Tensor, k: int, kind: ProbeKind, seed: int
) -> tuple[Any, float]:
    best, best_loss, n_worse = (None, L2_PENALTIES[0]), torch.inf, 0
    known = torch.isin(y_validation, y)  # the loss of a class that was not seen says how long the fit went on
    for fitted, l2 in _regularization_path(z, y, k, kind, seed):
        loss = float(F.cross_entropy(fitted(z_validation[known]), y_validation[known])) if known.any() else 0.0
        if loss < best_loss:
            best, best_loss, n_worse = (fitted, l2), loss, 0
        else:
            n_worse += 1
        if n_worse == MAX_CONSECUTIVE_WORSE_PENALTIES and kind == "linear":
            break
    return best


def _regularization_path(z: Tensor, y: Tensor, k: int, kind: ProbeKind, seed: int) -> Iterator[tuple[Any, float]]:
    """Classifiers with smaller and smaller penalties, each started at the one before."""
    fitted = None
    for l2 in L2_PENALTIES if kind == "linear" else MLP_L2_PENALTIES:
        fitted = fit_classifier(z, y, k, l2, kind, seed, start=fitted)
        yield fitted, l2


def fit_classifier(
    z: Tensor, y: Tensor, k: int, l2: float, kind: ProbeKind, seed: int = 0, start: Any = None
) -> Classifier:
    """A classifier of the kind, with this penalty."""
    return fit_softmax(z, y, k, l2, start) if kind == "linear" else fit_mlp(z, y, k, l2, seed=seed)


def _make_feature_probe(
    parts: Sequence[_FoldResult],
    controls: _ControlTaskResults,
    y: Tensor,
    n_features: int,
    description: OnlineCodeLength | None,
    seed: int,
) -> FeatureProbe:
    tested = torch.cat([p.split.test for p in parts])
    order = tested.argsort()
    predicted = torch.cat([p.log_probs.argmax(1) for p in parts])[order]
    y_tested = y[tested[order]]
    correct = predicted == y_tested
    control = controls.correct[tested[order]].double()
    gain = torch.cat([_value_at_label(p.log_probs - p.prior, y[p.split.test]) for p in parts])[order]
    majority = torch.cat([y[p.split.test] == p.majority for p in parts]).double().mean()
    return FeatureProbe(
        accuracy=proportion_interval(correct, GRADING_LEVEL),
        majority=float(majority),
        control=bootstrap_mean_interval(control, seed),
        selectivity=bootstrap_mean_interval(correct.double()[:, None] - control, seed),
        memorized=controls.memorized,
        information=bootstrap_mean_interval(gain[:, None] / torch.log(torch.tensor(2.0)), seed),
        description=description,
        predicted=predicted,
        tested=tested[order],
        l2=tuple(p.l2 for p in parts),
        n_features=n_features,
    )


def _value_at_label(values: Tensor, y: Tensor) -> Tensor:
    return values.gather(1, y[:, None])[:, 0]
