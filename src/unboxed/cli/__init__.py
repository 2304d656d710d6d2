"""The command line. A command is a file in `commands/`; what is longer than a call of the library lies beside it.

What Python users need as well moves into the library.
"""

from __future__ import annotations

from . import commands as commands
from .app import app as app
from .parsing import escape_undecodable_output


def main() -> None:
    escape_undecodable_output()
    app(prog_name="unboxed")
