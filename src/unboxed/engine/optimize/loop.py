"""The loop: gradient ascent on an objective by changing the input."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...box import Box
from ...model.batching import BatchSize, map_in_batches
from ...model.hooks import Acts
from ...model.nan_checks import OPTIMIZED_INPUT_IN_ERRORS, check_no_nan
from ...model.state import setting_grad_mode, waits_for_device_on_read
from ...objectives import Objective
from ...rng import step_generator
from ..cpu_cache import gradient_batch_size_and_max_rows
from ..gradients.score import score_gradients_with_bypass
from ..rows import broadcast_rows
from .batch_state import BatchState, select_optimizer_rows
from .config import PER_ROW_RESULT_FIELDS, combine_batch_results
from .config import OptimizationConfig as OptimizationConfig
from .config import OptimizationResult as OptimizationResult
from .config import OptimizerFactory as OptimizerFactory
from .config import retry_on_interrupt as retry_on_interrupt
from .constraints import Constraint
from .optimizers import PlainAscent
from .parameterizations import Canvas

ScoreStopGradFnTuple = tuple[Tensor, Tensor | None, Callable[[], Tensor]]
STEPS_PER_MODEL_ISOLATION = 8  # steps before other threads may use the model
SYNC_INTERVAL_STEPS = 8  # steps between reads of values on an accelerator: each read waits for the device


def optimize(
    box: Box, objective: Objective, canvas: Canvas, config: OptimizationConfig, *, batch_size: BatchSize = "auto"
) -> OptimizationResult:
    """Maximize `objective` over the canvas's images. On Ctrl-C the result so far is returned, `interrupted`.

    Raises NaNError where a score is NaN at the start or at the end, unless `config.allow_nan`.
    """
    n, interruptions = len(next(canvas.parameters())), list[bool]()
    batch_dependent = [box.check_objective(o, n).batch_dependent for o in (objective, *config.extra_objectives)]

    def optimize_rows(rows: slice) -> OptimizationResult:
        optimizer = _BatchOptimizer(
            box, objective.rows(rows), canvas.rows(rows), config, config.constraint.rows(rows), rows
        )
        result = optimizer.unchanged_start_result() if interruptions else optimizer.run()
        interruptions.extend([True] * result.interrupted)
        return result

    with torch.inference_mode(False), torch.enable_grad():  # the caller may be in no_grad or inference_mode
        return combine_batch_results(
            map_in_batches(
                optimize_rows, n, *gradient_batch_size_and_max_rows(box, n, batch_size, any(batch_dependent))
            )
        )


class _BatchOptimizer:
    """The optimization of one batch. Objective, canvas and constraint hold the rows in `active` alone."""

    def __init__(
        self,
        box: Box,
        objective: Objective,
        canvas: Canvas,
        config: OptimizationConfig,
        constraint: Constraint,
        rows: slice,
    ) -> None:
        self.box, self.objective, self.canvas, self.config, self.constraint = box, objective, canvas, config, constraint
        self.stop_when, self.prior = (None if o is None else o.rows(rows) for o in (config.stop_when, config.prior))
        self.params: list[Tensor] = list(canvas.parameters())
        self.optimizer = config.optimizer(self.params)
        frozen_rows = None if config.frozen_rows is None else config.frozen_rows[rows]
        self.state = BatchState.initial(canvas().detach().clone(), config.sum_abs_grads, frozen_rows)
        self.first_row = rows.start or 0
        self.forward_count = self.step_count = 0  # of the active rows
        self.active = torch.arange(len(self.state.input), device=self.state.input.device)
        self.sync_is_slow = waits_for_device_on_read(self.active.device)
        self.batch_dependent = box.batch_dependent or any(
            o.batch_dependent for o in (objective, *config.extra_objectives)
        )
        # a finished row does not change
        self.freezes_finished = config.stop_when is not None and not config.continue_finished
        # and remains among the active rows
        self.keeps_finished_rows = self.freezes_finished and (self.sync_is_slow or self.batch_dependent)
        self.unfinished_index: Tensor | None = None  # where some rows are finished and can be dropped
        self.unwritten_input: Tensor | None = None  # of the active rows, if not written to `state.input` yet
        self.clamped_rows: Tensor | None = None  # on an accelerator: those at the last sync

    def run(self) -> OptimizationResult:
        frames, history, interrupted = list[Tensor](), list[Tensor](), False
        n_evaluations, stride = self.config.steps + 1, STEPS_PER_MODEL_ISOLATION if self.box.stateless else 1
        try:
            for start in range(0, n_evaluations, stride):
                if self._run_steps_until_finished(range(start, min(start + stride, n_evaluations)), frames, history):
                    break
        except KeyboardInterrupt:
            interrupted = True
        return self._make_result(frames, history, interrupted)

    def unchanged_start_result(self) -> OptimizationResult:
        """The unchanged start, after Ctrl-C in an earlier batch."""
        return self._make_result([], [], interrupted=True)

    def _make_result(self, frames: list[Tensor], history: list[Tensor], interrupted: bool) -> OptimizationResult:
        state = self.state
        self._write_inputs_and_counts()
        if not frames or not torch.equal(frames[-1], state.input):
            frames = [*frames, state.input]
        stacked_frames = torch.stack(frames) if self.config.frame_every else None
        scores = torch.stack(history or [state.score])
        row_fields = {name: getattr(state, name) for name in PER_ROW_RESULT_FIELDS}
        return OptimizationResult(
            **row_fields,
            frames=stacked_frames,
            history=scores,
            abs_grad_sum=state.abs_grad_sum,
            interrupted=interrupted,
        )

    # -- evaluation --------------------------------------------------------------------------------------------------

    def _run_steps_until_finished(self, steps: range, frames: list[Tensor], history: list[Tensor]) -> bool:
        """Evaluate, then step; returns whether no row has a step left to take.

        A model that writes or draws is isolated for each step; for any other, entering costs more than it keeps apart.
        """
        with self.box.isolated(grad=self.config.steps > 0):
            for step in steps:
                grads = self._evaluate_param_grads(step, is_last=step == self.config.steps)
                if self.config.frame_every and step % self.config.frame_every == 0:
                    self._write_active_inputs()
                    frames.append(self.state.input.clone())
                history.append(self.state.score)  # each evaluation makes it anew
                if not grads:
                    return True
                self._anneal_lr(step)
                self._update_params(self._drop_finished(grads), step)
        return False

    def _evaluate_param_grads(self, step: int, is_last: bool) -> list[Tensor]:
        """Score the active rows and, unless this evaluation is the last, find the gradient of each parameter."""
        with setting_grad_mode(not is_last):
            x = self.canvas()
            score, stop_value, score_grad = (
                self._forward_with_grad_fn(x, step, is_last)
                if self.config.n_samples == 1
                else self._forward_over_model_noise(x, step, is_last)
            )
            is_first = step == 0 and not self.sync_is_slow  # a NaN of the first step is still there at the last
            if not self.config.allow_nan and (is_first or is_last):
                check_no_nan(score.detach(), self.first_row + self.active, OPTIMIZED_INPUT_IN_ERRORS)
            self._record_evaluation(x, score, None if stop_value is None else stop_value > 0, step)
            if is_last or self._sync_and_check_all_finished(step):
                return []
            grad = self._record_grad_statistics(score_grad(), step)
            if self.prior is not None:  # apart from the score's, whose zero rows are detected
                prior_scale = self.config.final_prior_scale ** (step / max(1, self.config.steps - 1))
                grad = grad + prior_scale * torch.autograd.grad(self.prior({"input": x}).sum(), x)[0]
            is_identity = len(self.params) == 1 and self.params[0] is x
            return [grad] if is_identity else list(torch.autograd.grad(x, self.params, grad))

    def _forward_with_grad_fn(self, x: Tensor, step: int, is_last: bool) -> ScoreStopGradFnTuple:
        """One forward pass: the score, the value of `stop_when`, and a function for the gradient of the score."""
        self.forward_count += 1
        layers = frozenset[str]() if self.stop_when is None else self.stop_when.layers
        acts = self.box.forward(self._apply_transform(x, step, is_last), self.objective.layers | layers)
        score = self.objective(acts)
        with setting_grad_mode(False):
            stop_value = None if self.stop_when is None else self.stop_when(acts).detach()
        return score, stop_value, lambda: self._score_grad(score, acts, x, step)

    def _forward_over_model_noise(self, x: Tensor, step: int, is_last: bool) -> ScoreStopGradFnTuple:
        """The means over samples of the model's own noise, one at a time: expectation over transformation.

        Athalye et al. 2018, "Synthesizing Robust Adversarial Examples", arXiv:1707.07397.
        """
        scores, stop_values, grad = list[Tensor](), list[Tensor](), torch.zeros_like(x)
        for sample in range(self.config.n_samples):
            with self.box.isolated(grad=not is_last, seed=sample):
                score, stop_value, score_grad = self._forward_with_grad_fn(x, step, is_last)
                grad = grad if is_last else grad + score_grad()
            scores.append(score.detach())
            stop_values += [] if stop_value is None else [stop_value]
        mean_stop_value = torch.stack(stop_values).mean(0) if stop_values else None
        return torch.stack(scores).mean(0), mean_stop_value, lambda: grad / self.config.n_samples

    def _is_device_sync_step(self, step: int) -> bool:
        """Whether this is a step at which the host may wait for values."""
        return not self.sync_is_slow or step % SYNC_INTERVAL_STEPS == 0

    def _apply_transform(self, x: Tensor, step: int, is_last: bool) -> Tensor:
        if self.config.transform is None or is_last:
            return x
        return self.config.transform(x, step_generator(self.config.seed, step, x.device))

    def _record_evaluation(self, x: Tensor, score: Tensor, finished: Tensor | None, step: int) -> None:
        """Record input and score of each row, except where it was finished before and is not now."""
        state, active = self.state, self.active
        x, score = x.detach().to(state.input.dtype), score.detach().to(state.score.dtype)
        if finished is None:
            if self.config.keep_best:
                is_worse = score <= state.score  # at first it is NaN
                x = torch.where(broadcast_rows(is_worse, x), state.input, x)
                score = torch.where(is_worse, state.score, score)
            state.input, state.score = x, score.clone()  # it may be a view of an activation
            return
        all_active = len(active) == len(state.input)
        was_finished = state.finished if all_active else state.finished[active]
        ever_finished = was_finished | finished
        if (
            self.sync_is_slow
            or not torch.equal(ever_finished, finished)
            or (self.freezes_finished and was_finished.any())
        ):
            self._write_active_inputs()
            keep_previous = was_finished if self.freezes_finished else was_finished & ~finished
            x = torch.where(broadcast_rows(keep_previous, x), state.input[active], x)
            score = torch.where(keep_previous, state.score[active], score)
        if all_active:
            state.input, state.score, state.finished = x, score.clone(), ever_finished
        else:
            state.score = state.score.index_copy(0, active, score)
            state.finished[active] = ever_finished
            self.unwritten_input = x  # a copy at each step would cost as much as the step
        if step == 0:
            state.initially_finished = state.finished.clone()

    def _write_active_inputs(self) -> None:
        """Write the active rows into the state, which has the dropped rows, too."""
        if self.unwritten_input is not None:
            self.state.input[self.active] = self.unwritten_input
            self.unwritten_input = None

    def _sync_and_check_all_finished(self, step: int) -> bool:
        """At a sync, write which rows remain active; returns whether no row has a step to take."""
        if not self.freezes_finished or not self._is_device_sync_step(step):
            return False
        unfinished_index = (~self.state.finished[self.active]).nonzero()[:, 0]
        self.unfinished_index = (
            unfinished_index if len(unfinished_index) < len(self.active) and not self.batch_dependent else None
        )
        return len(unfinished_index) == 0

    def _score_grad(self, score: Tensor, acts: Acts, x: Tensor, step: int) -> Tensor:
        """The gradient of the score in the image; between syncs, the clamped rows are those of the last sync."""
        syncs = self._is_device_sync_step(step)
        relu_bypass = self.config.relu_bypass if syncs or self.clamped_rows is not None else "no"
        may_bypass = None if syncs else self.clamped_rows
        (grad,), clamped = score_gradients_with_bypass(
            score, acts, self.objective, [x], relu_bypass=relu_bypass, may_bypass=may_bypass
        )
        if clamped is not None:
            self.state.before_clamp[self.active] |= clamped
        if syncs and self.sync_is_slow:
            self.clamped_rows = clamped
        return grad

    def _record_grad_statistics(self, grad: Tensor, step: int) -> Tensor:
        if step == 0:
            self.state.initial_grad = grad.to(self.state.initial_grad.dtype, copy=True)
        if self.state.abs_grad_sum is not None:
            self.state.abs_grad_sum[self.active] += grad.abs().to(self.state.abs_grad_sum.dtype)
        return grad

    # -- a step ------------------------------------------------------------------------------------------------------

    def _drop_finished(self, grads: list[Tensor]) -> list[Tensor]:
        """Drop finished rows and their gradients, unless rows depend on one another."""
        unfinished_index, self.unfinished_index = self.unfinished_index, None
        if unfinished_index is None:
            return grads
        self._write_inputs_and_counts()
        self.active = self.active[unfinished_index]
        self.clamped_rows = None if self.clamped_rows is None else self.clamped_rows[unfinished_index]
        self.objective, self.constraint = self.objective.rows(unfinished_index), self.constraint.rows(unfinished_index)
        self.stop_when, self.prior = (
            None if o is None else o.rows(unfinished_index) for o in (self.stop_when, self.prior)
        )
        canvas = self.canvas.rows(unfinished_index)
        self.optimizer = select_optimizer_rows(
            self.config.optimizer, self.optimizer, self.canvas, canvas, unfinished_index
        )
        self.canvas, self.params = canvas, list(canvas.parameters())
        return [g[unfinished_index] for g in grads]

    def _anneal_lr(self, step: int) -> None:
        """Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5, without restarts."""
        if self.config.anneal_lr:
            for group in self.optimizer.param_groups:
                group["initial_lr"] = group.get("initial_lr", group["lr"])
                group["lr"] = group["initial_lr"] * (1 + math.cos(math.pi * step / self.config.steps)) / 2

    def _update_params(self, grads: Sequence[Tensor], step: int) -> None:
        """Take a step. Parameters get new memory: the state may share the old one."""
        params, old_params = self.params, [p.detach() for p in self.params]
        grads = [
            g if self._is_known_finite(g) else g.nan_to_num(0, 0, 0) for g in grads
        ]  # without a gradient, no change
        with setting_grad_mode(False):
            if isinstance(self.optimizer, PlainAscent) and self.config.post_step is None:
                self._projected_ascent_step(grads)
            else:
                self._optimizer_step(grads, step)
            self._count_step_and_restore_finished(params, old_params)

    def _projected_ascent_step(self, grads: Sequence[Tensor]) -> None:
        for p, grad in zip(self.params, grads, strict=True):
            p.data = self.constraint.step(p.detach(), grad, self.optimizer.param_groups[0]["lr"]).to(p.dtype)

    def _optimizer_step(self, grads: Sequence[Tensor], step: int) -> None:
        for p, grad in zip(self.params, grads, strict=True):
            old = p.detach()
            direction = self.constraint.ascent_direction(grad, old)
            is_plain_ascent = isinstance(self.optimizer, PlainAscent)
            p.grad, p.data = (direction, old) if is_plain_ascent else (-direction, old.clone())
        self.optimizer.step()
        for p, grad in zip(self.params, grads, strict=True):
            new = p if self.config.post_step is None else self.config.post_step(p, grad, step)
            p.data = self.constraint.apply(new).to(p.dtype)

    def _is_known_finite(self, grad: Tensor) -> bool:
        """Whether the gradient is finite; False on an accelerator, which would wait."""
        return not self.sync_is_slow and math.isfinite(grad.sum())

    def _count_step_and_restore_finished(self, params: Sequence[Tensor], old_params: Sequence[Tensor]) -> None:
        """Count the step, and undo it for finished rows that are still active."""
        self.step_count += 1
        if self.keeps_finished_rows:
            finished = self.state.finished[self.active]
            for p, old in zip(params, old_params, strict=True):
                p.data = torch.where(broadcast_rows(finished, p), old, p)
            self.state.steps[self.active] += (~finished).long()

    def _write_inputs_and_counts(self) -> None:
        """Before rows are dropped: write their inputs and counts."""
        self._write_active_inputs()
        self.state.n_forwards.index_fill_(0, self.active, self.forward_count)
        if not self.keeps_finished_rows:
            self.state.steps.index_fill_(0, self.active, self.step_count)
