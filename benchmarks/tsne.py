"""A t-SNE map of 10,000 MNIST test images against openTSNE's own fit, and how well the maps sort the digits.

Ours is the whole call but for reading the layer; the peer fits what ours fits, 50 principal components that it is given
ready-made, with the same settings.
Wanted: a ratio of at most 1.1; 10-nearest-neighbor label accuracy in the map of at least .98 for the last hidden layer,
and at least 3 points more than in the map of the raw pixels.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

import unboxed as ub
from harness import compare, seconds, write
from unboxed.engine.read import features
from unboxed.engine.read.embedding import fit_tsne, make_unfitted_tsne, pca_features_and_model

MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache
LAYERS = ("input", "fc2:input")


def peer(x: npt.NDArray[Any]) -> Any:
    return make_unfitted_tsne(len(x), 30.0, 0).fit(x)


def figures(points: int, pairs: int) -> dict[str, Any]:
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    x, y = ub.data.mnist("test", Path(MNIST) if MNIST else None).tensors()
    x, y = x[:points], y[:points]
    read: dict[str, Tensor] = {}
    reading = seconds(lambda: read.update(features.read_features(box, x, LAYERS)))
    h = read["fc2:input"]
    maps: dict[str, Any] = {"input": fit_tsne(read["input"].numpy())}
    work = lambda: maps.update({"fc2:input": fit_tsne(h.numpy())})  # noqa: E731
    components, _ = pca_features_and_model(h.numpy())
    times = compare(work, lambda: peer(components), pairs=pairs, warmup=0)
    found = {a: ub.activations.TsneMap(a, torch.as_tensor(m.points), m).accuracy(y) for a, m in maps.items()}
    return {
        "what": f"t-SNE of {len(h):,} MNIST test images: ours on the last hidden layer against openTSNE's fit of it",
        **times,
        "reading_ms": 1e3 * reading,
        "accuracy_last_hidden": found["fc2:input"],
        "accuracy_pixels": found["input"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=2)
    chosen = parser.parse_args()
    made = figures(chosen.points, chosen.pairs)
    write("tsne" if chosen.points == 10_000 else "tsne_small", made, packages=("openTSNE",))


if __name__ == "__main__":
    main()
