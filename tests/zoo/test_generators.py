"""The zoo's generators: their images, their cards, and what a unit of zero means."""

from __future__ import annotations

import pytest
import torch

import unboxed as ub
from unboxed.errors import ModelError
from unboxed.zoo.generators import BatchScale, DigitGenerator

NAMES = ("digits-gan", "mnist-gan")
JUDGES = {"digits-gan": "digits-judge", "mnist-gan": "mnist-judge"}


def codes(n: int = 200) -> torch.Tensor:
    return torch.randn(n, 64, generator=torch.Generator().manual_seed(5))


def test_names() -> None:
    assert ub.zoo.generator_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_independent_judge_recognizes_the_digits(name: str) -> None:
    """Of 2,000 samples the card says how many; here a few."""
    model, inputs = ub.zoo.load_generator(name)
    z = codes()
    with torch.no_grad():
        images = model(z)
    assert images.shape == (200, 1, 28, 28)
    assert 0 <= float(images.min()) < float(images.max()) <= 1
    probs = ub.Box(*ub.zoo.load(JUDGES[name])).probs(images)
    assert float((probs.amax(1) > 0.9).double().mean()) > 0.65
    assert float((probs.argmax(1) == z[:, :10].argmax(1)).double().mean()) > 0.85
    assert len(inputs.names) == 64
    assert not model.training


@pytest.mark.parametrize("name", NAMES)
def test_cards(name: str) -> None:
    card = ub.zoo.card(name)
    assert card["judged"]["more than .9 for a digit"] >= 0.7
    assert card["cpu_seconds"] <= {"digits-gan": 2 * 180, "mnist-gan": 2 * 900}[name]  # of one core, of two
    assert (card["widths"], card["kind"]) == ([64, 48, 24], "generator")


def test_a_box_of_a_name() -> None:
    box = ub.load("zoo:digits-gan")
    assert (box.outputs, box.output_map_shape, box.n_outputs) == ("regression", (28, 28), 1)
    with pytest.raises(ModelError, match="did you mean zoo:digits-gan"):
        ub.load("digits-gan")
    with pytest.raises(ModelError, match="no generator 'digits-cnn'"):
        ub.zoo.load_generator("digits-cnn")
    with pytest.raises(ModelError, match="weights"):
        ub.zoo.load_generator("digits-gan", weights="some")  # type: ignore[arg-type]


def test_new_weights_follow_the_seed() -> None:
    a, b, c = (ub.zoo.load_generator("digits-gan", weights=None, seed=s)[0] for s in (1, 1, 2))
    z = codes(2)
    assert torch.equal(a(z), b(z))
    assert not torch.equal(a(z), c(z))


def test_where_all_units_are_zero_nothing_is_drawn() -> None:
    box = ub.load("zoo:digits-gan")
    z = box.validate_inputs(codes(20))
    for layer in ("relu1", "relu2", "relu3"):
        with box.isolated(grad=False):
            images = box.forward(z, ["output"], {layer: torch.zeros_like})["output"]
        assert float(images.max()) < 0.1, layer


def test_the_chosen_digit_has_a_gradient() -> None:
    z = codes(3).requires_grad_()
    DigitGenerator()(z).sum().backward()
    assert z.grad is not None
    assert bool((z.grad[:, :10] != 0).any())
    hard = DigitGenerator.code(z)[:, :10]
    assert torch.equal(hard.detach().round(), torch.nn.functional.one_hot(z[:, :10].argmax(1), 10).float())


def test_batch_scale_is_batch_normalization_without_centering() -> None:
    scale, h = BatchScale(3), torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) + 2
    wanted = h / h.square().mean((0, 2, 3)).add(1e-5).sqrt()[:, None, None]
    assert torch.allclose(scale(h), wanted, atol=1e-6)
    assert torch.allclose(scale.mean_square, 0.9 + 0.1 * h.square().mean((0, 2, 3)), atol=1e-6)
    scale.eval()
    assert torch.allclose(scale(torch.zeros(1, 3, 2, 2)), torch.zeros(1, 3, 2, 2))
    assert torch.allclose(scale(h), h / (scale.mean_square + 1e-5).sqrt()[:, None, None], atol=1e-6)
