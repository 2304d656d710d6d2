"""The command `unboxed attack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import InputError
from ..app import app
from ..completion import AttackListingCommand, complete_attacks
from ..options import (
    ClassesOption,
    DataOption,
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
from ..parsing import (
    box_with_names_of_data,
    errors_as_exit_codes,
    open_box,
    open_dataset,
    parse_fraction,
    refuse_texts,
    split_names,
)

USUAL_EPS_TEXT = "Give --eps: 8/255 is usual for photos, 0.1 to 0.3 for digits, a standard deviation or less for tables"


@app.command(cls=AttackListingCommand)
def attack(
    model: ModelOption, data: DataOption,
    eps: Annotated[
        list[str] | None,
        typer.Option(help="Perturbation budget, needed: of images in [0, 1], 0.03 or 8/255; of tables in standard "
                          "deviations of a column, 0.5; .1,.2 is a curve."),
    ] = None,
    attacks: Annotated[
        list[str] | None, typer.Option(
            "--attack", help="Attacks by name, separated by commas (listed below).", autocompletion=complete_attacks
        ),
    ] = None,
    norm: Annotated[str | None, typer.Option(help="linf, l2 or l1 (default: the first that the attacks take).")] = None,
    n: Annotated[int | None, typer.Option("--n", help="Use only the first N examples.")] = 500,
    bits: Annotated[
        int | None, typer.Option(help="8: adversarial images of 8 bits per value, saved as PNG files.")
    ] = None,
    weights: WeightsOption = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images, numbers and checkpoint.")] = Path(
        "attacked"
    ),
    shape: ShapeOption = None, mean: MeanOption = None, std: StdOption = None, classes: ClassesOption = None,
    outputs: OutputsOption = None, output: OutputOption = None, device: DeviceOption = None,
    root: RootOption = None, label: LabelOption = None,
    seed: SeedOption = 0, quiet: QuietOption = False,
    json: JsonOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """What fools the model? Clean and robust accuracy, adversarial images, and checks of gradient masking.

    After an interruption the same command continues.
    """
    with errors_as_exit_codes(debug):
        from ..attack import run_attack

        eps_values = [parse_fraction("--eps", e) for e in split_names(eps) or ()]
        if not eps_values:
            raise InputError(f"how far may an input be changed? {USUAL_EPS_TEXT}")
        box, class_names = open_box(model, weights, shape, mean, std, classes, outputs, output, device, seed)
        refuse_texts(box, "attack")
        images = open_dataset(data, box, root=root, classes=class_names, quiet=quiet, label=label)
        box = box_with_names_of_data(box, images) if class_names is None else box
        settings: dict[str, Any] = {"norm": norm, "max_examples": n, "bits": bits, "seed": seed}
        settings |= {"quiet": quiet or json, "as_json": json}
        result = run_attack(box, images, out, attacks=split_names(attacks) or (), eps=eps_values, **settings)
        if result.interrupted:
            raise KeyboardInterrupt
