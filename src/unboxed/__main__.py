"""`python -m unboxed` is the command line."""

from .cli import main

main()
