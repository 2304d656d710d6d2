"""Labels mean the model's classes at every entry point, and one broken image stops none of them."""

from __future__ import annotations

import ast
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import unboxed as ub
from unboxed import data, loading
from unboxed.cli.parsing import parse_fraction
from unboxed.engine.read.class_labels import box_with_names_of_data
from unboxed.engine.read.examples import indexed_labeled_examples, labeled_examples
from unboxed.errors import BrokenImageError, DataError, InputError, UnboxedWarning
from unboxed.inputs.labels import match_labels_to_classes
from unboxed.report import report

NAMES = ("dog", "cat", "ant")  # not in the order of the alphabet
GRAYS = {"dog": 0, "cat": 120, "ant": 255}


class Grays(nn.Module):
    """Knows the three classes by their gray: never wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor([GRAYS[name] / 255 for name in NAMES]))

    def forward(self, x: Tensor) -> Tensor:
        return -50 * (x.flatten(1).mean(1, keepdim=True) - self.level).square()


@pytest.fixture
def box() -> ub.Box:
    return ub.Box(Grays().eval(), ub.Pixels((1, 8, 8)), classes=NAMES, outputs="logits")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, gray in GRAYS.items():
        (tmp_path / "in" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("L", (8, 8), gray).save(tmp_path / "in" / name / f"{i}.png")
    return tmp_path / "in"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


DOORS: dict[str, Any] = {
    "folder of inputs": lambda root, box: data.folder(root, box.inputs),
    "folder of a box": lambda root, box: data.folder(root, box),
    "wrapped": lambda root, box: data.wrap(data.folder(root, box.inputs), name="mine"),
    "subset": lambda root, box: Subset(data.folder(root, box.inputs), range(9)),
    "wrapped subset": lambda root, box: data.wrap(Subset(data.folder(root, box.inputs), range(9))),
    "loader": lambda root, box: DataLoader(data.folder(root, box.inputs), batch_size=2),
    "first": lambda root, box: data.folder(root, box.inputs).first(9),
    "command line": lambda root, box: loading.dataset_with_model_classes(str(root), box),
}


@pytest.mark.parametrize("door", DOORS)
def test_a_model_that_is_never_wrong_is_right_at_every_entry_point(door: str, root: Path, box: ub.Box) -> None:
    images = DOORS[door](root, box)
    x, y = labeled_examples(box, images)
    assert len(x) == 9
    assert torch.equal(y, box.predict(x))
    assert ub.robustness.calibration(box, images).accuracy == 1.0
    assert ub.robustness.corruptions(box, images, ("brightness",), severities=(1,)).clean_accuracy == 1.0
    fgsm = {"fgsm": ub.adversarial.fgsm}
    found = ub.robustness.evaluate(box, images, fgsm, eps=[0.01], minimal_attack=None, check_masking=False)
    assert found.clean_accuracy.value == 1.0


@pytest.mark.parametrize("door", [door for door in DOORS if door != "loader"])
def test_a_report_matches_them_too(door: str, root: Path, box: ub.Box, tmp_path: Path) -> None:
    import json

    report(box, DOORS[door](root, box), tmp_path / "out", sections=["overview"], quiet=True)
    assert json.loads((tmp_path / "out" / "report.json").read_text())["findings"]["overview"]["accuracy"] == 1.0


def test_a_box_given_to_folder_makes_its_tensors_right(root: Path, box: ub.Box) -> None:
    x, y = data.folder(root, box).tensors()
    assert torch.equal(y, box.predict(x))


def test_subfolders_that_are_no_classes_are_refused_at_every_entry_point(root: Path, box: ub.Box) -> None:
    os.rename(root / "ant", root / "zebra")
    for door in ("folder of inputs", "loader", "first"):
        with pytest.raises(DataError, match=r"1 of the 3 subfolders of .*\(zebra\) are not among the model's 3"):
            labeled_examples(box, DOORS[door](root, box))


@pytest.mark.parametrize(
    ("names", "classes", "folders", "numbers"),
    [
        (("b", "a"), ("a", "b"), True, [1, 0]),
        (("2", "10"), tuple(map(str, range(12))), True, [2, 10]),
        (("007",), tuple(map(str, range(12))), True, [7]),
        (("a", "b"), ("a", "b", "c"), False, [0, 1]),
        (("0 - zero", "1 - one"), ("0", "1"), False, [0, 1]),  # a data set's own names for the numbers
        (("airplane", "car"), ("plane", "car"), False, [0, 1]),  # nothing contradicts the numbers
    ],
)
@pytest.mark.filterwarnings("ignore:class names that are numbers")
def test_labels_follow_names(names: Any, classes: Any, folders: bool, numbers: list[int]) -> None:
    assert list(match_labels_to_classes(names, classes, made_from_names=folders, names_source="x").values()) == numbers


@pytest.mark.parametrize(("names", "classes"), [(("car", "airplane"), ("plane", "car")), (("a", "b"), ("c", "d", "e"))])
def test_labels_that_names_contradict_are_refused(names: Any, classes: Any) -> None:
    with pytest.raises(DataError, match="not"):
        match_labels_to_classes(names, classes, made_from_names=False, names_source="classes of x")


def test_folders_named_by_numbers_count_as_numbers_at_every_entry_point(tmp_path: Path) -> None:
    for k in range(12):
        (tmp_path / str(k)).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / str(k) / "a.png")
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 12)).eval(), ub.Pixels((1, 8, 8)))
    plain = data.folder(tmp_path, box.inputs)
    with pytest.warns(UnboxedWarning, match="10 before 2"):
        named = loading.dataset_with_model_classes(str(tmp_path), box)
    for found in (plain, named):
        assert [int(p.parent.name) for p in found.paths] == [found[i][1] for i in range(12)]


# -- one broken image --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:1 example can't be read")
def test_a_broken_image_stops_nothing_and_rows_are_those_of_the_data(root: Path, box: ub.Box) -> None:
    cut(root / "cat" / "0.png")
    images = data.folder(root, box)
    (bad,) = [i for i, p in enumerate(images.paths) if p == root / "cat" / "0.png"]
    good = [i for i in range(9) if i != bad]
    x, y, rows = indexed_labeled_examples(box, images)
    assert rows.tolist() == good
    assert torch.equal(y, box.predict(x))
    (top,) = ub.activations.top_examples(box, images, ["logits"], k=8)
    assert sorted(top.example_index[0].tolist()) == good
    assert top.fetch_examples(images, 0).shape == (1, 8, 1, 8, 8)
    near = ub.activations.nearest_neighbors(box, x[-1:], images, "input", k=8)
    assert sorted(near.indices[0].tolist()) == good
    assert rows[-1] in near.indices[0, :3]
    assert ub.activations.statistics(box, images, ["logits"])[0].n_examples == 8
    wrong = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), box.inputs, classes=NAMES)
    errors = ub.robustness.calibration(wrong, images, n_errors=9).error_index
    assert set(errors.tolist()) <= set(good)
    assert [p for p, _ in images.skipped] == [root / "cat" / "0.png"]


def test_a_pass_says_what_it_left_out(root: Path, box: ub.Box) -> None:
    cut(root / "cat" / "0.png")
    with pytest.warns(UnboxedWarning, match=r"1 example can't be read and is left out: .*0\.png: broken image"):
        labeled_examples(box, data.folder(root, box))


@pytest.mark.parametrize("size", [1, 2])
def test_a_loader_leaves_it_out(size: int, root: Path, box: ub.Box) -> None:
    cut(root / "cat" / "0.png")
    loader = DataLoader(data.folder(root, box), batch_size=size)
    with pytest.warns(UnboxedWarning, match=r"1 example can't be read and is left out: .*0\.png: broken image"):
        assert len(labeled_examples(box, loader)[0]) == 8
    if size == 1:
        with pytest.raises(BrokenImageError, match="take larger batches"):
            list(loader)


def test_a_data_set_that_raises_is_named_with_its_example() -> None:
    class Failing(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> Any:
            if i == 3:
                raise OSError("disk")
            return torch.zeros(1, 8, 8), 0

    box = ub.Box(Grays().eval(), ub.Pixels((1, 8, 8)), outputs="logits")
    with pytest.raises(DataError, match="example 3 of Failing can't be read: OSError: disk"):
        labeled_examples(box, Failing())
    with pytest.raises(DataError, match="example 3 of Failing can't be read"):
        report(box, Failing(), "unused", sections=["overview"], quiet=True)


# -- names, fractions, clocks ------------------------------------------------------------------------------------------


def test_a_file_name_that_is_no_utf8_loses_no_report(root: Path, box: ub.Box, tmp_path: Path) -> None:
    (Path(os.fsdecode(os.fsencode(root / "dog") + b"/caf\xe9.txt"))).write_text("notes")
    made = report(box, data.folder(root, box), tmp_path / "out", sections=["overview"], quiet=True, command="caf\udce9")
    page = made.path.read_text(encoding="utf-8")
    assert "caf\\udce9.txt" in page


@pytest.mark.parametrize(("text", "value"), [("8/255", 8 / 255), ("0.03", 0.03), (".5/2", 0.25), ("1e-3", 1e-3)])
def test_an_eps_is_a_number_or_a_fraction(text: str, value: float) -> None:
    assert parse_fraction("--eps", text) == value


@pytest.mark.parametrize("text", ["8/0", "x", "8/255/2", "", "8/"])
def test_a_bad_eps_is_one_sentence(text: str) -> None:
    with pytest.raises(InputError, match=r"--eps wants a number or a fraction, such as 0\.03 or 8/255; got"):
        parse_fraction("--eps", text)


def test_no_work_is_measured_by_the_clock() -> None:
    """Clocks say how long a training took, that a lock waits for a thread too long, and that a folder is stale."""
    root = Path(ub.__file__).parent
    clocks = set()
    imports = re.compile(r"(import|from)\b.*\b(time|timeit|datetime)\b")  # in a line; what it finds is parsed
    sources = {file: file.read_text(encoding="utf-8") for file in root.rglob("*.py")}
    for file, source in sources.items():
        for node in ast.walk(ast.parse(source)) if imports.search(source) else ():
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            clocks |= {file.relative_to(root).as_posix()} if {"time", "timeit", "datetime"} & set(names) else set()
    assert clocks <= {"training/fit.py", "model/locks.py", "report/folder.py"}


@pytest.mark.parametrize("n", [12, 11])
def test_folders_that_are_numbers_may_be_sorted_as_text(n: int, tmp_path: Path) -> None:
    """Also where all numbers have a folder; numbers in a column of labels have no such order."""
    for k in range(n):
        (tmp_path / str(k)).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / str(k) / "image.png")
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 12)), ub.Pixels((1, 4, 4)), outputs="logits")
    with pytest.warns(UnboxedWarning, match="10 before 2, as torchvision's ImageFolder does"):
        assert "10 before 2" in ub.data.folder(tmp_path, box).label_assumption
    table = tmp_path / "labels.csv"
    table.write_text("file,label\n" + "".join(f"{k}/image.png,{k}\n" for k in range(n)))
    assert ub.data.table(table, box).label_assumption == ""


def test_names_of_data_leave_the_other_settings_of_a_box() -> None:
    box = ub.Box(nn.Linear(3, 2).double(), ub.Features(tuple("abc")), outputs="logits", mode="as-is")
    named = box_with_names_of_data(box, data.Texts(["one"], classes=("no", "yes")))
    assert (named.classes, named.mode, named.outputs) == (("no", "yes"), "as-is", "logits")
