"""`attribution.kernel_shap` against captum's KernelShap: time at equal n, and runs of the model till seeds agree.

The same digits, superpixels and baseline (black), of which only superpixels that hide something play for both; the
answer in the limit is checked against exact values where there are few. Steadiness as in lime_weights.py; and the error
of one seed against the mean of many of ours.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np
import torch
from captum.attr import KernelShap
from torch import Tensor, nn

import unboxed as ub
from harness import compare, write
from lime_weights import IMAGES, RUNS, STEADY, N, Weights, by_batch, crossing, steadiness
from unboxed.engine.perturb.masking import make_maskable_inputs


class Normalized(nn.Module):
    """What captum needs around a model whose inputs are pixels."""

    def __init__(self, box: ub.Box) -> None:
        super().__init__()
        self.model, self.inputs = box.model, box.inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.inputs.encode(x))


def ours(box: ub.Box) -> Weights:
    def values(x: Tensor, of: Tensor, k: int, n: int, seed: int) -> np.ndarray:
        return ub.attribution.kernel_shap(box, x, k, segments=of, n_samples=n, seed=seed).values[0].double().numpy()

    return values


def captums(box: ub.Box, batch: int) -> Weights:
    shap = KernelShap(Normalized(box))

    def values(x: Tensor, of: Tensor, k: int, n: int, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = shap.attribute(
                x, torch.zeros_like(x), target=k, feature_mask=of[None, None].expand_as(x), n_samples=n,
                perturbations_per_eval=batch, return_input_shape=False,
            )  # fmt: skip
        return found[0].double().numpy()

    return values


def cases(box: ub.Box, images: Tensor) -> list[Any]:
    """(image, superpixels, class, those that hide something, the ten that count most); what hides nothing is one."""
    found = []
    for x in images.split(1):
        played = make_maskable_inputs(box, x, "slic", None)
        of = torch.unique(played.maskable_segment_index_by_value[0, 0], return_inverse=True)[
            1
        ]  # all that hides nothing together, as the last
        k = int(box.predict(x))
        hides = np.arange(int(of.max()) + 1) < played.n_maskable_segments_per_row[0]
        mean = np.mean([ours(box)(x, of, k, 4096, seed) for seed in (101, 102)], 0)
        top = np.isin(np.arange(len(hides)), np.argsort(-np.abs(mean))[:10])
        found.append((x, of, k, hides, top & hides))
    return found


def until_steady(work: Weights, known: list[Any], seeds: int, most: int) -> dict[str, Any]:
    curve: dict[int, tuple[float, float]] = {}
    for n in (n for n in RUNS if n <= most):
        found = [[work(x, of, k, n, seed) for seed in range(seeds)] for x, of, k, _, _ in known]
        curve[n] = (steadiness(found, [c[3] for c in known]), steadiness(found, [c[4] for c in known]))
        if min(curve[n]) >= STEADY:
            break
    names = ("hiding", "top_ten")
    reached = {name: crossing({n: c[i] for n, c in curve.items()}) for i, name in enumerate(names)}
    return {**reached, "curve": {str(n): c for n, c in curve.items()}}


def checked(box: ub.Box, known: list[Any], peer: Weights) -> dict[str, float]:
    """The distance of each from exact values, on nine squares, in units of the largest value."""
    x, _, k, _, _ = known[0]
    exact = ub.attribution.shapley(box, x, k)
    of, want = exact.segments[0], exact.values[0].double().numpy()
    found = {
        "ours": float(np.abs(ours(box)(x, of, k, 512, 0) - want).max() / np.abs(want).max()),
        "captum": float(np.abs(peer(x, of, k, 4096, 0) - want).max() / np.abs(want).max()),
    }
    if found["ours"] > 1e-5 or found["captum"] > 0.1:
        raise SystemExit(f"not the exact values: {found}")
    return found


def main() -> None:
    torch.set_num_threads(1)
    short = "--short" in sys.argv
    seeds, most, pairs = (3, 1536, 3) if short else (6, 4096, 7)
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    known = cases(box, ub.data.digits("test").first(4 if short else IMAGES)[0])
    found: dict[str, Any] = {
        "off": checked(box, known, captums(box, 64)),
        "superpixels": [int(c[3].sum()) for c in known],
    }
    x, of, k, _, _ = known[0]
    found["time_captum"] = by_batch(
        lambda b: compare(lambda: ours(box)(x, of, k, N, 0), lambda: captums(box, b)(x, of, k, N, 0), pairs=pairs),
        1,
        (10, 32, 64),
    )
    best = found["time_captum"]["best"]["batch"]
    for name, work in (("ours", ours(box)), ("captum", captums(box, best))):
        found[f"runs_{name}"] = until_steady(work, known, seeds, most)
    if short:
        print(json.dumps(found, indent=1))
    else:
        what = "KernelSHAP: time at 1,000 masks, and runs of the model until seeds agree (rank correlation 0.9)"
        write("shap", {"what": what, **found}, packages=["captum"])


if __name__ == "__main__":
    main()
