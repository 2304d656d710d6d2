"""Rows that change one another: seen, whatever of the batch relates them; and rows that don't, left free."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.model.batch_dependence import contrasting_input_levels

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 16, 16), (3, 32, 32), (3, 64, 64), (2, 5, 40)]
BATCH: dict[str, Callable[[Tensor], Tensor]] = {
    "maximum": lambda x: x / x.max(),
    "largest size": lambda x: x / x.abs().max(),
    "minimum": lambda x: x - x.min(),
    "range": lambda x: (x - x.min()) / (x.max() - x.min()),
    "mean": lambda x: x - x.mean(),
    "mean of rows": lambda x: x - x.mean(0),
    "spread": lambda x: x / x.std(),
    "median": lambda x: x - x.median(),
    "norm": lambda x: x / x.norm(),
    "white gate": lambda x: x * 2 if x.max() > 0.99 else x,
    "black gate": lambda x: x * 2 if x.min() < 0.01 else x,
    "dark gate": lambda x: x * 2 if x.mean() < 0.4 else x,
    "bright gate": lambda x: 1 - x if x.mean() > 0.6 else x,
    "8 bits": lambda x: torch.fake_quantize_per_tensor_affine(x, float(x.detach().abs().max()) / 127, 0, -128, 127),
    "number": lambda x: x / len(x),
    "first row": lambda x: x - 0.5 * x[:1],
    "place": lambda x: x + 0.1 * torch.arange(len(x)).view(-1, *[1] * (x.ndim - 1)),
    "neighbor": lambda x: x + 0.5 * x.roll(1, 0),
    "reversed": lambda x: x.flip(0),
    "rank": lambda x: x.argsort(0).argsort(0).to(x),
    "softmax over rows": lambda x: x.softmax(0),
}
"""How an answer may depend on the rest of its batch."""

EACH: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda x: x,
    "maximum": lambda x: x / x.flatten(1).amax(1).view(-1, *[1] * (x.ndim - 1)),
    "mean": lambda x: x - x.flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1)),
    "softmax": lambda x: x.flatten(1).softmax(1).view_as(x),
    "gate": lambda x: torch.where(x.flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1)) > 0.5, 1 - x, x),
}
"""The same of each row: nothing of its batch."""


class Model(nn.Module):
    """`relate` at the input, or at the features behind the first layer."""

    def __init__(self, shape: tuple[int, ...], relate: Callable[[Tensor], Tensor], *, hidden: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.relate, self.hidden = relate, hidden
        self.features = nn.Conv2d(shape[0], 6, 3, padding=1) if len(shape) == 3 else nn.Linear(shape[0], 6)
        self.fc = nn.LazyLinear(5)
        self(torch.rand(2, *shape))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        h = self.relate(self.features(x).relu()) if self.hidden else self.features(self.relate(x)).relu()
        out: Tensor = self.fc(h.flatten(1))
        return out


def every_second(*choices: Iterable[Any]) -> list[Any]:
    """Half of all combinations: each value of one choice with each value of any other."""
    numbered = itertools.product(*map(enumerate, choices))
    return [tuple(v for _, v in one) for one in numbered if sum(i for i, _ in one) % 2 == 0]


@pytest.mark.parametrize(("kind", "shape"), every_second(BATCH, SHAPES), ids=str)
def test_rows_related_by_their_batch_are_batch_dependent(kind: str, shape: tuple[int, int, int]) -> None:
    box = ub.Box(Model(shape, BATCH[kind]), ub.Pixels(shape))
    assert box.batch_dependent
    x = torch.rand(6, *shape) * torch.linspace(0.3, 1, 6).view(-1, 1, 1, 1)
    assert torch.equal(box(x, batch_size=1), box(x))


NO_GATES = [kind for kind in BATCH if "gate" not in kind]
AT_FEATURES = [kind for kind in NO_GATES if kind not in ("minimum", "median")]  # zero in every batch behind a ReLU


@pytest.mark.parametrize("kind", NO_GATES)
def test_so_are_normalized_inputs(kind: str) -> None:
    inputs = ub.Pixels((3, 12, 12), mean=0.5, std=0.25)
    assert ub.Box(Model((3, 12, 12), BATCH[kind]), inputs).batch_dependent


@pytest.mark.parametrize("kind", AT_FEATURES)
def test_so_are_rows_related_at_a_hidden_layer(kind: str) -> None:
    assert ub.Box(Model((3, 12, 12), BATCH[kind], hidden=True), ub.Pixels((3, 12, 12))).batch_dependent


TABLES = {
    "bounds": ub.Features(tuple("abcd"), low=0, high=(1, 10, 100, 1000)),
    "moments": ub.Features(tuple("abcd"), mean=(0.0, 1, 2, -1), std=(1.0, 2, 0.5, 1)),
    "both": ub.Features(tuple("abcd"), low=-3, high=3, mean=(0.0, 1, 2, -1), std=(1.0, 2, 0.5, 1)),
    "mean outside": ub.Features(tuple("abcd"), low=100, high=(200, 300, 400, float("inf"))),
    "categories": ub.Features(tuple("abcd"), low=0, high=1, categories={"a": (0, 1), "c": (0, 0.5, 1)}),
}


@pytest.mark.parametrize("table", [name for name in TABLES if name != "categories"])
@pytest.mark.parametrize("kind", ["maximum", "minimum", "range", "mean", "mean of rows", "norm", "first row", "number"])
def test_rows_of_a_table(kind: str, table: str) -> None:
    assert ub.Box(Model((4,), BATCH[kind]), TABLES[table]).batch_dependent


@pytest.mark.parametrize("kind", ["mean", "mean of rows", "norm", "first row", "number"])
def test_rows_of_a_table_with_categories(kind: str) -> None:
    """Where any two rows have each category, the extremes are the same in all batches."""
    assert ub.Box(Model((4,), BATCH[kind]), TABLES["categories"]).batch_dependent


@pytest.mark.parametrize("table", TABLES)
def test_levels_of_a_table_are_valid_and_reach_its_bounds(table: str) -> None:
    inputs = TABLES[table]
    u = contrasting_input_levels(inputs.shape, torch.device("cpu"))
    inputs.check(inputs.from_unit_interval(u))
    ends = inputs.from_unit_interval(torch.tensor([[0.0], [1.0]]).expand(2, 4))
    finite = torch.tensor([inputs.low, inputs.high]).isfinite()
    assert torch.equal(ends[finite], torch.tensor([inputs.low, inputs.high])[finite])
    assert ends.isfinite().all()


class Two(nn.Module):
    """An image and a table; one of them is related to the batch."""

    def __init__(self, related: str) -> None:
        super().__init__()
        self.related = related
        self.image, self.table = nn.Linear(64, 4), nn.Linear(4, 4)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        if self.related == "image":
            image = image / image.max()
        if self.related == "table":
            table = table - table.min()
        out: Tensor = self.image(image.flatten(1)) + self.table(table)
        return out


@pytest.mark.parametrize("related", ["image", "table", "nothing"])
def test_any_of_several_inputs(related: str) -> None:
    inputs = ub.MultiInput({"image": ub.Pixels((1, 8, 8)), "table": TABLES["both"]})
    torch.manual_seed(0)
    assert ub.Box(Two(related).eval(), inputs).batch_dependent == (related != "nothing")


@pytest.mark.parametrize(
    ("kind", "shape", "dtype"), every_second(EACH, SHAPES, [torch.float32, torch.float64, torch.bfloat16]), ids=str
)
def test_rows_that_are_alone_are_free(kind: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    assert not ub.Box(Model(shape, EACH[kind]).to(dtype), ub.Pixels(shape)).batch_dependent


COUPLED = {
    "batchnorm_without_statistics",
    "batchnorm_on_batch_statistics",
    "random_noise_per_row",
    "batch_maximum",
    "batch_gate",
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for i, name in enumerate(awkward.MODELS)
        for dtype in ((None, torch.float64, torch.bfloat16) if name in COUPLED else (None, torch.bfloat16)[i % 2 :][:1])
    ],
    ids=str,
)
def test_awkward_models(name: str, dtype: torch.dtype | None) -> None:
    entry = awkward.get_model(name, dtype)
    assert ub.Box(entry.model, entry.inputs, **entry.box_settings).batch_dependent == (name in COUPLED)


class OwnInputs:
    """Inputs of a user's own, that say no more than they must."""

    shape = (64,)

    def check(self, x: Any) -> Any:
        return x

    encode = decode = clip = pack = unpack = check

    def random_inputs(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(min(n, 3), 64, generator=generator)


def test_inputs_of_a_users_own() -> None:
    model = nn.Sequential(nn.BatchNorm1d(64, track_running_stats=False), nn.Linear(64, 4)).eval()
    assert ub.Box(model, OwnInputs()).batch_dependent
    assert not ub.Box(model[1], OwnInputs()).batch_dependent


def test_opening_runs_few_rows() -> None:
    model, rows = Model((1, 8, 8), EACH["nothing"]), list[int]()
    model.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    ub.Box(model, ub.Pixels((1, 8, 8)))
    assert len(rows) <= 4
    assert sum(rows) <= 11
