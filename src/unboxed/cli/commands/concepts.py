"""The command `unboxed concepts`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..app import app
from ..options import (
    ClassesOption,
    DataOption,
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
    parse_class,
    refuse_texts,
)


@app.command()
def concepts(
    model: ModelOption, data: DataOption,
    concept: Annotated[
        list[str] | None,
        typer.Option(help="NAME=FOLDER of examples that have the concept; repeat for more concepts. Default: simple "
                          "concepts that are computed from the data, such as brightness."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Class whose score is tested. Default: each example's predicted class.")
    ] = None,
    layers: Annotated[str | None, typer.Option(help="Layers, separated by commas. Default: up to 4.")] = None,
    random: Annotated[
        str | None, typer.Option(help="Examples that random sets are drawn from. Default: the data.")
    ] = None,
    relative: Annotated[bool, typer.Option("--relative", help="Each concept against the others.")] = False,
    n: Annotated[int | None, typer.Option("--n", help="Use only the first N examples.")] = None,
    n_random: Annotated[int, typer.Option(help="Number of random sets.")] = 20,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures and numbers.")] = Path("concepts"),
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, output: OutputOption = None, device: DeviceOption = None,
    root: RootOption = None, label: LabelOption = None,
    seed: SeedOption = 0, quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """Does it answer by a concept? TCAV of concepts that folders show, against random examples and random weights."""
    with errors_as_exit_codes(debug):
        from ..concepts import read_concept_options, run_concepts

        box, class_names = open_box(model, weights, shape, mean, std, classes, outputs, output, device, seed)
        refuse_texts(box, "concepts")
        examples: Any = open_dataset(data, box, root=root, classes=class_names, quiet=quiet, label=label)
        box = box_with_names_of_data(box, examples) if class_names is None else box
        given = read_concept_options(concept, box) if concept else None
        run_concepts(
            box, examples, given, None if target is None else parse_class(target, box),
            None if layers is None else layers.split(","), out, relative=relative, n_random=n_random, max_examples=n,
            random_data=None if random is None else open_inputs(random, box), seed=seed,
        )  # fmt: skip
