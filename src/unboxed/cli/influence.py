"""`unboxed influence`: the training examples that helped and harmed each answer, as a table, a figure and numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..atomic_write import to_printable
from ..box import Box
from ..cards import Card, cards, find_card
from ..checks.influence_verdict import influence_verdict
from ..checks.verdict import Verdict
from ..engine.example_gradients.labels import indexed_query_examples, indexed_training_examples
from ..engine.read.examples import OptionallyLabeledExamples
from ..errors import InputError
from ..influence import Influence, gradient_store
from ..influence.influence_functions import without_large_score_warning
from ..plots.results.influence import format_signed_score, influence_figure
from ..report.words import count_noun, format_number
from ..validation import check_int
from .parsing import skipped_files
from .results import print_written_paths, write_figures_and_facts

DEFAULT_INFLUENCE_METHOD = "influence_functions"
FIGURE_FILE, RESULTS_FILE = "influence.png", "influence.json"
METHOD_NAME_WITH_STORE = "gradient_dot"
N_VERDICT_QUERIES, MAX_VERDICT_TRAIN_EXAMPLES = 12, 1000  # queries and training examples that a method is judged on
TRAINING_DATA_SETTING_NAME = "train"  # of the methods that need nothing but training examples


def influence_cards() -> tuple[Card, ...]:
    """The methods that need a trained model and its training examples alone."""
    return tuple(
        card for card in cards()
        if card.family == "influence" and card.returns == "influence" and TRAINING_DATA_SETTING_NAME in card.settings
        and not [s.name for s in card.settings.values() if s.is_required and s.name not in ("x", "labels", "train")]
    )  # fmt: skip


def run_influence(
    box: Box,
    train: Any,
    query: Any,
    out: str | os.PathLike[str],
    *,
    method: str = DEFAULT_INFLUENCE_METHOD,
    solver: str | None = None,
    n_queries: int = 4,
    n_train: int | None = None,
    k: int = 8,
    store: Path | None = None,
    with_verdict: bool = True,
    seed: int = 0,
) -> Influence:
    """Score training examples for the first queries: print a table, write a figure and numbers to `out`.

    What is explained is the loss of the predicted class or labels: an example is helpful where it made this answer
    likelier; of a regression it is the loss of the queries' numbers. Raises DataError, InputError and WriteError.
    """
    card = find_card(method, influence_cards())
    queries = indexed_query_examples(box, query, check_int("--n", n_queries, minimum=1))
    train_x, train_y, rows = indexed_training_examples(box, train, n_train)
    places = _ExampleLocations(rows.tolist(), getattr(train, "paths", None))
    k = min(check_int("--k", k, minimum=1), len(train_x))
    train_data = (box.restore_structure(train_x), train_y)
    scoring = _bound_influence_method(card, store, solver, seed)
    result = scoring(box, box.restore_structure(queries.x), _explained_labels(box, queries), train_data)
    if not isinstance(result, Influence):
        raise InputError(f"{method} gives no scores of training examples for queries")
    judged = _influence_verdict(box, query, card, train_data, solver, seed) if with_verdict else None
    query_names = _ExampleLocations(queries.dataset_rows.tolist(), getattr(query, "paths", None), "query").names
    images = {FIGURE_FILE: influence_figure(result, box, train_data, places.names, query_names)}
    names = _query_names(box, result, queries, query_names)
    facts = {"method": card.key, "model": type(box.model).__name__, **influence_facts(result, box, names, places, k)}
    facts["skipped"] = [*skipped_files(train), *skipped_files(query)]
    facts |= {"verdict": judged.to_dict()} if judged is not None else {}
    paths = write_figures_and_facts(images, facts, Path(out), RESULTS_FILE, default=str)
    typer.echo(_settings_line(card, result))
    for i, name in enumerate(names):
        Console().print(_query_influence_table(result, box, i, name, places, k))
    if judged is not None:
        typer.echo(f"{judged.method}: {judged.badge}. {judged.sentence}")
    print_written_paths(paths)
    return result


def _settings_line(card: Card, result: Influence) -> str:
    """What the scores depend on: another solver or damping gives others."""
    settings = [f"{name} {value:.2g}" if isinstance(value, float) else f"{name} {value}" for name, value in
                result.settings.items() if isinstance(value, (str, int, float))]  # fmt: skip
    return ", ".join([f"{card.name} of {count_noun(result.n_train, 'training example')}", *settings])


def _explained_labels(box: Box, queries: OptionallyLabeledExamples) -> Tensor | None:
    """The labels whose loss is explained: the predicted ones (None), but of a regression, which predicts none."""
    return queries.y if box.outputs == "regression" else None


def _bound_influence_method(card: Card, store: Path | None, solver: str | None, seed: int) -> Callable[..., Influence]:
    """The method with its settings; gradient dot from a store, where there is one."""
    if solver is not None and "solver" not in card.settings:
        takers = ", ".join(card.key for card in influence_cards() if "solver" in card.settings)
        raise InputError(f"--solver is for methods that invert a curvature ({takers}); got --method {card.key}")
    if store is not None:
        if card.key != METHOD_NAME_WITH_STORE:
            raise InputError(f"--store keeps gradients for --method {METHOD_NAME_WITH_STORE}; got --method {card.key}")
        return lambda box, x, labels, train: gradient_store(box, train, store).scores(x, labels)
    settings: dict[str, Any] = {"seed": seed} if "seed" in card.settings else {}
    settings |= {} if solver is None else {"solver": solver}
    return partial(card.method, **settings)


def _influence_verdict(
    box: Box, query: Any, card: Card, train: tuple[Any, Tensor], solver: str | None, seed: int
) -> Verdict:
    """The verdict on the method's scores of some evenly spread training examples."""
    queries, method = (
        indexed_query_examples(box, query, N_VERDICT_QUERIES),
        _bound_influence_method(card, None, solver, seed),
    )
    x, y = box.restore_structure(queries.x), _explained_labels(box, queries)
    step = max(1, -(-len(train[1]) // MAX_VERDICT_TRAIN_EXAMPLES))
    with without_large_score_warning():
        some = box.restore_structure(box.validate_inputs(train[0])[::step]), train[1][::step]
        return influence_verdict(box, x, method, y, some, seed=seed)


@dataclass(frozen=True)
class _ExampleLocations:
    """Where examples are in their data, of which files that can't be read are left out."""

    rows: Sequence[int]
    paths: Sequence[Path] | None  # of all files of the data
    noun: str = "example"

    def of(self, j: int) -> dict[str, Any]:
        """The index of an example, and its file where it is one."""
        row = self.rows[j]
        return {"example": row} if self.paths is None else {"example": row, "file": str(self.paths[row])}

    @property
    def names(self) -> list[str]:
        """What each is called: its file, or its number."""
        if self.paths is None:
            return [f"{self.noun} {row}" for row in self.rows]
        return [to_printable(self.paths[row].name) for row in self.rows]


def influence_facts(
    result: Influence, box: Box, names: Sequence[str], places: _ExampleLocations, k: int
) -> dict[str, Any]:
    """For JSON: of each query the most helpful and harmful examples, with their scores and labels."""
    return {
        "unit": result.unit,
        "truth": result.truth,
        "train_examples": result.n_train,
        "settings": dict(result.settings),
        "queries": [
            {
                "query": name,
                "helpful": _top_influence_entries(result, box, i, places, k, 1),
                "harmful": _top_influence_entries(result, box, i, places, k, -1),
            }
            for i, name in enumerate(names)
        ],
    }


def _top_influence_entries(
    result: Influence, box: Box, query: int, places: _ExampleLocations, k: int, sign: int
) -> list[dict[str, Any]]:
    """The k most helpful (sign 1) or most harmful (-1) examples of a query; those of the other sign are left out."""
    index = (result.top(k) if sign > 0 else result.bottom(k))[query].tolist()
    scores = {j: float(result.scores[query, j]) for j in index}
    return [
        {**places.of(j), "score": score, "label": _train_label_text(result, box, j)}
        for j, score in scores.items()
        if sign * score > 0
    ]


def _train_label_text(result: Influence, box: Box, index: int) -> str | None:
    return None if result.train_labels is None else _label_text(box, result.train_labels[index])


def _query_names(box: Box, result: Influence, queries: OptionallyLabeledExamples, names: list[str]) -> list[str]:
    """Which row each query is, what is predicted for it, and its label where there is one."""
    predicted = box(box.restore_structure(queries.x)) if box.outputs == "regression" else result.target
    if isinstance(predicted, Tensor):
        names = [f"{name}: predicted {_label_text(box, p)}" for name, p in zip(names, predicted, strict=True)]
    if queries.y is None:
        return names
    return [f"{name}, label {_label_text(box, y)}" for name, y in zip(names, queries.y, strict=True)]


def _label_text(box: Box, label: Tensor) -> str:
    """A class by its name, several labels by the names of those that hold, numbers in figures."""
    if not label.is_floating_point():
        return box.classes[int(label)]
    if box.outputs == "multilabel":
        return (
            ", ".join(name for name, value in zip(box.classes, label.flatten(), strict=True) if value > 0.5) or "none"
        )
    return ", ".join(map(format_number, label.flatten().tolist()))


def _query_influence_table(
    result: Influence, box: Box, query: int, name: str, places: _ExampleLocations, k: int
) -> Table:
    """The most helpful and the most harmful examples side by side."""
    table = Table(title=f"{name} ({result.unit})", title_justify="left")
    for side in ("helpful", "harmful"):
        table.add_column(side, overflow="fold")  # long names differ at their ends
        table.add_column("label")
        table.add_column("score", no_wrap=True)
    helpful, harmful = (_top_influence_entries(result, box, query, places, k, sign) for sign in (1, -1))
    for i in range(max(len(helpful), len(harmful))):
        cells = [_influence_entry_cells(side[i]) if i < len(side) else ("", "", "") for side in (helpful, harmful)]
        table.add_row(*cells[0], *cells[1])
    return table


def _influence_entry_cells(entry: dict[str, Any]) -> tuple[str, str, str]:
    example = to_printable(Path(entry["file"]).name) if "file" in entry else f"example {entry['example']}"
    return example, entry["label"] or "", format_signed_score(entry["score"])
