"""Results compare and hash without an error, whatever tensors they hold; cards on methods of one's own."""

from __future__ import annotations

import ast
import copy
import dataclasses
import pickle
import re
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import unboxed as ub
from contracts.common import CARDS, REFUSED, call_example, make_case, shared_case
from unboxed.cards import card
from unboxed.engine.results import MAX_SUMMARY_LINES
from unboxed.errors import InputError, LayerError

ROOT = Path(ub.__file__).parent
METHODS = [name for name in CARDS if (name, "plain") not in REFUSED]


def compared_by_tensors(source: str) -> list[str]:
    """Public dataclasses that hold tensors and would compare them in `==`, which raises."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            kinds = " ".join(ast.unparse(f.annotation) for f in node.body if isinstance(f, ast.AnnAssign))
            own = any(isinstance(f, ast.FunctionDef) and f.name == "__eq__" for f in node.body)
            made = [ast.unparse(d) for d in node.decorator_list if "dataclass" in ast.unparse(d)]
            if re.search(r"\b(Tensor|ndarray)\b", kinds) and not own and any("eq=False" not in d for d in made):
                found.append(node.name)
    return found


def test_no_dataclass_compares_tensors() -> None:
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 100
    texts = {str(f): f.read_text(encoding="utf-8") for f in files}
    found = {f: compared_by_tensors(text) for f, text in texts.items() if "dataclass" in text}
    assert {f: names for f, names in found.items() if names} == {}
    planted = "@dataclass(frozen=True)\nclass A:\n    x: dict[str, Tensor]\n"
    planted += "@dataclass(eq=False)\nclass B:\n    x: Tensor\n"
    assert compared_by_tensors(planted) == ["A"]


@pytest.mark.parametrize("name", METHODS)
def test_results_compare_and_copy(name: str) -> None:
    one = call_example(CARDS[name], shared_case("plain"))
    if isinstance(one, torch.Tensor):
        return
    maps_hold_their_box = name == "tsne"
    other = call_example(CARDS[name], shared_case("plain")) if maps_hold_their_box else copy.deepcopy(one)
    assert isinstance(one == other, bool)
    assert one == one
    assert one in [one]
    if not isinstance(one, dict):
        hash(one)
    if not maps_hold_their_box:
        pickle.loads(pickle.dumps(one))


def own_card(module: str, **more: Any) -> Any:
    def mine(box: ub.Box, x: Any, target: Any = None) -> Any:
        """Nothing."""
        return x

    mine.__module__ = module
    settings = {"shows": "a", "does_not_show": "b", "example": lambda method, box, x, y: method(box, x), **more}
    return card(name="mine", source="me", **settings)(mine)


@pytest.mark.parametrize(
    ("module", "family"),
    [("__main__", "own"), ("a", "own"), ("my.package.methods", "own"), ("unboxed.attribution.mine", "attribution")],
)
def test_cards_of_ones_own(module: str, family: str) -> None:
    mine = own_card(module)
    assert mine.card.family == family
    assert isinstance(mine, types.FunctionType)
    assert mine.card.example(mine, None, 3, None) == 3


def test_needs_are_of_a_closed_set() -> None:
    with pytest.raises(
        InputError, match="pixels, tokens, images, relu, attention, linear end, texts, generator; got pixel"
    ):
        own_card("__main__", needs=("pixel",))
    assert {need for c in CARDS.values() for need in c.needs} == set(ub.cards.__globals__["DESCRIPTION_BY_NEED"])


BAD_CLASSES = {"a number": 5, "a string": "abcd", "too few": ["a"], "too many": list("abcde")}


@pytest.mark.parametrize("bad", BAD_CLASSES)
def test_bad_class_names(bad: str) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4))
    with pytest.raises(InputError, match="names"):
        ub.Box(model, ub.Pixels((1, 8, 8)), classes=BAD_CLASSES[bad])  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [5, 1.5, {"conv1": 1}.values])
def test_bad_addresses(bad: Any) -> None:
    c = make_case("plain")
    with pytest.raises(LayerError, match="address of a layer"):
        c.box.read(c.x, bad)


def nested_dataclass_names(result: Any) -> set[str]:
    """The types of the parts of a result that are results or dataclasses themselves: a name of one says nothing."""
    parts = [part for value in vars(result).values() for part in (value if isinstance(value, tuple) else (value,))]
    return {type(part).__name__ for part in parts if dataclasses.is_dataclass(part) and not isinstance(part, type)}


@pytest.mark.parametrize("name", METHODS)
def test_a_result_prints_what_it_says(name: str) -> None:
    """No bare name of an inner type, few lines; a verdict in words, where there is one."""
    result = call_example(CARDS[name], shared_case("plain"))
    for part in result if isinstance(result, tuple) else (result,):
        if isinstance(part, torch.Tensor):
            continue
        for text in (str(part), repr(part)):
            assert not {n for n in nested_dataclass_names(part) if re.search(rf"[=\[ ]{n}\b", text)}, text
            assert text.count("\n") <= MAX_SUMMARY_LINES
            if isinstance(getattr(part, "verdict", None), str):
                assert part.reason in text
        assert repr(part).startswith(type(part).__name__)
