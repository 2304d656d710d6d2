"""The command `unboxed train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..app import app
from ..options import (
    DebugOption,
    QuietOption,
    RootOption,
    SeedOption,
    TrainingDataOption,
)
from ..parsing import (
    errors_as_exit_codes,
    parse_fraction,
)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help="A model of the zoo, such as mnist-cnn.")],
    data: TrainingDataOption = None,
    epochs: Annotated[int | None, typer.Option(help="Number of epochs (default: that of its recipe).")] = None,
    defend: Annotated[
        str | None, typer.Option(help="Adversarial training: a key of unboxed.training.DEFENSES, such as pgd.")
    ] = None,
    eps: Annotated[
        str | None, typer.Option(help="Perturbation budget: 0.3 or 8/255 (default: that of its recipe, or 0.3).")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="File from which an interrupted training continues.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the weights (.safetensors).")] = None,
    root: RootOption = None, seed: SeedOption = 0, quiet: QuietOption = False, debug: DebugOption = False,
) -> None:  # fmt: skip
    """Train a model of the zoo; save its weights and a card that says how they were made."""
    with errors_as_exit_codes(debug):
        from ... import training

        eps_value = None if eps is None else parse_fraction("--eps", eps)
        settings = {"data": data, "epochs": epochs, "defend": defend, "eps": eps_value, "checkpoint": checkpoint}
        training_result = training.train(name, **settings, out=out, root=root, seed=seed, quiet=quiet)  # type: ignore[arg-type]
        typer.echo(training_result)
        if training_result.card["interrupted"]:
            raise KeyboardInterrupt
