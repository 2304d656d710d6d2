"""The laws of attribution that cards declare: contribution, completeness, dummy and symmetry, each exactly.

Ancona et al. 2018, arXiv:1711.06104, section 3 (linear models, completeness); Sundararajan et al. 2017,
arXiv:1703.01365, section 2 (dummy, here "sensitivity (b)", symmetry, completeness).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from check_each import check_each, each
from contracts.common import (
    CARDS,
    MethodCase,
    call_example,
    call_example_with_warnings,
    case_labels,
    has_parameters,
    shared_case,
)
from unboxed.cards import DESCRIPTION_BY_AXIOM
from unboxed.engine.perturb.baselines import baseline
from unboxed.engine.results import attribution_map

PLAYERS: dict[str, dict[str, Any]] = {"segments": {"segments": "pixels"}, "window": {"window": 1, "stride": 1}}
"""Settings by which each pixel plays for itself, for methods that have such a setting."""

SMALL = ub.Pixels((1, 2, 4), mean=0.4, std=0.5)
COLUMNS = ub.Features(("a", "b", "c", "d", "e"), mean=(1.0, 0.0, -1.0, 2.0, 0.5), std=(1.0, 2.0, 0.5, 1.0, 3.0))
BASELINES = [None, "white", "random", 0.3]
LOOSE = {"integrated_gradients": 1e-3}
"""Of methods that stop at a tolerance of their own, relative to the largest score difference."""


def declaring(law: str) -> list[str]:
    return [n for n, card in CARDS.items() if law in card.axioms]


def alone(name: str, **more: Any) -> dict[str, Any]:
    """The method's settings by which each pixel plays for itself."""
    settings = {k: v for key, found in PLAYERS.items() if has_parameters(CARDS[name], key) for k, v in found.items()}
    return {**settings, **more}


def explained(name: str, box: ub.Box, x: Tensor, target: Any, **more: Any) -> Tensor:
    settings = {k: v for k, v in alone(name, **more).items() if has_parameters(CARDS[name], k)}
    return attribution_map(call_example(CARDS[name], MethodCase(box, x, box.predict(x)), **settings, target=target))


def linear(inputs: ub.Pixels | ub.Features, k: int = 3) -> ub.Box:
    torch.manual_seed(1)
    n = 5 if isinstance(inputs, ub.Features) else 8
    return ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(n, k)).double().eval(), inputs, outputs="logits")


def some(box: ub.Box, n: int = 3) -> Tensor:
    return box.inputs.random_inputs(n, torch.Generator().manual_seed(4)).double()


def images_only(name: str) -> bool:
    return has_parameters(CARDS[name], "window") or has_parameters(CARDS[name], "layer")


def test_laws_that_cards_declare_exist() -> None:
    declared = {law for card in CARDS.values() for law in card.axioms}
    assert declared == set(DESCRIPTION_BY_AXIOM)


@each(product(declaring("contribution"), BASELINES))
def test_contribution(name: str, at: Any) -> None:
    """On a linear model, w * (x - x0): of an image and of a table."""
    for inputs in (SMALL, COLUMNS):
        if isinstance(inputs, ub.Features) and (images_only(name) or at == "white"):
            continue
        box = linear(inputs)
        x, k = some(box), torch.tensor([0, 2, 1])
        scale = 0.5 if inputs is SMALL else torch.tensor(COLUMNS.std)
        w = (box.model[1].weight.detach()[k].view(len(x), *inputs.shape)) / scale
        want = w * (x - baseline(box, x, at))
        got = explained(name, box, x, k, baseline=at)
        assert torch.allclose(got, want, rtol=0, atol=1e-9 * float(want.abs().max())), (got - want).abs().max()


CURVED = [
    "plain",
    "softmax",
    "log_softmax",
    "batchnorm",
    "residual",
    "dict_output",
    "non_square",
    "functional_relu_ignored",
]


@pytest.mark.parametrize("name", declaring("completeness"))
def test_completeness(name: str) -> None:
    check_each(product([name], CURVED, BASELINES), check_completeness)


def check_completeness(name: str, model: str, at: Any) -> None:
    """The shares add up to score(x) - score(x0), on models that bend."""
    card = CARDS[name]
    settings: dict[str, Any] = {"tol": 0.001}  # the default
    if has_parameters(card, "segments"):  # players are few there
        settings["segments"] = ("squares", 4)
    c = shared_case(model, torch.float64)
    y = case_labels(model, 3)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        got = attribution_map(call_example_with_warnings(card, c, target=y, baseline=at, **settings)).flatten(1).sum(1)
    missed = name in LOOSE and any("did not reach the tolerance" in str(w.message) for w in heard)  # and says so
    rows = torch.arange(3)
    want = c.box(c.x)[rows, y] - c.box(baseline(c.box, c.x, at))[rows, y]
    assert missed or float((got - want).abs().max()) <= LOOSE.get(name, 1e-9) * max(1.0, float(want.abs().max()))
    assert not missed or (model, at) == ("residual", "random")


