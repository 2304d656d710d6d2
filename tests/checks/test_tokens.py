"""Outlier tokens: planted ones are found with their neuron and taken away; where there are none, nothing is claimed."""

from __future__ import annotations

from dataclasses import fields
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

import unboxed as ub
from checks.outlier_vit import PLANTED, SIDE, OutlierViT, images_with_white_patches, outlier_box
from unboxed.checks import outlier_tokens
from unboxed.checks.tokens import ATTENTION_OF_LAST_BLOCK
from unboxed.errors import DataError, InputError, LayerError
from unboxed.model.edited_model import EditedModel


@pytest.fixture(scope="module")
def found() -> ub.checks.TokenCheck:
    return ub.checks.tokens(outlier_box(), images_with_white_patches()[0])


def test_planted_outliers_are_found_with_their_neuron(found: ub.checks.TokenCheck) -> None:
    assert bool((found.outliers == images_with_white_patches()[1]).all())
    assert (found.verdict, found.first_block) == ("moved", "blocks.1")
    assert [(n.layer, n.unit) for n in found.neurons] == [PLANTED]
    assert found.neurons[0].at_outliers > 100 * found.neurons[0].elsewhere
    assert (found.moved, found.moved_at_random) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("moved", "wanted", "tried"),
    [({1: 0.3, 2: 0.95, 4: 1.0, 5: 1.0}, 2, [1, 2]), ({1: 0.2, 2: 0.5, 4: 0.5, 5: 0.4}, 2, [1, 2, 4, 5])],
    ids=["the fewest that are enough", "none is enough"],
)
def test_the_fewest_neurons_are_taken_that_move_most(
    monkeypatch: pytest.MonkeyPatch, moved: dict[int, float], wanted: int, tried: list[int]
) -> None:
    module, asked = import_module("unboxed.checks.tokens"), list[int]()
    monkeypatch.setattr(module, "box_with_register", lambda box, blocks, neurons: len(neurons))
    monkeypatch.setattr(module._ConceptSearch, "_moved", lambda search, n, rows: asked.append(n) or moved[n])
    search: Any = module._ConceptSearch(*[None] * len(fields(module._ConceptSearch)))
    assert search._fewest_that_move(range(5), None) == wanted
    assert asked == tried


def test_the_register_takes_them_and_keeps_the_answers(found: ub.checks.TokenCheck) -> None:
    box, x = outlier_box(), images_with_white_patches()[0]
    assert found.kept == 1.0
    assert found.norms_with_register is not None
    after = found.norms_with_register[:, 1]
    assert float(after.max()) < 3 * float(after.median())
    assert found.box_with_register is not None
    assert found.box_with_register(x).shape == box(x).shape
    assert ub.attribution.rollout(found.box_with_register, x).map.shape == (len(x), 1, 16, 16)


def test_the_maps_that_they_spoil_are_named(found: ub.checks.TokenCheck) -> None:
    attention = found.maps[ATTENTION_OF_LAST_BLOCK]
    assert attention.is_spoiled
    assert attention.before > 50
    assert 0.3 < attention.after < 3
    assert found.maps["rollout"].after < found.maps["rollout"].before
    assert ATTENTION_OF_LAST_BLOCK in str(found)


class WithoutClassToken(OutlierViT):
    def tokens(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).mT + self.positions[:, 1:]

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h).mean(1))


