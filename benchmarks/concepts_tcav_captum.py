"""TCAV against captum's, with its default classifier: 10 concepts x 3 layers x 20 random sets on the MNIST CNN.

    UNBOXED_MNIST=FOLDER python benchmarks/concepts_tcav_captum.py [--pairs 3]     results/concepts_tcav_captum.json

Concepts are 50 images of each digit, the target is class 3, the sets are the same for both. Ours also fits the vectors
of random sets against one another, which captum's would have to be given as further concepts. First it is checked that
captum's, with our classifier plugged in, gives our scores, and which signs (score above or below one half) are the
same: captum's own classifier is drawn anew in each run, so that the signs that count are those that two of its runs
share, each further from one half than twice its standard error. The exact solution of its classifier's own objective
(hinge loss, alpha = .01) is a third opinion.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from captum.concept import TCAV, Classifier, Concept
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC
from torch import Tensor

import unboxed as ub
from harness import compare, seconds, write
from unboxed.concepts import tcav
from unboxed.concepts._example_sets import ExampleSets, draw_example_sets
from unboxed.engine.gradients.layers import layer_gradients

MNIST = os.environ.get("UNBOXED_MNIST")  # the folder of the IDX files; None: the user's cache
LAYERS, TARGET, N_SETS, SIZE, N_EXAMPLES, L2 = ["relu1", "pool", "relu3"], 3, 20, 50, 100, 1e-3
ALPHA = 0.01  # of captum's default classifier


class Exact(Classifier):
    """Our classifier, for captum."""

    def __init__(self) -> None:
        pass

    def train_and_eval(self, dataloader: Any, **kwargs: Any) -> dict[str, float]:
        self.fitted = logistic(*(torch.cat(parts) for parts in zip(*dataloader, strict=True)))
        return {}

    def weights(self) -> Tensor:
        return torch.from_numpy(self.fitted.coef_[0]).expand(2, -1) * torch.tensor([[-1.0], [1.0]])

    def classes(self) -> list[int]:
        return list(self.fitted.classes_)


def logistic(h: Tensor, y: Tensor) -> LogisticRegression:
    h = h.double()
    c = 1 / (L2 * float(h.var(0, correction=0).sum()) * len(h))
    return LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(h.numpy(), y.numpy())


def hinge_scores(box: ub.Box, x: Tensor, sets: ExampleSets) -> Tensor:
    """(C, L, R) of the exact solutions of captum's classifier's objective."""
    gradients, features = layer_gradients(box, ub.logit(TARGET), x, LAYERS), box.read(sets.x, LAYERS)
    scores = torch.zeros(len(sets.positives), len(LAYERS), N_SETS)
    for k, layer in enumerate(LAYERS):
        h, g = features[layer].flatten(1).double(), gradients[layer].flatten(1).double()
        gram, projected = (h @ h.T).numpy(), (g @ h.T).numpy()
        for c, positives in enumerate(sets.positives):
            for r in range(N_SETS):
                rows = torch.cat([positives[r], sets.random[SIZE][r]]).numpy()
                y = [1] * SIZE + [0] * SIZE
                svm = SVC(kernel="precomputed", C=1 / (ALPHA * len(rows))).fit(gram[rows][:, rows], y)
                derivatives = projected[:, rows[svm.support_]] @ svm.dual_coef_[0]
                scores[c, k, r] = float((derivatives > 0).mean())
    return scores


def captum_scores(box: ub.Box, x: Tensor, sets: ExampleSets, classifier: Any = None) -> Tensor:
    """(C, L, R)"""
    encode = box.inputs.encode
    concepts = [Concept(c, str(c), [encode(sets.x[rows[0]])]) for c, rows in enumerate(sets.positives)]
    random = [Concept(100 + r, f"r{r}", [encode(sets.x[rows])]) for r, rows in enumerate(sets.random[SIZE])]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = TCAV(box.model, LAYERS, classifier=classifier, save_path=folder)
        found = method.interpret(encode(x), [[c, r] for c in concepts for r in random], target=TARGET)
    return torch.stack([
        torch.stack([torch.stack([found[f"{c.id}-{r.id}"][a]["sign_count"][0] for r in random]) for a in LAYERS])
        for c in concepts
    ])  # fmt: skip


def is_sure(scores: Tensor) -> Tensor:
    """(C, L) whether the mean score is further from one half than twice its standard error."""
    error = scores.std(2) / scores.shape[2] ** 0.5
    return (scores.mean(2) - 0.5).abs() > 2 * error


def signs(ours: Tensor, first: Tensor, second: Tensor, exact: Tensor) -> dict[str, Any]:
    """Which of the 30 signs are the same."""
    sign, a, b, svm = (scores.mean(2) > 0.5 for scores in (ours, first, second, exact))
    counted = is_sure(first) & is_sure(second) & (a == b)
    differ = (counted & (sign != a)).nonzero().tolist()
    sure = is_sure(exact) & is_sure(ours)
    return {
        "all": sign.numel(), "same_as_captums_first_run": int((sign == a).sum()),
        "captums_runs_with_each_other": int((a == b).sum()), "counted": int(counted.sum()),
        "same_of_counted": int((counted & (sign == a)).sum()),
        "different": [{"concept": c, "layer": LAYERS[k], "ours": float(ours[c, k].mean()),
                       "captum": [float(first[c, k].mean()), float(second[c, k].mean())],
                       "exact_hinge": float(exact[c, k].mean())} for c, k in differ],
        "counted_of_the_exact_hinge_loss": int(sure.sum()),
        "same_as_the_exact_hinge_loss": int((sure & (sign == svm)).sum()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=3, help="2 or more")
    args = parser.parse_args()
    torch.set_num_threads(1)
    box = ub.Box(*ub.zoo.load("mnist-cnn"))
    box.model.eval()
    x, y = ub.data.mnist("test", None if MNIST is None else Path(MNIST), quiet=True).tensors()
    concepts = {str(k): x[2000:4000][y[2000:4000] == k][:SIZE] for k in range(10)}
    pool, examples = x[4000:6000], x[:2000][y[:2000] == TARGET][:N_EXAMPLES]
    sets = draw_example_sets(concepts, pool, N_SETS, SIZE, 0)
    settings: dict[str, Any] = {"random_data": pool, "n_random": N_SETS, "set_size": SIZE, "l2": L2}

    def ours(**kwargs: Any) -> Tensor:
        return tcav(box, examples, concepts, ub.logit(TARGET), LAYERS, **settings, **kwargs).scores

    def plain() -> Tensor:
        return ours(control=False, diagnostics=False)

    few = draw_example_sets(dict(list(concepts.items())[:2]), pool, N_SETS, SIZE, 0)
    difference = float((captum_scores(box, examples, few, Exact()) - plain()[:2]).abs().max())
    assert difference <= 0.02, difference  # of 100 examples two whose derivative is about 0
    torch.manual_seed(0)
    runs = list[Tensor]()  # captum's runs that are timed are those whose signs are compared
    same_work = compare(plain, lambda: runs.append(captum_scores(box, examples, sets)), pairs=args.pairs, warmup=0)
    ours_ms = 1e3 * statistics.median(seconds(ours) for _ in range(args.pairs))
    same = signs(plain(), runs[0], runs[1], hinge_scores(box, examples, sets))
    print(same_work, ours_ms, same, flush=True)
    figures = {
        "concepts": len(concepts), "layers": LAYERS, "random_sets": N_SETS, "size": SIZE, "examples": len(examples),
        "largest_difference_with_the_same_classifier": difference, "signs": same, "same_work": same_work,
        "with_control_and_diagnostics": {"ratio": ours_ms / same_work["peer_ms"], "ours_ms": ours_ms},
    }  # fmt: skip
    write("concepts_tcav_captum", figures, packages=["captum", "scikit-learn"])


if __name__ == "__main__":
    main()
