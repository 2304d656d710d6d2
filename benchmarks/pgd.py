"""PGD against foolbox's LinfPGD: 500 MNIST test images, eps .3, 40 steps, a random start; ours as strong, and faster.

On the natural CNN, where examples that fool the model leave; on robust models, where few can; and with leaving switched
off (`early_stop=False`). Strength is checked first: ours leaves at most half a point more unfooled. foolbox gets frozen
parameters and the batch that suits it best, by the median of three runs.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import unboxed as ub
from harness import compare, seconds, write
from unboxed.errors import ModelError

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # foolbox imports a name that scipy has moved
    import foolbox

MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache
EPS, STEPS, STEP = 0.3, 40, 2.5 * 0.3 / 40
BATCHES = (500, 250, 100, 50)  # of foolbox
NETS = ("mnist-cnn", "mnist-judge", "mnist-robust")
Peer = Callable[[], Tensor]


def peer_of(box: ub.Box, x: Tensor, y: Tensor, batch: int) -> Peer:
    """foolbox's attack on all images, `batch` at a time; where it fooled the model (N,)."""
    inputs = box.inputs
    assert isinstance(inputs, ub.Pixels)
    model = foolbox.PyTorchModel(box.model, bounds=(0, 1), preprocessing={"mean": inputs.mean, "std": inputs.std})
    attack = foolbox.attacks.LinfPGD(steps=STEPS, abs_stepsize=STEP, random_start=True)

    def run() -> Tensor:
        parts = zip(x.split(batch), y.split(batch), strict=True)
        return torch.cat([attack(model, a, k, epsilons=EPS)[2] for a, k in parts])

    return run


def best_batch(peers: Mapping[int, Peer], runs: int = 3) -> int:
    """The batch at which the peer is fastest, by the median of some runs, in turn."""
    times = [[seconds(peer) for peer in peers.values()] for _ in range(runs)]
    return min(zip(map(median, zip(*times, strict=True)), peers, strict=True))[1]


def figures(name: str, x: Tensor, y: Tensor, pairs: int) -> dict[str, object]:
    model, inputs = ub.zoo.load(name)
    box = ub.Box(model.requires_grad_(False), inputs)
    peers = {batch: peer_of(box, x, y, batch) for batch in BATCHES}
    batch = best_batch(peers)

    def ours(keep_going: bool) -> Tensor:
        return ub.adversarial.pgd(box, x, y, eps=EPS, steps=STEPS, step=STEP, early_stop=not keep_going).success

    left = {"ours": accuracy(ours(False)), "ours_keep_going": accuracy(ours(True)), "foolbox": accuracy(peers[batch]())}
    if max(left["ours"], left["ours_keep_going"]) > left["foolbox"] + 0.005:
        raise SystemExit(f"{name}: ours is weaker: {left}")
    ratios = {
        way: compare(partial(ours, going), peers[batch], pairs=pairs, warmup=0)
        for way, going in (("dropping", False), ("keep_going", True))
    }
    times = {f"{way}_times_faster": round(1 / float(r["ratio"]), 2) for way, r in ratios.items()}
    return {**times, "robust_accuracy": left, "foolbox_batch": batch, **ratios}


def accuracy(fooled: Tensor) -> float:
    return round(1 - float(fooled.float().mean()), 4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--models", nargs="+", default=NETS, choices=NETS, help="with fewer models or images nothing is written"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    x, y = ub.data.mnist("test", Path(MNIST) if MNIST else None).first(given.images)
    found: dict[str, object] = {}
    for name in given.models:
        try:
            found[name] = figures(name, x, y, given.pairs)
        except ModelError as error:  # no weights yet
            print(f"{name}: {error}")
    what = f"PGD-{STEPS} within Linf {EPS} on {given.images} MNIST test images, against foolbox's LinfPGD"
    if tuple(given.models) == NETS and given.images == 500:
        write("pgd", {"what": what, **found}, packages=["foolbox"])
    else:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
