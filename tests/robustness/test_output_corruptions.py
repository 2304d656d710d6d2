"""Corruptions on numbers, several labels and label maps: metrics as scikit-learn and loops have them, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score, mean_absolute_error, mean_squared_error
from torch import Tensor, nn

import unboxed as ub
from unboxed.errors import InputError
from unboxed.robustness import OutputCorruptions

corrupted, corruptions = ub.robustness.corrupted, ub.robustness.corruptions
PIXELS, N, KINDS = ub.Pixels((1, 8, 8)), 20, ("contrast", "gaussian_noise")
every_kind = pytest.mark.parametrize("kind", ["regression", "multilabel", "map"])


def opened(kind: str) -> tuple[ub.Box, Tensor, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(N, 1, 8, 8)
    if kind == "map":
        y = torch.randint(0, 3, (N, 8, 8))
        y[:, 0] = 255
        return ub.Box(nn.Conv2d(1, 3, 3, padding=1), PIXELS), x, y
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    outputs: Any = kind
    y = torch.randn(N, 2) if kind == "regression" else torch.randint(0, 2, (N, 2)).float()
    return ub.Box(model, PIXELS, outputs=outputs), x, y


def literal(kind: str, z: Tensor, y: Tensor) -> dict[str, float]:
    if kind == "regression":
        return {"MAE": mean_absolute_error(y, z), "RMSE": mean_squared_error(y.flatten(), z.flatten()) ** 0.5}
    if kind == "multilabel":
        on = z > 0
        exact = accuracy_score(y.bool(), on)
        return {"label accuracy": accuracy_score(y.bool().flatten(), on.flatten()), "exact match": exact}
    true, predicted = y[y != 255], z.argmax(1)[y != 255]
    iou = jaccard_score(true, predicted, average="macro")
    return {"pixel accuracy": accuracy_score(true, predicted), "mean IoU": iou}


@every_kind
def test_metrics_are_those_of_the_corrupted_images(kind: str) -> None:
    box, x, y = opened(kind)
    result = corruptions(box, (x, y), KINDS, severities=(1, 5), seed=3, batch_size=7)
    assert isinstance(result, OutputCorruptions)
    assert result.clean == pytest.approx(literal(kind, box.model(x).detach(), y), abs=1e-6)
    for i, name in enumerate(KINDS):
        for j, severity in enumerate((1, 5)):
            z = box.model(corrupted(x, name, severity, seed=3)).detach()
            cell = {metric: float(values[i, j]) for metric, values in result.metrics.items()}
            assert cell == pytest.approx(literal(kind, z, y), abs=1e-6)


@every_kind
def test_the_worst_kind_is_the_one_of_most_error(kind: str) -> None:
    box, x, y = opened(kind)
    result = corruptions(box, (x, y), KINDS, severities=(5,))
    assert isinstance(result, OutputCorruptions)
    for metric, values in result.metrics.items():
        by_value = sorted(zip(values[:, 0].tolist(), KINDS, strict=True), reverse=metric in ("MAE", "RMSE"))
        assert [*result.by_kind(metric)] == [name for _, name in by_value]
    assert all(metric in str(result) for metric in result.metrics)
    assert result.image().size[0] > 0
    assert [*ub.plots.figures(result)] == [*result.metrics]


def test_label_maps_are_not_rotated() -> None:
    """A rotated image has another label map."""
    box, x, y = opened("map")
    assert "rotation" not in corruptions(box, (x, y), severities=(1,)).kinds
    with pytest.raises(InputError, match="rotation moves the positions"):
        corruptions(box, (x, y), ["contrast", "rotation"])
    numbers, x, y = opened("regression")
    assert corruptions(numbers, (x, y), ["rotation"], severities=(1,)).kinds == ("rotation",)
