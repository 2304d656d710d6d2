"""The command `unboxed influence`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..app import app
from ..options import (
    DATA_HELP,
    ClassesOption,
    DebugOption,
    DeviceOption,
    LabelOption,
    MeanOption,
    ModelOption,
    OutputOption,
    OutputsOption,
    QuietOption,
    RootOption,
    SeedOption,
    ShapeOption,
    StdOption,
    WeightsOption,
)
from ..parsing import (
    box_with_names_of_data,
    errors_as_exit_codes,
    open_box,
    open_dataset,
    open_inputs,
    refuse_texts,
)


@app.command()
def influence(
    model: ModelOption, train: Annotated[str, typer.Option(help=f"Labeled training examples: {DATA_HELP}.")],
    query: Annotated[str, typer.Option(help=f"What to explain: {DATA_HELP}.")],
    method: Annotated[
        str, typer.Option(help="A method of the family influence that needs training examples alone, by name.")
    ] = "influence_functions",
    solver: Annotated[
        str | None, typer.Option(help="How the inverse curvature is applied, of methods that take it: auto, cg, exact, "
        "lissa, arnoldi, ekfac, kfac or diagonal (default: auto).")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Explain the first N queries.")] = 4,
    train_n: Annotated[int | None, typer.Option(help="Use only the first N training examples.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder for the training examples' gradients: an interrupted run goes on, and "
        "later queries take seconds. For --method gradient_dot.")
    ] = None,
    verdict: Annotated[
        bool, typer.Option(help="Test whether the scores can be trusted, on some of the examples.")
    ] = True,
    k: Annotated[int, typer.Option("--k", help="Helpful and harmful examples to list of each query.")] = 8,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figure and numbers.")] = Path("influence"),
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, output: OutputOption = None, device: DeviceOption = None,
    root: RootOption = None, label: LabelOption = None, seed: SeedOption = 0, quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Who taught it that? The training examples that made an answer likelier, and those that made it less likely."""
    with errors_as_exit_codes(debug):
        from ..influence import run_influence

        box, class_names = open_box(model, weights, shape, mean, std, classes, outputs, output, device, seed)
        refuse_texts(box, "influence")
        settings: dict[str, Any] = {"root": root, "classes": class_names, "quiet": quiet, "label": label}
        train_data = open_dataset(train, box, **settings)
        box = box_with_names_of_data(box, train_data) if class_names is None else box
        queries = open_inputs(query, box, **settings)
        run_influence(
            box,
            train_data,
            queries,
            out,
            method=method,
            solver=solver,
            n_queries=n,
            n_train=train_n,
            k=k,
            store=store,
            with_verdict=verdict,
            seed=seed,
        )
