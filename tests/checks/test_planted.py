"""The planted models of the benchmarks: their reasons are what is said, and the truth of a map is measured by them."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # last: tests have a module `models` of their own

from planted import catalog, kinds, nonsense, statistics, train, truth
from planted.scenes import Scenes

IMAGES = sorted({(e.kind, e.size) for e in catalog.ENTRIES if e.size != "table"})


def masks() -> tuple[torch.Tensor, torch.Tensor]:
    """A causal square of 4 pixels, and distractors of 12."""
    causal, distractor = torch.zeros(2, 1, 8, 8, dtype=torch.bool), torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    causal[:, :, :2, :2], distractor[:, :, 5:8, 2:6] = True, True
    return causal, distractor


def test_energy_is_the_share_of_the_density_at_the_cause():
    causal, distractor = masks()
    assert truth.energy(causal.double(), causal, distractor).tolist() == [1, 1]
    assert truth.energy(distractor.double(), causal, distractor).tolist() == [0, 0]
    assert truth.energy(torch.ones(2, 3, 8, 8), causal, distractor).tolist() == [0.5, 0.5]  # whatever the areas are
    assert truth.energy(torch.zeros(2, 1, 8, 8), causal, distractor).isnan().all()


def test_energy_is_of_the_positive_part_or_of_the_magnitude():
    causal, distractor = masks()
    maps = causal.double() - distractor.double()
    assert truth.energy(maps, causal, distractor).tolist() == [1, 1]
    assert truth.energy(maps, causal, distractor, signed=False).tolist() == [0.5, 0.5]


def test_energy_leaves_out_what_is_near_to_both():
    causal, distractor = masks()
    shares = truth.energy(torch.ones(2, 1, 8, 8), causal, distractor, tolerance=2)
    assert shares.tolist() == [0.5, 0.5]
    near_both = torch.zeros(2, 1, 8, 8)
    near_both[:, :, 3, 3] = 1
    assert truth.energy(near_both, causal, distractor, tolerance=2).isnan().all()


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.71, "right"), (0.69, "undetermined"), (0.61, "undetermined"), (0.59, "wrong"), (float("nan"), "wrong")],
)
def test_truth_on_both_sides_of_its_bounds(share, expected):
    assert truth.truth_of(torch.full((3,), share)) == expected


def test_stored_models_passed_the_causal_check():
    assert catalog.names() == [entry.name for entry in catalog.ENTRIES]
    for name in catalog.names():
        model = catalog.load(name, 2)
        assert train.is_planted(model.checks), name
        assert model.causal.any()
        assert not (model.causal & model.distractor).any()


def test_a_causal_check_of_stored_weights():
    entry = catalog.BY_NAME["mark-mnist-cnn"]
    assert train.is_planted(train.causal_check(entry, catalog.load(entry.name).box.model, 64))
    assert not train.is_planted(train.causal_check(entry, catalog.build(entry), 64))  # an untrained one is not


def test_both_halves_have_every_kind_size_and_four_architectures():
    for half in ("tuning", "held out"):
        entries = [e for e in catalog.ENTRIES if catalog.split_of(e.name) == half]
        assert {e.kind.removesuffix("s") for e in entries} >= {"mark", "texture", "shape", "object", "grid", "select"}
        assert {e.size for e in entries} == {"mnist", "cifar", "photo", "table"}
        assert len({e.architecture for e in entries}) >= 4


@pytest.mark.parametrize(("kind", "size"), IMAGES)
def test_other_distractors_leave_the_causal_object_alone(kind, size):
    scenes = kinds.make(kind, size, 6, 0, "left")
    assert isinstance(scenes, Scenes)
    causal, distractor = scenes.masks()
    others = scenes.with_distractors_of(scenes[torch.arange(6).roll(1)])
    changed = (scenes.render() != others.render()).any(1, keepdim=True)
    assert changed.any()
    assert not (changed & ~distractor).any()
    assert not (changed & causal).any()
    without = (scenes.render() != scenes.render(torch.zeros(6), torch.ones(6, scenes.n_distractors))).any(
        1, keepdim=True
    )
    assert without.flatten(1).any(1).all()
    assert not (without & ~causal).any()


@pytest.mark.parametrize("name", ["product-table-mlp", "mark-mnist-cnn"])
def test_nonsense_gives_maps_that_do_not_show_the_cause(name):
    model = catalog.load(name, 16)
    for method in nonsense.for_box(model.box).values():
        maps = method(model.box, model.x, model.y)
        assert maps.shape[0] == 16
        assert maps.isfinite().all()
        share = truth.mean_share(truth.energy(maps, model.causal, model.distractor))
        assert share < truth.RIGHT, method.__name__


def test_figures_of_a_benchmark():
    rows = [
        {"model": m, "split": "tuning", "nonsense": False, "truth": t, "grade": g, "figures": {"signed": s}}
        for m, t, g, s in [("a", "right", "pass", 0.1), ("a", "right", "fail", 0.3), ("b", "right", "doubtful", 0.2),
                           ("a", "wrong", "fail", 0.9), ("b", "wrong", "pass", 0.2), ("b", "undetermined", "pass", 0.0)]
    ]  # fmt: skip
    found = statistics.summary(rows)["tuning"]
    assert found["methods"] == {"right": 3, "wrong": 2, "undetermined": 1}
    assert (found["sensitivity"]["share"], found["specificity"]["share"], found["decided"]["share"]) == (0.5, 0.5, 0.8)
    assert found["sensitivity"]["wilson"][0] < 0.5 < found["sensitivity"]["wilson"][1]
    assert statistics.auc_by_figure(rows)["signed"]["tuning"] == pytest.approx(1.5 / 6, abs=1e-3)
