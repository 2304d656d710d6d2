"""The command `unboxed probe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import InputError
from ..app import app
from ..options import (
    DATA_HELP,
    MODEL_HELP,
    ClassesOption,
    DebugOption,
    DeviceOption,
    LabelOption,
    MeanOption,
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
    refuse_options,
)


@app.command()
def probe(
    model: Annotated[str | None, typer.Option(help=MODEL_HELP)] = None,
    data: Annotated[str | None, typer.Option(help=f"{DATA_HELP}.")] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Sentences in SentEval's format, in place of --data: lines of tr, va or te, a label and a "
                          "sentence, separated by tabs; also .gz. For a model of texts, or --vectors."),
    ] = None,
    vectors: Annotated[
        Path | None, typer.Option(help="Word vectors whose mean is a sentence's, in place of --model.")
    ] = None,
    pooling: Annotated[
        str, typer.Option(help="With --text: the mean of a layer's tokens, or the first or last one.")
    ] = "mean",
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
    outputs: OutputsOption = None, output: OutputOption = None, device: DeviceOption = None,
    root: RootOption = None, label: LabelOption = None,
    seed: SeedOption = 0, quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """What does it know? From which layers an attribute can be read, and whether the model uses it.

    With --text, or --data of a model of texts: what vectors of sentences carry, beside a bag of words.
    """
    with errors_as_exit_codes(debug):
        from ..probe import read_attribute_file, run_probe, run_probe_sentences

        addresses = None if layers is None else layers.split(",")
        settings: dict[str, Any] = {"kind": "mlp" if mlp else "linear", "n_random": n_random, "seed": seed}
        if text is not None:
            refuse_options("--text", {"--data": data, "--attribute": attribute, "--n": n})
            if (model is None) == (vectors is None):
                raise InputError("--text wants --model, a model of texts, or --vectors, a file of word vectors")
            opened = (
                None
                if model is None
                else open_box(model, weights, shape, mean, std, classes, outputs, output, device, seed)[0]
            )
            run_probe_sentences(text, opened, vectors, addresses, out, pooling=pooling, **settings)
            return
        if model is None or data is None or vectors is not None:
            raise InputError("wanted --model and --data, or --text with --model or --vectors")
        box, class_names = open_box(model, weights, shape, mean, std, classes, outputs, output, device, seed)
        examples: Any = open_dataset(data, box, root=root, classes=class_names, quiet=quiet, label=label)
        if getattr(box.inputs, "is_text", False):
            refuse_options("--data of texts", {"--attribute": attribute})
            labeled = type(examples)(examples.texts[:n], examples.labels[:n], examples.classes, examples.name)
            run_probe_sentences(labeled, box, None, addresses, out, pooling=pooling, **settings)
            return
        box = box_with_names_of_data(box, examples) if class_names is None else box
        values = None if attribute is None else read_attribute_file(attribute)
        run_probe(box, examples, values, addresses, out, max_examples=n, **settings)
