"""Adebayo et al. 2018 on the MNIST CNN: whose maps change when the model's layers are drawn anew, and whose do not.

Cascading and independent randomization of every layer, label randomization (on the embedded digits), edge control, and
the controls of random inputs and of constant models, for every method; with what was expected and whether it came.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import unboxed as ub
from harness import write
from unboxed import Box, attribution, checks
from unboxed.checks.edges import sobel
from unboxed.engine.rank_correlation import spearman
from unboxed.training import accuracy, fit

MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; without it, the embedded digits
SETTINGS: Mapping[str, dict[str, Any]] = {"smoothgrad": {"n_samples": 15}, "integrated_gradients": {"n_steps": 16}}
NAMES = ("gradient", "smoothgrad", "grad_cam", "guided_backprop", "guided_grad_cam", "deconvnet",
         "integrated_gradients", "gradient_x_input", "lrp", "deep_lift")  # fmt: skip
FIGURES = ("signed", "absolute", "ssim", "hog")
Means = dict[str, dict[str, float]]  # figure by layer


def picture(box: Box, x: Tensor, target: Any) -> Tensor:
    return sobel(x).to(x)


def methods() -> dict[str, Callable[..., Any]]:
    known = {n: partial(getattr(attribution, n), **SETTINGS.get(n, {})) for n in NAMES}
    return {**known, "edge detector": picture}


def images(n: int) -> tuple[Box, Tensor]:
    """Test images that the model names right."""
    known = ub.data.mnist("test", Path(MNIST)) if MNIST else ub.data.digits("test")
    box = Box(*ub.zoo.load("mnist-cnn" if MNIST else "digits-cnn"))
    x, y = known.first(2 * n)
    return box, x[box.predict(x) == y][:n]


def randomized(box: Box, x: Tensor, method: Callable[..., Any], mode: Any, seeds: int) -> tuple[Means, dict[str, Any]]:
    """Each figure's mean over images and seeds, by layer; and its quantiles over images with the top layer anew."""
    found = [checks.randomization(box, x, method, mode=mode, seed=s, keep_maps=True) for s in range(seeds)]
    whole = {f: torch.stack([getattr(r, f) for r in found]) for f in FIGURES}  # (seeds, L, N)
    whole["where_both_speak"] = torch.stack([torch.stack([_shared(r.original, m) for m in r.maps]) for r in found])
    means = {
        layer: {f: rounded(h[:, i].nanmean()) for f, h in whole.items()}
        | {"between_seeds": rounded(whole["signed"][:, i].nanmean(1).std(correction=0))}
        for i, layer in enumerate(found[0].layers)
    }
    blank = torch.stack([r.is_blank[0] for r in found])
    return means, {f: quantiles(h[:, 0]) for f, h in whole.items()} | {"blank": rounded(blank.double().mean())}


def _shared(a: Tensor, b: Tensor) -> Tensor:
    """The signed rank correlation (N,) over positions where neither map is zero; NaN where those are few."""
    pairs = [(p[w], q[w]) for p, q in zip(a.flatten(1), b.flatten(1), strict=True) for w in [(p != 0) & (q != 0)]]
    few = torch.full((1,), torch.nan, dtype=torch.float64)
    return torch.cat([spearman(p[None], q[None]) if len(p) >= 20 else few for p, q in pairs])


def quantiles(h: Tensor) -> list[float]:
    """The 10th, 50th and 90th percentile over images."""
    h = h.flatten()
    at = h.new_tensor([0.1, 0.5, 0.9])
    return [rounded(v) for v in h.nanquantile(at)]


def rounded(value: Any) -> float:
    return round(float(value), 3)


def controls(box: Box, x: Tensor, method: Callable[..., Any]) -> dict[str, Any]:
    edges, random = checks.edge_control(box, x, method), checks.random_input(box, x, method)
    constant = checks.constant_model(box, x, method)
    own = getattr(result := method(box, x, box.predict(x)), "map", result)
    other = checks.map_similarity(own, own.roll(1, 0)).mean()
    return {
        "edges": {f: rounded(v) for f, v in edges.map.mean().items()},
        "edges_of_gradient": {f: rounded(v) for f, v in edges.gradient.mean().items()},
        "shuffled_pixels": {f: rounded(v) for f, v in random.shuffled.mean().items()},
        "noise": {f: rounded(v) for f, v in random.noise.mean().items()},
        "strength_on_noise": rounded(random.norm_ratio_noise.nanmedian()),
        "blind_model": rounded(constant.constant_input.median()),
        "mute_model": rounded(constant.constant_output.median()),
        "another_image": {f: rounded(v) for f, v in other.items()},
    }


