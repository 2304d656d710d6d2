"""Robustness of models of numbers, several labels or label maps: their metrics under attacks, over eps."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..adversarial.apgd import apgd
from ..adversarial.attack_ball import check_eps_within_data_range
from ..adversarial.pgd import pgd
from ..adversarial.predictions import nan_checked_logits
from ..box import Box
from ..engine.intervals import Interval
from ..engine.optimize.constraints import format_eps, resolve_ball
from ..engine.read.class_labels import has_class_labels
from ..engine.read.output_values import indexed_examples_with_output_values
from ..engine.result_views import ResultViewsMixin
from ..errors import InputError, OutputError
from ..model.batching import BatchSize
from ..parameters import Norm, Seed
from ..settings import check_settings
from ..validation import valid_seed
from .attack_compatibility import check_attack_norm, compatible_attacks
from .evaluate import MAX_EXAMPLES_PER_ATTACK_TASK, AttackFn, check_eps_values, supported_kwargs
from .output_metrics import example_errors, metric_intervals, output_statistics

MAX_OUTPUTS = 2**26  # of the examples that are attacked at a time
DEFAULT_OUTPUT_ATTACKS: dict[str, AttackFn] = {"pgd": pgd, "apgd": apgd}
ALL_ATTACKS = "all attacks"


@dataclass(frozen=True, repr=False, eq=False)
class OutputRobustness(ResultViewsMixin):
    """Metrics of N examples without an attack and under A attacks, over E eps."""

    returns: ClassVar[str] = "curve"

    norm: str
    eps: tuple[float, ...]  # (E,), ascending
    attacks: tuple[str, ...]  # (A,)
    clean: Mapping[str, Interval]  # {metric: its value and interval}
    attacked: Mapping[str, Mapping[str, tuple[Interval, ...]]]  # {"all attacks" or attack: {metric: (E,)}}
    example_errors: Tensor  # (A, E + 1, N) without an attack, then within each eps: squared error, or share wrong
    interrupted: bool = False  # by Ctrl-C

    def metric(self, name: str, eps: float | None = None, attack: str = ALL_ATTACKS) -> Interval:
        """A metric under all attacks together (or one), at one eps (default: the largest). Raises InputError."""
        if name not in self.clean:
            raise InputError(f"the metrics are {', '.join(self.clean)}; got {name!r}")
        if attack not in self.attacked:
            raise InputError(f"attack must be one of {', '.join(self.attacked)}; got {attack!r}")
        if eps is not None and eps not in self.eps:
            raise InputError(f"eps must be one of {', '.join(map(format_eps, self.eps))}; got {eps!r}")
        return self.attacked[attack][name][-1 if eps is None else self.eps.index(eps)]

    def __repr__(self) -> str:
        curves = "; ".join(
            f"{name} {clean.mean:.3g}, "
            + ", ".join(f"{self.metric(name, e).mean:.3g} within {format_eps(e)}" for e in self.eps)
            for name, clean in self.clean.items()
        )
        n, suffix = self.example_errors.shape[2], ", interrupted" if self.interrupted else ""
        return f"OutputRobustness({curves} ({n} examples; {self.norm}; {', '.join(self.attacks)}){suffix})"

    def to_dict(self) -> dict[str, Any]:
        """For JSON: each metric as [value, low, high]."""

        def numbers(interval: Interval) -> list[float]:
            return [interval.mean, interval.low, interval.high]

        return {
            "norm": self.norm,
            "n": self.example_errors.shape[2],
            "eps": list(self.eps),
            "clean": {name: numbers(interval) for name, interval in self.clean.items()},
            "attacked": {
                attack: {name: [numbers(interval) for interval in curve] for name, curve in metrics.items()}
                for attack, metrics in self.attacked.items()
            },
            "interrupted": self.interrupted,
        }


def evaluate_outputs(
    box: Box,
    data: Any,
    attacks: Mapping[str, AttackFn] | None = None,
    *,
    eps: Sequence[float],
    norm: Norm = "linf",
    max_examples: int | None = None,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
    quiet: bool = True,
) -> OutputRobustness:
    """How far attacks spoil numbers, several labels or label maps: metrics without an attack and within each eps.

    What `evaluate` is for classes. A regression has its mean absolute (MAE) and root mean squared error (RMSE), in the
    output's unit; several labels the share of labels that are right and of examples of which all are; a label map the
    share of positions that are right and the mean intersection over union of the classes. Of each example the worst of
    all attacks counts, and what was found within a smaller eps, which is inside the larger one. Robustness is an
    upper bound: another attack may find more. Ctrl-C keeps what was found until then.

    Args:
        box: The model.
        data: Examples: a Dataset, a DataLoader, an iterable, or tensors. With labels in the form of the outputs: (x, y)
            tensors, or items (input, label).
        attacks: {name: attack}, each called as attack(box, x, y, eps=..., norm=...), with seed and batch_size if it
            takes them. None: `pgd` and `apgd`, those that take the norm.
        eps: Largest distances from x. In pixel range; of a table, in standard deviations of its columns (see
            `Features`).
        norm: Norm in which the distance from x is measured.
        max_examples: Use only the first of the examples; None uses all.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        quiet: No progress bar.

    Returns:
        An `OutputRobustness`: `clean`, `metric(name, eps, attack)`, each with its 95 % interval over examples, and
        `example_errors`.

    Raises:
        InputError: for settings out of their range, labels of another form, or attacks that do not take the norm.
        DataError: for data without labels or without examples.
        OutputError: for a model of one class per example, which `evaluate` takes, and one that outputs NaN.

    Example:
        >>> import torch, unboxed as ub
        >>> box = ub.Box(torch.nn.Linear(3, 1), ub.Features(("a", "b", "c")), outputs="regression")
        >>> x, y = torch.rand(8, 3), torch.rand(8)
        >>> result = ub.robustness.evaluate_outputs(box, (x, y), eps=[0.1, 0.2])
        >>> result.clean["MAE"].mean < result.metric("MAE", eps=0.1).mean < result.metric("MAE", eps=0.2).mean
        True

    Source:
        Croce, Singh & Hein 2023, arXiv:2306.12941, section 4: pixel accuracy and mean IoU under the worst attack of
        each image. The mean IoU is over the classes that occur in the labels or the predictions of all examples.
    """
    check_settings(evaluate_outputs, locals())
    if has_class_labels(box):
        raise OutputError("evaluate_outputs takes numbers, several labels and maps; of classes use robustness.evaluate")
    x, y, _ = indexed_examples_with_output_values(box, data, max_examples)
    eps_values = tuple(
        sorted({check_eps_within_data_range(box, resolve_ball(e, norm, None)).eps for e in check_eps_values(eps)})
    )
    chosen = compatible_attacks(DEFAULT_OUTPUT_ATTACKS, box, norm) if attacks is None else dict(attacks)
    if not chosen:
        raise InputError('give at least one attack, such as {"pgd": ub.adversarial.pgd}')
    run = _OutputEvaluation(box, x, y, batch_size)
    kwargs = {"norm": norm, "seed": valid_seed(seed), "batch_size": batch_size}
    run.run_all(chosen, eps_values, kwargs, quiet)
    return run.to_result(norm, eps_values, tuple(chosen))


class _OutputEvaluation:
    """The statistics of each example under the attacks that have run."""

    def __init__(self, box: Box, x: Tensor, y: Tensor, batch_size: BatchSize) -> None:
        self.box, self.x, self.y = box, x, y
        self.row_slices = self._split_rows()
        self.clean = torch.cat([self._statistics(x[rows], rows, batch_size) for rows in self.row_slices])  # (N, S)
        self.attacked: dict[str, list[Tensor]] = {}  # by attack, the worst so far for each eps that was run
        self.interrupted = False

    def run_all(
        self, attacks: Mapping[str, AttackFn], eps: Sequence[float], kwargs: Mapping[str, Any], quiet: bool
    ) -> None:
        tasks = [(name, eps_value) for name in attacks for eps_value in eps]
        for name, eps_value in tqdm(tasks, desc="attacking", disable=quiet, file=sys.stderr, leave=False):
            worst = self.attacked.setdefault(name, [])
            before = worst[-1] if worst else self.clean
            try:
                found = None if self.interrupted else self._attack(name, attacks[name], eps_value, kwargs)
            except KeyboardInterrupt:
                found, self.interrupted = None, True
            worst.append(before if found is None else self._worse(before, found))

    def _split_rows(self) -> list[slice]:
        """Parts of the examples whose outputs fit in memory; one part for a batch-dependent model."""
        n, n_outputs = len(self.x), self.box.n_outputs * math.prod(self.box.output_map_shape)
        size = n if self.box.batch_dependent else max(1, min(MAX_EXAMPLES_PER_ATTACK_TASK, MAX_OUTPUTS // n_outputs))
        return [slice(i, i + size) for i in range(0, n, size)]

    def _statistics(self, x: Tensor, rows: slice, batch_size: BatchSize) -> Tensor:
        return output_statistics(self.box, nan_checked_logits(self.box, x, batch_size), self.y[rows])

    def _attack(self, name: str, attack: AttackFn, eps: float, kwargs: Mapping[str, Any]) -> Tensor:
        """The statistics (N, S) of the attacked examples."""
        parts = []
        for rows in self.row_slices:
            x = self.box.restore_structure(self.x[rows])
            result = attack(self.box, x, self.y[rows], eps=eps, **supported_kwargs(attack, kwargs))
            check_attack_norm(name, result.norm, kwargs["norm"])
            self.interrupted |= result.interrupted
            images = self.box.validate_inputs(result.images)
            parts.append(self._statistics(images, rows, kwargs["batch_size"]))
        return torch.cat(parts)

    def _worse(self, a: Tensor, b: Tensor) -> Tensor:
        """Of each example the statistics of the larger error."""
        is_worse = example_errors(self.box, b) > example_errors(self.box, a)
        return torch.where(is_worse[:, None], b, a)

    def to_result(self, norm: Norm, eps: tuple[float, ...], names: tuple[str, ...]) -> OutputRobustness:
        together = [self.clean] * len(eps)
        for curve in self.attacked.values():
            together = [self._worse(a, b) for a, b in zip(together, curve, strict=True)]
        errors = [[example_errors(self.box, s) for s in (self.clean, *self.attacked[name])] for name in names]
        return OutputRobustness(
            norm,
            eps,
            names,
            metric_intervals(self.box, self.clean),
            {name: self._curves(curve) for name, curve in {ALL_ATTACKS: together, **self.attacked}.items()},
            torch.stack([torch.stack(row) for row in errors]),
            self.interrupted,
        )

    def _curves(self, statistics: Sequence[Tensor]) -> dict[str, tuple[Interval, ...]]:
        """Each metric over eps."""
        points = [metric_intervals(self.box, s) for s in statistics]
        return {name: tuple(point[name] for point in points) for name in points[0]}
