"""How the generators of the zoo were made: `python benchmarks/zoo_generators.py digits-gan|mnist-gan [--out FOLDER]`.

A conditional DCGAN with hinge loss, spectral normalization and a projection discriminator (Miyato et al. 2018,
arXiv:1802.05957; Miyato & Koyama 2018, arXiv:1802.05637). The weights are averaged over the steps (EMA), and stored in
half precision. The card says how many of 2,000 samples a model of the zoo that took no part classifies with more than
.9, and how many of them as the digit that was chosen.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import unboxed as ub
from unboxed.engine.optimize.transforms import random_affine
from unboxed.training.ema import ModelEMA
from unboxed.training.files import save_weights, versions
from unboxed.zoo.generators import LATENT_SIZE, N_DIGITS, DigitGenerator

MNIST = Path(os.environ.get("UNBOXED_MNIST", Path(__file__).parents[2] / "shared" / "data" / "mnist"))
N_JUDGED = 2000


@dataclass(frozen=True)
class Recipe:
    widths: tuple[int, int, int]
    epochs: int
    batch_size: int
    lr: float = 5e-4
    lr_discriminator: float = 5e-4
    ema_decay: float = 0.999
    augment: bool = False  # small shifts, turns and zooms of real and generated images alike


RECIPES = {
    "digits-gan": Recipe((64, 48, 24), epochs=60, batch_size=64, augment=True),
    "mnist-gan": Recipe((64, 48, 24), epochs=7, batch_size=64),
}
JUDGES = {"digits-gan": "digits-judge", "mnist-gan": "mnist-judge"}


class Discriminator(nn.Module):
    """Images (N, 1, 28, 28) and their digits (N,) to a score (N,): phi(x) . embedding(y) + psi(phi(x))."""

    def __init__(self, widths: tuple[int, int] = (32, 64)) -> None:
        super().__init__()
        a, b = widths
        self.features = nn.Sequential(
            spectral_norm(nn.Conv2d(1, a, 4, 2, 1)), nn.LeakyReLU(0.2),
            spectral_norm(nn.Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(0.2),
            nn.Flatten(), spectral_norm(nn.Linear(b * 49, 128)), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.score = spectral_norm(nn.Linear(128, 1))
        self.embedding = spectral_norm(nn.Embedding(N_DIGITS, 128))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.features(2 * x - 1)
        return self.score(h)[:, 0] + (h * self.embedding(y)).sum(1)


def latents(y: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Normal latents (N, 64) whose largest of the first ten is at y (N,)."""
    z = torch.randn(len(y), LATENT_SIZE, generator=generator)
    rows, largest = torch.arange(len(y)), z[:, :N_DIGITS].argmax(1)
    z[rows, largest], z[rows, y] = z[rows, y].clone(), z[rows, largest].clone()
    return z


def train(x: Tensor, y: Tensor, recipe: Recipe, seed: int) -> tuple[DigitGenerator, float]:
    """A generator trained on images (N, 1, 28, 28) with labels, and the CPU seconds that it took."""
    torch.manual_seed(seed)
    start = time.process_time()
    generator, discriminator = DigitGenerator(recipe.widths), Discriminator()
    averaged = ModelEMA(generator, recipe.ema_decay)
    steps = recipe.epochs * (len(x) // recipe.batch_size)
    optimizers = [
        torch.optim.Adam(m.parameters(), lr, betas=(0.5, 0.99))
        for m, lr in ((generator, recipe.lr), (discriminator, recipe.lr_discriminator))
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda i: min(1.0, 2 * (1 - i / steps))) for o in optimizers]
    affine, draws = random_affine(10, 0.1, 0.05, fill=0.0), torch.Generator().manual_seed(seed)
    shown = (lambda h: affine(h, draws)) if recipe.augment else (lambda h: h)
    order = torch.empty(0, dtype=torch.long)
    for step in range(1, steps + 1):
        if len(order) < recipe.batch_size:
            order = torch.randperm(len(x))
        rows, order = order[: recipe.batch_size], order[recipe.batch_size :]
        labels = y[rows]
        made = generator(latents(labels))
        loss = (1 - discriminator(shown(x[rows]), labels)).relu().mean()
        loss = loss + (1 + discriminator(shown(made.detach()), labels)).relu().mean()
        _descend(optimizers[1], loss)
        discriminator.requires_grad_(False)
        _descend(optimizers[0], -discriminator(shown(made), labels).mean())
        discriminator.requires_grad_(True)
        averaged.update(step)
        for schedule in schedules:
            schedule.step()
        if step % max(1, steps // 20) == 0:
            print(f"step {step} of {steps}, loss {loss.item():.2f}, {time.process_time() - start:.0f} s", flush=True)
    averaged.copy_to_model()
    return generator, time.process_time() - start


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def judged(generator: nn.Module, judge: str, seed: int = 1) -> dict[str, float]:
    """How an independent model sees samples of balanced digits."""
    y = torch.arange(N_JUDGED) % N_DIGITS
    with torch.no_grad():
        images = generator.eval()(latents(y, torch.Generator().manual_seed(seed)))
    probs = ub.Box(*ub.zoo.load(judge)).probs(images)
    return {
        "samples": N_JUDGED,
        "judge": judge,
        "more than .9 for a digit": round(float((probs.amax(1) > 0.9).double().mean()), 4),
        "classified as the chosen digit": round(float((probs.argmax(1) == y).double().mean()), 4),
        "pixel standard deviation": round(float(images.std(0).mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--out", type=Path, default=Path())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES[args.name]
    recipe = Recipe(**{**asdict(recipe), "epochs": args.epochs or recipe.epochs})
    data = ub.data.digits("train") if args.name == "digits-gan" else ub.data.mnist("train", MNIST)
    x, y = data.tensors()
    generator, seconds = train(x, y, recipe, args.seed)
    generator.half().float()
    card: dict[str, Any] = {
        "name": args.name, "kind": "generator", "data": data.name, "train_examples": len(x),
        "inputs": {"latents": LATENT_SIZE, "digit": "the largest of the first ten latents"},
        "widths": list(recipe.widths), "seed": args.seed, "recipe": asdict(recipe), "cpu_seconds": round(seconds, 1),
        "threads": 1, "precision": "float16, as stored", "judged": judged(generator, JUDGES[args.name]),
        "versions": versions(), "command": f"python benchmarks/zoo_generators.py {args.name} --seed {args.seed}",
    }  # fmt: skip
    print(card["judged"], round(seconds), "s")
    save_weights(generator.half(), args.out / f"{args.name}.safetensors", card)


if __name__ == "__main__":
    main()