def attention_by_hand(block: Any, h: Tensor) -> Tensor:
    """(n, T, T) of a block, the mean over heads."""
    n, t, d = h.shape
    q, k, _ = (z.view(n, t, 2, -1).transpose(1, 2) for z in block.attend.qkv(block.norm1(h)).chunk(3, -1))
    return (q @ k.mT / (d // 2) ** 0.5).softmax(-1).mean(1)


def test_attention_without_a_class_token_is_the_mean_of_the_patches() -> None:
    """As it is, and with the register, which is no patch."""
    model: Any = WithoutClassToken(3.0).eval()
    x, white = images_with_white_patches()
    found = ub.checks.tokens(ub.Box(model, ub.Pixels((1, SIDE, SIDE)), outputs="logits"), x)
    assert bool((found.outliers == white).all())
    assert [(n.layer, n.unit) for n in found.neurons] == [PLANTED]
    x, white = x[:8], white[:8]
    with torch.no_grad():
        plain = model.tokens(x)
        with_register = torch.cat([torch.zeros_like(plain[:, :1]), plain], 1)
        for i, block in enumerate(model.blocks[:2]):
            plain = block(plain)
            h = with_register + block.attend(block.norm1(with_register))
            a = block.act(block.fc1(block.norm2(h)))
            if i == 1:
                largest = a[:, 1:, PLANTED[1]].amax(1)
                a[:, :, PLANTED[1]] = 0
                a[:, 0, PLANTED[1]] = largest
            with_register = h + block.fc2(a)
        before = attention_by_hand(model.blocks[2], plain).mean(1)
        after = attention_by_hand(model.blocks[2], with_register)[:, 1:, 1:].mean(1)
    attention = found.maps[ATTENTION_OF_LAST_BLOCK]
    assert attention.before == pytest.approx(float(before[white].mean() / before[~white].mean()), rel=1e-4)
    assert attention.after == pytest.approx(float(after[white].mean() / after[~white].mean()), rel=1e-4)


class WithRegister(WithoutClassToken):
    """A register, which the answer is not read from, and no class token."""

    def tokens(self, x: Tensor) -> Tensor:
        h = super().tokens(x)
        return torch.cat([torch.ones_like(h[:, :1]) / 4, h], 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x)
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h)[:, 1:].mean(1))


def test_attention_is_that_of_the_tokens_that_are_read() -> None:
    model: Any = WithRegister(3.0).eval()
    x, white = images_with_white_patches()
    found = ub.checks.tokens(ub.Box(model, ub.Pixels((1, SIDE, SIDE)), outputs="logits"), x, extra_tokens=1)
    x, white = x[:8], white[:8]
    with torch.no_grad():
        h = model.tokens(x)
        for block in model.blocks[:2]:
            h = block(h)
        rows = attention_by_hand(model.blocks[2], h)[..., 1:]
    of_patches, of_register = (float(r[white].mean() / r[~white].mean()) for r in (rows[:, 1:].mean(1), rows[:, 0]))
    assert abs(of_patches / of_register - 1) > 0.01  # so that the test can distinguish them
    assert found.maps[ATTENTION_OF_LAST_BLOCK].before == pytest.approx(of_patches, rel=1e-4)


def test_outliers_of_one_image_alone_are_not_tested_on_it() -> None:
    x = images_with_white_patches()[0]
    x[1:].clamp_(max=0.4)
    found = ub.checks.tokens(outlier_box(), x)
    assert found.outliers.any(1).tolist() == [True] + [False] * (len(x) - 1)
    assert found.neurons[0].unit == PLANTED[1]
    assert (found.verdict, found.moved != found.moved) == ("not tested", True)
    assert "in one image alone" in found.reason
    assert "other images" not in found.reason
    assert set(ub.plots.figures(found, data=x)) == {"lengths", "places", "maps"}


def test_the_longest_patch_is_measured_as_outliers_are() -> None:
    """By the median of all images: an image of short patches and a long one has no outlier by it."""
    norms = torch.ones(4, 1, 16)
    norms[3] = 0.5
    norms[3, 0, 0] = 2.0  # four times its own image's median, twice that of all
    found = ub.checks.TokenCheck(("b",), norms, torch.zeros(4, 16, dtype=torch.bool), (4, 4), 3.0)
    assert found.reason == "No patch is 3 times as long as the median one; the longest is 2.0 times."


def test_nothing_is_claimed_of_a_model_without_outliers() -> None:
    x = images_with_white_patches()[0]
    found = ub.checks.tokens(outlier_box(0.0), x)
    assert found.verdict == "no outliers"
    assert not found.outliers.any()
    assert (found.neurons, found.maps, found.box_with_register) == ((), {}, None)
    assert "No patch is 3 times as long" in found.reason


def test_outliers_that_the_input_makes_have_no_neurons_to_move() -> None:
    """Patches that are long from the start: the feed-forward networks did not make them."""
    box = outlier_box(0.0)
    with torch.no_grad():
        box.model.patches.weight[2].fill_(4.0)  # type: ignore[index,union-attr]
    found = ub.checks.tokens(box, images_with_white_patches()[0])
    assert bool(found.outliers.any())
    assert found.verdict == "not moved"


