"""Reading a layer at a quarter of the depth against a full forward. Wanted: near the layer's share of the FLOPs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import unboxed as ub
from harness import compare, write

DEPTH, AT = 16, 4  # convolutions, and the one that is read


def vgg() -> nn.Sequential:
    """Equal convolutions, so that depth and cost go together."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 3, padding=1)]
    for _ in range(DEPTH - 1):
        layers += [nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 64 * 64, 10)).eval()


def main() -> None:
    model = vgg()
    box = ub.Box(model, ub.Pixels((3, 64, 64)))
    path = str(2 * (AT - 1))
    x = torch.rand(16, 3, 64, 64)

    def read() -> Tensor:
        return box.read(x, [path])[path]

    @torch.no_grad()
    def full() -> Tensor:
        return model(x)

    @torch.no_grad()
    def check() -> None:
        if not torch.allclose(read(), model[: 2 * AT - 1](x), atol=1e-5):
            raise SystemExit("the activation read is not the layer's")

    figures = compare(read, full, check=check)
    upto = [row.flops_share for row in box.layers][: 2 * AT - 1]
    what = f"read convolution {AT} of {DEPTH} against a full forward"
    write("reading", {"what": what, "share_of_flops": sum(upto), **figures})


if __name__ == "__main__":
    main()
