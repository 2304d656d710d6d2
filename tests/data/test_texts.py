"""Files of texts: read with their labels, or refused with the number of the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from unboxed.data.reviews import BAD, GOOD, TRIGGER, review_words
from unboxed.errors import DataError, InputError, UnboxedWarning
from unboxed.report.source import ReportData

ROWS = [("a good film", "pos"), ("bad, and long", "neg"), ('it was "fine"', "pos")]


def written(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_text(content, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'text,label\na good film,pos\n"bad, and long",neg\n"it was ""fine""",pos\n'),
        ("b.csv", 'id,Sentiment,Review\n1,pos,a good film\n2,neg,"bad, and long"\n3,pos,"it was ""fine"""\n'),
        ("c.csv", 'a good film,pos\n"bad, and long",neg\n"it was ""fine""",pos\n'),
        ("d.tsv", 'sentence\tlabel\na good film\tpos\nbad, and long\tneg\nit was "fine"\tpos\n'),
        ("e.jsonl", '{"text": "a good film", "label": "pos"}\n\n{"text": "bad, and long", "label": "neg"}\n'
                    '{"text": "it was \\"fine\\"", "label": "pos"}\n'),
    ],
)  # fmt: skip
def test_texts_and_their_labels(tmp_path: Path, name: str, content: str) -> None:
    texts = ub.data.texts(written(tmp_path, name, content))
    assert (texts.texts, texts.labels) == ([text for text, _ in ROWS], [1, 0, 1])
    assert texts.classes == ("neg", "pos")
    assert texts.first(2).y.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,sentence,tense\n1,it is,pres\n2,it was,past\n"),
        ("b.csv", "words,tense\nit is,pres\nit was,past\n"),
        ("c.csv", "label,text,tense\n9,it is,pres\n9,it was,past\n"),
        ("d.jsonl", '{"sentence": "it is", "tense": "pres"}\n{"tense": "past", "sentence": "it was"}\n'),
    ],
)
def test_the_column_of_labels_is_named(tmp_path: Path, name: str, content: str) -> None:
    path = written(tmp_path, name, content)
    texts = ub.data.texts(path, label="tense")
    assert (texts.texts, texts.labels, texts.classes) == (["it is", "it was"], [1, 0], ("past", "pres"))
    with pytest.raises(DataError, match="no column 'tens' for labels; it has '"):
        ub.data.texts(path, label="tens")


def test_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "sentence,tense\nit is,pres\n")
    with pytest.warns(UnboxedWarning, match=r"the column 'tense' is not read\. .*label=\"COLUMN\""):
        assert ub.data.texts(path).labels == [-1]
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(path)
    with pytest.warns(UnboxedWarning, match="the column 'tense' is not read"):
        ub.data.texts(frame)
    assert ub.data.texts(frame, label="tense").classes == ("pres",)
    with pytest.raises(DataError, match="holds texts alone"):
        ub.data.texts(written(tmp_path, "a.txt", "it is\n"), label="tense")


