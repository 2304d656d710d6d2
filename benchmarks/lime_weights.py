"""`attribution.lime` against the lime package and captum's Lime: time at equal n, and runs of the model till seeds
agree.

The same images, superpixels, baseline (black) and kernel; the same answer in the limit, which is checked first. How
steady: Spearman's rank correlation of the weights of two seeds, over the superpixels that hide anything (others get
noise from the peers and one same weight from ours) and over the ten heaviest; the mean over pairs of seeds and images.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import torch
from captum.attr import Lime
from lime.lime_image import LimeImageExplainer
from scipy.stats import spearmanr
from torch import Tensor, nn

import models
import unboxed as ub
from harness import compare, write
from unboxed.engine.perturb.masking import make_maskable_inputs
from unboxed.engine.perturb.segments import feature_groups

IMAGES, N = 10, 1000
STEADY = 0.9
RUNS = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096)
Weights = Callable[[Tensor, Tensor, int, int, int], np.ndarray]


class Probabilities(nn.Module):
    """What the peers need around a model whose inputs are pixels."""

    def __init__(self, box: ub.Box) -> None:
        super().__init__()
        self.model, self.inputs = box.model, box.inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self.inputs.encode(x)).softmax(1)


def ours(box: ub.Box) -> Weights:
    def weights(x: Tensor, of: Tensor, k: int, n: int, seed: int) -> np.ndarray:
        return ub.attribution.lime(box, x, k, segments=of, n_samples=n, seed=seed).weights[0].double().numpy()

    return weights


def package(box: ub.Box, batch: int) -> Weights:
    model = Probabilities(box)

    @torch.no_grad()
    def classify(images: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float()
        return model(x if box.inputs.shape[0] == 3 else x[:, :1]).double().numpy()

    def weights(x: Tensor, of: Tensor, k: int, n: int, seed: int) -> np.ndarray:
        image = x[0].expand(3, -1, -1).permute(1, 2, 0).double().numpy()
        found = LimeImageExplainer(kernel_width=0.25, random_state=seed).explain_instance(
            image, classify, labels=(k,), top_labels=None, hide_color=0, num_samples=n, batch_size=batch,
            segmentation_fn=lambda image: of.numpy(),
        )  # fmt: skip
        return np.array([w for _, w in sorted(found.local_exp[k])])

    return weights


def similarity(original: Tensor, perturbed: Tensor, z: Tensor, **settings: Any) -> Tensor:
    """The lime package's kernel, on masks: captum's own is of images."""
    d = 1 - (z.float().mean(1)).sqrt()
    return torch.exp(-(d**2) / 0.25**2).sqrt()


def ridge() -> Any:
    from captum._utils.models.linear_model import SkLearnLinearModel

    return SkLearnLinearModel(sklearn_module="linear_model.Ridge", alpha=1.0)


def captums(box: ub.Box, batch: int) -> Weights:
    lime = Lime(Probabilities(box), interpretable_model=ridge(), similarity_func=similarity)

    def weights(x: Tensor, of: Tensor, k: int, n: int, seed: int) -> np.ndarray:
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = lime.attribute(
                x, torch.zeros_like(x), target=k, feature_mask=of[None, None].expand_as(x), n_samples=n,
                perturbations_per_eval=batch, return_input_shape=False,
            )  # fmt: skip
        return found[0].double().numpy()

    return weights


def steadiness(found: list[list[np.ndarray]], kept: list[np.ndarray]) -> float:
    """The mean rank correlation between seeds, over images: found[image][seed], on the superpixels kept[image]."""
    each = [
        spearmanr(a[keep], b[keep])[0] for own, keep in zip(found, kept, strict=True) for a, b in combinations(own, 2)
    ]
    return float(np.nanmean(each))


def until_steady(work: Weights, cases: list[Any], seeds: int, most: int) -> dict[str, Any]:
    """How many runs of the model an image takes until seeds agree, by interpolation; None where they do not by
    `most`."""
    curve: dict[int, tuple[float, float]] = {}
    for n in (n for n in RUNS if n <= most):
        found = [[work(x, of, k, n, seed) for seed in range(seeds)] for x, of, k, _, _ in cases]
        curve[n] = (steadiness(found, [c[3] for c in cases]), steadiness(found, [c[4] for c in cases]))
        print("   ", n, curve[n], file=sys.stderr, flush=True)
        if min(curve[n]) >= STEADY:
            break
    names = ("hiding", "top_ten")
    return {name: crossing({n: c[i] for n, c in curve.items()}) for i, name in enumerate(names)} | {
        "curve": {str(n): c for n, c in curve.items()}
    }


def crossing(curve: dict[int, float]) -> float | None:
    """Where the curve first reaches STEADY, between points on a logarithmic scale."""
    before: tuple[int, float] | None = None
    for n, value in curve.items():
        if value >= STEADY:
            if before is None:
                return float(n)
            share = (STEADY - before[1]) / (value - before[1])
            return float(before[0] * (n / before[0]) ** share)
        before = n, value
    return None


def cases(box: ub.Box, images: Tensor, segments: str) -> list[Any]:
    """(image, segments, class, those that hide something, the ten that weigh most in the long run)."""
    found = []
    for x in images.split(1):
        of = feature_groups(box, x, segments).ids[0, 0]
        k = int(box.predict(x))
        hides = make_maskable_inputs(box, x, of, None).active[0].numpy()
        mean = np.mean([ours(box)(x, of, k, 4096, seed) for seed in (101, 102)], 0)
        top = np.isin(np.arange(len(hides)), np.argsort(-np.abs(mean * hides))[:10])
        found.append((x, of, k, hides, top & hides))
    return found


def checked(works: dict[str, Weights], case: Any, n: int) -> dict[str, float]:
    """All have the same solution in the limit: the distance of each from ours, in units of the largest weight."""
    x, of, k, _, _ = case
    mean = {name: np.mean([work(x, of, k, n, 50 + seed) for seed in range(4)], 0) for name, work in works.items()}
    scale = np.abs(mean["ours"]).max()
    off = {name: float(np.abs(w - mean["ours"]).max() / scale) for name, w in mean.items() if name != "ours"}
    if max(off.values()) > 0.15:
        raise SystemExit(f"the answers differ: {off}")
    return off


def against(box: ub.Box, case: Any, peer: Weights, pairs: int) -> dict[str, float | int]:
    x, of, k, _, _ = case
    return compare(lambda: ours(box)(x, of, k, N, 0), lambda: peer(x, of, k, N, 0), pairs=pairs)


def by_batch(timed: Callable[[int], dict[str, float | int]], usual: int, batches: tuple[int, ...]) -> dict[str, Any]:
    """Against the peer at the batch size that it takes by itself, and at its best one."""
    each = {b: timed(b) for b in dict.fromkeys((usual, *batches))}
    best = min(each, key=lambda b: each[b]["peer_ms"])
    return {"usual": {**each[usual], "batch": usual}, "best": {**each[best], "batch": best}}


def figures(box: ub.Box, images: Tensor, segments: str, *, seeds: int, most: int, pairs: int) -> dict[str, Any]:
    known = cases(box, images, segments)
    batches = (10, 32, 64) if images.shape[-1] < 64 else (2, 4, 10)
    works: dict[str, Weights] = {
        "ours": ours(box),
        "lime": package(box, batches[1]),
        "captum": captums(box, batches[1]),
    }
    found: dict[str, Any] = {"off": checked(works, known[0], most), "superpixels": [int(c[3].sum()) for c in known]}
    for name, build, usual in (("lime", package, 10), ("captum", captums, 1)):
        found[f"time_{name}"] = by_batch(
            lambda b, build=build: against(box, known[0], build(box, b), pairs), usual, batches
        )
    for name, work in works.items():
        print(name, file=sys.stderr)
        found[f"runs_{name}"] = until_steady(work, known, seeds, most)
    return found


def main() -> None:
    torch.set_num_threads(1)
    short = "--short" in sys.argv
    settings: dict[str, Any] = {"seeds": 3 if short else 6, "most": 1536 if short else 4096, "pairs": 3 if short else 7}
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    images = ub.data.digits("test").first(4 if short else IMAGES)[0]
    found: dict[str, Any] = {"digits": figures(box, images, "slic", **settings)}
    if models.ROOT.is_dir() and "--photos" in sys.argv:
        model, inputs = models.squeezenet1_0()
        photos = torch.cat([models.photo(name, inputs) for name in ("bird.png", "puppy.jpg", "parrot.jpg")])
        few = {**settings, "seeds": 3, "most": 1024, "pairs": 3}
        found["photos"] = figures(ub.Box(model, inputs), photos, "quickshift", **few)
    what = "LIME: time at 1,000 masks, and runs of the model until seeds agree (rank correlation 0.9)"
    if short:
        print(json.dumps(found, indent=1))
    else:
        write("lime", {"what": what, **found}, packages=["lime", "captum", "scikit-learn"])


if __name__ == "__main__":
    main()
