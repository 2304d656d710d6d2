"""The command `unboxed methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from ..app import app
from ..completion import complete_methods
from ..options import (
    DebugOption,
)
from ..parsing import (
    errors_as_exit_codes,
)


@app.command()
def methods(
    name: Annotated[
        str | None,
        typer.Argument(
            help="One method, with its settings (default: the list of all).", autocompletion=complete_methods
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
    debug: DebugOption = False,
) -> None:
    """List the methods, or one method's settings: what it shows, what it does not, what it needs, its source."""
    with errors_as_exit_codes(debug):
        from ..methods import print_method, print_methods

        if name is None:
            print_methods(as_json=json)
        else:
            print_method(name, as_json=json)