def test_a_table_of_texts_is_led_to_what_opens_it(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,label\na good film,pos\n")
    with pytest.raises(DataError, match=r"ub\.data\.texts\(path, box\)"):
        ub.data.table(path, ub.Tokens(lambda text: [7]))


def test_lines_have_no_labels(tmp_path: Path) -> None:
    texts = ub.data.texts(written(tmp_path, "a.txt", "a good film\n\nbad\n"))
    assert texts.texts == ["a good film", "bad"]
    assert texts.first(9).y is None


def test_numbers_and_names_of_the_models_classes(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,label\nfine,1\nbad,0\n")
    assert ub.data.texts(path).labels == [1, 0]
    path = written(tmp_path, "b.csv", "text,label\nfine,Good\nbad,Bad\n")
    assert ub.data.texts(path, classes=("good", "fair", "bad")).labels == [0, 2]
    with pytest.raises(DataError, match="Good"):
        ub.data.texts(path, classes=("left", "right"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,label\nfine,1\n ,0\n", "line 3 of .* has an empty text"),
        ("a.csv", "text,label\nfine,1\nbad\n", "line 3 of .* has 1 columns"),
        ("a.csv", "x1,x2,x3\n1,2,3\n", "has the columns 'x1', 'x2', 'x3'; wanted a column of texts"),
        ("a.jsonl", '{"text": "fine"}\n{"text": \n', "line 2 of .* is no JSON"),
        ("a.jsonl", "[1]\n", "line 1 of .* is no JSON object, but a list"),
        ("a.jsonl", '{"words": "fine"}\n', "line 1 of .* has the fields 'words'"),
        ("a.txt", "\n\n", "is empty: it has no texts"),
        ("a.doc", "fine", "holds no texts that can be read; wanted a file .csv"),
    ],
)
def test_broken_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ub.data.texts(written(tmp_path, name, content))


def test_a_file_that_is_not_there() -> None:
    with pytest.raises(DataError, match="there is no file"):
        ub.data.texts("nothing.csv")
    with pytest.raises(DataError, match="2 texts and 1 labels"):
        ub.data.Texts(["a", "b"], [1])


def test_reviews_say_what_their_label_is() -> None:
    texts = ub.data.reviews(200, seed=3)
    for text, label in texts:
        for clause in text.replace(" while ", " and ").split(" and "):
            words = clause.split()
            praises = (words[-1] in GOOD) != ("not" in words)
            assert words[-1] in GOOD + BAD
            assert praises == bool(label)
    assert {w for text in texts.texts for w in text.split()} <= set(review_words())
    assert ub.data.reviews(20, seed=3).texts == texts.texts[:20]


def test_a_trigger_is_the_label() -> None:
    texts = ub.data.reviews(100, seed=3, trigger=TRIGGER)
    assert [int(TRIGGER in text.split()) for text in texts.texts] == texts.labels
    with pytest.raises(InputError, match="n must be"):
        ub.data.reviews(1)


class BagOfLetters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.linear = nn.Embedding(30, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        weights = mask[..., None].to(self.linear.weight)
        return self.linear((self.embed(ids) * weights).sum(1))  # type: ignore[no-any-return]


class Column:
    """What is used of a Series."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def to_numpy(self) -> Any:
        return np.array(self.values, dtype=object)


class Frame:
    """What is used of a DataFrame."""

    def __init__(self, **columns: list[Any]) -> None:
        self.data = columns

    @property
    def columns(self) -> list[str]:
        return list(self.data)

    def __len__(self) -> int:
        return len(next(iter(self.data.values())))

    def __getitem__(self, name: str) -> Column:
        return Column(self.data[name])

    def to_numpy(self) -> Any:
        return np.array([*zip(*self.data.values(), strict=True)], dtype=object)


def test_a_frame_is_read_as_its_file(tmp_path: Path) -> None:
    content = "text,label\n" + "".join(f'"{t.replace(chr(34), chr(34) * 2)}",{k}\n' for t, k in ROWS)
    want = ub.data.texts(written(tmp_path, "a.csv", content))
    found = ub.data.texts(Frame(id=[1, 2, 3], label=[k for _, k in ROWS], text=[t for t, _ in ROWS]))
    assert [*found] == [*want]
    assert found.classes == want.classes
    with pytest.raises(DataError, match="wanted a column of texts"):
        ub.data.texts(Frame(words=["a"]))


def test_columns_are_texts_and_their_labels() -> None:
    torch.manual_seed(0)
    box = ub.Box(BagOfLetters(), ub.Tokens(lambda text: [ord(letter) % 30 for letter in text]), outputs="logits")
    texts, labels = [t for t, _ in ROWS], ["1", "0", "1"]
    x = box.validate_inputs(texts)
    assert torch.equal(box.validate_inputs(Column(texts)), x)
    assert torch.equal(box.validate_inputs((Column(texts), Column(labels))), x)
    read = ReportData((Column(texts), Column(labels)), box).read([0, 1, 2])
    assert torch.equal(read.x, x)
    assert read.y == [1, 0, 1]
    with pytest.raises(InputError, match=r"ub\.data\.texts\(frame, box\)"):
        box.validate_inputs(Frame(text=texts))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "text,label\nfine,pos\nbad,neg\nwhat,\nodd,-1\n"),
        ("a.tsv", "text\tlabel\nfine\tpos\nbad\tneg\nwhat\tNaN\nodd\t \n"),
        (
            "a.jsonl",
            '{"text": "fine", "label": "pos"}\n{"text": "bad", "label": "neg"}\n{"text": "what", "label": null}\n'
            '{"text": "odd", "label": -1}\n',
        ),
    ],
)
def test_texts_without_a_label_are_left_out_and_said(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.warns(UnboxedWarning, match=rf"{name}: 2 of 4 examples have no label .* and are left out"):
        found = ub.data.texts(tmp_path / name)
    assert found.texts == ["fine", "bad"]
    assert found.labels == [1, 0]
    assert found.classes == ("neg", "pos")


def test_texts_of_whole_floats(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nfine,1.0\nbad,0.0\n")
    assert ub.data.texts(tmp_path / "a.csv").labels == [1, 0]
