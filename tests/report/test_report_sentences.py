"""Sentences of the report that a reader cannot misread: concepts in quotes, points of what, which ring means what."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

import unboxed as ub
from unboxed.report import SECTIONS, concepts, headline, map, score_intervals
from unboxed.report.blocks import Figure, FigureGrid, longest_caption_word_length, n_phone_columns
from unboxed.report.finding import Example
from unboxed.report.pictures import PageImage, PageImageStore
from unboxed.report.render import render_blocks
from unboxed.report.source import ReportData
from unboxed.report.survey import Survey

TEMPLATES = Path(map.__file__).parent / "templates"


def test_concepts_are_named_as_concepts() -> None:
    assert concepts._concepts_text(["bright"]) == 'the concept "bright"'
    assert concepts._concepts_text(["bright", "fine texture"]) == 'the concepts "bright", "fine texture"'


def test_what_the_nearest_dots_say_is_of_labels() -> None:
    better, worse = (map._label_separation_check({"input": 0.5, "fc": share}) for share in (0.983, 0.4))
    assert "name its label 98.3% of the time in the map of the last hidden layer, and 50.0% in that" in better.text
    assert (better.tone, worse.tone) == ("good", "bad")


def test_neighbors_that_are_misclassified_bear_the_mark() -> None:
    assert 'if (wrong[j]) made.className = "bad"' in (TEMPLATES / "map.js").read_text()
    assert ".map-near button.bad::after" in (TEMPLATES / "page.css").read_text()
    right, wrong = (
        Example(0, torch.zeros(1, 8, 8), "a", "p 0.9", label, is_correct=label == "a") for label in ("a", "b")
    )
    finding = SimpleNamespace(shown=[right, wrong, right], followed=0, neighbors={"fc": torch.tensor([[1, 2]])})
    assert [map._neighbor_figure(finding, 0, rank).tone for rank in (0, 1)] == ["bad", "good"]  # type: ignore[arg-type]
    top = SimpleNamespace(**{**vars(finding), "followed": [0], "has_images": True})
    (figure,) = map.TsneMapFinding.cover(top, 0)  # type: ignore[arg-type]
    assert (figure.head, figure.lines[0], figure.tone) == ("its nearest neighbor", "predicted a", "")


@pytest.mark.parametrize(
    ("n", "text"), [(60, "; 95% interval of the accuracy 88.6% to 99.1%"), (999, "; 95% interval of"), (1000, "")]
)
def test_an_accuracy_on_few_examples_has_its_interval(n: int, text: str) -> None:
    outputs = torch.tensor([[0.9, 0.1]]).repeat(n, 1)
    labels = torch.zeros(n, dtype=torch.long)
    labels[:2] = 1
    survey = Survey(tuple(range(n)), n, outputs, labels, ("a", "b"), True)
    found = score_intervals.accuracy_interval_text(survey)
    assert found.startswith(text)
    assert bool(found) == bool(text)


def test_pairs_stay_together_and_words_whole() -> None:
    picture = PageImage(Image.new("RGB", (112, 112)), "a picture", None)
    figures = [Figure(picture, head) for head in ("predicted 5", "gradient of 5")] * 3
    html = render_blocks([FigureGrid(figures, n_together=2)], PageImageStore())
    assert html.count('class="together"') == 3
    assert longest_caption_word_length(figures) == len("predicted")
    assert n_phone_columns(7, 112, longest_caption_word_length(figures)) == 3
    assert n_phone_columns(4, 112, longest_caption_word_length(figures)) == 2


class BiasOfItsOwn(nn.Module):
    """As position biases of transformers: its module runs on no tensor, and not once per example."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(1, 3))

    def forward(self) -> Tensor:
        return self.table


class WithBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flat, self.fc, self.bias = nn.Flatten(), nn.Linear(64, 3), BiasOfItsOwn()

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flat(x)) + self.bias()


def test_modules_that_run_on_no_tensor_have_no_activations_to_show(tmp_path: Path) -> None:
    box = ub.Box(WithBias(), ub.Pixels((1, 8, 8)))
    sections = [section for section in SECTIONS if section.slug == "activations"]
    made = ub.report(box, (torch.rand(6, 1, 8, 8), torch.arange(6) % 3), tmp_path, sections=sections, quiet=True)
    assert made.failures == {}


@pytest.mark.parametrize(
    ("predicted", "title", "sentence"),
    [
        ([1, 1, 2, 0], "Predicts dog most often", "This is its prediction for 50.0% of 4 examples."),
        ([0, 1, 2, 3, 4], "Predicts 5 classes", "All 4 examples get different classes."),
        (
            [0, 0, 1, 2, 3, 4, 1, 2, 3],
            "Predicts 5 classes",
            'The most frequent one, "cat", is its prediction for 22.2% of 4 examples.',
        ),
    ],
)
def test_a_class_is_the_title_only_where_it_stands_out(predicted: list[int], title: str, sentence: str) -> None:
    survey = SimpleNamespace(
        predicted=torch.tensor(predicted), classes=["cat", "dog", "ant", "bee", "fly"], rows=predicted
    )
    context = SimpleNamespace(survey=survey, class_name=lambda k: survey.classes[k])
    found, (told,) = headline._most_frequent_prediction(context, "4 examples")  # type: ignore[arg-type]
    assert found == title
    assert told.startswith(sentence)


class Cityscapes(Dataset[Any]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Any:
        return torch.rand(1, 8, 8), i % 2


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: Subset(d, [0, 1]), DataLoader])
def test_data_are_called_by_the_name_that_somebody_gave_them(wrap: Any) -> None:
    """Not by the type that holds them, which says nothing of what they are."""
    box = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval(), ub.Pixels((1, 8, 8)), outputs="logits")
    x, y = torch.rand(3, 1, 8, 8), torch.arange(3) % 2
    assert ReportData(wrap(Cityscapes()), box).prefixed_name_or_empty(" of ") == " of Cityscapes"
    assert ReportData(wrap(TensorDataset(x, y)), box).prefixed_name_or_empty(" of ") == ""
    named = ub.data.wrap(TensorDataset(x, y), name="streets")
    assert ReportData(wrap(named), box).prefixed_name_or_empty(" of ") == " of streets"


@pytest.mark.parametrize(
    ("name", "is_said"),
    [
        ("digits (test)", False),
        ("val", False),
        ("held-out.csv", False),
        ("photos", True),
        ("contest", True),
        ("", True),
    ],
)
def test_that_the_examples_may_be_those_of_the_training(name: str, is_said: bool) -> None:
    context = SimpleNamespace(data=SimpleNamespace(name=name))
    assert bool(headline._unknown_split_note(context)) == is_said  # type: ignore[arg-type]
