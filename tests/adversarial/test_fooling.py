"""Fooling images: sure of nothing, by three ways; and the archive against a literal one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import awkward
import unboxed as ub
from unboxed.adversarial import evolution, fooling
from unboxed.errors import InputError, OutputError
from unboxed.rng import step_generator

WAYS = ("gradient", "evolution", "cppn")


def boxed(model: str = "plain", **more: Any) -> ub.Box:
    entry = awkward.get_model(model, torch.float64)
    return ub.Box(entry.model, entry.inputs, **{**entry.box_settings, **more})


@pytest.mark.parametrize("how", WAYS)
def test_confidence_is_that_of_the_model(how: str) -> None:
    box = boxed()
    made = fooling(box, [2, 0, 2], algorithm=how, steps=2, n_children=9)
    assert made.targets.tolist() == [2, 0, 2]
    want = box.probs(made.images).gather(1, made.targets[:, None])[:, 0]
    assert torch.allclose(made.confidence, want, atol=1e-12)
    assert torch.allclose(made.confidence_history[-1], want, atol=1e-12)
    assert made.confidence_history.shape == (3, 3)
    assert made.images.min() >= 0
    assert made.images.max() <= 1
    assert made.images.shape == (3, 1, 8, 8)


@pytest.mark.parametrize("how", ["evolution", "cppn"])
def test_evolution_properties(how: str) -> None:
    """Same seed, same answer; another, another; splitting changes nothing; the elites never grow worse."""
    box = boxed()
    made = fooling(box, algorithm=how, steps=5, n_children=7)
    for size in (1, 3):
        part = fooling(box, algorithm=how, steps=5, n_children=7, batch_size=size)
        assert torch.allclose(part.images, made.images, atol=1e-9)
        assert torch.allclose(part.confidence_history, made.confidence_history, atol=1e-9)
    assert torch.equal(fooling(box, algorithm=how, steps=5, n_children=7).images, made.images)
    assert not torch.equal(fooling(box, algorithm=how, steps=5, n_children=7, seed=1).images, made.images)
    assert (made.confidence_history.diff(dim=0) >= 0).all()
    assert (made.confidence_history[-1] > made.confidence_history[0]).any()
    assert made.n_evaluated == 7 * 6


@pytest.mark.parametrize("model", ["color", "double", "batchnorm_in_train_mode", "dropout_always_on", "softmax"])
def test_evolution_on_other_models(model: str) -> None:
    entry = awkward.get_model(model)
    made = fooling(
        ub.Box(entry.model, entry.inputs, **entry.box_settings), algorithm="evolution", steps=2, n_children=5
    )
    assert made.images.std() > 0
    assert torch.isfinite(made.confidence).all()


def test_evolution_needs_no_gradient() -> None:
    made = fooling(boxed("checkpointed_reentrant"), algorithm="evolution", steps=2, n_children=5)
    assert made.confidence.shape == (4,)


def archive_literally(box: ub.Box, children: int, generations: int) -> tuple[Tensor, Tensor]:
    """Child by child and class by class, with the draws of the fast one."""
    encoding, shape = evolution.ENCODING_BY_ALGORITHM["evolution"], box.inputs.shape
    born = encoding.initial_genomes(children, shape, step_generator(0, 0, box.device))
    best = [(-float("inf"), born[k]) for k in range(4)]
    for generation in range(generations + 1):
        challenged = list(best)
        for child in born:
            said = box(child.view(1, *shape)).log_softmax(1)[0]
            for k in range(4):
                if said[k] > challenged[k][0]:
                    challenged[k] = (float(said[k]), child)
        best = challenged
        generator = step_generator(0, generation + 1, box.device)
        parents = torch.randint(4, (children,), generator=generator)
        born = encoding.mutate(torch.stack([best[int(p)][1] for p in parents]), generation, generator)
    return torch.stack([genome for _, genome in best]), torch.tensor([score for score, _ in best])


def test_archive_against_a_reference() -> None:
    box = boxed()
    made = fooling(box, algorithm="evolution", steps=6, n_children=10)
    genomes, scores = archive_literally(box, 10, 6)
    assert torch.allclose(made.images.flatten(1), genomes)
    assert torch.allclose(made.confidence, scores.double().exp(), atol=1e-6)


def test_an_image_becomes_elite_of_every_class_it_improves() -> None:
    """One child, better for two classes than their elites are: it takes both places."""
    archive = evolution._EliteArchive(torch.zeros(3, 2), torch.tensor([-1.0, -2.0, -3.0]))
    archive.update_elites(
        torch.tensor([[1.0, 1.0], [2.0, 2.0]]), torch.tensor([[-5.0, -1.5, -2.5], [-6.0, -1.9, -9.0]])
    )
    assert archive.genomes.tolist() == [[0, 0], [1, 1], [1, 1]]
    assert archive.fitness.tolist() == [-1.0, -1.5, -2.5]


def test_polynomial_mutation_has_its_density() -> None:
    """0.5 (eta + 1) (1 - |d|) ** eta: u is the cumulative of what it is made into."""
    u, eta = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1], 15.0
    d = evolution.polynomial_mutation_step(u, eta)
    below = torch.where(d < 0, 0.5 * (1 + d) ** (eta + 1), 1 - 0.5 * (1 - d) ** (eta + 1))
    assert torch.allclose(below, u, atol=1e-12)
    assert d.min() >= -1
    assert d.max() < 1


def test_a_tenth_of_the_pixels_mutate() -> None:
    direct, genomes = evolution.DirectEncoding(), torch.full((50, 400), 0.5, dtype=torch.float64)
    for generation, share in ((0, 0.1), (999, 0.1), (1000, 0.05), (2500, 0.025)):
        moved = direct.mutate(genomes, generation, torch.Generator().manual_seed(0)) != genomes
        assert moved.double().mean() == pytest.approx(share, rel=0.1)


@pytest.mark.parametrize("how", WAYS)
def test_finished_classes_are_dropped(how: str) -> None:
    """With little confidence wanted nothing moves after the first forward."""
    made = fooling(boxed(), algorithm=how, confidence=1e-6, steps=5, n_children=4)
    assert len(made.confidence_history) == 1
    assert made.n_evaluated == 4


@pytest.mark.parametrize("how", WAYS)
def test_fooling_images_on_digits(how: str) -> None:
    """A model with 98 % of the test digits right is surer than 99 % of images that are none."""
    box = ub.Box(*ub.zoo.load("digits-cnn"))
    steps = {"gradient": 60, "evolution": 150, "cppn": 30}[how]
    made = fooling(box, algorithm=how, confidence=0.99, steps=steps, n_children=40)
    assert (made.confidence >= 0.99).sum() >= 8
    assert (made.confidence_history[0] > 0.99).sum() <= 5  # that is not how it began


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("at", [1, 3])
def test_interrupted(how: str, at: int) -> None:
    box, calls = boxed(), 0

    def pre(module: nn.Module, args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt

    whole = fooling(box, algorithm=how, steps=5, n_children=6)
    handle = box.model.register_forward_pre_hook(pre)
    got = fooling(box, algorithm=how, steps=5, n_children=6)
    handle.remove()
    assert got.interrupted
    assert got.images.shape == whole.images.shape
    assert torch.isfinite(got.confidence).all()
    if at == 3:
        assert torch.allclose(got.confidence_history, whole.confidence_history[:2])


def test_several_classes_at_once() -> None:
    """Where the outputs are probabilities of their own, each is raised on its own."""
    box = boxed("plain", outputs="multilabel")
    for how in WAYS:
        made = fooling(box, algorithm=how, steps=4, n_children=6)
        want = box(made.images).sigmoid().diagonal()
        assert torch.allclose(made.confidence, want)
        assert torch.allclose(made.confidence_history[-1], want)


@pytest.mark.parametrize(
    "bad",
    [
        {"algorithm": "magic"},
        {"algorithm": None},
        {"confidence": 1.0},
        {"confidence": 0},
        {"n_children": 0},
        {"target": []},
        {"target": 4},
    ],
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        fooling(boxed(), **{"steps": 1, **bad})


def test_regression_has_no_classes() -> None:
    with pytest.raises(OutputError):
        fooling(boxed(outputs="regression"))
