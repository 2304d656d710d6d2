"""The faithful recipe against the published loop, written out: round by round, class by class, 8-bit images."""

import numpy as np
import torch
from torch import nn
from torch.optim import Adam

import unboxed as ub

MEAN, STD = 0.1307, 0.3081


def published(model: nn.Module, target: int, rounds: int = 50) -> np.ndarray:
    img = np.uint8(np.zeros((1, 28, 28)))
    for _ in range(rounds):
        x = torch.from_numpy((np.float32(img) / 255 - MEAN) / STD).float().unsqueeze(0).requires_grad_()
        optimizer = Adam([x], lr=0.5)
        out = model(x)
        loss = -10 * out[0, target] + torch.sum(out)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        img = x.detach().numpy()[0] * STD + MEAN
        img = np.round(np.clip(img, 0, 1) * 255)
    return img


def small_model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 169, 10), nn.LogSoftmax(1)
        ).eval()


def test_the_faithful_recipe_is_the_published_one() -> None:
    model = small_model()
    box = ub.Box(model, ub.Pixels((1, 28, 28), mean=MEAN, std=STD))
    ours = (ub.synthesis.class_image(box, [0, 3, 7], recipe="faithful").images * 255).numpy()
    theirs = np.stack([published(model, t) for t in (0, 3, 7)])
    assert (np.abs(ours - theirs) <= 1).mean() > 0.995
    assert theirs.std() > 10  # the published loop did draw something


def test_its_step_moves_a_pixel_by_39_gray_levels() -> None:
    box = ub.Box(small_model(), ub.Pixels((1, 28, 28), mean=MEAN, std=STD))
    first = ub.synthesis.class_image(box, 4, recipe="faithful", steps=1).images * 255
    assert set(first.round().unique().tolist()) == {0.0, 39.0}
