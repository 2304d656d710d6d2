"""How steady verdicts are: over random subsets of 8 examples, on untrained models, on photos; and what they cost.

Needs the real data of `models.py`; what is absent is left out by name. Subsets that are in the file are not measured
again, so that an interrupted run goes on; delete them to start over.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

import unboxed as ub
from harness import RESULTS, write
from models import ROOT, cifar, resnet20, squeezenet1_0
from unboxed import Box, attribution
from unboxed.checks.edges import sobel
from unboxed.checks.verdict import FAIL, INCONCLUSIVE, NOT_APPLICABLE, PASS, Verdict, verdict
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


def agreement(
    box: Box, x: Tensor, subsets: int, found: dict[str, Any], save: Callable[[], None], size: int = 8
) -> None:
    """Grades of the best-known methods over random subsets: how many are decided, and how many pairs of those agree.

    The ten methods are ranked as `rank_methods` does it: what they share is computed once for each subset.
    """
    draw, per_subset = torch.Generator().manual_seed(0), found.setdefault("per subset", [])
    rows = [torch.randperm(len(x), generator=draw)[:size] for _ in range(subsets)]
    for k in range(len(per_subset), subsets):
        start, seconds = time.process_time(), {}

        def timed(*args: Any, seconds: dict[str, float] = seconds, **kwargs: Any) -> Verdict:
            begin = time.process_time()
            judged = verdict(*args, **kwargs)
            seconds[judged.method] = round(time.process_time() - begin, 2)
            return judged

        ranked = ub.checks.rank_methods(box, x[rows[k]], {n: method(n) for n in BEST_KNOWN}, seed=k, verdict_fn=timed)
        per_subset.append({
            "cpu_s": round(time.process_time() - start, 2),
            "methods": {n: [v.grade, v.reason, seconds[v.method]] for n, v in ranked.items()},
        })  # fmt: skip
        print(k, per_subset[-1], flush=True)
        save()
    found |= summary(per_subset, size)


def summary(per_subset: list[dict[str, Any]], size: int) -> dict[str, Any]:
    """Figures by method, and of all."""
    figures: dict[str, Any] = {}
    for name in BEST_KNOWN:
        grades, reasons, seconds = zip(*(row["methods"][name] for row in per_subset), strict=True)
        figures[name] = {g: grades.count(g) for g in (PASS, FAIL, INCONCLUSIVE, NOT_APPLICABLE)}
        undecided = [r for g, r in zip(grades, reasons, strict=True) if g == INCONCLUSIVE]
        figures[name] |= {"undecided": dict(Counter(undecided)), "cpu_s": round(fmean(seconds), 2)}
    decided = sum(f[PASS] + f[FAIL] for f in figures.values())
    pairs = sum(len(list(itertools.combinations(range(f[PASS] + f[FAIL]), 2))) for f in figures.values())
    disagree = sum(f[PASS] * f[FAIL] for f in figures.values())
    return {
        "subsets": len(per_subset), "examples": size, "methods": figures,
        "decided": decided / (len(per_subset) * len(BEST_KNOWN)), "agreeing_pairs": 1 - disagree / max(1, pairs),
        "cpu_s_of_ten_methods": round(fmean(row["cpu_s"] for row in per_subset), 1),
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

    def save() -> None:
        if not args.fast:
            with contextlib.redirect_stdout(io.StringIO()):
                write("verdicts", {"what": __doc__.partition("\n")[0], **figures})

    for part, name, opened in (("mnist", "mnist_cnn", mnist_cnn), ("cifar", "resnet20", cifar_resnet)):
        if part in args.parts:
            agreement(*opened(200), subsets, figures.setdefault(name, {}), save)
    if "untrained" in args.parts:
        figures["untrained"] = untrained((mnist_cnn(8), cifar_resnet(8)), 1 if args.fast else 5)
    if "photos" in args.parts:
        figures["squeezenet_photos"] = on_photos(4 if args.fast else 12)
    save()
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
