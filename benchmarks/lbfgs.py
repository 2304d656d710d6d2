"""How far are MNIST images from others that a model takes for something else? By L-BFGS, as Szegedy et al. measured it.

Fully connected models of their kind (arXiv:1312.6199, section 4.2: softmax regression under three weight decays, two
sigmoid layers) are trained here; two of the zoo stand beside them. The distortion is sqrt(sum((x' - x)^2) / n); in the
paper it is about .06 for small fully connected models, and grows with the weight decay. There each image is given a
class to become (here one at random); to become just any other is nearer. FAB in L2 is another attack's answer to the
latter: theirs should not be far apart.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from harness import write
from unboxed.adversarial import distortion, fab, lbfgs

IMAGES, EPOCHS, BATCH = 200, 8, 100
MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache
GRAY = ub.Pixels((1, 28, 28))
DECAYS = {"FC10(1e-4)": 1e-4, "FC10(1e-2)": 1e-2, "FC10(1)": 1.0, "FC100-100-10": 1e-5}


def untrained(name: str) -> nn.Sequential:
    torch.manual_seed(0)
    if name != "FC100-100-10":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    hidden = [nn.Linear(784, 100), nn.Sigmoid(), nn.Linear(100, 100), nn.Sigmoid()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, 10))


def decayed(model: nn.Module, decay: float) -> Tensor:
    """decay * sum(w^2) / k, k the units of a layer: what the paper adds to the loss."""
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Linear)]
    return decay * torch.stack([(w**2).sum() / len(w) for w in weights]).sum()


def trained(name: str, x: Tensor, y: Tensor, epochs: int) -> ub.Box:
    model, draw = untrained(name), torch.Generator().manual_seed(0)
    adam = torch.optim.Adam(model.parameters(), lr=2e-3)
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adam, 2e-3, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=draw)
        for rows in order[: len(x) // BATCH * BATCH].split(BATCH):
            adam.zero_grad()
            (F.cross_entropy(model(x[rows]), y[rows]) + decayed(model, DECAYS[name])).backward()
            adam.step()
            schedule.step()
    return ub.Box(model.eval().requires_grad_(False), GRAY)


def others(y: Tensor) -> Tensor:
    """A random other class for each."""
    return (y + torch.randint(1, 10, y.shape, generator=torch.Generator().manual_seed(1))) % 10


def figures(found: ub.adversarial.Adversarial, x: Tensor) -> dict[str, float]:
    d = distortion(found.images, x)[found.success]
    return {
        "fooled": round(float(found.success.double().mean()), 4),
        "distortion_mean": round(float(d.mean()), 4),
        "distortion_median": round(float(d.median()), 4),
        "queries_mean": round(float(found.queries.double().mean()), 1),
    }


def measured(box: ub.Box, x: Tensor, y: Tensor, all_x: Tensor, all_y: Tensor) -> dict[str, Any]:
    """Over the images that the model has right."""
    right = box.predict(x) == y
    x, y = x[right], y[right]
    return {
        "accuracy": round(float((box.predict(all_x) == all_y).double().mean()), 4),
        "images": len(x),
        "to_a_class": figures(lbfgs(box, x, target=others(y)), x),
        "to_any_class": figures(lbfgs(box, x, y), x),
        "to_any_class_by_fab": figures(fab(box, x, y, norm="l2", n_targets=9, steps=10), x),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=IMAGES)
    options.add_argument("--epochs", type=int, default=EPOCHS)
    options.add_argument("--zoo", nargs="*", default=["mnist-linear", "mnist-cnn"])
    chosen = options.parse_args()
    folder = Path(MNIST) if MNIST else None
    train, test = (ub.data.mnist("train" if t else "test", folder).tensors() for t in (True, False))
    models = {}
    for name in (*DECAYS, *chosen.zoo):
        box = trained(name, *train, chosen.epochs) if name in DECAYS else ub.Box(*ub.zoo.load(name))
        models[name] = measured(box, test[0][: chosen.images], test[1][: chosen.images], *test)
        print(name, models[name], flush=True)
    write("lbfgs", {"wanted": "about .06 for small fully connected models", "models": models})


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
