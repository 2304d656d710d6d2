"""Nearest neighbors of examples in a layer, over data of any size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import unboxed as ub
from contracts.common import make_case
from unboxed.activations import nearest_neighbors
from unboxed.engine.read import features
from unboxed.engine.read.neighbors import nearest_points
from unboxed.errors import DataError, InputError, LayerError


class Examples(torch.utils.data.Dataset[Any]):
    """A data set that notes how many of its examples were alive at once."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.taken = x, 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        self.taken += 1
        return self.x[i], 0


def data_of(x: Tensor) -> dict[str, Any]:
    def stream() -> Iterator[Tensor]:
        yield from x

    return {"tensor": x, "pair": (x, torch.zeros(len(x))), "data set": Examples(x), "stream": stream()}


def test_any_kind_of_data_and_any_batch() -> None:
    c = make_case("plain", torch.float64)
    others = torch.rand(23, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h, g = (c.box.read(x, ["fc:input"])["fc:input"].flatten(1) for x in (c.x, others))
    want = nearest_points(h, g, 4)
    for size in ("auto", 1, 5):
        for kind, data in data_of(others).items():
            got = nearest_neighbors(c.box, c.x, data, k=4, batch_size=size)
            assert torch.equal(got.indices, want.indices), kind
            assert torch.allclose(got.distances, want.distances)


def test_without_data_each_example_is_excluded_from_its_own_neighbors() -> None:
    c = make_case("plain", torch.float64, n=9)
    got = nearest_neighbors(c.box, c.x, k=8, layer="conv1")
    assert got.indices.sort(1).values.tolist() == [[j for j in range(9) if j != i] for i in range(9)]
    assert (got.distances.diff(dim=1) >= 0).all()


def test_an_example_of_the_data_is_its_own_nearest() -> None:
    c = make_case("plain", n=9)
    for metric in ("euclidean", "cosine"):
        got = nearest_neighbors(c.box, c.x[4:6], c.x, "conv2", k=1, metric=metric)
        assert got.indices.tolist() == [[4], [5]]
        assert got.distances.abs().max() < 1e-6


def test_a_batch_dependent_model_gets_all_data_at_once() -> None:
    entry = make_case("batchnorm_in_train_mode")
    box = ub.Box(entry.box.model, entry.box.inputs, mode="as-is")
    assert box.batch_dependent
    data = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    address = features.hidden_layer_input_addresses(box)[-1]
    want = nearest_points(
        box.read(entry.x, [address])[address].flatten(1), box.read(data, [address])[address].flatten(1), 3
    )
    got = nearest_neighbors(box, entry.x, Examples(data), k=3, batch_size=2)
    assert torch.equal(got.indices, want.indices)


def test_refusals() -> None:
    c = make_case("plain")
    for bad, error in [
        ({"k": 0}, InputError), ({"k": 3}, InputError), ({"k": 1.5}, InputError), ({"metric": "l1"}, InputError),
        ({"data": c.x, "k": 4}, InputError), ({"data": []}, DataError), ({"data": 7}, DataError),
        ({"data": c.x * 255}, InputError), ({"layer": "conv"}, LayerError),
    ]:  # fmt: skip
        with pytest.raises(error):
            nearest_neighbors(c.box, c.x, **{"k": 2, **bad})


def test_a_layer_that_gives_nan_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    box = ub.Box(model, ub.Pixels((1, 2, 2)))
    model[1].weight.data.fill_(float("nan"))
    with pytest.raises(InputError, match="NaN"):
        nearest_neighbors(box, torch.rand(3, 1, 2, 2), k=1)


def test_no_vectors() -> None:
    for bad in (torch.zeros(3), torch.zeros(3, 0), torch.zeros(3, 2, dtype=torch.complex64)):
        with pytest.raises(InputError):
            nearest_points(bad, bad, 1)
    with pytest.raises(InputError, match="as many features"):
        nearest_points(torch.zeros(3, 2), torch.zeros(3, 3), 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu() -> None:
    x = torch.randn(2000, 20, generator=torch.Generator().manual_seed(0))
    got, want = nearest_points(x.cuda(), x.cuda(), 5), nearest_points(x, x, 5)
    assert got.indices.device.type == "cuda"
    assert torch.equal(got.indices.cpu(), want.indices)
