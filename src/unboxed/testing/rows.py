"""Contracts between runs on different inputs and targets: each input has its own row, and each target its own map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..cards import Card
from ..errors import UnboxedError
from . import models
from .cases import (
    MethodCase,
    call_example,
    has_parameters,
    make_case,
    method_name,
    result_difference_texts,
    result_part_code,
    result_tensors,
)
from .contracts import IMAGE_FIELD_NAMES, ContractViolations

ResultTensors = dict[str, Tensor]


def check_rows(card: Card, model: str, method_case: MethodCase | None = None) -> None:
    """Contract 2 in double precision: each input alone gets the row that it gets among others.

    A part of the result has rows if one of its axes is 1 for one input and 3 for three. A method with a seed draws for
    each row by its index, so that only the first row gets the same numbers alone. Skipped where the card is exempt from
    "rows" or "splitting" (with a seed, from "row seeds"), where the method refuses a single input, or where the model's
    own output differs for an input alone.
    """
    if card.exempt.keys() & {"rows", "splitting", *(["row seeds"] if has_parameters(card, "seed") else [])}:
        return
    violations = ContractViolations(card)
    method_case = method_case or make_case(model, torch.float64)
    if not _is_close_in_double(
        torch.cat([method_case.box(row[None]) for row in method_case.x]), method_case.box(method_case.x)
    ):
        return
    batched = result_tensors(call_example(card, method_case))
    try:
        single = [
            _run_on_rows(card, method_case, [i])
            for i in range(1 if has_parameters(card, "seed") else len(method_case.x))
        ]
    except UnboxedError:
        return
    for i, parts in enumerate(single):
        violations.add("rows", [f"input {i} alone, {message}" for message in _row_differences(parts, batched, i)])
    violations.add("rows", _ignored_input_messages(card, method_case, batched, single[0]))
    violations.raise_if_any(f"{method_name(card)} on {model}")


def _run_on_rows(card: Card, method_case: MethodCase, index: Sequence[int]) -> ResultTensors:
    """The parts of the result for some of the inputs, with their classes."""
    return result_tensors(
        call_example(card, MethodCase(method_case.box, method_case.x[list(index)], method_case.y[list(index)]))
    )


def _row_differences(single: ResultTensors, batched: ResultTensors, i: int) -> list[str]:
    """How the result for one input differs from its row in the batch."""
    pairs = {at: _matching_row_pair(batched[at], h, i) for at, h in single.items() if at in batched}
    rows = {at: pair for at, pair in pairs.items() if pair is not None}
    return result_difference_texts(
        {at: single_row for at, (single_row, _) in rows.items()}, {at: row for at, (_, row) in rows.items()}, 1e-9
    )


def _matching_row_pair(batched: Tensor, single: Tensor, i: int) -> tuple[Tensor, Tensor] | None:
    """The tensors to compare for input i; None where no axis, or more than one, has a row per input."""
    sizes = list(zip(batched.shape, single.shape, strict=False))
    axes = [axis for axis, pair in enumerate(sizes) if pair == (3, 1)]
    if batched.ndim != single.ndim or len(axes) != 1:
        return None
    row = batched.narrow(axes[0], i, 1)
    if axes[0] == 1 and len(row) != len(single):  # frames (T, N, ...): an input alone may finish sooner
        return single[-1], row[-1]
    return single, row


def _ignored_input_messages(
    card: Card, method_case: MethodCase, batched: ResultTensors, first_single: ResultTensors
) -> list[str]:
    """Parts that have the rows of inputs at fixed positions only, and ignore the other inputs."""
    short = [at for at, h in batched.items() if at in first_single and _has_fewer_rows(h, first_single[at])]
    if not short or batched.keys() != first_single.keys():
        return []
    single = [first_single, _run_on_rows(card, method_case, [1]), _run_on_rows(card, method_case, [2])]
    permuted = _run_on_rows(card, method_case, [2, 0, 1])

    def is_fixed_row(at: str, j: int) -> bool:
        """Whether row j belongs to the input at one position, before and after permuting the inputs."""
        before, after = batched[at][j], permuted[at][j]
        matches = [
            _is_close_in_double(single[p][at][0], before) and _is_close_in_double(single[p - 1][at][0], after)
            for p in range(3)
        ]
        return any(matches) and not _is_close_in_double(before, after)

    wrong = [at for at in short if all(is_fixed_row(at, j) for j in range(len(batched[at])))]
    return [f"{result_part_code(at)} has the rows of {len(batched[at])} of 3 inputs" for at in wrong]


def _has_fewer_rows(batched: Tensor, single: Tensor) -> bool:
    same_shape = batched.shape[1:] == single.shape[1:]
    return batched.ndim > 0 and single.ndim > 0 and same_shape and len(single) == 1 and 0 < len(batched) < 3


def _is_close_in_double(a: Tensor, b: Tensor) -> bool:
    return not result_difference_texts({"": a}, {"": b}, 1e-9)


def check_maps_depend_on_target(card: Card, model: str = "plain") -> None:
    """Maps of different classes differ on a model where all logits depend on the input by weights of their own.

    Compared are floats of at least two axes that are not images: an attack may fail for every `target`. A method whose
    `target` is not a class is skipped.
    """
    if not has_parameters(card, "target"):
        return
    violations = ContractViolations(card)
    method_case = make_case(model, torch.float64)

    def maps_of(target: int) -> ResultTensors:
        return _float_outputs_without_images(result_tensors(call_example(card, method_case, target=target)))

    try:
        first = maps_of(0)
        same = bool(first) and all(
            not result_difference_texts(maps_of(k), first, 0) for k in range(1, models.N_CLASSES)
        )
    except (UnboxedError, TypeError, ValueError, LookupError, AttributeError):  # its target is no class
        return
    if same:
        violations.add("target", ["the result is the same for every class"])
    violations.raise_if_any(f"{method_name(card)} on {model}")


def _float_outputs_without_images(outputs: ResultTensors) -> ResultTensors:
    float_outputs = {at: h for at, h in outputs.items() if h.is_floating_point() and h.ndim > 1}
    return {at: h for at, h in float_outputs.items() if at.rpartition(".")[2] not in IMAGE_FIELD_NAMES}
