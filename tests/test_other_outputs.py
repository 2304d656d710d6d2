"""Segmentation, multi-label and regression: what needs classes names the way out, and the way out works."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import OutputError

PIXELS = ub.Pixels((3, 12, 12))
MODELS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "segmentation": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), None),
    "multilabel": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 4)), "multilabel"),
    "regression": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(432, 1)), "regression"),
}
EXCLUSIVE: dict[str, Callable[[ub.Box, Tensor, Tensor], Any]] = {
    "auto_attack": lambda box, x, y: ub.adversarial.auto_attack(box, x, y, eps=0.1),
    "deepfool": lambda box, x, y: ub.adversarial.deepfool(box, x, y),
    "square": lambda box, x, y: ub.adversarial.square(box, x, y, eps=0.1),
    "patch": lambda box, x, y: ub.adversarial.patch(box, x, y, target=0, area=0.2),
    "universal": lambda box, x, y: ub.adversarial.universal(box, x, eps=0.1),
    "evaluate": lambda box, x, y: ub.robustness.evaluate(box, (x, y), eps=[0.1]),
    "smoothed": lambda box, x, y: ub.robustness.smoothed(box, x, sigma=0.2),
}
ONE_ROW: dict[str, Callable[[ub.Box, Tensor, Tensor], Any]] = {
    "class_image": lambda box, x, y: ub.synthesis.class_image(box, 0),
    "morph": lambda box, x, y: ub.synthesis.morph(box, x, 0),
    "fooling": lambda box, x, y: ub.adversarial.fooling(box, [0]),
}


def opened(kind: str) -> tuple[ub.Box, Tensor]:
    torch.manual_seed(0)
    make, outputs = MODELS[kind]
    return ub.Box(make().eval(), PIXELS, outputs=outputs), torch.rand(4, 3, 12, 12)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", [*EXCLUSIVE, *ONE_ROW])
@pytest.mark.parametrize("kind", MODELS)
def test_what_needs_classes_says_what_does_it(method: str, kind: str) -> None:
    if kind == "multilabel" and method in ONE_ROW:
        return
    box, x = opened(kind)
    with pytest.raises(OutputError) as error:
        (EXCLUSIVE | ONE_ROW)[method](box, x, torch.zeros(4, dtype=torch.long))
    message = str(error.value)
    if kind != "regression":
        assert "output=lambda out:" in message
    if method != "smoothed":
        assert re.search(r"objective=|synthesis\.feature\(box, ", message), message


def test_the_output_that_the_error_names_opens_the_model() -> None:
    box, x = opened("segmentation")
    with pytest.raises(OutputError) as error:
        ub.robustness.smoothed(box, x, sigma=0.2)
    written = re.search(r"output=(lambda out: .*?\)\))\)", str(error.value))
    assert written is not None
    reduced = ub.Box(box.model, PIXELS, output=eval(written[1]))
    assert torch.allclose(reduced(x), box(x).mean((2, 3)), atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("segmentation", ub.logit(1) - ub.logit(0)),
        ("multilabel", -ub.logit(2)),
        ("multilabel", ub.logit(2)),
        ("regression", ub.logit(0) - 0.2),
        ("regression", -0.2 - ub.logit(0)),
    ],
)
def test_attacks_and_images_work_through_an_objective(kind: str, objective: ub.Objective) -> None:
    box, x = opened(kind)
    for attack in (ub.adversarial.pgd, ub.adversarial.square):
        result = attack(box, x, eps=0.5, objective=objective)
        assert result.success.any()
        assert torch.equal(objective({"logits": box(result.images)}) > 0, result.success)
    smallest = ub.adversarial.fmn(box, x, objective=objective)
    assert torch.equal(objective({"logits": box(smallest.images)}) > 0, smallest.success)
    made = ub.synthesis.feature(box, ub.logit(0), steps=5)
    assert made.images.shape == (1, 3, 12, 12)
