"""Examples in a DataLoader of arrays with channels last, and in DataFrames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import unboxed as ub
from unboxed import loading
from unboxed.errors import DataError, InputError

LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def box(*shape: int) -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 4)), ub.Pixels(shape), outputs="logits")


class Arrays(Dataset[Any]):
    """(array, label), as a Dataset that reads files by itself gives them."""

    def __init__(self, arrays: Any, labeled: bool = True) -> None:
        self.arrays, self.labeled = arrays, labeled

    def __len__(self) -> int:
        return len(self.arrays)

    def __getitem__(self, i: int) -> Any:
        return (self.arrays[i], int(LABELS[i])) if self.labeled else self.arrays[i]


class Rows(Arrays):
    def __getitem__(self, i: int) -> Any:
        return {"image": self.arrays[i], "label": int(LABELS[i])}


FORMS: dict[str, Any] = {
    "dataset": Arrays,
    "dataset of tensors": lambda a: TensorDataset(torch.from_numpy(a), LABELS),
    "loader": lambda a: DataLoader(Arrays(a), batch_size=4),
    "loader of tensors": lambda a: DataLoader(TensorDataset(torch.from_numpy(a), LABELS), batch_size=4),
    "loader without labels": lambda a: DataLoader(Arrays(a, labeled=False), batch_size=4),
    "loader of one input": lambda a: DataLoader(TensorDataset(torch.from_numpy(a)), batch_size=1),
    "loader of columns": lambda a: DataLoader(Rows(a), batch_size=4),
    "loader of lists": lambda a: DataLoader(Arrays(torch.from_numpy(a), False), batch_size=4, collate_fn=list),
}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("axes", ["HWC", "CHW", "HW"])
@pytest.mark.parametrize("form", FORMS)
def test_data_sets_of_arrays_are_as_arrays(form: str, axes: str, dtype: Any) -> None:
    bytes_ = np.random.default_rng(0).integers(0, 256, (6, 8, 10, 1 if axes == "HW" else 3), dtype=np.uint8)
    x = torch.from_numpy(bytes_).permute(0, 3, 1, 2).float() / 255
    stored = {"HWC": bytes_, "CHW": bytes_.transpose(0, 3, 1, 2), "HW": bytes_[..., 0]}[axes]
    data = FORMS[form](np.ascontiguousarray(stored) if dtype == np.uint8 else (stored / 255).astype(dtype))
    model = box(*x.shape[1:])
    torch.testing.assert_close(model.validate_inputs(data), x)
    if "without" not in form and "one input" not in form and "lists" not in form:
        assert ub.robustness.calibration(model, data).accuracy == (model.predict(x) == LABELS).double().mean()


def test_what_may_have_its_channels_first_has() -> None:
    cubes = torch.rand(6, 3, 3, 3)
    assert torch.equal(box(3, 3, 3).validate_inputs(DataLoader(TensorDataset(cubes, LABELS), batch_size=4)), cubes)


def test_a_tensor_is_a_batch_with_channels_first() -> None:
    with pytest.raises(InputError, match="channels are last"):
        box(3, 8, 10).validate_inputs(torch.rand(2, 8, 10, 3))


class Frame:
    """What is used of a DataFrame: columns by name, as values."""

    def __init__(self, **columns: Any) -> None:
        self.data = {name: np.asarray(values) for name, values in columns.items()}

    @property
    def columns(self) -> list[str]:
        return list(self.data)

    def __len__(self) -> int:
        return len(next(iter(self.data.values())))

    def __getitem__(self, names: Any) -> Any:
        return (
            Series(self.data[names]) if isinstance(names, str) else Frame(**{name: self.data[name] for name in names})
        )

    def to_numpy(self) -> Any:
        return np.stack(list(self.data.values()), 1)


class Series:
    def __init__(self, values: Any) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def to_numpy(self) -> Any:
        return self.values


def rows() -> tuple[ub.Box, Frame, Tensor]:
    torch.manual_seed(0)
    model = ub.Box(nn.Linear(2, 3), ub.Features(("age", "height"), mean=(40, 1.7)), outputs="logits")
    frame = Frame(height=[1.6, 1.8, 1.7], note=["a", "b", "c"], age=[30, 40, 50], ill=["1", "0", "2"])
    return model, frame, torch.tensor([[30, 1.6], [40, 1.8], [50, 1.7]])


def test_columns_of_a_frame_are_matched_by_name() -> None:
    model, frame, x = rows()
    torch.testing.assert_close(model(frame), model(x))
    y = torch.tensor([1, 0, 2])
    for labels in (y, Series(y.numpy()), frame["ill"]):
        expected = (model.predict(x) == y).double().mean()
        assert ub.robustness.calibration(model, (frame, labels)).accuracy == expected
        assert torch.equal(ub.attribution.gradient(model, frame, labels), ub.attribution.gradient(model, x, y))


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (Frame(age=[1.0]), r"no column 'height'; it has 'age'"),
        (Frame(Age=[1.0], height=[1.0]), "no column 'age'; 'Age' is spelled like 'age'; it has"),
        (
            Frame(height=[1.0], **{f"c{i}": [0.0] for i in range(9)}),
            r"no column 'age'; it has 'height', .*'c6', \.\.\.",
        ),
        (Frame(age=["old"], height=[1.0]), "of the DataFrame 'age' holds no numbers: .*'old'"),
        (Frame(age=["old"], height=["tall"]), "of the DataFrame 'age', 'height' holds no numbers"),
        (Frame(age=[1.0, np.nan], height=[1.0, 2.0]), "in 1 of 2 examples, the first at index 1 in the column 'age'"),
    ],
)
def test_frames_that_do_not_fit(frame: Frame, words: str) -> None:
    with pytest.raises(InputError, match=words):
        rows()[0](frame)


def test_a_column_that_is_there_twice_is_named_as_such() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([[1.0, 2.0, 3.0]], columns=["age", "height", "age"])
    with pytest.raises(InputError, match="several columns of the name 'age'; leave out all but one") as refused:
        rows()[0](frame)
    assert "spelled" not in str(refused.value)


def test_one_row_of_a_frame_is_taken_as_its_error_says() -> None:
    pandas = pytest.importorskip("pandas")
    model, _, x = rows()
    frame = pandas.DataFrame(x.numpy(), columns=["age", "height"])
    with pytest.raises(InputError, match=r"one row without its table: .*df\.iloc\[\[0\]\].*row\.to_frame\(\)\.T"):
        model.predict(frame.iloc[1])
    assert torch.equal(model.predict(frame.iloc[[1]]), model.predict(x[1:2]))
    assert torch.equal(model.predict(frame.iloc[1].to_frame().T), model.predict(x[1:2]))


def test_the_labels_of_a_frame_are_those_of_its_table(tmp_path: Path) -> None:
    """At every door that reads labels; names, numbers and floats alike."""
    model, plain, x = rows()
    y = torch.tensor([1, 0, 2])
    named = ub.Box(model.model, model.inputs, classes=("ill", "well", "dead"), outputs="logits")
    for opened, ill in ((model, ["1", "0", "2"]), (model, [1.0, 0.0, 2.0]), (named, ["well", "ill", "dead"])):
        frame = Frame(age=plain["age"].values, ill=ill, height=plain["height"].values)
        assert torch.equal(torch.as_tensor(ub.data.table(frame, opened).tensors().y), y)
        accuracy = (model.predict(x) == y).double().mean()
        assert ub.robustness.calibration(opened, frame).accuracy == accuracy
        found = ub.adversarial.pgd(opened, frame, eps=0.3, seed=0)
        assert torch.equal(found.images, ub.adversarial.pgd(opened, x, y, eps=0.3, seed=0).images)
        made = ub.report(opened, frame, tmp_path / "out", sections=["overview"], quiet=True)
        assert (
            json.loads((made.path.parent / "report.json").read_text())["findings"]["overview"]["accuracy"] == accuracy
        )
    with pytest.raises(DataError, match=r"no labels.*ub\.data\.table\(data, box, label="):
        ub.robustness.calibration(model, plain)  # two columns could be the labels
    with pytest.raises(InputError, match=r"needs the correct classes y.*ub\.data\.table\(data, box, label="):
        ub.adversarial.pgd(model, plain, eps=0.3)


def test_the_column_of_labels_can_be_named(tmp_path: Path) -> None:
    model, frame, x = rows()
    with pytest.raises(DataError, match=r"which of the columns 'note', 'ill' has the labels\?.*label=.*--label"):
        ub.data.table(frame, model)
    with pytest.raises(DataError, match="no column 'sick' for labels; beside the inputs it has 'note', 'ill'"):
        ub.data.table(frame, model, label="sick")
    assert ub.data.table(frame, model, label="ill").tensors().y.tolist() == [1, 0, 2]
    path = tmp_path / "rows.csv"
    path.write_text("soil,height,age,cultivar\nclay,1.6,30,1\nsand,1.8,40,0\nsand,1.7,50,2\n")
    for table in (ub.data.table(path, model, label="cultivar"),
                  loading.dataset_with_model_classes(str(path), model, label="cultivar")):  # fmt: skip
        found, y = table.tensors()  # type: ignore[attr-defined]
        assert torch.equal(found, x)
        assert y.tolist() == [1, 0, 2]
    with pytest.raises(DataError, match="label='cultivar' names a column of a table"):
        loading.dataset_with_model_classes("digits", model, label="cultivar")
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "files.csv").write_text("file,label,breed\na.png,no,dog\n")
    images = ub.data.table(tmp_path / "files.csv", ub.Pixels((1, 8, 8)), label="breed")
    assert images.classes == ("dog",)
    with pytest.raises(DataError, match="no column 'sick' for labels"):
        ub.data.table(tmp_path / "files.csv", ub.Pixels((1, 8, 8)), label="sick")


@pytest.mark.parametrize("form", [Series, lambda y: Frame(progress=y)])
def test_columns_of_numbers_are_labels(form: Any) -> None:
    """Of a regression: a Series, which may not be written, or a DataFrame of one column."""
    torch.manual_seed(0)
    model = ub.Box(nn.Linear(2, 1), ub.Features(("age", "height")), outputs="regression")
    _, frame, x = rows()
    values = np.array([1.0, 2.0, 3.0])
    values.setflags(write=False)
    y = torch.tensor([1.0, 2.0, 3.0])
    want = ub.adversarial.pgd(model, x, y, eps=0.1)
    for inputs in (frame, x):
        assert torch.equal(ub.adversarial.pgd(model, inputs, form(values), eps=0.1).images, want.images)
    attacks = {"fgsm": ub.adversarial.fgsm}
    want_clean = ub.robustness.evaluate_outputs(model, (x, y), attacks, eps=[0.1]).clean
    for data in ((frame, form(values)), (x, form(values))):
        assert ub.robustness.evaluate_outputs(model, data, attacks, eps=[0.1]).clean == want_clean


def test_whole_numbers_of_a_column_are_classes() -> None:
    model, _, x = rows()
    want = ub.adversarial.pgd(model, x, torch.tensor([1, 0, 2]), eps=0.3).images
    assert torch.equal(ub.adversarial.pgd(model, x, Series(np.array([1.0, 0.0, 2.0])), eps=0.3).images, want)
    with pytest.raises(InputError, match="float"):
        ub.adversarial.pgd(model, x, Series(np.array([1.5, 0.0, 2.0])), eps=0.3)


def test_a_frame_of_files_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        Image.new("L", (8, 8), 60 * i).save(tmp_path / f"{i}.png")
    frame = Frame(label=["dog", "cat"], file=["0.png", tmp_path / "1.png"])
    data = ub.data.table(frame, ub.Pixels((1, 8, 8)))
    assert (data.classes, [data[i][1] for i in range(2)]) == (("cat", "dog"), [1, 0])
    with pytest.raises(DataError, match="'a'; wanted a column of files"):
        ub.data.table(Frame(a=[1]), ub.Pixels((1, 8, 8)))
    with pytest.raises(InputError, match=r"a DataFrame holds rows for Features.*ub\.data\.table\(frame, box\)"):
        box(1, 8, 8).validate_inputs(frame)
