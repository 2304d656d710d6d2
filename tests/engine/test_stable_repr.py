"""What a value is, in words: the same in another process, and never the same for another value."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.checkpointing import is_equal_up_to_rounding, tensor_digest
from unboxed.engine.stable_repr import stable_repr
from unboxed.errors import InputError
from unboxed.objectives import Objective

SCRIPT = """
import torch, unboxed as ub
from functools import partial
from unboxed.engine.stable_repr import stable_repr
STEPS = 3
def attack(*args, kinds=frozenset("abcdefgh"), **more):
    return [ub.adversarial.pgd(*args, steps=STEPS, **more) for name in {"i", "j", "k", "l", "m", "n", "o", "p"}]
class Own:
    def __call__(self, *args):
        return attack(*args)
for value in (attack, Own(), Own().__call__, partial(ub.adversarial.pgd, steps=2), {*"abcdefgh", 1},
              ub.logit(torch.tensor([1, 2])), ub.Pixels((1, 8, 8), mean=0.5), torch.nn.Linear(2, 2, device="meta")):
    print(stable_repr(value) if not isinstance(value, torch.nn.Module) else "")
"""


def test_it_is_the_same_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another order of sets: of eight letters, two seeds of their hashes have one order once in thousands."""
    main = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", main)
    with contextlib.redirect_stdout(io.StringIO()) as here:
        exec(compile(SCRIPT, "<string>", "exec"), main.__dict__)
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    there = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
    ).stdout.decode()
    assert here.getvalue() == there
    assert " at 0x" not in there
    assert len(there.splitlines()) == 8


def closure(n: Any) -> Any:
    return lambda x: x + n


def decorated_by_a_package(n: int) -> Any:
    """Two functions of one name, of which a package's decorator hides the code."""
    if n == 1:

        @torch.no_grad()
        def method(x: Any) -> Any:
            return x + 1

    else:

        @torch.no_grad()
        def method(x: Any) -> Any:
            return x * 2

    return method


def test_the_code_under_a_packages_decorator_counts() -> None:
    one, again, two = (stable_repr(decorated_by_a_package(n)) for n in (1, 1, 2))
    assert one == again != two


def nested(n: int) -> Any:
    return lambda x: lambda: closure(n)


class Own:
    def __init__(self, n: int) -> None:
        self.n = n


def linear(k: float) -> nn.Module:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, k)
    nn.init.zeros_(model.bias)
    return model


@pytest.mark.parametrize(
    "make",
    [
        int, str, closure, nested, Own, linear, lambda n: torch.tensor(float(n)), lambda n: np.full(3, n),
        lambda n: closure(torch.tensor(n)), lambda n: closure(Own(n)), lambda n: partial(closure, n=n),
        lambda n: ub.logit(n), lambda n: ub.logit(3) - torch.full((2,), float(n)), lambda n: [{"a": (n, None)}],
        lambda n: Objective(closure(n), frozenset({"logits"}), "own"), lambda n: ub.Pixels((1, 2, 2), mean=n / 9),
        lambda n: Objective(sum, frozenset(), "", None, False, n), lambda n: frozenset({n, "a"}),
        lambda n: ub.Box(linear(n), ub.Features(("a", "b"))),
        lambda n: (lambda x: x + 1) if n == 1 else (lambda x: x + 2), lambda n: "long" * 500 + str(n),
        lambda n: torch.relu if n == 1 else torch.sin,
    ],
)  # fmt: skip
def test_another_value_is_another(make: Any) -> None:
    assert stable_repr(make(1)) == stable_repr(make(1))
    assert stable_repr(make(1)) != stable_repr(make(2))


def test_what_names_itself_ends() -> None:
    circle = list[Any]()
    circle.append(circle)
    assert stable_repr(circle) == "list(#0)"


def test_what_cannot_be_compared_is_refused() -> None:
    def empty() -> Any:
        if threading is None:
            unset = 1
        return lambda: unset

    deep = list[Any]()
    for _ in range(10_000):
        deep = [deep]
    for value in (threading.Lock(), closure(threading.Lock()), (i for i in ()), empty(), deep):
        with pytest.raises(InputError, match="can't be compared"):
            stable_repr(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_alike_is_but_for_rounding(dtype: torch.dtype) -> None:
    values = torch.tensor([0.0, 1.0, -30.0, float("inf")], dtype=dtype)
    rounded = values * (1 + torch.finfo(dtype).eps)
    assert is_equal_up_to_rounding(values, rounded)
    assert is_equal_up_to_rounding(values, values.clone())
    assert not is_equal_up_to_rounding(values, values * 1.5)
    assert not is_equal_up_to_rounding(values, values[:3])
    assert not is_equal_up_to_rounding(values, values.half())
    assert not is_equal_up_to_rounding(None, values)


def test_digests_of_expanded_and_permuted_tensors() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert tensor_digest(x.T) == tensor_digest(x.T.contiguous()) != tensor_digest(x)
    assert tensor_digest(torch.tensor(7).expand(1)) == tensor_digest(torch.tensor([7]))
