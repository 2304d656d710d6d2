"""What a box keeps between calls, or compares at a glance: a changed model, flag, buffer or target is still seen."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError, LayerError, UnboxedWarning
from unboxed.objectives import logit

PIXEL_NOUNS = ub.Pixels((1, 8, 8), mean=0.4, std=0.5)


class Small(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.head: nn.Module = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def small(classes: int = 10) -> Small:
    torch.manual_seed(0)
    return Small(classes).eval()


def images(n: int = 1) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


# -- addresses ---------------------------------------------------------------------------------------------------------


def test_an_address_is_resolved_again_in_a_changed_model() -> None:
    model, x = small(), images()
    box = ub.Box(model, PIXEL_NOUNS)
    for _ in range(2):
        assert box.read(x, "body.2")["body.2"].shape == (1, 32)
    relu = nn.ReLU()
    model.body = nn.Sequential(nn.Flatten(), relu, nn.Linear(64, 32), relu)
    with pytest.raises(LayerError, match="runs 2 times"):
        box.read(x, "body.1")
    model.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32))
    with pytest.raises(LayerError, match=r"no layer 'body\.2'"):
        box.read(x, "body.2")


# -- targets -----------------------------------------------------------------------------------------------------------


def test_labels_that_are_written_over_between_calls() -> None:
    box, x, y = ub.Box(small(), PIXEL_NOUNS), images(), torch.tensor([3])
    third = ub.attribution.gradient(box, x, y)
    y[0] = 5
    fifth = ub.attribution.gradient(box, x, y)
    assert torch.equal(third, ub.attribution.gradient(box, x, logit(3)))
    assert torch.equal(fifth, ub.attribution.gradient(box, x, logit(5)))


def test_a_target_that_one_box_takes_is_refused_by_another() -> None:
    ten, three, x, y = ub.Box(small(), PIXEL_NOUNS), ub.Box(small(3), PIXEL_NOUNS), images(), torch.tensor([3])
    ub.attribution.gradient(ten, x, y)
    with pytest.raises(InputError, match="classes 0 to 2"):
        ub.attribution.gradient(three, x, y)
    with pytest.raises(InputError, match="one for each of 2 examples"):
        ub.attribution.gradient(ten, images(2), y)
    with pytest.raises(InputError, match="float32"):
        ub.attribution.gradient(ten, x, y + 0.5)


def test_a_target_first_seen_in_inference_mode() -> None:
    box, x = ub.Box(small(), PIXEL_NOUNS), images(2)
    with torch.inference_mode():
        inside = ub.attribution.gradient(box, x, torch.tensor([1, 7]))
    assert torch.equal(inside, ub.attribution.gradient(box, x, torch.tensor([1, 7])))


# -- flags and buffers -------------------------------------------------------------------------------------------------


class Flips(Small):
    """Sets the flag of one of its children while it runs."""

    def forward(self, x: Tensor) -> Tensor:
        self.body[2].training = not self.body[2].training
        return super().forward(x)


@pytest.mark.parametrize("training", [True, False])
def test_a_flag_that_the_model_sets_itself(training: bool) -> None:
    box = ub.Box(model := Flips().train(training), PIXEL_NOUNS)
    box(images())
    assert {m.training for m in model.modules()} == {training}
    model.body[1].train(not training)
    box(images())
    assert [m.training for m in model.modules()].count(not training) == 1


class Exchanges(Small):
    """Exchanges two equal buffers, or hands one to another module under the same name."""

    def __init__(self, to_another: bool) -> None:
        super().__init__()
        self.to_another = to_another
        self.register_buffer("a", torch.ones(2))
        if not to_another:
            self.register_buffer("b", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        own = self._buffers
        if self.to_another:
            self.body.register_buffer("a", own.pop("a"))
        else:
            own["a"], own["b"] = own["b"], own["a"]
        return super().forward(x)


@pytest.mark.parametrize("to_another", [False, True])
def test_buffers_that_change_places(to_another: bool) -> None:
    model = Exchanges(to_another)
    before = dict(model.named_buffers())
    box = ub.Box(model, PIXEL_NOUNS)
    for _ in range(2):
        box(images())
        after = dict(model.named_buffers())
        assert list(after) == list(before)
        assert all(after[name] is held for name, held in before.items())


def test_a_buffer_that_becomes_none_is_seen() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).eval()
    box, x = ub.Box(model, PIXEL_NOUNS), images(4)
    assert not box.batch_dependent
    box(x)
    model[2].running_mean = model[2].running_var = None
    box(x)
    assert box.batch_dependent


# -- a single image ----------------------------------------------------------------------------------------------------


class Evaluation(nn.Module):
    """Logits of the sum h of an image: what `of` makes of it, and h itself."""

    def __init__(self, of: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        h = x.flatten(1).sum(1)
        return torch.stack([self.of(h), h], 1)


@pytest.mark.parametrize(
    ("of", "what"), [(lambda h: 0 * h, "exactly zero"), (torch.sqrt, "NaN or infinite")], ids=["zero", "infinite"]
)
@pytest.mark.parametrize("n", [1, 3])
def test_a_map_that_says_nothing_is_warned_of(of: Callable[[Tensor], Tensor], what: str, n: int) -> None:
    box, x = ub.Box(Evaluation(of), ub.Pixels((1, 8, 8)), outputs="logits"), torch.zeros(n, 1, 8, 8)
    with pytest.warns(UnboxedWarning, match=f"{what} for {n} of {n}"):
        ub.attribution.gradient(box, x, torch.zeros(n).long())


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_map_of_one_sign_says_something(sign: int) -> None:
    box = ub.Box(Evaluation(lambda h: sign * h), ub.Pixels((1, 8, 8)), outputs="logits")
    assert ub.attribution.gradient(box, torch.zeros(1, 1, 8, 8), torch.tensor([0])).eq(sign).all()
