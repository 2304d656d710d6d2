"""How often are verdicts right? Every method, and known nonsense, on planted models whose reasons are known.

    python benchmarks/verdict_roc.py                  all pairs: results/verdict_roc_pairs.jsonl, verdict_roc.json
    python benchmarks/verdict_roc.py --truth          only the shares of the maps: results/planted_truth.jsonl
    python benchmarks/verdict_roc.py --resume         models that are in the file are not run again
    python benchmarks/verdict_roc.py --summary        nothing is run: the summary of the file
    python benchmarks/verdict_roc.py --concepts       verdicts on concepts instead: results/verdict_roc_concepts.json
    python benchmarks/verdict_roc.py --models select,mark-mnist-cnn --methods gradient,edges --out pairs.jsonl

A pair of model and method is right, wrong or undetermined by `planted.truth`; nonsense is never right. The
verdict is made on 8 of the 32 examples. Shares are taken from results/planted_truth.jsonl where the weights are the
same (after a change of a method: --truth). Sensitivity is the share of right pairs that pass among those decided,
specificity the share of wrong pairs that fail among those decided; intervals are Wilson's, and a bootstrap over models.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

import planted
from harness import RESULTS, machine, versions
from planted import bounds, catalog, concepts, nonsense, roc, truth
from planted.methods import methods
from planted.statistics import auc_by_figure, summary
from unboxed import checks
from unboxed.checks.methods import AttributionMethodFn, compute_map
from unboxed.errors import UnboxedError, UnboxedWarning

N_TRUTH, N_VERDICT = 32, 8
ROC_PICTURE = RESULTS.parents[1] / "docs" / "pictures" / "verdict-roc.png"
CONCEPTS, CONCEPT_SEEDS = RESULTS / "verdict_roc_concepts.jsonl", 20
PAIRS, TRUTH = RESULTS / "verdict_roc_pairs.jsonl", RESULTS / "planted_truth.jsonl"
Record = dict[str, Any]


def record(
    model: planted.PlantedModel, name: str, method: AttributionMethodFn, known: Record | None, *, verdict: bool
) -> Record:
    """What is known and said of one method on one model."""
    found: Record = {
        "model": model.name,
        "split": model.split,
        "weights": model.digest,
        "method": name,
        "nonsense": name in nonsense.for_box(model.box),
    }
    keys = ("share", "share_sd", "truth", "class_sensitivity", "refused")
    found |= {k: known[k] for k in keys if k in known} if known else measured(model, name, method)
    if found["nonsense"] and found["truth"] == "right":  # by chance, or as the first layer sees the cause alone
        found["truth"] = "undetermined"
    if verdict and "refused" not in found:
        start = time.process_time()
        found |= judged(model, method)
        found["seconds"] = round(time.process_time() - start, 2)
    return found


def judged(model: planted.PlantedModel, method: AttributionMethodFn) -> Record:
    """What the verdict says; one that fails says so, and costs no other pair."""
    try:
        v = checks.verdict(model.box, model.x[:N_VERDICT], method, model.y[:N_VERDICT])
    except UnboxedError as error:
        return {"grade": "error", "reason": f"{type(error).__name__}: {error}"[:200], "figures": {}}
    intervals = {t.name: [rounded(t.low), rounded(t.high)] for t in v.tests if math.isfinite(t.high - t.low)}
    return {"grade": v.grade, "reason": v.reason, "figures": plain(v.figures), "intervals": intervals}


def measured(model: planted.PlantedModel, name: str, method: AttributionMethodFn) -> Record:
    """The shares of the maps at the cause, and how far they follow the class where several are in the image."""
    try:
        maps = compute_map(model.box, method, model.x, model.y)
    except UnboxedError as error:
        return {"refused": f"{type(error).__name__}: {error}"[:200], "truth": "undetermined"}
    tolerance = truth.tolerance_of(name, model.x.shape[-1]) if model.x.ndim == 4 else 0
    signed = name not in truth.LOCAL_METHODS
    if name in truth.WITHOUT_ZERO:
        maps = maps - maps.flatten(1).median(1).values.view(-1, *[1] * (maps.ndim - 1))
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


def plain(value: Any) -> Any:
    """Figures as JSON has them, whatever they are: numbers, intervals, dataclasses."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(k): plain(h) for k, h in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(h) for h in value]
    return value if value is None or isinstance(value, (bool, str)) else rounded(value)


def rounded(value: Any) -> float | None:
    return None if math.isnan(float(value)) else round(float(value), 4)


