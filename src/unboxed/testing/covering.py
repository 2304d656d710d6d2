"""Which pairs of methods and models to try where trying all would take too long.

A failure comes from how a method touches models and what is awkward about the model. So every method is run on a model
of each kind, and every model by a method of each mechanism. A method's mechanisms are the packages of `engine` and the
parts of `model` that its code imports; a model's kind is its file in the zoo. The choice is greedy and deterministic.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

from ..cards import Card
from .cases import method_name
from .models import kind_of_model

PLAIN_KIND = "base"
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
    "engine.intervals", "engine.output_change", "engine.column_units", "engine.randomized",
    "model.state", "engine.result_views", "engine.linear.binary", "engine.linear.factors",
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


def mechanisms(card: Card) -> frozenset[str]:
    """The packages of `engine` and parts of `model` that a method's code imports, and the box, which every method runs.

    Modules of one package touch a model in one way: "engine.gradients" takes them through one backward pass.
    """
    parts = _engine_and_model_imports(str(card.method.__module__))
    return frozenset({"box", *(".".join(part.split(".")[:2]) for part in parts)})


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
    for node in _statements(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield stem
            yield from (f"{stem}.{alias.name}" for alias in node.names)


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """The statements in a module or statement; imports are never inside an expression."""
    for block in ("body", "handlers", "orelse", "finalbody"):
        for child in getattr(node, block, ()):
            yield child
            yield from _statements(child)


def covering_method_model_pairs(
    cards: Collection[Card], models: Collection[str], excluded: Collection[tuple[str, str]] = ()
) -> list[tuple[str, str]]:
    """(method, model) pairs: every method on each kind of model, every model under each mechanism.

    Plain models are no kind: what fails on them fails on the others. `excluded` pairs are left out: refusals are
    another test.
    """
    taken = {method_name(c): [m for m in models if (method_name(c), m) not in excluded] for c in cards}
    cover = _Cover({method_name(c): mechanisms(c) for c in cards}, taken)
    by_kind: dict[tuple[str, str], list[str]] = {}
    for name, models_taken in taken.items():
        for model in models_taken:
            by_kind.setdefault((name, kind_of_model(model)), []).append(model)
    for name, kind in sorted(by_kind, key=lambda at: -cover.rarity(at[0])):  # what is rare has the first choice
        if kind != PLAIN_KIND:
            cover.select(name, max(by_kind[name, kind], key=lambda model: cover.gain(name, model)))
    cost = {method_name(c): max(1.0, c.n_model_runs()) ** MODEL_RUN_COST_EXPONENT for c in cards}
    for model in models:
        while uncovered := cover.uncovered(model):
            names = [name for name in taken if model in taken[name]]
            gains = {name: len(uncovered & cover.mechanisms[name]) / cost[name] for name in names}
            cover.select(max(names, key=lambda name: (gains[name], -cover.n_selected[name])), model)
    return sorted(cover.selected)


class _Cover:
    """The pairs selected so far, and the mechanisms that each model was not tried under yet."""

    def __init__(self, mechanisms: Mapping[str, frozenset[str]], taken: Mapping[str, Collection[str]]) -> None:
        self.mechanisms, self.selected = mechanisms, set[tuple[str, str]]()
        self._to_cover: dict[str, set[str]] = {}
        for name in taken:
            for model in taken[name]:
                self._to_cover.setdefault(model, set()).update(mechanisms[name])
        self._n_methods = Counter(m for found in mechanisms.values() for m in found)
        self.n_selected = Counter[str]()  # times that a method, or a model, was selected

    def rarity(self, name: str, model: str | None = None) -> float:
        """A method's mechanisms, those that few methods have counting most; those new to the model alone."""
        found = self.mechanisms[name] if model is None else self.mechanisms[name] & self.uncovered(model)
        return sum(1 / self._n_methods[m] for m in sorted(found))

    def gain(self, name: str, model: str) -> tuple[float, int]:
        """How much a pair would add; among equals, models that were selected least."""
        return self.rarity(name, model), -self.n_selected[model]

    def uncovered(self, model: str) -> set[str]:
        return self._to_cover.get(model, set())

    def select(self, name: str, model: str) -> None:
        self.selected.add((name, model))
        self._to_cover[model] -= self.mechanisms[name]
        self.n_selected.update((name, model))
