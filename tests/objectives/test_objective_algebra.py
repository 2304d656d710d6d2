"""Objectives as values: arithmetic with any value on either side, pickles, copies and comparisons."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import unboxed as ub
from unboxed.errors import InputError
from unboxed.objectives import Objective, binary_logit, color_distance, dlr, log_odds, targeted_dlr

Z = torch.tensor([[1.0, 2.0, 4.0, 8.0, 3.0], [5.0, 7.0, 1.0, 2.0, 9.0], [3.0, 1.0, 6.0, 2.0, 4.0]])
ACTS = {"logits": Z}
K = torch.tensor([2.0, 3.0, 4.0])
SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv,
}  # fmt: skip
OPERANDS: dict[str, tuple[Any, Tensor]] = {  # the operand, and what it stands for
    "int": (3, torch.tensor(3.0)),
    "float": (2.5, torch.tensor(2.5)),
    "0-d tensor": (torch.tensor(2.5), torch.tensor(2.5)),
    "0-d array": (np.array(2.5), torch.tensor(2.5)),
    "NumPy float": (np.float32(2.5), torch.tensor(2.5)),
    "NumPy double": (np.float64(2.5), torch.tensor(2.5)),
    "NumPy int": (np.int64(3), torch.tensor(3.0)),
    "tensor (N,)": (K, K),
    "ints (N,)": (K.long(), K),
    "array (N,)": (K.numpy(), K),
    "double (N,)": (K.double(), K),
    "objective": (ub.logit(2), Z[:, 2]),
}


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("kind", OPERANDS)
def test_arithmetic_on_both_sides(kind: str, sign: str) -> None:
    operand, value = OPERANDS[kind]
    own, op = ub.logit(torch.tensor([3, 1, 0])), SIGNS[sign]
    score = Z[torch.arange(3), [3, 1, 0]]
    for found, want in ((op(own, operand), op(score, value)), (op(operand, own), op(value, score))):
        assert isinstance(found, Objective)
        assert torch.allclose(found(ACTS), want, rtol=1e-6)
        assert found.n == 3
        picked = found.rows(torch.tensor([2, 0]))
        assert torch.allclose(picked({"logits": Z[[2, 0]]}), want[[2, 0]], rtol=1e-6)


def test_sums_and_names() -> None:
    a, b = ub.logit(3), ub.logit(2)
    assert torch.equal(sum([a, b, a])(ACTS), 2 * Z[:, 3] + Z[:, 2])
    assert torch.equal(sum([a, b])(ACTS), Z[:, 3] + Z[:, 2])


A, B = ub.logit(3), ub.logit(2)
NAMES: dict[str, Objective] = {
    "logit 3 + logit 2": sum([A, B]),  # type: ignore[dict-item]
    "1 - logit 3": 1 - A,
    "logit 3 - logit 2 + 1": A - B + 1,
    "logit 3 - (logit 2 + 1)": A - (B + 1),
    "logit 3 + logit 2 - 1": A + (B - 1),
    "logit 3 / 2": A / 2,
    "(logit 3 - logit 2) / 2 + tensor (3,)": (A - B) / 2 + K,
    "logit 3 / (logit 2 * logit 3)": A / (B * A),
    "logit 3 * logit 2 / logit 3": A * (B / A),
    "2 * logit 3": A * 2,
    "tensor (3,) * (logit 3 + logit 2)": (A + B) * K,
    "-logit 3": -A,
    "-(logit 3 * logit 2)": -(A * B),
    "logit 2 - (-logit 3)": B - -A,
    "-logit 3 - logit 2": -A - B,
    "2 * (-logit 3)": -A * 2,
    "logit 3 + (-2)": A + -2,
    "2 * (a - b)": 2 * Objective(lambda acts: acts["logits"][:, 0], frozenset({"logits"}), "a - b"),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_have_the_parentheses_that_they_need(name: str) -> None:
    assert repr(NAMES[name]) == f"Objective({name})"


def test_arithmetic_in_place() -> None:
    score, k = ub.logit(3), torch.ones(3)
    k *= score  # the tensor gives way
    assert torch.equal(k(ACTS), Z[:, 3])
    score /= 4
    assert torch.equal(score(ACTS), Z[:, 3] / 4)


BAD: dict[str, Any] = {
    "a string": "a", "None": None, "a list": [1.0, 2.0, 3.0], "a column": torch.ones(3, 1), "a matrix": np.ones((3, 2)),
    "NaN": float("nan"), "a tensor with NaN": torch.tensor([1.0, float("nan"), 1.0]), "a bool": True,
    "a complex number": 1j, "complex numbers": torch.ones(3, dtype=torch.complex64), "words": np.array(["a", "b", "c"]),
    "objects": np.array([{}, {}, {}]), "a 0-d NaN": torch.tensor(float("nan")),
    "other rows": ub.logit(torch.tensor([0, 1])),
}  # fmt: skip


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("bad", BAD)
def test_bad_operands_are_refused(bad: str, sign: str) -> None:
    own = ub.logit(torch.tensor([3, 1, 0]))
    for work in (lambda: SIGNS[sign](own, BAD[bad]), lambda: SIGNS[sign](BAD[bad], own)):
        with pytest.raises(InputError, match=r"logit of each example's class"):
            work()


@pytest.mark.parametrize("zero", [0, 0.0, np.float32(0), torch.tensor(0.0), torch.tensor([1.0, 0.0, 1.0])], ids=str)
def test_division_by_zero_is_refused(zero: Any) -> None:
    with pytest.raises(InputError, match="can't be divided by"):
        ub.logit(3) / zero
    assert torch.equal((zero / ub.logit(3))(ACTS), torch.as_tensor(zero) / Z[:, 3])


def test_there_are_no_powers() -> None:
    with pytest.raises(InputError, match=r"multiply one by itself"):
        ub.logit(3) ** 2


H = torch.rand(3, 4, 2, 2)
MADE: dict[str, Callable[[], Objective]] = {
    "logit": lambda: ub.logit(3),
    "logit of the predicted": lambda: ub.logit(),
    "logit of yes or no": lambda: binary_logit(1),
    "logits": lambda: ub.logit(torch.tensor([3, 1, 0])),
    "logprob": lambda: ub.logprob(3),
    "logprobs": lambda: ub.logprob(torch.tensor([3, 1, 0])),
    "loss": lambda: ub.loss(torch.tensor([3, 1, 0])),
    "margin": lambda: ub.margin(torch.tensor([3, 1, 0])),
    "margin from one": lambda: ub.margin(2),
    "log-odds": lambda: log_odds(torch.tensor([3, 1, 0])),
    "dlr": lambda: dlr(torch.tensor([3, 1, 0])),
    "targeted dlr": lambda: targeted_dlr(torch.tensor([3, 1, 0]), torch.tensor([0, 0, 1])),
    "channel": lambda: ub.channel("a", 3),
    "channels": lambda: ub.channel("a", torch.tensor([3, 1, 0])),
    "neuron": lambda: ub.neuron("a", 3, 0, 1),
    "neurons": lambda: ub.neuron("a", torch.tensor([3, 1, 0]), torch.tensor([0, 0, 1]), 1),
    "spatial": lambda: ub.spatial("a", 1, 1),
    "energy": lambda: ub.energy("a"),
    "direction": lambda: ub.direction("a", H[0, :, 0, 0]),
    "match": lambda: ub.match("a", H),
    "match, relative": lambda: ub.match("a", H, relative=True),
    "match one": lambda: ub.match("a", H[:1]),
    "dot": lambda: ub.dot("a", H, power=2.0),
    "cosine": lambda: ub.cosine("a", H),
    "style": lambda: ub.style("a", torch.eye(4).expand(3, -1, -1)),
    "diversity": lambda: ub.diversity("a"),
    "diversity of groups": lambda: ub.diversity("a", torch.tensor([0, 0, 1])),
    "total variation": lambda: ub.total_variation(3.0),
    "anisotropic total variation": lambda: ub.total_variation(kind="anisotropic"),
    "alpha norm": lambda: ub.alpha_norm(4.0),
    "mean color": lambda: color_distance(H[0, :, 0, 0]),
    "a sum": lambda: 2 * ub.logit(3) - ub.channel("a", torch.tensor([3, 1, 0])) * K + 1 / ub.logprob(2),
    "negative": lambda: -ub.logit(3),
}
EVERY = {"a": torch.rand(3, 4, 2, 2), "logits": Z, "input": torch.rand(3, 4, 6, 6)}
each = pytest.mark.parametrize("kind", MADE)


def test_every_public_objective_is_here() -> None:
    from unboxed import objectives

    makers = {
        n for n, f in vars(objectives).items() if hasattr(f, "__wrapped__") and n not in ("recorded", "tokens_logprob")
    }  # the latter of texts
    called = {part for make in MADE.values() for part in make.__code__.co_names}
    assert makers
    assert makers <= called


@each
def test_objectives_pickle_and_copy(kind: str) -> None:
    own = MADE[kind]()
    for other in (pickle.loads(pickle.dumps(own)), copy.deepcopy(own), copy.copy(own)):
        assert torch.equal(other(EVERY), own(EVERY))
        assert (other.name, other.layers, other.n, other.batch_dependent) == (
            own.name,
            own.layers,
            own.n,
            own.batch_dependent,
        )
        assert other == own
        assert hash(other) == hash(own)
        if not own.batch_dependent:
            index = torch.tensor([2, 0])
            some = {a: h[index] for a, h in EVERY.items()}
            assert torch.equal(other.rows(index)(some), own.rows(index)(some))
    part = own.rows(torch.tensor([2, 0]))
    assert pickle.loads(pickle.dumps(part)) == part


@each
def test_objectives_compare_by_value(kind: str) -> None:
    assert [other for other, make in MADE.items() if make() == MADE[kind]()] == [kind]
    assert MADE[kind]() in {MADE[kind]()}
    assert MADE[kind]() != 3
    assert MADE[kind]() * K != MADE[kind]() * (K + 1)


def test_equal_however_they_were_written() -> None:
    assert ub.logit(3) == ub.logit(k=3) == ub.logit(torch.tensor(3)) == ub.logit(np.int64(3))
    assert hash(ub.logit(3)) == hash(ub.logit(torch.tensor(3)))
    assert 2 * ub.logit(3) == torch.tensor(2.0) * ub.logit(3)
    assert ub.match("a", H) == ub.match("a", H.clone(), relative=False)
    assert ub.match("a", H) != ub.match("a", H + 1)
    assert ub.channel("a", torch.tensor([1, 2])) != ub.channel("a", torch.tensor([1, 2, 3]))


HOLDING: dict[str, tuple[Any, Callable[[Any], Objective]]] = {  # what the caller holds, and the objective of it
    "a factor": (K, lambda k: A * k),
    "an addend on the left": (K, lambda k: k + A),
    "an array": (K.numpy(), lambda k: A * k),
    "a divisor": (K, lambda k: A / k),
    "classes": (torch.tensor([3, 1, 0]), ub.logit),
    "a class": (torch.tensor(3), ub.logprob),
    "an array of classes": (np.array([3, 1, 0]), ub.loss),
    "a list of classes": ([3, 1, 0], ub.margin),
    "ints 32": (torch.tensor([3, 1, 0], dtype=torch.int32), dlr),
    "targets": (torch.tensor([3, 1, 0]), lambda k: targeted_dlr(torch.tensor([0, 0, 1]), k)),
    "channels": (torch.tensor([3, 1, 0]), lambda k: ub.channel("a", k)),
    "positions": (torch.tensor([1, 1, 0]), lambda k: ub.neuron("a", 2, k, k)),
    "positions by name": (torch.tensor([1, 1, 0]), lambda k: ub.neuron("a", k=k)),
    "a direction": (H[0, :, 0, 0], lambda v: ub.direction("a", v)),
    "an activation": (H, lambda h: ub.match("a", h, relative=True)),
    "one activation": (H[:1], lambda h: ub.cosine("a", h)),
    "an activation by name": (H, lambda h: ub.dot("a", h=h)),
    "a texture": (torch.eye(4)[None], lambda g: ub.style("a", g)),
    "groups": (torch.tensor([1, 1, 2]), lambda g: ub.diversity("a", g)),
    "a color": (torch.full((4,), 0.5), color_distance),
}


@pytest.mark.parametrize("kind", HOLDING)
def test_later_changes_of_an_argument_change_no_objective(kind: str) -> None:
    value, make = HOLDING[kind]
    mine = copy.deepcopy(value)
    own, other = make(mine), make(value)
    mine.sort() if isinstance(mine, list) else mine.__setitem__(..., 1)
    assert torch.equal(own(EVERY), other(EVERY))
    assert own == other
    assert make(mine) != own


def test_an_objective_copies_its_tensors() -> None:
    mine = K.clone()
    score = (A * mine + 1) / 2
    part, want = score.rows(torch.tensor([2, 0])), score(ACTS)
    mine.zero_()
    assert torch.equal(score(ACTS), want)
    assert torch.equal(part({"logits": Z[[2, 0]]}), want[[2, 0]])


def test_gradients_reach_the_tensors_of_an_objective() -> None:
    """Through its copy; copies of the objective have no graph."""
    weights = K.clone().requires_grad_()
    own = A * weights + ub.direction("logits", torch.ones(5, requires_grad=True) * 2)
    own(ACTS).sum().backward()
    assert torch.equal(weights.grad, Z[:, 3])  # type: ignore[arg-type]
    assert copy.deepcopy(own) == pickle.loads(pickle.dumps(own)) == own


def twice(acts: Any) -> Tensor:
    return 2 * acts["logits"][:, 0]


def test_objectives_of_ones_own() -> None:
    own = Objective(twice, frozenset({"logits"}), "twice")
    assert pickle.loads(pickle.dumps(own)) == own == Objective(twice, frozenset({"logits"}), "twice")
    assert own != Objective(lambda acts: twice(acts), frozenset({"logits"}), "twice")
    assert pickle.loads(pickle.dumps(own * K + 1)) == own * K + 1
