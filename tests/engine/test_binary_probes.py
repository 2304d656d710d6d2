"""Many binary classifiers at once equal scikit-learn's one by one, and their held-out logits those of refitting."""

from __future__ import annotations

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from unboxed.engine.linear import binary
from unboxed.engine.linear.binary import fit_binary_classifiers


def examples(d: int, n: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, d), rows of 3 fits (3, 20) and their classes (20,)."""
    generator = torch.Generator().manual_seed(d)
    h = torch.randn(n, d, generator=generator, dtype=torch.float64) + 0.3
    h[: n // 2, 0] += 1
    first, second = (torch.stack([part[torch.randperm(n // 2, generator=generator)[:10]] for _ in range(3)])
                     for part in (torch.arange(n // 2), torch.arange(n // 2, n)))  # fmt: skip
    return h, torch.cat([first, second], 1), (torch.arange(20) < 10).double()


def sklearn_fit(h: Tensor, y: Tensor, l2: float) -> LogisticRegression:
    variance = float(h.var(0, correction=0).sum())
    return LogisticRegression(C=1 / (l2 * variance * len(h)), tol=1e-12, max_iter=100_000).fit(h.numpy(), y.numpy())


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("d", [3, 200])
def test_each_fit_is_scikit_learns(d: int, l2: float) -> None:
    h, rows, y = examples(d)
    fitted = fit_binary_classifiers(h @ h.T, rows, y, l2)
    for i, own in enumerate(rows):
        expected = sklearn_fit(h[own], y, l2)
        weight = fitted.dual[i] @ h[own]
        torch.testing.assert_close(weight, torch.from_numpy(expected.coef_[0]), rtol=1e-4, atol=1e-5)
        assert float(fitted.bias[i]) == pytest.approx(expected.intercept_[0], rel=1e-4, abs=1e-5)
        assert float(fitted.length[i]) == pytest.approx(float(weight.norm()), rel=1e-9)


def test_what_is_not_used_does_not_count() -> None:
    h, rows, y = examples(30)
    is_used = torch.ones_like(rows, dtype=torch.bool)
    is_used[:, [2, 15, 16]] = False
    fitted = fit_binary_classifiers(h @ h.T, rows, y, 1e-2, is_used)
    smaller = fit_binary_classifiers(h @ h.T, rows[is_used].view(3, 17), y[is_used[0]], 1e-2)
    torch.testing.assert_close(fitted.length, smaller.length, rtol=1e-9, atol=0)
    assert not fitted.dual[~is_used].any()


def test_held_out_logits_are_near_those_of_refitting() -> None:
    h, rows, y = examples(40)
    fitted = fit_binary_classifiers(h @ h.T, rows, y, 0.05)
    own, gaps = rows[0], []
    for i in range(20):
        rest = torch.arange(20) != i
        refitted = sklearn_fit(h[own][rest], y[rest], 0.05)
        gaps.append(float(fitted.held_out[0, i]) - float(refitted.decision_function(h[own][[i]].numpy())[0]))
    within = float((fitted.held_out[0] - (h[own] @ (fitted.dual[0] @ h[own]) + fitted.bias[0])).abs().mean())
    assert sum(map(abs, gaps)) / len(gaps) < 0.03 * within


def test_swapped_classes_give_the_opposite() -> None:
    h, rows, y = examples(50)
    a, b = (fit_binary_classifiers(h @ h.T, rows, labels, 1e-3) for labels in (y, 1 - y))
    torch.testing.assert_close(a.dual, -b.dual, rtol=1e-7, atol=1e-9)


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    h, rows, y = examples(50)
    together = fit_binary_classifiers(h @ h.T, rows, y, 1e-3)
    monkeypatch.setattr(binary, "MAX_BATCH_VALUES", 1)
    torch.testing.assert_close(
        fit_binary_classifiers(h @ h.T, rows, y, 1e-3).dual, together.dual, rtol=1e-9, atol=1e-12
    )


def test_no_examples_at_all_give_no_direction() -> None:
    h, rows, y = examples(5)
    fitted = fit_binary_classifiers(h @ h.T, rows, y, 1e-3, torch.zeros_like(rows, dtype=torch.bool))
    assert not fitted.dual.any()
    assert torch.isfinite(fitted.held_out).all()


def test_features_far_from_zero_and_in_other_units_give_the_same() -> None:
    h, rows, y = examples(30)
    a, b = (
        fit_binary_classifiers(h @ h.T, rows, y, 1e-3),
        fit_binary_classifiers((moved := 100 * h + 1000) @ moved.T, rows, y, 1e-3),
    )
    torch.testing.assert_close(b.dual * 100**2, a.dual, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(b.held_out, a.held_out, rtol=1e-5, atol=1e-6)
