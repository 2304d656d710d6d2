"""Metrics of numbers, several labels and label maps under attack: closed forms, literal loops, scikit-learn."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score, mean_absolute_error, mean_squared_error
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import unboxed as ub
from unboxed.engine.read.output_values import check_output_values
from unboxed.errors import DataError, InputError, OutputError
from unboxed.plots.figures import figures
from unboxed.report.survey import position_confusion_matrix
from unboxed.robustness.output_metrics import metric_intervals, output_metrics, output_statistics
from unboxed.robustness.pooled_answers import bootstrap_interval_of_sums

PIXELS = ub.Pixels((1, 4, 4))
N = 12


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def opened(kind: str) -> tuple[ub.Box, Tensor, Tensor]:
    """A linear model with inputs and labels."""
    torch.manual_seed(0)
    if kind == "map":
        labels = (3 * draws(N, 4, 4, seed=2)).long()
        labels[:, 0] = 255
        return ub.Box(nn.Conv2d(1, 3, 3, padding=1).double(), PIXELS), draws(N, 1, 4, 4), labels
    n_outputs = {"regression": 1, "multilabel": 3}[kind]
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, n_outputs)).double()
    y = draws(N, n_outputs, seed=2)
    outputs: Any = kind
    return ub.Box(model, PIXELS, outputs=outputs), draws(N, 1, 4, 4), y if kind == "regression" else (y > 0.5).double()


every_kind = pytest.mark.parametrize("kind", ["regression", "multilabel", "map"])


def metrics_of(box: ub.Box, logits: Tensor, y: Tensor) -> dict[str, float]:
    sums = output_statistics(box, logits, y).sum(0, keepdim=True)
    return {name: float(metric(sums)[0]) for name, metric in output_metrics(box).items()}


def literal(kind: str, z: Tensor, y: Tensor) -> dict[str, float]:
    """By scikit-learn, and by loops over examples and positions."""
    if kind == "regression":
        return {"MAE": mean_absolute_error(y, z), "RMSE": mean_squared_error(y, z) ** 0.5}
    if kind == "multilabel":
        rows = [[bool(z[i, k] > 0) == bool(y[i, k]) for k in range(z.shape[1])] for i in range(len(z))]
        n_right = sum(map(sum, rows))
        return {"label accuracy": n_right / z.numel(), "exact match": sum(map(all, rows)) / len(rows)}
    pairs = [
        (int(y[i, r, c]), int(z[i, :, r, c].argmax()))
        for i in range(len(z))
        for r in range(4)
        for c in range(4)
        if y[i, r, c] != 255
    ]
    true, predicted = map(list, zip(*pairs, strict=True))
    return {
        "pixel accuracy": accuracy_score(true, predicted),
        "mean IoU": jaccard_score(true, predicted, average="macro"),
    }


@every_kind
def test_metrics_are_those_of_the_definitions(kind: str) -> None:
    box, x, y = opened(kind)
    result = ub.robustness.evaluate_outputs(box, (x, y), eps=[0.05])
    clean = {name: interval.mean for name, interval in result.clean.items()}
    assert clean == pytest.approx(literal(kind, box(x), y), abs=1e-12)
    for interval in result.clean.values():
        assert interval.low <= interval.mean <= interval.high
        assert interval.low < interval.high


def test_the_iou_is_over_the_classes_that_occur() -> None:
    box, _, _ = opened("map")
    y = torch.zeros(1, 4, 4, dtype=torch.long)
    y[0, :, 2:] = 1
    z = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    z[0, 0] = 1.0  # all are predicted as class 0: IoU 1/2 and 0; class 2 does not occur
    assert metrics_of(box, z, y) == {"pixel accuracy": 0.5, "mean IoU": 0.25}


def test_errors_of_a_linear_regression_are_the_closed_form() -> None:
    """|w x + b - y| grows by eps |w|_1 where the range of pixels is not reached."""
    box, x, _ = opened("regression")
    x = 0.4 + 0.2 * x
    y = box(x) + torch.where(draws(N, 1, seed=3) > 0.5, 2.0, -2.0)
    eps = (0.05, 0.1)
    result = ub.robustness.evaluate_outputs(box, (x, y), eps=eps)
    reach = float(box.model[1].weight.detach().abs().sum())  # type: ignore[index,operator]
    for e in eps:
        for name in ("MAE", "RMSE"):
            assert result.metric(name, e).mean == pytest.approx(2 + e * reach, abs=1e-9)
    assert result.metric("MAE").mean == result.metric("MAE", 0.1).mean
    assert repr(result).startswith(f"OutputRobustness(MAE 2, {2 + 0.05 * reach:.3g} within 0.05")


@every_kind
def test_attacks_together_are_the_worst_of_each_example(kind: str) -> None:
    box, x, y = opened(kind)
    attacks = {"fgsm": ub.adversarial.fgsm, "pgd": ub.adversarial.pgd}
    eps = (0.02, 0.1)
    result = ub.robustness.evaluate_outputs(box, TensorDataset(x, y), attacks, eps=eps)
    y = check_output_values(box, y, N)
    worst = output_statistics(box, box(x), y)
    errors = result.example_errors
    assert errors.shape == (2, 3, N)
    assert (errors[:, 1:] >= errors[:, :-1]).all()  # a larger ball holds the smaller one
    for k, name in enumerate(attacks):
        images = attacks[name](box, x, y, eps=0.1).images
        found = output_statistics(box, box(images), y)
        for i in range(N):
            mine = metrics_of(box, box(images[i : i + 1]), y[i : i + 1])
            error = {
                "regression": lambda m: m["RMSE"] ** 2,
                "multilabel": lambda m: 1 - m["label accuracy"],
                "map": lambda m: 1 - m["pixel accuracy"],
            }[kind](mine)
            assert errors[k, 2, i] >= error - 1e-9
            if errors[:, :, i].max() <= error + 1e-12:
                worst[i] = found[i]
    name = next(iter(result.clean))
    together = metric_intervals(box, worst)[name].mean
    assert result.metric(name).mean == pytest.approx(together, abs=1e-9)
    sign = 1 if kind == "regression" else -1
    for attack in attacks:
        assert sign * result.metric(name).mean >= sign * result.metric(name, attack=attack).mean
        assert sign * result.metric(name, attack=attack).mean >= sign * result.clean[name].mean


def test_labels_on_both_sides_of_the_boundary_fall_within_eps() -> None:
    """Label k is on where pixel k is above one half: exactly those within eps of it fall."""
    model = nn.Linear(16, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(16, dtype=torch.float64)[:3])
        model.bias.fill_(-0.5)
    box = ub.Box(nn.Sequential(nn.Flatten(), model), PIXELS, outputs="multilabel")
    x = draws(40, 1, 4, 4, seed=5)
    y = (x.flatten(1)[:, :3] > 0.5).double()
    result = ub.robustness.evaluate_outputs(box, (x, y), eps=[0.1, 0.3])
    far = (x.flatten(1)[:, :3] - 0.5).abs()
    assert result.clean["label accuracy"].mean == 1
    for e in (0.1, 0.3):
        assert result.metric("label accuracy", e).mean == pytest.approx(float((far > e).double().mean()))
        assert result.metric("exact match", e).mean == pytest.approx(float((far > e).all(1).double().mean()))


def test_intervals_are_over_examples() -> None:
    """Two labels that are copies of one count as one: the interval is that of the examples."""
    box, _, _ = opened("multilabel")
    right = torch.tensor([1.0] * 30 + [0.0] * 10, dtype=torch.float64)
    z = (2 * right - 1)[:, None].expand(40, 3)
    interval = metric_intervals(box, output_statistics(box, z, torch.ones_like(z)))["label accuracy"]
    half_width = 1.96 * (0.75 * 0.25 / 40) ** 0.5
    assert interval.mean == 0.75
    assert interval.high - interval.low == pytest.approx(2 * half_width, rel=0.15)


def test_ctrl_c_keeps_what_was_found() -> None:
    box, x, y = opened("regression")

    def stops(*args: Any, eps: float, norm: str) -> Any:
        if eps > 0.1:
            raise KeyboardInterrupt
        return ub.adversarial.fgsm(*args, eps=eps, norm=norm)  # type: ignore[arg-type]

    result = ub.robustness.evaluate_outputs(box, (x, y), {"mine": stops, "pgd": ub.adversarial.pgd}, eps=[0.1, 0.2])
    assert result.interrupted
    assert torch.equal(result.example_errors[0, 1], result.example_errors[0, 2])
    assert (result.example_errors[0, 1] > result.example_errors[0, 0]).any()
    assert torch.equal(result.example_errors[1, 2], result.example_errors[1, 0])


def test_parts_of_the_examples_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    box, x, y = opened("map")
    attacks = {"fgsm": ub.adversarial.fgsm}
    whole = ub.robustness.evaluate_outputs(box, (x, y), attacks, eps=[0.1])
    monkeypatch.setattr(sys.modules["unboxed.robustness.evaluate_outputs"], "MAX_OUTPUTS", 5 * 3 * 16)
    parts = ub.robustness.evaluate_outputs(box, (x, y), attacks, eps=[0.1])
    assert torch.equal(whole.example_errors, parts.example_errors)


@every_kind
def test_figures_and_json(kind: str) -> None:
    box, x, y = opened(kind)
    result = ub.robustness.evaluate_outputs(box, (x, y), {"fgsm": ub.adversarial.fgsm}, eps=[0.1])
    assert [*figures(result, box)] == [*result.clean]
    name = next(iter(result.clean))
    assert result.to_dict()["attacked"]["fgsm"][name][0][0] == result.metric(name, attack="fgsm").mean


def test_refusals() -> None:
    box, x, y = opened("regression")
    classes = ub.Box(nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double(), PIXELS)
    with pytest.raises(OutputError, match=r"robustness\.evaluate"):
        ub.robustness.evaluate_outputs(classes, (x, torch.zeros(N).long()), eps=[0.1])
    with pytest.raises(OutputError, match=r"evaluate_outputs\(box, data"):
        ub.robustness.evaluate(box, (x, y), eps=[0.1])
    with pytest.raises((DataError, InputError), match="labels"):
        ub.robustness.evaluate_outputs(box, x, eps=[0.1])
    with pytest.raises(InputError, match="at least one attack"):
        ub.robustness.evaluate_outputs(box, (x, y), {}, eps=[0.1])
    result = ub.robustness.evaluate_outputs(box, (x, y), {"fgsm": ub.adversarial.fgsm}, eps=[0.1])
    for wrong in ({"name": "R2"}, {"name": "MAE", "eps": 0.2}, {"name": "MAE", "attack": "pgd"}):
        with pytest.raises(InputError):
            result.metric(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("form", ["tensors", "dataset", "loader", "items", "lists of both"])
def test_maps_with_the_axes_of_images_are_labels(form: str, channels: int) -> None:
    """As depth, or a clean image: in every form of data the same figures."""
    torch.manual_seed(0)
    box = ub.Box(nn.Conv2d(channels, channels, 1).double(), ub.Pixels((channels, 4, 4)), outputs="regression")
    x, y = draws(6, channels, 4, 4), draws(6, channels, 4, 4, seed=1)
    pairs = TensorDataset(x, y)
    data = {"tensors": (x, y), "dataset": pairs, "loader": DataLoader(pairs, batch_size=4), "items": [*pairs],
            "lists of both": ([*x], y)}[form]  # fmt: skip
    clean = ub.robustness.evaluate_outputs(box, data, {"fgsm": ub.adversarial.fgsm}, eps=[0.01]).clean
    assert clean["RMSE"].mean == pytest.approx(mean_squared_error(y.flatten(), box(x).flatten()) ** 0.5, abs=1e-9)


def test_two_batches_of_images_are_no_labels() -> None:
    """A list of batches is still refused, and so is a pair of them where labels are not maps."""
    batches = (draws(3, 1, 4, 4), draws(3, 1, 4, 4, seed=1))
    box = ub.Box(nn.Conv2d(1, 1, 1).double(), PIXELS, outputs="regression")
    with pytest.raises(DataError, match="joins a list of batches"):
        ub.robustness.evaluate_outputs(box, [*batches], eps=[0.1])
    with pytest.raises(DataError, match="joins a list of batches"):
        ub.robustness.evaluate_outputs(opened("regression")[0], batches, eps=[0.1])


@pytest.mark.parametrize("shape", [(3, 4, 4), (3, 1, 4, 4)])
def test_axes_of_size_one_do_not_matter(shape: tuple[int, ...]) -> None:
    values = torch.arange(48).view(shape)
    depth = ub.Box(nn.Conv2d(1, 1, 1).double(), PIXELS, outputs="regression")
    assert torch.equal(check_output_values(depth, values, 3), values.double().view(3, 1, 4, 4))
    label_map = ub.Box(nn.Conv2d(1, 60, 1).double(), PIXELS)
    assert torch.equal(check_output_values(label_map, values, 3), values.view(3, 4, 4))
    row = ub.Box(nn.Conv2d(1, 60, 1).double(), ub.Pixels((1, 1, 16)))
    assert torch.equal(check_output_values(row, [*values.view(3, 1, 16)], 3), values.view(3, 1, 16))
    with pytest.raises(InputError, match=r"of shape \(2, 4, 4\); got shape \(3,"):
        check_output_values(label_map, values, 2)


def test_many_examples_are_all_counted() -> None:
    """They are resampled in groups; the interval is still that of the examples."""
    statistics = torch.cat([torch.ones(12_001, 1, dtype=torch.float64), draws(12_001, 1)], 1)
    interval = bootstrap_interval_of_sums(statistics, lambda s: s[:, 1] / s[:, 0])
    assert interval.n_examples == 12_001
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * (1 / 12 / 12_001) ** 0.5, rel=0.1)


DOORS: dict[str, Any] = {
    "evaluate_outputs": lambda box, x, y: ub.robustness.evaluate_outputs(
        box, (x, y), {"fgsm": ub.adversarial.fgsm}, eps=[0.1]
    ),
    "calibration": lambda box, x, y: ub.robustness.calibration(box, (x, y)),
    "pgd": lambda box, x, y: ub.adversarial.pgd(box, x, y, eps=0.1),
    "pgd of pairs": lambda box, x, y: ub.adversarial.pgd(box, (x, y), eps=0.1),
    "report": lambda box, x, y: position_confusion_matrix(box(x), [*y]),
}


@pytest.mark.parametrize("door", DOORS)
def test_label_maps_above_the_last_class_are_refused(door: str) -> None:
    """As labels that count from 1; 255 and numbers below 0 mark positions without a class."""
    box, x, y = opened("map")
    with pytest.raises(InputError, match=r"classes 0 to 2.*labels up to 3.*255"):
        DOORS[door](box, x, torch.where(y == 255, y, y + 1))
    for unlabeled in (255, -1, -100):
        DOORS[door](box, x, torch.where(y == 255, unlabeled, y))
