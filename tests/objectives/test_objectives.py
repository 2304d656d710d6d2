"""Objectives in an optimization: split, moved once, refused in one clear sentence."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

import unboxed as ub
from unboxed.engine.optimize.loop import OptimizationConfig, optimize
from unboxed.engine.optimize.parameterizations import RawCanvas
from unboxed.errors import InputError
from unboxed.objectives import (
    Constant,
    Objective,
    channel,
    cosine,
    direction,
    diversity,
    dot,
    energy,
    gram_matrix,
    logit,
    logprob,
    match,
    neuron,
    spatial,
    style,
    total_variation,
)

SHAPE = (4, 6, 6)


@pytest.fixture
def box() -> ub.Box:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 36, 4)).double()
    return ub.Box(model, ub.Pixels((1, 8, 8)))


@pytest.fixture
def x() -> Tensor:
    return torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


H = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
UNITS = torch.tensor([3, 0, 2])
MANY: dict[str, Objective] = {
    "channels": channel("1", UNITS),
    "units": channel("3", UNITS),
    "neurons": neuron("1", UNITS, torch.tensor([0, 5, 2]), 1),
    "spatial": spatial("1", torch.tensor([0, 5, 2]), 3),
    "energy": energy("1"),
    "direction": direction("1", torch.arange(4.0)),
    "match": match("1", H, relative=True),
    "match, one for all": match("1", H[:1]),
    "dot": dot("1", H, power=1),
    "cosine": cosine("1", H),
    "style": style("1", gram_matrix(H)),
    "sum": 2 * channel("1", UNITS) - match("1", H) * torch.tensor([1.0, 0.5, 2.0]) + logit(UNITS) * logprob(1),
}


@pytest.mark.parametrize("name", MANY)
def test_splitting_changes_nothing(box: ub.Box, x: Tensor, name: str) -> None:
    config = OptimizationConfig(3, partial(SGD, lr=0.1), prior=-1e-4 * total_variation(), stop_when=MANY[name] - 1e6)
    whole = optimize(box, MANY[name], RawCanvas(x), config)
    parts = optimize(box, MANY[name], RawCanvas(x), config, batch_size=1)
    assert torch.allclose(whole.input, parts.input, atol=1e-12)
    assert torch.allclose(whole.history, parts.history, atol=1e-9)
    assert (whole.history[-1] > whole.history[0]).all()


@pytest.mark.parametrize("where", ["objective", "until", "prior"])
def test_dependent_rows_are_never_split_or_dropped(box: ub.Box, x: Tensor, where: str) -> None:
    """Wherever in the plan the dependence is; rows that are done stay where they are, with the others."""
    seen: list[int] = []
    box.model.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    together = diversity("input", torch.tensor([0, 0, 0]))
    goal = channel("1", 0) + (0.1 * together if where == "objective" else 0.0)
    until = channel("1", 0) - torch.inf + 0 * together if where == "until" else channel("1", 0) - ub_median(box, x)
    config = OptimizationConfig(
        6, partial(SGD, lr=0.5), stop_when=until, prior=0.1 * together if where == "prior" else None
    )
    climb = optimize(box, goal, RawCanvas(x), config, batch_size=1)
    assert set(seen) == {3}
    if where != "until":
        assert climb.finished.any()
        assert climb.steps[climb.finished].max() < 6


def ub_median(box: ub.Box, x: Tensor) -> float:
    """Just above the best start, so that some row is soon done and others go on."""
    return float(box.read(x, "1")["1"][:, 0].mean((1, 2)).max()) + 1e-3


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (lambda: channel("1", 9), "1 has 4 channels; there is no channel 9"),
        (lambda: channel("1", torch.tensor([0, 1, 4])), "1 has 4 channels; there is no channel 0 or 4"),
        (lambda: channel("3", -5), "3 has 4 channels; there is no channel -5"),
        (lambda: channel("1", 1.5), "a channel must be an int"),
        (lambda: channel("1", True), "a channel must be an int"),
        (lambda: channel("1", "first"), "a channel must be an int"),
        (lambda: channel("1", torch.zeros(1, 1).long()), r"a channel must be an int, .* got shape \(1, 1\)"),
        (lambda: channel("1", torch.tensor([0, 1])), "holds values for 2 examples; there are 3"),
        (lambda: neuron("1", 0, 6, 0), r"1 has positions \(6, 6\); \(6, 0\) is none of them"),
        (lambda: neuron("1", 0, 1), r"1 has positions \(6, 6\); \(1\) is none of them"),
        (lambda: neuron("3", 0, 1), r"3 has positions \(\); \(1\) is none of them"),
        (lambda: neuron("1", UNITS, torch.tensor([0, 1]), 0), "indices for 2 and 3 examples"),
        (lambda: spatial("1", 0, 6), r"1 has positions \(6, 6\); \(0, 6\) is none of them"),
        (lambda: spatial("1", 0.5, 1), "a position must be an int"),
        (lambda: direction("1", torch.ones(5)), "a direction has 4 values"),
        (lambda: match("1", H[..., :2]), r"1 has shape \(3, 4, 6, 6\); the activation to match has \(3, 4, 6, 2\)"),
        (lambda: dot("1", H[:2]), "holds values for 2 examples; there are 3"),
        (lambda: style("1", gram_matrix(H)[:, :2]), "the activation to match has"),
        (lambda: logit(4), "classes 0 to 3; got 4"),
        (lambda: logit(torch.tensor([0, 1, 9])), "classes 0 to 3; got 0 to 9"),
        (lambda: logit(torch.tensor([0, 1])), "holds values for 2 examples; there are 3"),
    ],
)
def test_what_does_not_fit_is_refused(box: ub.Box, x: Tensor, objective: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        ub.attribution.gradient(box, x, objective())  # type: ignore[operator]
    assert len(str(caught.value)) < 200


def test_other_objectives_of_a_config_must_fit_too(box: ub.Box, x: Tensor) -> None:
    rule = partial(SGD, lr=0.1)
    with pytest.raises(InputError, match="holds values for 2 examples; there are 3"):
        optimize(box, logit(0), RawCanvas(x), OptimizationConfig(1, rule, stop_when=logit(torch.tensor([0, 1]))))
    with pytest.raises(InputError, match="a prior is of the image alone"):
        OptimizationConfig(1, rule, prior=logit(0))


def test_tensors_are_copied_once() -> None:
    own, like = Constant(torch.arange(3.0, dtype=torch.float64)), torch.ones(3)
    there = own.to_like(like)
    assert there.dtype == torch.float32
    assert own.to_like(like) is there
    assert own.to_like(like.double()).dtype == torch.float64
    assert Constant(torch.arange(3)).to_like(like).dtype == torch.int64


def test_objectives_made_in_inference_mode_have_gradients(box: ub.Box, x: Tensor) -> None:
    with torch.inference_mode():
        goals = [match("1", H.clone()), direction("1", torch.ones(4)), channel("1", UNITS.clone()), logit(UNITS + 0)]
        goals = [g * torch.ones(3) for g in goals]
        for goal in goals:
            goal({"1": H, "logits": H[:, :, 0, 0]})  # a first use that may keep nothing for later
    for goal in goals:
        assert optimize(box, goal, RawCanvas(x), OptimizationConfig(1, partial(SGD, lr=0.1))).input.isfinite().all()
