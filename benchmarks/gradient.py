"""`attribution.gradient` against captum's Saliency (signed): the same maps to 1e-6, ours not slower."""

from __future__ import annotations

import torch
from captum.attr import Saliency
from torch import Tensor, nn

import unboxed as ub
from harness import compare, write


class Normalized(nn.Module):
    """What captum needs around a model whose inputs are pixels."""

    def __init__(self, box: ub.Box) -> None:
        super().__init__()
        self.model, self.inputs = box.model, box.inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.inputs.encode(x))


def figures(batch: int) -> dict[str, float | int]:
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    x, y = ub.data.digits("test").first(batch)
    saliency = Saliency(Normalized(box))

    def ours() -> Tensor:
        return ub.attribution.gradient(box, x, y)

    def captum() -> Tensor:
        return saliency.attribute(x.clone().requires_grad_(), target=y, abs=False)

    def check() -> None:
        if (difference := float((ours() - captum()).abs().max())) > 1e-6 * float(captum().abs().max()):
            raise SystemExit(f"the maps differ by {difference}")

    return compare(ours, captum, pairs=31, check=check, warmup=3)


def main() -> None:
    torch.set_num_threads(1)  # where cores are shared, two threads that wait for one another drown what is measured
    found = {f"batch_{n}": figures(n) for n in (1, 64)}
    write("gradient", {"what": "gradient against captum's Saliency on the MNIST CNN", **found}, packages=["captum"])


if __name__ == "__main__":
    main()
