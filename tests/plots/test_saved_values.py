"""The values of a result in a file: all of them in .npz, and in .json as long as they are not too many."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import unboxed as ub
from unboxed.engine.results import result_tensors
from unboxed.plots import views


@pytest.fixture(scope="module")
def box() -> ub.Box:
    return ub.Box(*ub.zoo.load("digits-cnn"))


def test_the_json_of_images_has_their_values(box: ub.Box, tmp_path: Path) -> None:
    x, _ = ub.data.digits("test").first(3)
    maps = ub.attribution.gradient(box, x)
    text = maps.save(tmp_path / "a.json").read_text()
    assert torch.tensor(json.loads(text)["map"]).equal(maps.map)
    assert text.count("\n") == 0  # one number per line would be no reading
    few = ub.attribution.gradient(
        ub.Box(torch.nn.Linear(3, 2), ub.Features(tuple("abc")), outputs="logits"), x[0, 0, :2, :3]
    )
    assert few.save(tmp_path / "few.json").read_text().count("\n") > 5


def test_more_values_than_a_reader_wants_are_summarized(
    box: ub.Box, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "MAX_JSON_TENSOR_VALUES", 100)
    x, _ = ub.data.digits("test").first(1)
    maps = ub.attribution.gradient(box, x)
    summary = json.loads(maps.save(tmp_path / "a.json").read_text())["map"]
    assert summary["shape"] == [1, 1, 28, 28]
    assert summary["max"] == pytest.approx(float(maps.map.max()))


def test_arrays_have_every_tensor(box: ub.Box, tmp_path: Path) -> None:
    x, y = ub.data.digits("test").first(3)
    for result in (
        ub.attribution.gradient(box, x),
        ub.activations.maps(box, x, "conv1"),
        ub.adversarial.fgsm(box, x, y, eps=0.1),
        ub.robustness.calibration(box, (x, y)),
    ):
        expected = {name.lstrip("."): t for name, t in result_tensors(result).items()}
        with np.load(result.save(tmp_path / "a.npz")) as arrays:
            assert {*arrays} == {*expected}
            for name, tensor in expected.items():
                assert np.array_equal(arrays[name], tensor.numpy(), equal_nan=tensor.is_floating_point())


def test_bfloat16_is_written_as_float32(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2)).bfloat16()
    result = ub.activations.maps(ub.Box(model, ub.Features(tuple("abc")), outputs="logits"), torch.rand(2, 3))
    with np.load(result.save(tmp_path / "a.npz")) as arrays:
        assert {array.dtype for array in arrays.values()} <= {np.dtype(np.float32), np.dtype(np.int64)}
