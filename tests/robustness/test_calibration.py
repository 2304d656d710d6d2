"""Calibration against the definitions written out, scikit-learn's scores and scipy's minimum."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.metrics import log_loss
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import unboxed as ub
from contracts.common import make_case
from unboxed.errors import DataError, InputError, OutputError
from unboxed.robustness.calibration import _confidence_bin_index, fit_temperature

K = 4


def says(z: Tensor) -> tuple[ub.Box, Tensor]:
    """A box whose logits are its input."""
    low, high = (-99.0,) * K, (99.0,) * K
    return ub.Box(nn.Identity(), ub.Features(tuple("abcd"), low=low, high=high), outputs="logits"), z


def drawn(n: int = 400, sharper: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits, `sharper` times as large as those from whose probabilities the labels are drawn."""
    g = torch.Generator().manual_seed(seed)
    z = 1.5 * torch.randn(n, K, generator=g)
    return z * sharper, torch.multinomial(z.softmax(1), 1, generator=g)[:, 0]


def twin(z: Tensor, y: Tensor, bins: int) -> dict[str, Any]:
    """Guo et al. 2017, section 2, example by example: bins ((m - 1) / M, m / M]."""
    p = np.exp(z.double().numpy())
    p /= p.sum(1, keepdims=True)
    rows: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for pi, yi in zip(p, y.tolist(), strict=True):
        m = next(m for m in range(1, bins + 1) if pi.max() <= m / bins)
        rows[m - 1].append((pi.max(), int(pi.argmax()) == yi))
    confidence = [sum(c for c, _ in r) / len(r) if r else 0 for r in rows]
    accuracy = [sum(a for _, a in r) / len(r) if r else 0 for r in rows]
    gaps = [abs(a - c) for a, c in zip(accuracy, confidence, strict=True)]
    wrong_by = [sum((pk - (k == yi)) ** 2 for k, pk in enumerate(pi)) for pi, yi in zip(p, y.tolist(), strict=True)]
    return {
        "count": [len(r) for r in rows], "confidence": confidence, "accuracy": accuracy,
        "ece": sum(len(r) / len(y) * g for r, g in zip(rows, gaps, strict=True)), "mce": max(gaps),
        "brier": float(np.mean(wrong_by)),
        "nll": log_loss(y.numpy(), p, labels=list(range(p.shape[1]))),
    }  # fmt: skip


@pytest.mark.parametrize("bins", [1, 7, 15])
@pytest.mark.parametrize("sharper", [0.5, 3.0])
def test_as_defined(bins: int, sharper: float) -> None:
    z, y = drawn(120, sharper)
    made, want = ub.robustness.calibration(*_data(z, y), n_bins=bins), twin(z, y, bins)
    assert made.uncalibrated.bin_counts.tolist() == want["count"]
    assert made.uncalibrated.bin_confidence.tolist() == pytest.approx(want["confidence"], abs=1e-5)
    assert made.uncalibrated.bin_accuracy.tolist() == pytest.approx(want["accuracy"], abs=1e-6)
    for name in ("ece", "mce", "brier", "nll"):
        assert getattr(made.uncalibrated, name) == pytest.approx(want[name], abs=1e-6), name
    scaled = twin(z.double() / made.temperature, y, bins)
    assert made.scaled.ece == pytest.approx(scaled["ece"], abs=1e-6)
    assert made.scaled.nll <= made.uncalibrated.nll


@pytest.mark.parametrize("bins", [1, 2, 3, 7, 10, 15, 49, 100])
def test_a_value_at_an_edge_is_in_the_bin_below_it(bins: int) -> None:
    """Bins ((m - 1) / M, m / M], at each edge and one float to either side of it, found one by one."""
    edges = np.arange(1, bins + 1) / bins
    sure = np.concatenate([np.nextafter(edges, 0), edges, np.nextafter(edges[:-1], 1)])
    want = [next(m for m in range(bins) if value <= (m + 1) / bins) for value in sure]
    assert _confidence_bin_index(torch.from_numpy(sure), bins).tolist() == want


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
def test_equal_logits_are_at_an_edge(classes: int) -> None:
    """A confidence of 1 / K, in K bins: the whole of the first bin."""
    z = torch.zeros(6, classes)
    box = ub.Box(nn.Identity(), ub.Features(tuple("abcde"[:classes])), outputs="logits")
    made = ub.robustness.calibration(box, (z, torch.arange(6) % classes), n_bins=classes)
    assert made.uncalibrated.bin_counts.tolist() == [6] + [0] * (classes - 1)


