"""Dictionaries: planted features recovered or not, the MNIST model's fc1 beside the frozen twin; discovered concepts.

    UNBOXED_MNIST=FOLDER python benchmarks/concepts_dictionary.py [PART ...]     results/concepts_dictionary.json

What is in the file is not measured again, so that an interrupted run goes on; delete it to start over.

- Toy: rows of 64 values, each a sum of s of 128 random directions with amounts in [.5, 1.5]. Recovered is a direction
  that has a partner with a cosine above .9 (best assignment) in a dictionary of 256 features with k = s: over the
  sparsity s and the number of rows. The exact number of features (128) is tried, too.
- MNIST: 256 features, k = 16, on what fc1 gives and on the ReLU after it, of 10,000 training images, a fifth of them
  held out.
- Concepts: verdicts of `discover` on the digits model and on 20 models with random weights; of `dictionary` on random
  weights, and on activations without structure.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

import unboxed as ub
from harness import RESULTS, write
from unboxed.concepts import Dictionary, DiscoveredConcepts
from unboxed.engine.linear.sparse_autoencoder import (
    AutoencoderConfig,
    SparseAutoencoder,
    fit_autoencoders,
    matched_cosines,
)
from unboxed.engine.randomized import randomize_all_layers

Found, Save = dict[str, Any], Callable[[], None]  # a part's figures; each is written as soon as it is measured
N_UNITS, N_PLANTED, N_FEATURES = 64, 128, 256
SPARSITIES, ROWS = (1, 2, 4, 8, 16), (300, 1000, 3000, 10_000)
TOY_STEPS, TOY_SEEDS = 600, (0, 1)
N_MNIST, MNIST_STEPS = 10_000, 2000
N_RANDOM_WEIGHTS, N_NOISE = 20, 20


def toy(sparsity: int, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Planted directions (128, 64) and rows (n, 64)."""
    generator = torch.Generator().manual_seed(seed)
    directions = nn.functional.normalize(torch.randn(N_PLANTED, N_UNITS, generator=generator), dim=1)
    active = torch.rand(n, N_PLANTED, generator=generator).argsort(1)[:, :sparsity]
    amounts = torch.zeros(n, N_PLANTED).scatter(1, active, 0.5 + torch.rand(n, sparsity, generator=generator))
    return directions, amounts @ directions


def recovered(planted: Tensor, autoencoder: SparseAutoencoder) -> float:
    return float((matched_cosines(planted, autoencoder.directions) > 0.9).double().mean())


def explained(h: Tensor, autoencoder: SparseAutoencoder) -> float:
    error = (h - autoencoder.decode(autoencoder.encode(h))).square().sum()
    return 1 - float(error / (h - h.mean(0)).square().sum())


def toy_cell(sparsity: int, n: int, n_features: int) -> dict[str, Any]:
    """One regime: means over the seeds, explained variance on other rows of the same dictionary."""
    runs = []
    for seed in TOY_SEEDS:
        planted, h = toy(sparsity, n + 1000, seed)
        plan = AutoencoderConfig(n_features, sparsity, n_steps=TOY_STEPS)
        (own,), (frozen,) = fit_autoencoders(h[:n], plan, [seed], n_frozen=1)
        held_out = [explained(h[n:], a) for a in (own, frozen)]
        runs.append((recovered(planted, own), recovered(planted, frozen), *held_out))
    names = "recovered", "recovered by the frozen twin", "explained variance", "of the frozen twin"
    return {name: round(fmean(values), 3) for name, values in zip(names, zip(*runs, strict=True), strict=True)}


def sweep(found: Found, save: Save) -> None:
    """{sparsity: {rows: figures}}; and the exact number of features where the rows are many."""
    found |= {"units": N_UNITS, "planted": N_PLANTED, "features": N_FEATURES, "steps": TOY_STEPS,
              "seeds": len(TOY_SEEDS)}  # fmt: skip
    for sparsity in SPARSITIES:
        cells = found.setdefault("cells", {}).setdefault(str(sparsity), {})
        for n in ROWS:
            if str(n) not in cells:
                cells[str(n)] = toy_cell(sparsity, n, N_FEATURES)
                print("toy", sparsity, n, cells[str(n)], flush=True)
                save()
    exact = found.setdefault("with as many features as planted", {"rows": 10_000, "cells": {}})["cells"]
    for sparsity in SPARSITIES[:-1]:
        if str(sparsity) not in exact:
            exact[str(sparsity)] = toy_cell(sparsity, 10_000, N_PLANTED)
            print("exact number of features", sparsity, exact[str(sparsity)], flush=True)
            save()


def dictionary_facts(r: Dictionary) -> dict[str, Any]:
    rows = {}
    for s in r.scores:
        e = s.explained_variance
        rows[s.name] = {
            "features": s.n_features, "explained variance": [round(v, 4) for v in (e.mean, e.low, e.high)],
            "explained with k": round(s.explained_at_k, 4), "active": round(s.active, 2), "dead": round(s.dead, 4),
            "stability": None if s.stability is None else round(s.stability, 3), "kept": s.rebuilt.kept,
            "accuracy": s.rebuilt.accuracy, "change": float(f"{s.rebuilt.mean_change.mean:.3g}"),
        }  # fmt: skip
    gap = [round(v, 4) for v in (r.gap.mean, r.gap.low, r.gap.high)]
    return {"verdict": r.verdict, "gap": gap, "held out": r.n_held_out, "accuracy": r.accuracy, "rows": rows}


