"""One meaning of a label: numbers, names, numbers as names, synsets, in every form and at every door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import unboxed as ub
from unboxed.cli.parsing import parse_class, parse_class_names
from unboxed.engine.read.examples import (
    examples_with_optional_labels,
    examples_with_unread_labels,
    first_inputs,
    indexed_labeled_examples,
)
from unboxed.engine.read.training_batches import TrainingBatches
from unboxed.engine.stable_repr import stable_repr
from unboxed.errors import DataError, InputError, UnboxedWarning
from unboxed.inputs.class_files import read_class_names
from unboxed.inputs.labels import class_numbers, label_to_value, match_label_names_to_classes
from unboxed.report.source import ReportData

SYNSETS = ("n02108089 boxer", "n01440764 tench, Tinca tinca", "n02012849 crane", "n03126707 crane")
GRAY = ub.Pixels((1, 8, 8))


def box(classes: Any = None, n: int = 3) -> ub.Box:
    return ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, n)).eval(), GRAY, classes=classes, outputs="logits")


# -- one label ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "value"),
    [
        (3, 3), (np.int64(3), 3), (np.array(3), 3), (np.array([3]), 3), (np.array([[3]], np.uint8), 3),
        (torch.tensor([3]), 3), (True, 1), (" cat\n", "cat"), (np.array(["cat"]), "cat"), (np.str_("cat"), "cat"),
        (None, None), (-1, None), ("", None), (float("nan"), None), (np.array(np.nan), None), (torch.tensor(2.0), 2),
        (np.float32(2), 2), (np.float64("nan"), None), ([3], 3), (("cat",), "cat"), ([np.array([3])], 3),
    ],
)  # fmt: skip
def test_a_label_has_one_meaning(label: Any, value: Any) -> None:
    assert label_to_value(label) == value


@pytest.mark.parametrize(
    "label",
    [1.5, np.array([1.5]), np.float32(1.5), torch.zeros(3), np.array([1, 2]), [1, 2], [], -2, {"a": 1}, float("inf")],
)
def test_what_is_no_label(label: Any) -> None:
    with pytest.raises(DataError, match="the label of"):
        label_to_value(label)


NAMES = ("cat", "hot dog", "7")


@pytest.mark.parametrize(
    ("y", "numbers"),
    [
        ("cat", 0), ("Hot_Dog ", 1), ("7", 2), ("07", 2), ("1", 1), (["hot-dog", "cat"], [1, 0]), (["cat", 2], [0, 2]),
        (np.array(["cat", "7"]), [0, 2]), (np.array([["cat"], ["7"]], object), [0, 2]), (("7",), [2]),
    ],
)  # fmt: skip
def test_targets_are_named(y: Any, numbers: Any) -> None:
    assert class_numbers(y, NAMES) == numbers
    assert box(NAMES).class_numbers(y).tolist() == numbers


@pytest.mark.parametrize(
    "y", [range(2), [np.array([0]), np.array([1])], [torch.tensor(0), "hot dog"], np.array([[0], [1]])]
)
def test_labels_in_any_form_are_the_same_at_every_door(y: Any) -> None:
    """Against the labels as a plain tensor."""
    opened, x, plain = box(NAMES), torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    wanted = ub.adversarial.fgsm(opened, x, plain, eps=0.1)
    assert torch.equal(ub.adversarial.fgsm(opened, x, y, eps=0.1).images, wanted.images)
    assert ub.robustness.calibration(opened, (x.numpy(), y)).accuracy == (opened.predict(x) == plain).float().mean()


@pytest.mark.parametrize("y", [torch.eye(3, dtype=torch.long), torch.eye(3)])
def test_rows_of_yes_and_no_are_told_how_to_go_on(y: Any) -> None:
    opened, x = box(), torch.rand(3, 1, 8, 8)
    for ask in (lambda: ub.adversarial.fgsm(opened, x, y, eps=0.1), lambda: ub.robustness.calibration(opened, (x, y))):
        with pytest.raises((InputError, DataError), match="opened with outputs='multilabel'"):
            ask()
    with pytest.raises(DataError, match="open the model with outputs='multilabel'"):
        label_to_value(y[0])
    with pytest.raises(InputError, match=r"got 2\.7 \(torch\.float32\)"):
        ub.attribution.gradient(opened, x, 2.7)  # type: ignore[arg-type]


def test_a_column_of_labels_is_a_row() -> None:
    column = np.array([[2], [0]], np.uint16)
    assert box(NAMES).class_labels(column, 2).tolist() == [2, 0]
    x = torch.rand(2, 1, 8, 8)
    assert ub.attribution.gradient(box(NAMES), x, column).target.tolist() == [2, 0]  # type: ignore[union-attr]
    assert ub.attribution.gradient(box(NAMES), x, ["7", "cat"]).target.tolist() == [2, 0]  # type: ignore[union-attr]


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="no class 'cta'; did you mean 'cat'"):
        box(NAMES).class_numbers("cta")
    with pytest.raises(InputError, match="fits 2 classes"):
        box(SYNSETS, 4).class_numbers("crane")
    with pytest.raises(InputError, match=r"of one-hot labels pass y\.argmax\(1\)"):
        box().class_labels(torch.eye(3, dtype=torch.long), 3)
    assert parse_class("hot dog", box(NAMES)) == 1
    with pytest.raises(InputError, match="classes 0 to 2; got 9"):
        parse_class("9", box(NAMES))


# -- names of classes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "k"), [("boxer", 0), ("n02108089", 0), ("N02108089 boxer", 0), ("tinca_tinca", 1), ("n03126707", 3)]
)
def test_a_synset_has_several_names(name: str, k: int) -> None:
    assert match_label_names_to_classes([name], SYNSETS) == {name: k}
    assert match_label_names_to_classes([name, "n01440764"], SYNSETS)[name] == k


def test_folders_of_synsets_match_plain_names() -> None:
    assert match_label_names_to_classes(["n02108089 boxer", "tench"], ("tench", "boxer")) == {
        "n02108089 boxer": 1,
        "tench": 0,
    }
    with pytest.raises(DataError, match=r"WordNet ids: give --classes imagenet_class_index\.json"):
        match_label_names_to_classes(["n02108089"], ("tench", "boxer"))


INDEX = {"1": ["n01440764", "tench"], "0": ["n02108089", "boxer"]}
FILES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "lines": ("a.txt", "cat\n\n hot dog \r\n7\n", ("cat", "hot dog", "7")),
    "with a mark": ("a.txt", "\ufeffcat\ndog", ("cat", "dog")),
    "synsets": ("a.txt", "\n".join(SYNSETS), SYNSETS),
    "numbered": ("a.txt", "0 cat\n2 bird\n1 hot dog\n", ("cat", "hot dog", "bird")),
    "numbered with colons": ("a.txt", "0: 'cat',\n1: 'dog',", ("cat", "dog")),
    "class index": ("a.json", json.dumps(INDEX), ("n02108089 boxer", "n01440764 tench")),
    "a list": ("a.json", '["cat", "dog"]', ("cat", "dog")),
    "number to name": ("a.json", '{"1": "dog", "0": "cat"}', ("cat", "dog")),
    "name to number": ("a.json", '{"dog": 1, "cat": 0}', ("cat", "dog")),
}


@pytest.mark.parametrize("form", FILES)
def test_classes_are_read_from_a_file(form: str, tmp_path: Path) -> None:
    name, text, names = FILES[form]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    assert parse_class_names(str(path)) == names
    assert box(path, len(names)).classes == box(str(path), len(names)).classes == names


@pytest.mark.parametrize("text", ["{", "[]", "3", '{"1": "a", "2": "b"}', '{"a": "b"}', '"cat"'])
def test_a_file_that_holds_no_classes(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json"):
        read_class_names(tmp_path / "a.json")


def test_a_missing_file_of_classes_is_no_name() -> None:
    with pytest.raises(InputError, match=r"there is no file nothing\.txt"):
        parse_class_names("nothing.txt")
    with pytest.raises(InputError, match="there is no file cats"):
        box("cats")


# -- folders -----------------------------------------------------------------------------------------------------------


def save(path: Path, gray: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), gray).save(path)
    return path


def labels(data: Any) -> dict[str, int]:
    return {path.parent.name: data[i][1] for i, path in enumerate(data.paths)}


def test_numbers_of_folders_are_the_labels_at_every_door(tmp_path: Path) -> None:
    for name in ("3", "07", "10"):
        save(tmp_path / name / "a.png")
    wanted = {"3": 3, "07": 7, "10": 10}
    assert labels(ub.data.folder(tmp_path, GRAY)) == wanted
    with pytest.warns(UnboxedWarning, match="'10' is matched to that output"):
        assert labels(ub.data.folder(tmp_path, box(n=12))) == wanted
    _, y = ub.data.wrap([(torch.zeros(1, 8, 8), name) for name in wanted]).tensors()
    assert y is not None
    assert y.tolist() == [3, 7, 10]


def by_calibration(box: ub.Box, data: Any) -> Any:
    return ub.robustness.calibration(box, data).accuracy


def by_robustness(box: ub.Box, data: Any) -> Any:
    return ub.robustness.evaluate(box, data, {"FGSM": ub.adversarial.fgsm}, eps=[0.1]).clean_accuracy


def by_training(box: ub.Box, data: Any) -> Any:
    return torch.cat([y for _, y in TrainingBatches(box, data, 2, 0)])


def by_influence(box: ub.Box, data: Any) -> Any:
    return ub.influence.nearest_training_examples(box, torch.zeros(1, 1, 8, 8), [0], data).scores


def by_report(box: ub.Box, data: Any) -> Any:
    source = ReportData(data, box)
    return source.classes, source.name, source.read(range(len(source)))


DOORS = (by_calibration, by_robustness, by_training, by_influence, by_report, first_inputs, ub.attribution.gradient)


@pytest.mark.filterwarnings("ignore:the subfolders of")
@pytest.mark.parametrize("ask", [*DOORS, examples_with_optional_labels])
@pytest.mark.parametrize("classes", [NAMES, None])
def test_a_path_of_a_folder_is_its_images_at_every_door(ask: Any, classes: Any, tmp_path: Path) -> None:
    """Against the same folder opened with the box. The folders' order is not the classes'."""
    for i, name in enumerate(reversed(NAMES)):
        save(tmp_path / name / "a.png", 80 * i)
    opened = box(classes)
    wanted = ask(opened, ub.data.folder(tmp_path, opened))
    assert stable_repr(ask(opened, str(tmp_path))) == stable_repr(wanted)
    with pytest.raises(InputError, match=r"one input \(1, .*got 3 inputs"):
        ub.explain(opened, tmp_path)


@pytest.mark.parametrize("ask", [by_calibration, by_report, examples_with_optional_labels, ub.explain])
def test_a_path_of_nothing_is_answered_with_the_nearest(ask: Any, tmp_path: Path) -> None:
    save(tmp_path / "photos" / "cat" / "a.png")
    with pytest.raises(DataError, match=r"there is no file or folder .*photo; did you mean '.*photos'"):
        ask(box(), str(tmp_path / "photo"))


def test_what_is_left_out_of_a_folder_is_said_at_its_path(tmp_path: Path) -> None:
    save(tmp_path / "cat" / "a.png")
    save(tmp_path / "7" / "a.png")
    (tmp_path / "7" / "notes.txt").write_text("no image")
    for ask in (by_calibration, first_inputs, ub.attribution.gradient):
        with pytest.warns(UnboxedWarning, match=r"a file is left out of .*: notes\.txt: .*; see ub\.data\.folder"):
            ask(box(NAMES), tmp_path)


def test_a_folder_without_labels_has_none_at_its_path(tmp_path: Path) -> None:
    save(tmp_path / "a.png")
    regression = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 1)), GRAY, outputs="regression")
    assert examples_with_unread_labels(regression, tmp_path).labels is None
    with pytest.raises(DataError, match="have no labels"):
        ub.robustness.calibration(box(), tmp_path)
    tabular = ub.Box(nn.Linear(2, 2), ub.Features(["a", "b"]), outputs="logits")
    with pytest.raises((InputError, DataError)):
        tabular(tmp_path)


def test_numbers_among_named_classes_are_outputs_and_it_is_said(tmp_path: Path) -> None:
    for name in ("0", "2"):
        save(tmp_path / name / "a.png")
    with pytest.warns(UnboxedWarning, match="they mean outputs of the model: 0 is cat, 2 is 7"):
        assert labels(ub.data.folder(tmp_path, box(NAMES))) == {"0": 0, "2": 2}
    save(tmp_path / "3" / "a.png")
    with pytest.raises(DataError, match=r"are not .*outputs are counted from 0"):
        ub.data.folder(tmp_path, box(NAMES))


@pytest.mark.parametrize("classes", [None, ["cat", "dog"]])
@pytest.mark.parametrize("splits", [("train", "val"), ("training", "testing"), ("a", "b"), ("val",)])
def test_splits_are_no_classes(splits: tuple[str, ...], classes: Any, tmp_path: Path) -> None:
    for split in splits:
        for name in ("cat", "dog"):
            save(tmp_path / split / name / "a.png")
    suggested = {"train": "val", "training": "testing", "a": "a", "val": "val"}[splits[0]]
    for like in (GRAY, box(classes, n=2)):
        with pytest.raises(DataError, match=f"give the folder of one split, .*/{suggested}\\b"):
            ub.data.folder(tmp_path, like)
    assert len(ub.data.folder(tmp_path / suggested, GRAY)) == 2
    if len(splits) > 1:
        named = ub.data.folder(tmp_path, GRAY, classes=splits)
        assert named.classes == splits


def test_a_split_without_labels_beside_one_with(tmp_path: Path) -> None:
    save(tmp_path / "test" / "a.png")
    save(tmp_path / "train" / "cat" / "a.png")
    with pytest.raises(DataError, match=r"named as the splits of a data set.*/train\b"):
        ub.data.folder(tmp_path, GRAY)


def test_classes_with_folders_inside_are_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        save(tmp_path / name / "session1" / "a.png")
    assert ub.data.folder(tmp_path, box(["dog", "cat"], n=2)).classes == ("dog", "cat")
    save(tmp_path / "cat" / "b.png")
    assert ub.data.folder(tmp_path, GRAY).classes == ("cat", "dog")


# -- labels beside images ----------------------------------------------------------------------------------------------

ITEMS = [(torch.full((1, 8, 8), k / 4), name) for k, name in enumerate(("dog", "cat", "dog", "ant"))]


def test_names_are_numbered_by_the_classes_or_in_their_order() -> None:
    plain = ub.data.first(ITEMS, 4)
    assert plain.y is not None
    assert (plain.y.tolist(), plain.classes) == ([2, 1, 2, 0], ("ant", "cat", "dog"))
    known = ub.data.wrap(ITEMS, classes=["dog", "cat", "ant"]).tensors()
    assert known.y is not None
    assert known.y.tolist() == [0, 1, 0, 2]
    with pytest.raises(DataError, match=r"the label of example 3 .* no class 'ant'"):
        ub.data.wrap(ITEMS, classes=["dog", "cat"]).tensors()
    named = box(["cat", "dog", "ant"])
    for data in (ITEMS, ub.data.wrap(ITEMS), plain, ([x for x, _ in ITEMS], [y for _, y in ITEMS])):
        errors = ub.robustness.calibration(named, data)
        assert errors.accuracy == (named.predict([x for x, _ in ITEMS]) == torch.tensor([1, 0, 1, 2])).double().mean()


def test_an_order_that_is_guessed_is_said() -> None:
    with pytest.warns(UnboxedWarning, match="in the order of their names: 0 is ant, 1 is cat, 2 is dog"):
        ub.robustness.calibration(box(), ITEMS)
    with pytest.raises(DataError, match="are not the model's 4 classes"):
        ub.robustness.calibration(box(n=4), ITEMS)


def test_labels_out_of_range_are_refused() -> None:
    x = torch.rand(2, 1, 8, 8)
    with pytest.raises(InputError, match="classes 0 to 2; got 0 to 3"):
        ub.robustness.calibration(box(), (x, [0, 3]))
    for data in ({"image": list(x), "label": [0, 1, 2]}, (list(x), torch.tensor([0, 1, 2])), (list(x), list("abc"))):
        with pytest.raises(DataError, match="2 inputs and 3 labels"):
            ub.robustness.calibration(box(), data)


MISSING: dict[str, Any] = {
    "-1": lambda x, y: (x, torch.where(torch.arange(len(y)) == 2, -1, y)),
    "NaN": lambda x, y: (x, torch.where(torch.arange(len(y)) == 2, torch.nan, y.float())),
    "None": lambda x, y: [(h, None if i == 2 else int(k)) for i, (h, k) in enumerate(zip(x, y, strict=True))],
    "a list": lambda x, y: (list(x), [-1 if i == 2 else int(k) for i, k in enumerate(y)]),
    "a loader": lambda x, y: torch.utils.data.DataLoader(
        [(h, -1 if i == 2 else int(k)) for i, (h, k) in enumerate(zip(x, y, strict=True))],  # type: ignore[arg-type]
        batch_size=2,
    ),
}


@pytest.mark.parametrize("form", MISSING)
def test_examples_without_a_label_are_left_out(form: str, tmp_path: Path) -> None:
    """By all that reads labels, with a warning; the others keep their indices in the data."""
    x, y, model = torch.rand(6, 1, 8, 8), torch.arange(6) % 3, box()
    kept = torch.tensor([0, 1, 3, 4, 5])
    accuracy = float((model.predict(x[kept]) == y[kept]).double().mean())
    left_out = r"^1 of 6 examples has no label \(-1, NaN or none\) and is left out"
    warns = pytest.warns(UnboxedWarning, match=left_out + r" \(row 2\): results number the others from 0$")
    with warns:
        found = indexed_labeled_examples(model, MISSING[form](x, y))
    assert torch.equal(found.x, x[kept])
    assert torch.equal(found.y, y[kept])
    assert torch.equal(found.dataset_rows, kept)
    with warns:
        assert ub.robustness.calibration(model, MISSING[form](x, y)).accuracy == accuracy
    with warns:
        assert len(ub.adversarial.pgd(model, MISSING[form](x, y), eps=0.1, steps=2).success) == 5
    with pytest.warns(UnboxedWarning, match=left_out + "$"):  # the report keeps their numbers
        out = ub.report(model, MISSING[form](x, y), tmp_path / "out", sections=["overview"], quiet=True)
    overview = json.loads((out.path.parent / "report.json").read_text())["findings"]["overview"]
    assert (overview["accuracy"], overview["examples_requested"]) == (accuracy, 5)


def test_examples_without_a_number_are_left_out(tmp_path: Path) -> None:
    """Of a regression NaN is no label, and -1 is one."""
    x, y = torch.rand(6, 1, 8, 8), torch.tensor([-1.0, 2, torch.nan, 4, -1, 0.5])
    model = ub.Box(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1)), GRAY, outputs="regression")
    kept = torch.tensor([0, 1, 3, 4, 5])
    error = float((model(x[kept])[:, 0] - y[kept]).abs().mean())
    with pytest.warns(UnboxedWarning, match="1 of 6 examples has no label"):
        clean = ub.robustness.evaluate_outputs(model, (x, y), {"fgsm": ub.adversarial.fgsm}, eps=[0.1]).clean
    assert clean["MAE"].mean == pytest.approx(error, rel=1e-5)
    with pytest.warns(UnboxedWarning, match="1 of 6 examples has no label"):
        out = ub.report(model, (x, y), tmp_path / "out", sections=["overview"], quiet=True)
    overview = json.loads((out.path.parent / "report.json").read_text())["findings"]["overview"]
    assert overview["output_errors"][0]["mae"] == pytest.approx(error, rel=1e-5)
    unlabeled = ub.report(model, (x, y * torch.nan), tmp_path / "none", sections=["overview"], quiet=True)
    assert json.loads((unlabeled.path.parent / "report.json").read_text())["title"].startswith("Outputs from")


def test_the_followed_example_of_a_report_needs_a_label(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="example 1 has no label"):
        ub.report(box(), (torch.rand(3, 1, 8, 8), [0, -1, 1]), tmp_path / "out", example=1, quiet=True)


def test_a_report_takes_names_too(tmp_path: Path) -> None:
    named = box(["cat", "dog", "ant"])
    out = ub.report(named, ITEMS, tmp_path / "out", sections=["overview"], quiet=True)
    found = json.loads((out.path.parent / "report.json").read_text())["findings"]["overview"]
    assert found["accuracy"] == (named.predict([x for x, _ in ITEMS]) == torch.tensor([1, 0, 1, 2])).double().mean()


def test_a_report_takes_a_stream(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader([(x, k) for k, (x, _) in enumerate(ITEMS[:3])], batch_size=2)  # type: ignore[arg-type,var-annotated]
    for data in (loader, iter(ITEMS)):
        out = ub.report(box(["cat", "dog", "ant"]), data, tmp_path / "out", sections=["overview"], quiet=True)
        assert json.loads((out.path.parent / "report.json").read_text())["findings"]["overview"]["accuracy"] is not None


class Rows:
    """A Hugging Face data set with names of its own order."""

    def __init__(self) -> None:
        self.features = {"img": None, "label": type("ClassLabel", (), {"names": ["dog", "ant", "cat"]})()}

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"img": Image.new("L", (8, 8), 40 * i), "label": i}


def test_names_of_a_hugging_face_data_set_are_matched() -> None:
    named, rows = box(["cat", "dog", "ant"]), Rows()
    wanted = torch.tensor([1, 2, 0])
    assert torch.equal(examples_with_optional_labels(named, rows)[1], wanted)  # type: ignore[arg-type]
    assert torch.equal(examples_with_optional_labels(named, ub.data.first(rows, 3))[1], wanted)  # type: ignore[arg-type]
    attacked = ub.adversarial.fgsm(named, rows, eps=0.01)
    assert torch.equal(attacked.initially_misclassified, named.predict(rows) != wanted)
    with pytest.raises(DataError, match=r"splits of a data set: pass one, data\['train'\]"):
        ub.robustness.calibration(named, {"train": _split(rows), "test": _split(rows)})


def _split(rows: Any) -> Any:
    rows.column_names = ["img", "label"]
    return rows


# -- what cannot be read -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_workers", [0, 2])
def test_what_a_loader_leaves_out_is_listed_by_every_pass(n_workers: int, tmp_path: Path) -> None:
    for i in range(4):
        path = save(tmp_path / "cat" / f"{i}.png")
    Image.effect_noise((8, 8), 99).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    save(tmp_path / "dog" / "a.png")
    folder = ub.data.folder(tmp_path, box(["cat", "dog"], n=2))
    loader = torch.utils.data.DataLoader(folder, batch_size=2, num_workers=n_workers)
    named, why = box(["cat", "dog"], n=2), r"3\.png" if n_workers == 0 else "worker processes"
    for use in (
        ub.robustness.calibration,
        ub.attribution.gradient,
        lambda b, d: ub.activations.statistics(b, d, ["1"]),
    ):
        with pytest.warns(UnboxedWarning, match=f"1 example can't be read and is left out: .*{why}"):
            use(named, loader)


def test_paths_that_cannot_be_read_are_listed(tmp_path: Path) -> None:
    good, bad = save(tmp_path / "a.png"), tmp_path / "b.png"
    bad.write_bytes(b"no image")
    for data in ([good, bad, good], ([good, bad, good], ["0", "1", "2"]), iter([good, bad, good])):
        with pytest.warns(UnboxedWarning, match=r"1 example can't be read and is left out: .*b\.png: not an image"):
            assert len(box()(data)) == 2
    with pytest.raises(InputError, match=r"can't read the only example: .*b\.png: not an image"):
        box()(bad)
    wrapped = ub.data.wrap([good, bad, good], like=GRAY)
    assert len(wrapped.tensors().x) == 2
    assert [source for source, _ in wrapped.skipped] == ["example 1"]  # type: ignore[attr-defined]


def test_models_are_compared_on_the_same_examples() -> None:
    first, second = box(), box()
    images = [x for x, _ in ITEMS]
    maps = ub.compare({"a": first, "b": second}, ub.attribution.gradient, iter(images))
    assert torch.equal(maps["b"], ub.attribution.gradient(second, images))
    shuffled = torch.utils.data.DataLoader(images, batch_size=2, shuffle=True)  # type: ignore[arg-type, var-annotated]
    maps = ub.compare({"a": first, "b": second}, ub.attribution.gradient, shuffled)
    assert torch.equal(maps["a"].input, maps["b"].input)  # type: ignore[arg-type]
    with pytest.warns(UnboxedWarning, match="another order at each pass"):
        first(shuffled)
