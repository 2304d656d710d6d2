"""Influence of training examples against captum's: TracIn on all layers and the last one, influence functions, growth.

Wanted: at least 3 times as fast, with equal scores (Spearman .999 or more for each query); time that grows as the
number of training examples.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from captum.influence import NaiveInfluenceFunction, TracInCP, TracInCPFast
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import unboxed as ub
from harness import compare, seconds, write

MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache
LAST = "fc2"
BATCH = 128  # captum's; ours chooses
STEPS = 20
GROWTH = (10_000, 20_000, 40_000)
MIN_SPEARMAN = 0.999
DAMPING = 0.01  # of influence functions; captum adds it to the Hessian of the summed loss
SAMPLE_WISE = {"sample_wise_grads_per_batch": True}  # captum's faster way


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--all", type=int, default=1000, help="training examples of TracIn on all layers")
    options.add_argument("--last", type=int, default=10_000, help="training examples of TracIn on the last layer")
    options.add_argument("--queries", type=int, default=10)
    options.add_argument("--pairs", type=int, default=3)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=UserWarning)
    train = ub.data.mnist("train", MNIST).first(max(*GROWTH, chosen.all, chosen.last))
    model, inputs = early_checkpoint(*train)
    box = ub.Box(model, inputs)
    queries = ub.data.mnist("test", MNIST).first(chosen.queries)
    bench = Bench(box, train, queries, chosen.pairs)
    write("influence_captum", {
        "what": f"time(ours) / time(captum's) for {chosen.queries} queries on MNIST, a CNN of 1.2 million parameters",
        "influence functions, last layer": bench.influence_functions(chosen.all),
        "TracInCP, all layers": bench.tracin_on_all_layers(chosen.all),
        "TracInCP, last layer": bench.tracin_on_one_layer(TracInCP, chosen.all, layers=[LAST], **SAMPLE_WISE),
        "TracInCPFast, last layer": bench.without_bias().tracin_on_one_layer(
            TracInCPFast, chosen.last, final_fc_layer=LAST
        ),
        "growth": bench.growth(),
    }, packages=("captum",))  # fmt: skip


class Bench:
    def __init__(self, box: ub.Box, train: Any, queries: Any, pairs: int) -> None:
        self.box, self.pairs = box, pairs
        self.train, self.queries = tuple(train), tuple(queries)
        self.folder = tempfile.TemporaryDirectory()
        self.checkpoint = str(Path(self.folder.name, "model.pt"))
        torch.save(box.model.state_dict(), self.checkpoint)

    def first(self, n: int) -> tuple[Tensor, Tensor]:
        return self.train[0][:n], self.train[1][:n]

    def peer(self, make: Callable[..., Any], n: int, **settings: Any) -> Tensor:
        """Scores (Q, N) of a method of captum's, made anew, as ours is."""
        model, _ = ub.zoo.load("mnist-cnn", weights=None)
        x, y = self.first(n)
        method = make(
            model=model.to(self.box.dtype), train_dataset=TensorDataset(self.box.inputs.encode(x), y), batch_size=BATCH,
            checkpoints_load_func=load, loss_fn=nn.CrossEntropyLoss(reduction="sum"), **settings,
        )  # fmt: skip
        return method.influence((self.box.inputs.encode(self.queries[0]), self.queries[1]))  # type: ignore[no-any-return]

    def against(self, ours: Callable[[], Tensor], peer: Callable[[], Tensor], n: int) -> dict[str, Any]:
        a, b = ours(), peer()
        agreement = min(spearman(p, q) for p, q in zip(a, b, strict=True))
        if agreement < MIN_SPEARMAN:
            raise SystemExit(f"the scores are not the same: a Spearman correlation of {agreement:.4f}")
        return {
            "training examples": n,
            "smallest Spearman": agreement,
            **compare(ours, peer, pairs=self.pairs, warmup=0),
        }

    def tracin_on_all_layers(self, n: int) -> dict[str, Any]:
        names = sorted({name.rpartition(".")[0] for name, _ in self.box.model.named_parameters()})
        return self.against(
            partial(self.tracin, n, names),
            partial(self.peer, TracInCP, n, checkpoints=[self.checkpoint], **SAMPLE_WISE),
            n,
        )

    def tracin_on_one_layer(self, make: Callable[..., Any], n: int, **settings: Any) -> dict[str, Any]:
        peer = partial(self.peer, make, n, checkpoints=[self.checkpoint], **settings)
        return self.against(partial(self.tracin, n, [LAST]), peer, n)

    def of(self, model: nn.Module) -> Bench:
        """The same of another model, in its dtype."""
        box = self.box.reopen(model)
        (x, y), (queries, labels) = self.train, self.queries
        return Bench(box, (x.to(box.dtype), y), (queries.to(box.dtype), labels), self.pairs)

    def without_bias(self) -> Bench:
        """Where the last layer's bias does not count: captum's fast variant leaves it out."""
        model = copy.deepcopy(self.box.model)
        getattr(model, LAST).bias.requires_grad_(False)
        return self.of(model)

    def double(self) -> Bench:
        """In float64."""
        return self.of(copy.deepcopy(self.box.model).double())

    def influence_functions(self, n: int) -> dict[str, Any]:
        """All eigenvectors of the last layer's Hessian, which is its Gauss-Newton matrix: the same definition.

        In float64: captum's own scores in float32 rank the examples otherwise.
        """
        double = self.double()
        agreement = {
            f"{name} in float32 against float64": min(map(spearman, scores(self, n), scores(double, n)))
            for name, scores in (("ours", Bench.our_influence), ("captum's", Bench.captum_influence))
        }
        ours, peer = partial(double.our_influence, n), partial(double.captum_influence, n)
        return {"damping": DAMPING, "smallest Spearman of": agreement, **double.against(ours, peer, n)}

    def our_influence(self, n: int) -> Tensor:
        return ub.influence.influence_functions(
            self.box, *self.queries, self.first(n), layers=[LAST], solver="exact", damping=DAMPING
        ).scores

    def captum_influence(self, n: int) -> Tensor:
        n_parameters = sum(p.numel() for p in getattr(self.box.model, LAST).parameters())
        return self.peer(
            NaiveInfluenceFunction, n, checkpoint=self.checkpoint, layers=[LAST], projection_dim=n_parameters,
            hessian_reg=n * DAMPING, **SAMPLE_WISE,
        )  # fmt: skip

    def tracin(self, n: int, layers: list[str]) -> Tensor:
        checkpoints = [self.checkpoint]
        return ub.influence.tracin(
            self.box, *self.queries, self.first(n), checkpoints=checkpoints, layers=layers
        ).scores

    def growth(self) -> dict[str, Any]:
        """Seconds for more and more training examples, and the power of their number that the time grows by."""
        names = sorted({name.rpartition(".")[0] for name, _ in self.box.model.named_parameters()})
        took = {n: seconds(partial(self.tracin, n, names)) for n in GROWTH}
        power = math.log(took[GROWTH[-1]] / took[GROWTH[0]]) / math.log(GROWTH[-1] / GROWTH[0])
        return {"seconds": {str(n): s for n, s in took.items()}, "power": power}


def early_checkpoint(x: Tensor, y: Tensor) -> tuple[nn.Module, Any]:
    """The CNN after some steps: at the end of its training most gradients are rounding, and so are their ranks."""
    torch.manual_seed(0)
    model, inputs = ub.zoo.load("mnist-cnn", weights=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for i in range(0, STEPS * BATCH, BATCH):
        optimizer.zero_grad()
        F.cross_entropy(model(inputs.encode(x[i : i + BATCH])), y[i : i + BATCH]).backward()
        optimizer.step()
    return model.eval(), inputs


def load(module: nn.Module, path: str) -> float:
    module.load_state_dict(torch.load(path, weights_only=True))
    return 1.0


def spearman(a: Tensor, b: Tensor) -> float:
    ranks = torch.stack([h.argsort().argsort().double() for h in (a, b)])
    return float(torch.corrcoef(ranks)[0, 1])


if __name__ == "__main__":
    main()
