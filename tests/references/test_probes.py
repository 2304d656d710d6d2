"""Probes against scikit-learn's pipeline, and their parts against the papers' equations written out."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import unboxed as ub
from unboxed.engine.linear.description_length import PORTION_END_FRACTIONS
from unboxed.engine.linear.erasure import FeatureCovariance
from unboxed.engine.linear.principal import PrincipalBasis
from unboxed.engine.linear.probing import L2_PENALTIES, probe_features
from unboxed.engine.linear.softmax import fit_softmax
from unboxed.engine.linear.splits import cross_validation_splits
from unboxed.engine.read.features import read_features


def blobs(n: int, d: int, k: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Features (N, D) of K overlapping Gaussians, correlated and in different units."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(k, (n,), generator=generator)
    centers, mix = (torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (k, d))
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return (spread * centers[y] + noise) @ mix * torch.linspace(0.1, 5, d) + 3, y


def sklearn_probe(n: int, k: int, l2: float) -> LogisticRegression:
    """The same problem: of two classes scikit-learn has one row of weights, which is the difference of ours."""
    return LogisticRegression(C=(2 if k == 2 else 1) / (l2 * n), tol=1e-8, max_iter=10_000)


@pytest.mark.parametrize(("n", "d", "k"), [(300, 12, 2), (300, 12, 4), (60, 150, 3)])
def test_softmax_regression_is_scikit_learns(n: int, d: int, k: int) -> None:
    h, y = blobs(n, d, k, 1.0)
    h = (h - h.mean(0)) / h.std(0, correction=0)
    for l2 in (1.0, 1e-2):
        expected = sklearn_probe(n, k, l2).fit(h.numpy(), y.numpy()).predict_proba(h.numpy())
        basis = PrincipalBasis.fit(h)
        for z in (h, basis(h)):  # the rotation changes nothing
            assert fit_softmax(z, y, k, l2)(z).softmax(1).numpy() == pytest.approx(expected, abs=2e-3)


def chosen(losses: list[float]) -> int:
    """The first minimum, of those before two in a row that are worse than the best so far."""
    best = 0
    for i, loss in enumerate(losses):
        best = i if loss < losses[best] else best
        if i - best == 2:
            break
    return best


def literal_accuracy(h: Tensor, y: Tensor, k: int) -> float:
    """scikit-learn's pipeline with the same folds: each penalty on the fit part, the best refitted on all of it."""
    correct, x, labels = [], h.double().numpy(), y.numpy()
    for split in cross_validation_splits(y, 5, 0):
        fit, validation, train, test = (part.numpy() for part in (split.fit, split.validation, split.train, split.test))
        scaler = StandardScaler().fit(x[train])
        losses = []
        for l2 in L2_PENALTIES:
            model = sklearn_probe(len(fit), k, l2).fit(scaler.transform(x[fit]), labels[fit])
            p = model.predict_proba(scaler.transform(x[validation]))
            losses.append(-np.log(p[np.arange(len(validation)), labels[validation]]).mean())
        best = L2_PENALTIES[chosen(losses)]
        pipeline = make_pipeline(StandardScaler(), sklearn_probe(len(train), k, best)).fit(x[train], labels[train])
        correct.append(pipeline.predict(x[test]) == labels[test])
    return float(np.concatenate(correct).mean())


@pytest.mark.parametrize(("n", "d", "k", "spread"), [(160, 10, 2, 0.4), (160, 20, 4, 0.5), (80, 120, 3, 1.0)])
def test_the_cross_validated_accuracy_is_the_literal_ones(n: int, d: int, k: int, spread: float) -> None:
    h, y = blobs(n, d, k, spread, seed=1)
    ours = probe_features(h, y, n_controls=1, description_length=False).accuracy.mean
    assert ours == pytest.approx(literal_accuracy(h, y, k), abs=0.005)


def test_the_accuracy_on_a_layer_is_the_literal_one() -> None:
    """Of digits in so much noise that a fourth of them is not told apart."""
    box, (x, y) = ub.Box(*ub.zoo.load("digits-cnn")), ub.data.digits("test").first(200)
    x = x.lerp(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)), 0.75)
    h = read_features(box, box.validate_inputs(x), ["fc2"])["fc2"]
    ours = probe_features(h, y, n_controls=1, description_length=False).accuracy.mean
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assert ours == pytest.approx(literal_accuracy(h, y, 10), abs=0.005)


