"""What influence scores are measured in: nats of a cross-entropy; of a regression, which has no classes, its loss; and
nothing where another matrix than the curvature is inverted. Which solver is the default."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import unboxed as ub
from unboxed import influence
from unboxed.cli.influence import run_influence
from unboxed.errors import UnboxedWarning
from unboxed.report.influence_checks import default_solver

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
NUMBERS = 100 * X.sum(1) + 7 * X[:, 0] ** 2

METHODS: dict[str, Callable[..., Any]] = {
    "influence_functions": lambda box, y, train: influence.influence_functions(box, X[:2], y, train),
    "gradient_dot": lambda box, y, train: influence.gradient_dot(box, X[:2], y, train, lr=0.1),
    "tracin": lambda box, y, train: influence.tracin(
        box, X[:2], y, train, checkpoints=[box.model.state_dict()], lr=0.1, steps_per_checkpoint=1
    ),
    "group": lambda box, y, train: influence.group(box, X[:2], y, train, [[0, 1], [2]]),
}


def box_of(outputs: Any, n_outputs: int) -> ub.Box:
    torch.manual_seed(0)
    return ub.Box(nn.Linear(3, n_outputs), ub.Features(["a", "b", "c"]), outputs=outputs)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore::unboxed.errors.UnboxedWarning")
def test_units_and_classes(name: str) -> None:
    numbers = METHODS[name](box_of("regression", 1), NUMBERS[:2], (X, NUMBERS))
    assert numbers.unit.startswith("half squared error per ")
    assert numbers.classes == ()
    y = torch.arange(12) % 3
    classes = METHODS[name](box_of("logits", 3), y[:2], (X, y))
    assert classes.unit.startswith("nats per ")
    assert classes.classes == ("0", "1", "2")


def test_large_changes_are_those_beyond_the_loss_of_predicting_the_mean(recwarn: pytest.WarningsRecorder) -> None:
    """A fitted model of large numbers has changes of many units of its loss, all plausible."""
    box = box_of("regression", 1)
    design = torch.cat([X, torch.ones(12, 1)], 1)
    solution = torch.linalg.lstsq(design, NUMBERS[:, None]).solution[:, 0]
    with torch.no_grad():
        box.model.weight.copy_(solution[None, :3])
        box.model.bias.copy_(solution[3:])
    plausible = influence.influence_functions(box, X, NUMBERS, (X, NUMBERS), damping=0.0)
    assert plausible.unit == "half squared error per example left out"
    absolute = influence.influence_functions(
        box, X, NUMBERS, (X, NUMBERS), damping=1.0, loss=lambda z, y: (z[:, 0] - y).abs() ** 1.5
    )
    assert absolute.unit == "loss per example left out"
    scores = plausible.scores
    assert scores.abs().max() > 1
    assert scores.abs().max() < NUMBERS.var(unbiased=False) / 2
    assert not [w for w in recwarn if issubclass(w.category, UnboxedWarning)]
    with pytest.warns(
        UnboxedWarning, match=r"scores of up to \S+ of the loss for leaving out one example are no figures"
    ):
        found = influence.influence_functions(box_of("regression", 1), X, NUMBERS, (X, NUMBERS), damping=1e-6)
    assert found.unit == "rank only: sizes mean nothing"


def test_figures_have_numbers_for_labels() -> None:
    box = box_of("regression", 1)
    result = influence.gradient_dot(box, X[:2], NUMBERS[:2], (X, NUMBERS), lr=0.1)
    from unboxed.plots.results.influence import explained_class_captions, train_label_caption

    assert explained_class_captions(result, 2, box) == ["", ""]
    assert train_label_caption(torch.tensor([1.5, 2.25]), (), 1, box, "+3") == "label 2.25\n+3"
    assert train_label_caption(torch.tensor([0, 1]), ("cat", "dog"), 1, None) == "label dog"


@pytest.mark.parametrize("solver", ["ekfac", "kfac", "diagonal", "arnoldi"])
def test_what_approximates_the_curvature_gives_rankings(solver: str, recwarn: pytest.WarningsRecorder) -> None:
    """Of EK-FAC a predicted change is tens of times the real one, also where it is below 1; Arnoldi leaves some out."""
    box, y = box_of("logits", 3), torch.arange(12) % 3
    alone = influence.influence_functions(box, X[:2], None, (X, y), solver=solver, damping=1.0)
    assert float(alone.scores.abs().max()) < 1
    assert (
        alone.unit
        == influence.group(box, X[:2], None, (X, y), [[0, 1]], solver=solver).unit
        == "rank only: sizes mean nothing"
    )
    assert "nats" not in repr(alone)
    assert not [w for w in recwarn if issubclass(w.category, UnboxedWarning)]
    from unboxed.plots.results.influence import influence_title

    assert "nats" not in influence_title(alone)


def deep_box(width: int) -> ub.Box:
    """Of width 100 it has 10,803 parameters, 303 of them in its last layer."""
    torch.manual_seed(0)
    layers = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 3)
    return ub.Box(nn.Sequential(*layers), ub.Features(["a", "b", "c"]))


def test_the_default_solver_is_one_for_all() -> None:
    """Conjugate gradients up to 10,000 parameters of the layers that are asked for; the result names it."""
    box, y = deep_box(100), torch.arange(12) % 3

    def solver_of(**settings: Any) -> str:
        result = influence.influence_functions(box, X[:1], None, (X, y), damping=1.0, **settings)
        assert "solver" in repr(result)
        return str(result.settings["solver"])

    assert solver_of().startswith("Kronecker(approximation='ekfac'")
    assert solver_of(layers="2").startswith("ConjugateGradient(")
    assert solver_of(layers="2", curvature="hessian").startswith("ConjugateGradient(")
    assert influence.perturb(box, X[:1], None, (X, y), 0, damping=1.0).solver.startswith("Kronecker(")


@pytest.mark.parametrize(("width", "name"), [(4, "ConjugateGradient"), (100, "Kronecker")])
def test_every_way_in_has_the_same_default_solver(tmp_path: Path, width: int, name: str) -> None:
    box = deep_box(width)
    train = X, torch.arange(12) % 3
    found = run_influence(box, train, train, tmp_path, n_queries=1, with_verdict=False)
    assert str(found.settings["solver"]).startswith(name)
    assert type(default_solver(box)).__name__ == name
    facts = json.loads((tmp_path / "influence.json").read_text())
    assert facts["unit"] == influence.influence_functions(box, X[:1], None, train).unit
