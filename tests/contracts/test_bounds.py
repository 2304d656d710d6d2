"""Contract 7: bounded results are verified: an adversarial image is inside its ball and inside [0, 1]."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

import unboxed as ub
from check_each import each
from contracts.common import shared_case

IMAGES = ("images", "frames", "input", "result")
GENTLE = [
    "plain",
    "non_square",
    "color",
    "double",
    "bfloat16",
    "log_softmax",
    "relu_logits",
    "batchnorm_in_train_mode",
]
ROOMS = [("linf", 8 / 255), ("linf", 0.3), ("linf", 1e-4), ("l2", 0.5), ("l2", 3.0), ("l1", 0.3), ("l1", 12.0)]
SIZES = {"linf": torch.inf, "l2": 2, "l1": 1}


SETTINGS: list[dict[str, object]] = [
    {}, {"early_stop": False}, {"random_start": False}, {"target": 2}, {"step": 10.0},
]  # fmt: skip


def check_in_ball(images: Tensor, x: Tensor, norm: str, eps: float) -> Tensor:
    """Gives the size of each change, (N,)."""
    size = (images - x).double().flatten(1).norm(SIZES[norm], dim=1)
    assert (size <= eps * (1 + 1e-6) + 1e-7).all()
    assert images.min() >= 0
    assert images.max() <= 1
    return size


@each((model, *room, SETTINGS[(i + j) % 5]) for i, model in enumerate(GENTLE) for j, room in enumerate(ROOMS))
def test_pgd_stays_in_its_ball(model: str, norm: str, eps: float, more: dict[str, object]) -> None:
    """Every two of model, ball and settings meet."""
    c = shared_case(model)
    made = ub.adversarial.pgd(c.box, c.x, c.y, eps=eps, norm=norm, steps=4, **more)
    size = check_in_ball(made.images, c.x, norm, eps)
    assert torch.allclose(made.distance.double(), size, atol=1e-6)


@each((name, *room) for name in ("fgsm", "bim", "mi_fgsm") for room in ROOMS)
def test_others_in_steps_stay_in_theirs(name: str, norm: str, eps: float) -> None:
    c = shared_case("color")
    made = getattr(ub.adversarial, name)(c.box, c.x, c.y, eps=eps, norm=norm, early_stop=False)
    check_in_ball(made.images, c.x, norm, eps)


@each(product(GENTLE, (None, 2)))
def test_pgd_says_what_the_model_says(model: str, target: int | None) -> None:
    """Success is what a fresh forward of the returned image shows."""
    c = shared_case(model)
    made = ub.adversarial.pgd(c.box, c.x, c.y, eps=0.2, steps=6, target=target)
    now = c.box.predict(made.images)
    want = now != c.y if target is None else now == target
    assert torch.equal(made.success, want)


@each([0.0, 1.0])
def test_pgd_at_the_edge_of_the_valid_range(start: float) -> None:
    c = shared_case("plain")
    x = torch.full_like(c.x, start)
    check_in_ball(ub.adversarial.pgd(c.box, x, c.y, eps=0.1, steps=4, early_stop=False).images, x, "linf", 0.1)


def test_the_faithful_class_image_has_eight_bits() -> None:
    made = ub.synthesis.class_image(shared_case("plain").box, recipe="faithful", steps=4)
    assert torch.equal(made.images, (made.images * 255).round() / 255)
    assert made.images.std() > 0
