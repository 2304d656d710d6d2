"""Tables in a terminal of 80 columns: no figure and no verdict is cut; layer names are shortened in the middle."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from unboxed.cli.tables import ShortenedName, names_and_numbers_table

LAYERS = ["vit.layers.0.layernorm_before:input", "vit.layers.2.attention.q_proj:input", "fc:input"]
CAPTION = "the predicted class, 40 examples; cosine: of gradient and concept; p: corrected; p twin: random weights"


def printed(
    width: int, names: tuple[str, ...], columns: tuple[str, ...], cells: tuple[str, ...], layers: list[str] = LAYERS
) -> list[str]:
    table = names_and_numbers_table(names, columns, CAPTION)
    for layer in layers:
        table.add_row(*["left-right symmetry"] * (len(names) - 1), ShortenedName(layer, layers), *cells)
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(table)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("names", "columns", "cells"),
    [
        (("concept", "layer"), ("TCAV", "cosine", "random", "p", "p twin"),
         ("0.39", "-0.046", "0.007", "5.7e-06", "0.00045")),
        (("layer",), ("accuracy", "control", "code", "erased", "random", "verdict"),
         ("100.0%", "41.7%", "1/1.14", "10", "0.053", "not decodable")),
        (("layer",), ("units", "found", "concepts", "random", "rotated", "beyond", "verdict"),
         ("16", "11", "5", "8.4", "10.0", "0", "not tested")),
    ],
)  # fmt: skip
def test_eighty_columns_keep_all_figures(
    names: tuple[str, ...], columns: tuple[str, ...], cells: tuple[str, ...]
) -> None:
    lines = printed(80, names, columns, cells)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert all(text.count(cell) >= len(LAYERS) for cell in cells)
    assert all(name in lines[0] for name in columns)
    assert all(part in text for part in ("fc:input", "vit.", "…"))
    assert " ".join(CAPTION.split()) in " ".join(text.split())  # wrapped between words


def test_a_wide_terminal_shows_whole_names() -> None:
    text = "\n".join(printed(140, ("layer",), ("accuracy",), ("1",)))
    assert all(layer in text for layer in LAYERS)
    assert "…" not in text


def test_names_that_would_be_alike_are_written_whole() -> None:
    layers = [f"vit.encoder.layers.block.{i}.attention.projection.output:input" for i in range(3)]
    lines = printed(48, ("layer",), ("accuracy", "control", "verdict"), ("1", "2", "not tested"), layers)
    column = "".join(line[: lines[0].index("accuracy")].strip() for line in lines[2:-3])
    assert all(layer in column for layer in layers)
    assert "…" not in column


def test_the_cut_leaves_names_different() -> None:
    layers = [f"vit.layers.{i}.layernorm_before:input" for i in range(3)]
    text = "\n".join(printed(48, ("layer",), ("accuracy", "verdict"), ("1", "not tested"), layers))
    assert all(f"layers.{i}" in text for i in range(3))
    assert text.count("…") == 3
