"""Passing over data: any form of them, in any batches, at bounded memory, and some of them again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, TensorDataset

import awkward
import unboxed as ub
from unboxed.engine.read.examples import fetch_inputs, for_each_batch, input_batches
from unboxed.errors import DataError, InputError
from unboxed.inputs.examples import is_single_pass_data

X, Y = awkward.get_model("plain").images(7), torch.arange(7) % 4


class Indexed(Dataset[Any]):
    """Never raises IndexError, as some data sets."""

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> Any:
        return X[i % 7], int(Y[i % 7])


class Streamed(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(X)


FORMS: dict[str, Any] = {
    "a tensor": lambda: X,
    "a pair": lambda: (X, Y),
    "a list": lambda: list(X),
    "arrays": lambda: [x.numpy() for x in X],
    "pairs": lambda: list(zip(X, Y, strict=True)),
    "a data set": Indexed,
    "tensors": lambda: TensorDataset(X, Y),
    "a stream": Streamed,
    "an iterator": lambda: iter(X),
    "a loader": lambda: DataLoader(TensorDataset(X, Y), batch_size=3),
    "a loader with a batch sampler": lambda: DataLoader(
        TensorDataset(X, Y), batch_sampler=BatchSampler(SequentialSampler(X), 3, drop_last=False)
    ),
    "a loader of examples": lambda: DataLoader(Indexed(), batch_size=None),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 3, 7, 100])
def test_every_form_gives_the_same_batches(form: str, size: int) -> None:
    found = list(input_batches(FORMS[form](), size))
    assert [len(x) for x in found] == [len(x) for x in X.split(size)]
    assert torch.equal(torch.cat(found), X)


@pytest.mark.parametrize("form", [f for f in FORMS if f != "an iterator"])
@pytest.mark.parametrize("index", [[2], [6, 0, 6], torch.tensor([[1, 5], [0, 1]])])
def test_picked_examples_are_those_that_batches_count(form: str, index: Any) -> None:
    data = FORMS[form]()
    assert not is_single_pass_data(data)
    assert torch.equal(fetch_inputs(data, index), X[torch.as_tensor(index).flatten()])


@pytest.mark.parametrize("form", [f for f in FORMS if f != "an iterator"])
@pytest.mark.parametrize("index", [[7], [0, -1]])
def test_there_is_no_such_example(form: str, index: Any) -> None:
    with pytest.raises(DataError, match="no example number"):
        fetch_inputs(FORMS[form](), index)


@pytest.mark.parametrize(
    "data",
    [iter(X), (x for x in X), DataLoader(TensorDataset(X), batch_size=2, shuffle=True)],
    ids=["an iterator", "a generator", "a shuffling loader"],
)
def test_what_can_be_read_only_once_is_not_read_again(data: Any) -> None:
    assert is_single_pass_data(data)
    with pytest.raises(DataError, match="only once"):
        fetch_inputs(data, [0])


@pytest.mark.parametrize("data", [7, "images", None, {"x": X}, [X[0], X[0, :, :2], X[0]], [None], ["a", "b", "c"]])
def test_what_holds_no_inputs(data: Any) -> None:
    with pytest.raises(DataError, match="wanted"):
        list(input_batches(data, 2))


@pytest.mark.parametrize("data", [X[:0], (X[:0], Y[:0]), [], iter([]), torch.tensor(1.0)])
def test_no_examples(data: Any) -> None:
    with pytest.raises(DataError, match="empty"):
        list(input_batches(data, 2))


def sizes(box: ub.Box, data: Any, **settings: Any) -> list[int]:
    found: list[int] = []
    for_each_batch(box, data, lambda x: found.append(len(x)), **settings)
    return found


def test_batches_are_bounded_and_batch_dependent_rows_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = awkward.get_model("plain")
    box = ub.Box(entry.model, entry.inputs)
    assert sizes(box, X, batch_size=3) == [3, 3, 1]
    assert sizes(box, iter(X), max_rows=5) == [5, 2]
    monkeypatch.setattr("unboxed.box.MAX_AUTO_BATCH_ACTIVATION_BYTES", 1)
    assert sizes(box, X) == [1] * 7
    coupled = awkward.get_model("batchnorm_without_statistics")
    assert sizes(ub.Box(coupled.model, coupled.inputs), iter(X), batch_size=2) == [7]


@pytest.mark.parametrize("size", [0, -1, 1.5, "all", True, None])
def test_batch_size_is_checked_before_the_data_are_read(size: Any) -> None:
    entry = awkward.get_model("plain")
    data = iter(X)
    with pytest.raises(InputError, match="batch_size"):
        for_each_batch(ub.Box(entry.model, entry.inputs), data, len, batch_size=size)
    assert torch.equal(next(data), X[0])


def test_inputs_are_checked() -> None:
    entry = awkward.get_model("plain")
    with pytest.raises(InputError, match="255"):
        for_each_batch(ub.Box(entry.model, entry.inputs), X * 255, len)


def test_a_batch_that_does_not_fit_is_halved() -> None:
    entry, seen = awkward.get_model("plain"), list[Tensor]()

    def work(x: Tensor) -> None:
        if len(x) > 2:
            raise torch.OutOfMemoryError("no room")
        seen.append(x)

    for_each_batch(ub.Box(entry.model, entry.inputs), X, work)
    assert torch.equal(torch.cat(seen), X)
