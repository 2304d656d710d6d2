"""How often are verdicts right? Every method, and known nonsense, on planted models whose reasons are known.

    python benchmarks/verdict_roc.py                         all: results/verdict_roc.json
    python benchmarks/verdict_roc.py --truth                 only the shares of the maps at the cause, as a table
    python benchmarks/verdict_roc.py --models mark-mnist-cnn --methods gradient,edges --out /tmp/try.json
    python benchmarks/verdict_roc.py --resume                models that are in the file are not run again
    python benchmarks/verdict_roc.py --keep-truth            shares are taken from the file, verdicts are made again

A pair of model and method is right, wrong or undetermined by `planted.truth`; nonsense is wrong whatever its share. The
verdict is made on 8 of the 32 examples. Sensitivity is the share of right pairs that pass among those decided,
specificity the share of wrong pairs that fail among those decided; intervals are Wilson's, and a bootstrap over models.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import planted
from harness import RESULTS, machine, versions
from planted import nonsense, truth
from planted.methods import methods
from planted.statistics import auc_by_figure, summary
from unboxed import checks
from unboxed.checks.methods import Method, compute_map
from unboxed.errors import UnboxedError, UnboxedWarning

N_TRUTH, N_VERDICT = 32, 8
Record = dict[str, Any]


def record(model: planted.PlantedModel, name: str, method: Method, known: Record | None, *, verdict: bool) -> Record:
    """What is known and said of one method on one model."""
    found: Record = {
        "model": model.name,
        "kind": model.kind,
        "size": model.size,
        "architecture": model.architecture,
        "split": model.split,
        "method": name,
        "nonsense": name in nonsense.for_box(model.box),
    }
    keys = ("share", "share_sd", "truth", "class_sensitivity", "refused")
    found |= {k: known[k] for k in keys if k in known} if known else measured(model, name, method)
    if found["nonsense"]:
        found["truth"] = "wrong"
    if verdict and "refused" not in found:
        start = time.process_time()
        v = checks.verdict(model.box, model.x[:N_VERDICT], method, model.y[:N_VERDICT])
        found |= {"grade": v.grade, "reason": getattr(v, "reason", ""), "figures": plain(v.figures)}
        found["seconds"] = round(time.process_time() - start, 2)
    return found


def measured(model: planted.PlantedModel, name: str, method: Method) -> Record:
    """The shares of the maps at the cause, and how far they follow the class where several are in the image."""
    try:
        maps = compute_map(model.box, method, model.x, model.y)
    except UnboxedError as error:
        return {"refused": f"{type(error).__name__}: {error}"[:200], "truth": "undetermined"}
    tolerance = truth.tolerance_of(name, model.x.shape[-1]) if model.x.ndim == 4 else 0
    signed = name not in truth.LOCAL_METHODS
    shares = truth.energy(maps, model.causal, model.distractor, tolerance=tolerance, signed=signed)
    found: Record = {
        "share": rounded(truth.mean_share(shares)),
        "share_sd": rounded(shares.nan_to_num(0.5).std()),
        "truth": truth.truth_of(shares),
    }
    if model.box.outputs == "multilabel":
        others = compute_map(model.box, method, model.x, model.other_class)
        change = truth.class_sensitivity(maps, others, model.causal, tolerance=tolerance)
        found["class_sensitivity"] = rounded(change.nanmean())
    return found


def plain(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as JSON has them: numbers, and intervals as lists."""
    return {k: [rounded(v) for v in h] if isinstance(h, (tuple, list)) else rounded(h) for k, h in figures.items()}


def rounded(value: Any) -> Any:
    if isinstance(value, (int, float, torch.Tensor)):
        return None if math.isnan(float(value)) else round(float(value), 4)
    return str(value)


def run_model(name: str, only: Iterable[str] | None, known: list[Record], *, verdict: bool) -> list[Record]:
    model = planted.load(name, N_TRUTH)
    every = methods(model.references) | nonsense.for_box(model.box)
    known_by_method = {r["method"]: r for r in known}
    rows = []
    for method_name, method in every.items():
        if only is None or method_name in only:
            rows.append(record(model, method_name, method, known_by_method.get(method_name), verdict=verdict))
    return rows


def show(rows: list[Record]) -> None:
    """A model's table: method, share, truth, grade."""
    for r in sorted(rows, key=lambda r: (r["nonsense"], -(r.get("share") or 0))):
        share = f"{r['share']:.2f} ± {r['share_sd']:.2f}" if "share" in r else r["refused"][:40]
        row = f"  {r['method']:32s} {'nonsense' if r['nonsense'] else '':9s}{share:14s} {r['truth']:13s}"
        print(row, r.get("grade", ""), r.get("reason", ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="names, or parts of names, with commas between; all by default")
    parser.add_argument("--methods", help="names, with commas between; all by default")
    parser.add_argument("--truth", action="store_true", help="no verdicts")
    parser.add_argument("--resume", action="store_true", help="leave out models that are in the file")
    parser.add_argument("--keep-truth", action="store_true", help="take the shares from the file")
    parser.add_argument("--out", type=Path, default=RESULTS / "verdict_roc.json")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UnboxedWarning)
    before: list[Record] = json.loads(chosen.out.read_text())["pairs"] if chosen.out.exists() else []
    pairs: list[Record] = before if chosen.resume else []
    only = chosen.methods.split(",") if chosen.methods else None
    for name in planted.names():
        selected = not chosen.models or any(part in name for part in chosen.models.split(","))
        if not selected or any(r["model"] == name for r in pairs):
            continue
        start = time.process_time()
        known = [r for r in before if r["model"] == name] if chosen.keep_truth else []
        rows = run_model(name, only, known, verdict=not chosen.truth)
        print(f"{name} ({planted.split_of(name)}, {time.process_time() - start:.0f} s)")
        show(rows)
        pairs += rows
        save(pairs, chosen.out)
    print(json.dumps(save(pairs, chosen.out)["summary"], indent=2))


def save(pairs: list[Record], path: Path) -> dict[str, Any]:
    """Write all pairs and what follows from them, as far as it has come."""
    figures = {
        "what": "verdicts on methods whose maps are right or wrong by construction, on planted models",
        "bounds": {"right": truth.RIGHT, "wrong": truth.WRONG},
        "examples": {"truth": N_TRUTH, "verdict": N_VERDICT},
        "summary": summary(pairs),
        "auc_of_figures": auc_by_figure(pairs),
        "pairs": pairs,
    }
    content = {**figures, "machine": machine(), "versions": versions(("torch", "numpy"))}
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(part, path)
    return figures


if __name__ == "__main__":
    main()