def on_mnist(found: Found, save: Save) -> None:
    box, data = ub.Box(*ub.zoo.load("mnist-cnn")), ub.data.mnist("train", os.environ.get("UNBOXED_MNIST"))
    settings: dict[str, dict[str, Any]] = {
        "fc1": {"layer": "fc1"}, "relu3": {"layer": "relu3"},
        "relu3, batch-top-k": {"layer": "relu3", "activation": "batch_top_k"},
        "relu3, archetypal": {"layer": "relu3", "archetypal": True},
    }  # fmt: skip
    found |= {"examples": N_MNIST, "features": 256, "k": 16, "steps": MNIST_STEPS}
    for name, some in settings.items():
        if name in found:
            continue
        started = time.process_time()
        r = ub.concepts.dictionary(box, data, n_features=256, k=16, n_steps=MNIST_STEPS, max_examples=N_MNIST, **some)
        found[name] = dictionary_facts(r) | {"CPU seconds": round(time.process_time() - started)}
        print("MNIST", name, found[name], flush=True)
        save()


def discovered_facts(r: DiscoveredConcepts) -> dict[str, Any]:
    f = r.faithfulness
    return {
        "verdict": r.verdict, "layer": r.layer, "factorization": r.factorization,
        "explained variance": round(f.explained_variance, 3), "accuracy": f.accuracy,
        "accuracy from concepts": f.concepts.accuracy, "from the mean": f.ablated.accuracy,
        "from random directions": round(fmean(c.accuracy or 0.0 for c in f.random), 3),
        "change from concepts": float(f"{f.concepts.mean_change.mean:.3g}"),
        "change from random directions": float(f"{fmean(c.mean_change.mean for c in f.random):.3g}"),
        "change from the mean": float(f"{f.ablated.mean_change.mean:.3g}"),
        "importance": [round(c.importance.mean, 3) for c in r.concepts],
    }  # fmt: skip


def on_random_weights(found: Found, save: Save) -> None:
    """Verdicts on the digits model, and on the same model with random weights, of both methods."""
    box, (x, y) = ub.Box(*ub.zoo.load("digits-cnn")), ub.data.digits("train").first(600)
    own = {
        f"{layer or 'default'}, {kind}": discovered_facts(
            ub.concepts.discover(box, (x, y), layer, factorization=kind)  # type: ignore[arg-type]
        )
        for layer in (None, "fc2:input")
        for kind in ("nmf", "ica", "pca")
    }
    print(own, flush=True)
    found["digits model"] = own
    save()
    random: dict[str, Any] = {"discover": Counter(), "dictionary": Counter(), "kept": []}
    for seed in range(N_RANDOM_WEIGHTS):
        untrained = randomize_all_layers(box, 100 + seed)
        for layer in (None, "fc2:input"):
            r = ub.concepts.discover(untrained, (x, y), layer, n_masks=2, seed=seed)
            random["discover"][r.verdict] += 1
            random["kept"].append(r.faithfulness.concepts.kept)
        random["dictionary"][ub.concepts.dictionary(untrained, (x, y), n_steps=100, seed=seed).verdict] += 1
        print("random weights", seed, random["discover"], random["dictionary"], flush=True)
    kept = round(fmean(random.pop("kept")), 3)
    found["random weights"] = {**random, "predictions kept": kept, "models": N_RANDOM_WEIGHTS}
    save()


def on_noise(found: Found, save: Save) -> None:
    """Verdicts of dictionaries of Gaussian noise: 150 rows of 64 values, which features learn by heart."""
    inputs, verdicts = ub.Features(tuple(f"x{i}" for i in range(64))), Counter[str]()
    for seed in range(N_NOISE):
        box = ub.Box(nn.Sequential(nn.Identity(), nn.Linear(64, 3)), inputs, outputs="logits")
        x = torch.randn(150, 64, generator=torch.Generator().manual_seed(seed))
        verdicts[ub.concepts.dictionary(box, x, "0", n_features=64, k=4, n_steps=200, seed=seed).verdict] += 1
    print("noise", verdicts, flush=True)
    found |= {"draws": N_NOISE, "verdicts": dict(verdicts)}
    save()


def main() -> None:
    torch.set_num_threads(1)
    parts = {"mnist": on_mnist, "toy": sweep, "concepts": on_random_weights, "noise": on_noise}
    path = RESULTS / "concepts_dictionary.json"
    figures = json.loads(path.read_text()) if path.exists() else {}

    def save() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            write("concepts_dictionary", figures, packages=("scikit-learn", "scipy"))

    for name in sys.argv[1:] or list(parts):
        parts[name](figures.setdefault(name, {}), save)


if __name__ == "__main__":
    main()
