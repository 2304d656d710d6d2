"""Every method on a model of an image and a row, as a dict and as a tuple: it works, or its card says that it can't.

Which methods refuse is derived from the cards: those that need images alone ("pixels"). No list is kept here.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from check_each import check_each
from contracts.common import CARDS, call_example_with_warnings, result_tensors
from contracts.trace import changes, snapshot
from unboxed.errors import DataError, InputError, ModelError, UnboxedError, UnboxedWarning

PARTS = {"image": ub.Pixels((1, 8, 8), mean=0.5, std=0.25), "row": ub.Features(("p", "q", "r"), std=(1.0, 2.0, 0.5))}
D = 67  # numbers of a packed example; no layer below has as many units
N = 4
KINDS = ("dict", "tuple")


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.a, self.b, self.head = nn.Linear(256, 16), nn.Linear(3, 16), nn.Linear(16, 5)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        h: Tensor = self.a(self.conv(image).relu().flatten(1)) + self.b(row)
        return self.head(h.relu())


def structure(kind: str, image: Any, row: Any) -> Any:
    return {"image": image, "row": row} if kind == "dict" else (image, row)


@cache
def opened(kind: str) -> ub.Box:
    """A box that all tests share: none changes its model."""
    return ub.Box(Two(), ub.MultiInput(structure(kind, *PARTS.values())))


def values(kind: str, n: int = N) -> Any:
    g = torch.Generator().manual_seed(1)
    return structure(kind, torch.rand(n, 1, 8, 8, generator=g), torch.randn(n, 3, generator=g))


def parts(x: Any) -> list[Tensor]:
    return list(x.values() if isinstance(x, dict) else x)


@dataclasses.dataclass
class Case:
    box: ub.Box
    x: Any
    y: Tensor


def case(kind: str) -> Case:
    box = opened(kind)
    return Case(box, values(kind), (box.predict(values(kind)) + torch.tensor([0, 0, 1, 0])) % 5)


def structures(value: Any, kind: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Every (image part, row part) in a result, however deep."""
    if isinstance(value, ub.attribution.Attribution):
        yield from structures([value.map, value.extras], kind)
    elif isinstance(value, Mapping):
        if set(value) == set(PARTS):
            yield value["image"], value["row"]
        else:
            for part in value.values():
                yield from structures(part, kind)
    elif isinstance(value, (tuple, list)):
        if kind == "tuple" and len(value) == 2 and all(isinstance(v, Tensor) for v in value) and value[0].ndim >= 3:
            yield value[0], value[1]
        else:
            for part in value:
                yield from structures(part, kind)
    elif dataclasses.is_dataclass(value) and not isinstance(value, (type, ub.MultiInput)):
        for field in dataclasses.fields(value):
            yield from structures(getattr(value, field.name), kind)


def refuses(name: str) -> bool:
    return bool({"pixels", "tokens", "texts", "generator"} & {*CARDS[name].needs})


each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
def test_every_method_works_or_says_what_it_needs(kind: str, request: pytest.FixtureRequest) -> None:
    """Every method on one kind, in turn; on both with `--all-pairs`: the box takes and gives them, not the method."""
    every = request.config.getoption("--all-pairs")
    check_each([n for i, n in enumerate(CARDS) if every or KINDS[i % 2] == kind], partial(check_method, kind))


def check_method(kind: str, name: str) -> None:
    c, card = case(kind), CARDS[name]
    before = snapshot(c.box.model)
    if refuses(name):
        wanted = r"texts \(Tokens\)" if "texts" in card.needs else r"images alone \(Pixels\)"
        with pytest.raises(InputError, match=rf"needs a model that takes {wanted}.*MultiInput"):
            call_example_with_warnings(card, c)  # type: ignore[arg-type]
        assert changes(before, snapshot(c.box.model)) == []
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnboxedWarning)
        result = call_example_with_warnings(card, c)  # type: ignore[arg-type]
    found = result_tensors(result)
    assert found
    assert not [at for at, t in found.items() if t.is_floating_point() and t.isnan().any()]
    for image, row in structures(result, kind):
        assert image.shape[-3:] == (1, 8, 8)
        assert row.shape[-1:] == (3,)
        assert len(image) == len(row)
    if card.family == "attribution" and "images" not in card.needs:
        assert list(structures(result, kind)), f"{name} gives no map for each part"
    if card.family != "activations":  # a layer named "input" is one vector an example
        packed = [at for at, t in found.items() if t.ndim > 1 and t.shape[-1] == D]
        assert not packed, f"{name} gives packed rows at {packed}"
    assert changes(before, snapshot(c.box.model)) == []


