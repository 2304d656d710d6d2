"""`unboxed probe`: what each layer knows of an attribute and whether the model uses it: table, figures, numbers."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ..atomic_write import encode_utf8, write_bytes
from ..box import Box
from ..checks.verdict_cache import nan_to_none
from ..concepts import LayerProbe, Probing, probe
from ..data.tables import TABLE_SUFFIXES, read_columns
from ..engine.intervals import Interval
from ..errors import DataError
from ..plots.figures import figures
from ..plots.files import save
from ..validation import missing_path_text, suggestion_text

RESULTS_FILE = "probe.json"


def read_attribute_file(spec: str) -> list[Any]:
    """The values of a column: FILE with one column, or FILE:COLUMN. Raises DataError."""
    path, _, column = (spec, "", "") if Path(spec).exists() else spec.rpartition(":")
    source = Path(path or spec)
    if not source.is_file():
        raise DataError(f"--attribute: {missing_path_text(source)}")
    if source.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(f"--attribute: {source} is no table; wanted a file {', '.join(TABLE_SUFFIXES)}")
    columns = read_columns(source, sys.maxsize)
    if not column and len(columns) == 1:
        return next(iter(columns.values()))
    if column not in columns:
        problem = f"has no column {column!r}" if column else f"has {len(columns)} columns: name one as {source}:COLUMN"
        raise DataError(f"--attribute: {source} {problem}; {suggestion_text(column, columns)}")
    return columns[column]


def run_probe(
    box: Box, data: Any, attribute: Any, layers: Any, out: str | os.PathLike[str], **settings: Any
) -> Probing:  # fmt: skip
    """Probe the layers: print a table and the verdict, write figures and numbers to `out`."""
    result = probe(box, data, attribute, layers, **settings)
    out = Path(out)
    paths = [save(image, out / f"{name}.png") for name, image in figures(result, box).items()]
    text = json.dumps(nan_to_none(probing_facts(result)), indent=1, ensure_ascii=False)
    paths.append(write_bytes(out / RESULTS_FILE, encode_utf8(text)))
    Console().print(_table(result))
    typer.echo(f"{result.verdict}: {result.reason}")
    for path in paths:
        typer.echo(f"wrote {path}")
    return result


def probing_facts(result: Probing) -> dict[str, Any]:
    """For JSON: the verdict, and of each layer its figures with their intervals."""
    return {
        "verdict": result.verdict,
        "reason": result.reason,
        "classes": dict(zip(result.names, result.counts.tolist(), strict=True)),
        "examples": result.n_examples,
        "probe": result.kind,
        "control": result.types,
        "unit": result.unit,
        "layers": [layer_facts(p) for p in result.layers],
    }


def layer_facts(p: LayerProbe) -> dict[str, Any]:
    """For JSON: one layer's figures."""
    read, description = p.probe, p.probe.description
    facts: dict[str, Any] = {
        "layer": p.layer, "verdict": p.verdict, "reason": p.reason, "features": read.n_features,
        "features_are_means": p.are_means, "accuracy": _interval(read.accuracy), "majority": read.majority,
        "control": _interval(read.control), "selectivity": _interval(read.selectivity), "memorized": read.memorized,
        "information_bits": _interval(read.information), "l2": list(read.l2),
    }  # fmt: skip
    if description is not None:
        facts |= {"bits_per_label": description.bits, "compression": _interval(description.ratio)}
    if (e := p.erasure) is not None:
        facts["erased"] = {
            "directions": e.rank, "p": e.p_value, "change": float(e.change.double().mean()),
            "random_change": e.random_change.double().mean(0).tolist(), "share_of_own": e.share,
            "own_change": float(e.own_change.double().mean()), "predictions_kept": e.kept, "accuracy": e.accuracy,
            "erased_accuracy": e.erased_accuracy, "remaining_bits": _interval(e.remaining),
        }  # fmt: skip
    return facts


def _interval(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


def _table(result: Probing) -> Table:
    majority = result.layers[0].probe.majority
    caption = f"control: {result.types}; most frequent class {majority:.1%}; erased, random: {result.unit}"
    table = Table(caption=caption, caption_justify="left")
    for name in ("layer", "accuracy", "control", "code", "erased", "random", "verdict"):
        table.add_column(name, no_wrap=True)
    for p in result.layers:
        read, e = p.probe, p.erasure
        code = "" if read.description is None else f"1/{read.description.ratio.mean:.2f}"
        changes = ("", "") if e is None else (f"{float(h.double().mean()):.2g}" for h in (e.change, e.random_change))
        table.add_row(p.layer, f"{read.accuracy.mean:.1%}", f"{read.control.mean:.1%}", code, *changes, p.verdict)
    return table
