"""Properties of random models, inputs and objectives, the same ones in every run."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample
from torch import Tensor

import unboxed as ub
from unboxed.testing.strategies import (
    HIDDEN_LAYERS_OF_RANDOM_MODEL,
    RandomCase,
    cases,
    inputs,
    leaf_objectives,
    models,
    objectives,
    open_box,
    random_batch,
)

few = settings(max_examples=25, deadline=None, derandomize=True, database=None,
               suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")  # zero times an objective is flat
NUMBERS = st.sampled_from((-2.0, -0.5, 0.25, 3.0))


def packed(case: RandomCase, value: Any) -> Tensor:
    """All of what comes back, one row an input."""
    if isinstance(value, dict):
        value = tuple(value.values())
    return torch.cat([v.flatten(1) for v in value], 1) if isinstance(value, tuple) else value.flatten(1)


def score(case: RandomCase, objective: ub.Objective, x: Any) -> Tensor:
    return objective(case.box.read(x, sorted(objective.layers)))


def literal(case: RandomCase, objective: ub.Objective) -> tuple[Tensor, Tensor]:
    """The score (N,) and its gradient (N, D), by autograd through the bare model."""
    box, kept = case.box, dict[str, Tensor]()
    x = box.validate_inputs(case.x).clone().requires_grad_()
    hidden = {path: box.model.get_submodule(path) for path in HIDDEN_LAYERS_OF_RANDOM_MODEL}
    handles = [m.register_forward_hook(_keeping(kept, path)) for path, m in hidden.items()]
    z = box.inputs.encode(x)
    out = box.model(**z) if isinstance(z, dict) else box.model(*z) if isinstance(z, tuple) else box.model(z)
    for handle in handles:
        handle.remove()
    logits = out["logits"] if isinstance(out, dict) else out[0] if isinstance(out, tuple) else out
    value = objective({"logits": logits, "output": logits, **kept})
    (grad,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), grad.flatten(1)


def _keeping(kept: dict[str, Tensor], path: str) -> Any:
    def hook(module: Any, args: Any, out: Tensor) -> Tensor:
        kept[path] = out
        return out.clone()  # what comes after may write over it

    return hook


def alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@few
@given(st.data())
def test_the_gradient_is_autograds(data: st.DataObject) -> None:
    case = data.draw(cases())
    objective = data.draw(objectives(case))
    value, grad = literal(case, objective)
    assert alike(score(case, objective, case.x), value)
    assert alike(packed(case, ub.attribution.gradient(case.box, case.x, objective)), grad)


@few
@given(st.data())
def test_splitting_a_batch_changes_nothing(data: st.DataObject) -> None:
    case = data.draw(cases())
    objective, size = data.draw(objectives(case)), data.draw(st.integers(1, case.n_rows))
    for whole, parts in (
        (case.box(case.x), case.box(case.x, batch_size=size)),
        *(
            (packed(case, method(case.box, case.x, objective)),
             packed(case, method(case.box, case.x, objective, batch_size=size)))
            for method in (ub.attribution.gradient, ub.attribution.gradient_x_input)
        ),
    ):  # fmt: skip
        assert alike(whole, parts)
    x = case.box.validate_inputs(case.x)
    rows = [score(case, objective.rows(slice(i, i + 1)), x[i : i + 1]) for i in range(case.n_rows)]
    assert alike(score(case, objective, x), torch.cat(rows))


@few
@given(st.data())
def test_arithmetic_of_objectives_is_that_of_their_scores(data: st.DataObject) -> None:
    case = data.draw(cases())
    a, b = data.draw(objectives(case)), data.draw(leaf_objectives(case))
    k, each = data.draw(NUMBERS), torch.linspace(-1, 2, case.n_rows, dtype=torch.float64)
    u, v = score(case, a, case.x), score(case, b, case.x)
    for made, want in (
        (a + b, u + v), (a - b, u - v), (a * b, u * v), (-a, -u), (a + k, u + k), (k + a, u + k), (a - k, u - k),
        (a / k, u / k), (k / (1 + b * b), k / (1 + v * v)), (a / (1 + b * b), u / (1 + v * v)), (k - a, k - u),
        (a / (each - 3), u / (each - 3)), (each / (1 + a * a), each / (1 + u * u)), (each - a, each - u),
        (a * k, u * k), (k * a, u * k), (a + each, u + each), (a * each, u * each), ((a + b) * b - a, (u + v) * v - u),
    ):  # fmt: skip
        assert alike(score(case, made, case.x), want), made


@few
@given(st.data())
def test_a_method_leaves_no_trace(data: st.DataObject) -> None:
    case = data.draw(cases())
    objective = data.draw(objectives(case))
    model = case.box.model.train(data.draw(st.booleans()))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags, rng = [m.training for m in model.modules()], torch.get_rng_state()
    mine = packed(case, case.x).clone()
    ub.attribution.gradient(case.box, case.x, objective)
    ub.attribution.smoothgrad(case.box, case.x, objective, n_samples=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(packed(case, case.x), mine)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@few
@given(inputs(), st.data())
def test_drawing_a_model_leaves_the_random_numbers_alone(kind: Any, data: st.DataObject) -> None:
    state = torch.get_rng_state()
    model, x = data.draw(models(kind)), random_batch(kind, 2, 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    assert len(open_box(model.double(), kind)(x)) == 2


NAMED = ("channel 0", "at ", "energy", "along a direction", "matched", "along an activation", "in the direction")


def test_every_kind_of_objective_is_drawn() -> None:
    """All in one search, of many objectives a model."""
    once = settings(few, max_examples=300, phases=[Phase.generate])  # any will do, however large
    missing = {*NAMED, "parts.0.first", "each example", "logprob", " / "}

    def has_last_kind(drawn: list[Any]) -> bool:
        for objective in drawn:
            assert objective.layers <= {"logits", *HIDDEN_LAYERS_OF_RANDOM_MODEL}
            missing.difference_update([name for name in missing if name in objective.name])
        return not missing

    with suppress(NoSuchExample):
        find(
            cases().flatmap(lambda case: st.lists(objectives(case), min_size=4, max_size=12)),
            has_last_kind,
            settings=once,
        )
    assert not missing
