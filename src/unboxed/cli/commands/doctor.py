"""The command `unboxed doctor`."""

from __future__ import annotations

from typing import Annotated

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
    ShapeOption,
    StdOption,
    WeightsOption,
)
from ..parsing import (
    errors_as_exit_codes,
    open_box,
    open_dataset,
)


@app.command()
def doctor(
    model: ModelOption,
    data: Annotated[str | None, typer.Option(help=f"Data to try methods on: {DATA_HELP} (default: noise).")] = None,
    weights: WeightsOption = None, shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None,
    classes: ClassesOption = None,
    outputs: OutputsOption = None, output: OutputOption = None, device: DeviceOption = None,
    root: RootOption = None, label: LabelOption = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    quiet: QuietOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """What works on a model and what does not, and why: every method is tried by its smallest useful call."""
    with errors_as_exit_codes(debug):
        from ..doctor import run_doctor

        box, class_names = open_box(model, weights, shape, mean, std, classes, outputs, output, device)
        images = (
            None if data is None else open_dataset(data, box, root=root, classes=class_names, quiet=quiet, label=label)
        )
        run_doctor(box, images, as_json=json, quiet=quiet or json)