def test_the_online_code_is_the_equation() -> None:
    """t1 log2 K - sum of log2 p of each next portion, by a probe of all before it."""
    h, y = blobs(120, 6, 3, 1.0)
    found = probe_features(h, y, n_controls=1).description
    assert found is not None
    order = torch.randperm(120, generator=ub.rng.keyed_generator(torch.device("cpu"), "online code", 0))
    h, y = h[order], y[order]
    ends = [end for f in PORTION_END_FRACTIONS if (end := round(f * 120)) >= 8]
    bits = ends[0] * math.log2(3)
    for start, end in pairwise(ends):
        fit, validation = ub.engine.linear.splits.split_off_validation(y, torch.arange(start), 0)
        scaler = StandardScaler().fit(h[:start].numpy())
        fitted = [sklearn_probe(len(fit), 3, l2).fit(scaler.transform(h[fit]), y[fit]) for l2 in L2_PENALTIES]
        validation = validation[np.isin(y[validation], y[fit])]
        losses = [-np.log(_at(m, scaler.transform(h[validation]), y[validation], 3)).mean() for m in fitted]
        p = _at(fitted[chosen(losses)], scaler.transform(h[start:end]), y[start:end], 3)
        bits -= np.log2((start * p + 1) / (start + 3)).sum()
    assert found.bits == pytest.approx(bits / 120, rel=0.01)
    assert found.ratio.mean == pytest.approx(math.log2(3) * 120 / bits, rel=0.01)


def _at(model: LogisticRegression, x: np.ndarray, y: Tensor, k: int) -> np.ndarray:  # type: ignore[type-arg]
    p = np.full((len(x), k), 1e-12)
    p[:, model.classes_] = model.predict_proba(x)
    return p[np.arange(len(x)), y.numpy()]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("n", "d"), [(300, 12), (40, 90)])
def test_the_eraser_is_leace_with_a_shrunk_covariance(n: int, d: int) -> None:
    """Belrose et al. 2023, theorem 4.3: x - W^+ P W (x - mean), P the projection on the span of W Cov(X, Z)."""
    h, y = blobs(n, d, 3, 1.0)
    covariance = FeatureCovariance.fit(h)
    z = torch.nn.functional.one_hot(y, 3).double()
    eraser = covariance.eraser(z)
    x, (a, b) = covariance.x, covariance.weights
    expected_covariance, shrinkage = ledoit_wolf(x.numpy(), assume_centered=True)
    assert 1 - b * n == pytest.approx(shrinkage, rel=1e-9)
    sigma = a * torch.eye(d, dtype=torch.float64) + b * x.T @ x
    assert sigma.numpy() == pytest.approx(expected_covariance, rel=1e-9, abs=1e-9)
    values, vectors = torch.linalg.eigh(sigma)
    whiten, color = (vectors @ (values**power).diag() @ vectors.T for power in (-0.5, 0.5))
    u, s, _ = torch.linalg.svd(whiten @ x.T @ (z - z.mean(0)) / n, full_matrices=False)
    u = u[:, s > 1e-8 * s.max()]
    expected = h - (x @ whiten @ u @ u.T @ color) * covariance.scale
    assert eraser.rank == 2
    assert eraser(h).numpy() == pytest.approx(expected.numpy(), rel=1e-7, abs=1e-7)


def test_after_the_eraser_no_class_differs_in_its_mean() -> None:
    h, y = blobs(40, 90, 3, 1.0)
    z = torch.nn.functional.one_hot(y, 3).double()
    erased = FeatureCovariance.fit(h).eraser(z)(h)
    means = torch.stack([erased[y == k].mean(0) for k in range(3)])
    assert (means - means[0]).abs().max() < 1e-10
    assert (torch.stack([h[y == k].mean(0) for k in range(3)]) - h[y == 0].mean(0)).abs().max() > 1


@pytest.mark.parametrize("seed", range(3))
def test_the_majority_is_that_of_scikit_learns_dummy_classifier(seed: int) -> None:
    """Of the training part of each fold, right on its held-out part, whose own most frequent class may be another."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (60,), generator=generator)
    h = torch.randn(60, 4, generator=generator).double()
    flags = ["tr"] * 40 + ["va"] * 8 + ["te"] * 12
    train, test = slice(0, 40), slice(48, 60)
    y[train] = (torch.rand(40, generator=generator) < 0.4).long()  # mostly 0; held out mostly 2
    y[test] = torch.tensor([2] * 8 + [0] * 4)
    dummy = DummyClassifier(strategy="most_frequent").fit(h[train], y[train])
    read = probe_features(h, y, flags=flags, n_controls=1, description_length=False)
    assert read.majority == pytest.approx(dummy.score(h[test], y[test]))
    assert read.majority < float((y[test] == 2).double().mean())
    assert "by the most frequent class of the training part" in read.majority_text
