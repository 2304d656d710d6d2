"""Every attribution method refuses a score that is NaN or infinite, and warns of a map that alone is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from check_each import each
from unboxed.cards import Card, cards
from unboxed.errors import NaNError, UnboxedWarning
from unboxed.testing.cases import open_box
from unboxed.testing.models import get_model

ATTRIBUTION = [c for c in cards() if c.family == "attribution"]
OF_ATTENTION = [c for c in ATTRIBUTION if "attention" in c.needs]  # which the models here have not, but for one test
BY_NAME = {c.method.__name__: c for c in ATTRIBUTION}
SCORED = [c for c in ATTRIBUTION if c not in OF_ATTENTION]
UNTOUCHED = (
    "attn_lrp",
    "lrp",
    "rise",
    "occlusion",
    "feature_ablation",
    "lime",
    "kernel_shap",
    "shapley",
)  # they take no gradient


class Net(nn.Module):
    """A convolution and a ReLU; the logit of class 1 is `bad` for images with a white pixel, or nearly so."""

    def __init__(self, bad: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.fc, self.bad = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Linear(400, 3), bad

    def forward(self, x: Tensor) -> Tensor:
        z = self.fc(self.relu(self.conv(x)).flatten(1))
        marked = (x.flatten(1).amax(1, keepdim=True) > 0.97) & (torch.arange(3) == 1)
        return torch.where(marked, self.bad, z)


def images() -> Tensor:
    x = 0.2 + 0.5 * torch.rand(3, 1, 10, 10, generator=torch.Generator().manual_seed(0))
    x[2, 0, ::3, ::2] = 1  # this row has no answer, whatever parts are hidden or noise is added
    return x


def called(card: Card, box: ub.Box, x: Tensor, target: int) -> Any:
    return card.example(card.method, box, x, torch.full((len(x),), target))


OF_PROBABILITIES = ("lime", "rise")
"""Of these, infinite logits make 0, or NaN of other classes too."""
BAD_SCORES = [
    (card.method.__name__, bad)
    for card in SCORED
    for bad in (math.nan, math.inf, -math.inf)
    if math.isnan(bad) or card.method.__name__ not in OF_PROBABILITIES
]


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
@each(BAD_SCORES)
def test_a_score_that_is_no_number_is_refused(name: str, bad: float) -> None:
    box, card = ub.Box(Net(bad), ub.Pixels((1, 10, 10)), outputs="logits"), BY_NAME[name]
    with pytest.raises(NaNError, match=r"score of .* is NaN or infinite for 1 of 3 inputs \(row 2\)") as caught:
        called(card, box, images(), 1)
    assert caught.value.rows == [2]


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
@each(c.method.__name__ for c in SCORED)
def test_a_masked_class_next_to_the_target_is_no_fault(name: str) -> None:
    card = BY_NAME[name]
    box = ub.Box(Net(-math.inf), ub.Pixels((1, 10, 10)), outputs="logits")
    found = called(card, box, images(), 0)
    assert bool((found if isinstance(found, Tensor) else found.map).isfinite().all())


class Rooted(nn.Module):
    """Logits with a root of what is 0: a number, with a slope of none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.relu, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Linear(400, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.relu(self.conv(x))
        return self.fc(h.flatten(1)) + (0 * h).flatten(1).sum(1, keepdim=True).sqrt()


# DeepLIFT refuses: see test_completeness
SLOPES = [c for c in SCORED if c.method.__name__ not in (*UNTOUCHED, "deep_lift")]


@pytest.mark.parametrize("card", SLOPES, ids=lambda c: c.method.__name__)
def test_a_map_that_is_not_finite_is_warned_of(card: Card) -> None:
    box = ub.Box(Rooted(), ub.Pixels((1, 10, 10)), outputs="logits")
    with pytest.warns(UnboxedWarning, match="is NaN or infinite for 3 of 3 inputs"):
        called(card, box, images(), 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda box, x: ub.attribution.smoothgrad(box, x, 1, n_samples=3, kind="variance"),
        lambda box, x: ub.attribution.smoothgrad(box, x, 1, n_samples=3, kind="squared"),
        lambda box, x: ub.attribution.integrated_gradients(box, x, 1, n_steps=3),
    ],
    ids=["variance", "squared", "fixed steps"],
)
def test_other_settings_warn_of_it_too(call: Any) -> None:
    box = ub.Box(Rooted(), ub.Pixels((1, 10, 10)), outputs="logits")
    with pytest.warns(UnboxedWarning, match="is NaN or infinite for 3 of 3 inputs"):
        call(box, images())


def test_rollout_of_attention_that_is_nan_is_warned_of() -> None:
    entry = get_model("attention")
    for parameter in entry.model.parameters():
        parameter.data.fill_(math.nan)
    with pytest.warns(UnboxedWarning, match="attention rollout is NaN or infinite for 3 of 3 inputs"):
        ub.attribution.rollout(open_box(entry, outputs="logits"), entry.images(3))


@pytest.mark.parametrize("card", [c for c in OF_ATTENTION if "target" in c.settings], ids=lambda c: c.method.__name__)
def test_a_score_of_attention_that_is_nan_is_refused(card: Card) -> None:
    entry = get_model("attention")
    for parameter in entry.model.parameters():
        parameter.data.fill_(math.nan)
    with pytest.raises(NaNError):
        card.method(open_box(entry, outputs="logits"), entry.images(3), 1)


@pytest.mark.parametrize("name", ["rise", "lime", "kernel_shap", "shapley", "feature_ablation", "occlusion"])
@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
def test_what_is_hidden_may_be_what_the_model_cannot_do_without(name: str) -> None:
    """x itself has a score; x without a part of it has none."""

    class Needs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = nn.Linear(100, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)) + (0 * x[:, :, 4, 4].log())

    card = BY_NAME[name]
    box = ub.Box(Needs(), ub.Pixels((1, 10, 10)), outputs="logits")
    with pytest.raises(NaNError, match="score of x with parts masked by the baseline is NaN"):
        called(card, box, images(), 1)


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
@pytest.mark.parametrize("name", ["rise", "lime", "kernel_shap", "shapley", "feature_ablation", "occlusion"])
def test_the_error_names_x_where_x_itself_has_no_score(name: str) -> None:
    card = BY_NAME[name]
    box = ub.Box(Net(math.nan), ub.Pixels((1, 10, 10)), outputs="logits")
    with pytest.raises(NaNError, match="score of x is NaN"):
        called(card, box, images(), 1)


def test_a_class_is_none_where_the_model_gives_nan() -> None:
    box = ub.Box(Net(math.nan), ub.Pixels((1, 10, 10)), outputs="logits")
    with pytest.raises(NaNError, match="gives NaN for the input of row 2"):
        box.predict(images())
    assert len(box.predict(images()[:2])) == 2
