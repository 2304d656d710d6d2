"""What `ConfusedLogits` costs a training: an input confused at every look, top_k=1, the default interval, drawing too.

The MNIST CNN on batches of 64. One run is one interval, 20 steps; an epoch is such intervals one after the other, and
the opening of the model (once a training) is printed beside it. Wanted: at most 3 % of the epoch.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import compare, seconds, write
from unboxed import data, zoo
from unboxed.training import ConfusedLogits

BATCH, INTERVAL, EPOCH = 64, 20, 938  # steps of an MNIST epoch
MOST = 0.03


class Training:
    """A training that goes on for as long as one asks, from the same start each time."""

    def __init__(self, watch: Callable[..., object] | None = None) -> None:
        torch.manual_seed(0)
        self.model, inputs = zoo.load("mnist-cnn", weights=None)
        self.model.train()
        self.optimizer = torch.optim.Adam(self.model.parameters())
        x, y = data.digits().tensors()
        self.batches = list(zip(inputs.encode(x).split(BATCH)[:INTERVAL], y.split(BATCH)[:INTERVAL], strict=True))
        self.count, self.watch = itertools.count(), watch

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()
        if self.watch is not None:
            self.watch(self.model, x, y, next(self.count))

    def interval(self) -> None:
        for x, y in self.batches:
            self.step(x, y)


def forced(folder: Path) -> ConfusedLogits:
    """Every input counts as confused; the sheets are written as files."""
    _, inputs = zoo.load("mnist-cnn", weights=None)
    return ConfusedLogits(1, min_logit_value=-math.inf, max_logit_difference=math.inf, inputs=inputs, to=folder)


def same_weights(folder: Path) -> None:
    """Bit-identical after two intervals, each with its look."""
    confused = forced(folder / "check")
    watched, plain = Training(confused.watch), Training()
    for training in (watched, plain):
        torch.manual_seed(1)
        training.interval(), training.interval()
    for a, b in zip(watched.model.parameters(), plain.model.parameters(), strict=True):
        if not torch.equal(a, b):
            raise SystemExit("the weights differ: the callback changed the training")
    if len(list((folder / "check").iterdir())) != 2:
        raise SystemExit("two looks were due: nothing was measured")


def main(pairs: int = 15) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        confused, plain = forced(folder / "timed"), Training()
        watched = Training(confused.watch)
        first = watched.batches[0]
        opening = seconds(lambda: confused.watch(watched.model, *first, 0))
        interval = compare(watched.interval, plain.interval, pairs=pairs, check=lambda: same_weights(folder))
        look = compare(lambda: confused.watch(plain.model, *first, INTERVAL - 1), plain.interval, pairs=pairs)
        share = look["ratio"] + opening / (EPOCH * look["peer_ms"] / 1e3 / INTERVAL)
    print(f"a look costs {share:.1%} of the epoch (wanted: at most {MOST:.0%})")
    figures = {"share_of_epoch": share, "wanted": MOST, "opening_ms": 1e3 * opening}
    write("callback", {**figures, "look_against_interval": look, "with_against_without": interval}, packages=["pillow"])


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