def _data(z: Tensor, y: Tensor) -> tuple[ub.Box, tuple[Tensor, Tensor]]:
    box, x = says(z)
    return box, (x, y)


@pytest.mark.parametrize("sharper", [0.3, 1.0, 4.0])
def test_the_temperature_has_maximum_likelihood(sharper: float) -> None:
    z, y = drawn(300, sharper)

    def nll(log_t: float) -> float:
        return float(nn.functional.cross_entropy(z.double() / math.exp(log_t), y))

    best = math.exp(minimize_scalar(nll, bounds=(-4, 4), method="bounded", options={"xatol": 1e-8}).x)
    assert fit_temperature(z, y) == pytest.approx(best, rel=1e-4)


def test_a_calibrated_model_has_no_error() -> None:
    """Labels drawn from the model's own probabilities; and from those of logits four times as small."""
    fair, sharp = (ub.robustness.calibration(*_data(*drawn(4000, s))) for s in (1.0, 4.0))
    assert fair.uncalibrated.ece < 0.03
    assert abs(fair.temperature - 1) < 0.1
    assert sharp.uncalibrated.ece > 0.1
    assert abs(sharp.temperature - 4) < 0.4
    assert sharp.scaled.ece < 0.03
    assert "overconfident" in str(sharp)


def test_accuracy_of_one_or_zero_stays_finite() -> None:
    z = 3 * torch.eye(K)
    assert fit_temperature(z, torch.arange(K)) == pytest.approx(0.01, rel=1e-3)
    assert fit_temperature(z, (torch.arange(K) + 1) % K) == pytest.approx(100, rel=1e-3)
    made = ub.robustness.calibration(*_data(z, torch.arange(K)))
    assert made.error_index.tolist() == []


def test_most_confident_errors() -> None:
    z, y = drawn(200, 2.0)
    made = ub.robustness.calibration(*_data(z, y), n_errors=9)
    sure, answer = z.double().softmax(1).max(1)
    wrong = sorted((-float(sure[i]), i) for i in range(200) if answer[i] != y[i])[:9]
    assert made.error_index.tolist() == [i for _, i in wrong]
    assert made.error_confidence.tolist() == pytest.approx([-s for s, _ in wrong], abs=1e-6)
    assert made.error_prediction.tolist() == answer[made.error_index].tolist()
    assert made.error_label.tolist() == y[made.error_index].tolist()
    assert made.accuracy == pytest.approx(float((answer == y).double().mean()))


def test_data_of_any_kind() -> None:
    z, y = drawn(50)
    box, x = says(z)
    pair = ub.robustness.calibration(box, (x, y))
    as_set = ub.robustness.calibration(box, TensorDataset(x, y))
    assert pair.uncalibrated.ece == as_set.uncalibrated.ece
    first = ub.robustness.calibration(box, (x, y), max_examples=10)
    assert int(first.uncalibrated.bin_counts.sum()) == 10
    with pytest.raises((DataError, InputError)):
        ub.robustness.calibration(box, x)
    for bad in ({"n_bins": 0}, {"n_errors": -1}, {"max_examples": 0}):
        with pytest.raises(InputError):
            ub.robustness.calibration(box, (x, y), **bad)


def test_models_of_numbers_are_refused() -> None:
    c = make_case("plain")
    with pytest.raises(OutputError, match="regression"):
        ub.robustness.calibration(ub.Box(c.box.model, c.box.inputs, outputs="regression"), (c.x, c.y))


# ---- several answers per example -------------------------------------------------------------------------------------


def says_labels(z: Tensor) -> ub.Box:
    names = tuple(map(str, range(z.shape[1])))
    low, high = (-99.0,) * len(names), (99.0,) * len(names)
    return ub.Box(nn.Identity(), ub.Features(names, low=low, high=high), outputs="multilabel")


