"""What a command leaves in its folder: figures, and its numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from ..atomic_write import encode_utf8, write_bytes
from ..engine.results import nonfinite_to_none
from ..plots.files import save


def write_figures_and_facts(
    images: Mapping[str, Any], facts: Mapping[str, Any], out: Path, results_file: str,
    default: Callable[[Any], Any] | None = None,
) -> list[Path]:  # fmt: skip
    """Write {file name: image} and the facts as JSON to `out`; the paths that were written. Raises WriteError.

    `default` makes what is no JSON into something that is.
    """
    paths = [save(image, out / name) for name, image in images.items()]
    text = json.dumps(nonfinite_to_none(facts), indent=1, ensure_ascii=False, default=default)
    return [*paths, write_bytes(out / results_file, encode_utf8(text))]


def print_written_paths(paths: list[Path]) -> None:
    for path in paths:
        typer.echo(f"wrote {path}")
