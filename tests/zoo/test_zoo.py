"""The zoo: what it holds, with and without trained weights."""

import random

import numpy as np
import pytest
import torch

from real_data import MNIST, needs_mnist
from unboxed import data, zoo
from unboxed.box import Box
from unboxed.errors import ModelError
from unboxed.training import accuracy, robust_accuracy

NAMES = ("mnist-linear", "mnist-cnn", "mnist-judge", "mnist-robust", "digits-cnn", "digits-judge")


def states():
    return torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def some(dataset, n, start=0):
    return torch.utils.data.Subset(dataset, range(start, start + n))


def test_names():
    assert set(zoo.names()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("weights", ["trained", None])
def test_logits_in_eval_mode_and_no_trace(name, weights):
    before = states()
    model, inputs = zoo.load(name, weights=weights, seed=3)
    after = states()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]
    assert not any(m.training for m in model.modules())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    box = Box(model, inputs, outputs="logits")
    assert box(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert inputs.shape == (1, 28, 28)


@pytest.mark.parametrize("name", NAMES)
def test_box_takes_the_outputs_for_logits(name):
    assert Box(*zoo.load(name)).outputs == "logits"


def test_fresh_weights_follow_the_seed():
    first, again, other = (zoo.load("digits-cnn", weights=None, seed=s)[0] for s in (1, 1, 2))
    assert same_weights(first, again)
    assert not same_weights(first, other)
    assert not same_weights(first, zoo.load("digits-cnn")[0])


def test_trained_copies_are_not_shared():
    one, _ = zoo.load("digits-cnn")
    with torch.no_grad():
        one.fc1.weight.zero_()
    assert zoo.load("digits-cnn")[0].fc1.weight.abs().sum() > 0


def test_the_linear_model_is_clamped():
    box = Box(*zoo.load("mnist-linear"), outputs="logits")
    logits = box(data.digits("test").first(50).x)
    assert logits.min() == 0
    assert logits.max() > 0


def test_judge_is_of_another_build():
    judge, cnn = zoo.load("digits-judge")[0], zoo.load("digits-cnn")[0]
    assert judge.conv1.stride == (2, 2)
    assert cnn.conv1.stride == (1, 1)
    assert not any("Pool" in type(m).__name__ for m in judge.modules())


@pytest.mark.parametrize("name", ["mnist-cn", "cnn", 7])
def test_unknown_name(name):
    for ask in (zoo.load, zoo.card, zoo.entry):
        with pytest.raises(ModelError, match=r"mnist-cnn"):
            ask(name)


def test_unknown_weights():
    with pytest.raises(ModelError, match=r'"trained" or None.*pretrained'):
        zoo.load("mnist-cnn", weights="pretrained")


def test_weights_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("unboxed.zoo.registry.ZOO_WEIGHTS_FOLDER", tmp_path)
    for ask in (zoo.load, zoo.card):
        with pytest.raises(ModelError, match="unboxed train digits-cnn"):
            ask("digits-cnn")


@pytest.mark.parametrize("name", NAMES)
def test_card(name):
    card = zoo.card(name)
    assert card["name"] == name
    assert card["command"].startswith(f"unboxed train {name} ")
    assert card["data"].startswith(zoo.entry(name).dataset_name)
    assert {"torch", "unboxed"} <= set(card["versions"])
    assert not card["interrupted"]
    assert card["recipe"]["epochs"] == len(card["test_accuracy_by_epoch"])
    assert card["accuracy"] > {"mnist-linear": 0.9, "mnist-cnn": 0.99}.get(name, 0.97)
    assert ("robust" in card) == name.endswith(("judge", "robust"))


@pytest.mark.parametrize("name", NAMES)
def test_weights_were_trained_on_these_inputs(name):
    """The figures hold only for the normalization that the model was trained with."""
    saved, inputs = zoo.card(name)["inputs"], zoo.entry(name).inputs
    assert (tuple(saved["shape"]), saved["mean"], saved["std"]) == (inputs.shape, inputs.mean, inputs.std)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_small(name):
    assert (zoo.ZOO_WEIGHTS_FOLDER / f"{name}.safetensors").stat().st_size < 5_000_000


@pytest.mark.parametrize("name", ["digits-cnn", "digits-judge"])
def test_digits_accuracy_is_the_cards(name):
    box = Box(*zoo.load(name), outputs="logits")
    assert accuracy(box, data.digits("test")) == pytest.approx(zoo.card(name)["accuracy"], abs=1 / 359)


@needs_mnist
@pytest.mark.parametrize("name", ["mnist-linear", "mnist-cnn", "mnist-judge", "mnist-robust"])
def test_mnist_accuracy_is_near_the_cards(name):
    box = Box(*zoo.load(name), outputs="logits")
    assert accuracy(box, some(data.mnist("test", MNIST), 1000)) == pytest.approx(zoo.card(name)["accuracy"], abs=0.03)


def test_only_the_judge_withstands_an_attack():
    """The card says so; 40 digits show it."""
    eps, held_out = zoo.card("digits-judge")["robust"]["eps"], some(data.digits("test"), 40)
    judge, cnn = (Box(*zoo.load(name), outputs="logits") for name in ("digits-judge", "digits-cnn"))
    assert robust_accuracy(judge, held_out, eps, quiet=True) > 0.7
    assert robust_accuracy(cnn, held_out, eps, quiet=True) < 0.3
