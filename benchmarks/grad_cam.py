"""`attribution.grad_cam` against captum's LayerGradCam: the same maps of a layer to 1e-5, and how long both take.

On the MNIST CNN at its last maps (64 x 24 x 24), and on ResNet-20 after its last block, untrained where the weights of
the real data are not at hand.
"""

from __future__ import annotations

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

import models
import unboxed as ub
from harness import compare, write


class Normalized(nn.Module):
    """What captum needs around a model whose inputs are pixels."""

    def __init__(self, box: ub.Box) -> None:
        super().__init__()
        self.model, self.inputs = box.model, box.inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.inputs.encode(x))


def figures(box: ub.Box, layer: str, x: Tensor, y: Tensor) -> dict[str, float | int]:
    peer = LayerGradCam(Normalized(box), box.model.get_submodule(layer))

    def ours() -> Tensor:
        return ub.attribution.grad_cam(box, x, y, layer=layer, upsample=False)

    def captum() -> Tensor:
        return peer.attribute(x, target=y, relu_attributions=True)

    def check() -> None:
        if (difference := float((ours() - captum()).abs().max())) > 1e-5 * float(captum().abs().max()):
            raise SystemExit(f"the maps differ by {difference}")

    return compare(ours, captum, pairs=31, check=check, warmup=3)


def mnist(batch: int) -> dict[str, float | int]:
    x, y = ub.data.digits("test").first(batch)
    return figures(ub.Box(*ub.zoo.load("mnist-cnn")), "relu2", x, y)


def resnet(batch: int) -> dict[str, float | int]:
    box = ub.Box(*models.resnet20(trained=(models.ROOT / "cifar10").is_dir()))
    x = torch.rand(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return figures(box, "layer3", x, box.predict(x))


def main() -> None:
    torch.set_num_threads(1)  # where cores are shared, two threads that wait for one another drown what is measured
    found = {f"mnist_cnn_batch_{n}": mnist(n) for n in (1, 64)}
    found |= {f"resnet20_batch_{n}": resnet(n) for n in (1, 64)}
    write("grad_cam", {"what": "Grad-CAM against captum's LayerGradCam", **found}, packages=["captum"])


if __name__ == "__main__":
    main()
