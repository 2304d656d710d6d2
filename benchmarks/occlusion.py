"""`attribution.occlusion` against captum's Occlusion at its best batch size: the same maps, time and memory.

`python benchmarks/occlusion.py [NAME ...] [--pairs N]`; a ratio below 1: ours is faster, or takes less memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

import torch
from captum.attr import Occlusion
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import models
import unboxed as ub
from harness import Work, compare, seconds, write


@dataclass(frozen=True)
class Trial:
    open: Callable[[], tuple[nn.Module, ub.Pixels]]
    window: int
    stride: int
    sizes: tuple[int, ...]  # perturbations_per_eval that captum is tried with
    channels_last: bool
    pairs: int


TRIALS = {
    "vgg16": Trial(models.vgg16, 32, 16, (1, 2, 4, 8, 16), channels_last=True, pairs=3),
    "resnet18": Trial(models.resnet18, 32, 16, (4, 8, 16, 32), channels_last=True, pairs=7),
    "mnist-cnn": Trial(
        lambda: ub.zoo.load("mnist-cnn"), 5, 1, (16, 32, 64, 128, 256, 576), channels_last=False, pairs=21
    ),
}


class Normalized(nn.Module):
    """What captum needs around a model whose inputs are pixels."""

    def __init__(self, box: ub.Box) -> None:
        super().__init__()
        self.model, self.inputs = box.model, box.inputs
        self.layout = torch.channels_last if box.channels_last else torch.contiguous_format

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.inputs.encode(x).contiguous(memory_format=self.layout))


def figures(name: str, pairs: int | None) -> dict[str, object]:
    trial = TRIALS[name]
    model, inputs = trial.open()
    model = model.to(memory_format=torch.channels_last) if trial.channels_last else model
    box = ub.Box(model, inputs, channels_last=trial.channels_last)
    x = torch.rand(1, *inputs.shape, generator=torch.Generator().manual_seed(0))
    y = int(box.predict(x))
    peer, window, stride = Occlusion(Normalized(box)), trial.window, trial.stride

    def ours() -> Tensor:
        return ub.attribution.occlusion(box, x, y, window=window, stride=stride).map

    def captum(size: int, stride: int = stride) -> Tensor:
        sides = {"sliding_window_shapes": (len(x[0]), window, window), "strides": (len(x[0]), stride, stride)}
        with torch.no_grad():
            return peer.attribute(x, target=y, perturbations_per_eval=size, **sides)

    def check() -> None:  # drops are differences of scores, and can't be nearer than those
        want, score = captum(best), float(box(x)[0, y])
        if (difference := float((ours() - want).abs().max())) > 1e-5 * max(abs(score), float(want.abs().max())):
            raise SystemExit(f"the maps differ by {difference}, of a score of {score}")

    tried = {size: min(_each(captum, size, trial) for _ in range(2)) for size in trial.sizes}
    best = min(tried, key=lambda size: tried[size])
    found = compare(ours, lambda: captum(best), pairs=pairs or trial.pairs, check=check, warmup=1)
    memory = peak(ours), peak(lambda: captum(best))
    return {
        "window": window, "stride": stride, "channels_last": trial.channels_last, "captums_best_batch": best, **found,
        "times_faster": 1 / found["ratio"], "ours_peak_mb": memory[0] / 2**20, "peer_peak_mb": memory[1] / 2**20,
        "memory_ratio": memory[0] / memory[1],
    }  # fmt: skip


def _each(captum: Callable[[int, int], Tensor], size: int, trial: Trial) -> float:
    """Seconds a position: of a small model at all of them, else on fewer."""
    return seconds(lambda: captum(size, trial.stride if trial.stride == 1 else min(trial.window, 2 * trial.stride)))


def peak(work: Work) -> int:
    """The most bytes that torch's tensors held at a time, beyond what they held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        work()
    events = [e for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, most = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", help=", ".join(TRIALS))
    parser.add_argument("--pairs", type=int)
    asked = parser.parse_args()
    torch.set_num_threads(1)  # where cores are shared, two threads that wait for one another drown what is measured
    found = {name: figures(name, asked.pairs) for name in asked.names or TRIALS}
    name = "-".join(["occlusion", *(asked.names if len(found) < len(TRIALS) else [])])  # a part stands by itself
    write(
        name,
        {"what": "occlusion against captum's Occlusion at its best batch size", **found},
        packages=["captum"],
    )


if __name__ == "__main__":
    main()
