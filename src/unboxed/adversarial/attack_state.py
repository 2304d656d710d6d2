"""The state of one call of an attack: the model, the goal, the best images so far, and the queries spent."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from types import TracebackType

import torch
from torch import Tensor

from ..box import Box
from ..engine.column_units import categorical_mask, inputs_to_original_units, table_inputs, to_scaled_box_and_inputs
from ..engine.cpu_cache import gradient_batch_size_and_max_rows
from ..engine.gradients.score import score_gradients_with_bypass
from ..engine.optimize.constraints import NormBall, eps_with_rounding_tolerance, norm_of
from ..engine.read.class_labels import has_class_labels
from ..engine.read.examples import inputs_and_labels
from ..engine.read.output_values import inputs_and_output_values
from ..engine.rows import broadcast_rows
from ..inputs.labels import ClassLabels
from ..model.batching import BatchSize, map_in_batches
from ..model.hooks import Acts
from ..model.nan_checks import check_no_nan
from ..objectives import Objective
from .attacks_without_gradients import explaining_missing_gradient
from .goal import make_goal, require_attackable_classes
from .output_loss import make_output_loss_goal, measured_losses
from .predictions import naming_originals_of_nan
from .result import Adversarial

CANDIDATE_DESCRIPTION_IN_ERRORS = "an image that was tried instead"
LogitsToScoresFn = Callable[[Tensor, Tensor], Tensor]  # logits (n, K) and rows (n,) -> scores (n, J)
Tensors = tuple[Tensor, ...]
Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ScoreAndGradient:
    """Scores and gradient at some images."""

    score: Tensor  # (n,)
    success_score: Tensor  # (n,) above zero: success
    grad: Tensor  # (n, ...) of the score in the image


class AttackState:
    """Evaluates the model for an attack, counts its queries, and keeps the best image of each example.

    An attack evaluates images (n, ...) of some `rows` (n,): those that are still attacked. As a context manager it
    catches Ctrl-C and sets `interrupted`, so that what was found is returned.
    """

    def __init__(
        self,
        box: Box,
        x: Tensor,
        y: ClassLabels | None = None,
        *,
        norm: NormBall,
        target: ClassLabels | None = None,
        objective: Objective | None = None,
        loss_name: str = "ce",
        eot: int = 1,
        batch_size: BatchSize = "auto",
        raises_output_loss: bool = False,  # it can go on without a threshold, where outputs are not one class
    ) -> None:
        is_untargeted = target is None and objective is None
        has_output_loss = is_untargeted and raises_output_loss and not has_class_labels(box)
        if is_untargeted and not has_output_loss:  # before labels are read: those of other models have other forms
            require_attackable_classes(box)
        read_labels = inputs_and_output_values if has_output_loss else inputs_and_labels
        own_x, y = read_labels(box, x, y) if is_untargeted else (box.validate_inputs(x), y)
        self.own_box, self.own_x, self.norm = box, own_x, norm  # in the inputs' own units
        self.box, self.x = to_scaled_box_and_inputs(box, self.own_x)  # in which distances are measured
        self.fixed_values = categorical_mask(box.inputs)  # (D,) categories, which are not changed
        self.n_samples, self.batch_size = eot if box.stochastic else 1, batch_size
        n, device = len(self.x), self.x.device
        if has_output_loss:
            self.goal = make_output_loss_goal(box, self.own_x, y, loss_name, batch_size)
        else:
            self.goal = make_goal(box, n, y, target, objective, loss_name)
        self.images = self.x.clone()  # (N, ...) the best found
        self.distance = torch.full((n,), math.inf, device=device, dtype=self.x.dtype)
        self.queries = torch.zeros(n, dtype=torch.long, device=device)
        self.success, self.initially_misclassified = (torch.zeros(n, dtype=torch.bool, device=device) for _ in range(2))
        self.initial_score = torch.full_like(self.distance, math.nan)  # (N,) above zero where the original is a success
        self.fallback_images = self.x  # (N, ...) what is returned where nothing was found
        self.interrupted = False
        start_score = -math.inf if self.goal.has_threshold else 0.0  # a loss that is not raised leaves the original
        self._best_failure_score = torch.full_like(self.distance, start_score)  # (N,) of failures in `images`
        self._full_batch = self.x.clone() if box.batch_dependent else None  # (N, ...) then evaluated all together

    def __enter__(self) -> AttackState:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        was_interrupted = error_type is not None and issubclass(error_type, KeyboardInterrupt)
        self.interrupted |= was_interrupted
        return was_interrupted

    # -- what was found ----------------------------------------------------------------------------------------------

    def find_rows_to_attack(self) -> Tensor:
        """Evaluate the originals, and return the rows (M,) of those that are not successes already."""
        rows = torch.arange(len(self.x), device=self.x.device)
        self.initial_score = self.success_score(self.x, rows)
        self.initially_misclassified = (self.initial_score > 0) & self.goal.has_threshold
        self.update_nearest(self.x, rows, self.initially_misclassified)
        return rows[~self.initially_misclassified]

    def update_nearest(self, images: Tensor, rows: Tensor, is_adversarial: Tensor) -> Tensor:
        """Keep images that are successes and nearer than the best so far; returns (n,) where that was so."""
        images = self.restore_categorical_values(images, rows)
        distance = self.norm.distance(images, self.x[rows])
        is_nearer = is_adversarial & (distance < self.distance[rows])
        nearer_rows = rows[is_nearer]
        self.images[nearer_rows], self.distance[nearer_rows], self.success[nearer_rows] = (
            images[is_nearer].to(self.images.dtype),
            distance[is_nearer],
            True,
        )
        return is_nearer

    def update_best_failure(self, images: Tensor, rows: Tensor, success_score: Tensor) -> None:
        """Where there is no success yet, keep images of a higher score: attacks within eps return them."""
        is_better = ~self.success[rows] & (success_score > self._best_failure_score[rows])
        better_rows, images = rows[is_better], self.restore_categorical_values(images, rows)
        self.images[better_rows], self._best_failure_score[better_rows] = (
            images[is_better].to(self.images.dtype),
            success_score[is_better],
        )

    def to_result(self, eps: float = math.inf) -> Adversarial:
        """The result. An image beyond `eps` is no success, and the original is returned for it."""
        is_too_far = self.distance > eps_with_rounding_tolerance(eps)
        images = torch.where(broadcast_rows(is_too_far, self.x), self.fallback_images, self.images)
        images = self.restore_categorical_values(images, torch.arange(len(images), device=images.device))
        success = self.success & ~is_too_far
        if self._full_batch is not None:  # evaluated with the final images of all rows
            success = self.success_score(images, torch.arange(len(images), device=images.device)) > 0
        distance = self.norm.distance(images, self.x)
        if self.box is not self.own_box:
            images = inputs_to_original_units(self.box, images, self.own_x)
            success &= self._are_rounded_inputs_successes(images)
        result = Adversarial(
            self.own_box.restore_structure(images),
            success,
            self.queries,
            distance,
            self.initially_misclassified,
            norm_of(self.norm),
            self.interrupted,
            self.own_box.restore_structure(self.own_x),
            self.box.classes,
            self.goal.kind,
            input_spec=table_inputs(self.own_box.inputs),
        )
        return result if self.goal.has_threshold else measured_losses(result, self.goal, self.own_box, self.batch_size)

    def _are_rounded_inputs_successes(self, images: Tensor) -> Tensor:
        """(N,) whether inputs in their own units are successes, rounded as they are."""
        criterion = self.goal.criterion
        acts = self.own_box.read(self.own_box.restore_structure(images), sorted(criterion.layers))
        return criterion(Acts(acts)) > 0

    def validate_inputs(self, x: Tensor) -> Tensor:
        """Further inputs (M, ...), in the units in which distances are measured."""
        x = self.own_box.validate_inputs(x)
        return x if self.box is self.own_box else self.box.inputs.to_scaled_units(x)  # type: ignore[attr-defined]

    def _zero_categorical_grad(self, grad: Tensor) -> Tensor:
        """A gradient (n, ...) without the categories' part."""
        return grad if self.fixed_values is None else grad.masked_fill(self.fixed_values.to(grad.device), 0)

    def restore_categorical_values(self, images: Tensor, rows: Tensor) -> Tensor:
        """The images (n, ...) with the categories of their originals."""
        if self.fixed_values is None:
            return images
        return torch.where(self.fixed_values.to(images.device), self.x[rows], images)

    def split_rows_into_batches(self, rows: Tensor) -> tuple[Tensor, ...]:
        """The rows in parts that fit one batch, to be attacked one after the other; all together if batch-dependent."""
        size, max_rows = self.box.batch_size_and_max_rows(len(rows), self.batch_size)
        even_size = -(-len(rows) // max(1, -(-len(rows) // max(1, max_rows))))
        return torch.split(rows, max(1, even_size if size == "auto" else size))

    # -- evaluating the model ------------------------------------------------------------------------------------------

    def logits(self, images: Tensor, rows: Tensor) -> Tensor:
        """(n, K), without a gradient."""
        (out,) = self._evaluate_nan_checked(
            images,
            rows,
            lambda h, i: (self._mean_readout_without_grad(h, {"logits"}, lambda acts: acts["logits"]),),
            (self.box.n_outputs,),
        )
        return out

    def success_score(self, images: Tensor, rows: Tensor) -> Tensor:
        """(n,) above zero where an image is a success; without a gradient."""

        def evaluate_rows(images: Tensor, row_index: Tensor) -> Tensors:
            criterion = self.goal.criterion.rows(row_index)
            return (self._mean_readout_without_grad(images, criterion.layers, criterion),)

        return self._evaluate_nan_checked(images, rows, evaluate_rows, ())[0]

    def evaluate(self, images: Tensor, rows: Tensor, objective: Objective | None = None) -> tuple[Tensor, Tensor]:
        """Score and success score (n,), without a gradient."""
        score_objective = self.goal.ascent_objective if objective is None else objective

        def evaluate_rows(images: Tensor, row_index: Tensor) -> Tensors:
            row_objective, criterion = score_objective.rows(row_index), self.goal.criterion.rows(row_index)
            stacked_scores = self._mean_readout_without_grad(
                images,
                row_objective.layers | criterion.layers,
                lambda acts: torch.stack([row_objective(acts), criterion(acts)], 1),
            )
            return stacked_scores[:, 0], stacked_scores[:, 1]

        score, success_score = self._evaluate_nan_checked(images, rows, evaluate_rows, (), ())
        return score, success_score

    def evaluate_with_grad(self, images: Tensor, rows: Tensor, objective: Objective | None = None) -> ScoreAndGradient:
        """Scores and gradient, of the goal's objective or of another one with a row for each of N."""
        score_objective = self.goal.ascent_objective if objective is None else objective

        def evaluate_rows(images: Tensor, row_index: Tensor) -> Tensors:
            return self._score_success_and_grad(
                images, score_objective.rows(row_index), self.goal.criterion.rows(row_index)
            )

        return ScoreAndGradient(
            *self._evaluate_nan_checked(images, rows, evaluate_rows, (), (), tuple(self.x.shape[1:]))
        )

    def jacobian(self, images: Tensor, rows: Tensor, select_scores: LogitsToScoresFn) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, K), the scores (n, J) of `select_scores(logits, rows)`, and their gradients (n, J, ...).

        One forward pass and J backward passes.
        """

        def evaluate_rows(images: Tensor, row_index: Tensor) -> Tensors:
            with explaining_missing_gradient(self.box), self.box.isolated():
                images = images.detach().requires_grad_()
                logits = self.box.forward(images, {"logits"})["logits"].to(self.x.dtype)  # (n, K)
                scores = select_scores(logits, row_index)  # (n, J)
                last_index = scores.shape[1] - 1
                score_grads = [
                    self._zero_categorical_grad(
                        torch.autograd.grad(scores[:, j].sum(), images, retain_graph=j < last_index)[0]
                    )
                    for j in range(last_index + 1)
                ]
            return logits.detach(), scores.detach(), torch.stack(score_grads, 1)

        n_classes, image_shape = self.box.n_outputs, tuple(self.x.shape[1:])
        n_scores = 0 if len(rows) else select_scores(self.x.new_zeros(0, n_classes), rows).shape[1]
        logits, scores, grads = self._evaluate_nan_checked(
            images, rows, evaluate_rows, (n_classes,), (n_scores,), (n_scores, *image_shape)
        )
        return logits, scores, grads

    def _evaluate_nan_checked(
        self, images: Tensor, rows: Tensor, evaluate_rows: Callable[[Tensor, Tensor], Tensors], *shapes: Shape
    ) -> Tensors:
        """`_evaluate_in_batches`; raises NaNError where outputs are NaN. `shapes` are those of each output per row.

        Logits or success scores are checked: another score may be NaN where a class is masked by a logit of -inf.
        Without rows the model is not run.
        """
        if not len(rows):
            return tuple(self.x.new_zeros(0, *shape) for shape in shapes)
        outputs = self._evaluate_in_batches(images, rows, evaluate_rows)
        with naming_originals_of_nan(self.box, self.x, self.batch_size):
            check_no_nan(outputs[int(shapes[:2] == ((), ()))], rows, CANDIDATE_DESCRIPTION_IN_ERRORS)
        return outputs

    def _evaluate_in_batches(
        self, images: Tensor, rows: Tensor, evaluate_rows: Callable[[Tensor, Tensor], Tensors]
    ) -> Tensors:
        """`evaluate_rows(images, rows)` in bounded batches; of all rows, and all counted, if batch-dependent."""
        images = self.restore_categorical_values(images, rows)
        if self._full_batch is not None:
            self._full_batch[rows] = images.to(self._full_batch.dtype)
            self.queries += self.n_samples
            outputs = evaluate_rows(self._full_batch, torch.arange(len(self.x), device=rows.device))
            return tuple(h[rows] for h in outputs)
        self.queries.index_add_(0, rows, torch.full_like(rows, self.n_samples))  # a row may have several images
        size, max_rows = gradient_batch_size_and_max_rows(self.box, len(rows), self.batch_size)
        with torch.inference_mode(False):  # the caller may be in it
            images = images.clone() if images.is_inference() else images
            parts = map_in_batches(lambda s: evaluate_rows(images[s], rows[s]), len(rows), size, max_rows)
        return parts[0] if len(parts) == 1 else tuple(torch.cat(h) for h in zip(*parts, strict=True))

    def _mean_readout_without_grad(
        self, images: Tensor, addresses: Collection[str], readout: Callable[[Acts], Tensor]
    ) -> Tensor:
        return self._mean_over_eot_samples(
            lambda: readout(self.box.forward(images, addresses)).to(self.x.dtype), needs_grad=False
        )

    def _score_success_and_grad(self, images: Tensor, score_objective: Objective, criterion: Objective) -> Tensors:
        """Score (n,), success score (n,) and gradient (n, ...)."""

        def evaluate_one_noise_sample() -> Tensor:  # (n, 2 + D)
            leaf = images.detach().requires_grad_()
            acts = self.box.forward(leaf, score_objective.layers | criterion.layers)
            score = score_objective(acts)
            (grad,), _ = score_gradients_with_bypass(score, acts, score_objective, [leaf], relu_bypass="no")
            grad = self._zero_categorical_grad(grad)
            scores = torch.stack([score.detach(), criterion(acts).detach()], 1).to(self.x.dtype)
            return torch.cat([scores, grad.to(self.x.dtype).flatten(1)], 1)

        outputs = self._mean_over_eot_samples(evaluate_one_noise_sample, needs_grad=True)
        return outputs[:, 0], outputs[:, 1], outputs[:, 2:].view(images.shape)

    def _mean_over_eot_samples(self, evaluate_one_noise_sample: Callable[[], Tensor], needs_grad: bool) -> Tensor:
        """The mean over `n_samples` draws of the model's own noise."""
        samples = list[Tensor]()
        for seed in range(self.n_samples):
            with explaining_missing_gradient(self.box), self.box.isolated(grad=needs_grad, seed=seed):
                samples.append(evaluate_one_noise_sample())
        return samples[0] if len(samples) == 1 else torch.stack(samples).mean(0)
