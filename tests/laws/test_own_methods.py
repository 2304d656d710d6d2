"""`unboxed.testing.check_method`: a user's own method against the contracts, in one line."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import unboxed as ub
from unboxed.errors import InputError
from unboxed.testing import check_method


def honest(box: ub.Box, x: Tensor, *, batch_size: Any = "auto") -> Tensor:
    return box.read(x, ["logits"], batch_size=batch_size)["logits"]


def test_an_honest_method_passes() -> None:
    check_method(honest, on=["plain", "dict_output", "batchnorm_in_train_mode", "bfloat16", "draws"])


def test_a_method_that_refuses_clearly_passes() -> None:
    def refuses(box: ub.Box, x: Tensor) -> Tensor:
        raise InputError("this method wants models of a kind that there is not: take another")

    check_method(refuses, on=["plain"])


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (lambda box, x: box.net.eval() and honest(box, x), "leaves no trace"),
        (lambda box, x: honest(box, x) + torch.rand(()), "seed"),
        (lambda box, x: honest(box, x).half(), "dtype"),
        (lambda box, x: honest(box, x) * 0, "blank"),
    ],
)
def test_what_is_broken_is_named(work: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_method(work, on=["batchnorm_in_train_mode"])


def test_a_bare_error_is_no_refusal() -> None:
    def fails(box: ub.Box, x: Tensor) -> Tensor:
        raise ValueError("no")

    with pytest.raises(ValueError):
        check_method(fails, on=["plain"])


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(InputError, match="'plane'"):
        check_method(honest, on=["plane"])
