"""TCAV equals a literal reference, one classifier and one derivative at a time, and captum's with the same vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

import unboxed as ub
from unboxed.concepts import ConceptScores, concept_vectors, tcav
from unboxed.concepts._example_sets import draw_example_sets
from unboxed.engine.multiple_tests import holm_adjusted

LAYERS, N_SETS, SIZE, L2, TARGET = ["0", "3"], 5, 8, 0.02, 1


def setting() -> tuple[ub.Box, Tensor, Tensor, dict[str, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 6), nn.Tanh(), nn.Linear(6, 3))
    box = ub.Box(model.double(), ub.Pixels((1, 6, 6)), outputs="logits")
    x, y = torch.rand(60, 1, 6, 6, dtype=torch.float64), torch.arange(60) % 3
    bright = torch.rand(SIZE, 1, 6, 6, dtype=torch.float64)
    bright[..., :3] += 0.5
    noise = torch.rand(SIZE, 1, 6, 6, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(model(noise)[:, TARGET].sum(), noise)
    raised = 0.7 * (gradient.mean(0, keepdim=True) > 0) + 0.3 * noise.detach()
    return box, x, y, {"bright": bright.clamp(max=1), "raised": raised}


def found() -> ConceptScores:
    box, x, y, concepts = setting()
    return tcav(box, (x, y), concepts, TARGET, LAYERS, n_random=N_SETS, set_size=SIZE, l2=L2, control=False)


def literal_vector(box: ub.Box, layer: str, positives: Tensor, negatives: Tensor) -> Tensor:
    """One concept activation vector, of length 1, by scikit-learn."""
    h = torch.cat([literal_features(box, layer, x) for x in (positives, negatives)])
    scale = float(h.var(0, correction=0).sum())
    labels = [1] * len(positives) + [0] * len(negatives)
    classifier = LogisticRegression(C=1 / (L2 * scale * len(h)), tol=1e-13, max_iter=100_000).fit(h.numpy(), labels)
    weight = torch.from_numpy(classifier.coef_[0])
    return weight / weight.norm()


def literal_features(box: ub.Box, layer: str, x: Tensor) -> Tensor:
    return box.model[: int(layer) + 1](x).detach().flatten(1)  # type: ignore[index]


def literal_gradients(box: ub.Box, layer: str, x: Tensor) -> Tensor:
    """(N, D) the gradient of the target's logit, example by example."""
    rows = []
    for one in x:
        h = box.model[: int(layer) + 1](one[None]).detach().requires_grad_()  # type: ignore[index]
        box.model[int(layer) + 1 :](h)[0, TARGET].backward()  # type: ignore[index]
        assert h.grad is not None
        rows.append(h.grad.flatten())
    return torch.stack(rows)


def literal_layer(box: ub.Box, layer: str, x: Tensor, y: Tensor, concepts: dict[str, Tensor]) -> dict[str, Tensor]:
    sets = draw_example_sets(concepts, x, N_SETS, SIZE, 0)
    gradient = literal_gradients(box, layer, x[y == TARGET])
    unit = gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-300)  # of an example without a gradient 0
    random = [sets.x[rows] for rows in sets.random[SIZE]]
    against = [[literal_vector(box, layer, c, r) for r in random] for c in concepts.values()]
    null = [[literal_vector(box, layer, a, b) for b in random if b is not a] for a in random]
    mean = [torch.stack(vectors).mean(0) for vectors in (*against, *null)]
    cosines = torch.stack([unit @ (v / v.norm()) for v in mean], 1)  # (N, C + R)
    alignment = cosines.mean(0)
    c, spread = len(concepts), cosines[:, len(concepts) :].square().mean(1, keepdim=True).sqrt()
    t = alignment[:c] / alignment[c:].square().mean().sqrt()
    shares = [[float((gradient @ v > 0).double().mean()) for v in vectors] for vectors in (*against, *null)]
    return {
        "scores": torch.tensor(shares[:c], dtype=torch.float64),
        "random_scores": torch.tensor([sum(s) / len(s) for s in shares[c:]], dtype=torch.float64).expand(c, -1),
        "alignment": alignment[:c],
        "random_alignment": alignment[c:].expand(c, -1),
        "smooth_scores": torch.from_numpy(stats.norm.cdf((cosines[:, :c] / spread.clamp_min(1e-300)).numpy())).mean(0),
        "p": torch.from_numpy(2 * stats.t.sf(t.abs().numpy(), N_SETS - 1)),
    }


