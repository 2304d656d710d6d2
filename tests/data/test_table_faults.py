"""Tables as people have them: each fault is told by its place, with what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed.errors import DataError

COLUMNS = ub.Features(("ash", "alcohol"))


def opened() -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(nn.Linear(2, 2), COLUMNS, outputs="logits", classes=("red", "white"))


def written(folder: Path, text: str) -> Path:
    (folder / "wine.csv").write_text(text)
    return folder / "wine.csv"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ash,alcohol,kind\n1,2,red\n3,,white\n", r"'alcohol' holds '' in row 1 \(counted from 0\); .*fill in what is"),
        ("ash,alcohol,kind\nnan,2,red\n", r"'ash' holds 'nan' in row 0 .*; this model takes numbers"),
        ("ash;alcohol;kind\n1;2;red\n3;12,5;white\n", r"'alcohol' holds '12,5' in row 1 .*decimals with a point"),
        ("1.5,2,0\n3,4,1\n", r"no column 'ash', 'alcohol'; its first line must name the columns"),
        ("Ash,alcohol,kind\n1,2,red\n", r"no column 'ash'; 'Ash' is spelled like 'ash'"),
        ("ash,alcohol,ash,kind\n1,2,3,red\n", r"several columns of the name 'ash'; rename or leave out"),
        ("a,b,c,d,e,f,g,h,i\n1,2,3,4,5,6,7,8,9\n", r"its columns are 'a', .*'h', \.\.\.$"),
    ],
)
def test_a_fault_is_told_by_its_place_with_what_to_do(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        ub.data.table(written(tmp_path, text), opened())


def test_an_input_is_no_label(tmp_path: Path) -> None:
    path = written(tmp_path, "ash,alcohol,kind\n1,2,red\n")
    with pytest.raises(DataError, match="'ash' is an input of this model, and so no label"):
        ub.data.table(path, opened(), label="ash")


@pytest.mark.parametrize("index", ["", "Unnamed: 0"])
def test_an_index_that_pandas_wrote_is_no_label(tmp_path: Path, index: str) -> None:
    rows = ub.data.table(written(tmp_path, f"{index},ash,alcohol,kind\n0,1,2,white\n1,3,4,red\n"), opened())
    x, y = rows.first(2)
    assert x.tolist() == [[1, 2], [3, 4]]
    assert y.tolist() == [1, 0]


def test_rows_and_labels_of_one_index_in_two_orders_are_refused() -> None:
    """They were matched by position: every figure was wrong without a word."""
    pandas = pytest.importorskip("pandas")
    box = opened()
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(1))
    frame = pandas.DataFrame(x.numpy(), columns=["ash", "alcohol"])
    y = pandas.Series(box.predict(x).numpy())
    shuffled = y.loc[[3, 1, 0, 5, 4, 2]]
    assert ub.robustness.calibration(box, (frame, y)).accuracy == 1
    for data in ((frame, shuffled), [frame, shuffled]):
        with pytest.raises(DataError, match=r"one index in two orders.*y\.loc\[x\.index\]"):
            ub.robustness.calibration(box, data)
    assert ub.robustness.calibration(box, (frame, shuffled.loc[frame.index])).accuracy == 1
    assert ub.robustness.calibration(box, (frame, shuffled.loc[frame.index].reset_index(drop=True))).accuracy == 1
    assert ub.robustness.calibration(box, (frame.loc[shuffled.index], shuffled)).accuracy == 1
