"""Silencing every unit of a hidden layer against the usual way, one hook and one forward a unit. Same logits."""

from __future__ import annotations

import torch
from torch import Tensor

import unboxed as ub
from harness import compare, write

LAYER = "relu3"
N = 64


def main() -> None:
    torch.set_num_threads(1)
    net, inputs = ub.zoo.load("mnist-cnn", weights=None)
    box = ub.Box(net, inputs)
    x = torch.rand(N, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    units = range(net.fc1.out_features)

    def ours() -> Tensor:
        return ub.activations.ablation(box, x, LAYER, target=0).ablated

    @torch.no_grad()
    def peer() -> Tensor:
        z, found = inputs.encode(x), []
        for k in units:
            handle = net.get_submodule(LAYER).register_forward_hook(
                lambda m, a, h, k=k: h.index_fill(1, torch.tensor(k), 0)
            )
            found.append(net(z))
            handle.remove()
        return torch.stack(found, 1)

    def check() -> None:
        if not torch.allclose(ours(), peer(), atol=1e-4):
            raise SystemExit("the logits differ")

    figures = compare(ours, peer, check=check, pairs=5)
    write("ablation", {"what": f"{len(units)} units of {LAYER} silenced on {N} images", **figures})


if __name__ == "__main__":
    main()