def test_all_figures_equal_the_literal_reference() -> None:
    box, x, y, concepts = setting()
    result = found()
    layers = [literal_layer(box, layer, x, y, concepts) for layer in LAYERS]
    for name in ("scores", "random_scores", "alignment", "random_alignment", "smooth_scores"):
        expected = torch.stack([layer[name] for layer in layers], 1)
        torch.testing.assert_close(getattr(result, name), expected, rtol=1e-4, atol=1e-5)
    p = torch.stack([layer["p"] for layer in layers], 1)
    adjusted = torch.tensor(holm_adjusted(p.flatten().tolist()), dtype=torch.float64).view_as(p)
    assert (adjusted < 0.5).any()
    torch.testing.assert_close(result.p_values, adjusted, rtol=1e-4, atol=1e-6)


def test_vectors_equal_the_literal_reference() -> None:
    box, x, _, concepts = setting()
    result = concept_vectors(box, x, concepts, LAYERS, n_random=N_SETS, set_size=SIZE, l2=L2)
    sets = draw_example_sets(concepts, x, N_SETS, SIZE, 0)
    for k, layer in enumerate(LAYERS):
        for c, examples in enumerate(concepts.values()):
            random = (sets.x[rows] for rows in sets.random[SIZE])
            mean = torch.stack([literal_vector(box, layer, examples, r) for r in random]).mean(0)
            torch.testing.assert_close(result.vectors[k][c].flatten(), mean / mean.norm(), rtol=1e-4, atol=5e-5)


def test_scores_equal_captums_with_the_same_vectors(tmp_path: Path) -> None:
    concept = pytest.importorskip("captum.concept")
    box, x, y, concepts = setting()
    sets = draw_example_sets(concepts, x, N_SETS, SIZE, 0)

    class Exact(concept.Classifier):  # type: ignore[name-defined, misc]
        """scikit-learn's logistic regression, with the same penalty."""

        def __init__(self) -> None:
            pass

        def train_and_eval(self, dataloader: Any, **kwargs: Any) -> dict[str, float]:
            h, labels = (torch.cat(parts) for parts in zip(*dataloader, strict=True))
            c = 1 / (L2 * float(h.var(0, correction=0).sum()) * len(h))
            self.lm = LogisticRegression(C=c, tol=1e-13, max_iter=100_000).fit(h.double().numpy(), labels.numpy())
            return {}

        def weights(self) -> Tensor:
            return torch.from_numpy(self.lm.coef_[0]).expand(2, -1) * torch.tensor([[-1.0], [1.0]])

        def classes(self) -> list[int]:
            return list(self.lm.classes_)

    first = concept.Concept(0, "bright", [concepts["bright"]])
    others = [concept.Concept(1 + i, f"r{i}", [sets.x[rows]]) for i, rows in enumerate(sets.random[SIZE])]
    peer = concept.TCAV(box.model, LAYERS, classifier=Exact(), save_path=str(tmp_path))
    scores = peer.interpret(x[y == TARGET], [[first, other] for other in others], target=TARGET)
    for k, layer in enumerate(LAYERS):
        by_set = [float(scores[f"0-{1 + i}"][layer]["sign_count"][0]) for i in range(N_SETS)]
        assert by_set == pytest.approx(found().scores[0, k].tolist(), abs=1e-6)
