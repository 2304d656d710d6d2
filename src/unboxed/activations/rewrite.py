"""Rewrite: run a model with some of its activations changed, and compare its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ..box import Box
from ..cards import card
from ..engine.read.edits import UnitEdit, ablate, require_unit_layer, unit_layer_addresses
from ..engine.results import ResultMixin
from ..errors import InputError
from ..model.batching import map_in_batches
from ..model.hooks import Edit
from ..parameters import BatchSize, InputBatch
from ..settings import ValueRole, check_settings

EditsByLayer = Mapping[str, Edit | Sequence[Edit]]


@dataclass(frozen=True, eq=False, repr=False)
class RewriteResult(ResultMixin):
    """The logits of a model as it is, and with some of its activations changed."""

    returns: ClassVar[str] = "table"

    logits_before: Tensor  # (N, K)
    logits_after: Tensor  # (N, K) of the rewritten model
    classes: tuple[str, ...] = ()  # the names of the model's classes

    @property
    def logits_change(self) -> Tensor:
        """After minus before, (N, K)."""
        return self.logits_after - self.logits_before


@card(
    name="Rewriting",
    source="Bau et al. 2019, arXiv:1811.10597, section 3.2 (interventions on units)",
    shows="The output with these activations changed: a cause, not a correlation.",
    does_not_show="What the model would do on an input that has such activations: often there is none.",
    example=lambda method, box, x, y: method(box, x, {unit_layer_addresses(box)[-1]: ablate(0)}),
    exempt={"one forward": "it runs the model with and without the edits"},
    runs=2,
    order=12,
)
def rewrite(
    box: Box,
    x: InputBatch,
    edits: Annotated[
        EditsByLayer, ValueRole("object"), "Edits of activations: {layer address: edit, or several in turn}."
    ],
    *,
    batch_size: BatchSize = "auto",
) -> RewriteResult:
    """The logits of x with and without edits of the model's activations.

    For interventions of your own: ablate, scale or set units, steer along a direction. For every unit of a layer in
    turn use `ablation`, for activations of another input `patching`.

    Args:
        box: The opened model.
        x: Inputs (N, ...) in the box's units: images (N, C, H, W) in [0, 1].
        edits: Edits of activations: {layer address: edit, or several in turn}. Ready-made are `ablate(k)`, `scale(k,
            factor)` and `put(k, value)`; or any function from the layer's output (N, ...) to a tensor of its shape. Of
            a layer that returns several tensors the first is edited.
        batch_size: Examples per forward pass; "auto" takes as many as fit in memory.

    Returns:
        A `RewriteResult`: `logits_before`, `logits_after` and `logits_change`, each (N, K).

    Raises:
        LayerError: for an unknown layer.
        InputError: for an edit that does not fit the layer.

    Example:
        >>> import unboxed as ub
        >>> box = ub.Box(*ub.zoo.load("digits-cnn"))
        >>> x, y = ub.data.digits("test").first(2)
        >>> result = ub.activations.rewrite(box, x, {"relu2": ub.activations.ablate(3)})
        >>> tuple(result.logits_change.shape)
        (2, 10)

    Source:
        Bau et al. 2019, arXiv:1811.10597, section 3.2 (interventions on units).
    """
    check_settings(rewrite, locals())
    x = box.validate_inputs(x)
    edits_by_address = _edits_by_resolved_address(box, edits, len(x))
    batch_dependent = not all(map(box.has_batch_axis, edits_by_address))

    def edited_logits_of_rows(rows: slice, row_edits: Mapping[str, Sequence[Edit]]) -> Tensor:
        composed = {
            a: _edit_that_applies_all_in_turn([e.rows(rows) if isinstance(e, UnitEdit) else e for e in es], a)
            for a, es in row_edits.items()
        }
        with box.isolated(grad=False):
            return box.forward(x[rows], ["logits"], composed)["logits"].to(box.dtype)

    batch_size_and_max_rows = box.batch_size_and_max_rows(len(x), batch_size, batch_dependent)
    before, after = (
        torch.cat(map_in_batches(partial(edited_logits_of_rows, row_edits=edits), len(x), *batch_size_and_max_rows))
        for edits in ({}, edits_by_address)
    )
    return RewriteResult(before, after, box.classes)


def _edits_by_resolved_address(box: Box, edits: EditsByLayer, n: int) -> dict[str, tuple[Edit, ...]]:
    if not isinstance(edits, Mapping) or not edits:
        raise InputError("edits must be {layer address: edit}, such as {'conv1': ablate(3)}, with at least one edit")
    edits_by_address: dict[str, tuple[Edit, ...]] = {}
    for address, value in edits.items():
        edit_list = tuple(value) if isinstance(value, Sequence) else (value,)
        if not edit_list or not all(map(callable, edit_list)):
            raise InputError(f"an edit of {address!r} must be a function of its activation, such as ablate(3)")
        unit_edits = [e.check_batch(n) for e in edit_list if isinstance(e, UnitEdit)]
        resolved = require_unit_layer(box, address) if unit_edits else box.layers.resolve(address)
        edits_by_address[resolved] = edit_list
    return edits_by_address


def _edit_that_applies_all_in_turn(edits: Sequence[Edit], address: str) -> Edit:
    """The edits in turn. Raises InputError for one that does not keep the shape."""

    def apply_edits_in_turn(h: Tensor) -> Tensor:
        edited = h
        for edit in edits:
            edited = edit(edited.clone())  # a function may write over its argument
        if not isinstance(edited, Tensor) or edited.shape != h.shape:
            got = f"shape {tuple(edited.shape)}" if isinstance(edited, Tensor) else type(edited).__name__
            raise InputError(
                f"an edit of {address!r} must return a tensor of its shape {tuple(h.shape)}; it returned {got}"
            )
        return edited.to(h)

    return apply_edits_in_turn
