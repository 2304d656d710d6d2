"""`unboxed predict`: what the model answers to each example, as a table, CSV or JSON, and label maps as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..atomic_write import encode_utf8, to_printable, write_bytes
from ..box import Box
from ..data.texts import Texts
from ..engine.cpu_cache import data_examples_per_batch
from ..engine.proportion import Proportion
from ..engine.read.class_labels import (
    class_order_notes,
    has_class_labels,
    label_assumption,
    labels_to_classes,
    readable_output_names,
)
from ..engine.read.examples import ExamplesWithUnreadLabels, batches_with_unread_labels, has_value_labels
from ..engine.read.output_values import check_output_values, predicted_output_values
from ..engine.results import nonfinite_to_none
from ..errors import UnclearLabelsError, warn
from ..inputs.labels import is_missing_label, readable_class_names
from ..model.nan_checks import check_no_nan
from ..report.words import count_noun, format_number, format_prob, shorten_middle
from ..robustness.output_metrics import metric_intervals, output_statistics
from ..validation import check_int
from .parsing import open_dataset, open_inputs, skipped_files

MAX_PRINTED_ROWS, MAX_TEXT_CHARACTERS = 50, 48
OTHER_COLUMNS = ("example", "file", "text", "label", "map")  # of the predictions beside the answers
MAX_CLASSES_OF_MAP_IMAGE = 256  # of one byte per position
Record = dict[str, Any]  # {column: value} of one example


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model answers to examples: {column: value} of each, and how good that is where there are labels."""

    records: list[Record]
    n_labeled: int
    scores: Mapping[str, Any]  # {name: a number with its 95 % interval}
    class_order: list[str]  # what is to be read beside an accuracy


def open_examples(spec: str, box: Box, *, label: str | None = None, **settings: Any) -> Any:
    """The data that an option names, also what has no label; nothing has one if it is not clear which column does."""
    try:
        return open_dataset(spec, box, label=label, **settings, keep_unlabeled=True)
    except UnclearLabelsError as error:
        if label is not None:
            raise
        warn(f"predicted without labels: {error}")
        return open_inputs(spec, box, **settings)


def run_predict(
    box: Box, data: Any, *, max_examples: int | None = None, top: int = 3, out: Path | None = None,
    as_json: bool = False,
) -> Predictions:  # fmt: skip
    """Print what the model answers to each example, and how often it is right; write it to `out`, .csv or .json.

    Raises DataError, InputError, NaNError and WriteError.
    """
    max_examples = None if max_examples is None else check_int("--n", max_examples, minimum=1)
    maps_dir = out.with_suffix("") if out is not None and box.output_map_shape else None
    found = predict(box, data, max_examples, check_int("--top", top, minimum=1), maps_dir)
    numbers = json.dumps(nonfinite_to_none(_to_dict(found, data)), indent=1, ensure_ascii=False)
    if out is not None:
        write_bytes(out, encode_utf8(numbers if out.suffix.lower() == ".json" else _to_csv(found.records)))
    if as_json:
        print(numbers)
    else:
        _print_predictions(found, out, maps_dir, has_maps=bool(box.output_map_shape))
    return found


def predict(box: Box, data: Any, max_examples: int | None, top: int, maps_dir: Path | None = None) -> Predictions:
    """What the model answers to the examples; label maps are written to `maps_dir`. Raises as `run_predict`."""
    records, statistics = list[Record](), list[Tensor]()
    for batch in _batches(box, data, max_examples):
        logits = check_no_nan(box(box.restore_structure(batch.x)), batch.dataset_rows, "example")
        rows = batch.dataset_rows.tolist()
        answers = list(_answers(box, logits, top, readable_output_names(box)))
        made = [{**_location(data, row), **answer} for row, answer in zip(rows, answers, strict=True)]
        if box.output_map_shape:
            _write_maps(box, logits, made, maps_dir)
        statistics += _add_labels(box, data, batch.labels, logits, made)
        records += made
    found = torch.cat(statistics) if statistics else torch.empty(0, 1)
    scores = _scores(box, found) if len(found) else {}
    notes = class_order_notes(label_assumption(data), scores.get("accuracy"), box.n_outputs)
    return Predictions(records, len(found), scores, notes)


# -- the examples ------------------------------------------------------------------------------------------------------


