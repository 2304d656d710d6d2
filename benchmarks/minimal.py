"""DeepFool and Carlini & Wagner's attack against foolbox's, on the natural MNIST CNN: strength first, then speed.

Wanted: as many images fooled, at a median distance no larger, in a third of the time. Both get the same images, those
that the model takes for what they are, and the same budget (C&W: 5 values of c, 500 steps each, foolbox's own step).
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import unboxed as ub
from harness import compare, write

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox

MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache
WANTED = 3.0  # times as fast
Found = tuple[Tensor, Tensor]  # images (N, ...) and which of them fool (N,)


def images(box: ub.Box, n: int) -> Found:
    """The first n test images that the model takes for what they are."""
    x, y = ub.data.mnist("test", Path(MNIST) if MNIST else None).first(n + n // 10 + 5)
    right = box.predict(x) == y
    return x[right][:n], y[right][:n]


def peer(box: ub.Box) -> Any:
    of = {"mean": box.inputs.mean, "std": box.inputs.std}
    return foolbox.PyTorchModel(box.model, bounds=(0, 1), preprocessing=of)


def strength(box: ub.Box, x: Tensor, y: Tensor, found: Found, norm: str) -> dict[str, float]:
    """Of the images themselves, whatever an attack says of them: a failure lies at an infinite distance."""
    z, success = found
    d = (z - x).flatten(1)
    d = d.norm(dim=1) if norm == "l2" else d.abs().amax(1)
    fooled = success & (box.predict(z) != y) & (z >= 0).flatten(1).all(1) & (z <= 1).flatten(1).all(1)
    median = d.where(fooled, torch.inf).median()
    return {"fooled": float(fooled.double().mean()), "median": float(median), "mean": float(d[fooled].mean())}


def figures(
    box: ub.Box, n: int, norm: str, attack: Callable[..., ub.adversarial.Adversarial], theirs: Any, pairs: int
) -> dict[str, Any]:
    """Both attacks on n images; refused where ours is the weaker one."""
    x, y = images(box, n)
    model = peer(box)

    def ours() -> Found:
        made = attack(box, x, y, norm=norm)
        queries.append(float(made.queries.double().mean()))
        return made.images, made.success

    def foolboxs() -> Found:
        _, found, success = theirs(model, x, y, epsilons=None)
        return found, success

    queries: list[float] = []
    strengths = {k: strength(box, x, y, f(), norm) for k, f in (("ours", ours), ("foolbox", foolboxs))}
    a, b = strengths["ours"], strengths["foolbox"]
    if a["fooled"] < b["fooled"] or a["median"] > b["median"]:
        raise SystemExit(f"ours is weaker: {strengths}")
    speed = compare(ours, foolboxs, pairs=pairs, warmup=0)
    return {"images": n, **strengths, "queries": queries[0], **speed, "reached": speed["ratio"] <= 1 / WANTED}


# -- the fast ones beside all others ----------------------------------------------------------------------------------


def beside(box: ub.Box, x: Tensor, y: Tensor, norm: str, attack: Callable[[], Found]) -> dict[str, float]:
    """Strength and CPU seconds of one run."""
    start = time.process_time()
    found = attack()
    spent = time.process_time() - start
    return {**strength(box, x, y, found, norm), "cpu_s": spent}


def fast(name: str, n: int) -> dict[str, Any]:
    """DDN and FMN, foolbox's, and the slower attacks, on the same images of one model."""
    box, family, peers = ub.Box(*ub.zoo.load(name)), ub.adversarial, foolbox.attacks
    (x, y), model = images(box, n), peer(box)
    ours = {
        "l2": (family.ddn, family.fmn, family.deepfool, family.carlini_wagner, family.fab),
        "linf": (family.fmn, family.deepfool, family.fab),
    }
    theirs = {
        "l2": {"ddn": peers.DDNAttack(steps=100), "fmn": peers.L2FMNAttack(steps=100)},
        "linf": {"fmn": peers.LInfFMNAttack(steps=100)},
    }

    def made(attack: Callable[..., ub.adversarial.Adversarial], norm: str) -> Found:
        found = attack(box, x, y, norm=norm)
        return found.images, found.success

    found: dict[str, Any] = {}
    for norm in ours:
        own = {a.__name__: beside(box, x, y, norm, partial(made, a, norm)) for a in ours[norm]}
        for k, a in theirs[norm].items():
            g = beside(box, x, y, norm, lambda a=a: tuple(a(model, x, y, epsilons=None)[1:]))
            own[k] |= {"foolbox": g, "median_ratio": own[k]["median"] / g["median"]}
        found[norm] = own
    return {"images": len(x), **found}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--deepfool", type=int, default=200, help="images")
    options.add_argument("--carlini-wagner", type=int, default=32, help="images")
    options.add_argument("--pairs", type=int, default=3)
    options.add_argument("--fast", type=int, help="images: only DDN and FMN beside the others")
    chosen = options.parse_args()
    torch.set_num_threads(1)
    if chosen.fast:
        models = {name: fast(name, chosen.fast) for name in ("mnist-cnn", "mnist-robust")}
        write("fast_minimal", {"models": models}, packages=("foolbox",))
        return
    box, family, peers = ub.Box(*ub.zoo.load("mnist-cnn")), ub.adversarial, foolbox.attacks
    deepfool = {
        norm: figures(box, chosen.deepfool, norm, family.deepfool, of, chosen.pairs)
        for norm, of in (("l2", peers.L2DeepFoolAttack()), ("linf", peers.LinfDeepFoolAttack()))
    }
    theirs = peers.L2CarliniWagnerAttack(binary_search_steps=5, steps=500)
    found = figures(box, chosen.carlini_wagner, "l2", family.carlini_wagner, theirs, chosen.pairs)
    write("minimal", {"model": "mnist-cnn", "wanted": WANTED, "deepfool": deepfool, "carlini_wagner": found},
          packages=("foolbox",))  # fmt: skip


if __name__ == "__main__":
    main()
