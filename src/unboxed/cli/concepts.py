"""`unboxed concepts`: whether a score depends on concepts, with the controls: table, figures, numbers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ..box import Box
from ..concepts import ConceptScores, computed_concepts, tcav
from ..engine.read.examples import first_inputs
from ..errors import InputError
from ..plots.figures import figures
from .results import print_written_paths, write_figures_and_facts
from .tables import ShortenedName, names_and_numbers_table

RESULTS_FILE = "concepts.json"


def read_concept_options(specs: Sequence[str], box: Box) -> dict[str, Any]:
    """Concepts by name, of options NAME=DATA. Raises InputError."""
    from .parsing import open_inputs

    found = dict[str, Any]()
    for spec in specs:
        name, _, source = (part.strip() for part in spec.partition("="))
        if not name or not source or name in found:
            problem = f"two concepts are named {name!r}" if name in found else f"got {spec!r}"
            raise InputError(f"--concept wants NAME=FOLDER, once for each concept; {problem}")
        found[name] = open_inputs(source, box)
    return found


def run_concepts(
    box: Box, data: Any, concepts: Any, target: Any, layers: Any, out: str | os.PathLike[str], **settings: Any
) -> ConceptScores:  # fmt: skip
    """Test the concepts (None: computed ones): print a table, the verdict and diagnostics, write all to `out`."""
    if concepts is None:
        x = first_inputs(box, data, settings.get("max_examples"))
        concepts = computed_concepts(box, box.restore_structure(x))
    result = tcav(box, data, concepts, target, layers, **settings)
    images = {f"{name}.png": image for name, image in figures(result, box).items()}
    paths = write_figures_and_facts(images, tcav_facts(result), Path(out), RESULTS_FILE)
    Console().print(_table(result))
    typer.echo(f"{result.verdict}: {result.reason}")
    for sentence in result.diagnosis:
        typer.echo(sentence)
    print_written_paths(paths)
    return result


def tcav_facts(result: ConceptScores) -> dict[str, Any]:
    """For JSON: the verdict, and of each concept and layer its figures."""
    return {
        "verdict": result.verdict,
        "reason": result.reason,
        "target": result.target,
        "examples": result.n_examples,
        "relative": result.relative,
        "alpha": result.alpha,
        "diagnosis": result.diagnosis,
        "concepts": [
            {"concept": name, "examples_per_set": result.sizes[c],
             "layers": [_layer_facts(result, c, k) for k in range(len(result.layers))]}
            for c, name in enumerate(result.concepts)
        ],
    }  # fmt: skip


def _layer_facts(result: ConceptScores, c: int, k: int) -> dict[str, Any]:
    twin, d = result.twin_p_values, result.diagnostics
    facts: dict[str, Any] = {
        "layer": result.layers[k], "tcav": float(result.scores[c, k].mean()), "tcav_5_95": result.score_interval(c, k),
        "tcav_by_set": result.scores[c, k].tolist(), "random_tcav_by_set": result.random_scores[c, k].tolist(),
        "smooth_tcav": float(result.smooth_scores[c, k]), "mean_cosine": float(result.alignment[c, k]),
        "random_mean_cosine_by_set": result.random_alignment[c, k].tolist(), "p": float(result.p_values[c, k]),
        "p_with_random_weights": None if twin is None else float(twin[c, k]),
        "significant": bool(result.is_significant[c, k]), "accuracy": float(result.accuracy[c, k]),
    }  # fmt: skip
    if d is not None:
        facts["cosines_with_concepts"] = d.entanglement[k, c].tolist()
        if k + 1 < len(result.layers):
            facts["consistency_with_next_layer"] = float(d.consistency[c, k])
        if (s := d.spatial[k]) is not None:
            facts["spatial_distance"] = float(s.distance[c])
            facts["random_spatial_distance"] = float(s.random_distance.mean())
            facts["accuracy_without_positions"] = float(s.accuracy[c])
    return facts


def _table(result: ConceptScores) -> Table:
    notes = "cosine: of gradient and concept; random: of random sets; p: corrected; p twin: with random weights"
    caption = f"{result.target}, {result.n_examples} examples; {notes}"
    table = names_and_numbers_table(("concept", "layer"), ("TCAV", "cosine", "random", "p", "p twin"), caption)
    for c, concept in enumerate(result.concepts):
        for k, layer in enumerate(result.layers):
            spread = float(result.random_alignment[c, k].double().square().mean().sqrt())
            twin = "" if result.twin_p_values is None else f"{float(result.twin_p_values[c, k]):.2g}"
            score, cosine = f"{float(result.scores[c, k].mean()):.2f}", f"{float(result.alignment[c, k]):+.3f}"
            p = f"{float(result.p_values[c, k]):.2g}"
            name = concept if k == 0 else ""
            table.add_row(name, ShortenedName(layer, result.layers), score, cosine, f"{spread:.3f}", p, twin)
    return table
