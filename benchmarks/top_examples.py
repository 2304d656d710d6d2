"""Top examples of three layers in one pass over 10,000 images, against a bare forward pass over the same batches.

Wanted: at least 0.8 of the bare pass's images a second.
"""

from __future__ import annotations

import argparse
import os

import torch

import unboxed as ub
from harness import compare, write

LAYERS = ("conv1", "conv2", "fc1")
BATCH = 192
MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=10_000)
    options.add_argument("--pairs", type=int, default=5)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    model, inputs = ub.zoo.load("mnist-cnn")
    box = ub.Box(model, inputs)
    x = ub.data.mnist("test", MNIST).first(chosen.images).x

    def ours() -> tuple[ub.activations.TopExamples, ...]:
        return ub.activations.top_examples(box, x, LAYERS, batch_size=BATCH)

    @torch.no_grad()
    def bare() -> None:
        for part in x.split(BATCH):
            model(inputs.encode(part))

    def check() -> None:
        for top in ours():
            h = box.read(x[:512], top.path, batch_size=BATCH)[top.path]  # (n, C, ...)
            if not bool((top.value[:, 0] >= h.transpose(0, 1).flatten(1).amax(1) - 1e-4).all()):
                raise SystemExit(f"{top.path}: an example excites a unit more than its top example")

    figures = compare(bare, ours, pairs=chosen.pairs, check=check)
    what = f"images a second, top 9 of every unit of {', '.join(LAYERS)}, against a bare forward pass"
    write("top_examples", {"what": what, "images": len(x), **figures})


if __name__ == "__main__":
    main()
