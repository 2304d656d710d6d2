"""Checks that shares add up hold in absolute terms, too, and NaN is refused: no comparison with NaN is true."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import NaNError, RuleError

A = ub.attribution


class Normed(nn.Module):
    """A linear layer on x over its length, which is 0 at a black baseline."""

    def __init__(self, normalize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.normalize = nn.Linear(64, 4, bias=False), normalize

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.normalize(x.flatten(1)))  # type: ignore[no-any-return]


UNDEFINED: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda h: h / h.norm(dim=1, keepdim=True),
    "root": lambda h: h / h.pow(2).sum(1, keepdim=True).sqrt(),
}


def box(normalize: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> ub.Box:
    return ub.Box(Normed(normalize).to(dtype), ub.Pixels((1, 8, 8)))


def images() -> Tensor:
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deep_lift_whose_digits_are_lost_is_refused(dtype: torch.dtype) -> None:
    """Contributions of +-1e11 that cancel are off by 8192 for a difference of .02, which is little of their sum."""
    with pytest.raises(RuleError, match="almost 0 on the baseline"):
        A.deep_lift(box(F.normalize, dtype), images(), 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_deep_lift_from_another_baseline_adds_up(dtype: torch.dtype) -> None:
    opened, x = box(F.normalize, dtype), images()
    found = A.deep_lift(opened, x, 1, baseline=0.5)
    want = (opened(x) - opened(torch.full_like(x, 0.5)))[:, 1]
    assert torch.allclose(found.flatten(1).sum(1), want, atol=1e-5)


def test_deep_lift_refuses_contributions_of_nan() -> None:
    """The scores are numbers; the root of what is 0 on both has no slope."""
    flat = box(lambda h: h + (0 * h).sum(1, keepdim=True).sqrt())
    with pytest.raises(RuleError, match="contributions are NaN or infinite, though the scores"):
        A.deep_lift(flat, images(), 1)


def test_deep_lift_refuses_a_score_of_nan_at_the_baseline() -> None:
    with pytest.raises(NaNError, match=r"the baseline.*NaN or infinite for 2 of 2"):
        A.deep_lift(box(UNDEFINED["root"]), images(), 1)


SHARES: dict[str, Callable[[ub.Box, Tensor], object]] = {
    "integrated_gradients": lambda b, x: A.integrated_gradients(b, x, 1),
    "of some steps": lambda b, x: A.integrated_gradients(b, x, 1, n_steps=3),
    "expected_gradients": lambda b, x: A.expected_gradients(b, x, 1, references=0 * x, n_samples=3),
    "kernel_shap": lambda b, x: A.kernel_shap(b, x, 1, segments=("squares", 4), n_samples=40),
    "shapley": lambda b, x: A.shapley(b, x, 1, segments=("squares", 4)),
}


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("normalize", UNDEFINED)
@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
def test_a_score_of_nan_at_the_baseline_is_no_difference_to_share_out(name: str, normalize: str) -> None:
    with pytest.raises(NaNError, match=r"the baseline.*NaN or infinite for 2 of 2"):
        SHARES[name](box(UNDEFINED[normalize]), images())


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
def test_a_score_of_nan_at_x(name: str) -> None:
    opened = box(lambda h: torch.where(h.sum(1, keepdim=True) > 0, math.nan, h))
    with pytest.raises(NaNError, match="score of x is NaN"):
        SHARES[name](opened, images())


def test_what_is_off_is_reported_in_the_scores_unit() -> None:
    """A ratio to a difference of zero says nothing."""

    class Bump(Normed):
        def forward(self, x: Tensor) -> Tensor:
            h = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([torch.sin(40 * h) * h * (h - 32), h], 1)

    x = torch.full((1, 1, 8, 8), 0.5)
    with pytest.warns(ub.errors.UnboxedWarning, match=r"off by up to \d.*, of a difference of"):
        found = A.integrated_gradients(ub.Box(Bump(F.normalize), ub.Pixels((1, 8, 8))), x, 0, max_steps=20)
    assert not found.converged.any()
