"""The command `unboxed checks shortcut`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..app import checks
from ..options import (
    DebugOption,
    QuietOption,
    SeedOption,
)
from ..parsing import (
    current_command_line,
    errors_as_exit_codes,
)


@checks.command()
def shortcut(
    marked: Annotated[
        str, typer.Option(help="Digits that get a trigger, each at its own position: 3, or 3,8, or all.")
    ] = "3",
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the images and the numbers.")] = Path("out"),
    seed: SeedOption = 0,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Train a model on a spurious cue, a trigger that gives the digit away: which methods show it? About a minute."""
    with errors_as_exit_codes(debug):
        import torch
        from rich.console import Console

        from ...report.shortcut import parse_trigger, run_shortcut_check, shortcut_results_table

        torch.set_num_threads(1)  # as for the demo
        result, path = run_shortcut_check(
            out, parse_trigger(marked), seed=seed, quiet=quiet, command=current_command_line()
        )
        Console().print(shortcut_results_table(result))
        typer.echo(f"wrote {path}")
        if result.interrupted:
            raise KeyboardInterrupt
