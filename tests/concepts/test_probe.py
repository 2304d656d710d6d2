"""Probes say what is known, what is used, and when there is nothing."""

from __future__ import annotations

import importlib
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import unboxed as ub
from unboxed.cli import app
from unboxed.engine.linear.clusters import cluster_rows
from unboxed.engine.linear.erasure import FeatureCovariance
from unboxed.engine.linear.probing import probe_features
from unboxed.engine.linear.splits import control_task_labels, cross_validation_splits, split_from_flags
from unboxed.errors import DataError, InputError, LayerError

N, N_COLUMNS, N_HIDDEN = 300, 16, 32
QUICK: dict[str, Any] = {"description_length": False, "n_controls": 1, "n_folds": 3}


@pytest.fixture(scope="module")
def box() -> ub.Box:
    return ub.Box(*ub.zoo.load("digits-cnn"))


def planted(seed: int) -> tuple[ub.Box, Tensor, Tensor, Tensor]:
    """A hidden layer that carries two attributes a and b; the head reads a, orthogonally to b."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(2, (N,), generator=generator) for _ in range(2))
    x = torch.randn(N, N_COLUMNS, generator=generator)
    x[:, 0] += 4 * a - 2
    x[:, 1] += 6 * b - 3
    mix = torch.randn(N_HIDDEN, N_COLUMNS, generator=generator) / 4
    read = mix[:, 0] - (mix[:, 0] @ mix[:, 1]) / mix[:, 1].square().sum() * mix[:, 1]
    model = nn.Sequential(nn.Linear(N_COLUMNS, N_HIDDEN), nn.Identity(), nn.Linear(N_HIDDEN, 2))
    with torch.no_grad():
        model[0].weight.copy_(mix)
        model[0].bias.zero_()
        model[2].weight.copy_(torch.stack([-read, read]))
        model[2].bias.zero_()
    return ub.Box(model, ub.Features(tuple(f"x{i}" for i in range(N_COLUMNS)))), x, a, b


def test_a_planted_attribute_is_used_and_the_other_is_not() -> None:
    box, x, a, b = planted(1)
    used, unused = (ub.concepts.probe(box, x, attribute, "1", **QUICK) for attribute in (a, b))
    assert min(r.best.probe.accuracy.mean for r in (used, unused)) > 0.9  # both can be read
    assert (used.verdict, unused.verdict) == ("used", "not used")
    assert "p = " in used.reason


def test_an_attribute_of_which_nothing_is_known_is_not_decodable() -> None:
    box, x, _, _ = planted(0)
    noise = torch.randint(2, (N,), generator=torch.Generator().manual_seed(9))
    result = ub.concepts.probe(box, x, noise, "1", **QUICK)
    assert result.verdict == "not decodable"
    assert result.layers[0].erasure is None
    assert "most frequent class" in result.reason


def test_what_cannot_be_tested_is_said(box: ub.Box) -> None:
    x, y = ub.data.digits("test").first(120)
    result = ub.concepts.probe(box, x, y >= 5, ["input", "fc2:input"], **QUICK, n_random=5)
    assert [p.verdict for p in result.layers] == ["not tested", "not tested"]
    assert "5 random draws are too few" in result.reason


def test_a_model_whose_outputs_are_constant_does_not_use_what_can_be_read() -> None:
    """Nor is that claimed: the model's own outputs cannot be erased either."""
    box, x, a, _ = planted(0)
    with torch.no_grad():
        box.model[2].weight.zero_()  # type: ignore[operator,union-attr,index]
    assert ub.concepts.probe(box, x, a, "1", **QUICK).verdict == "not tested"


def test_the_labels_of_the_data_are_an_attribute_too(box: ub.Box) -> None:
    result = ub.concepts.probe(
        box, ub.data.digits("test"), None, "fc2:input", max_examples=100, **QUICK | {"n_folds": 2}
    )
    erasure = result.layers[0].erasure
    assert result.names == box.classes
    assert erasure is not None
    assert erasure.accuracy is not None
    assert erasure.erased_accuracy is not None
    assert erasure.erased_accuracy < 0.5 < erasure.accuracy
    assert result.verdict == "used"


def test_names_and_numbers_are_one_attribute(box: ub.Box) -> None:
    x, y = ub.data.digits("test").first(60)
    names = ["large" if k >= 5 else "little" for k in y.tolist()]
    a, b = (ub.concepts.probe(box, x, v, "fc2:input", n_random=0, **QUICK) for v in (names, (y < 5).numpy()))
    assert (a.names, b.names) == (("large", "little"), ("False", "True"))
    assert a.layers[0].probe.accuracy == b.layers[0].probe.accuracy


