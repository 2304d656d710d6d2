"""Which pairs of methods and models to try where trying all would take too long.

A failure comes from how a method touches models and what is awkward about the model. So every method is run on a model
of each kind, and every model by a method of each mechanism. A method's mechanisms are the parts of `engine` and `model`
that its code imports; a model's kind is its file in the zoo. The choice is greedy and deterministic.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Collection, Iterator
from functools import cache
from heapq import heapify, heapreplace
from pathlib import Path

from ..cards import Card
from .cases import method_name
from .models import kind_of_model

MODEL_RUN_COST_EXPONENT = 0.1  # of a method's model runs: what covers little more for many more runs is not chosen
MODEL_INDEPENDENT_MODULES = frozenset({
    "model.nan_checks", "model.batching", "engine.read.sizes", "engine.read.examples", "inputs.items",
    "inputs.packing", "inputs.examples", "inputs.forms", "inputs.labels", "engine.results", "engine.perturb.segments",
    "engine.optimize.colors",
    "engine.optimize.parameterizations", "engine.read.embedding", "engine.read.position_grids",
    "engine.read.neighbors", "engine.read.channel_axes", "engine.optimize.optimizers", "engine.optimize.transforms",
    "engine.perturb.control_variate", "engine.perturb.surrogate", "engine.perturb.local_model",
    "engine.perturb.estimators", "engine.perturb.baselines",
    "engine.optimize.constraints", "engine.gradients.adaptive_quadrature", "engine.gradients.quadrature",
    "engine.optimize.lbfgs", "engine.optimize.hyperplanes", "engine.optimize.generators", "engine.read.features",
    "engine.intervals", "engine.output_change", "engine.result_views", "engine.linear.binary", "engine.linear.factors",
    "engine.linear.sparse_autoencoder", "engine.linear.principal", "engine.read.receptive_bounds",
    "engine.read.unit_rows", "engine.rectangle", "engine.rows", "engine.linear.clusters",
    "engine.stable_repr", "engine.perturb.masks", "engine.read.class_labels", "model.layers", "model.op_mode",
    "model.lrp.linear_rules", "model.output_advice", "engine.attribution_result",
    "engine.cpu_cache", "engine.proportion", "engine.multiple_tests", "engine.linear.splits", "engine.linear.probing",
    "engine.linear.erasure", "engine.example_gradients.labels", "engine.example_gradients.losses",
    "engine.example_gradients.spectral", "engine.example_gradients.spectrum", "engine.example_gradients.sketch",
    "engine.example_gradients.fisher_labels", "engine.unroll.fingerprint", "engine.unroll.checks",
    "engine.unroll.smoothness", "engine.unroll.training",
})  # fmt: skip
"""Parts that do not run a model themselves. A new part is a mechanism unless it is listed here."""


def engine_and_model_modules_used(card: Card) -> frozenset[str]:
    """The parts of `engine` and `model` that a method's module imports, and the box, which every method runs."""
    return _engine_and_model_imports(str(card.method.__module__)) | {"box"}


@cache
def _engine_and_model_imports(module: str) -> frozenset[str]:
    family = ".".join(module.split(".")[:2]) + "."
    visited: set[str] = set()
    queue = [module]
    while queue:
        name = queue.pop()
        if name in visited or name not in sys.modules:
            continue
        visited.add(name)
        if name.startswith(family) and name.startswith("unboxed."):
            queue += [n for n in _imported_modules(name) if n.startswith("unboxed.")]
    parts = {name.removeprefix("unboxed.") for name in visited}
    return frozenset(p for p in parts if p.startswith(("engine.", "model.")) and p not in MODEL_INDEPENDENT_MODULES)


@cache
def _imported_modules(module: str) -> tuple[str, ...]:
    """The modules that a module imports, by their full names."""
    return tuple(_iter_imported_names(module))


def _iter_imported_names(module: str) -> Iterator[str]:
    file = Path(str(sys.modules[module].__file__))
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def covering_method_model_pairs(
    cards: Collection[Card], models: Collection[str], excluded: Collection[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """(method, model) pairs: every method on each kind of model, every model under each mechanism.

    `excluded` pairs are left out: refusals are another test.
    """
    goals = {
        (method_name(card), model): _covered_mechanisms_and_kinds(card, model)
        for card in cards for model in models if (method_name(card), model) not in excluded
    }  # fmt: skip
    uncovered = set().union(*goals.values()) if goals else set()
    cost = {method_name(card): max(1.0, card.n_model_runs()) ** MODEL_RUN_COST_EXPONENT for card in cards}
    heap = [(-len(goal) / cost[pair[0]], i, pair) for i, (pair, goal) in enumerate(goals.items())]  # the best first
    heapify(heap)
    selected: list[tuple[str, str]] = []
    while uncovered:
        old_count, i, pair = heap[0]
        new_count = -len(goals[pair] & uncovered) / cost[pair[0]]
        if new_count > old_count:  # others were chosen since, so that it may not be the best
            heapreplace(heap, (new_count, i, pair))
            continue
        selected.append(pair)
        uncovered -= goals[pair]
    return sorted(selected)


def _covered_mechanisms_and_kinds(card: Card, model: str) -> frozenset[tuple[str, str]]:
    """What a pair covers."""
    return frozenset(
        {
            (method_name(card), f"kind {kind_of_model(model)}"),
            *((model, f"by {m}") for m in engine_and_model_modules_used(card)),
        }
    )
