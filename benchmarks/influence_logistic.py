"""Are influence functions right where they should be? Logistic regression on MNIST, each point really left out.

Koh & Liang 2017, section 4.1: L2 of .01, trained to convergence in double precision; for several test images that it
gets wrong, the 500 training images of the largest influence are each left out, the model is trained again from where it
was, and the change of the test image's loss stands beside what was predicted. lambda and 1/n stay as they are.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unboxed as ub
from harness import write

REAL = Path(os.environ.get("UNBOXED_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))
L2, N_TRAIN, N_QUERIES, N_LEFT_OUT = 0.01, 10_000, 4, 500
TOLERANCE = 1e-8  # of the gradient's norm, of all trainings
MODELS_AT_A_TIME = 200
WANTED = {"r": 0.99, "slope": (0.9, 1.1), "r_within_sign": 0.98}


class Logistic:
    """The training objective over parameters (M, 10, 785), M models at a time: weights and a bias, all decayed."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x = torch.cat([x.flatten(1), x.new_ones(len(x), 1)], 1)  # (N, 785)
        self.labels = F.one_hot(y, 10).to(x)  # (N, 10)

    def errors(self, theta: Tensor) -> Tensor:
        """Probabilities less labels (M, 10, N)."""
        z = theta.flatten(0, 1) @ self.x.T
        return z.reshape(-1, 10, len(self.x)).softmax(1) - self.labels.T

    def gradient(self, theta: Tensor, left_out: Tensor | None = None) -> Tensor:
        """(M, 10, 785); model m is trained without example left_out[m]."""
        errors = self.errors(theta)
        if left_out is not None:
            errors[torch.arange(len(theta)), :, left_out] = 0
        return (errors.flatten(0, 1) @ self.x).reshape_as(theta) / len(self.x) + L2 * theta

    def factor(self, theta: Tensor) -> Tensor:
        """The Cholesky factor (7850, 7850) of the Hessian at (1, 10, 785); float32 will do, as it only sets steps."""
        p, x = (self.errors(theta)[0] + self.labels.T).float(), self.x.float()
        blocks = [[(x * (p[a] * (float(a == b) - p[b]))[:, None]).T @ x for b in range(a + 1)] for a in range(10)]
        h = torch.zeros(10, 785, 10, 785)
        for a in range(10):
            for b in range(a + 1):
                h[a, :, b] = blocks[a][b]
                h[b, :, a] = blocks[a][b].T
        h = h.reshape(7850, 7850) / len(x)
        h.diagonal().add_(L2)
        return torch.linalg.cholesky(h)

    def converge(self, theta: Tensor, factor: Tensor, left_out: Tensor | None = None) -> tuple[Tensor, float]:
        """The optimum by Newton steps with one Hessian, and the norm of the gradient there."""
        for _ in range(100):
            gradient = self.gradient(theta, left_out)
            if (norm := float(gradient.flatten(1).norm(dim=1).max())) < TOLERANCE:
                break
            step = torch.cholesky_solve(gradient.flatten(1).T.float(), factor).T
            theta = theta - step.double().reshape_as(theta)
        return theta, norm


def trained(problem: Logistic) -> tuple[Tensor, Tensor, float]:
    """The optimum (1, 10, 785), the factor of its Hessian, and the norm of its gradient: L-BFGS, then Newton."""
    theta = torch.zeros(1, 10, 785, dtype=torch.float64)
    lbfgs = torch.optim.LBFGS([theta], max_iter=60, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        theta.grad = problem.gradient(theta)
        p = problem.errors(theta)[0] + problem.labels.T
        return -(problem.labels.T * p.log()).sum() / len(problem.x) + L2 / 2 * theta.square().sum()

    lbfgs.step(objective)  # type: ignore[arg-type]
    factor = problem.factor(theta)
    theta, norm = problem.converge(theta, factor)
    return theta, factor, norm


def boxed(theta: Tensor) -> ub.Box:
    layer = nn.Linear(784, 10).double()
    layer.weight.data, layer.bias.data = theta[0, :, :-1].clone(), theta[0, :, -1].clone()
    return ub.Box(nn.Sequential(nn.Flatten(), layer), ub.Pixels((1, 28, 28)), outputs="logits")


def losses(theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """(M, Q) of M models for Q images."""
    z = theta[:, :, :-1] @ x.flatten(1).T + theta[:, :, -1:]
    return F.cross_entropy(z, y.expand(len(theta), -1), reduction="none")


def figures(predicted: Tensor, real: Tensor) -> dict[str, float]:
    def r(rows: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([predicted[rows], real[rows]]))[0, 1])

    p = predicted - predicted.mean()
    return {
        "r": r(torch.ones_like(real, dtype=torch.bool)),
        "slope": float(p @ (real - real.mean()) / (p @ p)),
        "r_helpful": r(predicted > 0),
        "r_harmful": r(predicted < 0),
        "n_helpful": int((predicted > 0).sum()),
        "largest_change": float(real.abs().max()),
    }


def rounded(points: Tensor) -> list[list[float]]:
    return [[float(f"{v:.4g}") for v in row] for row in points.tolist()]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--train", type=int, default=N_TRAIN)
    options.add_argument("--queries", type=int, default=N_QUERIES)
    options.add_argument("--left-out", type=int, default=N_LEFT_OUT)
    chosen = options.parse_args()
    clock = time.process_time()
    (x, y), (test_x, test_y) = (ub.data.mnist(s, REAL / "mnist").tensors() for s in ("train", "test"))
    x, y, test_x = x[: chosen.train].double(), y[: chosen.train], test_x.double()
    problem = Logistic(x, y)
    theta, factor, norm = trained(problem)
    seconds = {"training": time.process_time() - clock}
    box = boxed(theta)
    wrong = (box.predict(test_x) != test_y).nonzero()[: chosen.queries, 0]
    queries = test_x[wrong], test_y[wrong]
    clock = time.process_time()
    found = ub.influence.influence_functions(
        box, *queries, (x, y), l2=L2, solver=ub.influence.ConjugateGradient(tolerance=1e-6)
    )
    seconds["influence"] = time.process_time() - clock
    clock = time.process_time()
    largest = found.scores.abs().topk(chosen.left_out, dim=1).indices  # (Q, 500)
    rows, where = largest.unique(return_inverse=True)
    changes, norms = [], []
    for part in rows.split(MODELS_AT_A_TIME):
        again, reached = problem.converge(theta.expand(len(part), -1, -1), factor, part)
        changes.append(losses(again, *queries) - losses(theta, *queries))
        norms.append(reached)
        print(f"{len(changes) * MODELS_AT_A_TIME} of {len(rows)} left out", flush=True)
    seconds["leaving out"] = time.process_time() - clock
    real = torch.cat(changes)[where, torch.arange(len(wrong))[:, None]]  # (Q, 500)
    predicted = found.scores.gather(1, largest)
    per_query = {int(i): figures(p, r) for i, p, r in zip(wrong, predicted, real, strict=True)}
    everything: dict[str, Any] = {
        "wanted": WANTED,
        "n_train": len(x),
        "l2": L2,
        "damping": found.settings["damping"],
        "test_accuracy": float((box.predict(test_x) == test_y).double().mean()),
        "gradient_norm": norm,
        "gradient_norm_left_out": max(norms),
        "left_out": len(rows),
        "all": figures(predicted.flatten(), real.flatten()),
        "per_test_image": per_query,
        "points": {"predicted": rounded(predicted), "real": rounded(real)},
        "cpu_seconds": seconds,
    }
    write("influence_logistic", everything)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