def run_model(name: str, only: Iterable[str] | None, *, verdict: bool) -> list[Record]:
    """All records of a model; with verdicts, what is known of the same weights is not measured again."""
    model = planted.load(name, N_TRUTH)
    every = methods(model.references) | nonsense.for_box(model.box)
    known = read(TRUTH) if verdict else []
    known_by_method = {r["method"]: r for r in known if (r["model"], r["weights"]) == (name, model.digest)}
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


def read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def append(rows: list[Record], path: Path) -> None:
    """One record a line, so that several processes may write to one file."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(r) + "\n" for r in rows))


def write_summary(path: Path) -> None:
    """What follows from all pairs of a file, beside it."""
    pairs = [*{(r["model"], r["method"]): r for r in read(path)}.values()]  # the last of each
    curves = roc.roc(pairs)
    figures: dict[str, Any] = {
        "what": "verdicts on methods whose maps are right or wrong by construction, on planted models",
        "bounds": {"right": truth.RIGHT, "wrong": truth.WRONG},
        "examples": {"truth": N_TRUTH, "verdict": N_VERDICT},
        "models": {m: catalog.split_of(m) for m in sorted({r["model"] for r in pairs})},
        "summary": summary(pairs),
        "auc": {split: {k: curve[k] for k in ("auc", "over_models")} for split, curve in curves.items()},
        "bounds_of_tests": bounds.report(pairs),
        "auc_of_figures": auc_by_figure(pairs),
        "seconds": round(sum(r.get("seconds", 0) for r in pairs)),
        "machine": machine(),
        "versions": versions(("torch", "numpy")),
    }
    if path == PAIRS:
        roc.draw(curves, figures["summary"], ROC_PICTURE)
    text = json.dumps(figures, indent=2)
    path.with_name(path.stem.removesuffix("_pairs") + ".json").write_text(text + "\n", encoding="utf-8")
    print(text)


def run_concepts(seeds: int, *, resume: bool, measure: bool) -> None:
    """Verdicts on concepts whose truth is planted: `planted.concepts`."""
    if not resume and measure:
        CONCEPTS.unlink(missing_ok=True)
    for seed in range(seeds) if measure else ():
        for name, draws in concepts.DRAWS.items():
            if not any(r["draw"] == name and r["seed"] == seed for r in read(CONCEPTS)):
                rows = [r | {"draw": name} for r in draws(seed)]
                print(seed, name, [(r["method"], r["truth"], r["grade"], r["figure"]) for r in rows], flush=True)
                append(rows, CONCEPTS)
    found = concepts.concept_summary([*read(CONCEPTS), *concepts.known(RESULTS)])
    figures = {**found, "machine": machine(), "versions": versions(("torch", "numpy"))}
    text = json.dumps(figures, indent=2)
    CONCEPTS.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", help="names, or parts of names, with commas between; all by default")
    parser.add_argument("--methods", help="names, with commas between; all by default")
    parser.add_argument("--split", choices=("tuning", "held out"), help="only the models of one half")
    parser.add_argument("--truth", action="store_true", help="no verdicts")
    parser.add_argument("--resume", action="store_true", help="leave out models that are in the file")
    parser.add_argument("--summary", action="store_true", help="only the summary of the file")
    parser.add_argument("--concepts", action="store_true", help="verdicts on concepts, in place of those on maps")
    parser.add_argument(
        "--seeds", type=int, default=CONCEPT_SEEDS, help="of the planted concepts, half of them held out"
    )
    parser.add_argument("--out", type=Path, help="file of the pairs, one a line")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UnboxedWarning)
    if chosen.concepts:
        run_concepts(chosen.seeds, resume=chosen.resume, measure=not chosen.summary)
        return
    chosen.out = chosen.out or (TRUTH if chosen.truth else PAIRS)
    if not chosen.summary:
        run(chosen)
    if not chosen.truth:
        write_summary(chosen.out)


def run(chosen: argparse.Namespace) -> None:
    """Measure what was chosen, model by model."""
    if not chosen.resume:
        chosen.out.unlink(missing_ok=True)
    only = chosen.methods.split(",") if chosen.methods else None
    for name in planted.names():
        in_split = chosen.split in (None, planted.split_of(name))
        selected = in_split and (not chosen.models or any(part in name for part in chosen.models.split(",")))
        key = name, catalog.digest(name)
        if not selected or any((r["model"], r["weights"]) == key for r in read(chosen.out)):  # others write, too
            continue
        start = time.process_time()
        rows = run_model(name, only, verdict=not chosen.truth)
        print(f"{name} ({planted.split_of(name)}, {time.process_time() - start:.0f} s)")
        show(rows)
        append(rows, chosen.out)


if __name__ == "__main__":
    main()
