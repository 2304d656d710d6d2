"""The store of training gradients: 60,000 MNIST images and a CNN of 1.2 million parameters on one machine.

Wanted: a peak of at most 3 GB of memory, and seconds for later queries. With fewer `--examples` the time of all is
extrapolated; memory does not depend on them but for the images themselves.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from functools import partial
from typing import Any

import torch

import unboxed as ub
from harness import seconds, write

MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache
ALL = 60_000
N_QUERIES, N_EXACT = 20, 1000
MAX_GB = 3.0


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--examples", type=int, default=ALL)
    options.add_argument("--dim", type=int, default=4096)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    train = ub.data.mnist("train", MNIST).first(chosen.examples)
    queries = ub.data.mnist("test", MNIST).first(N_QUERIES)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(box, train, queries, folder, chosen.dim)
    if (peak := figures["peak memory, GB"]) > MAX_GB:
        raise SystemExit(f"a peak of {peak:.1f} GB of memory")
    write("influence_store", {"what": "gradients of MNIST images in files, then 20 queries", **figures})


def measure(box: ub.Box, train: Any, queries: Any, folder: str, dim: int) -> dict[str, Any]:
    store: Any = None

    def build() -> None:
        nonlocal store
        store = ub.influence.gradient_store(box, tuple(train), folder, dim=dim)

    build_seconds = seconds(build)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # of kB
    n = len(train.x)
    return {
        "examples": n, "parameters": sum(p.numel() for p in box.model.parameters()), "dim": dim,
        "seconds": build_seconds, "seconds for 60,000": build_seconds * ALL / n, "peak memory, GB": peak,
        "MB on disk": store.n_bytes / 1e6, "MB on disk for 60,000": store.n_bytes / 1e6 * ALL / n,
        "seconds for the scores of 20 queries": seconds(partial(store.scores, *queries)),
        "seconds for the top 8 of 20 queries": seconds(partial(store.top, *queries)),
        "correlation with exact inner products": agreement(box, store, train, queries),
    }  # fmt: skip


def agreement(box: ub.Box, store: Any, train: Any, queries: Any) -> float:
    """The mean over queries of the correlation of scores, over the first training examples."""
    exact = ub.influence.gradient_dot(box, *queries, (train.x[:N_EXACT], train.y[:N_EXACT])).scores
    found = store.scores(*queries).scores[:, :N_EXACT]
    pairs = zip(exact, found, strict=True)
    return sum(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs) / len(exact)


if __name__ == "__main__":
    main()
