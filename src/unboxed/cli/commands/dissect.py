"""The command `unboxed dissect`."""

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
from ..parsing import errors_as_exit_codes, open_box, open_dataset, refuse_texts


@app.command()
def dissect(
    model: ModelOption,
    data: Annotated[
        str | None, typer.Option(help=f"{DATA_HELP}. Default, of a generator: random codes.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Layers, separated by commas. Default: the last of each size.")
    ] = None,
    concept: Annotated[
        str | None, typer.Option(help="Of a generator: find the units of --layers NAME that draw this concept.")
    ] = None,
    segmenter: Annotated[
        str | None,
        typer.Option(help="module:factory or file.py:factory of a function from images (N, C, H, W) to masks "
                          "(K, N, H, W). Default: strokes, holes and quadrants of digits."),
    ] = None,
    quantile: Annotated[float, typer.Option(help="Share of a unit's values that is above its threshold.")] = 0.005,
    min_iou: Annotated[float, typer.Option(help="IoU above which a unit is a detector.")] = 0.04,
    n: Annotated[int | None, typer.Option("--n", help="Use only the first N examples, or draw N codes.")] = None,
    n_random: Annotated[int, typer.Option(help="Twins: random models and bases, or random sets of units.")] = 19,
    signed: Annotated[bool, typer.Option("--signed", help="The generator's images are in [-1, 1].")] = False,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the figures and numbers.")] = Path("dissect"),
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, output: OutputOption = None, device: DeviceOption = None,
    root: RootOption = None, label: LabelOption = None,
    seed: SeedOption = 0, quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:  # fmt: skip
    """What do its units detect? Units against concepts, beside twins; and which units of a generator draw one."""
    with errors_as_exit_codes(debug):
        from ..dissect import build_segmenter, random_codes, run_causal_units, run_dissect, signed_to_unit_range

        box, class_names = open_box(model, weights, shape, mean, std, classes, outputs, output, device, seed)
        refuse_texts(box, "dissect")
        examples: Any = (
            random_codes(box, n, seed) if data is None
            else open_dataset(data, box, root=root, classes=class_names, quiet=quiet, label=label)
        )  # fmt: skip
        addresses = None if layers is None else layers.split(",")
        settings: dict[str, Any] = {
            "segmenter": build_segmenter(segmenter, seed), "decode": signed_to_unit_range if signed else None,
            "max_examples": n, "n_random": n_random, "seed": seed,
        }  # fmt: skip
        if concept is not None:
            run_causal_units(box, examples, concept, addresses, out, **settings)
            return
        settings |= {"quantile": quantile, "min_iou": min_iou, "n_rotations": n_random}
        run_dissect(box, examples, addresses, out, **settings)
