"""`unboxed probe`: what each layer knows of an attribute and whether the model uses it: table, figures, numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from ..box import Box
from ..concepts import LayerProbe, Probing, probe
from ..data.table_files import check_table_path, read_columns
from ..engine.intervals import Interval
from ..errors import DataError
from ..language import SentenceProbing, load_probing_task, load_vectors, probe_sentences
from ..plots.figures import figures
from ..validation import suggestion_text
from .results import print_written_paths, write_figures_and_facts
from .tables import ShortenedName, names_and_numbers_table

RESULTS_FILE = "probe.json"


def read_attribute_file(spec: str) -> list[Any]:
    """The values of a column: FILE with one column, or FILE:COLUMN. Raises DataError."""
    path, _, column = (spec, "", "") if Path(spec).exists() else spec.rpartition(":")
    try:
        source = check_table_path(path or spec)
    except DataError as error:
        raise DataError(f"--attribute: {error}") from None
    columns = read_columns(source)
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
    _print_and_write(result, probing_facts(result), Path(out), box)
    return result


def run_probe_sentences(
    task: Any, box: Box | None, vectors: Path | None, layers: Any, out: str | os.PathLike[str], **settings: Any
) -> SentenceProbing:  # fmt: skip
    """Probe sentences by a model's layers, or by word vectors: print a table and the verdict, write to `out`.

    `task` is a file in SentEval's format, or texts with labels.
    """
    encoder = load_vectors(vectors, ignore_case=True) if box is None and vectors is not None else box
    sentences = load_probing_task(task) if isinstance(task, Path) else task
    result = probe_sentences(encoder, sentences, layers, **settings)  # type: ignore[arg-type]
    _print_and_write(result, sentence_probing_facts(result), Path(out), box)
    return result


def _print_and_write(result: Probing, facts: dict[str, Any], out: Path, box: Box | None) -> None:
    images = {f"{name}.png": image for name, image in figures(result, box).items()}
    paths = write_figures_and_facts(images, facts, out, RESULTS_FILE)
    Console().print(_probing_table(result))
    typer.echo(f"{result.verdict}: {result.reason}")
    if isinstance(result, SentenceProbing):
        typer.echo(result.comparison)
    print_written_paths(paths)


def sentence_probing_facts(result: SentenceProbing) -> dict[str, Any]:
    """For JSON: as `probing_facts`, with the bag of words."""
    words = result.bag_of_words
    return {
        "task": result.task,
        "encoder": result.encoder,
        "pooling": result.pooling,
        "bag_of_words": _interval_to_list(words.accuracy),
        "bag_of_words_vocabulary": words.n_words,
        "gain_over_bag_of_words": {
            p.layer: _interval_to_list(gain) for p, gain in zip(result.layers, result.gains, strict=True)
        },
        "note": result.note,
        **probing_facts(result),
    }


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
        "layers": [layer_probe_facts(p) for p in result.layers],
    }


def layer_probe_facts(p: LayerProbe) -> dict[str, Any]:
    """For JSON: one layer's figures."""
    read, description = p.probe, p.probe.description
    facts: dict[str, Any] = {
        "layer": p.layer,
        "verdict": p.verdict,
        "reason": p.reason,
        "features": read.n_features,
        "features_are_means": p.are_means,
        "accuracy": _interval_to_list(read.accuracy),
        "majority": read.majority,
        "control": _interval_to_list(read.control),
        "selectivity": _interval_to_list(read.selectivity),
        "memorized": read.memorized,
        "information_bits": _interval_to_list(read.information),
        "l2": list(read.l2),
    }
    if description is not None:
        facts |= {"bits_per_label": description.bits, "compression": _interval_to_list(description.ratio)}
    if (e := p.erasure) is not None:
        facts["erased"] = {
            "directions": e.rank,
            "p": e.p_value,
            "change": float(e.change.double().mean()),
            "random_change": e.random_change.double().mean(0).tolist(),
            "share_of_own": e.share,
            "own_change": float(e.own_change.double().mean()),
            "predictions_kept": e.kept,
            "accuracy": e.accuracy,
            "erased_accuracy": e.erased_accuracy,
            "remaining_bits": _interval_to_list(e.remaining),
        }
    return facts


def _interval_to_list(interval: Interval) -> list[float]:
    return [interval.mean, interval.low, interval.high]


def _probing_table(result: Probing) -> Table:
    majority = result.layers[0].probe.majority
    caption = f"control: {result.types}; most frequent class {majority:.1%}; erased, random: {result.unit}"
    columns = "accuracy", "control", "code", "erased", "random", "verdict"
    table = names_and_numbers_table(("layer",), columns, caption)
    layers = [p.layer for p in result.layers]
    for p in result.layers:
        read, e = p.probe, p.erasure
        code = "" if read.description is None else f"1/{read.description.ratio.mean:.2f}"
        changes = ("", "") if e is None else (f"{float(h.double().mean()):.2g}" for h in (e.change, e.random_change))
        table.add_row(
            ShortenedName(p.layer, layers),
            f"{read.accuracy.mean:.1%}",
            f"{read.control.mean:.1%}",
            code,
            *changes,
            p.verdict,
        )
    return table