def _batches(box: Box, data: Any, max_examples: int | None) -> Iterator[ExamplesWithUnreadLabels]:
    """The first examples, in bounded memory."""
    size, n_left = data_examples_per_batch(box), max_examples
    batches = _text_batches(box, data, size) if isinstance(data, Texts) else batches_with_unread_labels(box, data, size)
    for x, labels, rows in batches:
        n = len(x) if n_left is None else min(n_left, len(x))
        yield ExamplesWithUnreadLabels(x[:n], None if labels is None else labels[:n], rows[:n])
        if n_left is not None and (n_left := n_left - n) <= 0:
            return


def _text_batches(box: Box, data: Texts, size: int) -> Iterator[ExamplesWithUnreadLabels]:
    examples = iter(enumerate(data))
    while part := list(islice(examples, size)):
        x = box.validate_inputs([text for _, (text, _) in part])
        yield ExamplesWithUnreadLabels(x, [label for _, (_, label) in part], torch.tensor([i for i, _ in part]))


def _location(data: Any, row: int) -> Record:
    """Which example it is: its index in the data, and its file or text."""
    if isinstance(data, Texts):
        return {"example": row, "text": data.texts[row]}
    paths = getattr(data, "paths", None)
    return {"example": row} if paths is None else {"example": row, "file": to_printable(str(paths[row]))}


# -- answers -----------------------------------------------------------------------------------------------------------


def _answers(box: Box, logits: Tensor, top: int, names: Sequence[str]) -> Iterator[Record]:
    """Of numbers and labels one column each; of classes the most probable ones; of maps the shares of the classes."""
    if box.outputs == "regression":
        means = logits.flatten(2).mean(2) if box.output_map_shape else logits
        yield from (dict(zip(map(_column_name, names), row, strict=True)) for row in means.tolist())
    elif box.output_map_shape:
        maps = predicted_output_values(box, logits)
        is_class = torch.stack([maps == k for k in range(len(names))], 1) if box.outputs != "multilabel" else maps
        yield from _top_records(is_class.double().flatten(2).mean(2), top, names, "share")
    elif box.outputs == "multilabel":
        probs = box.probs_from_logits(logits).tolist()
        yield from (dict(zip(map(_column_name, names), row, strict=True)) for row in probs)
    else:
        yield from _top_records(box.probs_from_logits(logits), top, names, "probability")


def _column_name(output_name: str) -> str:
    return f"output {output_name}" if output_name in OTHER_COLUMNS else output_name


def _top_records(values: Tensor, top: int, names: Sequence[str], value_name: str) -> Iterator[Record]:
    """The largest of values (N, K), with their names: prediction, probability, prediction_2, probability_2, ..."""
    largest = values.topk(min(top, values.shape[1]), 1)
    suffixes = ["", *(f"_{i + 1}" for i in range(1, top))]
    for row, classes in zip(largest.values.tolist(), largest.indices.tolist(), strict=True):
        pairs = zip(suffixes, classes, row, strict=False)
        yield {k: v for end, c, p in pairs for k, v in ((f"prediction{end}", names[c]), (f"{value_name}{end}", p))}


def _write_maps(box: Box, logits: Tensor, records: Sequence[Record], folder: Path | None) -> None:
    """Each map as a file, named by its example: of classes a gray image with the class number of each pixel."""
    if folder is None:
        return
    for values, record in zip(predicted_output_values(box, logits).cpu(), records, strict=True):
        name = "-".join([str(record["example"]), *([Path(record["file"]).stem] if "file" in record else [])])
        is_image = values.ndim == 2 and not values.is_floating_point() and box.n_outputs <= MAX_CLASSES_OF_MAP_IMAGE
        path = folder / f"{name}{'.png' if is_image else '.npy'}"
        record["map"] = str(write_bytes(path, _png(values) if is_image else _npy(values)))


def _png(values: Tensor) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(values.to(torch.uint8).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _npy(values: Tensor) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.numpy(), allow_pickle=False)
    return buffer.getvalue()


# -- labels ------------------------------------------------------------------------------------------------------------


