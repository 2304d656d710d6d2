"""The memory format of forward passes: channels last where the model's answers stay the same, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.checks.perturbing import perturbed_scores
from unboxed.engine.memory_format import MIN_ROWS, faster_memory_format
from unboxed.objectives import Objective, channel, logit


class Conv(nn.Module):
    """A convolution whose activation is flattened in one of several ways; `strides` are those of its last input."""

    def __init__(self, flatten: Callable[[Tensor], Tensor], channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.flatten = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(4 * 36, 5), flatten

    def forward(self, x: Tensor) -> Tensor:
        self.strides = x.stride()
        return self.fc(self.flatten(self.conv(x)))  # type: ignore[no-any-return]


def views(h: Tensor) -> Tensor:
    return h.view(len(h), -1)  # raises where it is not contiguous


def in_memory_order(h: Tensor) -> Tensor:
    return h.as_strided((len(h), 4 * 36), (4 * 36, 1))  # another order of values where channels are last


def twice_by_strides(h: Tensor) -> Tensor:
    return h.flatten(1) * (2 if h.is_contiguous() else 1)


def boxed(flatten: Callable[[Tensor], Tensor], channels: int = 3) -> ub.Box:
    return ub.Box(Conv(flatten, channels), ub.Pixels((channels, 6, 6)))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("flatten", "wanted"),
    [
        (lambda h: h.flatten(1), torch.channels_last),
        (views, torch.preserve_format),
        (in_memory_order, torch.preserve_format),
        (twice_by_strides, torch.preserve_format),
    ],
)
def test_channels_come_last_where_the_model_answers_the_same(
    flatten: Callable[[Tensor], Tensor], wanted: torch.memory_format, channels: int
) -> None:
    box = boxed(flatten, channels)
    assert faster_memory_format(box, ["logits"], MIN_ROWS) == wanted


class Masked(Conv):
    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = super().forward(x)
        return z.index_fill(1, torch.tensor([4]), -torch.inf)


@pytest.mark.parametrize(
    ("flatten", "wanted"), [(lambda h: h.flatten(1), torch.channels_last), (in_memory_order, torch.preserve_format)]
)
def test_a_class_that_is_masked_does_not_hide_a_difference(
    flatten: Callable[[Tensor], Tensor], wanted: torch.memory_format
) -> None:
    assert faster_memory_format(ub.Box(Masked(flatten, 3), ub.Pixels((3, 6, 6))), ["logits"], MIN_ROWS) == wanted


def test_half_precision_does_not_hide_a_difference() -> None:
    model = Conv(twice_by_strides, 3).to(torch.bfloat16)
    assert faster_memory_format(ub.Box(model, ub.Pixels((3, 6, 6))), ["logits"], MIN_ROWS) == torch.preserve_format


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("flatten", [lambda h: h.flatten(1), views, in_memory_order, twice_by_strides])
def test_scores_of_perturbed_inputs_are_those_of_a_loop(flatten: Callable[[Tensor], Tensor], channels: int) -> None:
    box, x = boxed(flatten, channels), torch.rand(2, channels, 6, 6)
    (found,) = perturbed_scores(
        box, logit(1), 2, MIN_ROWS, lambda rows, k: [x[rows] * (k[:, None, None, None] + 1) / MIN_ROWS], 4
    )
    wanted = torch.stack([box(x * (k + 1) / MIN_ROWS)[:, 1] for k in range(MIN_ROWS)], 1)
    assert torch.allclose(found.float(), wanted, atol=1e-6)


def test_the_model_is_given_that_format() -> None:
    box, x = boxed(lambda h: h.flatten(1)), torch.rand(2, 3, 6, 6)
    perturbed_scores(box, logit(1), 2, MIN_ROWS // 2, lambda rows, k: [x[rows]], "auto")
    assert box.model.strides[1] == 1  # type: ignore[index,operator]
    box(x)
    assert box.model.strides[1] == 36  # type: ignore[index,operator]


def test_few_rows_are_run_without_asking() -> None:
    box, n_runs = boxed(lambda h: h.flatten(1)), [0]
    box.model.register_forward_pre_hook(lambda model, args: n_runs.append(len(args[0])))
    assert faster_memory_format(box, ["logits"], MIN_ROWS - 1) == torch.preserve_format
    assert n_runs == [0]


@pytest.mark.parametrize("objective", [channel("conv", 1), channel("conv", 1) + logit(0)])
def test_layers_are_read_in_the_usual_format(objective: Objective) -> None:
    box = boxed(lambda h: h.flatten(1))
    assert faster_memory_format(box, objective.layers, MIN_ROWS) == torch.preserve_format


def test_a_model_that_was_changed_is_tried_again() -> None:
    box = boxed(lambda h: h.flatten(1))
    assert faster_memory_format(box, ["logits"], MIN_ROWS) == torch.channels_last
    box.model.flatten = views  # type: ignore[assignment]
    box.model.conv = nn.Conv2d(3, 4, 3, padding=1)
    box.refresh()
    assert faster_memory_format(box, ["logits"], MIN_ROWS) == torch.preserve_format


def test_an_error_of_a_hook_is_not_remembered() -> None:
    box = boxed(lambda h: h.flatten(1))

    def fail(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        raise ValueError("a hook's own fault")

    handle = box.model.conv.register_forward_hook(fail)  # type: ignore[union-attr,operator]
    assert faster_memory_format(box, ["logits"], MIN_ROWS) == torch.preserve_format
    handle.remove()
    assert faster_memory_format(box, ["logits"], MIN_ROWS) == torch.channels_last


def test_tables_and_maps_of_outputs_keep_theirs() -> None:
    table = ub.Box(nn.Linear(4, 2), ub.Features(("a", "b", "c", "d")))
    maps = ub.Box(nn.Conv2d(3, 2, 3, padding=1), ub.Pixels((3, 6, 6)))
    assert {faster_memory_format(box, ["logits"], MIN_ROWS) for box in (table, maps)} == {torch.preserve_format}


def test_a_model_of_nan_logits_keeps_its_own() -> None:
    box = boxed(lambda h: h.flatten(1) * float("nan"))
    assert faster_memory_format(box, ["logits"], MIN_ROWS) == torch.preserve_format
