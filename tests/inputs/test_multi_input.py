"""Models that take several inputs: a dict or a tuple goes in, and what is found comes back alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import unboxed as ub
from unboxed.engine.perturb.baselines import baseline
from unboxed.errors import DataError, InputError

PARTS = {"image": ub.Pixels((1, 4, 4), mean=0.5, std=0.25), "table": ub.Features(("a", "b"), mean=(1.0, -1.0))}


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.table = nn.Linear(16, 3), nn.Linear(2, 3)

    def forward(self, image: Tensor, table: Tensor) -> Tensor:
        return self.image(image.flatten(1)).relu_() + self.table(table)


def inputs(kind: str) -> ub.MultiInput:
    return ub.MultiInput(PARTS if kind == "dict" else tuple(PARTS.values()))


def values(kind: str, n: int = 3) -> Any:
    g = torch.Generator().manual_seed(1)
    x = {"image": torch.rand(n, 1, 4, 4, generator=g), "table": torch.randn(n, 2, generator=g)}
    return x if kind == "dict" else tuple(x.values())


def box(kind: str) -> ub.Box:
    return ub.Box(Both().eval(), inputs(kind))


both = pytest.mark.parametrize("kind", ["dict", "tuple"])


@both
def test_the_model_gets_its_arguments(kind: str) -> None:
    """By name or by place, each normalized as its part says."""
    model, x = Both(), values("dict")
    want = model((x["image"] - 0.5) / 0.25, x["table"] - torch.tensor([1.0, -1.0]))
    opened = box(kind)
    assert torch.allclose(opened(values(kind)), want)
    assert torch.allclose(opened(values(kind), batch_size=1), want, atol=1e-6)


@both
def test_what_is_found_comes_back_as_it_went_in(kind: str) -> None:
    opened, x = box(kind), values(kind)
    found = ub.attribution.gradient(opened, x, 2).map
    parts = list(found.values()) if kind == "dict" else list(found)
    assert type(found) is type(x)
    w, v = opened.model.image.weight.detach(), opened.model.table.weight.detach()
    z = (values("dict")["image"] - 0.5).flatten(1) / 0.25
    open_ = (opened.model.image(z) > 0).detach()
    assert torch.allclose(parts[0].flatten(1), open_[:, 2:3] * w[2] / 0.25)
    assert torch.allclose(parts[1], v[2].expand(3, 2))


@both
def test_the_callers_tensors_are_left(kind: str) -> None:
    x = values(kind)
    before = [t.clone() for t in (x.values() if kind == "dict" else x)]
    ub.attribution.gradient(box(kind), x)
    assert all(torch.equal(a, b) for a, b in zip(before, x.values() if kind == "dict" else x, strict=True))


@pytest.mark.parametrize(
    "part", [None, "black", "mean", {"image": "white", "table": 2.0}, {"image": 0.0, "table": "mean"}]
)
def test_baselines_part_by_part(part: Any) -> None:
    opened = box("dict")
    kinds = part if isinstance(part, dict) else {"image": part, "table": part}
    if part == "black":
        with pytest.raises(InputError, match="'black'"):  # no picture of a table
            baseline(opened, opened.validate_inputs(values("dict")), part)
        return
    image, table = opened.inputs.split(baseline(opened, opened.validate_inputs(values("dict")), part))
    want = {None: 0.0, "mean": 0.5, "white": 1.0, 0.0: 0.0}[kinds["image"]]
    assert torch.equal(image, torch.full((3, 1, 4, 4), want))
    row = [1.0, -1.0] if kinds["table"] in (None, "mean") else [2.0, 2.0]
    assert torch.equal(table, torch.tensor([row] * 3))


BAD: dict[str, Any] = {
    "a name missing": {"image": torch.rand(3, 1, 4, 4)},
    "a name too many": {**values("dict"), "sound": torch.rand(3, 2)},
    "a tuple for names": values("tuple"),
    "fewer rows in one": {"image": torch.rand(3, 1, 4, 4), "table": torch.rand(2, 2)},
    "an image of another size": {"image": torch.rand(3, 1, 5, 4), "table": torch.rand(3, 2)},
    "no tensor": {"image": torch.rand(3, 1, 4, 4), "table": "rows.csv"},
    "NaN": {"image": torch.rand(3, 1, 4, 4), "table": torch.full((3, 2), float("nan"))},
    "an image alone": torch.rand(3, 1, 4, 4),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input(bad: str) -> None:
    with pytest.raises(InputError):
        box("dict")(BAD[bad])


@pytest.mark.parametrize("bad", [{}, (), {"a": 3}, [PARTS["image"]], (PARTS["image"], "x")])
def test_bad_parts(bad: Any) -> None:
    with pytest.raises(InputError):
        ub.MultiInput(bad)


def test_too_few_in_a_tuple() -> None:
    with pytest.raises(InputError, match="2 tensors"):
        box("tuple")((torch.rand(3, 1, 4, 4),))


# -- data sets and loaders of several inputs ---------------------------------------------------------------------------


class Several(Dataset[Any]):
    """Ten examples of several inputs, each a dict or a tuple, with or without its label."""

    def __init__(self, kind: str, labeled: bool) -> None:
        self.kind, self.labeled, self.x = kind, labeled, values("dict", 10)

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Any:
        x = {name: v[i] for name, v in self.x.items()}
        one = x if self.kind == "dict" else tuple(x.values())
        return (one, i % 3) if self.labeled else one


FORMS: dict[str, Any] = {
    "a data set": lambda data: data,
    "a loader": lambda data: DataLoader(data, batch_size=4),
    "a loader of examples": lambda data: DataLoader(data, batch_size=None),
    "a shuffling loader": lambda data: DataLoader(
        data, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0)
    ),
}


@both
@pytest.mark.parametrize("labeled", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_data_sets_and_loaders_give_what_tensors_give(kind: str, labeled: bool, form: str) -> None:
    opened, data = box(kind), FORMS[form](Several(kind, labeled))
    want = ub.activations.statistics(opened, values(kind, 10), ["image"])[0]
    assert torch.allclose(ub.activations.statistics(opened, data, ["image"])[0].mean, want.mean, atol=1e-6)
    most = ub.activations.top_examples(opened, data, ["image"], k=3)[0]
    best = ub.activations.top_examples(opened, values(kind, 10), ["image"], k=3)[0]
    assert torch.allclose(most.value, best.value, atol=1e-6)
    if form != "a shuffling loader":
        assert torch.equal(most.example_index, best.example_index)


@both
@pytest.mark.parametrize("form", FORMS)
def test_labels_follow_their_inputs(kind: str, form: str) -> None:
    opened, labels = box(kind), torch.arange(10) % 3
    want = int((opened.predict(values(kind, 10)) == labels).sum())
    assert ub.robustness.calibration(opened, FORMS[form](Several(kind, True))).accuracy == pytest.approx(want / 10)
    clean = ub.robustness.evaluate(
        opened,
        FORMS[form](Several(kind, True)),
        {"fgsm": ub.adversarial.fgsm},
        eps=[0.1],
        minimal_attack=None,
        check_masking=False,
    ).clean_accuracy
    assert clean.count == want


@both
def test_a_loader_of_other_examples_is_refused(kind: str) -> None:
    one = DataLoader(TensorDataset(torch.rand(6, 1, 4, 4)), batch_size=2)
    with pytest.raises((DataError, InputError), match=r"several inputs is a dict or tuple|wanted a tuple|input 0"):
        ub.activations.statistics(box(kind), one, ["image"])


def test_the_map_of_one_part_by_its_name() -> None:
    box = ub.Box(Both(), inputs("dict"))
    x = {"image": torch.rand(2, 1, 4, 4), "table": torch.randn(2, 2)}
    found = ub.attribution.gradient(box, x, 1)
    assert torch.equal(found["table"], found.map["table"])
    assert tuple(found["image"].shape) == (2, 1, 4, 4)
    drawn = ub.plots.figures(found)
    assert list(drawn) == ["attribution", "attribution image", "attribution table"]
    assert drawn["attribution"].height > drawn["attribution image"].height + drawn["attribution table"].height
    with pytest.raises(InputError, match="no map of 'text': one of image, table"):
        found["text"]
    single = ub.attribution.gradient(ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), ub.Pixels((1, 2, 2))),
                                     torch.rand(1, 1, 2, 2), 0)  # fmt: skip
    with pytest.raises(InputError, match="it is one map"):
        single["image"]
