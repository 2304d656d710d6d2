"""Dissection: are planted detectors found, and do the units that are said to draw a concept draw it?

    python benchmarks/concepts_dissect.py [--seeds 3] [--only planted verdicts causal]     results/concepts_dissect.json

Causal units that are in the file are not measured again, so that an interrupted run goes on; delete it to start over.

- planted: models with units that are concepts of digits, exactly or with errors, among random ones. Each is to be found
  with at least .9 of the plant's own IoU, which is counted from its definition.
- verdicts: the models of the zoo, with random weights too, beside their twins.
- causal: units that are chosen for a concept on half of the codes, tested on the other half: what is gone without them
  and comes back, what becomes of the concepts apart from it (the other quadrants; of holes the ink), and as many random
  units. On a generator of MNIST by other people (UNBOXED_REAL_DATA/gan) and those of the zoo.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import unboxed as ub
from harness import RESULTS, versions
from unboxed.concepts import digit_concepts
from unboxed.engine.randomized import randomize_all_layers

SHARED = Path(os.environ.get("UNBOXED_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
GENERATOR = SHARED / "gan" / "dcgan_mnist_generator.pth"
QUADRANTS = ("upper left", "upper right", "lower left", "lower right")
NAMES = digit_concepts.names
REMOVED, CHANGED, RESTORED = 0.6, 0.2, 0.6  # the figures to reach
N_GENERATOR_CODES = 400
EARLIER = {("dcgan (MNIST)", "hole"): ("gen.1.2",)}  # tried, too, where the layer does not do
COVERAGE, HOLE_COVERAGE = 0.2, 0.05  # a hole is gone where its ring is broken, one position farther out


# -- planted detectors -------------------------------------------------------------------------------------------------


class Planted(nn.Module):
    """Units that are the concepts of digits, among random ones: with errors, blurred, or at a coarser size."""

    def __init__(self, kind: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kind, self.conv = kind, nn.Conv2d(1, 5, 5, padding=2)
        self.units = nn.Conv2d(5 + len(NAMES), 5 + len(NAMES), 1, bias=False)
        nn.init.dirac_(self.units.weight)  # with random weights the units are mixtures of the concepts
        self.fc = nn.Linear(5 + len(NAMES), 2)

    def planted(self, x: Tensor) -> Tensor:
        """(N, 11, H, W) bool: where each planted unit is active."""
        masks = digit_concepts(x).movedim(0, 1)
        if self.kind == "exact":
            return masks
        rows, columns = (torch.arange(n) for n in x.shape[-2:])
        missing = (rows[:, None] + columns) % 4 == 0
        return (masks & ~missing) | (masks.roll(9, 3) & (rows[:, None] % 3 == 0))

    def forward(self, x: Tensor) -> Tensor:
        h = self.units(torch.cat([self.conv(x), self.planted(x).to(x)], 1))
        logits: Tensor = self.fc(h.mean((2, 3)))
        return logits


def planted(seed: int) -> dict[str, Any]:
    x, _ = ub.data.digits("all", seed=seed).first(300)
    masks, found = digit_concepts(x).movedim(0, 1), {}
    for kind in ("exact", "with errors"):
        model = Planted("exact" if kind == "exact" else "errors", seed)
        plant = model.planted(x)
        own = (plant & masks).sum((0, 2, 3)) / (plant | masks).sum((0, 2, 3))
        box = ub.Box(model, ub.Pixels((1, 28, 28)), outputs="logits")
        layer = ub.concepts.dissect(box, x, layers="units", seed=seed).layers[0]
        iou = layer.iou[5:].diagonal()
        found[kind] = {
            "own IoU": [round(float(v), 4) for v in own], "IoU": [round(float(v), 4) for v in iou],
            "lowest ratio": round(float((iou / own).min()), 4),
            "found": int(((iou >= 0.9 * own) & (layer.concept[5:] == torch.arange(len(NAMES)))).sum()),
            "verdict": layer.verdict,
        }  # fmt: skip
    return found


# -- verdicts ----------------------------------------------------------------------------------------------------------


def verdicts(rows: dict[str, Any], save: Callable[[], None]) -> None:
    digits, _ = ub.data.digits("test").first(200)
    for name in ("digits-cnn", "digits-judge", "mnist-cnn", "mnist-judge"):
        box = ub.load(f"zoo:{name}")
        for kind, model in (("trained", box), ("random weights", randomize_all_layers(box, 123))):
            start = time.process_time()
            result = ub.concepts.dissect(model, digits, seed=1)
            rows[f"{name}, {kind}"] = {
                "verdict": result.verdict, "seconds": round(time.process_time() - start, 1),
                "layers": {
                    p.layer: {
                        "units": len(p.iou), "detectors": len(p.detectors), "concepts": len(p.concepts_detected),
                        "random": round(float(p.random.n_detectors.double().mean()), 2),
                        "rotated": round(float(p.rotated.n_detectors.double().mean()), 2),
                        "beyond chance": len(p.beyond_chance), "verdict": p.verdict,
                    }
                    for p in result.layers
                },
            }  # fmt: skip
            print(name, kind, result.reason, flush=True)
            save()


# -- causal units ------------------------------------------------------------------------------------------------------


class Dcgan(nn.Module):
    """The generator in UNBOXED_REAL_DATA/gan, by the keys of its file; images in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((64, 256, 3, 2), (256, 128, 4, 1), (128, 64, 3, 2))
        blocks = [nn.Sequential(nn.ConvTranspose2d(i, o, k, s), nn.BatchNorm2d(o), nn.ReLU()) for i, o, k, s in sizes]
        self.gen = nn.Sequential(*blocks, nn.Sequential(nn.ConvTranspose2d(64, 1, 4, 2), nn.Tanh()))

    def forward(self, z: Tensor) -> Tensor:
        images: Tensor = self.gen(z[:, :, None, None])
        return images