def test_most_methods_take_several_inputs() -> None:
    """Cards are complete: what needs pixels alone is synthesis of images and what lays squares on them."""
    assert sum(map(refuses, CARDS)) < len(CARDS) / 2
    for family in ("activations", "attribution", "adversarial"):
        mine = [n for n, c in CARDS.items() if c.family == family]
        assert sum(map(refuses, mine)) <= len(mine) / 3


@each_kind
def test_one_answer_however_the_data_come(kind: str) -> None:
    """A structure, one with labels, data sets of examples with labels and without, an iterable."""
    box, x, y = opened(kind), values(kind), torch.tensor([0, 1, 2, 3])
    image, row = parts(x)
    items = [structure(kind, i, r) for i, r in zip(image, row, strict=True)]
    forms = [x, (x, y), items, list(zip(items, y.tolist(), strict=True))]
    top = [ub.activations.top_examples(box, data, ["conv"], k=2)[0] for data in forms]
    assert all(torch.equal(t.example_index, top[0].example_index) and torch.equal(t.value, top[0].value) for t in top)
    seen = [ub.activations.statistics(box, data, ["conv"])[0] for data in (*forms, iter(items))]
    assert all(torch.allclose(s.mean, seen[0].mean) for s in seen)
    h = box.read(x, "conv")["conv"]
    assert torch.allclose(seen[0].mean.double(), h.double().mean((0, 2, 3)), atol=1e-6)
    near = ub.activations.nearest_neighbors(box, x, items, "conv", k=1)
    assert near.indices[:, 0].tolist() == [0, 1, 2, 3]
    labeled = [ub.robustness.calibration(box, data) for data in ((x, y), forms[3])]
    assert labeled[0].accuracy == labeled[1].accuracy
    with pytest.raises(DataError, match="no labels"):
        ub.robustness.calibration(box, items)
    with pytest.raises(DataError, match="a dict or tuple of tensors"):
        ub.activations.statistics(box, [1, 2, 3])


@each_kind
def test_a_map_of_the_inputs_is_in_normalized_units(kind: str) -> None:
    box, x = opened(kind), values(kind, 8)
    made = ub.activations.tsne(box, x, "input")
    assert made["input"].points.shape == (8, 2)
    assert made.transform(values(kind, 2))["input"].shape == (2, 2)


@each_kind
def test_robustness_and_verdicts(kind: str) -> None:
    box, x = opened(kind), values(kind)
    y = box.predict(x)
    made = ub.robustness.evaluate(box, (x, y), {"pgd": ub.adversarial.pgd}, eps=[0.05], check_masking=False)
    assert made.to_dict()
    assert ub.checks.verdict(box, x, ub.attribution.gradient).grade
    assert torch.isfinite(ub.checks.randomization(box, x, ub.attribution.gradient).signed).all()
    quick = partial(ub.checks.verdict, max_draws=1)
    assert set(ub.checks.rank_methods(box, structure(kind, *(part[:2] for part in parts(x))), verdict_fn=quick)) > {
        "gradient"
    }


@each_kind
def test_a_factory_may_return_them(kind: str, tmp_path: Path) -> None:
    parts = "{'image': ub.Pixels((1, 8, 8)), 'row': ub.Features(('p', 'q', 'r'))}"
    script = f"""
import torch, unboxed as ub
class Two(torch.nn.Module):
    def __init__(self): super().__init__(); self.a = torch.nn.Linear(64, 5); self.b = torch.nn.Linear(3, 5)
    def forward(self, image, row): return self.a(image.flatten(1)) + self.b(row)
def make(): return Two(), ub.MultiInput({parts if kind == "dict" else f"tuple({parts}.values())"})
def wrong(): return Two(), "images"
"""
    (tmp_path / "two.py").write_text(script)
    box = ub.load(f"{tmp_path / 'two.py'}:make")
    assert box(values(kind)).shape == (N, 5)
    with pytest.raises(ModelError, match="MultiInput"):
        ub.load(f"{tmp_path / 'two.py'}:wrong")


@pytest.mark.usefixtures("quick_reports")
@each_kind
def test_a_report_leaves_out_what_it_cannot_show(kind: str, tmp_path: Path) -> None:
    box, x = opened(kind), values(kind, 12)
    try:
        made = ub.report(box, (x, torch.arange(12) % 5), tmp_path / "report", quiet=True)
    except UnboxedError as error:
        pytest.fail(f"{type(error).__name__}: {error}")
    assert not made.failures