class Ignores(nn.Module):
    """Nonlinear, and uses no pixel of the third column."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, z: Tensor) -> Tensor:
        seen = torch.ones(2, 4, dtype=z.dtype)
        seen[:, 2] = 0
        return self.second(self.first((z.view(-1, 2, 4) * seen).flatten(1)).relu())


@each(declaring("dummy"))
def test_dummy(name: str) -> None:
    """What the model ignores gets exactly zero, and something else does not."""
    box = ub.Box(Ignores().double().eval(), SMALL, outputs="logits")
    got = explained(name, box, some(box), None)
    assert (got[..., 2] == 0).all()
    assert (got != 0).any()


class Alike(nn.Module):
    """Nonlinear, and symmetric in pixels (0, 0) and (1, 3)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(8, 6), nn.Linear(6, 3)
        with torch.no_grad():
            self.first.weight[:, 7] = self.first.weight[:, 0]

    def forward(self, z: Tensor) -> Tensor:
        return self.second(self.first(z.flatten(1)).relu())


@each(product(declaring("symmetry"), (None, "white", 0.3)))
def test_symmetry(name: str, at: Any) -> None:
    """Two pixels that play the same part, with the same value and baseline, get the same share; others do not."""
    box = ub.Box(Alike().double().eval(), SMALL, outputs="logits")
    x = some(box)
    x[..., 1, 3] = x[..., 0, 0]
    got = explained(name, box, x, None, baseline=at)
    assert torch.allclose(got[..., 0, 0], got[..., 1, 3], rtol=1e-9, atol=1e-12)
    assert not torch.allclose(got[..., 0, 0], got[..., 0, 1], rtol=1e-3)


# ---- several inputs, and targets of every kind, for every method of the family ---------------------------------------

ATTRIBUTIONS = {n: card for n, card in CARDS.items() if card.family == "attribution"}


class Both(nn.Module):
    """An image and a table, by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.image, self.table, self.final_op = nn.Linear(8, 6), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.final_op((self.image(image.flatten(1)) + self.table(table)).relu())


PARTS = {"image": SMALL, "table": COLUMNS}
SEVERAL: dict[str, Callable[[], ub.MultiInput]] = {
    "dict": lambda: ub.MultiInput(PARTS),
    "tuple": lambda: ub.MultiInput(tuple(PARTS.values())),
}


TAKE_SEVERAL = [n for n in ATTRIBUTIONS if not {"images", "pixels", "attention"} & {*ATTRIBUTIONS[n].needs}]


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")  # of a ruled gradient that is zero for one row
@each(product(TAKE_SEVERAL, SEVERAL))
def test_several_inputs(name: str, kind: str) -> None:
    """A dict or tuple comes back as one, in the shapes of its parts."""
    box = ub.Box(Both().double().eval(), SEVERAL[kind](), outputs="logits")
    values = [p.random_inputs(3, torch.Generator().manual_seed(6)).double() for p in PARTS.values()]
    x = dict(zip(PARTS, values, strict=True)) if kind == "dict" else tuple(values)
    made = CARDS[name].method(box, x, 1, **({"references": x} if has_parameters(CARDS[name], "references") else {}))
    found = getattr(made, "map", made)
    assert isinstance(found, dict if kind == "dict" else tuple)
    parts = list(found.values()) if isinstance(found, dict) else list(found)
    assert [tuple(p.shape) for p in parts] == [(3, 1, 2, 4), (3, 5)]
    assert all(bool(p.isfinite().all()) and float(p.abs().max()) > 0 for p in parts)


class Pixelwise(nn.Module):
    """A class score for every pixel: (N, 3, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.second(self.first(z).relu())


OUTPUTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "regression": (lambda: nn.Sequential(awkward.PlainCNN(), nn.ReLU(), nn.Linear(4, 1)), {"outputs": "regression"}),
    "multilabel": (awkward.PlainCNN, {"outputs": "multilabel"}),
    "segmentation": (Pixelwise, {"outputs": "logits"}),
}


TARGETED = [n for n, c in ATTRIBUTIONS.items() if has_parameters(c, "target") and "attention" not in c.needs]
RECTIFIED = ("grad_cam", "guided_grad_cam")  # where all speaks against a score, its opposite has a map


@cache
def opened(output: str) -> ub.Box:
    build, more = OUTPUTS[output]
    torch.manual_seed(9)
    return ub.Box(build().double().eval(), awkward.GRAY_INPUTS, **more)


@pytest.mark.parametrize("output", OUTPUTS)
def test_outputs_of_every_kind(output: str) -> None:
    """Regression, several labels and a score a pixel; the predicted output, one of them, or a hidden unit."""
    check_each(product(TARGETED, [output], (None, 0, "unit")), check_target)


def check_target(name: str, output: str, target: Any) -> None:
    box = opened(output)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(8)).double()
    layer = {"regression": "0.conv2", "multilabel": "conv2", "segmentation": "second"}[output]  # with a ReLU below
    objective = ub.channel(layer, 1) if target == "unit" else target
    c = MethodCase(box, x, torch.zeros(3, dtype=torch.long))
    got = attribution_map(call_example(CARDS[name], c, target=objective))
    assert got.shape[0] == 3
    assert got.isfinite().all()
    if name in RECTIFIED and not got.any():
        opposite = -(objective if target == "unit" else ub.logit(objective))
        got = attribution_map(call_example(CARDS[name], c, target=opposite))
    assert float(got.abs().max()) > 0