def _add_labels(box: Box, data: Any, labels: Any, logits: Tensor, records: Sequence[Record]) -> list[Tensor]:
    """Put the label into the record of each example that has one; the statistics (n, S) that scores sum up."""
    has_classes = has_class_labels(box)
    are_values = not has_classes and has_value_labels(data)
    has_label = [] if labels is None else [not is_missing_label(label, is_value=are_values) for label in labels]
    rows = [i for i, is_there in enumerate(has_label) if is_there]
    if not rows:
        return []
    given = labels[rows] if isinstance(labels, Tensor) else [labels[i] for i in rows]
    if not has_classes:
        values = check_output_values(box, given, len(rows))
        if values.ndim == 2 and values.shape[1] == 1:
            for i, value in zip(rows, values[:, 0].tolist(), strict=True):
                records[i]["label"] = value
        return [output_statistics(box, logits[rows], values).cpu()]
    classes = box.class_labels(labels_to_classes(box, data, given), len(rows))
    names = readable_class_names(box.classes)
    for i, k in zip(rows, classes.tolist(), strict=True):
        records[i]["label"] = names[k]
    return [(logits[rows].argmax(1) == classes).double()[:, None].cpu()]


def _scores(box: Box, statistics: Tensor) -> dict[str, Any]:
    if has_class_labels(box):
        return {"accuracy": Proportion(int(statistics.sum()), len(statistics))}
    return dict(metric_intervals(box, statistics))


# -- views -------------------------------------------------------------------------------------------------------------


def _score_dict(score: Any) -> dict[str, float]:
    return (
        score.to_dict()
        if isinstance(score, Proportion)
        else {"value": score.mean, "low": score.low, "high": score.high}
    )


def _to_dict(found: Predictions, data: Any) -> dict[str, Any]:
    scores = {name: _score_dict(score) for name, score in found.scores.items()}
    return {
        "scores": scores,
        "class_order": found.class_order,
        "predictions": found.records,
        "skipped": skipped_files(data),
    }


def _columns(records: Sequence[Record]) -> list[str]:
    """The columns of all records, in their order, with the label at the end."""
    names = list(dict.fromkeys(chain.from_iterable(records)))
    return sorted(names, key=lambda name: name == "label")


def _to_csv(records: Sequence[Record]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(records), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _print_predictions(found: Predictions, out: Path | None, maps_dir: Path | None, *, has_maps: bool) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = [_printed_record(record) for record in found.records[:MAX_PRINTED_ROWS]]
    columns = _columns(shown)
    table = Table(*map(escape, columns), box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for record in shown:
        is_wrong = "label" in record and record.get("prediction", record["label"]) != record["label"]
        table.add_row(*(escape(record.get(name, "")) for name in columns), style="red" if is_wrong else None)
    console = Console()
    console.print(table)
    if n_more := len(found.records) - len(shown):
        console.print(f"and {n_more:,} more" + (": -o predictions.csv has all of them" if out is None else ""))
    for name, score in found.scores.items():
        value = (
            str(score)
            if isinstance(score, Proportion)
            else "{} ({} to {})".format(*map(format_number, (score.mean, score.low, score.high)))
        )
        examples = count_noun(found.n_labeled, "labeled example")
        console.print(f"{name} {value}, {examples}; 95% interval in brackets", highlight=False)
    for note in found.class_order:
        console.print(note, style="yellow", highlight=False, markup=False)
    if has_maps:
        text = f"label maps: {maps_dir}" if maps_dir else "-o predictions.csv writes the maps, too, to predictions/"
        console.print(text, highlight=False)
    if out is not None:
        console.print(f"wrote {out}", highlight=False)


def _printed_record(record: Record) -> dict[str, str]:
    """The cells of an example: classes after the first one are in one column."""
    cells = {name: _cell(name, value) for name, value in record.items()}
    ranks = [name.removeprefix("prediction") for name in cells if name.startswith("prediction_")]
    value_name = "share" if "share" in cells else "probability"
    runners_up = {"then": ", ".join(f"{cells[f'prediction{k}']} {cells[f'{value_name}{k}']}" for k in ranks)}
    kept = {name: text for name, text in cells.items() if not name.endswith(tuple(ranks or ("_",)))}
    return kept | (runners_up if ranks else {})


def _cell(name: str, value: Any) -> str:
    """A value as it is printed: of a path its last part, of a long text its ends."""
    if isinstance(value, float):
        return format_prob(value) if name.startswith(("probability", "share")) else format_number(value, 4)
    return shorten_middle(Path(value).name if name in ("file", "map") else str(value), MAX_TEXT_CHARACTERS)
