"""Which attribution methods are faithful to the MNIST CNN? Every metric of `checks` on every method of `attribution`.

Methods are found by their cards and run with their defaults, but for fewer samples where `FEWER` says so; those that do
not run as `method(box, x, y)` on this model are listed with the reason.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

import unboxed as ub
from harness import write
from unboxed import checks
from unboxed.cards import Card
from unboxed.engine.results import attribution_map
from unboxed.errors import UnboxedError, UnboxedWarning

FEWER: dict[str, dict[str, Any]] = {"rise": {"n_samples": 200}, "lime": {"n_samples": 200},
                                    "kernel_shap": {"n_samples": 200}}  # fmt: skip
MOVING = 5.0  # seconds for all maps, up to which max-sensitivity is asked for
LOCAL = ("gradient", "smoothgrad", "guided_backprop", "deconvnet", "guided_grad_cam")


def settled(card: Card) -> Callable[..., Any]:
    """The method with what it can't do without, and fewer samples where a hundred images would take too long."""
    name = card.method.__name__
    needed = {"references": ub.data.digits("train").first(50).x} if name == "expected_gradients" else {}
    return partial(card.method, **needed, **FEWER.get(name, {}))


def mean(values: Tensor) -> float:
    return round(float(values.double().nanmean()), 4)


def figures(box: ub.Box, x: Tensor, y: Tensor, maps: Tensor, local: bool) -> dict[str, float]:
    """All that is asked of the maps themselves; means over the images.

    Squares and subsets are removed, which shares of the score speak of: a local map is multiplied by x for those two.
    """
    shares = maps * x if local and maps.shape == x.shape else maps
    infidelity = checks.infidelity(box, x, shares, y, perturbation="square", fit_scale=True, n_samples=40)
    few, many = checks.sensitivity_n(box, x, shares, y, sizes=[8, 78], n_samples=30).mean
    found = {
        "deletion_auc": mean(checks.deletion(box, x, maps, y, n_steps=28).auc),
        "insertion_auc": mean(checks.insertion(box, x, maps, y, n_steps=28).auc),
        "infidelity_squares": mean(infidelity.infidelity),
        "sensitivity_8": mean(few),
        "sensitivity_78": mean(many),
        "energy_on_ink": mean(checks.energy_inside(maps, x[:, 0] > 0.5)),
        "pointing_at_ink": mean(checks.pointing_game(maps, x[:, 0] > 0.5)),
    }
    for order in ("morf", "lerf"):
        found[f"road_{order}"] = mean(checks.road(box, x, maps, y, order=order).accuracy)  # type: ignore[arg-type]
    return found


def row(box: ub.Box, x: Tensor, y: Tensor, card: Card) -> dict[str, float] | str:
    method = settled(card)
    try:
        start = time.perf_counter()
        maps = attribution_map(method(box, x, y))
        seconds = time.perf_counter() - start
        found = figures(box, x, y, maps, card.method.__name__ in LOCAL)
    except (UnboxedError, TypeError) as error:
        return f"{type(error).__name__}: {error}"[:200]
    if seconds < MOVING:
        moved = checks.max_sensitivity(box, x, method, y, n_samples=3, relative=True)
        found["max_sensitivity"] = mean(moved)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--methods", help="their names, with commas between; all by default")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UnboxedWarning)
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    x, y = ub.data.digits("test").first(given.images)
    right = box.predict(x) == y
    x, y = x[right], y[right]
    rows: dict[str, Any] = {"random": figures(box, x, y, checks.random_maps(box, x), local=False)}
    for card in ub.cards():
        name = card.method.__name__
        if card.family == "attribution" and (given.methods is None or name in given.methods.split(",")):
            rows[name] = row(box, x, y, card)
            print(name, rows[name], flush=True)
    what = "metrics of faithfulness on the MNIST CNN (means over the images that it names right)"
    write("faithfulness", {"what": what, "images": len(x), "fewer_samples": FEWER, "times_x": LOCAL, "methods": rows})


if __name__ == "__main__":
    main()