def to_unit(h: Tensor) -> Tensor:
    return (h + 1) / 2


def generators() -> dict[str, tuple[ub.Box, Callable[[Tensor], Tensor] | None, str]]:
    """{name: box, decode, the layer whose units are changed}."""
    found: dict[str, Any] = {name: (ub.load(f"zoo:{name}"), None, "relu2") for name in ("digits-gan", "mnist-gan")}
    if GENERATOR.exists():
        model = Dcgan()
        model.load_state_dict(torch.load(GENERATOR, weights_only=True))
        latents = ub.zoo.load_generator("digits-gan", weights=None)[1]
        found["dcgan (MNIST)"] = (ub.Box(model.eval(), latents, outputs="regression"), to_unit, "gen.2.2")
    return found


def causal(rows: list[dict[str, Any]], seeds: int, save: Callable[[], None]) -> None:
    known = {(row["generator"], row["concept"], row["seed"], row["layer"]) for row in rows}
    opened = generators()
    for seed in range(seeds):
        for concept in (*QUADRANTS, "hole"):
            for name in opened:
                box, decode, layer = opened[name]
                for address in (layer, *EARLIER.get((name, concept), ())):
                    if (name, concept, seed, address) not in known:
                        rows.append(causal_row(name, box, decode, address, concept, seed))
                        print(json.dumps(rows[-1]), flush=True)
                        save()


def causal_row(
    name: str, box: ub.Box, decode: Callable[[Tensor], Tensor] | None, layer: str, concept: str, seed: int
) -> dict[str, Any]:  # fmt: skip
    coverage = HOLE_COVERAGE if concept == "hole" else COVERAGE
    apart = ("ink",) if concept == "hole" else tuple(q for q in QUADRANTS if q != concept)
    codes = torch.randn(N_GENERATOR_CODES, 64, generator=torch.Generator().manual_seed(100 + seed))
    start = time.process_time()
    result = ub.concepts.causal_units(
        box, codes, concept, layer, keep=apart, min_coverage=coverage, decode=decode, seed=seed
    )
    row = {"generator": name, "seed": seed, **effects(result, apart)}
    return row | {"reached": reached(row), "seconds": round(time.process_time() - start, 1)}


def effects(result: ub.concepts.CausalUnits, apart: tuple[str, ...]) -> dict[str, Any]:
    change = {name: round(float(result.ablated[k] / result.before[k]) - 1, 4) for k, name in enumerate(result.names)}
    return {
        "concept": result.concept, "layer": result.layer, "units": len(result.units), "of": len(result.weights),
        "removed": round(result.removed, 4), "restored": round(result.restored, 4),
        "random removed (mean)": round(float(result.random_removed.mean()), 4),
        "random removed (largest)": round(float(result.random_removed.max()), 4),
        "change of those apart": {name: change[name] for name in apart},
        "largest change apart": max(abs(change[name]) for name in apart), "verdict": result.verdict,
    }  # fmt: skip


def reached(row: dict[str, Any]) -> bool:
    return bool(
        row["removed"] >= REMOVED and row["largest change apart"] <= CHANGED and row["restored"] >= RESTORED
        and row["random removed (mean)"] < REMOVED and row["verdict"] == "pass"
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=("planted", "verdicts", "causal"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / "concepts_dissect.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    result |= {"codes": N_GENERATOR_CODES, "wanted": {"removed": REMOVED, "apart": CHANGED, "restored": RESTORED}}
    result["versions"] = versions(["torch", "scikit-image", "scipy"])

    def save() -> None:
        path.write_text(json.dumps(result, indent=1) + "\n")

    asked = args.only or ("planted", "verdicts", "causal")
    if "planted" in asked:
        for seed in range(args.seeds):
            result.setdefault("planted", {})[str(seed)] = planted(seed)
            save()
        print(json.dumps(result["planted"]), flush=True)
    if "verdicts" in asked:
        verdicts(result.setdefault("verdicts", {}), save)
    if "causal" in asked:
        causal(result.setdefault("causal", []), args.seeds, save)


if __name__ == "__main__":
    main()
