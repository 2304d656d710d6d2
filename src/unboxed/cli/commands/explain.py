"""The command `unboxed explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import DataError, InputError
from ...validation import missing_path_text
from ..app import app
from ..completion import complete_attributions
from ..options import (
    BaselineOption,
    ClassesOption,
    DebugOption,
    DeviceOption,
    JsonOption,
    LabelOption,
    MeanOption,
    ModelOption,
    OptionalInputArgument,
    OutputOption,
    OutputsOption,
    QuietOption,
    SeedOption,
    ShapeOption,
    StdOption,
    WeightsOption,
)
from ..parsing import (
    errors_as_exit_codes,
    open_box,
    split_names,
)


@app.command()
def explain(
    model: ModelOption, source: OptionalInputArgument = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="A text to explain, of a model of texts; repeat for several."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--methods",
            "--method",
            help="Attribution methods by name, separated by commas (default: five well-known ones).",
            autocompletion=complete_attributions,
        ),
    ] = None,
    all_methods: Annotated[bool, typer.Option("--all", help="All methods that fit the model.")] = False,
    target: Annotated[
        str | None, typer.Option(help="Class to explain, by name or number (default: the predicted one).")
    ] = None,
    versus: Annotated[
        str | None, typer.Option(help="Another class: what speaks for the target and against this one?")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Explain the first N inputs of a folder, an array or a table.")] = 4,
    row: Annotated[
        int | None, typer.Option("--row", help="Explain this one of them, counted from 0 as `unboxed predict` does.")
    ] = None,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures and numbers.")] = Path("explained"),
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, output: OutputOption = None, device: DeviceOption = None,
    baseline: BaselineOption = None, label: LabelOption = None, seed: SeedOption = 0, quiet: QuietOption = False,
    json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Why this prediction? Maps of an input by well-known methods, ranked by whether they can be trusted, on a page."""
    with errors_as_exit_codes(debug):
        if source is None and not text:
            raise DataError('what is to be explained? Give a file of inputs, or of a model of texts --text "..."')
        if source is not None and not source.exists():  # before anything heavy is imported
            raise DataError(missing_path_text(source))
        from ..explain import run_explain
        from ..explain_text import run_explain_text

        box, _ = open_box(model, weights, shape, mean, std, classes, outputs, output, device, seed)
        methods = split_names(method) or ("all" if all_methods else None)
        chosen = {"methods": methods, "target": target, "versus": versus, "max_examples": n, "row": row, "label": label}
        settings: dict[str, Any] = {**chosen, "seed": seed, "quiet": quiet or json, "as_json": json}
        if text or getattr(box.inputs, "is_text", False) or source is None:
            if baseline is not None:
                raise InputError("--baseline is for images and tables; of texts masked words are the baseline")
            if run_explain_text(box, text or (), source, out, **settings).interrupted:
                raise KeyboardInterrupt
            return
        explanations = run_explain(box, source, out, baseline=baseline, **settings)
        if any(explanation.interrupted for explanation in explanations):
            raise KeyboardInterrupt