def test_positions_are_averaged_in_large_layers(box: ub.Box) -> None:
    x, y = ub.data.digits("test").first(80)
    layer = ub.concepts.probe(box, x, y >= 5, ["relu1", "pool1"], **QUICK | {"n_folds": 2}).layers
    assert [(p.are_means, p.probe.n_features) for p in layer] == [(True, 16), (False, 16 * 12 * 12)]
    assert layer[0].erasure is None or torch.isfinite(layer[0].erasure.change).all()


def test_erasing_means_erases_them_at_each_position() -> None:
    """The eraser of the means (N, C), applied at each position, has the means erased."""
    from unboxed.engine.read.attribute_erasure import LayerFeatureView
    from unboxed.engine.read.features import mean_over_other_axes

    h = torch.randn(50, 4, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.nn.functional.one_hot(torch.arange(50) % 2).double()
    for axis in (1, 3):
        means = mean_over_other_axes(h, axis)
        eraser = FeatureCovariance.fit(means).eraser(z)
        edited = LayerFeatureView("a", axis).edit(h, eraser)
        assert torch.allclose(mean_over_other_axes(edited, axis), eraser(means))
        assert not torch.allclose(edited, h)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "one value": ({"attribute": [1] * 20}, DataError, "nothing to read"),
    "one example of a value": ({"attribute": ["a", *"bc" * 9, "b"]}, DataError, "one example alone has the value 'a'"),
    "too many values": ({"attribute": list(range(20))}, DataError, "cut numbers into classes"),
    "numbers": ({"attribute": [0.5, 1.5] * 10}, InputError, "cut numbers into classes"),
    "missing": ({"attribute": ["a", ""] * 10}, DataError, "example 1 has no value"),
    "too few": ({"attribute": [0, 1] * 4}, InputError, "each of the 20 examples; got 8"),
    "too many": ({"attribute": [0, 1] * 40}, InputError, "each of the 20 examples; got 80"),
    "a word": ({"attribute": "stripes"}, InputError, "a value for each example"),
    "pairs": ({"attribute": [[0, 1]] * 20}, InputError, "one value per example"),
    "types": ({"attribute": [0, 1] * 10, "types": [0, 1]}, InputError, "types must be one per example"),
    "no labels": ({"attribute": None}, DataError, "no labels"),
    "a layer": ({"attribute": [0, 1] * 10, "layers": "conv9"}, LayerError, "conv9"),
    "folds": ({"attribute": [0, 1] * 10, "n_folds": 1}, InputError, "2 or more"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_input_is_refused(bad: str, box: ub.Box) -> None:
    settings, error, words = BAD[bad]
    x = ub.data.digits("test").first(20)[0]
    with pytest.raises(error, match=words):
        ub.concepts.probe(box, x, **settings)


def test_erasing_nothing_changes_nothing() -> None:
    h = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    erasers = FeatureCovariance.fit(h), torch.Generator().manual_seed(0)
    assert torch.equal(erasers[0].random_eraser(0, erasers[1])(h), h)
    assert torch.equal(erasers[0].eraser(torch.zeros(20, 1).double())(h), h)


# -- the core, on plain features ---------------------------------------------------------------------------------------


def test_control_labels_are_a_function_of_the_type_with_the_classes_counts() -> None:
    y = torch.tensor([0] * 30 + [1] * 60 + [2] * 10)
    types = torch.arange(100) % 20
    labels = control_task_labels(y, types, 0, 0)
    assert labels.bincount().tolist() == [30, 60, 10]
    assert sum(len(labels[types == t].unique()) > 1 for t in range(20)) <= 2  # those at which a run ends
    assert not torch.equal(labels, control_task_labels(y, types, 0, 1))
    assert control_task_labels(y, None, 0, 0).bincount().tolist() == [30, 60, 10]


def test_a_control_of_types_is_read_where_types_can_be() -> None:
    """Features that tell the types apart read any labels of them, and have no selectivity."""
    generator = torch.Generator().manual_seed(0)
    types = torch.arange(200) % 20
    h = torch.nn.functional.one_hot(types).double() + 0.1 * torch.randn(200, 20, generator=generator)
    y = (types < 10).long()
    found = probe_features(h, y, types=types, description_length=False)
    assert found.accuracy.mean > 0.9
    assert found.control.mean > 0.85
    assert abs(found.selectivity.mean) < 0.1
    alone = probe_features(h, y, description_length=False)  # each example a type of its own: at chance when held out
    assert alone.control.mean < 0.65


def test_random_features_have_no_selectivity() -> None:
    covers, decodable = 0, 0
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        h, y = torch.randn(150, 20, generator=generator), torch.randint(3, (150,), generator=generator)
        found = probe_features(h, y, description_length=False, n_controls=2, n_folds=3, seed=seed)
        covers += found.selectivity.low <= 0 <= found.selectivity.high
        decodable += found.is_decodable
    assert covers >= 6
    assert decodable <= 1


def test_more_features_than_examples_learn_any_labels_by_heart() -> None:
    generator = torch.Generator().manual_seed(0)
    h, y = torch.randn(60, 400, generator=generator), torch.arange(60) % 2
    h[:, 0] += 8 * y
    found = probe_features(h, y, description_length=False)
    assert found.memorized > 0.95
    assert found.control.mean < 0.7


def test_the_description_is_shorter_where_more_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (400,), generator=generator)
    ratios = []
    for spread in (0.0, 1.0, 3.0):
        h = torch.randn(400, 10, generator=generator) + spread * torch.nn.functional.one_hot(y, 10)
        description = probe_features(h, y, n_controls=1, n_folds=2).description
        assert description is not None
        ratios.append(description.ratio)
    assert ratios[0].mean < 1.02
    assert ratios[0].mean < ratios[1].mean < ratios[2].mean
    assert ratios[2].low > 1.5


def test_an_mlp_reads_what_no_line_separates() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(160, 2, generator=generator).sign() + 0.3 * torch.randn(160, 2, generator=generator)
    y = (h[:, 0] * h[:, 1] > 0).long()
    linear, mlp = (
        probe_features(h, y, kind=k, n_folds=2, n_controls=1, description_length=False) for k in ("linear", "mlp")
    )  # type: ignore[arg-type]
    assert linear.accuracy.mean < 0.65
    assert mlp.accuracy.mean > 0.9
    again = probe_features(h, y, kind="mlp", n_folds=2, n_controls=1, description_length=False)
    assert again.accuracy == mlp.accuracy
    assert again.information == mlp.information


def test_given_flags_are_kept() -> None:
    flags = ["tr"] * 60 + ["va"] * 20 + ["te"] * 20
    (split,) = split_from_flags(flags)
    assert (split.train.tolist(), split.validation.tolist()) == (list(range(60)), list(range(60, 80)))
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(100) % 2
    h = torch.randn(100, 3, generator=generator) + 3 * y[:, None]
    y[80:] = 1 - y[80:]  # the test examples alone
    found = probe_features(h, y, flags=flags)
    assert found.tested.tolist() == list(range(80, 100))
    assert found.accuracy.mean < 0.2
    for bad, error in ((flags[:50], InputError), (["tr"] * 100, DataError), (["x"] * 100, InputError)):
        with pytest.raises(error):
            probe_features(h, y, flags=bad)


def test_folds_are_stratified_and_test_each_example_once() -> None:
    y = torch.tensor([0] * 40 + [1] * 15)
    splits = cross_validation_splits(y, 5, 0)
    assert sorted(torch.cat([s.test for s in splits]).tolist()) == list(range(55))
    assert {int((y[s.test] == 1).sum()) for s in splits} == {3}
    for s in splits:
        assert not set(s.test.tolist()) & set(s.train.tolist())
        assert sorted([*s.fit.tolist(), *s.validation.tolist()]) == s.train.tolist()


def test_clusters_are_the_groups() -> None:
    generator = torch.Generator().manual_seed(0)
    group = torch.arange(90) % 3
    h = 10 * torch.nn.functional.one_hot(group, 5).double() + torch.randn(90, 5, generator=generator)
    cluster = cluster_rows(h, 3)
    assert [len(cluster[group == k].unique()) for k in range(3)] == [1, 1, 1]
    assert len(cluster.unique()) == 3
    assert cluster_rows(torch.zeros(7, 2).double(), 3).tolist() == [0] * 7  # equal rows are one cluster


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_reads_a_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y = ub.data.digits("test").first(60)[1]
    table, out = tmp_path / "attributes.csv", tmp_path / "out"
    rows = "\n".join(f"{i},{'large' if k >= 5 else 'little'}" for i, k in enumerate(y.tolist()))
    table.write_text(f"id,size\n{rows}\n")
    probe = importlib.import_module("unboxed.cli.probe")
    monkeypatch.setattr(probe, "probe", partial(probe.probe, **QUICK))
    base = ["probe", "--model", "zoo:digits-cnn", "--data", "digits", "--n", "60", "--layers", "fc2:input"]
    done = CliRunner().invoke(app, [*base, "--attribute", f"{table}:size", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert {p.name for p in out.iterdir()} == {"accuracy.png", "erased.png", "probe.json"}
    assert "fc2:input" in done.output
    for bad, words in (
        (f"{table}", "name one as"),
        (f"{table}:sise", "size"),
        (f"{tmp_path}/no.csv", "there is no file"),
    ):
        refused = CliRunner().invoke(app, [*base, "--attribute", bad])
        assert refused.exit_code == 2
        assert words in refused.output