def expected(table: Mapping[str, Mapping[str, Means]], top: list[str]) -> dict[str, bool]:
    """What Adebayo et al. found, as it is to be seen here, when the upper layers are drawn anew."""

    def over(method: str, figure: str, layers: list[str] | None = None) -> list[float]:
        rows = table[method]["cascading"]
        return [rows[layer][figure] for layer in layers or rows]

    said = {}
    for method in ("gradient", "smoothgrad", "grad_cam"):
        if method in table:
            said[f"{method} changes (signed rank below 0.5 at every layer)"] = max(over(method, "signed")) < 0.5
    for method in ("guided_backprop", "guided_grad_cam"):
        if method in table:
            said[f"{method} stays (SSIM above 0.5, upper layers anew)"] = min(over(method, "ssim", top)) > 0.5
    if "guided_grad_cam" in table:
        both = min(over("guided_grad_cam", "where_both_speak", top))
        said["guided_grad_cam stays where Grad-CAM lets it speak (signed rank above 0.5)"] = both > 0.5
    for method in ("integrated_gradients", "gradient_x_input"):
        if method in table:
            signed, absolute = over(method, "signed"), over(method, "absolute")
            said[f"{method}: the signed rank falls to about 0 (|r| < 0.2)"] = max(map(abs, signed)) < 0.2
            said[f"{method}: the absolute rank stays (above 0.8)"] = min(absolute) > 0.8
            said[f"{method}: SSIM stays above the gradient's by 0.2"] = all(
                a - b > 0.2 for a, b in zip(over(method, "ssim"), over("gradient", "ssim"), strict=True)
            )
    return said


def labels(n: int, epochs: int) -> dict[str, Any]:
    """Two models alike, taught the digits' true labels and shuffled ones."""
    x, y = ub.data.digits("train").tensors()

    def taught(labels: Tensor) -> Box:
        model, inputs = ub.zoo.load("digits-cnn", weights=None)
        model.dropout.p = 0.0
        fit(model, inputs, TensorDataset(x, labels), epochs=epochs, lr=2e-3, quiet=True)
        return Box(model, inputs)

    true, random = checks.train_twice(taught, y)
    learned = [rounded(accuracy(b, TensorDataset(x, t))) for b, t in ((true, y), (random, checks.shuffle_labels(y)))]
    shown = ub.data.digits("test").first(n)[0]
    rows = {}
    for name, method in methods().items():
        found = checks.label_randomization(true, random, shown, method).mean()
        rows[name] = {f: rounded(v) for f, v in found.items()}
    return {"training_accuracy": dict(zip(("true", "shuffled"), learned, strict=True)), "methods": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--only", nargs="*", help="some of the methods")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    box, x = images(chosen.images)
    table: dict[str, dict[str, Any]] = {}
    for name, method in methods().items():
        if chosen.only is None or name in chosen.only:
            table[name] = {}
            for mode in ("cascading", "independent"):
                means, spread = randomized(box, x, method, mode, chosen.seeds)
                table[name] |= {mode: means, f"{mode}_top_layer_quantiles": spread}
            table[name] |= controls(box, x, method)
            print(
                name, {m: {k: list(v.values()) for k, v in table[name][m].items()} for m in ("cascading",)}, flush=True
            )
    layers = list(table["edge detector"]["cascading"]) if "edge detector" in table else []
    figures = {
        "what": "likeness of maps to the trained model's when layers are drawn anew (mean over images and seeds)",
        "data": "mnist" if MNIST else "digits",
        "images": len(x),
        "seeds": chosen.seeds,
        "expected": expected(table, layers[:2]) if layers and "gradient" in table else {},
        "methods": table,
        "shuffled_labels_digits": labels(chosen.images, chosen.epochs) if chosen.only is None else {},
    }
    write("randomization", figures, packages=("scikit-image", "scipy"))


if __name__ == "__main__":
    main()
