"""Robustness of models of numbers, several labels or label maps: their metrics under attacks, over eps."""

from __future__ import annotations

import functools
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..adversarial.apgd import apgd
from ..adversarial.attack_ball import check_eps_within_data_range
from ..adversarial.pgd import pgd
from ..adversarial.predictions import nan_checked_logits
from ..argument_names import naming_arguments
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
from .evaluation_checkpoint import EvaluationCheckpoint, evaluation_settings
from .gradient_masking import MaskingFinding, check_gradient_masking, masking_findings_suffix
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
    masking_findings: tuple[MaskingFinding, ...] = ()

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
        n, suffix = self.example_errors.shape[2], masking_findings_suffix(self.masking_findings)
        suffix += ", interrupted" if self.interrupted else ""
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
            "gradient_masking": [finding.to_dict() for finding in self.masking_findings],
            "interrupted": self.interrupted,
        }


@naming_arguments
def evaluate_outputs(
    box: Box,
    data: Any,
    attacks: Mapping[str, AttackFn] | None = None,
    *,
    eps: Sequence[float],
    norm: Norm = "linf",
    max_examples: int | None = None,
    check_masking: bool = True,
    seed: Seed = 0,
    batch_size: BatchSize = "auto",
    checkpoint: str | os.PathLike[str] | None = None,
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
        check_masking: Look for signs of masked gradients, which make the model look more robust than it is. That takes
            about 110 gradients of each of the first 200 examples; False saves them.
        seed: Seed of all random draws: same seed, same result.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.
        checkpoint: File from which a call that was stopped goes on. An attack of your own is compared by its code and
            all that it refers to.
        quiet: No progress bar.

    Returns:
        An `OutputRobustness`: `clean`, `metric(name, eps, attack)`, each with its 95 % interval over examples,
        `example_errors` and `masking_findings`.

    Raises:
        InputError: for settings out of their range, labels of another form, or attacks that do not take the norm.
        DataError: for data without labels or without examples.
        OutputError: for a model of one class per example, which `evaluate` takes, and one that outputs NaN.
        ModelError: for a checkpoint of other settings, attacks, weights, examples or labels.

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
    kwargs = {"norm": norm, "seed": valid_seed(seed), "batch_size": batch_size}
    run = _OutputEvaluation(box, x, y, eps_values, chosen, kwargs)
    run.resume(EvaluationCheckpoint(checkpoint, "robustness of outputs", run.settings))
    run.run_all(quiet)
    if check_masking and not run.interrupted:
        run.record_gradient_masking()
    return run.to_result()


class _OutputEvaluation:
    """The statistics of each example under the attacks that have run, one part of the examples at a time."""

    def __init__(
        self, box: Box, x: Tensor, y: Tensor, eps: tuple[float, ...], attacks: Mapping[str, AttackFn],
        attack_kwargs: Mapping[str, Any],
    ) -> None:  # fmt: skip
        self.box, self.x, self.y, self.eps, self.attacks, self.attack_kwargs = box, x, y, eps, attacks, attack_kwargs
        self.row_slices = self._split_rows()
        parts = [self._statistics_and_mean_outputs(x[rows], rows) for rows in self.row_slices]
        self.clean, self.mean_outputs = (torch.cat(values) for values in zip(*parts, strict=True))  # (N, S), (N,)
        self.attacked = self.clean.expand(len(attacks), len(eps), *self.clean.shape).clone()  # (A, E, N, S) the worst
        self.masking_findings: tuple[MaskingFinding, ...] = ()
        self.interrupted, self.checkpoint = False, EvaluationCheckpoint(None, "", dict)

    def settings(self) -> dict[str, Any]:
        norm, seed = self.attack_kwargs["norm"], self.attack_kwargs["seed"]
        return evaluation_settings(self.box, self.x, self.y, self.mean_outputs, self.eps, norm, seed, self.attacks)

    def resume(self, checkpoint: EvaluationCheckpoint) -> None:
        self.checkpoint, saved_state = checkpoint, checkpoint.read()
        if saved_state is not None:
            self.attacked = saved_state["attacked"].to(self.attacked)

    def run_all(self, quiet: bool) -> None:
        tasks = list(product(enumerate(self.attacks), range(len(self.eps)), self.row_slices))
        with tqdm(total=len(tasks), desc="attacking", disable=quiet, file=sys.stderr, leave=False) as bar:
            bar.update(self.checkpoint.n_finished)
            for (attack_index, name), eps_index, rows in tasks[self.checkpoint.n_finished :]:
                try:
                    self._run_task(name, attack_index, eps_index, rows)
                except KeyboardInterrupt:
                    self.interrupted = True
                if self.interrupted:
                    return
                self.checkpoint.finish_task({"attacked": self.attacked})
                bar.update()

    def _run_task(self, name: str, attack_index: int, eps_index: int, rows: slice) -> None:
        """Attack a part of the examples. What was found is inside the larger eps, too."""
        attack, x = self.attacks[name], self.box.restore_structure(self.x[rows])
        kwargs = supported_kwargs(attack, self.attack_kwargs) | self.checkpoint.attack_kwargs(attack)
        result = attack(self.box, x, self.y[rows], eps=self.eps[eps_index], **kwargs)
        check_attack_norm(name, result.norm, self.attack_kwargs["norm"])
        self.interrupted |= result.interrupted
        found, _ = self._statistics_and_mean_outputs(self.box.validate_inputs(result.images), rows)
        worst = self._worse(self.attacked[attack_index, eps_index, rows], found)
        self.attacked[attack_index, eps_index:, rows] = worst

    def record_gradient_masking(self) -> None:
        kwargs = {name: self.attack_kwargs[name] for name in ("seed", "batch_size")}
        every = torch.ones(len(self.x), dtype=torch.bool, device=self.x.device)
        try:
            self.masking_findings = check_gradient_masking(
                self.box, self.x, self.y, every, self.eps[-1], self.attack_kwargs["norm"], **kwargs
            )
        except KeyboardInterrupt:
            self.interrupted = True

    def _statistics_and_mean_outputs(self, x: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """(n, S) and (n,) of some examples."""
        logits = nan_checked_logits(self.box, x, self.attack_kwargs["batch_size"])
        return output_statistics(self.box, logits, self.y[rows]), logits.flatten(1).mean(1)

    def _split_rows(self) -> list[slice]:
        """Parts of the examples whose outputs fit in memory; one part for a batch-dependent model."""
        n, n_outputs = len(self.x), self.box.n_outputs * math.prod(self.box.output_map_shape)
        size = n if self.box.batch_dependent else max(1, min(MAX_EXAMPLES_PER_ATTACK_TASK, MAX_OUTPUTS // n_outputs))
        return [slice(i, i + size) for i in range(0, n, size)]

    def _worse(self, a: Tensor, b: Tensor) -> Tensor:
        """Of each example the statistics of the larger error."""
        is_worse = example_errors(self.box, b) > example_errors(self.box, a)
        return torch.where(is_worse[:, None], b, a)

    def to_result(self) -> OutputRobustness:
        curves = [list(curve) for curve in self.attacked]  # A of E of (N, S)
        together = [functools.reduce(self._worse, worst) for worst in zip(*curves, strict=True)]
        errors = [[example_errors(self.box, s) for s in (self.clean, *curve)] for curve in curves]
        names = ALL_ATTACKS, *self.attacks
        return OutputRobustness(
            self.attack_kwargs["norm"],
            self.eps,
            tuple(self.attacks),
            metric_intervals(self.box, self.clean),
            {name: self._curves(curve) for name, curve in zip(names, (together, *curves), strict=True)},
            torch.stack([torch.stack(row) for row in errors]),
            self.interrupted,
            self.masking_findings,
        )

    def _curves(self, statistics: Sequence[Tensor]) -> dict[str, tuple[Interval, ...]]:
        """Each metric over eps."""
        points = [metric_intervals(self.box, s) for s in statistics]
        return {name: tuple(point[name] for point in points) for name in points[0]}
