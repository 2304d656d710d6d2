"""Silencing every channel of a layer of a 56-layer residual model, against a whole forward for each pair. Same logits.

CPU time, so other work on the machine counts for little; and FLOPs, as whole forwards of all images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

import unboxed as ub
from harness import write
from models import resnet56
from unboxed.engine.read.edited_runs import _VariantRunner
from unboxed.model.layers import FlopCounter

LAYERS = ("layer3.0.conv1", "layer3.4.conv1", "layer3.8.conv1", "layer3.8")
N, PAIRS = 16, 5


@contextmanager
def in_full() -> Iterator[None]:
    """Each pair of image and channel runs through the whole model."""
    cheapest = _VariantRunner.cheapest_exact_run_mode
    _VariantRunner.cheapest_exact_run_mode = lambda self, count: "whole"  # type: ignore[method-assign]
    try:
        yield
    finally:
        _VariantRunner.cheapest_exact_run_mode = cheapest  # type: ignore[method-assign]


def main() -> None:
    torch.set_num_threads(1)
    box = ub.Box(*resnet56())
    x = torch.rand(N, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    figures = {layer: compared(box, x, layer) for layer in LAYERS}
    write(
        "ablation", {"what": f"64 channels of a layer of a 56-layer residual model silenced on {N} images", **figures}
    )


def compared(box: ub.Box, x: Tensor, layer: str) -> dict[str, float]:
    """Seconds of CPU and forwards of both; exits where their logits differ."""

    def ours() -> Tensor:
        return ub.activations.ablation(box, x, layer, target=0).ablated_logits

    def whole() -> Tensor:
        with in_full():
            return ours()

    a, b = ours(), whole()
    off = float((a - b).abs().max() / b.abs().max())
    if off > 1e-5:
        raise SystemExit(f"the logits differ by {off:.1e} of the largest")
    seconds = [(_cpu(ours), _cpu(whole)) if i % 2 else (_cpu(whole), _cpu(ours))[::-1] for i in range(PAIRS)]
    return {
        "ratio": statistics.median(s / w for s, w in seconds),
        "ours_s": statistics.median(s for s, _ in seconds),
        "whole_s": statistics.median(w for _, w in seconds),
        "ours_forwards": _flops(ours) / (box.flops_per_example * len(x)),
        "whole_forwards": _flops(whole) / (box.flops_per_example * len(x)),
        "largest_difference": off,
    }


def _cpu(work: Callable[[], Tensor]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def _flops(work: Callable[[], Tensor]) -> float:
    with FlopCounter() as counter:
        work()
    return float(counter.total)


if __name__ == "__main__":
    main()
