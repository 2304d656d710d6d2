"""Concepts in any form become inputs by name; what can't be one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import unboxed as ub
from unboxed.concepts._data import read_concepts
from unboxed.errors import DataError, InputError


@pytest.fixture(scope="module")
def box() -> ub.Box:
    return ub.Box(*ub.zoo.load("digits-cnn"))


def test_a_folder_and_tensors_become_inputs(box: ub.Box, tmp_path: Path) -> None:
    for i in range(3):
        Image.new("L", (28, 28), i * 100).save(tmp_path / f"{i}.png")
    x = torch.rand(4, *box.inputs.shape)
    read = read_concepts(box, {"gray": tmp_path, "noise": x})
    assert {name: len(x) for name, x in read.items()} == {"gray": 3, "noise": 4}
    assert torch.equal(read["noise"], x)
    assert read["gray"].flatten(1).mean(1).tolist() == pytest.approx([0, 100 / 255, 200 / 255], abs=1e-6)


@pytest.mark.parametrize(
    ("concepts", "error", "words"),
    [
        ({}, InputError, "mapping"),
        (torch.rand(3, 1, 28, 28), InputError, "mapping"),
        ({"one": torch.rand(1, 1, 28, 28)}, DataError, "'one' has 1 example"),
        ({"none": []}, DataError, "concept 'none'"),
        ({"wide": torch.rand(3, 1, 28, 29)}, InputError, "concept 'wide'"),
    ],
)
def test_what_is_no_concept_is_refused(box: ub.Box, concepts: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        read_concepts(box, concepts)


def test_an_empty_folder_is_refused_by_its_concept(box: ub.Box, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="concept 'empty'"):
        read_concepts(box, {"empty": tmp_path})
