"""`unboxed dissect`: which units detect which concept, and which of a generator's draw one: table, figures, numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from .. import rng
from ..box import Box
from ..concepts import CausalUnits, Dissection, LayerDissection, causal_units, dissect
from ..errors import InputError
from ..inputs.pixels import Pixels
from ..loading.factories import build_from_spec
from ..plots.figures import figures
from .results import print_written_paths, write_figures_and_facts
from .tables import ShortenedName, names_and_numbers_table

RESULTS_FILE = "dissect.json"
N_GENERATOR_CODES = 400  # that are drawn for a generator without data


def random_codes(box: Box, n: int | None, seed: int) -> Tensor:
    """Codes (n, ...) of a generator. Raises InputError for a model of images, which needs data."""
    if isinstance(box.inputs, Pixels):
        raise InputError("--data is missing: a model of images is dissected on images. Only a generator draws its own")
    generator = rng.keyed_generator(rng.CPU, "codes", seed)
    return box.inputs.random_inputs(n or N_GENERATOR_CODES, generator)


def build_segmenter(spec: str | None, seed: int) -> Callable[[Tensor], Tensor] | None:
    """The function that module:factory or file.py:factory makes. Raises InputError."""
    return None if spec is None else build_from_spec(spec, InputError, seed)


def signed_to_unit_range(output: Tensor) -> Tensor:
    """Images in [-1, 1] as images in [0, 1]."""
    return (output + 1) / 2


def run_dissect(
    box: Box, data: Any, layers: Sequence[str] | None, out: str | os.PathLike[str], **settings: Any
) -> Dissection:  # fmt: skip
    """Dissect the layers: print a table and the verdict, write figures and numbers to `out`."""
    result = dissect(box, data, layers=layers, **settings)
    _write_figures_and_results(result, box, dissection_facts(result), out)
    Console().print(_table(result))
    typer.echo(f"{result.verdict}: {result.reason}")
    return result


def run_causal_units(
    box: Box, data: Any, concept: str, layers: Sequence[str] | None, out: str | os.PathLike[str], **settings: Any
) -> CausalUnits:  # fmt: skip
    """Find the units that draw a concept: print the verdict, write figures and numbers to `out`."""
    if layers is None or len(layers) != 1:
        raise InputError("--concept needs the one layer whose units are ablated: --layers NAME")
    result = causal_units(box, data, concept, layers[0], **settings)
    _write_figures_and_results(result, box, causal_facts(result), out)
    typer.echo(f"{result.verdict}: {result.reason}")
    return result


def _write_figures_and_results(result: Any, box: Box, facts: dict[str, Any], out: str | os.PathLike[str]) -> None:
    images = {f"{name}.png": image for name, image in figures(result, box).items()}
    print_written_paths(write_figures_and_facts(images, facts, Path(out), RESULTS_FILE))


def dissection_facts(result: Dissection) -> dict[str, Any]:
    """For JSON: the verdict, and of each layer its detectors and those of its twins."""
    return {
        "verdict": result.verdict,
        "reason": result.reason,
        "examples": result.n_examples,
        "quantile": result.quantile,
        "concepts": {
            name: {"share_of_pixels": float(area), "reachable_iou": float(top)}
            for name, area, top in zip(result.names, result.areas, result.reachable_iou, strict=True)
        },
        "layers": [_layer_facts(layer) for layer in result.layers],
    }


def _layer_facts(layer: LayerDissection) -> dict[str, Any]:
    beyond = set(layer.beyond_chance.tolist())
    return {
        "layer": layer.layer, "verdict": layer.verdict, "reason": layer.reason, "units": len(layer.iou),
        "detectors": [
            {"unit": u, "concept": layer.names[k], "iou": float(layer.iou[u, k]), "beyond_chance": u in beyond}
            for u in layer.detectors.tolist() for k in [int(layer.concept[u])]
        ],
        "random_detectors": layer.random.n_detectors.tolist(), "random_concepts": layer.random.n_concepts.tolist(),
        "rotated_detectors": layer.rotated.n_detectors.tolist(), "rotated_concepts": layer.rotated.n_concepts.tolist(),
    }  # fmt: skip


def causal_facts(result: CausalUnits) -> dict[str, Any]:
    """For JSON: the units, and what becomes of each concept without and with them."""
    before = result.before.clamp_min(1)
    return {
        "verdict": result.verdict, "reason": result.reason, "layer": result.layer, "concept": result.concept,
        "units": result.units.tolist(), "tested_on": result.n_tested,
        "removed": result.removed, "restored": result.restored, "random_removed": result.random_removed.tolist(),
        "concepts": {
            name: {"ablated": float(a), "inserted": float(i), "apart": bool(d)}
            for name, a, i, d in zip(
                result.names, result.ablated / before, result.inserted / before, result.disjoint, strict=True
            )
        },
    }  # fmt: skip


def _table(result: Dissection) -> Table:
    caption = "found: detectors, random and rotated: in twins (mean), beyond: chance"
    columns = "units", "found", "concepts", "random", "rotated", "beyond", "verdict"
    table = names_and_numbers_table(("layer",), columns, caption)
    layers = [p.layer for p in result.layers]
    for p in result.layers:
        twins = [f"{float(t.n_detectors.double().mean()):.1f}" if len(t.n_detectors) else ""
                 for t in (p.random, p.rotated)]  # fmt: skip
        counts = str(len(p.iou)), str(len(p.detectors)), str(len(p.concepts_detected))
        table.add_row(ShortenedName(p.layer, layers), *counts, *twins, str(len(p.beyond_chance)), p.verdict)
    return table
