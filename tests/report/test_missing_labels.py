"""Examples that were left out for want of a label are said at the top of the page, whatever brought them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.errors import UnboxedWarning

X = torch.rand(12, 3, generator=torch.Generator().manual_seed(0))
Y = [0, 1] * 6
NAMES = tuple("abc")


def table_of(folder: Path, missing: set[int]) -> Path:
    rows = [",".join(f"{v:.6f}" for v in x) + f",{'' if i in missing else Y[i]}" for i, x in enumerate(X.tolist())]
    path = folder / "rows.csv"
    path.write_text("\n".join(["a,b,c,label", *rows]))
    return path


def as_tensors(box: ub.Box, folder: Path, missing: set[int]) -> Any:
    return X, torch.tensor([-1 if i in missing else y for i, y in enumerate(Y)])


def as_numbers_or_none(box: ub.Box, folder: Path, missing: set[int]) -> Any:
    return X, [None if i in missing else y for i, y in enumerate(Y)]


def as_table(box: ub.Box, folder: Path, missing: set[int]) -> Any:
    return ub.data.table(table_of(folder, missing), box)


@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
@pytest.mark.parametrize("made", [as_tensors, as_numbers_or_none, as_table])
@pytest.mark.parametrize("missing", [{5}, {0, 5, 11}, set()])
def test_the_page_says_how_many_have_no_label(made: Any, missing: set[int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    box = ub.Box(nn.Linear(3, 2), ub.Features(NAMES), outputs="logits")
    written = ub.report(box, made(box, tmp_path, missing), tmp_path / "out", sections=["overview"], quiet=True)
    page = written.path.read_text(encoding="utf-8")
    assert f"Measured on {12 - len(missing)} examples" in page
    n = len(missing)
    said = f"Left out: {n} example{' has' if n == 1 else 's have'} no label."
    assert (said in page) == bool(n)
    assert ("no label" in page) == bool(n)


def test_numbers_that_are_missing(tmp_path: Path) -> None:
    box = ub.Box(nn.Linear(3, 1), ub.Features(NAMES), outputs="regression")
    y = torch.rand(12, 1)
    y[4] = math.nan
    with pytest.warns(UnboxedWarning, match="1 of 12 examples has no label"):
        written = ub.report(box, (X, y), tmp_path / "out", sections=["overview"], quiet=True)
    assert "Left out: 1 example has no label." in written.path.read_text(encoding="utf-8")