def test_the_register_by_hand() -> None:
    """The edits written out: a token of zeros, the neuron's largest value there, zero at all others."""
    box, x = outlier_box(), images_with_white_patches()[0][:3]
    blocks = outlier_tokens.TokenBlocks.of(box, box.validate_inputs(x), None)
    neuron = outlier_tokens.RegisterNeuron(*PLANTED, 0.0, 0.0)
    made = outlier_tokens.box_with_register(box, blocks, [neuron])
    model: Any = box.model
    with torch.no_grad():
        h = model.patches(x).flatten(2).mT
        h = torch.cat([model.first.expand(len(x), -1, -1), h], 1) + model.positions
        h = torch.cat([h[:, :1], torch.zeros_like(h[:, :1]), h[:, 1:]], 1)
        for i, block in enumerate(model.blocks):
            h = h + block.attend(block.norm1(h))
            a = block.act(block.fc1(block.norm2(h)))
            if i == 1:
                largest = a[:, 2:, PLANTED[1]].amax(1)
                a[:, :, PLANTED[1]] = 0
                a[:, 1, PLANTED[1]] = largest
            h = h + block.fc2(a)
        want = model.head(model.norm(h)[:, 0])
    assert torch.allclose(made(x), want, atol=1e-5)


def test_the_model_is_left_as_it_was(found: ub.checks.TokenCheck) -> None:
    box, x = outlier_box(), images_with_white_patches()[0]
    before = box(x)
    ub.checks.tokens(box, x)
    assert torch.equal(box(x), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in box.model.modules())


def test_an_edited_model_is_edited_in_each_forward_pass() -> None:
    model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.ReLU())
    edited = EditedModel(model, {"0": lambda h: h + 1, "1:input": lambda h: 2 * h})
    x = torch.ones(2, 3)
    assert torch.equal(edited(x), 4 * x)
    assert torch.equal(edited(x), 4 * x)
    assert torch.equal(model(x), x)


@pytest.mark.parametrize("name", ["ViT", "Dinov2", "Dinov2WithRegisters", "DeiT"])
def test_transformers_with_random_weights_have_none(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=32, patch_size=8,
        num_channels=3, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    x = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = ub.checks.tokens(ub.Box(model, ub.Pixels((3, 32, 32))), x)
    assert found.verdict == "no outliers"
    assert found.norms.shape == (4, 3, 16)


def test_a_planted_neuron_of_a_transformers_model_is_found() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, image_size=16, patch_size=4,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    x, white = images_with_white_patches()
    box = ub.Box(model, ub.Pixels((1, 16, 16)))
    blocks = outlier_tokens.TokenBlocks.of(box, box.validate_inputs(x), None)
    down = box.modules[blocks.neurons[1].rpartition(":")[0]]
    up = next(m for m in box.modules[blocks.addresses[1]].modules() if getattr(m, "out_features", 0) == 64)
    with torch.no_grad():
        model.vit.embeddings.patch_embeddings.projection.weight[0].fill_(0.5)
        model.vit.embeddings.patch_embeddings.projection.bias[0] = -4.0
        up.weight[5].zero_()
        up.weight[5, 0], up.bias[5] = 8.0, -20.0  # type: ignore[index,operator]
        down.weight[:, 5] = 0.0  # type: ignore[index,operator]
        down.weight[1, 5] = 10.0  # type: ignore[index,operator]
    found = ub.checks.tokens(box, x)
    assert bool((found.outliers == white).all())
    assert [(n.layer, n.unit) for n in found.neurons][:1] == [(blocks.neurons[1], 5)]
    assert found.verdict == "moved"


def test_pictures(found: ub.checks.TokenCheck) -> None:
    x = images_with_white_patches()[0]
    assert set(ub.plots.figures(found, data=x)) == {"lengths", "places", "maps"}
    assert set(ub.plots.figures(ub.checks.tokens(outlier_box(0.0), x))) == {"lengths"}


def test_bad_input_is_refused() -> None:
    x = images_with_white_patches()[0]
    with pytest.raises(DataError, match="needs two images or more"):
        ub.checks.tokens(outlier_box(), x[:1])
    with pytest.raises(InputError, match="min_ratio must be a number above 1"):
        ub.checks.tokens(outlier_box(), x, min_ratio=1.0)
    table = ub.Box(torch.nn.Linear(2, 2), ub.Features(("a", "b")))
    with pytest.raises(InputError, match="needs a model that takes images alone"):
        ub.checks.tokens(table, torch.rand(3, 2))
    with pytest.raises(LayerError, match="no layer of this model attends"):
        ub.checks.tokens(ub.Box(*ub.zoo.load("digits-cnn")), torch.rand(2, 1, 28, 28))
