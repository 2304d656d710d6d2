"""The command `unboxed predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import DataError, InputError
from ..app import app
from ..options import (
    DATA_HELP,
    ClassesOption,
    DebugOption,
    DeviceOption,
    JsonOption,
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
from ..parsing import box_with_names_of_data, errors_as_exit_codes, open_box

OUT_SUFFIXES = (".csv", ".json")


@app.command()
def predict(
    model: ModelOption,
    data: Annotated[
        str | None,
        typer.Option(help=f"{DATA_HELP}; of a model of texts a CSV, TSV, JSONL or .txt file. Labels are optional."),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", help="A text, of a model of texts; repeat for several.")
    ] = None,
    top: Annotated[int, typer.Option(help="Classes to list of each example, the most probable first.")] = 3,
    n: Annotated[int | None, typer.Option("--n", help="Use only the first N examples.")] = None,
    weights: WeightsOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="A .csv or .json file for all of it; label maps are written beside it."),
    ] = None,
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, output: OutputOption = None, device: DeviceOption = None,
    root: RootOption = None, label: LabelOption = None,
    seed: SeedOption = 0, quiet: QuietOption = False, json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """What does the model answer? Classes with probabilities, numbers or label maps, and the accuracy with labels."""
    with errors_as_exit_codes(debug):
        if (data is None) == (not text):
            raise DataError('what is to be predicted? Give --data, or of a model of texts --text "..."')
        if out is not None and out.suffix.lower() not in OUT_SUFFIXES:
            raise InputError(f"predictions are written as {' or '.join(OUT_SUFFIXES)}; got -o {out}")
        from ..predict import open_examples, run_predict

        box, class_names = open_box(model, weights, shape, mean, std, classes, outputs, output, device, seed)
        examples: Any
        if data is None:
            from ...data.texts import Texts
            from ...report.word_effects import require_text_inputs

            require_text_inputs(box)
            examples = Texts(text or ())
        else:
            examples = open_examples(data, box, root=root, classes=class_names, quiet=quiet, label=label)
            box = box_with_names_of_data(box, examples) if class_names is None else box
        run_predict(box, examples, max_examples=n, top=top, out=out, as_json=json)
