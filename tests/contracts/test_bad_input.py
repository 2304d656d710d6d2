"""Contract 8: bad input is refused with one clear error: what came, what was wanted, what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

import awkward
import unboxed as ub
from check_each import each
from contracts.common import CARDS, MethodCase, call_example, each_method, has_parameters, shared_case
from contracts.test_awkward import assert_clear
from contracts.trace import changes, snapshot
from unboxed.errors import InputError, LayerError, UnboxedError

BAD_X: dict[str, Any] = {
    "no batch axis": lambda x: x[0],
    "too many axes": lambda x: x[None],
    "another size": lambda x: x[..., :-1],
    "another channel count": lambda x: x.repeat(1, 3, 1, 1),
    "channels last": lambda x: x.permute(0, 2, 3, 1),
    "flat": lambda x: x.flatten(1),
    "empty": lambda x: x[:0],
    "0 to 255": lambda x: x * 255,
    "normalized": lambda x: (x - 0.4) / 0.5,
    "one NaN": lambda x: x.index_fill(3, torch.tensor([2]), float("nan")),
    "infinite": lambda x: x / 0,
    "minus infinite": lambda x: x.index_fill(3, torch.tensor([2]), -float("inf")),
    "integers": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "an array, flat": lambda x: x.numpy().reshape(3, -1),
    "an array without batch axis": lambda x: x.numpy()[0, 0, :, :, None],
    "an array, 0 to 255": lambda x: 255 * x.numpy(),
    "an array of ints": lambda x: (255 * x.numpy()).astype(np.int64),
    "a list": lambda x: x.tolist(),
    "an empty list": lambda x: [],
    "a list of batches": lambda x: [x, x],
    "a list of two sizes": lambda x: [x[0], x[0, :, :4]],
    "a dict": lambda x: {"pixels": x},
    "None": lambda x: None,
    "a string": lambda x: "seven.png",
    "a model": lambda x: torch.nn.Identity(),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
}
BAD_CLASS: dict[str, Any] = {
    "too large": 4,
    "negative": -1,
    "a float": 1.5,
    "a bool": True,
    "a string": "cat",
    "too few": torch.tensor([0, 1]),
    "too many": torch.tensor([0, 1, 2, 3]),
    "one too large": torch.tensor([0, 1, 4]),
    "one negative": torch.tensor([0, 1, -1]),
    "floats with a fraction": torch.tensor([0.0, 1.5, 2.0]),
    "booleans": torch.tensor([True, False, True]),
    "a column, too short": torch.tensor([[0], [1]]),
    "names, one unknown": ["0", "1", "cat"],
    "one-hot": torch.eye(4)[:3],
    "one-hot ints": torch.eye(4)[:3].long(),
    "a dict": {"class": 1},
    "none for any": torch.zeros(0, dtype=torch.long),
}
NAN = float("nan")
BAD_SETTINGS: list[tuple[str, Any]] = [
    ("batch_size", 0), ("batch_size", -1), ("batch_size", 1.5), ("batch_size", "all"), ("batch_size", True),
    ("batch_size", None), ("steps", -1), ("steps", 1.5), ("steps", "many"), ("steps", NAN),
    ("frame_every", 0), ("frame_every", -2), ("frame_every", 1.5),
    ("eps", -0.1), ("eps", 0), ("eps", NAN), ("eps", float("inf")), ("eps", "8/255"),
    ("step", -0.1), ("step", NAN), ("step", "small"),
    ("norm", "l7"), ("norm", 3), ("norm", None),
    ("confidence", 0), ("confidence", 1.5), ("confidence", NAN), ("confidence", "sure"),
    ("recipe", "pretty"), ("recipe", None),
    ("seed", 1.5), ("seed", "lucky"), ("seed", None),
    ("layers", ["conv9"]), ("layers", [7]), ("layers", [""]), ("layer", "conv9"), ("layer", 7),
]  # fmt: skip


@contextmanager
def leaving_no_trace(c: MethodCase) -> Iterator[None]:
    """Around many refusals: a snapshot costs as much as one."""
    before = snapshot(c.box.model)
    yield
    assert changes(before, snapshot(c.box.model)) == []


def refusal(work: Any, error: type[UnboxedError] = UnboxedError, what: str = "") -> str:
    """The message of the refusal, which is clear."""
    raised = None
    try:
        work()
    except UnboxedError as caught:
        raised = caught
    assert raised is not None, f"accepted: {what}"
    assert_clear(raised)
    assert isinstance(raised, error), f"{what}: {type(raised).__name__}"
    return str(raised)


def refused(c: MethodCase, work: Any, error: type[UnboxedError] = UnboxedError, what: str = "") -> str:
    """The message of a single refusal, which leaves no trace."""
    with leaving_no_trace(c):
        return refusal(work, error, what)


@each_method("bad input", lambda card: has_parameters(card, "x"))
def test_inputs(name: str) -> None:
    c = shared_case("plain")
    with leaving_no_trace(c):
        for bad, make in BAD_X.items():
            if bad not in CARDS[name].exempt:
                refusal(lambda make=make: call_example(CARDS[name], replace(c, x=make(c.x))), InputError, bad)


@each(BAD_X)
def test_inputs_of_a_box(bad: str) -> None:
    c = shared_case("plain")
    x = BAD_X[bad](c.x)
    for work in (c.box, c.box.probs, c.box.predict, lambda x: c.box.read(x, ["conv1"])):
        refused(c, lambda work=work: work(x), InputError)


WHAT_NEXT = {
    "no batch axis": "x[None]",
    "0 to 255": "255",
    "normalized": "decode",
    "one NaN": "NaN",
    "an array without batch axis": "x[None]",
    "channels last": "x.permute(0, 3, 1, 2)",
    "a list of batches": "torch.cat(x)",
    "a dict": "image and label",
    "a string": "seven.png",
}


def test_the_message_says_what_to_do() -> None:
    """What came, what was wanted, what to do next."""
    c = shared_case("plain")
    said = {bad: refused(c, lambda bad=bad: c.box(BAD_X[bad](c.x))) for bad in WHAT_NEXT}
    assert {bad: hint in said[bad] for bad, hint in WHAT_NEXT.items()} == dict.fromkeys(WHAT_NEXT, True)
    said_of_shape = refused(c, lambda: c.box(c.x[..., :-1]))
    assert "(3, 1, 8, 7)" in said_of_shape
    assert "(N, 1, 8, 8)" in said_of_shape


PER_EXAMPLE = ("too few", "too many", "a column, too short")  # of methods with a class for each example
CLASSES_AS = [(n, k) for n, card in CARDS.items() for k in ("target", "y") if has_parameters(card, k)]


@each(CLASSES_AS)
def test_classes(name: str, argument: str) -> None:
    c, card = shared_case("plain"), CARDS[name]
    pair = {"clean": c.x, "corrupted": c.x.flip(0)}  # of activation patching
    mine = {"x": c.x, "y": c.y, **pair, "eps": 0.1, "steps": 1, "references": c.x, "data": c.x, "concepts": {"a": c.x}}
    settings = {k: v for k, v in mine.items() if has_parameters(card, k)}
    with leaving_no_trace(c):
        for bad, value in BAD_CLASS.items():
            if has_parameters(card, "x") or bad not in PER_EXAMPLE:
                call = partial(card.method, c.box, **{**settings, argument: value})
                refusal(call, InputError, bad)


@each(BAD_SETTINGS)
def test_settings(setting: str, value: Any) -> None:
    """Every method that takes the setting refuses the bad value."""
    c = shared_case("plain")
    takers = [card for card in CARDS.values() if has_parameters(card, setting)]
    assert takers
    with leaving_no_trace(c):
        for card in takers:
            refusal(lambda card=card: call_example(card, c, **{setting: value}), what=card.name)


def test_unknown_layers_are_answered_with_the_nearest_names() -> None:
    c = shared_case("plain")
    for work in (lambda: c.box.read(c.x, ["conv"]), lambda: ub.activations.maps(c.box, c.x, ["conv"])):
        said = refused(c, work, LayerError)
        assert "conv1" in said
        assert "conv2" in said
    said = refused(c, lambda: ub.attribution.gradient(c.box, c.x, ub.channel("rellu1", 0)), LayerError)
    assert "relu1" in said


def test_a_layer_called_twice_must_be_said_which() -> None:
    c = shared_case("relu_called_twice")
    said = refused(c, lambda: c.box.read(c.x, ["relu1"]), LayerError)
    assert "relu1#0" in said
    assert "relu1#1" in said
    first, second = c.box.read(c.x, ["relu1#0", "relu1#1"]).values()
    assert first.shape == (3, 4, 8, 8)
    assert second.shape == (3, 4, 4, 4)
    refused(c, lambda: c.box.read(c.x, ["relu1#2"]), LayerError)


@each(["", "conv1#", "conv1#-1", "conv1#x", "conv1#1.5", "#0", "conv1:", "conv1:relu", ":relu", "conv1#0#0"])
def test_odd_addresses(address: str) -> None:
    c = shared_case("plain")
    refused(c, lambda: c.box.read(c.x, [address]), LayerError)


BAD_OBJECTIVES: dict[str, Any] = {
    "a channel too far": ub.channel("conv1", 4),
    "a neuron outside": ub.neuron("conv1", 0, 8, 8),
    "a neuron of too many places": ub.neuron("conv1", 0, 1, 1, 1),
    "a direction of another width": ub.direction("conv1", torch.ones(5)),
    "another activation": ub.match("conv1", torch.zeros(1, 4, 3, 3)),
    "a row too few": ub.match("conv1", torch.zeros(2, 4, 8, 8)),
    "a row too many": ub.match("conv1", torch.zeros(4, 4, 8, 8)),
    "labels of a smaller batch": ub.loss(torch.tensor([0, 1])),
    "labels of a larger batch": ub.loss(torch.tensor([0, 1, 2, 3])),
    "classes of a larger batch": 2 * ub.logit(torch.arange(4)) - ub.channel("conv1", 0),
    "weights of a larger batch": ub.logit(1) * torch.ones(4),
    "weights of a smaller batch": ub.logit(1) * torch.ones(2),
    "a class too large": ub.logit(4),
    "a margin to no class": ub.margin(torch.tensor([0, 1, 9])),
    "an unknown layer": ub.channel("conv3", 0),
}


@each(product(BAD_OBJECTIVES, ("auto", 1)))
def test_objectives(bad: str, size: Any) -> None:
    c = shared_case("plain")
    refused(c, lambda: ub.attribution.gradient(c.box, c.x, BAD_OBJECTIVES[bad], batch_size=size))


OPENINGS: dict[str, Any] = {
    "not a model": lambda p: ub.Box("resnet", p.inputs),
    "a function": lambda p: ub.Box(lambda x: x, p.inputs),
    "inputs of another size": lambda p: ub.Box(p.model, ub.Pixels((1, 9, 9))),
    "inputs with too many channels": lambda p: ub.Box(p.model, ub.Pixels((3, 8, 8))),
    "too few class names": lambda p: ub.Box(p.model, p.inputs, classes=["a"]),
    "an unknown mode": lambda p: ub.Box(p.model, p.inputs, mode="train"),
    "unknown outputs": lambda p: ub.Box(p.model, p.inputs, outputs="scores"),
    "no such output": lambda p: ub.Box(awkward.get_model("dict_output").model, p.inputs, output="answer"),
    "an output that is no tensor": lambda p: ub.Box(awkward.get_model("tuple_output").model, p.inputs, output=2),
    "two outputs": lambda p: ub.Box(Two(), p.inputs),
    "no output": lambda p: ub.Box(Nothing(), p.inputs),
    "a list for inputs": lambda p: ub.Box(p.model, (1, 8, 8)),
    "an image of no pixels": lambda p: ub.Pixels((1, 0, 8)),
    "a shape without channels": lambda p: ub.Pixels((8,)),
    "a shape of floats": lambda p: ub.Pixels((1, 8.5, 8)),
    "no spread": lambda p: ub.Pixels((1, 8, 8), std=0.0),
    "a mean for each of two channels": lambda p: ub.Pixels((1, 8, 8), mean=(0.1, 0.2)),
    "a mean that is no number": lambda p: ub.Pixels((1, 8, 8), mean=float("nan")),
    "a mean in gray levels": lambda p: ub.Pixels((1, 8, 8), mean="0.13"),
}


class Two(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.flatten(1), x.flatten(1)


class Nothing(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> None:
        return None


@each(OPENINGS)
def test_opening(bad: str) -> None:
    p = awkward.get_model("plain")
    before = snapshot(p.model)
    with pytest.raises(UnboxedError) as caught:
        OPENINGS[bad](p)
    assert_clear(caught.value)
    assert changes(before, snapshot(p.model)) == []


def test_numbers_of_numpy_are_numbers() -> None:
    """An index out of an array is an int to everybody but isinstance."""
    c = shared_case("plain")
    want = ub.attribution.gradient(c.box, c.x, 1)
    assert torch.equal(ub.attribution.gradient(c.box, c.x, np.int64(1)), want)
    assert torch.equal(ub.attribution.gradient(c.box, c.x, torch.tensor(1)), want)
