"""Results of methods: one-line reprs, shared fields, and small operations on rows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch

import unboxed as ub
from contracts.common import CARDS, call_example, make_case
from unboxed.engine.results import ResultMixin
from unboxed.engine.rows import broadcast_rows, evenly_spaced_indices

METHODS = [name for name, card in CARDS.items() if card.family in ("activations", "synthesis") and name != "filters"]


@dataclass(frozen=True, repr=False, eq=False)
class Example(ResultMixin):
    images: Any
    names: tuple[str, ...] = ()
    score: float = 0.5
    frames: torch.Tensor | None = None
    interrupted: bool = False


def test_a_repr_has_shapes_and_few_items() -> None:
    example = Example({"a": torch.zeros(2, 3)}, ("cat", "dog", "bee", "ant"), 1 / 3, interrupted=True)
    text = "Example(images={a: (2, 3)}, names=['cat', 'dog', 'bee', ...], score=0.333, interrupted=True)"
    assert repr(example) == text
    assert repr(Example(torch.zeros(1))) == "Example(images=(1,), names=[], score=0.5)"


@pytest.mark.parametrize("name", METHODS)
def test_results_have_reprs_of_one_line(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = call_example(CARDS[name], make_case("plain"))
    for part in result if isinstance(result, tuple) else (result,):
        assert isinstance(part, ResultMixin)
        assert repr(part).startswith((f"{type(part).__name__}(", f"{type(part).__name__}: "))
        assert "\n" not in repr(part)
        assert "tensor(" not in repr(part)


@pytest.mark.parametrize("name", [n for n in METHODS if n in dir(ub.synthesis) and n != "inversions"])
def test_generated_images_say_what_they_are_of(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = call_example(CARDS[name], make_case("plain"))
    assert result.method == CARDS[name].name
    assert len(result.names) == len(result.images)
    if name != "minimal_deactivation":
        assert isinstance(result, ub.synthesis.GeneratedImages)
        assert {f.name for f in fields(ub.synthesis.GeneratedImages)} <= {f.name for f in fields(result)}
        assert len(result.names) == len(result.scores) == result.history.shape[1]


def test_rows() -> None:
    assert broadcast_rows(torch.ones(3), torch.zeros(3, 2, 4)).shape == (3, 1, 1)
    assert broadcast_rows(torch.ones(3), torch.zeros(3)).shape == (3,)
    assert evenly_spaced_indices(10, 4) == [0, 3, 6, 9]
    assert evenly_spaced_indices(3, 100) == [0, 1, 2]
    assert evenly_spaced_indices(0, 4) == []
