"""What DeepLIFT refuses, and what it makes of inputs that do not change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from contracts.common import make_case
from references.test_deep_lift import images, made
from unboxed.errors import InputError, RuleError

REFUSED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str]] = {
    "a sort": (lambda a, b: a.sort(-1).values, "Sort"),
    "an order statistic": (lambda a, b: a.flatten(1).median(1).values.view(-1, 1, 1, 1) * a, "Median"),
    "a power of two activations": (lambda a, b: a.abs().pow(b), "pow of two activations"),
    "a mask": (lambda a, b: a * (a > 0), "do not add up"),
    "a choice": (lambda a, b: torch.where(b > 0, a, -a), "do not add up"),
    "a detached factor": (lambda a, b: a * b.detach(), "do not add up"),
    "a product of products": (lambda a, b: torch.einsum("nchw,nchw,nchw->nc", a, b, a), "more than two"),
    "a volume": (lambda a, b: nn.functional.max_pool3d(a, 2), "MaxPool3D"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_rule_is_refused_by_name(name: str) -> None:
    op, said = REFUSED[name]
    with pytest.raises(RuleError, match=said):
        ub.attribution.deep_lift(made(op), images(), 1)


class Own(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.relu()

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


def test_an_op_of_ones_own_is_refused() -> None:
    with pytest.raises(RuleError, match="Own"):
        ub.attribution.deep_lift(made(lambda a, b: Own.apply(a)), images(), 1)


def test_a_model_that_branches_differently_for_the_baseline_is_refused() -> None:
    box = made(lambda a, b: a.relu() if float(a.detach().mean()) > -0.1 else a.tanh().sigmoid())
    x = images()
    x[:] = 1
    means = [float(box.model.conv(box.inputs.encode(t)).detach().mean()) for t in (x, 0 * x)]
    assert (means[0] > -0.1) != (means[1] > -0.1), means
    with pytest.raises(RuleError, match="different ops"):
        ub.attribution.deep_lift(box, x, 1)


def test_checkpoints_are_named() -> None:
    c = make_case("checkpointed")
    with pytest.raises(RuleError, match="switch checkpointing off"):
        ub.attribution.deep_lift(c.box, c.x, 1)


def test_nothing_changes_nothing_counts() -> None:
    c = make_case("plain", torch.float64)
    assert not ub.attribution.deep_lift(c.box, c.x, 1, baseline=c.x).any()
    one = c.x.clone()
    one[:, :, 3, 3] = 0
    got = ub.attribution.deep_lift(c.box, c.x, 1, baseline=one)
    got[:, :, 3, 3] = 0
    assert not got.any()


def test_hidden_units_and_losses() -> None:
    """Any objective: the score's own ops have rules, too."""
    c = make_case("plain", torch.float64)
    x0 = torch.full_like(c.x, 0.2)
    for objective in (ub.channel("conv2", 1), ub.logprob(2), ub.loss(c.y), ub.margin(c.y), ub.logit(1) - ub.logit(0)):
        with c.box.isolated(grad=False):
            want = objective(c.box.forward(c.x, objective.layers)) - objective(c.box.forward(x0, objective.layers))
        got = ub.attribution.deep_lift(c.box, c.x, objective, baseline=0.2)
        assert torch.allclose(got.flatten(1).sum(1), want, rtol=1e-9, atol=1e-9), objective.name


def test_a_baseline_of_another_shape_is_refused() -> None:
    c = make_case("plain")
    with pytest.raises(InputError, match="baseline"):
        ub.attribution.deep_lift(c.box, c.x, 1, baseline=torch.zeros(1, 1, 4, 4))
