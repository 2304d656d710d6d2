"""The Typer application that commands register with, and the options of every command."""

from __future__ import annotations

import typer

from .options import MethodsFromOption, VersionOption
from .parsing import errors_as_exit_codes
from .run import MethodCommandGroup

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Open the black box of a PyTorch model: what it sees, what it looks for, why it predicts so, what fools it.",
)

checks = typer.Typer(no_args_is_help=True, help="Experiments that show whether methods can be trusted.")
app.add_typer(checks, name="checks")


RUN_HELP = "Run any method, by its name, on any model and data."
app.add_typer(typer.Typer(cls=MethodCommandGroup, no_args_is_help=True, help=RUN_HELP), name="run")


@app.callback()
def options(methods_from: MethodsFromOption = None, version: VersionOption = False) -> None:
    """The options of every command."""
    if methods_from:
        with errors_as_exit_codes(debug=False):
            from ..loading.factories import import_methods

            for source in methods_from:
                import_methods(source)
