"""Forward passes of each input under many edits, in bounded batches; modules before the edit run once per example."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from ...box import Box
from ...inputs.base import inputs_from_unit_interval
from ...model.batching import BatchSize, is_out_of_memory_error, run_all_example_variants
from ...model.hooks import Edit
from ...model.replay import LOW_PRECISION_TOLERANCE, ROUNDING_TOLERANCE_BY_DTYPE, is_close
from ...objectives import Objective, mean_over_positions
from .prefix_replay import PrefixReplay

LOG = logging.getLogger("unboxed")


@dataclass(frozen=True, eq=False)
class ReplaceWhereEdit:
    """h with the values `value` where the mask (R, ...) is True; both are broadcast to h."""

    mask: Tensor
    value: Tensor

    def __call__(self, h: Tensor) -> Tensor:
        return torch.where(self.mask.to(h.device), self.value.to(h), h)


class EditFactory(Protocol):
    def __call__(self, examples: Tensor, variants: Tensor) -> Mapping[str, Edit]:
        """The edits of a batch whose rows are these examples (R,) under these variants (R,)."""


@dataclass(frozen=True, eq=False)
class VariantOutputs:
    score: Tensor  # (N, P)
    logits: Tensor | None  # (N, P, K): a map of outputs counts by its mean


def run_variants(
    box: Box,
    x: Tensor,
    objective: Objective,
    edit_factory: EditFactory | None = None,
    n_variants: int = 1,
    *,
    logits: bool = True,
    batch_size: BatchSize = "auto",
) -> VariantOutputs:
    """Run x (N, ...) under each of `n_variants` edits (None: unedited); pairs of example and variant share batches.

    Modules before the edited layer run once per example and batch, where the model allows it.
    """
    n, runner = len(x), _VariantRunner(box, x, objective, edit_factory, logits, PrefixReplay(box, x, objective))
    together = box.batch_dependent or objective.batch_dependent
    size, max_rows = box.batch_size_and_max_rows(n, batch_size)
    has_room = (max_rows if size == "auto" else size) >= len(TRIAL_BATCH_EXAMPLE_INDICES)
    mode = runner.cheapest_exact_run_mode(n_variants) if n_variants > 1 and has_room and not together else "whole"

    def run_pairs(examples: Tensor, variants: Tensor) -> list[Tensor]:
        nonlocal mode
        try:
            return runner.run(examples, variants, mode)
        except Exception as error:
            if mode == "whole" or is_out_of_memory_error(error):
                raise
            LOG.info("%s runs failed; whole runs follow", mode, exc_info=True)
        mode = "whole"  # the model behaves differently from the trial
        return runner.run(examples, variants)

    score, *rest = run_all_example_variants(run_pairs, n, n_variants, (size, max_rows), together, box.device)
    return VariantOutputs(score, rest[0] if rest else None)


RunMode = Literal["thin", "replayed", "whole", "checked"]
"""Rows are repeated at the edit; modules before it are replayed from one run per example; every run is a full one; full
runs that find the modules which cannot be replayed."""

TRIAL_BATCH_EXAMPLE_INDICES = (1, 0, 1)  # two inputs in another order, one of them twice


@dataclass(frozen=True)
class _VariantRunner:
    box: Box
    x: Tensor
    objective: Objective
    edit_factory: EditFactory | None
    reads_logits: bool
    prefix: PrefixReplay

    def run(self, examples: Tensor, variants: Tensor, mode: RunMode = "whole") -> list[Tensor]:
        """Scores (R,) and logits (R, K) of pairs."""
        box, edits = self.box, {} if self.edit_factory is None else self.edit_factory(examples, variants)
        (unique_examples, inverse), is_thin = torch.unique(examples, return_inverse=True), mode == "thin"
        replaying_prefix: AbstractContextManager[None] = nullcontext()
        if mode == "replayed":
            self.prefix.record_prefix(examples, edits)
            replaying_prefix = self.prefix.replaying_prefix(examples)
        elif mode == "checked":
            replaying_prefix = self.prefix.finding_unreplayable_modules(examples, edits, self.rounding_tolerance)
        if is_thin:
            edits = {a: _edit_after_row_gather(edit, inverse) for a, edit in edits.items()}
        addresses = {*self.objective.layers, *(["logits"] if self.reads_logits else [])}
        with box.isolated(grad=False), replaying_prefix:
            acts = box.forward(
                self.x[unique_examples if is_thin else examples], addresses, edits, len(examples) if is_thin else None
            )
            outputs = [self.objective.rows(examples)(acts)]
            outputs += [mean_over_positions(acts["logits"])] if self.reads_logits else []
            return [h.to(box.dtype) for h in outputs]

    @property
    def rounding_tolerance(self) -> float:
        """The relative rounding error that another batch size may cause."""
        return (
            ROUNDING_TOLERANCE_BY_DTYPE.get(self.box.model_dtype, LOW_PRECISION_TOLERANCE)
            if self.box.device.type == "cpu"
            else LOW_PRECISION_TOLERANCE
        )

    def cheapest_exact_run_mode(self, n_variants: int) -> RunMode:
        """The cheapest mode that gives the results of full runs, on a trial.

        A batch cannot grow inside a model where a branch around the layer, or a reshape, depends on its size; most such
        models raise. Modules cannot be replayed where values do not pass from module to module.
        """
        runner = self.make_trial_runner()
        examples = torch.tensor(TRIAL_BATCH_EXAMPLE_INDICES, device=self.box.device)
        variants = torch.arange(len(TRIAL_BATCH_EXAMPLE_INDICES), device=self.box.device) % 2 * (n_variants - 1)
        try:
            full_outputs = runner.run(examples, variants)
        except Exception:  # out of memory, too: the runs then find a size that fits
            LOG.info("a batch of %d rewritten runs failed", len(TRIAL_BATCH_EXAMPLE_INDICES), exc_info=True)
            return "whole"
        if runner.matches_full_run(full_outputs, examples, variants, "thin"):
            return "thin"
        if not self.prefix.is_replay_possible or not runner.matches_full_run(
            full_outputs, examples, variants, "checked"
        ):
            return "whole"
        self.prefix.unreplayable = runner.prefix.unreplayable
        return "replayed" if runner.matches_full_run(full_outputs, examples, variants, "replayed") else "whole"

    def make_trial_runner(self) -> _VariantRunner:
        """The same runs on an example and noise: rows that differ, whatever x is."""
        box, objective, edit_factory = self.box, self.objective, self.edit_factory
        source_rows = torch.arange(2, device=box.device).clamp_max(len(self.x) - 1)
        x = torch.cat([self.x[:1], _noise_like(box, self.x[:1])])
        objective = objective.rows(source_rows)
        return replace(
            self,
            x=x,
            objective=objective,
            edit_factory=None if edit_factory is None else lambda n, p: edit_factory(source_rows[n], p),
            prefix=PrefixReplay(box, x, objective),
        )

    def matches_full_run(self, full_outputs: list[Tensor], examples: Tensor, variants: Tensor, mode: RunMode) -> bool:
        """Whether the results of a cheaper mode equal those of full runs, up to rounding."""
        try:
            outputs = self.run(examples, variants, mode)
        except Exception:
            LOG.info("%s runs are not taken", mode, exc_info=True)
            return False
        return all(is_close(a, b, self.rounding_tolerance) for a, b in zip(outputs, full_outputs, strict=True))


def _edit_after_row_gather(edit: Edit, index: Tensor) -> Edit:
    return lambda h: edit(h[index])


def _noise_like(box: Box, x: Tensor) -> Tensor:
    """A random input (1, ...) as long as x (1, ...)."""
    noise = box.noise(1)
    if noise.shape == x.shape:
        return noise
    generator = torch.Generator(x.device).manual_seed(0)
    levels = torch.rand(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return inputs_from_unit_interval(box.inputs, levels).to(x)
