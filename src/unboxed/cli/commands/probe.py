"""The command `unboxed probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..app import app
from ..options import (
    ClassesOption,
    DataOption,
    DebugOption,
    MeanOption,
    ModelOption,
    OutputsOption,
    QuietOption,
    RootOption,
    SeedOption,
    ShapeOption,
    StdOption,
    WeightsOption,
)
from ..parsing import box_with_data_class_names, errors_as_exit_codes, open_box, refuse_texts


@app.command()
def probe(
    model: ModelOption, data: DataOption,
    attribute: Annotated[
        str | None,
        typer.Option(help="A CSV, TSV or Parquet file with a row per example, in their order; FILE:COLUMN names one of "
                          "several columns. Default: the labels of the data."),
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, separated by commas. Default: input and 6 more.")] = None,
    mlp: Annotated[bool, typer.Option("--mlp", help="Probes with a hidden layer.")] = False,
    n: Annotated[int | None, typer.Option("--n", help="Use only the first N examples.")] = None,
    n_random: Annotated[int, typer.Option(help="Sets of random directions; 0 leaves out whether it is used.")] = 39,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures and numbers.")] = Path("probe"),
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, root: RootOption = None, seed: SeedOption = 0, quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """What does it know? From which layers an attribute can be read, and whether the model uses it."""
    with errors_as_exit_codes(debug):
        from ... import loading
        from ..probe import read_attribute_file, run_probe

        box, class_names = open_box(model, weights, shape, mean, std, classes, outputs, seed)
        refuse_texts(box, "probe")
        examples: Any = loading.dataset_with_model_labels(data, box, root=root, classes=class_names, quiet=quiet)
        box = box_with_data_class_names(examples, box) if class_names is None else box
        values = None if attribute is None else read_attribute_file(attribute)
        addresses = None if layers is None else layers.split(",")
        settings = {"kind": "mlp" if mlp else "linear", "n_random": n_random, "max_examples": n, "seed": seed}
        run_probe(box, examples, values, addresses, out, **settings)
