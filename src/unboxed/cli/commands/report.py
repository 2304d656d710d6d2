"""The command `unboxed report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..app import app
from ..completion import complete_sections
from ..options import (
    DATA_HELP,
    ClassesOption,
    DataOption,
    DebugOption,
    DeviceOption,
    LabelOption,
    MeanOption,
    ModelOption,
    OpenBrowserOption,
    OutOption,
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
    current_command_line,
    errors_as_exit_codes,
    load_judge,
    open_box,
    print_report_path_and_exit_on_failure,
    split_names,
)

NO_WEIGHTS_NOTE = "no --weights: the model is as its factory returns it"


@app.command()
def report(
    model: ModelOption, data: DataOption, weights: WeightsOption = None, out: OutOption = Path("out"),
    training: Annotated[
        str | None, typer.Option("--train", help=f"Labeled training examples, for who taught it that: {DATA_HELP}.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="A second, robust model that classifies the generated images.")
    ] = None,
    sections: Annotated[
        list[str] | None,
        typer.Option(
            "--sections", "--section", help="Sections to make, separated by commas (default: all that fit).",
            autocompletion=complete_sections,
        ),
    ] = None,
    example: Annotated[
        str | None,
        typer.Option(help="The example that is followed through the page: its index in the data, or its file's name."),
    ] = None,
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, output: OutputOption = None, device: DeviceOption = None,
    root: RootOption = None, label: LabelOption = None,
    seed: SeedOption = 0, quiet: QuietOption = False,
    show: OpenBrowserOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Open a model on some data: one self-contained page, with its images and numbers beside it."""
    with errors_as_exit_codes(debug):
        from ... import loading
        from ...loading.models import comes_with_weights
        from ...report import report as write

        box, class_names = open_box(model, weights, shape, mean, std, classes, outputs, output, device, seed)
        images = loading.dataset_with_model_classes(data, box, root=root, classes=class_names, quiet=quiet, label=label)
        box = box_with_names_of_data(box, images) if class_names is None else box
        train_data = (
            None
            if training is None
            else loading.dataset_with_model_classes(training, box, root=root, classes=class_names, label=label)
        )
        judge_box = load_judge(judge, box, seed) if judge else None
        is_untrained = weights is None and not comes_with_weights(model)
        if is_untrained:
            typer.secho(f"note: {NO_WEIGHTS_NOTE}", fg="yellow", err=True)
        command = current_command_line() + (f"  # {NO_WEIGHTS_NOTE}" if is_untrained else "")
        followed = int(example) if example is not None and example.isdecimal() else example
        written = write(
            box, images, out, judge=judge_box, training=train_data, sections=split_names(sections), seed=seed,
            quiet=quiet, command=command, example=followed,
        )  # fmt: skip
        if quiet and written.skipped:  # without -q the report says it
            typer.secho(written.skipped, fg="yellow", err=True)
        print_report_path_and_exit_on_failure(written, show)