def says_map(z: Tensor) -> ub.Box:
    """A box whose logits (N, K, H, W) are its channels, moved into the range of pixels."""

    class FromPixels(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 20 * x - 10

    return ub.Box(FromPixels(), ub.Pixels(tuple(z.shape[1:])))


def test_labels_are_pooled_yes_and_no_answers() -> None:
    """As one model of two classes that gives all answers, one after the other."""
    g = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(50, 3, generator=g)
    y = (torch.rand(50, 3, generator=g) < z.sigmoid()).long()
    made = ub.robustness.calibration(says_labels(z), (z, y), n_bins=7)
    want = twin(torch.stack([torch.zeros(150), z.flatten()], 1), y.flatten(), 7)
    assert made.uncalibrated.bin_counts.tolist() == want["count"]
    for name in ("ece", "mce", "brier", "nll"):
        assert getattr(made.uncalibrated, name) == pytest.approx(want[name], abs=1e-6), name
    assert made.accuracy == pytest.approx(((z > 0) == y.bool()).double().mean())
    assert made.error_position is not None
    for i, k, p, wrong, right in zip(
        made.error_index, made.error_position, made.error_confidence, made.error_prediction, made.error_label,
        strict=True,
    ):  # fmt: skip
        assert wrong == int(z[i, k] > 0) != int(right)
        assert right == y[i, k]
        assert float(p) == pytest.approx(float(z[i, k].abs().sigmoid()), abs=1e-6)
    assert bool((made.error_confidence.diff() <= 0).all())


def test_positions_of_a_map_are_pooled_without_those_that_have_no_class() -> None:
    g = torch.Generator().manual_seed(1)
    z = (3 * torch.randn(6, K, 5, 5, generator=g)).clamp(-9.9, 9.9)
    y = torch.randint(0, K, (6, 5, 5), generator=g)
    y[:, :, 0] = 255
    box, x = says_map(z), (z + 10) / 20
    made = ub.robustness.calibration(box, (x, y), n_bins=5)
    known = (y != 255).flatten()
    flat = box(x).movedim(1, -1).reshape(-1, K)[known]
    want = twin(flat, y.flatten()[known], 5)
    assert made.uncalibrated.bin_counts.tolist() == want["count"]
    assert made.uncalibrated.bin_counts.sum() == 6 * 20
    for name in ("ece", "mce", "brier", "nll"):
        assert getattr(made.uncalibrated, name) == pytest.approx(want[name], abs=1e-5), name
    assert made.error_position is not None
    assert (made.error_position % 5 != 0).all()


def test_the_interval_of_pooled_answers_resamples_examples() -> None:
    """Answers that are copies of one another leave it as wide as one answer per example; more examples narrow it."""
    g = torch.Generator().manual_seed(2)
    z = 2 * torch.randn(400, 2, generator=g)[:, :1].expand(400, 2)
    y = (torch.rand(400, 1, generator=g) < (z[:, :1] / 3).sigmoid()).long().expand(400, 2)

    def width(n: int, n_labels: int) -> float:
        labels = torch.cat([z[:n]] * n_labels, 1), torch.cat([y[:n]] * n_labels, 1)
        r = ub.robustness.calibration(says_labels(labels[0]), labels, n_bins=5).uncalibrated
        assert r.ece_interval is not None
        assert r.ece_interval.low <= r.ece <= r.ece_interval.high
        return r.ece_interval.high - r.ece_interval.low

    assert width(400, 1) == pytest.approx(width(400, 4), rel=1e-3)
    assert width(100, 1) > 1.4 * width(400, 1)
    box, z_classes = says(drawn(30)[0])
    assert ub.robustness.calibration(box, (z_classes, drawn(30)[1])).uncalibrated.ece_interval is None


def test_a_temperature_that_is_none_is_said() -> None:
    """At the edge of the search, where nothing is wrong; where the likelihood rises and the calibration error, too."""
    x, y = torch.eye(4).repeat(8, 1), torch.arange(4).repeat(8)
    names = ub.Features(tuple("abcd"))
    right = ub.Box(nn.Identity(), names, outputs="logits")
    never_wrong = ub.robustness.calibration(right, (x, y))
    assert never_wrong.temperature == pytest.approx(0.01, rel=1e-3)
    assert "edge of the search (no answer is wrong" in str(never_wrong)
    always_wrong = ub.robustness.calibration(right, (x, (y + 1) % 4))
    assert "edge of the search (the likelihood rises up to it)" in str(always_wrong)


def test_a_larger_calibration_error_is_said() -> None:
    box, seen = ub.Box(nn.Identity(), ub.Features(tuple("abc")), outputs="logits"), set()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        z = 2 * torch.randn(60, 3, generator=generator)
        y = z.softmax(1).multinomial(1, generator=generator)[:, 0]
        found = ub.robustness.calibration(box, (z, y))
        is_worse = found.scaled.ece > found.uncalibrated.ece
        assert ("makes the expected calibration error larger" in str(found)) == is_worse
        assert found.scaled.nll <= found.uncalibrated.nll + 1e-6
        seen.add(is_worse)
    assert seen == {True, False}
