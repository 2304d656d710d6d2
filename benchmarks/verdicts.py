"""How steady verdicts are: over random subsets of 8 examples, on untrained models, on photos; and what they cost.

Needs the real data of `models.py`; what is absent is left out by name.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import unboxed as ub
from harness import RESULTS, write
from models import ROOT, cifar, resnet20, squeezenet1_0
from unboxed import Box, attribution
from unboxed.checks.edges import sobel
from unboxed.checks.verdict import FAIL, INCONCLUSIVE, NOT_APPLICABLE, PASS, verdict
from unboxed.engine.randomized import randomize_all_layers
from unboxed.inputs.image_files import read_image

SETTINGS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"n_steps": 16}, "smoothgrad": {"n_samples": 15}, "lime": {"n_samples": 200},
}  # fmt: skip
BEST_KNOWN = (
    "gradient", "gradient_x_input", "integrated_gradients", "smoothgrad", "guided_backprop", "grad_cam", "lrp",
    "deep_lift", "occlusion", "lime",
)  # fmt: skip
ON_PHOTOS: dict[str, dict[str, Any]] = {
    "grad_cam": {}, "integrated_gradients": {"n_steps": 16}, "occlusion": {"window": 48, "stride": 32},
}  # fmt: skip
Method = Callable[[Box, Tensor, Any], Any]


def method(name: str) -> Method:
    return partial(getattr(attribution, name), **SETTINGS.get(name, {}))


def mnist_cnn(n: int) -> tuple[Box, Tensor]:
    box = Box(*ub.zoo.load("mnist-cnn"))
    return box, correct(box, *ub.data.mnist("test", ROOT / "mnist").first(2 * n))[:n]


def cifar_resnet(n: int) -> tuple[Box, Tensor]:
    box = Box(*resnet20())
    return box, correct(box, *cifar(2 * n))[:n]


def correct(box: Box, x: Tensor, y: Tensor) -> Tensor:
    return x[box.predict(x) == y]


def photos(n: int) -> tuple[Box, Tensor]:
    """Photos as the model takes them, 224 pixels wide."""
    box = Box(*squeezenet1_0())
    paths = [path for path in sorted((ROOT / "photos").iterdir()) if path.suffix in (".png", ".jpg", ".jpeg")]
    return box, torch.stack([read_image(path, box.inputs) for path in paths[:n]])


def agreement(box: Box, x: Tensor, subsets: int, size: int = 8) -> dict[str, Any]:
    """Grades of the best-known methods over random subsets: how many are decided, and how many pairs of those agree."""
    draw, figures = torch.Generator().manual_seed(0), {}
    rows = [torch.randperm(len(x), generator=draw)[:size] for _ in range(subsets)]
    for name in BEST_KNOWN:
        start = time.process_time()
        grades = [verdict(box, x[r], method(name), seed=k).grade for k, r in enumerate(rows)]
        figures[name] = {g: grades.count(g) for g in (PASS, FAIL, INCONCLUSIVE, NOT_APPLICABLE)}
        figures[name]["cpu_s"] = round((time.process_time() - start) / subsets, 2)
        print(name, figures[name], flush=True)
    decided = sum(f[PASS] + f[FAIL] for f in figures.values())
    pairs = sum(len(list(itertools.combinations(range(f[PASS] + f[FAIL]), 2))) for f in figures.values())
    disagree = sum(f[PASS] * f[FAIL] for f in figures.values())
    return {
        "subsets": subsets, "examples": size, "methods": figures, "decided": decided / (subsets * len(BEST_KNOWN)),
        "agreeing_pairs": 1 - disagree / max(1, pairs),
        "cpu_s_of_ten_methods": round(sum(f["cpu_s"] for f in figures.values()), 1),
    }  # fmt: skip


def untrained(models: Iterable[tuple[Box, Tensor]], copies: int) -> dict[str, Any]:
    """Grades of all candidates on models whose layers are all randomized."""
    grades: list[str] = []
    for box, x in models:
        for k in range(copies):
            copy = randomize_all_layers(box, 100 + k)
            grades += [verdict(copy, x[:8], method(name), seed=k).grade for name in BEST_KNOWN]
    counts = {g: grades.count(g) for g in (PASS, FAIL, INCONCLUSIVE, NOT_APPLICABLE)}
    return {**counts, "failing": counts[FAIL] / max(1, len(grades) - counts[NOT_APPLICABLE])}


def on_photos(n: int) -> dict[str, Any]:
    """What three methods get on photos, and what noise, edges and an untrained model's maps get."""
    box, x = photos(n)
    copy = randomize_all_layers(box, 0)
    methods: dict[str, Method] = {
        **{name: on_photos_method(name) for name in ON_PHOTOS},
        "noise": lambda box, x, target: ub.checks.random_maps(box, x),
        "edges": lambda box, x, target: sobel(x).to(x),
        **{f"{name} of an untrained model": _of(copy, name) for name in ON_PHOTOS},
    }
    figures: dict[str, Any] = {}
    for name, m in methods.items():
        start = time.process_time()
        found = verdict(box, x, m)
        figures[name] = {
            "grade": found.grade,
            "reason": found.reason,
            "cpu_s": round(time.process_time() - start, 1),
            "tests": len(found.tests),
            "not tested": [t.name for t in found.tests if t.grade == NOT_APPLICABLE],
            "figures": {k: round(v, 3) for k, v in found.figures.items() if v == v},
        }
        print(name, figures[name], flush=True)
    n_tests = sum(f["tests"] for f in figures.values())
    n_not_tested = sum(len(f["not tested"]) for f in figures.values())
    return {"photos": len(x), "methods": figures, "not_tested_share": n_not_tested / n_tests}


def _of(copy: Box, name: str) -> Method:
    return lambda box, x, target: on_photos_method(name)(copy, x, target)


def on_photos_method(name: str) -> Method:
    return partial(getattr(attribution, name), **ON_PHOTOS[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="few subsets, to see that it runs")
    parser.add_argument("--parts", nargs="*", default=["mnist", "cifar", "untrained", "photos"])
    args = parser.parse_args()
    file, subsets = RESULTS / "verdicts.json", 3 if args.fast else 20
    figures: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if "mnist" in args.parts:
        figures["mnist_cnn"] = agreement(*mnist_cnn(200), subsets)
    if "cifar" in args.parts:
        figures["resnet20"] = agreement(*cifar_resnet(200), subsets)
    if "untrained" in args.parts:
        figures["untrained"] = untrained((mnist_cnn(8), cifar_resnet(8)), 1 if args.fast else 5)
    if "photos" in args.parts:
        figures["squeezenet_photos"] = on_photos(4 if args.fast else 12)
    if not args.fast:
        write("verdicts", {"what": __doc__.partition("\n")[0], **figures})
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
